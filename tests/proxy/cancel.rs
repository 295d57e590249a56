//! The client goes away: the engine is freed at once, whatever was going on, and everybody else goes on.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::Reason;

use crate::client::{Client, Leaving, Request, VERSIONS, Version, WAYS, post, prompt};
use crate::harness::{Forebay, at, eventually, in_front_of};
use crate::upstream::{self, Deaf, Full, Gate, http2};

/// How long an engine may go on for nobody.
const AT_ONCE: Duration = Duration::from_millis(100);
/// The longest connect here.
const CONNECT: Duration = Duration::from_millis(300);
/// A busy machine may be late, but not each time.
const TRIES: usize = 3;
/// What comes of a body before its client leaves.
const PART: &str = "{\"model\":";

/// When the client leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Its body is still coming.
    Body,
    /// The engine is being connected to, and there is another.
    Connecting,
    /// The same, and there is no other.
    ConnectingToTheLast,
    /// The engine has the request.
    Waiting,
    /// The engine has begun its answer and is silent.
    Silent,
    /// The engine sends.
    Sending,
    /// The engine could send, if only the client would read.
    Unread,
}

/// Where its request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    /// The body is read whole first.
    Model,
    /// The body streams through.
    Pool,
}

/// Who leaves, and whom.
#[derive(Debug, Clone, Copy)]
struct Case {
    client: Version,
    leaving: Leaving,
    engine: Version,
    by: By,
}

/// An engine of either protocol.
enum Engine {
    H1(upstream::Engine),
    H2(http2::Engine),
}

/// A request as it got it.
enum Asked {
    H1(Arc<upstream::Asked>),
    H2(Arc<http2::Asked>),
}

/// Every client before every engine.
fn cases() -> impl Iterator<Item = Case> {
    let routes = |engine| [(engine, By::Model), (engine, By::Pool)];
    WAYS.into_iter().flat_map(move |(client, leaving)| {
        VERSIONS.into_iter().flat_map(routes).map(move |(engine, by)| Case { client, leaving, engine, by })
    })
}

// === impl Phase ===

impl Phase {
    /// What the engine says before it falls silent: how many events, of how many bytes, and how far apart.
    fn says(self) -> (usize, usize, Duration) {
        match self {
            Self::Body | Self::Connecting | Self::ConnectingToTheLast | Self::Waiting => (0, 0, Duration::ZERO),
            Self::Silent => (1, 1, Duration::ZERO),
            Self::Sending => (5000, 1, Duration::from_millis(2)),
            Self::Unread => (500, 60_000, Duration::ZERO), // more than the sockets hold
        }
    }

    /// Whether its engine takes no connection.
    fn connects(self) -> bool {
        matches!(self, Self::Connecting | Self::ConnectingToTheLast)
    }

    /// How many events the client reads.
    fn reads(self) -> usize {
        match self {
            Self::Sending => 10,
            _ => 1,
        }
    }

    /// What is recorded of it: the status, the attempts, and the phase that is counted.
    fn recorded(self, by: By) -> (u16, u64, &'static str) {
        match self {
            Self::Body if by == By::Model => (499, 0, "request 1"),
            Self::Body | Self::Connecting | Self::ConnectingToTheLast | Self::Waiting => (499, 1, "waiting 1"),
            Self::Silent | Self::Sending | Self::Unread => (200, 1, "answer 1"),
        }
    }
}

// === impl Engine ===

impl Engine {
    /// An engine that says to others one event and, when the gate opens, their last.
    async fn start(version: Version, phase: Phase, gate: &Gate) -> Self {
        let (times, size, apart) = phase.says();
        let event = format!("data: {}\n\n", "x".repeat(size));
        match version {
            Version::H1 => {
                use upstream::Reply;
                let begins = if times == 0 { Reply::silence() } else { Reply::events() };
                let chunk = Bytes::from(format!("{:x}\r\n{event}\r\n", event.len()));
                let says = (0..times).fold(begins, |reply, _| reply.bytes(chunk.clone()).pause(apart)).stall();
                let other = Reply::events().chunk("data: 1\n\n").wait(gate).chunk("data: [DONE]\n\n").last();
                let script = move |asked: &upstream::Asked| {
                    if asked.target() == "/other/x" { other.clone() } else { says.clone() }
                };
                Self::H1(upstream::Engine::new(script).await)
            }
            Version::H2 => {
                use http2::Reply;
                let begins = if times == 0 { Reply::silence() } else { Reply::events() };
                let event = Bytes::from(event);
                let says = (0..times).fold(begins, |reply, _| reply.data(event.clone()).pause(apart)).stall();
                let other = Reply::events().data("data: 1\n\n").wait(gate).data("data: [DONE]\n\n").end();
                let script = move |asked: &http2::Asked| {
                    if asked.head.uri.path() == "/other/x" { other.clone() } else { says.clone() }
                };
                Self::H2(http2::Engine::new(script).await)
            }
        }
    }

    fn protocol(&self) -> &'static str {
        match self {
            Self::H1(_) => "http1",
            Self::H2(_) => "http2",
        }
    }

    fn address(&self) -> SocketAddr {
        match self {
            Self::H1(engine) => engine.address,
            Self::H2(engine) => engine.address,
        }
    }

    async fn begun(&self, n: usize) -> Asked {
        match self {
            Self::H1(engine) => Asked::H1(engine.begun(n).await),
            Self::H2(engine) => Asked::H2(engine.begun(n).await),
        }
    }

    fn requests(&self) -> usize {
        match self {
            Self::H1(engine) => engine.requests(),
            Self::H2(engine) => engine.requests(),
        }
    }
}

// === impl Asked ===

impl Asked {
    /// Waits until so much of its body has come.
    async fn has(&self, length: usize) {
        let came = || match self {
            Self::H1(asked) => asked.body().len(),
            Self::H2(asked) => asked.body().len(),
        };
        eventually("a body at the engine", || (came() >= length).then_some(())).await;
    }

    /// Waits until the engine can say no more: what lies in between is full.
    async fn is_held(&self) {
        const A_WHILE: Duration = Duration::from_millis(200);
        let sent = || match self {
            Self::H1(asked) => asked.sent(),
            Self::H2(asked) => asked.sent(),
        };
        let mut last = (0, Instant::now());
        eventually("the engine is held", || {
            if sent() != last.0 {
                last = (sent(), Instant::now());
            }
            (last.0 > 0 && last.1.elapsed() > A_WHILE).then_some(())
        })
        .await;
    }

    /// When the engine saw that nobody waits for it any more.
    async fn gone(&self) -> Instant {
        match self {
            Self::H1(asked) => asked.gone().await,
            Self::H2(asked) => {
                let (gone, reason) = asked.gone().await;
                assert_eq!(reason, Some(Reason::CANCEL));
                gone
            }
        }
    }
}

/// forebay before this engine, or one that takes no connection; `/other/*` reaches the engine always.
async fn before(engine: &Engine, phase: Phase, full: &Full) -> Forebay {
    let (alive, protocol) = (engine.address(), engine.protocol());
    let (addresses, other) = match phase {
        Phase::Connecting => (vec![full.address, alive], "q"),
        Phase::ConnectingToTheLast => (vec![full.address], "q"),
        _ => (vec![alive], "p"),
    };
    at(&addresses)
        .pool(&format!("protocol = \"{protocol}\""))
        .health(&format!("path = \"\"\nport = {}", alive.port()))
        .and(&format!("[pool.p.timeouts]\nconnect = \"{}ms\"", CONNECT.as_millis()))
        .and(&format!("[pool.q]\nservers = [\"{alive}\"]\nprotocol = \"{protocol}\"\nhealth = {{ path = \"\" }}"))
        .and(&format!("[[route]]\nname = \"other\"\npath = \"/other/*\"\npool = \"{other}\"\nauth = \"none\""))
        .and("[[route]]\nname = \"raw\"\npath = \"/raw/*\"\npool = \"p\"\nauth = \"none\"")
        .and("[[route]]\nname = \"v1\"\npath = \"/v1/*\"\nby = \"model\"")
        .start()
        .await
}

/// Sends a request and leaves it in this phase. When that was.
async fn leave(client: &mut Client, phase: Phase, case: Case, forebay: &Forebay, engine: &Engine) -> Instant {
    let request = match case.by {
        By::Model => prompt(),
        // Over HTTP/1 the end of the connection lies behind a body that nobody has read yet.
        By::Pool if phase.connects() => post("/raw/x"),
        By::Pool => post("/raw/x").body("half of it").pieces(5),
    };
    match phase {
        Phase::Body => {
            let mut pending = client.begin(&request.pieces(1)).await;
            assert!(pending.pour(PART.into(), false).await);
            if case.by == By::Pool {
                engine.begun(1).await.has(PART.len()).await;
            }
            let left = Instant::now();
            pending.leave(case.leaving);
            left
        }
        Phase::Connecting | Phase::ConnectingToTheLast | Phase::Waiting => {
            let pending = client.send(&request).await;
            forebay.idle_but(2).await;
            if phase == Phase::Waiting {
                engine.begun(1).await.has(1).await;
            }
            let left = Instant::now();
            pending.leave(case.leaving);
            left
        }
        Phase::Silent | Phase::Sending | Phase::Unread => {
            let mut answer = client.send(&request).await.answer().await;
            for _ in 0..phase.reads() {
                assert!(answer.event().await.is_some());
            }
            if phase == Phase::Unread {
                engine.begun(1).await.is_held().await;
            }
            let left = Instant::now();
            answer.leave(case.leaving);
            left
        }
    }
}

/// How long after its client had left an engine was freed, while all went on for another request: one on the same connection,
/// where that stays.
async fn freed_after(phase: Phase, case: Case, full: &Full) -> Duration {
    let gate = Gate::new();
    let engine = Engine::start(case.engine, phase, &gate).await;
    let forebay = before(&engine, phase, full).await;
    let mut client = Client::connect(&forebay, case.client).await;
    let mut apart = Client::connect(&forebay, case.client).await;
    let other = match (&mut client, case.leaving) {
        (Client::H2(http2), Leaving::Stream) => http2.start(&post("/other/x")).await,
        _ => apart.send(&post("/other/x")).await,
    };
    let mut other = other.answer().await;
    assert_eq!(other.event().await.as_deref(), Some("data: 1\n\n"));

    let left = leave(&mut client, phase, case, &forebay, &engine).await;
    let record = forebay.record().await;
    let recorded = Instant::now();
    let (status, attempts, aborts) = phase.recorded(case.by);
    let arrives = attempts == 1 && !phase.connects();
    let freed = if arrives { engine.begun(1).await.gone().await } else { recorded };
    forebay.idle_but(1).await;
    assert_eq!((&record["end"], &record["status"]), (&"client_gone".into(), &status.into()), "{case:?}: {record}");
    assert_eq!((&record["attempts"], &*forebay.aborts()), (&attempts.into(), aborts), "{case:?}: {record}");

    gate.open();
    let rest = other.whole().await;
    assert_eq!((rest.text(), rest.complete), ("data: [DONE]\n\n", true), "{case:?}");
    assert_eq!(forebay.record().await["end"], "complete", "{case:?}");
    forebay.idle().await;
    assert_eq!(engine.requests(), 1 + usize::from(arrives), "{case:?}");
    assert_eq!(forebay.server(0).errors(), u64::from(phase.connects()), "{case:?}");
    if let Engine::H2(engine) = &engine {
        assert_eq!(engine.connections(), 1, "{case:?}: only the stream was given up");
    }
    freed.saturating_duration_since(left)
}

/// That engines are freed in time when their clients leave in this phase.
async fn frees_the_engine(phase: Phase, within: Duration) {
    let full = Full::new().await;
    for case in cases() {
        let mut late = Vec::new();
        loop {
            let after = freed_after(phase, case, &full).await;
            if after < within {
                break;
            }
            late.push(after);
            assert!(late.len() < TRIES, "{phase:?}, {case:?}: freed only after {late:?}");
        }
    }
}

#[tokio::test]
async fn a_client_that_leaves_in_its_body_frees_the_engine() {
    frees_the_engine(Phase::Body, AT_ONCE).await;
}

#[tokio::test]
async fn a_client_that_leaves_while_an_engine_is_connected_to_is_noticed_in_the_time_for_that() {
    frees_the_engine(Phase::Connecting, CONNECT + AT_ONCE).await;
    frees_the_engine(Phase::ConnectingToTheLast, CONNECT + AT_ONCE).await;
}

#[tokio::test]
async fn a_client_that_leaves_before_the_answer_frees_the_engine() {
    frees_the_engine(Phase::Waiting, AT_ONCE).await;
}

#[tokio::test]
async fn a_client_that_leaves_a_silent_stream_frees_the_engine() {
    frees_the_engine(Phase::Silent, AT_ONCE).await;
}

#[tokio::test]
async fn a_client_that_leaves_while_events_flow_frees_the_engine() {
    frees_the_engine(Phase::Sending, AT_ONCE).await;
}

#[tokio::test]
async fn a_client_that_has_stopped_reading_and_then_leaves_frees_the_engine() {
    frees_the_engine(Phase::Unread, AT_ONCE).await;
}

/// That an engine which reads nothing is freed at once when the client of this request leaves.
async fn freed_though_deaf(request: Request, ways: &[(Version, Leaving)]) {
    for &(version, how) in ways {
        let (engine, deaf) = (upstream::Engine::fine().await, Deaf::new().await);
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
