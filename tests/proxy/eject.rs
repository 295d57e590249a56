//! Engines whose probes are well and whose requests fail.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering::SeqCst};
use std::time::{Duration, Instant};

use forebay::pool::health::State;

use crate::client::{Client, VERSIONS, Version, prompt};
use crate::harness::{Forebay, eventually, in_front_of};
use crate::upstream::{Engine, Reply};

/// An engine that answers with this status.
async fn answers(status: &Arc<AtomicU16>, retry_after: &'static str) -> Engine {
    let status = status.clone();
    Engine::new(move |_| match (status.load(SeqCst), retry_after) {
        (200, _) => Reply::json(200, "{}"),
        (status, "") => Reply::json(status, "{\"error\":\"no\"}"),
        (status, after) => {
            Reply::raw(format!("HTTP/1.1 {status} No\r\nretry-after: {after}\r\ncontent-length: 2\r\n\r\n{{}}"))
        }
    })
    .await
}

fn state(forebay: &Forebay, server: usize) -> State {
    forebay.server(server).health(Instant::now()).state
}

async fn until(forebay: &Forebay, server: usize, wanted: State) {
    eventually("the server's state", || (state(forebay, server) == wanted).then_some(())).await;
}

#[tokio::test]
async fn a_server_that_fails_requests_in_a_row_is_left_alone_and_comes_back_by_one_trial() {
    let (status, fine) = (Arc::new(AtomicU16::new(500)), Engine::fine().await);
    let bad = answers(&status, "").await;
    let forebay = in_front_of(&[&bad, &fine]).and("[pool.p.eject]\nfailures = 3\nduration = \"400ms\"").start().await;
    let mut client = Client::connect(&forebay, Version::H1).await;
    let mut seen = Vec::new();
    for _ in 0..12 {
        seen.push(client.ask(&prompt()).await.status);
    }
    assert_eq!(seen.iter().filter(|status| **status == 500).count(), 3, "{seen:?}");
    assert_eq!((bad.requests(), state(&forebay, 0)), (3, State::Ejected));
    let health = forebay.server(0).health(Instant::now());
    assert_eq!(health.why, "requests told: server_error");
    // The trial fails: it is left alone for twice as long, whatever its probes say.
    until(&forebay, 0, State::Suspect).await;
    let tried = Instant::now();
    for _ in 0..10 {
        client.ask(&prompt()).await;
    }
    assert_eq!((bad.requests(), state(&forebay, 0)), (4, State::Ejected));
    status.store(200, SeqCst);
    until(&forebay, 0, State::Suspect).await;
    assert!(tried.elapsed() > Duration::from_millis(700), "{:?}", tried.elapsed());
    for _ in 0..10 {
        assert_eq!(client.ask(&prompt()).await.status, 200);
    }
    assert_eq!(state(&forebay, 0), State::Up);
    assert!(bad.requests() > 6, "it has its share again");
    forebay.idle().await;
}

#[tokio::test]
async fn an_engine_that_breaks_off_or_cannot_be_connected_to_is_ejected_too() {
    for version in VERSIONS {
        for broken in ["reset", "truncated", "refused"] {
            let bad = Engine::new(move |_| match broken {
                "truncated" => Reply::raw("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf").close(),
                _ => Reply::silence().reset(),
            })
            .await;
            let fine = Engine::fine().await;
            let forebay = in_front_of(&[&bad, &fine])
                .health("interval = \"1h\"")
                .and("[pool.p.eject]\nfailures = 2\nduration = \"1m\"")
                .start()
                .await;
            if broken == "refused" {
                bad.kill().await;
            }
            for _ in 0..8 {
                let mut client = Client::connect(&forebay, version).await;
                let answer = client.ask(&prompt()).await;
                assert!(answer.status == 200 || answer.status == 502, "{broken} {version:?}: {}", answer.status);
            }
            assert_eq!(state(&forebay, 0), State::Ejected, "{broken} {version:?}");
            assert_eq!(forebay.server(0).errors(), 2, "{broken} {version:?}");
        }
    }
}

#[tokio::test]
async fn never_more_than_the_share_is_ejected_and_never_the_only_server() {
    let status = Arc::new(AtomicU16::new(500));
    for (servers, ejected) in [(1, 0), (2, 1), (3, 1), (4, 2)] {
        let mut engines = Vec::new();
        for _ in 0..servers {
            engines.push(answers(&status, "").await);
        }
        let all: Vec<&Engine> = engines.iter().collect();
        let forebay = in_front_of(&all).and("[pool.p.eject]\nfailures = 1\nduration = \"1m\"").start().await;
        let mut client = Client::connect(&forebay, Version::H2).await;
        for _ in 0..20 {
            assert_eq!(client.ask(&prompt()).await.status, 500, "the engine's own answer");
        }
        let out = (0..servers).filter(|server| state(&forebay, *server) == State::Ejected).count();
        assert_eq!(out, ejected, "of {servers}");
    }
}

#[tokio::test]
async fn a_server_that_asks_to_be_left_alone_is_and_comes_back_in_that_time() {
    for code in [429, 503] {
        let (status, fine) = (Arc::new(AtomicU16::new(code)), Engine::fine().await);
        let busy = answers(&status, "1").await;
        let forebay = in_front_of(&[&busy, &fine]).start().await;
        let mut client = Client::connect(&forebay, Version::H1).await;
        let asked = Instant::now();
        for _ in 0..10 {
            assert_eq!(client.ask(&prompt()).await.status, 200, "the other one answers");
        }
        assert_eq!((busy.requests(), state(&forebay, 0)), (1, State::Ejected), "{code}");
        status.store(200, SeqCst);
        until(&forebay, 0, State::Suspect).await;
        assert!(asked.elapsed() > Duration::from_millis(950), "{:?}", asked.elapsed());
        for _ in 0..4 {
            assert_eq!(client.ask(&prompt()).await.status, 200);
        }
        assert_eq!(state(&forebay, 0), State::Up);
    }
}

#[tokio::test]
async fn where_all_are_left_alone_the_client_is_told_when_to_come_back() {
    let status = Arc::new(AtomicU16::new(503));
    let engines = [answers(&status, "").await, answers(&status, "").await];
    let all: Vec<&Engine> = engines.iter().collect();
    let eject = "[pool.p.eject]\nfailures = 1\nduration = \"20s\"\nmax = \"100%\"\n[pool.p.retry]\nattempts = 1";
    let forebay = in_front_of(&all).and(eject).start().await;
    let mut client = Client::connect(&forebay, Version::H1).await;
    for _ in 0..2 {
        assert_eq!(client.ask(&prompt()).await.code(), "", "the engine's own 503");
    }
    let answer = Client::connect(&forebay, Version::H1).await.ask(&prompt()).await;
    assert_eq!((answer.status, &*answer.code()), (503, "no_healthy_upstream"));
    let after: u64 = answer.header("retry-after").and_then(|after| after.parse().ok()).expect("a number");
    assert!((18..=20).contains(&after), "{after}");
    assert_eq!(engines.iter().map(Engine::requests).sum::<usize>(), 2);
}

#[tokio::test]
async fn a_trial_whose_client_leaves_is_made_again() {
    let fine = Engine::fine().await;
    let status = Arc::new(AtomicU16::new(500));
    let asked = status.clone();
    let bad = Engine::new(move |_| match asked.load(SeqCst) {
        200 => Reply::json(200, "{}"),
        1 => Reply::silence().stall(),
        status => Reply::json(status, "{}"),
    })
    .await;
    let forebay = in_front_of(&[&bad, &fine]).and("[pool.p.eject]\nfailures = 1\nduration = \"200ms\"").start().await;
    for version in VERSIONS {
        status.store(500, SeqCst);
        let mut client = Client::connect(&forebay, Version::H1).await;
        while state(&forebay, 0) != State::Ejected {
            client.ask(&prompt()).await;
        }
        status.store(1, SeqCst);
        until(&forebay, 0, State::Suspect).await;
        let before = bad.requests();
        while bad.requests() == before {
            let mut leaves = Client::connect(&forebay, version).await;
            let pending = leaves.send(&prompt()).await;
            tokio::time::timeout(Duration::from_millis(100), pending.answer()).await.ok();
        }
        forebay.idle().await;
        assert_eq!(state(&forebay, 0), State::Suspect, "{version:?}");
        status.store(200, SeqCst);
        for _ in 0..4 {
            assert_eq!(client.ask(&prompt()).await.status, 200);
        }
        assert_eq!(state(&forebay, 0), State::Up, "{version:?}");
    }
}

#[tokio::test]
async fn a_server_that_was_down_and_is_up_again_begins_anew() {
    let (dead, fine) = (Engine::fine().await, Engine::fine().await);
    let forebay = in_front_of(&[&dead, &fine])
        .health("interval = \"100ms\"\nrise = 1\nfall = 1")
        .and("[pool.p.eject]\nfailures = 1\nduration = \"1h\"")
        .start()
        .await;
    let mut client = Client::connect(&forebay, Version::H1).await;
    dead.kill().await;
    for _ in 0..2 {
        assert_eq!(client.ask(&prompt()).await.status, 200);
    }
    until(&forebay, 0, State::Down).await;
    dead.revive().await;
    until(&forebay, 0, State::Up).await;
    let before = dead.requests();
    for _ in 0..4 {
        assert_eq!(client.ask(&prompt()).await.status, 200);
    }
    assert_eq!(dead.requests() - before, 2);
}
