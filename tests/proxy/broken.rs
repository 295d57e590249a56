//! An answer that breaks off is never presented as whole.

use std::time::{Duration, Instant};

use crate::client::{Client, Request, VERSIONS, Version, Whole, post, prompt};
use crate::harness::in_front_of;
use crate::upstream::{Deaf, Engine, Reply};

/// What a client of this version sees of an engine that answers so, and that the log says `upstream_truncated`.
async fn seen(version: Version, path: &str, reply: Reply) -> Whole {
    let engine = Engine::always(reply).await;
    let forebay = in_front_of(&[&engine]).start().await;
    let mut client = Client::connect(&forebay, version).await;
    let answer = client.ask(&prompt().to(path)).await;
    let record = forebay.record().await;
    assert_eq!((&record["status"], &record["end"]), (&200.into(), &"upstream_truncated".into()), "{record}");
    assert_eq!((&record["attempts"], &record["code"]), (&1.into(), &"upstream_unavailable".into()), "{record}");
    assert_eq!(engine.requests(), 1);
    forebay.idle().await;
    answer
}

fn json_head(framing: &str) -> Reply {
    Reply::raw(format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n{framing}\r\n\r\n"))
}

#[tokio::test]
async fn an_answer_that_is_cut_looks_cut() {
    let length = || json_head("content-length: 100").bytes("{\"half\":");
    let chunk = || json_head("transfer-encoding: chunked").chunk("{\"half\":");
    for version in VERSIONS {
        for (name, reply) in [
            ("a length, closed", length().close()),
            ("a length, reset", length().reset()),
            ("no last chunk, closed", chunk().close()),
            ("no last chunk, reset", chunk().reset()),
            ("half a chunk, closed", chunk().bytes("ff\r\nhalf a chu").close()),
            ("half a chunk's size, closed", chunk().bytes("f").close()),
            ("a chunk of no size, closed", chunk().bytes("zz\r\nx\r\n").close()),
        ] {
            let answer = seen(version, "/v1/embeddings", reply).await;
            assert!(!answer.complete, "{version:?} {name}: {answer:?}");
            if !name.ends_with("reset") {
                assert!(answer.text().starts_with("{\"half\":"), "{version:?} {name}: {answer:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_length_with_nothing_after_it_looks_cut() {
    for version in VERSIONS {
        let answer = seen(version, "/v1/embeddings", json_head("content-length: 100").close()).await;
        assert!(!answer.complete, "{version:?}: {answer:?}");
    }
}

#[tokio::test]
async fn a_stream_that_is_cut_ends_with_an_error_event_and_looks_cut() {
    let events = || Reply::events().chunk("data: {\"n\":1}\n\n");
    for version in VERSIONS {
        for (name, reply) in [
            ("closed", events().close()),
            ("reset", events().reset()),
            ("half a chunk", events().bytes("ff\r\n").close()),
            ("a clean end", events().last()),
            ("an end with its event", events().bytes("5\r\ndata:\r\n0\r\n\r\n")),
            ("an end with the connection", {
                let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n\r\n";
                Reply::raw(head).bytes("data: {\"n\":1}\n\n").close()
            }),
        ] {
            for (path, error) in [
                ("/v1/chat/completions", "event: error\ndata: {\"error\":{\"message\":\""),
                ("/v1/completions", "event: error\ndata: {\"error\":{\"message\":\""),
                ("/v1/messages", "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"api_error\""),
                ("/v1/responses", "event: error\ndata: {\"type\":\"error\",\"code\":\"upstream_unavailable\""),
            ] {
                let answer = seen(version, path, reply.clone()).await;
                let text = answer.text();
                assert!(!answer.complete, "{version:?} {name}: {answer:?}");
                assert!(!text.contains("[DONE]"), "{version:?} {name}: {text}");
                assert!(text.contains(error) && text.ends_with("}\n\n"), "{version:?} {name} {path}: {text}");
                if name != "reset" {
                    assert!(text.starts_with("data: {\"n\":1}\n\n"), "{version:?} {name}: {text}");
                }
            }
        }
    }
}

#[tokio::test]
async fn an_error_event_does_not_run_into_half_an_event() {
    for version in VERSIONS {
        for half in ["data: {\"ha", "data: {}\n", "data: {}\r\n"] {
            let answer = seen(version, "/v1/chat/completions", Reply::events().chunk(half).close()).await;
            let text = answer.text().replace('\r', "");
            assert!(!answer.complete && text.contains("\n\nevent: error\n"), "{version:?} {half:?}: {text:?}");
        }
    }
}

#[tokio::test]
async fn a_stream_that_breaks_before_its_first_event_has_an_error_event_too() {
    for version in VERSIONS {
        for reply in [Reply::events().close(), Reply::events().last()] {
            let answer = seen(version, "/v1/chat/completions", reply).await;
            assert!(answer.text().starts_with("event: error\n") && !answer.complete, "{version:?} {answer:?}");
        }
    }
}

#[tokio::test]
async fn a_stream_that_had_its_last_event_but_no_last_chunk_looks_cut() {
    for version in VERSIONS {
        let reply = Reply::events().chunk("data: 1\n\n").chunk("data: [DONE]\n\n").close();
        assert!(!seen(version, "/v1/chat/completions", reply).await.complete, "{version:?}");
    }
}

#[tokio::test]
async fn a_broken_answer_costs_an_http1_client_its_connection_and_an_http2_client_one_stream() {
    let engine = Engine::new(|asked| match asked.target() {
        "/v1/embeddings" => Reply::json(200, "{}"),
        _ => Reply::events().chunk("data: 1\n\n").close(),
    })
    .await;
    let forebay = in_front_of(&[&engine]).start().await;
    let mut client = Client::connect(&forebay, Version::H2).await;
    assert!(!client.ask(&prompt()).await.complete);
    assert_eq!(client.ask(&prompt().to("/v1/embeddings")).await.status, 200);
    let mut client = Client::connect(&forebay, Version::H1).await;
    assert!(!client.ask(&prompt()).await.complete);
    client.is_closed().await;
}

#[tokio::test]
async fn an_engine_that_is_silent_is_given_up_in_time() {
    for version in VERSIONS {
        let (first, second) = (Engine::always(Reply::silence()).await, Engine::fine().await);
        let timeout = "[pool.p.timeouts]\nfirst_byte = \"300ms\"";
        let forebay = in_front_of(&[&first, &second]).and(timeout).start().await;
        let mut client = Client::connect(&forebay, version).await;
        let asked = Instant::now();
        let answer = client.ask(&prompt()).await;
        let took = asked.elapsed();
        assert_eq!((answer.status, &*answer.code()), (504, "upstream_timeout"), "{version:?}");
        assert!(answer.complete, "{version:?}");
        assert!((300..900).contains(&took.as_millis()), "{took:?}");
        first.asked(0).await.gone().await;
        let record = forebay.record().await;
        assert_eq!((&record["status"], &record["code"]), (&504.into(), &"upstream_timeout".into()), "{record}");
        assert_eq!((&record["attempts"], &record["end"]), (&1.into(), &"error".into()), "{record}");
        assert_eq!((second.requests(), forebay.server(0).errors()), (0, 1), "our own time-outs are not retried");
        forebay.idle().await;
        assert_eq!(Client::connect(&forebay, version).await.ask(&prompt()).await.status, 200);
    }
}

#[tokio::test]
async fn the_first_byte_may_be_late_but_in_time_and_the_stream_may_last_longer() {
    let gate = crate::upstream::Gate::new();
    let reply = Reply::events().chunk("data: 1\n\n").wait(&gate).chunk("data: [DONE]\n\n").last();
    let engine = Engine::always(reply).await;
    let timeout = "[pool.p.timeouts]\nfirst_byte = \"200ms\"";
    let forebay = in_front_of(&[&engine]).and(timeout).start().await;
    for version in VERSIONS {
        let mut client = Client::connect(&forebay, version).await;
        let mut answer = client.send(&prompt()).await.answer().await;
        assert_eq!(answer.event().await.as_deref(), Some("data: 1\n\n"));
        tokio::time::sleep(Duration::from_millis(400)).await; // the passing of time is what is tested
        gate.open();
        let rest = answer.whole().await;
        assert_eq!((rest.text(), rest.complete), ("data: [DONE]\n\n", true), "{version:?}");
    }
}

#[tokio::test]
async fn a_kept_connection_that_dies_unused_is_replaced_by_exactly_one() {
    let ok = || Reply::json(200, "{}");
    for version in VERSIONS {
        for (name, first) in [("under the next", ok().dies_under_the_next()), ("at once", ok().close())] {
            let first = parking_lot::Mutex::new(Some(first));
            let engine = Engine::new(move |_| first.lock().take().unwrap_or_else(ok)).await;
            let forebay = in_front_of(&[&engine]).start().await;
            let mut client = Client::connect(&forebay, version).await;
            assert_eq!(client.ask(&prompt()).await.status, 200);
            forebay.idle().await;
            let before = engine.connections();
            for n in 2..5 {
                let answer = client.ask(&prompt()).await;
                assert_eq!((answer.status, answer.text()), (200, "{}"), "{version:?} {name} request {n}");
                forebay.idle().await;
            }
            for record in forebay.records(4).await {
                assert_eq!((&record["attempts"], &record["end"]), (&1.into(), &"complete".into()), "{record}");
            }
            // A connection made only to repeat a request is not kept, so the one after that may be another.
            let more = engine.connections() - before;
            assert!((1..=2).contains(&more), "{version:?} {name}: {more} more connections");
            assert_eq!(engine.requests(), 4, "{version:?} {name}");
        }
    }
}

#[tokio::test]
async fn an_engine_that_speaks_no_http_is_unavailable() {
    for version in VERSIONS {
        let garbage = Reply::raw("garbage that is no HTTP at all\r\n\r\n").stall();
        let engine = Engine::always(garbage).await;
        let forebay = in_front_of(&[&engine]).start().await;
        let answer = Client::connect(&forebay, version).await.ask(&prompt()).await;
        assert_eq!((answer.status, &*answer.code()), (502, "upstream_unavailable"), "{version:?}");
        forebay.idle().await;
    }
}

#[tokio::test]
async fn when_no_server_can_be_reached_the_client_is_told() {
    for version in VERSIONS {
        let engines = [Engine::fine().await, Engine::fine().await, Engine::fine().await, Engine::fine().await];
        let all: Vec<&Engine> = engines.iter().collect();
        let forebay = in_front_of(&all).start().await;
        for engine in &engines {
            engine.kill().await;
        }
        let mut client = Client::connect(&forebay, version).await;
        let answer = client.ask(&prompt()).await;
        assert_eq!((answer.status, &*answer.code()), (502, "upstream_unavailable"), "{version:?}");
        assert!(!answer.text().contains("127.0.0.1"), "{}", answer.text());
        let record = forebay.record().await;
        assert_eq!((&record["attempts"], &record["end"]), (&3.into(), &"error".into()), "{record}");
        let tried: Vec<u64> = (0..4).map(|n| forebay.server(n).requests()).collect();
        assert_eq!(tried, [1, 1, 1, 0], "never the same server twice, and no more than `attempts`");
    }
}

#[tokio::test]
async fn a_body_that_streams_moves_on_only_when_nothing_was_sent() {
    let route = "[[route]]\nname = \"raw\"\npath = \"/raw/*\"\npool = \"p\"\nauth = \"none\"";
    for version in VERSIONS {
        let (dead, alive) = (Engine::fine().await, Engine::fine().await);
        let forebay = in_front_of(&[&dead, &alive]).and(route).start().await;
        dead.kill().await;
        let body = "x".repeat(200_000);
        let request = post("/raw/x").body(body.clone()).pieces(10_000);
        let answer = Client::connect(&forebay, version).await.ask(&request).await;
        assert_eq!(answer.status, 200, "{version:?} {answer:?}");
        assert!(alive.asked(0).await.body() == body, "{version:?}");
        assert_eq!(forebay.record().await["attempts"], 2);
    }
}

/// That an engine which reads nothing is given up in time, however much of this request is still to be sent.
async fn given_up_though_deaf(request: Request) {
    for version in VERSIONS {
        let (engine, deaf) = (Engine::fine().await, Deaf::new().await);
        let forebay = in_front_of(&[&engine]).and(&deaf.pool("first_byte = \"300ms\"")).start().await;
        let mut client = Client::connect(&forebay, version).await;
        let asked = Instant::now();
        // It sends and reads at once, as it may never be done with sending.
        let answer = client.ask_while_sending(&request).await;
        assert_eq!((answer.status, &*answer.code()), (504, "upstream_timeout"), "{version:?}");
        assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
        let record = forebay.record().await;
        assert_eq!((&record["attempts"], &record["end"]), (&1.into(), &"error".into()), "{record}");
        forebay.idle().await;
    }
}

#[tokio::test]
async fn an_engine_that_does_not_read_a_prompt_is_given_up_in_time() {
    let prompt = prompt().body(format!("{{\"model\":\"deaf\",\"x\":\"{}\"}}", "x".repeat(20_000_000)));
    given_up_though_deaf(prompt).await;
}

#[tokio::test]
async fn an_engine_that_does_not_read_a_stream_is_given_up_in_time() {
    given_up_though_deaf(post("/deaf/x").body("x".repeat(20_000_000)).pieces(60_000)).await;
}
