//! The client goes away: the engine is freed at once, whatever was going on.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::client::{Client, Leaving, Request, Version, post, prompt};
use crate::harness::{Forebay, in_front_of, pool};
use crate::upstream::{Asked, Deaf, Engine, Gate, Reply};

/// How long an engine may go on for nobody.
const AT_ONCE: Duration = Duration::from_millis(100);

const WAYS: [(Version, Leaving); 3] =
    [(Version::H1, Leaving::Connection), (Version::H2, Leaving::Stream), (Version::H2, Leaving::Connection)];

async fn freed_at_once(asked: &Asked, left: Instant) {
    let after = asked.gone().await.saturating_duration_since(left);
    assert!(after < AT_ONCE, "the engine was freed only after {after:?}");
}

/// That the engine is freed at once when the client of its one request leaves, and what is recorded of it.
async fn frees_the_engine(forebay: &Forebay, asked: &Asked, leave: impl FnOnce(), status: u16) -> Value {
    let left = Instant::now();
    leave();
    freed_at_once(asked, left).await;
    forebay.idle().await;
    let record = forebay.record().await;
    assert_eq!((&record["status"], &record["end"]), (&status.into(), &"client_gone".into()), "{record}");
    record
}

#[tokio::test]
async fn a_client_that_leaves_before_the_answer_frees_the_engine() {
    for (version, how) in WAYS {
        let engine = Engine::always(Reply::silence()).await;
        let forebay = in_front_of(&[&engine]).start().await;
        let mut client = Client::connect(&forebay, version).await;
        let pending = client.send(&prompt()).await;
        let asked = engine.asked(0).await;
        assert_eq!(forebay.server(0).in_flight(), 1);
        let record = frees_the_engine(&forebay, &asked, || pending.leave(how), 499).await;
        assert_eq!((forebay.server(0).errors(), &record["attempts"]), (0, &1.into()), "{record}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_in_mid_stream_frees_the_engine() {
    for (version, how) in WAYS {
        let engine = Engine::always(Reply::events().chunk("data: 1\n\n").stall()).await;
        let forebay = in_front_of(&[&engine]).start().await;
        let mut client = Client::connect(&forebay, version).await;
        let mut answer = client.send(&prompt()).await.answer().await;
        assert_eq!(answer.event().await.as_deref(), Some("data: 1\n\n"));
        let asked = engine.asked(0).await;
        frees_the_engine(&forebay, &asked, || answer.leave(how), 200).await;
        assert_eq!(forebay.server(0).errors(), 0);
    }
}

#[tokio::test]
async fn a_client_that_leaves_while_events_flow_frees_the_engine() {
    for (version, how) in WAYS {
        let gate = Gate::new();
        let reply = (0..2000).fold(Reply::events().chunk("data: 1\n\n").wait(&gate), |reply, _| {
            reply.chunk(&format!("data: {}\n\n", "x".repeat(8000)))
        });
        let engine = Engine::always(reply.stall()).await;
        let forebay = in_front_of(&[&engine]).start().await;
        let mut client = Client::connect(&forebay, version).await;
        let mut answer = client.send(&prompt()).await.answer().await;
        assert_eq!(answer.event().await.as_deref(), Some("data: 1\n\n"));
        gate.open();
        for _ in 0..10 {
            assert!(answer.event().await.is_some());
        }
        let asked = engine.asked(0).await;
        frees_the_engine(&forebay, &asked, || answer.leave(how), 200).await;
    }
}

#[tokio::test]
async fn a_client_that_has_stopped_reading_and_then_leaves_frees_the_engine() {
    for (version, how) in WAYS {
        let block = format!("data: {}\n\n", "x".repeat(60_000));
        let reply = (0..500).fold(Reply::events(), |reply, _| reply.chunk(&block));
        let engine = Engine::always(reply.stall()).await;
        let forebay = in_front_of(&[&engine]).start().await;
        let mut client = Client::connect(&forebay, version).await;
        let answer = client.send(&prompt()).await.answer().await;
        let asked = engine.asked(0).await;
        // 30 MB are more than the sockets hold, so forebay cannot be rid of them.
        frees_the_engine(&forebay, &asked, || answer.leave(how), 200).await;
    }
}

#[tokio::test]
async fn a_client_that_leaves_in_its_prompt_reaches_no_engine() {
    for (version, how) in WAYS {
        let engine = Engine::fine().await;
        let forebay = in_front_of(&[&engine]).start().await;
        let mut client = Client::connect(&forebay, version).await;
        let mut pending = client.begin(&prompt().body("").pieces(1)).await;
        assert!(pending.pour("{\"model\":\"m\"".into(), false).await);
        pending.leave(how);
        let record = forebay.record().await;
        assert_eq!((&record["status"], &record["end"]), (&499.into(), &"client_gone".into()), "{version:?} {record}");
        assert_eq!(engine.requests(), 0);
    }
}

#[tokio::test]
async fn a_client_that_leaves_in_a_body_that_streams_frees_the_engine() {
    for (version, how) in WAYS {
        let engine = Engine::fine().await;
        let route = "[[route]]\nname = \"raw\"\npath = \"/raw/*\"\npool = \"q\"\nauth = \"none\"";
        let forebay = in_front_of(&[&engine]).and(&pool("q", &engine, "")).and(route).start().await;
        let mut client = Client::connect(&forebay, version).await;
        let mut pending = client.begin(&post("/raw/x").body("").pieces(1)).await;
        assert!(pending.pour("half of ".into(), false).await);
        let asked = engine.begun(0).await;
        asked.has(8).await;
        frees_the_engine(&forebay, &asked, || pending.leave(how), 499).await;
    }
}

#[tokio::test]
async fn one_stream_that_is_reset_leaves_the_others_of_its_connection_alone() {
    let gate = Gate::new();
    let reply = Reply::events().chunk("data: 1\n\n").wait(&gate).chunk("data: [DONE]\n\n").last();
    let engine = Engine::always(reply).await;
    let forebay = in_front_of(&[&engine]).start().await;
    let mut client = Client::connect(&forebay, Version::H2).await;
    let Client::H2(http2) = &mut client else { unreachable!() };
    let mut stays = http2.start(&prompt()).await.answer().await;
    assert_eq!(stays.event().await.as_deref(), Some("data: 1\n\n"));
    let mut leaves = http2.start(&prompt()).await.answer().await;
    assert_eq!(leaves.event().await.as_deref(), Some("data: 1\n\n"));
    let asked = engine.asked(1).await;
    let left = Instant::now();
    leaves.leave(Leaving::Stream);
    freed_at_once(&asked, left).await;
    gate.open();
    assert_eq!(stays.event().await.as_deref(), Some("data: [DONE]\n\n"));
    assert!(stays.whole().await.complete);
}

/// That an engine which reads nothing is freed at once when the client of this request leaves.
async fn freed_though_deaf(request: Request, ways: &[(Version, Leaving)]) {
    for &(version, how) in ways {
        let (engine, deaf) = (Engine::fine().await, Deaf::new().await);
        let forebay = in_front_of(&[&engine]).and(&deaf.pool("")).start().await;
        let mut client = Client::connect(&forebay, version).await;
        client.send_what_is_taken(&request).await.leave(how);
        let left = Instant::now();
        forebay.idle().await;
        assert!(left.elapsed() < AT_ONCE, "{version:?} {how:?}: freed only after {:?}", left.elapsed());
        let record = forebay.record().await;
        assert_eq!((&record["status"], &record["end"]), (&499.into(), &"client_gone".into()), "{record}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_an_engine_that_does_not_read_its_prompt_is_noticed() {
    let prompt = prompt().body(format!("{{\"model\":\"deaf\",\"x\":\"{}\"}}", "x".repeat(20_000_000)));
    freed_though_deaf(prompt, &WAYS).await;
}

/// Over HTTP/1 the end of the connection lies behind the bytes that the engine does not take: there `first_byte` ends it.
#[tokio::test]
async fn a_client_that_leaves_an_engine_that_does_not_read_its_stream_is_noticed() {
    freed_though_deaf(post("/deaf/x").body("x".repeat(20_000_000)).pieces(60_000), &WAYS[1..]).await;
}
