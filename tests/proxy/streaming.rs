//! Answers pass as they come: every event at once, every byte as it is.

use futures::future::join_all;

use crate::client::{Answer, Client, Http1, VERSIONS, Version, prompt, request};
use crate::harness::{SECRET, eventually, in_front_of, pool};
use crate::upstream::{Asked, Engine, Gate, Reply};

#[tokio::test]
async fn each_event_reaches_the_client_before_the_engine_writes_the_next() {
    for version in VERSIONS {
        let gate = Gate::new();
        let events: Vec<String> = (0..20).map(|n| format!("data: {{\"n\":{n}}}\n\n")).collect();
        let reply = events.iter().fold(Reply::events(), |reply, event| reply.chunk(event).wait(&gate));
        let engine = Engine::always(reply.chunk("data: [DONE]\n\n").wait(&gate).last()).await;
        let forebay = in_front_of(&[&engine]).start().await;
        let mut client = Client::connect(&forebay, version).await;
        let mut answer = client.send(&prompt()).await.answer().await;
        assert_eq!((answer.status, &answer.headers["content-type"]), (200, &"text/event-stream".parse().unwrap()));
        for event in &events {
            assert_eq!(answer.event().await.as_ref(), Some(event), "{version:?}");
            gate.open();
        }
        assert_eq!(answer.event().await.as_deref(), Some("data: [DONE]\n\n"));
        gate.open();
        let rest = answer.whole().await;
        assert!(rest.complete && rest.body.is_empty(), "{version:?} {rest:?}");
        let record = forebay.record().await;
        assert_eq!((&record["end"], &record["status"]), (&"complete".into(), &200.into()), "{record}");
    }
}

#[tokio::test]
async fn half_an_event_reaches_the_client_too() {
    let gate = Gate::new();
    let reply = Reply::events().chunk("data: {\"ha").wait(&gate).chunk("lf\":1}\n\ndata: [DO").wait(&gate);
    let engine = Engine::always(reply.chunk("NE]\n\n").last()).await;
    let forebay = in_front_of(&[&engine]).start().await;
    for version in VERSIONS {
        let mut client = Client::connect(&forebay, version).await;
        let mut answer = client.send(&prompt()).await.answer().await;
        for half in ["data: {\"ha", "lf\":1}\n\ndata: [DO"] {
            assert_eq!(answer.piece().await, Ok(Some(half.into())));
            gate.open();
        }
        let rest = answer.whole().await;
        assert_eq!((rest.text(), rest.complete), ("NE]\n\n", true), "{version:?}");
    }
}

#[tokio::test]
async fn the_header_of_a_stream_reaches_the_client_before_its_first_event() {
    for version in VERSIONS {
        let gate = Gate::new();
        let engine = Engine::always(Reply::events().wait(&gate).chunk("data: [DONE]\n\n").last()).await;
        let forebay = in_front_of(&[&engine]).start().await;
        let mut client = Client::connect(&forebay, version).await;
        let answer = client.send(&prompt()).await.answer().await;
        assert_eq!(answer.status, 200);
        gate.open();
        assert!(answer.whole().await.complete, "{version:?}");
    }
}

#[tokio::test]
async fn chunks_that_are_no_events_pass_at_once_too() {
    for version in VERSIONS {
        let gate = Gate::new();
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n";
        let reply = Reply::raw(head).chunk("{\"a\":1}\n").wait(&gate).chunk("{\"a\":2}\n").wait(&gate);
        let engine = Engine::always(reply.last()).await;
        let forebay = in_front_of(&[&engine]).start().await;
        let mut client = Client::connect(&forebay, version).await;
        let mut answer = client.send(&prompt()).await.answer().await;
        for line in ["{\"a\":1}\n", "{\"a\":2}\n"] {
            assert_eq!(answer.piece().await, Ok(Some(line.into())), "{version:?}");
            gate.open();
        }
        assert!(answer.whole().await.complete);
    }
}

#[tokio::test]
async fn a_stream_that_ends_with_its_connection_is_whole_when_its_last_event_came() {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
    let engine = Engine::always(Reply::raw(head).bytes("data: 1\n\ndata: [DONE]\n\n").close()).await;
    let forebay = in_front_of(&[&engine]).start().await;
    for version in VERSIONS {
        let answer = Client::connect(&forebay, version).await.ask(&prompt()).await;
        assert_eq!((answer.text(), answer.complete), ("data: 1\n\ndata: [DONE]\n\n", true), "{version:?}");
        assert_eq!(forebay.record().await["end"], "complete");
    }
}

#[tokio::test]
async fn each_dialect_ends_with_its_own_last_event() {
    let ends = [
        ("/v1/chat/completions", "data: [DONE]\n\n"),
        ("/v1/completions", "data: [DONE]\n\n"),
        ("/v1/messages", "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n"),
        ("/v1/responses", "event: response.completed\ndata: {\"type\":\"response.completed\"}\n\n"),
        ("/v1/responses", "data: {\"type\":\"response.incomplete\"}\n\n"),
        ("/v1/responses", "event: response.failed\ndata: {}\n\n"),
        ("/v1/messages", "event: error\ndata: {\"type\":\"error\"}\n\n"),
        ("/v1/chat/completions", "data: {\"error\":{\"message\":\"out of memory\"}}\n\n"),
        ("/v1/audio/speech", "data: anything\n\n"),
    ];
    for (path, end) in ends {
        let engine = Engine::always(Reply::events().chunk("data: {}\n\n").chunk(end).last()).await;
        let forebay = in_front_of(&[&engine]).start().await;
        for version in VERSIONS {
            let answer = Client::connect(&forebay, version).await.ask(&prompt().to(path)).await;
            assert_eq!(
                (answer.text(), answer.complete),
                (&*format!("data: {{}}\n\n{end}"), true),
                "{path} {version:?}"
            );
        }
    }
}

#[tokio::test]
async fn json_passes_byte_for_byte() {
    let body = "{ \"b\" : 1.0e5,\"a\":\"\\u00e9 – \u{1f9e0}\" ,\r\n\"c\":[ ] }\n";
    let engine = Engine::always(Reply::json(200, body)).await;
    let forebay = in_front_of(&[&engine]).start().await;
    for version in VERSIONS {
        let answer = Client::connect(&forebay, version).await.ask(&prompt()).await;
        assert_eq!((answer.status, answer.text(), answer.complete), (200, body, true));
        assert_eq!(answer.header("content-length"), Some(&*body.len().to_string()));
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert_eq!(forebay.record().await["bytes_out"], body.len());
    }
}

#[tokio::test]
async fn a_large_answer_passes_whole_in_either_framing() {
    let body: String = (0..400_000).map(|n| char::from(b'a' + (n % 23) as u8)).collect();
    let length = Reply::json(200, &body);
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    let chunked = Reply::raw(head).chunk(&body[..70_001]).chunk(&body[70_001..]).last();
    let close = Reply::raw("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n").bytes(body.clone()).close();
    for reply in [length, chunked, close] {
        let engine = Engine::always(reply).await;
        let forebay = in_front_of(&[&engine]).start().await;
        for version in VERSIONS {
            let answer = Client::connect(&forebay, version).await.ask(&prompt()).await;
            assert!(answer.complete && answer.body == body, "{version:?} {}", answer.body.len());
        }
    }
}

#[tokio::test]
async fn an_engines_own_refusals_pass_unchanged() {
    for status in [400, 401, 404, 413, 422, 429, 500, 502, 503, 504] {
        let body = format!("{{\"error\":{{\"message\":\"mine\",\"status\":{status}}}}}");
        let head = format!(
            "HTTP/1.1 {status} Status\r\ncontent-type: application/json\r\nretry-after: 7\r\nx-engine: yes\r\n\
             content-length: {}\r\n\r\n",
            body.len()
        );
        let engine = Engine::always(Reply::raw(head + &body)).await;
        let forebay = in_front_of(&[&engine]).start().await;
        for version in VERSIONS {
            let answer = Client::connect(&forebay, version).await.ask(&prompt()).await;
            assert_eq!((answer.status, answer.text(), answer.complete), (status, &*body, true), "{version:?}");
            assert_eq!((answer.header("retry-after"), answer.header("x-engine")), (Some("7"), Some("yes")));
            let record = forebay.record().await;
            assert_eq!((&record["status"], &record["code"]), (&status.into(), &serde_json::Value::Null), "{record}");
        }
    }
}

#[tokio::test]
async fn interim_answers_of_the_engine_are_dropped() {
    let interim = "HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n";
    let engine = Engine::new(move |_| {
        let answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
        Reply::raw(format!("HTTP/1.1 100 Continue\r\n\r\n{interim}{answer}"))
    })
    .await;
    let forebay = in_front_of(&[&engine]).start().await;
    for version in VERSIONS {
        let mut client = Client::connect(&forebay, version).await;
        let answer = client.send(&prompt()).await.answer().await;
        assert_eq!((answer.status, &*answer.informational), (200, &[][..]), "{version:?}");
        assert!(!answer.headers.contains_key("link"));
        assert_eq!(answer.whole().await.text(), "{}");
    }
}

#[tokio::test]
async fn answers_without_a_body_have_none_and_keep_the_connection() {
    let engine = Engine::new(|asked| match (asked.method(), asked.target()) {
        ("HEAD", _) => Reply::raw("HTTP/1.1 200 OK\r\ncontent-length: 1234\r\n\r\n"),
        (_, "/raw/304") => Reply::raw("HTTP/1.1 304 Not Modified\r\netag: \"x\"\r\n\r\n"),
        (_, "/raw/0") => Reply::raw("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"),
        _ => Reply::raw("HTTP/1.1 204 No Content\r\n\r\n"),
    })
    .await;
    let raw = "[[route]]\nname = \"raw\"\npath = \"/raw/*\"\npool = \"q\"\nauth = \"none\"";
    let forebay = in_front_of(&[&engine]).and(&pool("q", &engine, "")).and(raw).start().await;
    for version in VERSIONS {
        let mut client = Client::connect(&forebay, version).await;
        for (method, path, status) in [("GET", "/raw/204", 204), ("GET", "/raw/304", 304), ("GET", "/raw/0", 200)] {
            let answer = client.ask(&request(method, path)).await;
            assert_eq!((answer.status, answer.text(), answer.complete), (status, "", true), "{version:?} {path}");
        }
        let answer = client.ask(&request("HEAD", "/raw/x")).await;
        assert_eq!((answer.status, answer.text()), (200, ""), "{version:?}");
        assert_eq!(answer.header("content-length"), Some("1234"));
    }
}

#[tokio::test]
async fn connections_live_on_from_request_to_request_on_both_sides() {
    let engine = Engine::new(|asked| match asked.target() {
        "/v1/embeddings" => Reply::json(200, "{}"),
        _ => Reply::events().chunk("data: [DONE]\n\n").last(),
    })
    .await;
    let forebay = in_front_of(&[&engine]).start().await;
    for version in VERSIONS {
        let mut client = Client::connect(&forebay, version).await;
        for path in ["/v1/chat/completions", "/v1/embeddings", "/v1/completions", "/v1/embeddings"] {
            let answer = client.ask(&prompt().to(path)).await;
            assert_eq!((answer.status, answer.complete), (200, true));
            assert_eq!(answer.header("connection").unwrap_or("keep-alive"), "keep-alive");
            forebay.idle().await;
        }
    }
    let first = engine.asked(0).await.connection;
    for n in 1..8 {
        assert_eq!(engine.asked(n).await.connection, first, "request {n}");
    }
}

#[tokio::test]
async fn many_streams_on_one_http2_connection_do_not_hold_each_other_up() {
    let gate = Gate::new();
    let reply = Reply::events().chunk("data: 1\n\n").wait(&gate).chunk("data: [DONE]\n\n").last();
    let engine = Engine::always(reply).await;
    let forebay = in_front_of(&[&engine]).start().await;
    let mut client = Client::connect(&forebay, Version::H2).await;
    let Client::H2(http2) = &mut client else { unreachable!() };
    let mut answers = Vec::new();
    for _ in 0..50 {
        answers.push(http2.start(&prompt()).await.answer().await);
    }
    for answer in &mut answers {
        assert_eq!(answer.event().await.as_deref(), Some("data: 1\n\n"));
    }
    (0..50).for_each(|_| gate.open());
    for answer in answers {
        let rest = answer.whole().await;
        assert_eq!((rest.text(), rest.complete), ("data: [DONE]\n\n", true));
    }
}

#[tokio::test]
async fn neither_a_stream_that_stalls_nor_one_that_is_not_read_holds_the_others_of_its_connection_up() {
    let (gate, stuck) = (Gate::new(), Gate::new());
    let events = "data: 0123456789abcdef\n\n".repeat(2000);
    let slow = Reply::events().chunk("data: 1\n\n").wait(&gate).chunk(&events).chunk("data: [DONE]\n\n").last();
    let stalls = Reply::events().chunk("data: 1\n\n").wait(&stuck).chunk("data: [DONE]\n\n").last();
    let large = Reply::events().chunk(&events.repeat(100)).chunk("data: [DONE]\n\n").last();
    let replies = [("stalls", stalls), ("large", large), ("slow", slow)];
    let script = move |asked: &Asked| {
        let body = asked.body();
        let wanted = replies.iter().find(|(name, _)| body.ends_with(format!("\"{name}\"}}").as_bytes()));
        wanted.expect("a name").1.clone()
    };
    let engines = [Engine::new(script.clone()).await, Engine::new(script.clone()).await, Engine::new(script).await];
    let forebay = in_front_of(&engines.each_ref()).start().await;
    let Client::H2(mut http2) = Client::connect(&forebay, Version::H2).await else { unreachable!() };
    let mut start = async |name| {
        let body = format!("{{\"model\":\"m\",\"user\":\"{name}\"}}");
        http2.start(&prompt().body(body)).await.answer().await
    };
    let mut stalled = start("stalls").await;
    assert_eq!(stalled.event().await.as_deref(), Some("data: 1\n\n"));
    let unread = start("large").await;
    let mut others = Vec::new();
    for _ in 0..99 {
        others.push(start("slow").await);
    }
    for answer in &mut others {
        assert_eq!(answer.event().await.as_deref(), Some("data: 1\n\n"));
    }
    let in_flight = || (0..3).map(|n| forebay.server(n).in_flight()).sum::<u32>();
    assert_eq!(in_flight(), 101);
    (0..99).for_each(|_| gate.open());
    for rest in join_all(others.into_iter().map(Answer::whole)).await {
        assert!(rest.complete && rest.text() == format!("{events}data: [DONE]\n\n"), "{}", rest.body.len());
    }
    eventually("only two are in flight", || (in_flight() == 2).then_some(())).await;
    stuck.open();
    let (stalled, unread) = (stalled.whole().await, unread.whole().await);
    assert_eq!((stalled.text(), stalled.complete), ("data: [DONE]\n\n", true));
    assert!(unread.complete && unread.body.len() == events.len() * 100 + "data: [DONE]\n\n".len());
}

#[tokio::test]
async fn http_1_0_clients_are_answered_and_their_connection_closed() {
    let engine = Engine::new(|asked| match asked.target() {
        "/v1/embeddings" => Reply::json(200, "{}"),
        _ => Reply::events().chunk("data: 1\n\n").chunk("data: [DONE]\n\n").last(),
    })
    .await;
    let forebay = in_front_of(&[&engine]).start().await;
    for (path, body) in [("/v1/embeddings", "{}"), ("/v1/chat/completions", "data: 1\n\ndata: [DONE]\n\n")] {
        let mut client = Http1::connect(forebay.address).await;
        let head = format!("POST {path} HTTP/1.0\r\nauthorization: Bearer {SECRET}\r\ncontent-length: 13\r\n\r\n");
        client.write(format!("{head}{{\"model\":\"m\"}}").as_bytes()).await;
        let answer = client.answer().await.whole().await;
        assert_eq!((answer.status, answer.text()), (200, body), "{path}");
        assert_eq!(answer.header("transfer-encoding"), None, "HTTP/1.0 knows no chunks");
        client.is_closed().await;
    }
}

#[tokio::test]
async fn an_engine_that_switches_protocols_unasked_has_not_answered() {
    let engine = Engine::always(Reply::raw("HTTP/1.1 101 Switching Protocols\r\n\r\nhello").close()).await;
    let forebay = in_front_of(&[&engine]).start().await;
    for version in VERSIONS {
        let answer = Client::connect(&forebay, version).await.ask(&prompt()).await;
        assert_eq!((answer.status, &*answer.code()), (502, "upstream_unavailable"), "{version:?}");
    }
}

#[tokio::test]
async fn an_answer_in_an_older_http_is_passed_on_in_ours() {
    let engine = Engine::always(Reply::raw("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok")).await;
    let forebay = in_front_of(&[&engine]).start().await;
    let mut client = Http1::connect(forebay.address).await;
    client.write(&prompt().header("connection", "close").wire()).await;
    assert_eq!(client.refusal().await, Some(200));
}
