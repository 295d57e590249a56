//! Engines that speak HTTP/2: many requests on one connection, each of them on its own.

use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::Reason;

use crate::client::{Client, Http1, Request, VERSIONS, Version, post, prompt, request};
use crate::harness::{Builder, Forebay, at, eventually, soon};
use crate::upstream::Gate;
use crate::upstream::http2::{Engine, Frames, Reply, Written, frame, go_away, ok};

/// A route by pool that lets everybody in.
const RAW: &str = "[[route]]\nname = \"raw\"\npath = \"/raw/*\"\npool = \"p\"\nauth = \"none\"\n\
                   [[route]]\nname = \"v1\"\npath = \"/v1/*\"\nby = \"model\"\n";
const HTTP2: &str = "protocol = \"http2\"";

/// forebay with these engines, over HTTP/2.
fn in_front_of(engines: &[&Engine]) -> Builder {
    let addresses: Vec<_> = engines.iter().map(|engine| engine.address).collect();
    at(&addresses).pool(HTTP2).and(RAW)
}

/// forebay with one engine that only writes frames; its probes are connects.
async fn in_front_of_frames(frames: &Frames) -> Forebay {
    at(&[frames.address]).pool(HTTP2).health("path = \"\"").and(RAW).start().await
}

/// A prompt of about so many bytes.
fn large(size: usize) -> Request {
    prompt().body(format!("{{\"model\":\"m\",\"x\":\"{}\"}}", "x".repeat(size)))
}

#[tokio::test]
async fn prompts_of_every_size_reach_an_engine_whole_also_past_a_dead_one() {
    for version in VERSIONS {
        let (dead, alive) = (Engine::fine().await, Engine::fine().await);
        let forebay = in_front_of(&[&dead, &alive]).and("[pool.p.eject]\nfailures = 1000").start().await;
        dead.kill().await;
        let mut client = Client::connect(&forebay, version).await;
        for (n, size) in [0, 1, 16_000, 65_535, 65_536, 300_000, 1 << 20, 3_000_001].into_iter().enumerate() {
            let request = large(size);
            for again in 0..2 {
                let answer = client.ask(&request).await;
                assert_eq!((answer.status, answer.text()), (200, "{\"ok\":true}"), "{version:?} {size}");
                let asked = alive.asked(2 * n + again).await;
                assert_eq!(asked.body().len(), "{\"model\":\"m\",\"x\":\"\"}".len() + size, "{version:?}");
                assert_eq!(asked.header("content-length"), Some(&*asked.body().len().to_string()));
                assert_eq!(asked.head.uri.path(), "/v1/chat/completions");
            }
        }
        let attempts: Vec<u64> =
            forebay.records(16).await.iter().map(|record| record["attempts"].as_u64().unwrap()).collect();
        assert_eq!(attempts, [2, 1].repeat(8), "the dead one has every other turn, and is no more than an attempt");
        assert_eq!(alive.connections(), 1, "{version:?}");
    }
}

#[tokio::test]
async fn bodies_that_stream_reach_an_engine_whole() {
    for version in VERSIONS {
        let engine = Engine::fine().await;
        let forebay = in_front_of(&[&engine]).start().await;
        let mut client = Client::connect(&forebay, version).await;
        let mut n = 0;
        for size in [0, 1, 70_000, 1 << 20, 3_000_001] {
            for pieces in [None, Some(30_000)] {
                let body: Vec<u8> = (0..size).map(|n: usize| (n % 251) as u8).collect();
                let mut request = post("/raw/x?y=z").body(body.clone());
                if let Some(size) = pieces {
                    request = request.pieces(size);
                }
                let answer = client.ask(&request).await;
                assert_eq!(answer.status, 200, "{version:?} {size} {pieces:?} {answer:?}");
                let asked = engine.asked(n).await;
                assert!(asked.body() == body, "{version:?} {size} {pieces:?}");
                assert_eq!(asked.head.uri.path_and_query().unwrap(), "/raw/x?y=z");
                n += 1;
            }
        }
        assert_eq!(engine.connections(), 1, "{version:?}");
    }
}

#[tokio::test]
async fn an_engine_gets_a_header_as_http2_has_it() {
    for version in VERSIONS {
        for (host, authority) in [("", "forebay.test"), ("host = \"engine.internal:81\"", "engine.internal:81")] {
            let engine = Engine::fine().await;
            let forebay = in_front_of(&[&engine]).pool(&format!("{HTTP2}\n{host}")).start().await;
            let answer = Client::connect(&forebay, version).await.ask(&prompt().header("x-own", "1")).await;
            assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
            let asked = engine.asked(0).await;
            assert_eq!(asked.head.uri.authority().map(|authority| authority.as_str()), Some(authority), "{version:?}");
            for gone in ["host", "connection", "transfer-encoding", "authorization", "keep-alive"] {
                assert!(!asked.head.headers.contains_key(gone), "{version:?} {gone}");
            }
            assert_eq!((asked.header("x-own"), asked.header("x-forwarded-proto")), (Some("1"), Some("http")));
            assert_eq!(asked.header("x-forwarded-host"), Some("forebay.test"), "{version:?}");
            assert!(asked.header("via").is_some_and(|via| via.ends_with(" forebay")));
        }
    }
}

#[tokio::test]
async fn another_path_leaves_the_host_as_it_was() {
    for version in VERSIONS {
        let engine = Engine::fine().await;
        let strip = "[[route]]\nname = \"strip\"\npath = \"/strip/*\"\npool = \"p\"\nauth = \"none\"\n\
                     strip_prefix = \"/strip\"\n";
        let forebay =
            in_front_of(&[&engine]).pool(&format!("{HTTP2}\npath_prefix = \"/api\"")).and(strip).start().await;
        let answer = Client::connect(&forebay, version).await.ask(&post("/strip/x/y?z=1").body("abc")).await;
        assert_eq!(answer.status, 200, "{version:?}");
        let asked = engine.asked(0).await;
        assert_eq!(asked.head.uri.to_string(), "http://forebay.test/api/x/y?z=1", "{version:?}");
        assert_eq!((asked.header("x-forwarded-host"), &*asked.body()), (Some("forebay.test"), &b"abc"[..]));
    }
}

#[tokio::test]
async fn a_request_without_a_host_goes_to_an_engine_under_the_engines_own() {
    for (line, sent) in [
        ("GET /raw/x HTTP/1.0\r\n\r\n", None),
        ("GET /raw/x HTTP/1.1\r\nhost: \r\n\r\n", None),
        ("GET /raw/x HTTP/1.0\r\nhost: a\r\n\r\n", Some("a")),
    ] {
        let engine = Engine::fine().await;
        let forebay = in_front_of(&[&engine]).start().await;
        let mut client = Http1::connect(forebay.address).await;
        client.write(line.as_bytes()).await;
        assert_eq!(client.answer().await.status, 200, "{line}");
        let own = engine.address.to_string();
        let authority = engine.asked(0).await.head.uri.authority().map(ToString::to_string);
        assert_eq!(authority.as_deref(), Some(sent.unwrap_or(&own)), "{line}");
    }
}

#[tokio::test]
async fn events_go_on_one_by_one() {
    for version in VERSIONS {
        let gate = Gate::new();
        let reply = (0..5).fold(Reply::events(), |reply, n| reply.data(format!("data: {n}\n\n")).wait(&gate));
        let engine = Engine::always(reply.data("data: [DONE]\n\n").end()).await;
        let forebay = in_front_of(&[&engine]).start().await;
        let mut client = Client::connect(&forebay, version).await;
        let mut answer = client.send(&prompt()).await.answer().await;
        for n in 0..5 {
            assert_eq!(answer.event().await, Some(format!("data: {n}\n\n")), "{version:?}");
            gate.open();
        }
        let rest = answer.whole().await;
        assert_eq!((rest.text(), rest.complete), ("data: [DONE]\n\n", true), "{version:?}");
        assert_eq!(forebay.record().await["end"], "complete");
    }
}

#[tokio::test]
async fn many_requests_share_one_engine_connection() {
    let gate = Gate::new();
    let reply = Reply::head(200, "application/json").wait(&gate).data("{}").end();
    let engine = Engine::always(reply).await;
    let forebay = in_front_of(&[&engine]).start().await;
    gate.open();
    assert_eq!(Client::connect(&forebay, Version::H1).await.ask(&prompt()).await.status, 200);
    forebay.idle().await;
    let mut http1 = Vec::new();
    for _ in 0..25 {
        http1.push(Client::connect(&forebay, Version::H1).await);
    }
    let mut waiting = Vec::new();
    for client in &mut http1 {
        waiting.push(client.send(&prompt()).await);
    }
    let mut client = Client::connect(&forebay, Version::H2).await;
    let Client::H2(http2) = &mut client else { unreachable!() };
    for _ in 0..25 {
        waiting.push(http2.start(&prompt()).await);
    }
    eventually("all at the engine", || (engine.requests() == 51).then_some(())).await;
    assert_eq!((forebay.server(0).in_flight(), engine.connections()), (50, 1));
    (0..50).for_each(|_| gate.open());
    for pending in waiting {
        assert!(pending.answer().await.whole().await.complete);
    }
    forebay.idle().await;
}

#[tokio::test]
async fn requests_beyond_what_an_engine_lets_a_connection_have_go_over_further_ones() {
    let gate = Gate::new();
    let reply = Reply::head(200, "application/json").data("{").wait(&gate).data("}").end();
    let engine = Engine::narrow(5, reply).await;
    let forebay = in_front_of(&[&engine]).start().await;
    gate.open();
    assert_eq!(Client::connect(&forebay, Version::H1).await.ask(&prompt()).await.status, 200);
    forebay.idle().await;
    let mut client = Client::connect(&forebay, Version::H2).await;
    let Client::H2(http2) = &mut client else { unreachable!() };
    let mut answers = Vec::new();
    for n in 0..20 {
        let pending = http2.start(&prompt()).await;
        let mut answer = pending.answer().await; // none of those before has ended
        assert_eq!(answer.piece().await.unwrap().as_deref(), Some(&b"{"[..]), "{n}");
        answers.push(answer);
    }
    assert!((4..=6).contains(&engine.connections()), "{}", engine.connections());
    (0..20).for_each(|_| gate.open());
    for answer in answers {
        assert!(answer.whole().await.complete);
    }
}

#[tokio::test]
async fn an_engines_early_answer_to_a_body_it_does_not_read_reaches_the_client() {
    for version in VERSIONS {
        for request in [large(8_000_000), post("/raw/x").body("x".repeat(8_000_000)).pieces(60_000)] {
            let engine = Engine::unreading(Reply::json(413, "{\"error\":\"too large\"}")).await;
            let forebay = in_front_of(&[&engine]).start().await;
            let mut client = Client::connect(&forebay, version).await;
            let answer = client.ask_while_sending(&request).await;
            assert_eq!((answer.status, answer.text()), (413, "{\"error\":\"too large\"}"), "{version:?}");
            assert!(answer.complete, "{version:?}");
            forebay.idle().await;
            assert_eq!((engine.requests(), forebay.server(0).errors()), (1, 0), "{version:?}");
        }
    }
}

#[tokio::test]
async fn an_engine_that_takes_nothing_of_a_body_and_says_nothing_is_given_up() {
    for version in VERSIONS {
        for request in [large(2_000_000), post("/raw/x").body("x".repeat(2_000_000)).pieces(60_000)] {
            let engine = Engine::unreading(Reply::silence().stall()).await;
            // While an engine's window is shut, only the longer one of the two holds.
            let timeouts = "[pool.p.timeouts]\nfirst_byte = \"300ms\"\nidle = \"500ms\"";
            let forebay = in_front_of(&[&engine]).and(timeouts).start().await;
            let asked = Instant::now();
            let answer = Client::connect(&forebay, version).await.ask_while_sending(&request).await;
            assert_eq!((answer.status, &*answer.code()), (504, "upstream_timeout"), "{version:?}");
            assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
            forebay.idle().await;
            let record = forebay.record().await;
            assert_eq!((&record["end"], &record["attempts"]), (&"error".into(), &1.into()), "{version:?}");
        }
    }
}

#[tokio::test]
async fn answers_without_a_body_are_whole() {
    for version in VERSIONS {
        let engine = Engine::new(|asked| match (asked.head.method.as_str(), asked.head.uri.path()) {
            ("HEAD", _) => Reply::head(200, "text/plain").measured(1000).end(),
            (_, "/raw/204") => Reply::head(204, "text/plain").end(),
            (_, "/raw/304") => Reply::head(304, "text/plain").end(),
            _ => Reply::head(200, "text/plain").end(),
        })
        .await;
        let forebay = in_front_of(&[&engine]).start().await;
        let mut client = Client::connect(&forebay, version).await;
        for (method, path, status) in
            [("HEAD", "/raw/x", 200), ("GET", "/raw/204", 204), ("GET", "/raw/304", 304), ("GET", "/raw/x", 200)]
        {
            let answer = client.ask(&request(method, path)).await;
            assert_eq!((answer.status, answer.complete, answer.body.len()), (status, true, 0), "{version:?} {path}");
            let length = (method == "HEAD").then_some("1000");
            assert_eq!(answer.header("content-length"), length, "{version:?} {method} {path}");
            assert_eq!(forebay.record().await["end"], "complete");
        }
    }
}

#[tokio::test]
async fn a_stream_that_nobody_reads_holds_up_no_other_on_its_connection() {
    const MUCH: usize = 60 << 20;
    for version in VERSIONS {
        let engine = Engine::new(|asked| match asked.head.uri.path() {
            "/raw/much" => Reply::head(200, "text/plain").data(vec![b'x'; MUCH]).end(),
            _ => Reply::head(200, "text/plain").data(vec![b'y'; 5 << 20]).end(),
        })
        .await;
        let forebay = in_front_of(&[&engine]).start().await;
        let mut stalled = Vec::new();
        for _ in 0..3 {
            stalled.push(Client::connect(&forebay, version).await);
        }
        let mut held = Vec::new();
        for (n, client) in stalled.iter_mut().enumerate() {
            held.push(client.send(&post("/raw/much")).await.answer().await);
            // Until the engine can write no more: what lies in between is full.
            let asked = engine.asked(n).await;
            let mut last = (0, Instant::now());
            eventually("the engine is held", || {
                if asked.sent() != last.0 {
                    last = (asked.sent(), Instant::now());
                }
                (last.0 > 0 && last.1.elapsed() > Duration::from_millis(300)).then_some(())
            })
            .await;
            assert!(asked.sent() < MUCH / 2, "{version:?}: forebay took in {} bytes for nobody", asked.sent());
        }
        let mut client = Client::connect(&forebay, version).await;
        for _ in 0..3 {
            let answer = client.ask(&post("/raw/other")).await;
            assert_eq!((answer.complete, answer.body.len()), (true, 5 << 20), "{version:?}");
        }
        assert_eq!(engine.connections(), 1, "{version:?}");
        drop(held);
        drop(stalled);
        forebay.idle().await;
    }
}

#[tokio::test]
async fn a_stalled_stream_goes_on_when_it_is_read_again() {
    for version in VERSIONS {
        let engine = Engine::always(Reply::head(200, "text/plain").data(vec![b'x'; 40 << 20]).end()).await;
        let forebay = in_front_of(&[&engine]).start().await;
        let mut client = Client::connect(&forebay, version).await;
        let answer = client.send(&post("/raw/much")).await.answer().await;
        tokio::time::sleep(Duration::from_millis(300)).await; // the passing of time is what is tested
        let whole = answer.whole().await;
        assert_eq!((whole.complete, whole.body.len()), (true, 40 << 20), "{version:?}");
    }
}

#[tokio::test]
async fn an_engine_that_is_silent_is_given_up_in_time_and_only_its_stream() {
    for version in VERSIONS {
        let gate = Gate::new();
        let open = gate.clone();
        let engine = Engine::new(move |asked| match asked.head.uri.path() {
            "/raw/other" => Reply::head(200, "text/plain").wait(&open).data("other").end(),
            _ => Reply::silence().stall(),
        })
        .await;
        let forebay = in_front_of(&[&engine]).and("[pool.p.timeouts]\nfirst_byte = \"300ms\"").start().await;
        let mut other = Client::connect(&forebay, Version::H2).await;
        let waiting = other.send(&post("/raw/other")).await.answer().await;
        let answer = Client::connect(&forebay, version).await.ask(&prompt()).await;
        assert_eq!((answer.status, &*answer.code()), (504, "upstream_timeout"), "{version:?}");
        engine.asked(1).await.gone().await;
        gate.open();
        assert!(waiting.whole().await.complete, "{version:?}");
        assert_eq!(engine.requests(), 2);
        forebay.idle().await;
    }
}

#[tokio::test]
async fn a_stream_that_an_engine_resets_before_its_answer_goes_to_another_engine_once() {
    for version in VERSIONS {
        for reason in [Reason::INTERNAL_ERROR, Reason::CANCEL, Reason::NO_ERROR, Reason::ENHANCE_YOUR_CALM] {
            for kept in [false, true] {
                let engine = Engine::new(move |asked| match asked.head.uri.path() {
                    "/raw/fine" => Reply::json(200, "{}"),
                    _ => Reply::silence().reset(reason),
                })
                .await;
                let second = Engine::fine().await;
                let forebay = in_front_of(&[&engine, &second]).each(&["weight = 1", "backup = true"]).start().await;
                let fine = usize::from(kept);
                if kept {
                    assert_eq!(Client::connect(&forebay, version).await.ask(&post("/raw/fine")).await.status, 200);
                    forebay.idle().await;
                    forebay.record().await;
                }
                let answer = Client::connect(&forebay, version).await.ask(&prompt()).await;
                assert_eq!((answer.status, answer.text()), (200, "{\"ok\":true}"), "{version:?} {reason:?} {kept}");
                assert_eq!((engine.requests() - fine, second.requests()), (1, 1), "{version:?} {reason:?} {kept}");
                let record = forebay.record().await;
                assert_eq!((&record["attempts"], &record["end"]), (&2.into(), &"complete".into()), "{record}");
                forebay.idle().await;
            }
        }
    }
}

#[tokio::test]
async fn a_stream_that_an_engine_refuses_is_sent_once_more() {
    for version in VERSIONS {
        for (kept, refusals, status) in [(true, 1, 200), (true, 2, 502), (false, 1, 200), (false, 2, 502)] {
            let left = parking_lot::Mutex::new(refusals);
            let engine = Engine::new(move |asked| {
                let mut left = left.lock();
                if asked.head.uri.path() == "/raw/fine" || *left == 0 {
                    return Reply::json(200, "{\"ok\":true}");
                }
                *left -= 1;
                Reply::silence().reset(Reason::REFUSED_STREAM)
            })
            .await;
            let forebay = in_front_of(&[&engine]).start().await;
            if kept {
                assert_eq!(Client::connect(&forebay, version).await.ask(&post("/raw/fine")).await.status, 200);
                forebay.idle().await;
                forebay.record().await;
            }
            let request = large(200_000);
            let answer = Client::connect(&forebay, version).await.ask(&request).await;
            assert_eq!(answer.status, status, "{version:?} kept {kept} {refusals}");
            assert_eq!(engine.requests() - usize::from(kept), 2, "{version:?} kept {kept} {refusals}");
            assert_eq!(forebay.record().await["attempts"], 1);
            if status == 200 {
                assert_eq!(engine.asked(1 + usize::from(kept)).await.body().len(), 200_020);
            }
            forebay.idle().await;
        }
    }
}

#[tokio::test]
async fn a_request_that_a_going_engine_left_undone_is_sent_once_more() {
    for version in VERSIONS {
        for kept in [false, true] {
            let undone = usize::from(kept);
            let engine = Frames::new(move |n, stream| {
                if n == undone {
                    // What came before is done, this is not.
                    Written(go_away(stream.saturating_sub(2), Reason::NO_ERROR), true)
                } else {
                    Written([ok(stream, false), frame(0, 1, stream, b"{}")].concat(), false)
                }
            })
            .await;
            let forebay = in_front_of_frames(&engine).await;
            let mut client = Client::connect(&forebay, version).await;
            for n in 0..undone + 1 {
                let answer = client.ask(&prompt()).await;
                assert_eq!((answer.status, answer.text()), (200, "{}"), "{version:?} kept {kept} {n}");
                forebay.idle().await;
                assert_eq!(forebay.record().await["attempts"], 1);
            }
            assert_eq!(engine.requests(), undone + 2, "{version:?} kept {kept}");
        }
    }
}

#[tokio::test]
async fn a_connection_that_dies_under_a_request_is_no_success() {
    for version in VERSIONS {
        let engine = Frames::new(|_, _| Written(vec![], true)).await;
        let forebay = in_front_of_frames(&engine).await;
        let answer = Client::connect(&forebay, version).await.ask(&prompt()).await;
        assert_eq!((answer.status, &*answer.code()), (502, "upstream_unavailable"), "{version:?}");
        assert_eq!(engine.requests(), 1, "{version:?}: it was new, and may have taken the request");
        forebay.idle().await;
    }
}

#[tokio::test]
async fn a_kept_connection_that_dies_under_a_request_is_no_attempt() {
    for version in VERSIONS {
        let engine = Frames::new(|n, stream| match n {
            1 => Written(vec![], true),
            _ => Written([ok(stream, false), frame(0, 1, stream, b"{}")].concat(), false),
        })
        .await;
        let forebay = in_front_of_frames(&engine).await;
        let mut client = Client::connect(&forebay, version).await;
        for n in 0..3 {
            assert_eq!(client.ask(&large(1000)).await.status, 200, "{version:?} {n}");
            forebay.idle().await;
            assert_eq!(forebay.record().await["attempts"], 1);
        }
        assert_eq!((engine.requests(), forebay.server(0).errors()), (4, 0), "{version:?}");
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_looks_broken() {
    let events = || Reply::events().data("data: {\"n\":1}\n\n");
    let json = || Reply::head(200, "application/json");
    for version in VERSIONS {
        for (name, path, reply) in [
            ("the connection, a stream", "/v1/chat/completions", events().breaks()),
            ("the stream, a stream", "/v1/chat/completions", events().reset(Reason::INTERNAL_ERROR)),
            ("the stream without an error, a stream", "/v1/chat/completions", events().reset(Reason::NO_ERROR)),
            ("a clean end without its event", "/v1/chat/completions", events().end()),
            ("the connection, a length", "/v1/embeddings", json().measured(100).data("{\"half\":").breaks()),
            ("the stream, a length", "/v1/embeddings", json().measured(100).data("{\"half\":").reset(Reason::CANCEL)),
            ("the connection, no length", "/v1/embeddings", json().data("{\"half\":").breaks()),
            ("the stream, no length", "/v1/embeddings", json().data("{\"half\":").reset(Reason::INTERNAL_ERROR)),
            ("no error, no length", "/v1/embeddings", json().data("{\"half\":").reset(Reason::NO_ERROR)),
            ("a clean end, a length", "/v1/embeddings", json().measured(100).data("{\"half\":").end()),
        ] {
            let engine = Engine::always(reply).await;
            let forebay = in_front_of(&[&engine]).start().await;
            let answer = Client::connect(&forebay, version).await.ask(&prompt().to(path)).await;
            assert_eq!((answer.status, answer.complete), (200, false), "{version:?} {name}: {answer:?}");
            if path == "/v1/chat/completions" {
                let text = answer.text();
                assert!(text.contains("event: error\ndata: {\"error\":") && !text.contains("[DONE]"), "{name}: {text}");
            }
            let record = forebay.record().await;
            assert_eq!((&record["end"], &record["attempts"]), (&"upstream_truncated".into(), &1.into()), "{record}");
            assert_eq!(engine.requests(), 1, "{version:?} {name}");
            forebay.idle().await;
        }
    }
}

#[tokio::test]
async fn a_connection_that_dies_breaks_all_its_streams_and_the_next_request_has_a_new_one() {
    let engine = Engine::new(|asked| match asked.head.uri.path() {
        "/raw/fine" => Reply::json(200, "{}"),
        _ => Reply::events().data("data: 1\n\n").stall(),
    })
    .await;
    let forebay = in_front_of(&[&engine]).start().await;
    let mut clients = Vec::new();
    for n in 0..6 {
        clients.push(Client::connect(&forebay, VERSIONS[n % 2]).await);
    }
    let mut answers = Vec::new();
    for client in &mut clients {
        let mut answer = client.send(&prompt()).await.answer().await;
        assert_eq!(answer.event().await.as_deref(), Some("data: 1\n\n"));
        answers.push(answer);
    }
    assert_eq!(engine.connections(), 1);
    engine.cut();
    for answer in answers {
        let whole = answer.whole().await;
        assert!(!whole.complete && whole.text().starts_with("event: error\n"), "{whole:?}");
    }
    forebay.idle().await;
    for version in VERSIONS {
        assert_eq!(Client::connect(&forebay, version).await.ask(&post("/raw/fine")).await.status, 200);
    }
}

#[tokio::test]
async fn an_engine_that_goes_away_finishes_its_streams_and_gets_the_next_request_on_a_new_connection() {
    for version in VERSIONS {
        for streaming in [false, true] {
            let gate = Gate::new();
            let open = gate.clone();
            let engine = Engine::new(move |asked| match asked.head.uri.path() {
                "/raw/fine" => Reply::json(200, "{}"),
                _ => Reply::events().data("data: 1\n\n").wait(&open).data("data: [DONE]\n\n").end(),
            })
            .await;
            let forebay = in_front_of(&[&engine]).start().await;
            let mut client = Client::connect(&forebay, version).await;
            let mut other = Client::connect(&forebay, version).await;
            let held = if streaming {
                let mut answer = other.send(&prompt()).await.answer().await;
                assert_eq!(answer.event().await.as_deref(), Some("data: 1\n\n"));
                Some(answer)
            } else {
                None
            };
            assert_eq!(client.ask(&post("/raw/fine")).await.status, 200);
            forebay.idle_but(u32::from(streaming)).await;
            assert_eq!(engine.connections(), 1);
            for n in 0..5 {
                engine.go_away();
                let answer = client.ask(&post("/raw/fine")).await;
                assert_eq!(answer.status, 200, "{version:?} streaming {streaming} {n}: {answer:?}");
                forebay.idle_but(u32::from(streaming)).await;
            }
            assert!(engine.connections() > 1, "{version:?} streaming {streaming}");
            if let Some(answer) = held {
                gate.open();
                let whole = answer.whole().await;
                assert_eq!((whole.text(), whole.complete), ("data: [DONE]\n\n", true), "{version:?}");
            }
            assert_eq!(forebay.server(0).errors(), 0, "{version:?}");
        }
    }
}

#[tokio::test]
async fn probes_speak_http2_and_decide() {
    let engine = Engine::fine().await;
    let http1 = crate::upstream::Engine::fine().await;
    let forebay = at(&[engine.address, http1.address])
        .pool(HTTP2)
        .health("interval = \"20ms\"\nrise = 2\nfall = 2\ntimeout = \"500ms\"")
        .start()
        .await;
    for healthy in [true, false, true] {
        engine.be_healthy(healthy);
        eventually("its probes count", || (forebay.server(0).is_up() == healthy).then_some(())).await;
    }
    assert!(!forebay.server(1).is_up(), "it speaks HTTP/1.1 only");
    assert_eq!(Client::connect(&forebay, Version::H1).await.ask(&prompt()).await.status, 200);
    assert_eq!(forebay.record().await["server"], "s0");
}

#[tokio::test]
async fn fields_after_the_body_reach_an_http2_client() {
    let reply = Reply::head(200, "application/x").data("body").trailers(&[("x-sum", "42")]);
    let engine = Engine::always(reply).await;
    let forebay = in_front_of(&[&engine]).start().await;
    for version in VERSIONS {
        let mut client = Client::connect(&forebay, version).await;
        let answer = client.send(&post("/raw/x")).await.answer().await;
        let (whole, trailers) = soon("an answer with trailers", answer.with_trailers()).await;
        assert_eq!((whole.text(), whole.complete), ("body", true), "{version:?}");
        let sum = trailers.get("x-sum").map(|value| value.to_str().unwrap());
        assert_eq!(sum, (version == Version::H2).then_some("42"), "Pingora 0.9.1 sends none over HTTP/1.1");
    }
}

#[tokio::test]
async fn that_trailers_are_welcome_goes_on_where_they_can_come_back() {
    let http2 = Engine::fine().await;
    let http1 = crate::upstream::Engine::fine().await;
    let forebay = in_front_of(&[&http2])
        .and(&crate::harness::pool("q", &http1, ""))
        .and("[[route]]\nname = \"q\"\npath = \"/q/*\"\npool = \"q\"\nauth = \"none\"\n")
        .start()
        .await;
    for (version, sent, gets) in
        [(Version::H2, "trailers", Some("trailers")), (Version::H1, "trailers", None), (Version::H1, "gzip", None)]
    {
        let mut client = Client::connect(&forebay, version).await;
        let before = (http2.requests(), http1.requests());
        assert_eq!(client.ask(&post("/raw/x").header("te", sent)).await.status, 200);
        assert_eq!(http2.asked(before.0).await.header("te"), gets, "{version:?} {sent}");
        assert_eq!(client.ask(&post("/q/x").header("te", sent)).await.status, 200);
        assert_eq!(http1.asked(before.1).await.header("te"), None, "{version:?} {sent}");
    }
}

#[tokio::test]
async fn both_sides_of_a_stream_may_talk_at_once() {
    let gate = Gate::new();
    let reply = Reply::head(200, "application/x").data("hello").wait(&gate).data("bye").end();
    let engine = Engine::hasty(move |_| reply.clone()).await;
    let forebay = in_front_of(&[&engine]).start().await;
    let mut client = Client::connect(&forebay, Version::H2).await;
    let mut answer = client.begin(&post("/raw/x").pieces(1)).await.answer().await;
    assert_eq!(answer.piece().await.unwrap().as_deref(), Some(&b"hello"[..]));
    let asked = engine.begun(0).await;
    for n in 1..=20 {
        answer.pour(Bytes::from_static(b"ping"), false).await;
        eventually("it arrives while an answer is under way", || (asked.body().len() == 4 * n).then_some(())).await;
    }
    answer.pour(Bytes::new(), true).await;
    gate.open();
    let whole = answer.whole().await;
    assert_eq!((whole.text(), whole.complete), ("bye", true));
}
