//! Engines behind unix sockets.

use std::fs;
use std::io::{self, Write};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};

use serde_json::{Value, json};

use crate::configuration::{Configuration, SECRET};
use crate::harness::{DEADLINE, Engine, Folder, Forebay, until};
use crate::stub::{Stub, field, whole};

/// Answers probes and prompts; a stream's second event waits for a word from the test.
fn script(go_on: Receiver<()>) -> impl Fn(&str, &mut dyn Write) -> io::Result<()> + Send + Sync {
    let go_on = Mutex::new(go_on);
    move |head, out| {
        if !head.contains("/v1/chat/completions") || field(head, "x-stream").is_none() {
            return whole(out, 200, "{\"by\":\"socket\"}");
        }
        let event = |text: &str| format!("{:x}\r\ndata: {text}\n\n\r\n", text.len() + 8);
        write!(out, "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")?;
        out.write_all(event("1").as_bytes())?;
        go_on.lock().expect("not poisoned").recv_timeout(DEADLINE).map_err(io::Error::other)?;
        write!(out, "{}0\r\n\r\n", event("[DONE]"))
    }
}

fn until_state(forebay: &Forebay, place: usize, state: &str) -> Value {
    until(format!("server {place} is {state}"), || {
        let server = forebay.server("p", place);
        (server["state"] == state).then_some(server)
    })
}

/// The access log's records so far.
fn records(forebay: &Forebay) -> Vec<Value> {
    let lines = forebay.log();
    let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    lines.filter(|line| line["duration_ms"].is_number()).collect()
}

#[test]
fn an_engine_behind_a_unix_socket_is_probed_asked_and_named_by_its_path() {
    let folder = Folder::new();
    let (go_on, goes_on) = channel();
    let stub = Stub::unix(&folder.path("engine.sock"), script(goes_on));
    let forebay = Forebay::ready(&Configuration::of(&[&stub.address]));
    let server = until_state(&forebay, 0, "up");
    assert_eq!((&server["address"], &server["name"]), (&json!(stub.address), &json!(stub.address)));
    assert!(!stub.heard("GET /v1/models ").is_empty(), "the probes are the engine's own");
    let mut client = forebay.client();
    for _ in 0..3 {
        let answer = client.chat("m").expect("an answer");
        assert_eq!((answer.status, &*answer.text()), (200, "{\"by\":\"socket\"}"));
    }
    let head = stub.heard("POST ").remove(0);
    assert_eq!((field(&head, "host"), field(&head, "authorization")), (Some("forebay"), None));
    // A stream comes event by event.
    let key = format!("authorization: Bearer {SECRET}");
    let body = crate::http::chat("m", "x", true);
    client.send("POST", "/v1/chat/completions", &[&key, "x-stream: 1"], &body).expect("sent");
    client.begun().expect("a first event");
    go_on.send(()).expect("the engine waits");
    assert!(client.end_stream().expect("an end"), "with its last event");
    let all = until("four records", || Some(records(&forebay)).filter(|all| all.len() == 4));
    for record in all {
        assert_eq!((&record["server"], &record["end"]), (&json!(stub.address), &json!("complete")), "{record}");
    }
    let answered =
        format!("forebay_upstream_attempts_total{{outcome=\"answered\",pool=\"p\",server=\"{}\"}}", stub.address);
    assert_eq!(forebay.metric(&answered), Some(4.0));
}

#[test]
fn a_unix_socket_that_goes_is_down_and_up_again_when_it_is_back() {
    let folder = Folder::new();
    let path = folder.path("engine.sock");
    let stub = Stub::unix(&path, |_, out| whole(out, 200, "{}"));
    let forebay = Forebay::ready(&Configuration::of(&[&stub.address]));
    for _ in 0..2 {
        until_state(&forebay, 0, "up");
        assert_eq!(forebay.client().chat("m").expect("an answer").status, 200);
        fs::remove_file(&path).expect("removed");
        let why = until_state(&forebay, 0, "down")["why"].clone();
        assert!(why.as_str().is_some_and(|why| !why.is_empty()), "{why}");
        assert_eq!(forebay.client().chat("m").expect("an answer").status, 503);
        drop(Stub::unix(&path, |_, out| whole(out, 200, "{}")));
    }
    until_state(&forebay, 0, "up");
}

#[test]
fn a_dead_unix_socket_costs_an_attempt_and_another_server_answers() {
    let folder = Folder::new();
    let path = folder.path("engine.sock");
    let stub = Stub::unix(&path, |_, out| whole(out, 200, "{}"));
    let engine = Engine::start("tcp", &[]);
    let configuration = Configuration::empty()
        .pool("p", &[&stub.address, &engine.address], "interval = \"600s\"")
        .model("m*", "p")
        .key("t", SECRET, "[\"*\"]");
    let forebay = Forebay::ready(&configuration);
    until_state(&forebay, 1, "up");
    fs::remove_file(&path).expect("removed");
    for _ in 0..4 {
        let answer = forebay.client().chat("m").expect("an answer");
        assert_eq!((answer.status, &*answer.headers["x-engine"]), (200, "tcp"));
    }
    let all = until("four records", || Some(records(&forebay)).filter(|all| all.len() == 4));
    let attempts: Vec<u64> = all.iter().filter_map(|record| record["attempts"].as_u64()).collect();
    assert_eq!(attempts, [2, 1, 2, 1]);
    assert!(all.iter().all(|record| record["server"] == engine.address));
}
