//! How many clients may be connected, and what one more hears.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::configuration::Configuration;
use crate::harness::{DEADLINE, Engine, Folder, Forebay, Over, until};
use crate::http::{Answer, Client};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

fn limited(engine: &Engine, most: usize) -> Configuration {
    Configuration::of(&[&engine.address]).server(&format!("max_connections = {most}"))
}

/// A client that has had an answer, and stays.
fn inside(forebay: &Forebay) -> Client {
    let mut client = forebay.client();
    assert_eq!(client.chat("m").expect("an answer").status, 200);
    client
}

fn is_refusal(answer: &Answer) {
    assert_eq!((answer.status, answer.closes()), (503, true), "{answer:?}");
    let error = answer.json()["error"].clone();
    assert_eq!((&error["code"], &error["type"]), (&json!("too_many_connections"), &json!("overloaded_error")));
    assert_eq!((&error["param"], error["message"].is_string()), (&json!(null), true));
    assert!(answer.headers["retry-after"].parse::<u32>().is_ok_and(|seconds| seconds > 0));
    assert_eq!(answer.headers["content-type"], "application/json");
}

fn refused(forebay: &Forebay) -> f64 {
    forebay.metric("forebay_client_connections_refused_total").expect("a metric")
}

fn until_connected(forebay: &Forebay, count: f64) {
    until(format!("{count} connected"), || (forebay.metric("forebay_client_connections") == Some(count)).then_some(()));
}

#[test]
fn one_client_too_many_is_told_so_and_the_next_is_served_when_one_leaves() {
    let engine = Engine::start("e", &[]);
    let forebay = Forebay::ready(&limited(&engine, 3));
    let mut all: Vec<Client> = (0..3).map(|_| inside(&forebay)).collect();
    until_connected(&forebay, 3.0);
    for n in 1..=3 {
        let mut late = forebay.client();
        is_refusal(&late.chat("m").expect("an answer"));
        assert_eq!(late.rest(), b"", "it is closed");
        assert_eq!(refused(&forebay), f64::from(n));
    }
    is_refusal(&forebay.client().get("/health"));
    forebay.until_said("3 are connected, which is `max_connections`");
    for client in &mut all {
        assert_eq!(client.chat("m").expect("an answer").status, 200, "those inside notice nothing");
    }
    for _ in 0..5 {
        all.pop();
        until_connected(&forebay, 2.0);
        all.push(inside(&forebay));
    }
    assert_eq!((refused(&forebay), forebay.metric("forebay_client_connections")), (4.0, Some(3.0)));
    drop(all);
    until_connected(&forebay, 0.0);
}

#[test]
fn the_admin_listener_is_always_open_and_not_counted() {
    let engine = Engine::start("e", &[]);
    let forebay = Forebay::ready(&limited(&engine, 1));
    let _admins: Vec<Client> = (0..10)
        .map(|_| {
            let mut client = Client::connect(forebay.admin_address());
            assert_eq!(client.get("/livez").status, 200);
            client
        })
        .collect();
    let _one = inside(&forebay);
    assert_eq!((forebay.metric("forebay_client_connections"), refused(&forebay)), (Some(1.0), 0.0));
    is_refusal(&forebay.client().chat("m").expect("an answer"));
    assert_eq!(forebay.admin("/readyz").status, 200);
}

#[test]
fn all_traffic_listeners_share_the_limit() {
    let engine = Engine::start("e", &[]);
    let folder = Folder::new();
    let socket = format!("unix:{}", folder.path("traffic.sock"));
    let configuration = limited(&engine, 2).listen("127.0.0.1:0").listen(&socket);
    let forebay = Forebay::ready(&configuration);
    let mut over_unix = Client::connect(&socket);
    assert_eq!(over_unix.chat("m").expect("an answer").status, 200);
    let _over_tcp = inside(&forebay);
    is_refusal(&Client::connect(&socket).chat("m").expect("an answer"));
    is_refusal(&forebay.client().chat("m").expect("an answer"));
}

#[test]
fn an_http2_client_too_many_and_a_silent_one_are_closed() {
    let engine = Engine::start("e", &[]);
    let forebay = Forebay::ready(&limited(&engine, 1));
    let _one = inside(&forebay);
    for said in [PREFACE, b""] {
        let mut client = TcpStream::connect(forebay.traffic()).expect("connected");
        client.set_read_timeout(Some(DEADLINE)).expect("set");
        client.write_all(said).expect("sent");
        let (began, mut heard) = (Instant::now(), Vec::new());
        let closed = client.read_to_end(&mut heard);
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        assert!(closed.is_ok() || closed.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset));
        assert_eq!(heard, b"", "an HTTP/1.1 answer would be noise to it");
    }
    assert_eq!(refused(&forebay), 2.0);
}

#[test]
fn a_large_prompt_is_refused_without_a_reset() {
    let engine = Engine::start("e", &[]);
    let forebay = Forebay::ready(&limited(&engine, 1));
    let _one = inside(&forebay);
    for _ in 0..5 {
        let body = crate::http::chat("m", &"x".repeat(3_000_000), false);
        let answer = forebay.client().ask("POST", "/v1/chat/completions", &[], &body);
        is_refusal(&answer.expect("the whole prompt is taken, and answered"));
    }
}

#[test]
fn a_flood_beyond_the_limit_disturbs_nobody_inside() {
    let engine = Engine::start("e", &["--tokens-per-second", "200"]);
    let forebay = Forebay::ready(&limited(&engine, 4));
    let mut streaming = forebay.client();
    streaming.begin_stream("m", 400).expect("a stream");
    let mut all: Vec<Client> = (0..3).map(|_| inside(&forebay)).collect();
    let over = AtomicBool::new(false);
    let served = thread::scope(|scope| {
        let end = Over(&over);
        let inside: Vec<_> = all
            .iter_mut()
            .map(|client| {
                scope.spawn(|| {
                    let mut served = 0;
                    while !over.load(SeqCst) || served < 3 {
                        assert_eq!(client.chat("m").expect("an answer").status, 200);
                        served += 1;
                    }
                    served
                })
            })
            .collect();
        // Some say something, some are silent; all at once.
        let flood: Vec<TcpStream> = (0..300)
            .map(|n| {
                let mut stream = TcpStream::connect(forebay.traffic()).expect("connected");
                if n % 3 > 0 {
                    let _ = stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"); // it may be closed already
                }
                stream
            })
            .collect();
        for mut stream in flood {
            stream.set_read_timeout(Some(DEADLINE)).expect("set");
            let mut heard = Vec::new();
            let _ = stream.read_to_end(&mut heard); // a reset is an end too
            assert!(heard.is_empty() || heard.starts_with(b"HTTP/1.1 503 "), "{}", String::from_utf8_lossy(&heard));
        }
        drop(end);
        inside.into_iter().map(|served| served.join().expect("no failure")).collect::<Vec<i32>>()
    });
    assert!(served.iter().all(|served| *served >= 3), "{served:?}");
    assert!(streaming.end_stream().expect("the stream goes on"));
    assert_eq!((refused(&forebay), forebay.metric("forebay_client_connections")), (300.0, Some(4.0)));
    let said = forebay.messages().iter().filter(|said| said.contains("max_connections")).count();
    assert!((1..=3).contains(&said), "it is said {said} times");
}

#[test]
fn a_reload_changes_the_limit_for_those_who_come() {
    let engine = Engine::start("e", &[]);
    let forebay = Forebay::ready(&limited(&engine, 1));
    let mut first = inside(&forebay);
    is_refusal(&forebay.client().chat("m").expect("an answer"));
    forebay.rewrite(&limited(&engine, 2));
    forebay.reload();
    let mut second = inside(&forebay);
    is_refusal(&forebay.client().chat("m").expect("an answer"));
    forebay.rewrite(&limited(&engine, 1));
    forebay.reload();
    for client in [&mut first, &mut second] {
        assert_eq!(client.chat("m").expect("an answer").status, 200, "who is inside stays");
    }
    is_refusal(&forebay.client().chat("m").expect("an answer"));
    forebay.rewrite(&limited(&engine, 0));
    forebay.reload();
    let all: Vec<Client> = (0..10).map(|_| inside(&forebay)).collect();
    until_connected(&forebay, 12.0);
    drop(all);
}
