//! Servers at their limits: who waits, in which order, for how long, and who need not wait any more.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::client::{Client, Request, VERSIONS, Version, WAYS, post, prompt};
use crate::harness::{Builder, Forebay, in_front_of, key, pool};
use crate::upstream::{Engine, Gate, Reply};

/// An engine that answers as often as the gate is opened.
async fn gated(gate: &Gate) -> Engine {
    let gate = gate.clone();
    Engine::new(move |_| Reply::raw("").wait(&gate).bytes("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")).await
}

/// Each server has at most one request in flight, and so many may wait.
fn limited(engines: &[&Engine], size: usize) -> Builder {
    in_front_of(engines).pool("max_in_flight = 1").and(&format!("[pool.p.queue]\nsize = {size}\ntimeout = \"9s\""))
}

/// What `n` requests recorded, by the number in their path.
async fn records(forebay: &Forebay, n: usize) -> Vec<Value> {
    let mut all = forebay.records(n).await;
    all.sort_by_key(|record| record["path"].as_str().map(str::to_owned));
    all
}

fn numbered(n: usize) -> Request {
    prompt().to(&format!("/v1/{n}"))
}

#[tokio::test]
async fn requests_beyond_the_limit_wait_in_turn_and_beyond_the_queue_they_are_refused() {
    for version in VERSIONS {
        let gate = Gate::new();
        let engine = gated(&gate).await;
        let forebay = limited(&[&engine], 2).start().await;
        let mut clients = Vec::new();
        for _ in 0..4 {
            clients.push(Client::connect(&forebay, version).await);
        }
        let [one, two, three, four] = &mut clients[..] else { panic!("four") };
        let first = one.send(&numbered(1)).await;
        engine.asked(0).await;
        let second = two.send(&numbered(2)).await;
        forebay.queued(1).await;
        let third = three.send(&numbered(3)).await;
        forebay.queued(2).await;
        let refused = four.ask(&numbered(4)).await;
        assert_eq!((refused.status, refused.code()), (503, "queue_full".into()));
        assert_eq!(refused.header("retry-after"), Some("9"));
        assert_eq!((engine.requests(), forebay.server(0).in_flight()), (1, 1));
        for pending in [first, second, third] {
            gate.open();
            assert_eq!(pending.answer().await.whole().await.status, 200);
        }
        let paths: Vec<String> = (1..=3).map(|n| format!("/v1/{n}")).collect();
        for (n, path) in paths.iter().enumerate() {
            assert_eq!(engine.asked(n).await.target(), path);
        }
        forebay.idle().await;
        let waited: Vec<bool> =
            records(&forebay, 4).await.iter().map(|record| record["queue_ms"].is_number()).collect();
        assert_eq!(waited, [false, true, true, false]);
    }
}

#[tokio::test]
async fn who_waits_too_long_is_told_so_and_without_a_queue_nobody_waits() {
    for (queue, code, attempts) in [
        ("[pool.p.queue]\ntimeout = \"200ms\"", "queue_timeout", Duration::from_millis(200)),
        ("", "queue_full", Duration::ZERO),
    ] {
        for version in VERSIONS {
            let gate = Gate::new();
            let engine = gated(&gate).await;
            let forebay = in_front_of(&[&engine]).each(&["max_in_flight = 1"]).and(queue).start().await;
            let mut holds = Client::connect(&forebay, version).await;
            let held = holds.send(&prompt()).await;
            engine.asked(0).await;
            let asked = Instant::now();
            let mut waits = Client::connect(&forebay, version).await;
            let answer = waits.ask(&prompt()).await;
            assert_eq!((answer.status, answer.code()), (503, code.into()));
            assert!(asked.elapsed() >= attempts && answer.header("retry-after").is_some());
            let record = forebay.record().await;
            assert_eq!((&record["attempts"], &record["end"]), (&0.into(), &"error".into()), "{record}");
            gate.open();
            assert_eq!(held.answer().await.whole().await.status, 200);
            forebay.queued(0).await;
            forebay.idle().await;
        }
    }
}

#[tokio::test]
async fn a_client_that_leaves_leaves_the_queue_at_once_and_reaches_no_engine() {
    let raw = "[[route]]\nname = \"chat\"\npath = \"/v1/*\"\nby = \"model\"\n\
               [[route]]\nname = \"raw\"\npath = \"/raw/*\"\npool = \"p\"\nauth = \"none\"";
    for request in [prompt(), crate::client::get("/raw/x"), post("/raw/x").body("streams")] {
        for (version, how) in WAYS {
            if version == Version::H1 && request.wire().ends_with(b"streams") {
                continue; // its body comes before anything that tells of its leaving
            }
            let gate = Gate::new();
            let engine = gated(&gate).await;
            let forebay = limited(&[&engine], 9).and(raw).start().await;
            let mut holds = Client::connect(&forebay, Version::H1).await;
            let held = holds.send(&prompt()).await;
            engine.asked(0).await;
            let mut client = Client::connect(&forebay, version).await;
            let waits = client.send(&request).await;
            forebay.queued(1).await;
            let left = Instant::now();
            waits.leave(how);
            forebay.queued(0).await;
            assert!(left.elapsed() < Duration::from_millis(100), "{version:?} {how:?}: {:?}", left.elapsed());
            let record = forebay.record().await;
            assert_eq!((&record["status"], &record["end"]), (&499.into(), &"client_gone".into()), "{record}");
            assert!(record["queue_ms"].is_number() && record["attempts"] == 0, "{record}");
            gate.open();
            assert_eq!(held.answer().await.whole().await.status, 200);
            forebay.idle().await;
            assert_eq!(engine.requests(), 1);
        }
    }
}

#[tokio::test]
async fn keys_take_turns_so_that_ones_burst_does_not_hold_up_anothers_single_request() {
    const OTHER: &str = "fb-another-secret";
    let gate = Gate::new();
    let engine = gated(&gate).await;
    let forebay = limited(&[&engine], 300).and(&key("other", OTHER, "models = [\"*\"]")).start().await;
    let Client::H2(mut burst) = Client::connect(&forebay, Version::H2).await else { panic!("HTTP/2") };
    let mut pending = vec![burst.start(&prompt()).await];
    engine.asked(0).await;
    for n in 1..=200 {
        pending.push(burst.start(&prompt()).await);
        forebay.queued(n).await;
    }
    let mut single = Client::connect(&forebay, Version::H1).await;
    let single = single.send(&post("/v1/single").key(OTHER).body("{\"model\":\"m\"}")).await;
    forebay.queued(201).await;
    gate.open();
    assert_eq!(engine.asked(1).await.target(), "/v1/single");
    (0..201).for_each(|_| gate.open());
    assert_eq!(single.answer().await.whole().await.status, 200);
    for pending in pending {
        assert_eq!(pending.answer().await.whole().await.status, 200);
    }
    forebay.idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_turn_that_comes_while_the_client_is_looked_at_is_no_failure() {
    const REQUESTS: usize = 600; // of each client: the moment is short
    let engine = Engine::fine().await;
    let forebay = limited(&[&engine], 9).start().await;
    let address = forebay.address;
    let clients = (0..4).map(|_| {
        tokio::spawn(async move {
            let mut client = Client::connect_to(address, Version::H1).await;
            for _ in 0..REQUESTS {
                assert_eq!(client.ask(&prompt()).await.status, 200);
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
    forebay.idle().await;
}

#[tokio::test]
async fn those_who_wait_have_a_server_as_soon_as_its_ejection_is_over() {
    let gate = Gate::new();
    let (busy, bad) = (gated(&gate).await, Engine::always(Reply::json(500, "{}")).await);
    let eject = "[pool.p.eject]\nfailures = 1\nduration = \"500ms\"";
    let forebay = limited(&[&busy, &bad], 9).and(eject).start().await;
    let mut holds = Client::connect(&forebay, Version::H1).await;
    let held = holds.send(&prompt()).await;
    busy.asked(0).await;
    let mut client = Client::connect(&forebay, Version::H1).await;
    let failed = Instant::now();
    assert_eq!(client.ask(&prompt()).await.status, 500);
    assert_eq!(client.ask(&prompt()).await.status, 500, "it waited for the trial");
    assert!(failed.elapsed() >= Duration::from_millis(450), "{:?}", failed.elapsed());
    assert_eq!((bad.requests(), busy.requests()), (2, 1));
    gate.open();
    assert_eq!(held.answer().await.whole().await.status, 200);
}

#[tokio::test]
async fn a_request_whose_server_cannot_be_reached_waits_for_another() {
    let gate = Gate::new();
    let (dead, busy) = (Engine::fine().await, gated(&gate).await);
    let forebay = limited(&[&dead, &busy], 9).health("interval = \"1h\"").start().await;
    let mut both = [Client::connect(&forebay, Version::H1).await, Client::connect(&forebay, Version::H2).await];
    let [one, two] = &mut both;
    assert_eq!(one.ask(&prompt()).await.status, 200);
    let held = one.send(&prompt()).await;
    busy.asked(0).await;
    dead.kill().await;
    let waits = two.send(&prompt()).await;
    forebay.queued(1).await;
    gate.open();
    gate.open();
    for pending in [held, waits] {
        assert_eq!(pending.answer().await.whole().await.status, 200);
    }
    forebay.idle().await;
    assert_eq!(forebay.outcomes(), "s0 answered 1, s0 connect_failed 1, s1 answered 2");
}

#[tokio::test]
async fn a_pool_that_streams_bodies_has_its_limits_and_its_queue_too() {
    let gate = Gate::new();
    let engine = gated(&gate).await;
    let route = "[[route]]\nname = \"raw\"\npath = \"/raw/*\"\npool = \"q\"\nauth = \"none\"";
    let more = format!("{}\n[pool.q.queue]\nsize = 1\n{route}", pool("q", &engine, "max_in_flight = 1"));
    let forebay = in_front_of(&[&engine]).and(&more).start().await;
    let mut clients = [Client::connect(&forebay, Version::H1).await, Client::connect(&forebay, Version::H2).await];
    let [one, two] = &mut clients;
    let body = post("/raw/x").body("x".repeat(10_000));
    let first = one.send(&body).await;
    engine.asked(0).await;
    let second = two.send(&body).await;
    gate.open();
    gate.open();
    for pending in [first, second] {
        let answer = pending.answer().await.whole().await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    assert_eq!(engine.asked(1).await.body().len(), 10_000);
    forebay.idle().await;
}
