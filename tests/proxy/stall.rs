//! Engines that fall silent: what waits there goes to another server, and what cannot stays.

use std::time::{Duration, Instant};

use forebay::pool::health::State;

use crate::client::{Client, Request, VERSIONS, Version, prompt};
use crate::harness::{Builder, Forebay, at, eventually, in_front_of};
use crate::upstream::{Engine, Gate, Reply, http2};

const STALL: &str = "[pool.p.eject]\nstall = \"400ms\"\nduration = \"1m\"";

fn streamed() -> Request {
    prompt().body("{\"model\":\"m\",\"stream\":true}")
}

fn state(forebay: &Forebay, server: usize) -> (State, String) {
    let health = forebay.server(server).health(Instant::now());
    (health.state, health.why)
}

/// Probes are well, and often, all the while.
fn probed(builder: Builder) -> Builder {
    builder.health("interval = \"20ms\"").and(STALL)
}

#[tokio::test]
async fn a_stream_without_a_byte_goes_to_another_server_and_the_silent_one_is_left_alone() {
    for version in VERSIONS {
        let (silent, fine) = (Engine::always(Reply::silence()).await, Engine::fine().await);
        let forebay = probed(in_front_of(&[&silent, &fine])).start().await;
        let mut clients = [Client::connect(&forebay, version).await, Client::connect(&forebay, version).await];
        let [one, two] = &mut clients;
        let asked = Instant::now();
        let first = one.send(&streamed()).await;
        silent.asked(0).await;
        // One that is not streamed waits there too: it stalls nothing, but goes with the other.
        while silent.requests() < 2 {
            assert_eq!(two.send(&prompt()).await.answer().await.whole().await.status, 200);
        }
        assert_eq!(first.answer().await.whole().await.status, 200, "{version:?}");
        assert!(asked.elapsed() >= Duration::from_millis(400), "{:?}", asked.elapsed());
        silent.asked(0).await.gone().await;
        silent.asked(1).await.gone().await;
        assert_eq!(state(&forebay, 0), (State::Ejected, "requests told: stall".into()));
        forebay.idle().await;
        assert!(forebay.outcomes().starts_with("s0 stalled 2, s1 answered "), "{}", forebay.outcomes());
        assert_eq!(forebay.server(0).errors(), 2);
    }
}

#[tokio::test]
async fn the_same_holds_for_an_engine_that_speaks_http2() {
    let (silent, fine) = (http2::Engine::always(http2::Reply::silence().stall()).await, http2::Engine::fine().await);
    let forebay = probed(at(&[silent.address, fine.address])).pool("protocol = \"http2\"").start().await;
    for version in VERSIONS {
        let mut client = Client::connect(&forebay, version).await;
        assert_eq!(client.ask(&streamed()).await.status, 200);
    }
    silent.asked(0).await.gone().await;
    assert_eq!(state(&forebay, 0).0, State::Ejected);
    assert_eq!(forebay.outcomes(), "s0 stalled 1, s1 answered 2");
}

#[tokio::test]
async fn what_is_not_streamed_stalls_no_server_by_itself() {
    let gate = Gate::new();
    let slow = Reply::raw("").wait(&gate).bytes("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}");
    let (slow, fine) = (Engine::always(slow).await, Engine::fine().await);
    let forebay = probed(in_front_of(&[&slow, &fine])).start().await;
    let mut clients = [Client::connect(&forebay, Version::H1).await, Client::connect(&forebay, Version::H1).await];
    let [one, two] = &mut clients;
    let pending = one.send(&prompt()).await;
    let asked = Instant::now();
    slow.asked(0).await;
    two.ask(&streamed()).await; // at the other one
    eventually("twice the time is over", || (asked.elapsed() > Duration::from_millis(800)).then_some(())).await;
    assert_eq!(state(&forebay, 0).0, State::Up);
    gate.open();
    assert_eq!(pending.answer().await.whole().await.status, 200);
    assert_eq!(forebay.outcomes(), "s0 answered 1, s1 answered 1");
}

#[tokio::test]
async fn a_byte_on_any_request_is_a_sign_of_life() {
    let beats = (0..12)
        .fold(Reply::events(), |reply, n| reply.pause(Duration::from_millis(100)).chunk(&format!("data: {n}\n\n")));
    let beats = beats.chunk("data: [DONE]\n\n").last();
    let gate = Gate::new();
    let waits = Reply::raw("").wait(&gate).bytes("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}");
    let engine =
        Engine::new(move |asked| if asked.target().ends_with("waits") { waits.clone() } else { beats.clone() });
    let (engine, fine) = (engine.await, Engine::fine().await);
    let forebay = probed(in_front_of(&[&engine, &fine])).start().await;
    let mut clients = [Client::connect(&forebay, Version::H1).await, Client::connect(&forebay, Version::H2).await];
    let [one, two] = &mut clients;
    let speaks = one.send(&streamed()).await;
    engine.asked(0).await;
    two.ask(&prompt()).await; // at the other one
    let waits = two.send(&streamed().to("/v1/waits")).await;
    let answer = speaks.answer().await.whole().await;
    assert!(answer.complete && answer.text().ends_with("data: [DONE]\n\n"), "{}", answer.text());
    assert_eq!(state(&forebay, 0).0, State::Up);
    gate.open();
    assert_eq!(waits.answer().await.whole().await.status, 200);
}

#[tokio::test]
async fn so_is_an_answer_that_another_server_gives_instead() {
    let gate = Gate::new();
    let waits = Reply::raw("").wait(&gate).bytes("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}");
    let busy = Engine::new(move |asked| match asked.target() {
        "/v1/waits" => waits.clone(),
        _ => Reply::json(503, "{}"),
    });
    let (busy, fine) = (busy.await, Engine::fine().await);
    let eject = "[pool.p.eject]\nstall = \"400ms\"\nfailures = 1000000";
    let forebay = in_front_of(&[&busy, &fine]).and(eject).start().await;
    let mut clients = [Client::connect(&forebay, Version::H1).await, Client::connect(&forebay, Version::H1).await];
    let [one, two] = &mut clients;
    let waits = one.send(&streamed().to("/v1/waits")).await;
    busy.asked(0).await;
    let asked = Instant::now();
    while asked.elapsed() < Duration::from_millis(1_200) {
        assert_eq!(two.ask(&prompt()).await.status, 200);
        tokio::time::sleep(Duration::from_millis(50)).await; // the retries' budget
    }
    assert_eq!(state(&forebay, 0).0, State::Up);
    gate.open();
    assert_eq!(waits.answer().await.whole().await.status, 200);
    assert!(forebay.outcomes().starts_with("s0 answered 1, s0 refused "), "{}", forebay.outcomes());
}

#[tokio::test]
async fn a_client_that_does_not_read_is_no_silence_of_its_server() {
    let event = format!("data: {}\n\n", "x".repeat(1_000_000)); // more than the sockets between them hold
    let long = (0..40).fold(Reply::events(), |reply, _| reply.chunk(&event)).chunk("data: [DONE]\n\n").last();
    for version in VERSIONS {
        let (engine, fine) = (Engine::always(long.clone()).await, Engine::fine().await);
        let forebay = probed(in_front_of(&[&engine, &fine])).start().await;
        let mut client = Client::connect(&forebay, version).await;
        let answer = client.send(&streamed()).await.answer().await;
        let began = Instant::now();
        eventually("three times the time is over", || (began.elapsed() > Duration::from_millis(1_200)).then_some(()))
            .await;
        assert_eq!(state(&forebay, 0).0, State::Up, "{version:?}");
        assert!(answer.whole().await.complete);
    }
}

#[tokio::test]
async fn a_long_prompt_has_more_time() {
    let (silent, fine) = (Engine::always(Reply::silence()).await, Engine::fine().await);
    let more = "stall_per_100kb = \"600ms\"";
    let forebay = in_front_of(&[&silent, &fine]).and(&format!("{STALL}\n{more}")).start().await;
    let mut client = Client::connect(&forebay, Version::H1).await;
    let asked = Instant::now();
    let body = format!("{{\"model\":\"m\",\"stream\":true,\"x\":\"{}\"}}", "x".repeat(100_000));
    assert_eq!(client.ask(&prompt().body(body)).await.status, 200);
    assert!(asked.elapsed() >= Duration::from_millis(1_000), "{:?}", asked.elapsed());
}

#[tokio::test]
async fn where_there_is_no_other_server_a_request_stays_and_may_yet_be_answered() {
    let gate = Gate::new();
    let late = Reply::raw("").wait(&gate).bytes("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}");
    let engine = Engine::always(late).await;
    let forebay = probed(in_front_of(&[&engine])).start().await;
    let mut client = Client::connect(&forebay, Version::H2).await;
    let asked = Instant::now();
    let pending = client.send(&streamed()).await;
    engine.asked(0).await;
    eventually("twice the time is over", || (asked.elapsed() > Duration::from_millis(900)).then_some(())).await;
    assert_eq!(state(&forebay, 0).0, State::Up, "the only server is never left alone");
    gate.open();
    assert_eq!(pending.answer().await.whole().await.status, 200);
}

#[tokio::test]
async fn those_who_wait_have_a_server_that_stalled_as_soon_as_its_ejection_is_over() {
    let gate = Gate::new();
    let held = Reply::raw("").wait(&gate).bytes("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}");
    let silent =
        Engine::new(|asked| if asked.target().ends_with("trial") { Reply::json(200, "{}") } else { Reply::silence() });
    let (silent, busy) = (silent.await, Engine::always(held).await);
    let limits = "[pool.p.queue]\ntimeout = \"9s\"\n[pool.p.eject]\nstall = \"400ms\"\nduration = \"1s\"";
    let forebay = in_front_of(&[&silent, &busy]).each(&["max_in_flight = 2", "max_in_flight = 1"]).and(limits);
    let forebay = forebay.start().await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(Client::connect(&forebay, Version::H1).await);
    }
    let [one, two, three] = &mut clients[..] else { panic!("three") };
    let stuck = one.send(&streamed()).await;
    silent.asked(0).await;
    let held = two.send(&prompt()).await;
    busy.asked(0).await;
    eventually("it is ejected", || (state(&forebay, 0).0 == State::Ejected).then_some(())).await;
    let trial = three.send(&prompt().to("/v1/trial")).await;
    forebay.queued(1).await;
    assert_eq!(trial.answer().await.whole().await.status, 200);
    assert_eq!((silent.requests(), busy.requests()), (2, 1));
    gate.open();
    gate.open();
    for pending in [held, stuck] {
        assert_eq!(pending.answer().await.whole().await.status, 200);
    }
    forebay.idle().await;
}

#[tokio::test]
async fn a_server_whose_probes_are_not_answered_lets_go_of_what_waits_there() {
    for version in VERSIONS {
        let (frozen, fine) = (Engine::always(Reply::silence()).await, Engine::fine().await);
        let health = "interval = \"50ms\"\ntimeout = \"200ms\"\nfall = 2";
        let forebay = in_front_of(&[&frozen, &fine]).health(health).start().await;
        let mut client = Client::connect(&forebay, version).await;
        let pending = client.send(&prompt()).await; // not streamed
        frozen.asked(0).await;
        frozen.ignore_probes();
        assert_eq!(pending.answer().await.whole().await.status, 200, "{version:?}");
        assert_eq!(state(&forebay, 0), (State::Down, "no answer to the probe in 0.2 s".into()));
        forebay.idle().await;
        assert_eq!(forebay.outcomes(), "s0 stalled 1, s1 answered 1");
    }
}

#[tokio::test]
async fn an_engine_that_answers_requests_is_not_dead_because_its_probes_are_slow() {
    let beats = (0..80)
        .fold(Reply::events(), |reply, n| reply.pause(Duration::from_millis(20)).chunk(&format!("data: {n}\n\n")));
    let engine = Engine::always(beats.chunk("data: [DONE]\n\n").last()).await;
    let health = "interval = \"50ms\"\ntimeout = \"200ms\"\nfall = 1";
    let forebay = in_front_of(&[&engine]).health(health).start().await;
    let mut client = Client::connect(&forebay, Version::H1).await;
    let mut answer = client.send(&streamed()).await.answer().await;
    assert!(answer.event().await.is_some());
    engine.ignore_probes();
    let why = "no answer to the probe in 0.2 s, but requests are answered";
    eventually("a slow probe", || (state(&forebay, 0) == (State::Up, why.into())).then_some(())).await;
    assert!(answer.whole().await.complete);
    eventually("nothing speaks for it any more", || (state(&forebay, 0).0 == State::Down).then_some(())).await;
}
