//! Clients that are slow, silent, many or mad, and everybody else meanwhile.

use std::io;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{RngAlgorithm, TestRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::task::JoinSet;

use crate::configuration::{Configuration, SECRET};
use crate::harness::{DEADLINE, Engine, Forebay, until};
use crate::http::{Client, canned, chat};

/// The deadline for headers in these tests.
const HEADER: Duration = Duration::from_millis(700);
/// How long an idle connection is kept in these tests.
const IDLE: Duration = Duration::from_millis(600);

fn strict() -> (Engine, Forebay) {
    let engine = Engine::start("e", &["--tokens-per-second", "20"]);
    let server = "header_timeout = \"700ms\"\nkeepalive = \"600ms\"";
    let forebay = Forebay::ready(&Configuration::of(&[&engine.address]).server(server));
    (engine, forebay)
}

/// How long it takes until the connection is closed by the other side.
fn closed_after(client: &mut Client) -> Duration {
    let began = Instant::now();
    client.rest();
    began.elapsed()
}

fn is_about(took: Duration, limit: Duration, what: &str) {
    assert!(took >= limit - Duration::from_millis(50) && took < limit + DEADLINE / 2, "{what}: {took:?}");
}

#[test]
fn an_idle_connection_is_closed_in_its_own_time_however_long_a_header_may_take() {
    for server in ["keepalive = \"1s\"", "header_timeout = \"0s\"\nkeepalive = \"1s\""] {
        let engine = Engine::start("e", &[]);
        let forebay = Forebay::ready(&Configuration::of(&[&engine.address]).server(server));
        let mut client = forebay.client();
        assert_eq!(client.get("/health").status, 200, "{server}");
        is_about(closed_after(&mut client), Duration::from_secs(1), server);
    }
}

#[test]
fn who_does_not_send_a_header_in_time_is_closed_and_everybody_else_is_served() {
    let (_engine, forebay) = strict();
    let forebay = &forebay;
    let mut stream = forebay.client();
    stream.begin_stream("m", 50).expect("a stream");
    thread::scope(|scope| {
        for (what, first) in [
            ("silent", &b""[..]),
            ("one byte", b"G"),
            ("half a line", b"POST /v1/chat"),
            ("half a header", b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"),
            ("half a preface", b"PRI * HTTP/2.0\r\n"),
            ("a letter of the preface", b"P"),
            ("a preface without settings", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
            ("half a frame", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x06"),
            ("empty lines", b"\r\n"),
        ] {
            scope.spawn(move || {
                let mut client = forebay.client();
                client.write(first).expect("sent");
                is_about(closed_after(&mut client), HEADER.min(IDLE), what); // an HTTP/2 connection without a stream idles
            });
        }
        for (what, step) in [("a byte at a time", 1), ("a line at a time", 7)] {
            scope.spawn(move || {
                let mut client = forebay.client();
                let began = Instant::now();
                let header = format!("GET / HTTP/1.1\r\n{}", "x: yz\r\n".repeat(10_000));
                for piece in header.as_bytes().chunks(step) {
                    if client.write(piece).is_err() {
                        break;
                    }
                    thread::sleep(Duration::from_millis(30)); // the client's pace
                }
                is_about(began.elapsed(), HEADER, what);
            });
        }
        scope.spawn(|| {
            let began = Instant::now();
            while began.elapsed() < HEADER * 2 {
                assert_eq!(forebay.client().chat("m").expect("an answer").status, 200);
            }
        });
    });
    assert!(stream.end_stream().expect("a whole stream"), "a stream longer than every limit");
    assert_eq!(forebay.client().chat("m").expect("an answer").status, 200);
}

/// How long a connection stays open since then; what comes on it is dropped.
async fn closed_since(mut reader: OwnedReadHalf, since: Instant) -> Duration {
    let mut dropped = [0; 256];
    while reader.read(&mut dropped).await.is_ok_and(|length| length > 0) {}
    since.elapsed()
}

/// Writes a header's bytes, each to all of them in turn.
async fn drip(mut clients: Vec<OwnedWriteHalf>) {
    let header = format!("GET /health HTTP/1.1\r\n{}", "x: yz\r\n".repeat(1000));
    for byte in header.bytes() {
        for client in &mut clients {
            let _ = client.write_all(&[byte]).await; // a closed one takes no more
        }
        tokio::time::sleep(Duration::from_millis(200)).await; // the clients' pace
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_silent_and_dripping_connections_are_closed_in_time_and_everybody_else_is_served() {
    // Open files for them, in this process and in the daemon that it starts.
    let me = std::process::id().to_string();
    let room = Command::new("prlimit").args(["--pid", &me, "--nofile=4096:"]).status().expect("`prlimit` runs");
    assert!(room.success(), "the hard limit of open files is below 4,096");
    let engine = Engine::start("e", &[]);
    let forebay = Forebay::ready(&Configuration::of(&[&engine.address]).server("header_timeout = \"5s\""));
    let (mut held, mut dripping, mut silent) = (JoinSet::new(), Vec::new(), Vec::new());
    for n in 0..1000 {
        let since = Instant::now();
        let stream = TcpStream::connect(forebay.traffic()).await.expect("a connection");
        let (reader, writer) = stream.into_split();
        held.spawn(closed_since(reader, since));
        if n % 2 == 0 { dripping.push(writer) } else { silent.push(writer) }
    }
    let dripping = tokio::spawn(drip(dripping));
    until("all are open", || (forebay.metric("process_open_fds") > Some(1000.0)).then_some(()));
    let over = Arc::new(AtomicBool::new(false));
    let others: Vec<_> = (0..4)
        .map(|_| {
            let (address, over) = (forebay.traffic().to_owned(), over.clone());
            tokio::task::spawn_blocking(move || {
                let mut served = 0;
                while !over.load(Relaxed) {
                    let asked = Instant::now();
                    assert_eq!(Client::connect(&address).chat("m").expect("an answer").status, 200);
                    assert!(asked.elapsed() < Duration::from_secs(4), "{:?}", asked.elapsed());
                    served += 1;
                }
                served
            })
        })
        .collect();
    while let Some(took) = held.join_next().await {
        let took = took.expect("no panic");
        assert!(took >= Duration::from_millis(4950) && took < Duration::from_secs(10), "{took:?}");
    }
    over.store(true, Relaxed);
    dripping.abort();
    for other in others {
        assert!(other.await.expect("every answer in time") > 10);
    }
}

#[test]
fn the_admin_listener_is_guarded_alike() {
    let (_engine, forebay) = strict();
    for (what, first) in
        [("silent", &b""[..]), ("half a header", b"GET /livez HTTP/1.1\r\n"), ("half a preface", b"PRI * HTTP")]
    {
        let mut client = Client::connect(forebay.admin_address());
        client.write(first).expect("sent");
        is_about(closed_after(&mut client), HEADER, what);
    }
}

#[test]
fn an_idle_connection_is_closed_when_its_time_is_over_and_a_later_header_has_a_deadline_too() {
    let (_engine, forebay) = strict();
    let mut idle = forebay.client();
    assert!(!idle.chat("m").expect("an answer").closes());
    is_about(closed_after(&mut idle), IDLE, "idle");
    let mut second = forebay.client();
    second.chat("m").expect("an answer");
    second.write(b"POST /v1/chat").expect("sent");
    is_about(closed_after(&mut second), HEADER, "half a header later");
    let mut busy = forebay.client();
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(2000) {
        assert!(!busy.chat("m").expect("an answer").closes(), "a busy connection lives on");
        thread::sleep(Duration::from_millis(100)); // shorter than the keep-alive
    }
}

#[test]
fn a_refused_request_does_not_end_its_connection_and_idles_like_any_other() {
    let (_engine, forebay) = strict();
    let mut client = forebay.client();
    for _ in 0..3 {
        let answer = client.chat_as("wrong", "m").expect("an answer");
        assert_eq!((answer.status, answer.closes()), (401, false));
        assert_eq!(client.get("/nowhere").status, 404);
        assert_eq!(client.get("/health").status, 200);
    }
    is_about(closed_after(&mut client), IDLE, "idle after a refusal");
}

#[test]
fn a_silent_body_is_refused_in_time() {
    let engine = Engine::start("e", &[]);
    let forebay = Forebay::ready(&Configuration::of(&[&engine.address]).server("body_timeout = \"400ms\""));
    let mut client = forebay.client();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: f\r\nauthorization: Bearer {SECRET}\r\ncontent-length: 100\r\n\r\n{{"
    );
    client.write(head.as_bytes()).expect("sent");
    let answer = client.answer().expect("an answer");
    assert_eq!((answer.status, &*answer.json()["error"]["code"].to_string()), (408, "\"request_timeout\""));
    assert!(answer.closes());
}

#[test]
fn two_hundred_connections_at_once_are_all_served() {
    let engine = Engine::start("e", &[]);
    let forebay = Forebay::ready(&Configuration::of(&[&engine.address]));
    let mut clients: Vec<Client> = (0..200).map(|_| forebay.client()).collect();
    let key = format!("authorization: Bearer {SECRET}");
    for _ in 0..2 {
        for client in &mut clients {
            client.send("POST", "/v1/chat/completions", &[&key], &chat("m", "word", false)).expect("sent");
        }
        for client in &mut clients {
            let answer = client.answer().expect("an answer");
            assert_eq!((answer.status, answer.closes()), (200, false));
        }
    }
    assert_eq!(forebay.server("p", 0)["requests"], 400);
}

#[test]
fn half_closed_clients_and_clients_that_vanish_leave_nothing_in_flight() {
    let engine = Engine::start("e", &["--tokens-per-second", "20"]);
    let forebay = Forebay::ready(&Configuration::of(&[&engine.address]));
    for _ in 0..20 {
        let mut client = forebay.client();
        client.begin_stream("m", 1000).expect("a stream");
    }
    until("nothing is in flight", || (forebay.server("p", 0)["in_flight"] == 0).then_some(()));
    assert_eq!(forebay.client().chat("m").expect("an answer").status, 200);
}

// --- garbage ---

const SAMPLE: &str = "POST /v1/chat/completions HTTP/1.1\r\nhost: forebay\r\nauthorization: Bearer fb-the-secret-of-the-tests\r\n\
    content-type: application/json\r\ncontent-length: 58\r\n\r\n{\"model\": \"m\", \"messages\": [{\"role\": \"user\", \"content\": 1}]}";

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Bytes that no client means: noise, cut and changed requests, odd pieces of HTTP/1.1, HTTP/2 frames.
fn garbage() -> impl Strategy<Value = Vec<u8>> {
    let noise = prop::collection::vec(any::<u8>(), 0..300);
    let mutated = prop::collection::vec((0..SAMPLE.len(), any::<u8>(), 0..4u8), 1..8).prop_map(|changes| {
        let mut bytes = SAMPLE.as_bytes().to_vec();
        for (at, byte, change) in changes {
            if bytes.is_empty() {
                break;
            }
            let at = at.min(bytes.len() - 1);
            match change {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                2 => drop(bytes.drain(at..(at + usize::from(byte % 16)).min(bytes.len()))),
                _ => bytes.truncate(at.max(1)),
            }
        }
        bytes
    });
    let pieces = prop::collection::vec(
        prop::sample::select(vec![
            "GET ",
            "POST ",
            "/v1/models",
            "/v1/chat/completions",
            "http://[::1",
            "*",
            "/%",
            "/%zz",
            "/..",
            "//",
            " HTTP/1.1",
            " HTTP/1.0",
            " HTTP/9.9",
            "\r\n",
            "\n",
            "\r",
            "\0",
            "host: ",
            "host: x",
            "content-length: ",
            "content-length: 5",
            "-1",
            "99999999999999999999",
            "transfer-encoding: chunked",
            "5\r\nhello\r\n",
            "0\r\n\r\n",
            "fffffffffffffffff\r\n",
            ":",
            " ",
            "\t",
            "authorization: Bearer fb-the-secret-of-the-tests",
            "expect: 100-continue",
            "connection: ",
            "upgrade: websocket",
            "x: é",
            "{",
            "\"model\":",
            "\"m\"",
            "}",
        ]),
        1..30,
    )
    .prop_map(|pieces| pieces.concat().into_bytes());
    let frames =
        prop::collection::vec((0..10u8, any::<u8>(), 0..6u32, prop::collection::vec(any::<u8>(), 0..40)), 1..10)
            .prop_map(|frames| {
                let mut bytes = PREFACE.to_vec();
                for (kind, flags, stream, payload) in frames {
                    bytes.extend([0, 0, payload.len() as u8, kind, flags]);
                    bytes.extend(stream.to_be_bytes());
                    bytes.extend(payload);
                }
                bytes
            });
    prop_oneof![noise, mutated, pieces, frames]
}

/// Sends it and goes, or waits for what comes.
fn throw(address: &str, bytes: &[u8], wait: bool) -> io::Result<()> {
    let mut client = Client::try_connect(address)?;
    client.write(bytes)?;
    if wait {
        client.rest();
    }
    Ok(())
}

#[test]
fn garbage_neither_ends_nor_clogs_the_process() {
    let engine = Engine::start("e", &[]);
    let server = "header_timeout = \"100ms\"\nbody_timeout = \"100ms\"\nkeepalive = \"100ms\"";
    let open = "[[route]]\nname = \"open\"\npath = \"/open/*\"\npool = \"p\"\nauth = \"none\"\n[[route]]\nname = \"rest\"\npath = \"/*\"\nby = \"model\"";
    let mut forebay = Forebay::ready(&Configuration::of(&[&engine.address]).server(server).more(open));
    let (traffic, admin) = (forebay.traffic().to_owned(), forebay.admin_address().to_owned());
    thread::scope(|scope| {
        for thrower in 0..4u8 {
            let (traffic, admin) = (&traffic, &admin);
            scope.spawn(move || {
                let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[thrower; 32]);
                let mut runner = proptest::test_runner::TestRunner::new_with_rng(Default::default(), rng);
                for n in 0..600 {
                    let bytes = garbage().new_tree(&mut runner).expect("a value").current();
                    let address = if n % 8 == 0 { admin } else { traffic };
                    let _ = throw(address, &bytes, n % 20 == 0); // a reset is an answer too
                }
            });
        }
    });
    assert!(forebay.ended().is_none(), "{}", forebay.log());
    assert_eq!(forebay.client().chat("m").expect("an answer").status, 200);
    until("nothing is in flight", || (forebay.server("p", 0)["in_flight"] == 0).then_some(()));
    let log = forebay.log();
    assert!(!log.contains("panicked"), "{log}");
    assert!(!log.contains(SECRET), "{log}");
    for line in log.lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    }
    forebay.signal("TERM");
    assert_eq!(forebay.until_ended(), Some(0));
}

#[test]
fn what_an_engine_says_wrongly_is_not_logged() {
    let broken = [
        "HTTP/1.1 200 OK\r\nset-cookie: zebra\r\nno field\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzebra\r\nzebra",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nzebra!!zebra",
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 100\r\n\r\ndata: zebra",
        "zebra\r\n\r\n",
    ];
    for answer in broken {
        let pool = format!(
            "[pool.p]\nengine = \"http\"\nservers = [{:?}]\n[pool.p.health]\ninterval = \"100ms\"",
            canned(answer)
        );
        let configuration = Configuration::empty().more(&pool).more("[log]\nlevel = \"trace\"").model("m", "p");
        let forebay = Forebay::ready(&configuration.key("t", SECRET, "[\"*\"]"));
        let mut client = forebay.client();
        let key = format!("authorization: Bearer {SECRET}");
        let _ = client.ask("POST", "/v1/chat/completions", &[&key], &chat("m", "word", false)); // or a torn one
        until("it is logged", || forebay.log().contains("\"path\":").then_some(()));
        let log = forebay.log();
        assert!(!log.contains("zebra"), "{answer:?}: {log}");
    }
}

#[test]
fn neither_a_secret_nor_a_prompt_is_ever_logged() {
    let engine = Engine::start("e", &[]);
    let configuration = Configuration::of(&[&engine.address]).more("[log]\nlevel = \"trace\"");
    let mut forebay = Forebay::ready(&configuration);
    let (prompt, other) = ("the-zebra-prompt", "fb-the-wrong-zebra-secret");
    let mut client = forebay.client();
    for (secret, body) in [
        (SECRET, chat("m", prompt, false)),
        (SECRET, chat("m", prompt, true)),
        (SECRET, chat("none", prompt, false)),
        (SECRET, format!("{{\"model\": \"m\", \"{prompt}")),
        (SECRET, format!("{{\"model\": \"m\", \"messages\": \"{prompt}\"}}")),
        (other, chat("m", prompt, false)),
    ] {
        for header in ["authorization: Bearer ", "x-api-key: ", "api-key: "] {
            client.ask("POST", "/v1/chat/completions", &[&format!("{header}{secret}")], &body).expect("an answer");
        }
    }
    let query = format!("/v1/chat/completions?key={SECRET}");
    client.ask("POST", &query, &[], &chat("m", prompt, false)).expect("an answer");
    client.write(format!("BAD {prompt}\r\nauthorization: Bearer {SECRET}\r\n\r\n").as_bytes()).expect("sent");
    client.rest();
    let mut gone = forebay.client();
    gone.begin_stream("m", 5).expect("a stream");
    gone.write(b"word word word").expect("sent");
    drop(gone);
    forebay.signal("TERM");
    assert_eq!(forebay.until_ended(), Some(0));
    let log = forebay.log();
    for secret in [SECRET, other, prompt, &crate::configuration::digest(SECRET)] {
        assert!(
            !log.contains(secret),
            "{secret} in: {}",
            log.lines().find(|line| line.contains(secret)).unwrap_or_default()
        );
    }
    assert!(log.lines().count() > 20);
}
