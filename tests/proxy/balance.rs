//! Which server gets a request, and what happens when servers die and come back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Instant;

use crate::client::{Client, VERSIONS, Version, prompt};
use crate::harness::{eventually, in_front_of};
use crate::upstream::{Engine, Gate, Reply};

/// Probes that come quickly.
const QUICK: &str = "interval = \"20ms\"\nrise = 2\nfall = 2";

#[tokio::test]
async fn weights_of_5_1_1_give_exactly_5000_1000_and_1000_of_7000_requests() {
    let engines = [Engine::fine().await, Engine::fine().await, Engine::fine().await];
    let all: Vec<&Engine> = engines.iter().collect();
    let weights = ["weight = 5", "weight = 1", "weight = 1"];
    let forebay = in_front_of(&all).each(&weights).start().await;
    let one_client = async || {
        let mut client = Client::connect(&forebay, Version::H1).await;
        for _ in 0..1750 {
            assert_eq!(client.ask(&prompt()).await.status, 200);
        }
    };
    tokio::join!(one_client(), one_client(), one_client(), one_client());
    let counts: Vec<usize> = engines.iter().map(Engine::requests).collect();
    assert_eq!(counts, [5000, 1000, 1000]);
    forebay.idle().await;
}

#[tokio::test]
async fn turns_are_taken_smoothly_in_the_order_of_the_file() {
    let engines = [Engine::fine().await, Engine::fine().await, Engine::fine().await];
    let all: Vec<&Engine> = engines.iter().collect();
    let forebay = in_front_of(&all).each(&["weight = 5", "weight = 1", "weight = 1"]).start().await;
    for version in VERSIONS {
        let mut client = Client::connect(&forebay, version).await;
        let mut order = String::new();
        for _ in 0..14 {
            assert_eq!(client.ask(&prompt()).await.status, 200);
            order += forebay.record().await["server"].as_str().unwrap();
        }
        assert_eq!(order.replace('s', ""), "00102000010200", "{version:?}");
    }
}

#[tokio::test]
async fn an_engine_killed_under_load_costs_only_what_was_in_flight_on_it_and_comes_back() {
    let engines = [Engine::fine().await, Engine::fine().await];
    let forebay = in_front_of(&[&engines[0], &engines[1]]).health(QUICK).start().await;
    let over = Arc::new(AtomicBool::new(false));
    let mut clients = tokio::task::JoinSet::new();
    for n in 0..32 {
        let mut client = Client::connect(&forebay, if n % 2 == 0 { Version::H2 } else { Version::H1 }).await;
        let (over, address) = (over.clone(), forebay.address);
        clients.spawn(async move {
            let mut all = Vec::new();
            while !over.load(SeqCst) {
                let answer = client.ask(&prompt()).await;
                if answer.status != 200 {
                    client = Client::connect_to(address, Version::H1).await; // after an attempt the connection ends
                }
                all.push((answer.status, answer.complete));
            }
            all
        });
    }
    eventually("load on both", || engines.iter().all(|engine| engine.requests() > 100).then_some(())).await;
    engines[0].kill().await;
    eventually("it is down", || (!forebay.server(0).is_up()).then_some(())).await;
    let (served, others) = (engines[0].requests(), engines[1].requests());
    eventually("load on the other", || (engines[1].requests() > others + 200).then_some(())).await;
    assert_eq!(engines[0].requests(), served);
    engines[0].revive().await;
    eventually("it is up again", || forebay.server(0).is_up().then_some(())).await;
    eventually("load on it again", || (engines[0].requests() > served + 100).then_some(())).await;
    over.store(true, SeqCst);
    let answers = clients.join_all().await.concat();
    let failed = answers.iter().filter(|(status, _)| *status != 200).count();
    assert!(failed <= 32, "{failed} of {} failed", answers.len());
    assert!(answers.iter().all(|(status, complete)| *complete && [200, 502].contains(status)));
    let records = forebay.records(answers.len()).await;
    for record in records.iter().filter(|record| record["status"] != 200) {
        assert_eq!((&record["server"], &record["end"]), (&"s0".into(), &"error".into()), "{record}");
    }
    forebay.idle().await;
}

#[tokio::test]
async fn a_server_comes_back_after_rise_good_probes_and_goes_after_fall_bad_ones() {
    let (engine, other) = (Engine::fine().await, Engine::fine().await);
    let forebay = in_front_of(&[&engine, &other]).health(QUICK).start().await;
    let mut client = Client::connect(&forebay, Version::H1).await;
    for healthy in [false, true, false] {
        engine.be_healthy(healthy);
        eventually("its probes count", || (forebay.server(0).is_up() == healthy).then_some(())).await;
        let before = engine.requests();
        for _ in 0..4 {
            assert_eq!(client.ask(&prompt()).await.status, 200);
        }
        assert_eq!(engine.requests() - before, if healthy { 2 } else { 0 });
    }
    let health = forebay.server(0).health(Instant::now());
    assert!(health.why.contains("503"), "{health:?}");
}

#[tokio::test]
async fn a_backup_serves_only_while_no_other_server_can() {
    let engines = [Engine::fine().await, Engine::fine().await];
    let forebay =
        in_front_of(&[&engines[0], &engines[1]]).each(&["backup = false", "backup = true"]).health(QUICK).start().await;
    let mut client = Client::connect(&forebay, Version::H1).await;
    for (healthy, server) in [(true, "s0"), (false, "s1"), (true, "s0")] {
        engines[0].be_healthy(healthy);
        eventually("its probes count", || (forebay.server(0).is_up() == healthy).then_some(())).await;
        for _ in 0..3 {
            assert_eq!(client.ask(&prompt()).await.status, 200);
            assert_eq!(forebay.record().await["server"], server);
        }
    }
}

#[tokio::test]
async fn a_backup_is_tried_when_the_others_cannot_be_reached() {
    let (dead, backup) = (Engine::fine().await, Engine::fine().await);
    let forebay = in_front_of(&[&dead, &backup]).each(&["weight = 1", "backup = true"]).start().await;
    dead.kill().await;
    for version in VERSIONS {
        assert_eq!(Client::connect(&forebay, version).await.ask(&prompt()).await.status, 200);
        let record = forebay.record().await;
        assert_eq!((&record["server"], &record["attempts"]), (&"s1".into(), &2.into()), "{record}");
    }
}

#[tokio::test]
async fn a_server_of_no_weight_gets_nothing() {
    let engines = [Engine::fine().await, Engine::fine().await];
    let forebay = in_front_of(&[&engines[0], &engines[1]]).each(&["weight = 0", "weight = 1"]).start().await;
    let mut client = Client::connect(&forebay, Version::H1).await;
    for _ in 0..5 {
        assert_eq!(client.ask(&prompt()).await.status, 200);
    }
    assert_eq!((engines[0].requests(), engines[1].requests()), (0, 5));
}

#[tokio::test]
async fn when_every_server_is_down_the_client_is_told_when_to_come_again() {
    let engines = [Engine::fine().await, Engine::fine().await];
    engines.iter().for_each(|engine| engine.be_healthy(false));
    let forebay = in_front_of(&[&engines[0], &engines[1]]).health("interval = \"2500ms\"").start().await;
    for version in VERSIONS {
        for _ in 0..2 {
            let mut client = Client::connect(&forebay, version).await;
            let answer = client.ask(&prompt()).await;
            assert_eq!((answer.status, &*answer.code()), (503, "no_healthy_upstream"), "{version:?}");
            if version == Version::H1 {
                assert_eq!(answer.header("connection"), Some("close"), "Pingora 0.9.1 closes it, so it is said");
                client.is_closed().await;
            }
            assert_eq!(answer.header("retry-after"), Some("3"));
            let record = forebay.record().await;
            assert_eq!((&record["attempts"], &record["server"]), (&0.into(), &serde_json::Value::Null), "{record}");
            assert_eq!((&record["end"], &record["code"]), (&"error".into(), &"no_healthy_upstream".into()));
        }
    }
    assert_eq!(engines[0].requests() + engines[1].requests(), 0);
}

#[tokio::test]
async fn a_server_whose_probe_never_answers_is_not_used() {
    let engine = Engine::fine().await;
    // Accepts and says nothing.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = format!("[pool.q]\nservers = [\"{}\"]\n", silent.local_addr().unwrap());
    let health = "[pool.q.health]\ninterval = \"50ms\"\ntimeout = \"100ms\"\n[model.q]\npool = \"q\"";
    let forebay = in_front_of(&[&engine]).and(&silent).and(health).start().await;
    let mut client = Client::connect(&forebay, Version::H1).await;
    assert_eq!(client.ask(&prompt()).await.status, 200);
    assert_eq!(client.ask(&prompt().body("{\"model\":\"q\"}")).await.status, 503);
}

#[tokio::test]
async fn slow_requests_do_not_change_whose_turn_it_is() {
    let gate = Gate::new();
    let slow = Engine::always(Reply::raw("HTTP/1.1 200 OK\r\n").wait(&gate).bytes("content-length: 0\r\n\r\n")).await;
    let quick = Engine::fine().await;
    let forebay = in_front_of(&[&slow, &quick]).start().await;
    let mut client = Client::connect(&forebay, Version::H2).await;
    let Client::H2(http2) = &mut client else { unreachable!() };
    let mut waiting = Vec::new();
    for _ in 0..10 {
        waiting.push(http2.start(&prompt()).await);
    }
    eventually("its share at each", || (slow.requests() == 5 && quick.requests() == 5).then_some(())).await;
    assert_eq!(forebay.server(0).in_flight(), 5);
    (0..5).for_each(|_| gate.open());
    for pending in waiting {
        assert_eq!(pending.answer().await.status, 200);
    }
    forebay.idle().await;
}
