//! Selectors that look at more than whose turn it is.

use std::collections::{BTreeMap, BTreeSet};

use crate::client::{Client, Version, prompt};
use crate::harness::{Forebay, eventually, in_front_of};
use crate::upstream::{Engine, Gate, Reply};

/// The name of the server that a client with this header gets.
async fn served(forebay: &Forebay, client: &mut Client, forwarded_for: &str) -> String {
    let answer = client.ask(&prompt().header("x-forwarded-for", forwarded_for)).await;
    assert_eq!(answer.status, 200);
    forebay.record().await["server"].as_str().unwrap().to_owned()
}

/// The servers of forty clients behind one load balancer.
async fn all_served(forebay: &Forebay, client: &mut Client) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for n in 0..40 {
        let address = format!("203.0.113.{n}");
        let server = served(forebay, client, &address).await;
        all.insert(address, server);
    }
    all
}

#[tokio::test]
async fn a_server_with_an_open_stream_gets_nothing_while_others_are_free() {
    let gate = Gate::new();
    let stuck = Reply::events().chunk("data: 1\n\n").wait(&gate).chunk("data: [DONE]\n\n").last();
    let engines = [Engine::always(stuck).await, Engine::fine().await, Engine::fine().await];
    let all: Vec<&Engine> = engines.iter().collect();
    let forebay = in_front_of(&all).pool("balance = \"least-connections\"").start().await;
    let mut streaming = Client::connect(&forebay, Version::H1).await;
    let mut answer = streaming.send(&prompt()).await.answer().await;
    assert_eq!(answer.event().await.as_deref(), Some("data: 1\n\n"));
    assert_eq!((engines[0].requests(), forebay.server(0).in_flight()), (1, 1));
    let mut client = Client::connect(&forebay, Version::H1).await;
    for _ in 0..30 {
        assert_eq!(client.ask(&prompt()).await.status, 200);
        forebay.idle_but(1).await;
    }
    assert_eq!(engines[0].requests(), 1, "it had a stream all the time");
    assert_eq!((engines[1].requests(), engines[2].requests()), (15, 15));
    gate.open();
    assert!(answer.whole().await.complete);
    forebay.idle().await;
    gate.open();
    let mut servers = BTreeSet::new();
    for _ in 0..3 {
        gate.open();
        assert_eq!(client.ask(&prompt()).await.status, 200);
        forebay.idle().await;
    }
    for record in forebay.records(34).await.into_iter().skip(31) {
        servers.insert(record["server"].as_str().unwrap().to_owned());
    }
    assert_eq!(servers.len(), 3, "once free it has its turn again");
}

#[tokio::test]
async fn streams_spread_by_how_many_each_server_has_and_its_weight() {
    let gate = Gate::new();
    let reply = Reply::events().wait(&gate).chunk("data: [DONE]\n\n").last();
    let engines = [Engine::always(reply.clone()).await, Engine::always(reply).await];
    let forebay = in_front_of(&[&engines[0], &engines[1]])
        .pool("balance = \"least-connections\"")
        .each(&["weight = 3", "weight = 1"])
        .start()
        .await;
    let mut client = Client::connect(&forebay, Version::H2).await;
    let Client::H2(http2) = &mut client else { unreachable!() };
    let mut waiting = Vec::new();
    for n in 0..12 {
        waiting.push(http2.start(&prompt()).await);
        eventually("it is at an engine", || (engines[0].requests() + engines[1].requests() > n).then_some(())).await;
    }
    assert_eq!((engines[0].requests(), engines[1].requests()), (9, 3));
    (0..12).for_each(|_| gate.open());
    for pending in waiting {
        assert!(pending.answer().await.whole().await.complete);
    }
    forebay.idle().await;
}

#[tokio::test]
async fn a_clients_address_stays_with_one_server_and_leaves_it_only_while_that_is_down() {
    let engines = [Engine::fine().await, Engine::fine().await, Engine::fine().await];
    let all: Vec<&Engine> = engines.iter().collect();
    let forebay = in_front_of(&all)
        .server("trusted_proxies = [\"127.0.0.1\"]")
        .pool("balance = \"ip-hash\"")
        .health("interval = \"20ms\"\nrise = 2\nfall = 2")
        .start()
        .await;
    let mut client = Client::connect(&forebay, Version::H1).await;
    let before = all_served(&forebay, &mut client).await;
    assert_eq!(before.values().collect::<BTreeSet<_>>().len(), 3, "{before:?}");
    let mut client = Client::connect(&forebay, Version::H2).await;
    assert_eq!(all_served(&forebay, &mut client).await, before);
    engines[1].be_healthy(false);
    eventually("it is down", || (!forebay.server(1).is_up()).then_some(())).await;
    let meanwhile = all_served(&forebay, &mut client).await;
    for (address, server) in &before {
        let now = &meanwhile[address];
        assert!(if server == "s1" { now != "s1" } else { now == server }, "{address}: {server}, then {now}");
    }
    engines[1].be_healthy(true);
    eventually("it is up", || forebay.server(1).is_up().then_some(())).await;
    assert_eq!(all_served(&forebay, &mut client).await, before);
}

#[tokio::test]
async fn what_a_stranger_says_of_its_address_moves_it_nowhere() {
    let engines = [Engine::fine().await, Engine::fine().await, Engine::fine().await];
    let all: Vec<&Engine> = engines.iter().collect();
    for trusted in ["", "trusted_proxies = [\"10.0.0.0/8\"]"] {
        let forebay = in_front_of(&all).server(trusted).pool("balance = \"ip-hash\"").start().await;
        let mut client = Client::connect(&forebay, Version::H1).await;
        let servers: BTreeSet<String> = all_served(&forebay, &mut client).await.into_values().collect();
        assert_eq!(servers.len(), 1, "{servers:?}");
    }
}

#[tokio::test]
async fn an_address_whose_server_cannot_be_reached_is_served_by_another() {
    let engines = [Engine::fine().await, Engine::fine().await];
    let forebay = in_front_of(&[&engines[0], &engines[1]]).pool("balance = \"ip-hash\"").start().await;
    let mut client = Client::connect(&forebay, Version::H1).await;
    let own = served(&forebay, &mut client, "").await;
    let (own, other) = if own == "s0" { (&engines[0], "s1") } else { (&engines[1], "s0") };
    own.kill().await;
    let answer = client.ask(&prompt()).await;
    assert_eq!(answer.status, 200);
    let record = forebay.record().await;
    assert_eq!((&record["server"], &record["attempts"]), (&other.into(), &2.into()), "{record}");
}
