//! How the daemon ends: nothing in flight is lost, and nobody who is idle holds it up.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use http::Request;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::configuration::{Configuration, SECRET};
use crate::harness::{Engine, Forebay, until};
use crate::http::{Client, chat};
use crate::stub::{Stub, whole};

/// An engine of twenty tokens a second and a daemon in front of it.
fn slow(server: &str) -> (Engine, Forebay) {
    let engine = Engine::start("slow", &["--tokens-per-second", "20"]);
    let forebay = Forebay::ready(&Configuration::of(&[&engine.address]).server(server));
    (engine, forebay)
}

fn fast(server: &str) -> (Engine, Forebay) {
    let engine = Engine::start("fast", &[]);
    let forebay = Forebay::ready(&Configuration::of(&[&engine.address]).server(server));
    (engine, forebay)
}

#[test]
fn a_stream_in_flight_is_finished_and_then_the_process_ends_at_once() {
    for signal in ["TERM", "INT"] {
        let (_engine, mut forebay) = slow("");
        let mut client = forebay.client();
        let answer = client.begin_stream("m", 20).expect("a stream");
        assert_eq!((answer.status, answer.closes()), (200, false));
        forebay.signal(signal);
        forebay.until_said("stopping");
        assert!(client.end_stream().expect("a whole stream"), "{signal}: it lacks its last event");
        drop(client);
        let finished = Instant::now();
        assert_eq!(forebay.until_ended(), Some(0));
        assert!(finished.elapsed() < Duration::from_millis(300), "{signal}: {:?}", finished.elapsed());
        forebay.until_said("stopped: every request was finished");
    }
}

#[test]
fn a_client_that_keeps_its_connection_after_its_stream_holds_the_end_up_for_a_moment_only() {
    let (_engine, mut forebay) = slow("");
    let mut client = forebay.client();
    client.begin_stream("m", 20).expect("a stream");
    forebay.signal("TERM");
    forebay.until_said("stopping");
    assert!(client.end_stream().expect("a whole stream"));
    let finished = Instant::now();
    assert_eq!(forebay.until_ended(), Some(0));
    assert!(finished.elapsed() < Duration::from_millis(1500), "{:?}", finished.elapsed());
    assert!(client.rest().is_empty());
}

#[test]
fn an_idle_daemon_ends_at_once() {
    let (_engine, mut forebay) = fast("");
    let told = Instant::now();
    forebay.signal("TERM");
    assert_eq!(forebay.until_ended(), Some(0));
    assert!(told.elapsed() < Duration::from_millis(500), "{:?}", told.elapsed());
}

#[test]
fn idle_connections_do_not_hold_the_end_up() {
    let (_engine, mut forebay) = fast("");
    let mut kept: Vec<Client> = (0..8).map(|_| forebay.client()).collect();
    for client in &mut kept[..4] {
        assert!(!client.chat("m").expect("an answer").closes());
    }
    let mut admin = Client::connect(forebay.admin_address());
    admin.get("/livez");
    let told = Instant::now();
    forebay.signal("TERM");
    assert_eq!(forebay.until_ended(), Some(0));
    assert!(told.elapsed() < Duration::from_millis(1500), "{:?}", told.elapsed());
    for client in &mut kept {
        assert!(client.rest().is_empty(), "nothing was said to an idle client");
    }
}

#[test]
fn connections_without_a_whole_request_do_not_hold_the_end_up() {
    let (_engine, mut forebay) = fast("");
    let begun: [&[u8]; 3] = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", // and no settings
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0", // settings, and nothing is read
    ];
    let held = begun.map(|bytes| {
        let mut client = forebay.client();
        client.write(bytes).expect("sent");
        client
    });
    until("all are connected", || (forebay.metric("forebay_client_connections")? >= 3.0).then_some(()));
    let told = Instant::now();
    forebay.signal("TERM");
    assert_eq!(forebay.until_ended(), Some(0));
    assert!(told.elapsed() < Duration::from_secs(4), "{:?}", told.elapsed());
    forebay.until_said("stopped: every request was finished");
    drop(held);
}

#[test]
fn every_busy_keep_alive_client_is_told_to_close_and_none_is_reset() {
    let (_engine, mut forebay) = fast("");
    let address = forebay.traffic().to_owned();
    let clients: Vec<_> = (0..16)
        .map(|_| {
            let mut client = Client::connect(&address);
            thread::spawn(move || -> io::Result<usize> {
                for served in 1.. {
                    let answer = client.chat("m")?;
                    assert_eq!(answer.status, 200);
                    if answer.closes() {
                        return Ok(served);
                    }
                }
                unreachable!("it is told to close");
            })
        })
        .collect();
    until("the clients are busy", || (forebay.server("p", 0)["requests"].as_u64()? > 200).then_some(()));
    forebay.signal("TERM");
    for client in clients {
        client.join().expect("no panic").expect("an answer that says `Connection: close`");
    }
    let last = Instant::now();
    assert_eq!(forebay.until_ended(), Some(0));
    assert!(last.elapsed() < Duration::from_millis(1000), "{:?}", last.elapsed());
}

#[test]
fn a_client_that_was_just_answered_may_send_one_more_request() {
    let (_engine, mut forebay) = fast("");
    let mut client = forebay.client();
    client.chat("m").expect("an answer");
    forebay.signal("TERM");
    forebay.until_said("stopping");
    let answer = client.chat("m").expect("one more answer");
    assert_eq!((answer.status, answer.closes()), (200, true));
    assert_eq!(forebay.until_ended(), Some(0));
}

#[test]
fn while_it_drains_new_connections_are_refused_and_readiness_says_why() {
    let (engine, mut forebay) = slow("");
    let mut client = forebay.client();
    client.begin_stream("m", 40).expect("a stream");
    forebay.signal("TERM");
    forebay.until_said("stopping");
    until("new connections are refused", || Client::try_connect(forebay.traffic()).is_err().then_some(()));
    let ready = forebay.admin("/readyz");
    assert_eq!((ready.status, &ready.json()["reasons"]), (503, &serde_json::json!(["draining"])));
    assert_eq!(forebay.admin("/livez").status, 200);
    let in_flight = format!("forebay_in_flight{{pool=\"p\",server=\"{}\"}}", engine.address);
    assert_eq!(forebay.metric(&in_flight), Some(1.0));
    assert_eq!(forebay.server("p", 0)["in_flight"], 1);
    assert!(client.end_stream().expect("a whole stream"));
    assert_eq!(forebay.until_ended(), Some(0));
}

#[test]
fn a_reload_while_it_drains_is_ignored_and_harms_nothing() {
    let (_engine, mut forebay) = slow("");
    let mut client = forebay.client();
    client.begin_stream("m", 20).expect("a stream");
    forebay.signal("TERM");
    forebay.until_said("stopping");
    forebay.signal("HUP");
    assert!(client.end_stream().expect("a whole stream"));
    assert_eq!(forebay.until_ended(), Some(0));
}

#[test]
fn a_second_signal_ends_it_at_once() {
    for second in ["TERM", "INT"] {
        let (_engine, mut forebay) = slow("drain = \"1h\"");
        let mut client = forebay.client();
        client.begin_stream("m", 2000).expect("a stream");
        forebay.signal("TERM");
        forebay.until_said("stopping");
        let told = Instant::now();
        forebay.signal(second);
        assert_eq!(forebay.until_ended(), Some(0));
        assert!(told.elapsed() < Duration::from_millis(1000), "{:?}", told.elapsed());
        assert!(!matches!(client.end_stream(), Ok(true)), "the stream was cut");
        forebay.until_said("told a second time");
    }
}

#[test]
fn the_drain_limit_cuts_what_is_still_in_flight_and_a_cut_stream_does_not_look_whole() {
    let (_engine, mut forebay) = slow("drain = \"300ms\"");
    let mut client = forebay.client();
    client.begin_stream("m", 2000).expect("a stream");
    let told = Instant::now();
    forebay.signal("TERM");
    assert_eq!(forebay.until_ended(), Some(0));
    let took = told.elapsed();
    assert!(took > Duration::from_millis(290) && took < Duration::from_millis(1500), "{took:?}");
    let rest = String::from_utf8(client.rest()).expect("text");
    assert!(rest.contains("event: error\ndata: {") && rest.contains("\"code\":\"draining\""), "{rest}");
    assert!(!rest.contains("[DONE]") && !rest.ends_with("0\r\n\r\n"), "{rest}");
    forebay.until_said("requests were cut off after 0.3 s");
    let record = record(&forebay);
    let told = ["status", "code", "end"].map(|field| record[field].clone());
    assert_eq!(told, [json!(200), json!("draining"), json!("error")]);
}

/// The access log's last record.
fn record(forebay: &Forebay) -> Value {
    let log = forebay.log();
    let mut records = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    records.rfind(|line| line["duration_ms"].is_number()).expect("a record")
}

#[test]
fn what_has_no_answer_when_the_drain_is_over_is_answered_503_wherever_it_is() {
    let stub = Stub::tcp(|head, out| match head.contains("/v1/chat/completions") {
        true => loop {
            thread::park(); // never a byte
        },
        false => whole(out, 200, "{}"),
    });
    let configuration = Configuration::empty()
        .server("drain = \"500ms\"")
        .more(&format!(
            "[pool.p]\nservers = [{:?}]\nmax_in_flight = 1\nqueue = {{ size = 9, timeout = \"1h\" }}",
            stub.address
        ))
        .more("[model.m]\npool = \"p\"\n[model.kept]\npool = \"p\"\n[model.kept.cache]\nsampled = true")
        .key("tester", SECRET, "[\"*\"]");
    let mut forebay = Forebay::ready(&configuration);
    let key = format!("authorization: Bearer {SECRET}");
    let asks = |model| {
        let mut client = forebay.client();
        client.send("POST", "/v1/chat/completions", &[&key], &chat(model, "word", false)).expect("sent");
        client
    };
    let at_the_engine = asks("m");
    until("one is at the engine", || (forebay.server("p", 0)["in_flight"] == 1).then_some(()));
    let waiting = asks("m");
    let (first, second) = (asks("kept"), asks("kept"));
    until("the others wait", || (forebay.metric("forebay_queued{pool=\"p\"}") == Some(2.0)).then_some(()));
    forebay.signal("TERM");
    for mut client in [at_the_engine, waiting, first, second] {
        let answer = client.answer().expect("an answer");
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (503, &json!("draining")));
        assert!(answer.closes() && answer.headers.contains_key("retry-after"), "{answer:?}");
    }
    assert_eq!(forebay.until_ended(), Some(0));
}

#[test]
fn before_it_stops_to_accept_load_balancers_have_time_to_notice() {
    let (_engine, mut forebay) = fast("min_drain = \"1s\"");
    let mut kept = forebay.client();
    kept.chat("m").expect("an answer");
    let told = Instant::now();
    forebay.signal("TERM");
    let ready = until("it says that it drains", || {
        let ready = forebay.admin("/readyz");
        (ready.status == 503).then_some(ready)
    });
    assert_eq!(ready.json()["reasons"], json!(["draining"]));
    assert_eq!(forebay.client().get("/health").status, 503);
    let answer = forebay.client().chat("m").expect("a new connection is served");
    assert_eq!((answer.status, answer.closes()), (200, false));
    assert_eq!(kept.chat("m").expect("an answer").status, 200);
    assert_eq!(forebay.until_ended(), Some(0));
    let took = told.elapsed();
    assert!(took > Duration::from_millis(990) && took < Duration::from_secs(4), "{took:?}");
}

#[test]
fn a_second_signal_ends_the_time_to_notice_too() {
    let (_engine, mut forebay) = fast("min_drain = \"1h\"");
    forebay.signal("TERM");
    until("it says that it drains", || (forebay.admin("/readyz").status == 503).then_some(()));
    forebay.signal("TERM");
    assert_eq!(forebay.until_ended(), Some(0));
}

#[test]
fn a_request_whose_body_is_still_coming_is_finished() {
    let (_engine, mut forebay) = fast("");
    let mut client = forebay.client();
    let body = chat("m", "word", false);
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: f\r\nauthorization: Bearer {SECRET}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let (first, second) = body.split_at(body.len() / 2);
    client.write(format!("{head}{first}").as_bytes()).expect("sent");
    let mut other = forebay.client();
    other.chat("m").expect("an answer"); // by now the first one's header was read
    forebay.signal("TERM");
    forebay.until_said("stopping");
    client.write(second.as_bytes()).expect("sent");
    let answer = client.answer().expect("an answer");
    assert_eq!((answer.status, answer.closes()), (200, true));
    assert_eq!(forebay.until_ended(), Some(0));
}

// --- HTTP/2 ---

async fn h2(address: &str) -> (SendRequest<Bytes>, tokio::task::JoinHandle<Result<(), h2::Error>>) {
    let stream = TcpStream::connect(address).await.expect("a connection");
    let (sender, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    (sender, tokio::spawn(connection))
}

/// Asks for a chat; the status and the whole body.
pub(crate) async fn ask(sender: SendRequest<Bytes>, content: &str, stream: bool) -> Result<(u16, Vec<u8>), h2::Error> {
    let mut sender = sender.ready().await?;
    let request =
        Request::post("http://forebay/v1/chat/completions").header("authorization", format!("Bearer {SECRET}"));
    let (answer, mut body) = sender.send_request(request.body(()).expect("a request"), false)?;
    body.send_data(chat("m", content, stream).into(), true)?;
    let answer = answer.await?;
    let status = answer.status().as_u16();
    let mut whole = Vec::new();
    let mut body = answer.into_body();
    while let Some(piece) = body.data().await {
        let piece = piece?;
        body.flow_control().release_capacity(piece.len())?;
        whole.extend(piece);
    }
    Ok((status, whole))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_clients_finish_their_streams_and_are_told_to_go() {
    let (_engine, mut forebay) = slow("");
    let (sender, connection) = h2(forebay.traffic()).await;
    let streams: Vec<_> = (0..5)
        .map(|_| {
            let sender = sender.clone();
            tokio::spawn(async move { ask(sender, "word", true).await })
        })
        .collect();
    let flying = || (forebay.server("p", 0)["in_flight"] == 5).then_some(());
    until("five streams", flying);
    forebay.signal("TERM");
    for stream in streams {
        let (status, body) = stream.await.expect("no panic").expect("a whole stream");
        assert_eq!(status, 200);
        assert!(body.ends_with(b"data: [DONE]\n\n"));
    }
    let finished = Instant::now();
    connection.await.expect("no panic").expect("an orderly end");
    ask(sender, "word", false).await.expect_err("the connection is gone");
    assert_eq!(forebay.until_ended(), Some(0));
    assert!(finished.elapsed() < Duration::from_millis(500), "{:?}", finished.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_clients_are_told_too_when_they_are_cut_off() {
    let (_engine, mut forebay) = slow("drain = \"500ms\"");
    let (sender, _connection) = h2(forebay.traffic()).await;
    let mut streams = Vec::new();
    for stream in [true, true, false] {
        let mut sender = sender.clone().ready().await.expect("a connection");
        let messages = json!([{"role": "user", "content": "word ".repeat(4000)}]);
        let body = json!({"model": "m", "messages": messages, "stream": stream, "max_tokens": 4000}).to_string();
        let request =
            Request::post("http://forebay/v1/chat/completions").header("authorization", format!("Bearer {SECRET}"));
        let (answer, mut sends) = sender.send_request(request.body(()).expect("a request"), false).expect("sent");
        sends.send_data(body.into(), true).expect("sent");
        streams.push(answer);
    }
    until("all are in flight", || (forebay.server("p", 0)["in_flight"] == 3).then_some(()));
    forebay.signal("TERM");
    for answer in streams {
        let answer = answer.await.expect("an answer");
        let (status, mut body, mut whole) = (answer.status().as_u16(), answer.into_body(), Vec::new());
        let end = loop {
            match body.data().await {
                Some(Ok(piece)) => {
                    body.flow_control().release_capacity(piece.len()).expect("a window");
                    whole.extend(piece);
                }
                Some(Err(e)) => break Err(e),
                None => break Ok(()),
            }
        };
        let whole = String::from_utf8_lossy(&whole);
        assert!(whole.contains("\"code\":\"draining\""), "{status}: {whole}");
        match status {
            503 => end.expect("a whole answer"),
            _ => assert!(end.is_err_and(|e| e.is_reset()) && whole.contains("event: error\n"), "{whole}"),
        }
    }
    assert_eq!(forebay.until_ended(), Some(0));
    let log = forebay.log();
    assert_eq!(log.lines().filter(|line| line.contains("\"end\":\"error\"")).count(), 3, "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_http2_connection_does_not_hold_the_end_up() {
    let (_engine, mut forebay) = fast("");
    let (sender, connection) = h2(forebay.traffic()).await;
    assert_eq!(ask(sender.clone(), "word", false).await.expect("an answer").0, 200);
    let (_unused, other) = h2(forebay.traffic()).await;
    let told = Instant::now();
    forebay.signal("TERM");
    connection.await.expect("no panic").expect("an orderly end");
    let _ = other.await;
    assert_eq!(forebay.until_ended(), Some(0));
    assert!(told.elapsed() < Duration::from_millis(1500), "{:?}", told.elapsed());
}
