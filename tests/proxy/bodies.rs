//! Request bodies: whole, of any size and framing, again on each attempt; or refused so that the client sees why.

use bytes::Bytes;

use crate::client::{Client, Http1, Pending, VERSIONS, Version, prompt};
use crate::harness::{SECRET, in_front_of};
use crate::upstream::{Engine, Reply};

/// A prompt of this many bytes, no two stretches of which are alike.
fn of_size(size: usize) -> Bytes {
    let (start, end) = ("{\"model\":\"m\",\"prompt\":\"", "\"}");
    let mut body = Vec::with_capacity(size);
    body.extend_from_slice(start.as_bytes());
    let mut state = size as u64;
    while body.len() < size - end.len() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        body.push(b'a' + (state >> 33) as u8 % 26);
    }
    body.extend_from_slice(end.as_bytes());
    Bytes::from(body)
}

#[tokio::test]
async fn thirty_megabytes_without_a_length_arrive_byte_for_byte() {
    let engine = Engine::fine().await;
    let forebay = in_front_of(&[&engine]).start().await;
    let body = of_size(30_000_000);
    for (n, version) in VERSIONS.into_iter().enumerate() {
        let mut client = Client::connect(&forebay, version).await;
        let answer = client.ask(&prompt().body(body.clone()).pieces(100_003)).await;
        assert_eq!(answer.status, 200, "{version:?} {answer:?}");
        assert!(engine.asked(n).await.body() == body, "{version:?}: the body is another one");
        let record = forebay.record().await;
        assert_eq!((&record["bytes_in"], &record["attempts"]), (&30_000_000.into(), &1.into()), "{record}");
    }
}

#[tokio::test]
async fn a_large_body_goes_whole_to_the_next_server_when_the_first_is_dead() {
    for version in VERSIONS {
        let (dead, alive) = (Engine::fine().await, Engine::fine().await);
        let forebay = in_front_of(&[&dead, &alive]).start().await;
        dead.kill().await;
        let body = of_size(30_000_000);
        let mut client = Client::connect(&forebay, version).await;
        let answer = client.ask(&prompt().body(body.clone()).pieces(65_536)).await;
        assert_eq!(answer.status, 200, "{version:?} {answer:?}");
        assert!(alive.asked(0).await.body() == body, "{version:?}: the body is another one");
        let record = forebay.record().await;
        assert_eq!((&record["attempts"], &record["server"]), (&2.into(), &"s1".into()), "{record}");
        assert_eq!((forebay.server(0).errors(), forebay.server(1).errors()), (1, 0));
        forebay.idle().await;
    }
}

#[tokio::test]
async fn bodies_of_any_length_arrive_with_their_length() {
    let engine = Engine::fine().await;
    let forebay = in_front_of(&[&engine]).start().await;
    let sizes = [32, 100, 65_535, 65_536, 65_537, 1_000_000];
    let mut n = 0;
    for version in VERSIONS {
        let mut client = Client::connect(&forebay, version).await;
        for size in sizes {
            for request in [prompt().body(of_size(size)), prompt().body(of_size(size)).pieces(1000)] {
                let answer = client.ask(&request).await;
                assert_eq!(answer.status, 200, "{version:?} {size} {answer:?}");
                let asked = engine.asked(n).await;
                assert!(asked.body() == of_size(size), "{version:?} {size}: the body is another one");
                assert_eq!(asked.header("content-length"), Some(&*size.to_string()), "{version:?}");
                assert_eq!(asked.header("transfer-encoding"), None, "{version:?}");
                n += 1;
            }
        }
    }
}

#[tokio::test]
async fn empty_and_tiny_bodies_are_no_prompts_and_keep_the_connection() {
    let engine = Engine::fine().await;
    let forebay = in_front_of(&[&engine]).start().await;
    for version in VERSIONS {
        let mut client = Client::connect(&forebay, version).await;
        for body in ["", "1", "{", "{}"] {
            for request in [prompt().body(body), prompt().body(body).pieces(1)] {
                let answer = client.ask(&request).await;
                let code = if body == "{}" { "missing_model" } else { "invalid_json" };
                assert_eq!((answer.status, &*answer.code()), (400, code), "{version:?} {body:?}");
            }
        }
        assert_eq!(client.ask(&prompt()).await.status, 200, "{version:?}");
    }
    assert_eq!(engine.requests(), 2);
}

#[tokio::test]
async fn a_client_that_sends_too_much_sees_that() {
    let engine = Engine::fine().await;
    let forebay = in_front_of(&[&engine]).server("max_body = \"1MiB\"").start().await;
    for version in VERSIONS {
        for size in [(1 << 20) + 1, 5 << 20] {
            for request in [prompt().body(of_size(size)), prompt().body(of_size(size)).pieces(50_000)] {
                let mut client = Client::connect(&forebay, version).await;
                let answer = client.ask(&request).await; // all of it is sent before anything is read
                assert_eq!((answer.status, &*answer.code()), (413, "request_too_large"), "{version:?} {size}");
                assert!(answer.complete);
                let record = forebay.record().await;
                assert_eq!((&record["status"], &record["end"]), (&413.into(), &"complete".into()), "{record}");
            }
        }
        let exactly = prompt().body(of_size(1 << 20));
        assert_eq!(Client::connect(&forebay, version).await.ask(&exactly).await.status, 200);
        forebay.record().await;
    }
    assert_eq!(engine.requests(), 2);
}

#[tokio::test]
async fn a_declared_length_beyond_the_limit_is_refused_before_the_body_comes() {
    let engine = Engine::fine().await;
    let forebay = in_front_of(&[&engine]).server("max_body = \"1MiB\"").start().await;
    for version in VERSIONS {
        let mut client = Client::connect(&forebay, version).await;
        let request = prompt().body("").pieces(1).header("x-h1", "no");
        let answer = match version {
            Version::H1 => {
                let Client::H1(http1) = &mut client else { unreachable!() };
                let head = format!("POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {SECRET}\r\n");
                http1.write(format!("{head}content-length: 2000000\r\n\r\n").as_bytes()).await;
                http1.answer().await.whole().await
            }
            Version::H2 => {
                let request = request.header("content-length", "2000000");
                client.begin(&request).await.answer().await.whole().await
            }
        };
        assert_eq!((answer.status, &*answer.code()), (413, "request_too_large"), "{version:?}");
    }
}

#[tokio::test]
async fn a_body_that_stops_coming_is_given_up() {
    let engine = Engine::fine().await;
    let forebay = in_front_of(&[&engine]).server("body_timeout = \"200ms\"").start().await;
    for version in VERSIONS {
        let mut client = Client::connect(&forebay, version).await;
        let mut pending = client.begin(&prompt().body("").pieces(1)).await;
        assert!(pending.pour("{\"model\":".into(), false).await);
        let answer = pending.answer().await.whole().await;
        assert_eq!((answer.status, &*answer.code()), (408, "request_timeout"), "{version:?}");
        assert!(answer.complete, "{version:?}");
        if version == Version::H1 {
            assert_eq!(answer.header("connection"), Some("close"));
        }
        let record = forebay.record().await;
        assert_eq!((&record["status"], &record["code"]), (&408.into(), &"request_timeout".into()), "{record}");
    }
    assert_eq!(engine.requests(), 0);
}

#[tokio::test]
async fn a_body_may_take_long_as_long_as_it_moves() {
    let engine = Engine::fine().await;
    let forebay = in_front_of(&[&engine]).server("body_timeout = \"400ms\"").start().await;
    for version in VERSIONS {
        let mut client = Client::connect(&forebay, version).await;
        let mut pending = client.begin(&prompt().body("").pieces(1)).await;
        for byte in b"{\"model\"" {
            // The passing of time is what is tested.
            tokio::time::sleep(std::time::Duration::from_millis(80)).await;
            assert!(pending.pour(Bytes::copy_from_slice(&[*byte]), false).await);
        }
        assert!(pending.pour(":\"m\"}".into(), true).await);
        assert_eq!(pending.answer().await.status, 200, "{version:?}");
    }
}

#[tokio::test]
async fn a_client_that_asks_first_is_told_to_go_on() {
    let engine = Engine::fine().await;
    let forebay = in_front_of(&[&engine]).start().await;
    for version in VERSIONS {
        let mut client = Client::connect(&forebay, version).await;
        let request = prompt().body("").pieces(1).header("expect", "100-continue");
        let mut pending = client.begin(&request).await;
        if let Pending::H1(http1, _) = &mut pending {
            assert_eq!(http1.interim().await, 100);
        }
        assert!(pending.pour("{\"model\":\"m\"}".into(), true).await);
        let answer = pending.answer().await.whole().await;
        assert_eq!((answer.status, answer.text()), (200, "{\"ok\":true}"), "{version:?}");
        let n = if version == Version::H1 { 0 } else { 1 };
        let asked = engine.asked(n).await;
        assert_eq!((asked.header("expect"), &*asked.body()), (None, &b"{\"model\":\"m\"}"[..]), "{version:?}");
    }
}

#[tokio::test]
async fn a_client_that_asks_first_and_may_not_is_refused_at_once() {
    let engine = Engine::fine().await;
    let forebay = in_front_of(&[&engine]).server("max_body = \"1MiB\"").start().await;
    for (key, length, status) in [("wrong", 13, 401), (SECRET, 2_000_000, 413)] {
        let mut client = Http1::connect(forebay.address).await;
        let head = format!("POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n");
        client.write(format!("{head}expect: 100-continue\r\ncontent-length: {length}\r\n\r\n").as_bytes()).await;
        let answer = client.answer().await;
        assert_eq!((answer.status, &*answer.informational), (status, &[][..]));
        assert!(answer.whole().await.complete);
    }
}

#[tokio::test]
async fn a_renamed_model_changes_its_name_and_nothing_else() {
    let engine = Engine::fine().await;
    let renamed = "[model.\"public-*\"]\npool = \"p\"\nupstream = \"org/\\\"engine\\\" name\"";
    let forebay = in_front_of(&[&engine]).and(renamed).start().await;
    let (before, after) =
        ("{ \"a\" : [1.0e5,\"model\",{\"model\":\"no\"}],\n\"mod\\u0065l\"\t: ", " , \"z\":null }\r\n");
    let mut n = 0;
    for version in VERSIONS {
        let mut client = Client::connect(&forebay, version).await;
        for (asked, got) in
            [("\"public-1\"", "\"org/\\\"engine\\\" name\""), ("\"m\"", "\"m\""), ("\"\\u006d\"", "\"\\u006d\"")]
        {
            let body = format!("{before}{asked}{after}");
            for request in [prompt().body(body.clone()), prompt().body(body).pieces(7)] {
                let answer = client.ask(&request).await;
                assert_eq!(answer.status, 200, "{answer:?}");
                let at_engine = engine.asked(n).await;
                let expected = format!("{before}{got}{after}");
                assert_eq!(at_engine.body(), expected);
                assert_eq!(at_engine.header("content-length"), Some(&*expected.len().to_string()));
                n += 1;
            }
        }
    }
}

#[tokio::test]
async fn a_broken_chunk_of_the_client_reaches_no_engine() {
    let engine = Engine::fine().await;
    let forebay = in_front_of(&[&engine]).start().await;
    for broken in ["zz\r\n{\"model\":\"m\"}\r\n0\r\n\r\n", "5\r\n{\"model\":\"m\"}\r\n0\r\n\r\n", "-1\r\n\r\n"] {
        let mut client = Http1::connect(forebay.address).await;
        let head = format!("POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {SECRET}\r\n");
        client.write(format!("{head}transfer-encoding: chunked\r\n\r\n{broken}").as_bytes()).await;
        let answer = client.answer().await.whole().await;
        assert_eq!((answer.status, &*answer.code()), (400, "malformed_request"), "{broken}");
        assert_eq!((answer.header("connection"), &forebay.record().await["end"]), (Some("close"), &"complete".into()));
    }
    assert_eq!(engine.requests(), 0);
}

#[tokio::test]
async fn an_engine_that_answers_before_it_has_the_body_is_heard() {
    let refusal = "{\"error\":{\"message\":\"too long for me\"}}";
    let engine = Engine::hasty(move |_| Reply::json(413, refusal)).await;
    let forebay = in_front_of(&[&engine]).start().await;
    for version in VERSIONS {
        let mut client = Client::connect(&forebay, version).await;
        let answer = client.ask(&prompt().body(of_size(3_000_000))).await;
        assert_eq!((answer.status, answer.text(), answer.complete), (413, refusal, true), "{version:?}");
        forebay.idle().await;
    }
}
