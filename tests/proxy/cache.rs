//! The prompt cache: what is asked again is answered again, what is asked at once is computed once, and nothing else changes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crate::client::{Client, Http1, Http2, Leaving, Request, VERSIONS, Version, WAYS, Whole, post};
use crate::harness::{Builder, Forebay, SECRET, at, eventually, in_front_of, key};
use crate::upstream::{Engine, Gate, Reply, http2};

const OTHER: &str = "fb-another-secret";

/// A prompt that may be kept, with these members.
fn prompt(members: &str) -> Request {
    post("/v1/chat/completions").key(SECRET).body(format!("{{\"model\":\"c\",\"temperature\":0{members}}}"))
}

/// Model `c` with a cache, before these engines.
fn cached(builder: Builder) -> Builder {
    cached_with(builder, "ttl = \"1h\"")
}

fn cached_with(builder: Builder, terms: &str) -> Builder {
    builder.and(&format!("[model.c]\npool = \"p\"\n[model.c.cache]\n{terms}")).and(&key(
        "other",
        OTHER,
        "models = [\"*\"]",
    ))
}

fn events(n: usize) -> Reply {
    let reply = (0..n).fold(Reply::events(), |reply, n| reply.chunk(&format!("data: {{\"n\":{n}}}\n\n")));
    reply.chunk("data: [DONE]\n\n").last()
}

/// What the cache did, by the answer.
fn did(answer: &Whole) -> &str {
    answer.header("x-forebay-cache").unwrap_or("nothing")
}

#[tokio::test]
async fn what_is_asked_again_is_answered_again_byte_for_byte() {
    for version in VERSIONS {
        for reply in [Reply::json(200, "{\"answer\":42}"), events(3)] {
            let engine = Engine::always(reply).await;
            let forebay = cached(in_front_of(&[&engine])).start().await;
            let mut client = Client::connect(&forebay, version).await;
            let first = client.ask(&prompt(",\"stream\":true")).await;
            assert_eq!((first.status, did(&first), first.complete), (200, "MISS", true), "{}", first.text());
            // White space, order and escapes do not matter.
            let same = post("/v1/chat/completions")
                .key(SECRET)
                .body("{\"stream\": true, \"temper\\u0061ture\":0,\"model\":\"c\"} ");
            for request in [prompt(",\"stream\":true"), same] {
                let again = client.ask(&request).await;
                assert_eq!((again.status, did(&again), again.complete), (200, "HIT", true));
                assert_eq!(again.body, first.body);
                assert_eq!(again.header("content-type"), first.header("content-type"));
                assert!(again.header("age").is_some_and(|age| age.parse::<u64>().is_ok()));
                assert_ne!(again.header("x-request-id"), first.header("x-request-id"));
            }
            let other = client.ask(&prompt(",\"stream\":true,\"user\":\"x\"")).await;
            assert_eq!((did(&other), engine.requests()), ("MISS", 2));
            let records = forebay.records(4).await;
            let cache: Vec<&str> = records.iter().map(|record| record["cache"].as_str().unwrap()).collect();
            assert_eq!(cache, ["miss", "hit", "hit", "miss"]);
            let attempts: Vec<u64> = records.iter().map(|record| record["attempts"].as_u64().unwrap()).collect();
            assert_eq!(attempts, [1, 0, 0, 1], "{records:?}");
            assert_eq!(forebay.outcomes(), "s0 answered 2");
            forebay.idle().await;
        }
    }
}

#[tokio::test]
async fn the_same_holds_for_engines_that_speak_http2() {
    let engine = http2::Engine::fine().await;
    let forebay = cached(at(&[engine.address])).pool("protocol = \"http2\"").start().await;
    for version in VERSIONS {
        let mut client = Client::connect(&forebay, version).await;
        let first = client.ask(&prompt("")).await;
        assert_eq!(first.status, 200, "{}", first.text());
        let again = client.ask(&prompt("")).await;
        assert_eq!((did(&again), &again.body), ("HIT", &first.body));
    }
    assert_eq!(engine.requests(), 1);
}

/// Asks the same `n` times at once, half of them over HTTP/2.
async fn crowd(forebay: &Forebay, n: usize) -> Vec<(Client, Request)> {
    let mut clients = Vec::new();
    for n in 0..n {
        let client = Client::connect(forebay, VERSIONS[n % 2]).await;
        clients.push((client, prompt(",\"stream\":true")));
    }
    clients
}

#[tokio::test]
async fn what_is_asked_at_once_is_computed_once_and_all_have_the_same_at_the_same_time() {
    let gate = Gate::new();
    let events = Reply::events().wait(&gate).chunk("data: 1\n\n");
    let reply = events.wait(&gate).chunk("data: 2\n\ndata: [DONE]\n\n").last();
    let engine = Engine::always(reply).await;
    let forebay = cached(in_front_of(&[&engine])).start().await;
    let mut clients = crowd(&forebay, 200).await;
    let asks = clients.iter_mut().map(|(client, request)| async move { client.send(request).await.answer().await });
    let answers = futures::future::join_all(asks).await;
    gate.open();
    let first_events = answers.into_iter().map(|mut answer| async move {
        assert_eq!(answer.event().await.as_deref(), Some("data: 1\n\n"));
        (Instant::now(), answer)
    });
    let (mut came, answers): (Vec<Instant>, Vec<_>) = futures::future::join_all(first_events).await.into_iter().unzip();
    came.sort_unstable();
    let (median, last) = (came[100] - came[0], came[199] - came[0]);
    println!("the first event came to the median client {median:?} after the first, to the last {last:?}");
    assert!(median < Duration::from_millis(250), "{median:?}");
    gate.open();
    let mut did_what = Vec::new();
    for answer in answers {
        let whole = answer.whole().await;
        assert!(whole.complete && whole.text().ends_with("data: 2\n\ndata: [DONE]\n\n"), "{}", whole.text());
        did_what.push(did(&whole).to_owned());
    }
    did_what.sort();
    assert_eq!(did_what, [vec!["COALESCED"; 199], vec!["MISS"]].concat());
    assert_eq!(engine.requests(), 1);
    forebay.idle().await;
    assert_eq!(forebay.outcomes(), "s0 answered 1");
}

#[tokio::test]
async fn whoever_asked_first_may_leave_and_the_last_one_to_leave_frees_the_engine() {
    for begun in [false, true] {
        for (version, how) in WAYS {
            let gate = Gate::new();
            let reply = if begun { Reply::events().chunk("data: 1\n\n") } else { Reply::raw("") };
            let engine = Engine::always(reply.wait(&gate).stall()).await;
            let forebay = cached(in_front_of(&[&engine])).start().await;
            let mut clients = [Client::connect(&forebay, version).await, Client::connect(&forebay, version).await];
            let [one, two] = &mut clients;
            let first = one.send(&prompt(",\"stream\":true")).await;
            let asked = engine.asked(0).await;
            let second = two.send(&prompt(",\"stream\":true")).await;
            if begun {
                let (mut first, mut second) = (first.answer().await, second.answer().await);
                assert_eq!(first.event().await, second.event().await);
                first.leave(how);
                forebay.record().await;
                assert_eq!((engine.requests(), forebay.server(0).in_flight()), (1, 1));
                let left = Instant::now();
                second.leave(how);
                let after = asked.gone().await.saturating_duration_since(left);
                assert!(after < Duration::from_millis(100), "{after:?}");
            } else {
                first.leave(how);
                assert_eq!(forebay.record().await["end"], "client_gone");
                assert_eq!((engine.requests(), forebay.server(0).in_flight()), (1, 1));
                let left = Instant::now();
                second.leave(how);
                let after = asked.gone().await.saturating_duration_since(left);
                assert!(after < Duration::from_millis(100), "{after:?}");
            }
            forebay.idle().await;
            assert_eq!(forebay.outcomes(), "s0 cancelled 1");
        }
    }
}

#[tokio::test]
async fn an_engine_that_dies_in_mid_stream_breaks_the_stream_of_all_and_nothing_is_kept() {
    let gate = Gate::new();
    let engine = Engine::always(Reply::events().chunk("data: 1\n\n").wait(&gate).reset()).await;
    let forebay = cached(in_front_of(&[&engine])).start().await;
    let mut clients = crowd(&forebay, 10).await;
    let asks = clients.iter_mut().map(|(client, request)| async move { client.send(request).await.answer().await });
    let answers = futures::future::join_all(asks).await;
    gate.open();
    for answer in answers {
        let whole = answer.whole().await;
        assert!(!whole.complete && whole.text().starts_with("data: 1\n\n"), "{}", whole.text());
        assert_eq!(whole.text().matches("event: error").count(), 1, "{}", whole.text());
    }
    for record in forebay.records(10).await {
        assert_eq!(record["end"], "upstream_truncated", "{record}");
    }
    let mut client = Client::connect(&forebay, Version::H1).await;
    gate.open();
    let again = client.ask(&prompt(",\"stream\":true")).await;
    assert_eq!((did(&again), engine.requests()), ("MISS", 2));
}

#[tokio::test]
async fn where_the_first_server_fails_all_have_the_answer_of_the_second() {
    for first in [Reply::json(503, "{}"), Reply::silence().reset()] {
        let (bad, fine) = (Engine::always(first).await, Engine::fine().await);
        let forebay = cached(in_front_of(&[&bad, &fine])).start().await;
        let mut clients = crowd(&forebay, 8).await;
        let asks = clients.iter_mut().map(|(client, request)| async move { client.ask(request).await });
        for whole in futures::future::join_all(asks).await {
            assert_eq!((whole.status, whole.text()), (200, "{\"ok\":true}"));
        }
        assert_eq!((bad.requests(), fine.requests()), (1, 1));
    }
}

#[tokio::test]
async fn where_no_engine_answers_all_are_told_and_recorded_as_without_a_cache() {
    for refuses in [true, false] {
        let engine = Engine::always(Reply::silence().reset()).await;
        let forebay = cached(in_front_of(&[&engine])).health("interval = \"1h\"").start().await;
        if refuses {
            engine.kill().await;
        }
        let mut clients = crowd(&forebay, 4).await;
        let asks = clients.iter_mut().map(|(client, request)| async move { client.ask(request).await });
        for whole in futures::future::join_all(asks).await {
            assert_eq!((whole.status, whole.code()), (502, "upstream_unavailable".into()));
        }
        for record in forebay.records(4).await {
            let (end, code) = (&record["end"], &record["code"]);
            assert_eq!((end, code), (&"error".into(), &"upstream_unavailable".into()), "{record}");
        }
        forebay.idle().await;
    }
}

#[tokio::test]
async fn what_failed_was_cut_or_is_too_large_is_never_kept() {
    let large = format!("{{\"x\":\"{}\"}}", "x".repeat(70_000));
    for (what, reply, status) in [
        ("an error", Reply::json(500, "{}"), 500),
        ("a refusal", Reply::json(404, "{}"), 404),
        (
            "a stream with an error",
            Reply::events().chunk("event: error\ndata: {}\n\n").chunk("data: [DONE]\n\n").last(),
            200,
        ),
        ("a cut stream", Reply::events().chunk("data: 1\n\n").last(), 200),
        ("a cut body", Reply::raw("HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{").close(), 200),
        ("a body that ends with its connection", Reply::raw("HTTP/1.1 200 OK\r\n\r\n{}").close(), 200),
        ("what is too large", Reply::json(200, &large), 200),
    ] {
        for version in VERSIONS {
            let engine = Engine::always(reply.clone()).await;
            let small = "[cache]\nmemory = \"1MiB\"\nmax_body = \"64KiB\"";
            let forebay = cached(in_front_of(&[&engine])).and(small).start().await;
            for n in 1..=2 {
                let mut client = Client::connect(&forebay, version).await;
                let answer = client.ask(&prompt("")).await;
                assert_eq!((answer.status, did(&answer)), (status, "MISS"), "{what} {version:?}");
                assert_eq!(engine.requests(), n, "{what} {version:?}");
            }
            assert_eq!(forebay.current.cached().entries, 0);
            forebay.idle().await;
        }
    }
}

#[tokio::test]
async fn a_client_says_what_the_cache_may_do() {
    let status = Arc::new(AtomicU16::new(200));
    let answers = status.clone();
    let engine = Engine::new(move |_| Reply::json(answers.load(SeqCst), "{}")).await;
    let forebay = cached(in_front_of(&[&engine])).start().await;
    for version in VERSIONS {
        let mut client = Client::connect(&forebay, version).await;
        forebay.current.purge(None);
        let before = engine.requests();
        let with = |directive: &str| prompt("").header("cache-control", directive);
        for (request, status, what, asked) in [
            (with("only-if-cached"), 504, "nothing", 0),
            (with("no-store"), 200, "BYPASS", 1),
            (with("only-if-cached"), 504, "nothing", 1),
            (prompt(""), 200, "MISS", 2),
            (with("only-if-cached"), 200, "HIT", 2),
            (with("no-store"), 200, "BYPASS", 3),
            (with("no-cache"), 200, "MISS", 4),
            (prompt(""), 200, "HIT", 4),
            (prompt("").header("if-none-match", "*").header("range", "bytes=0-0"), 200, "HIT", 4),
            (prompt(",\"temperature\":0"), 200, "BYPASS", 5),
            (post("/v1/chat/completions").key(SECRET).body("{\"model\":\"c\"}"), 200, "BYPASS", 6),
            (post("/v1/embeddings").key(SECRET).body("{\"model\":\"c\"}"), 200, "MISS", 7),
            (post("/v1/embeddings").key(SECRET).body("{\"model\":\"c\"}"), 200, "HIT", 7),
            (post("/v1/chat/completions").key(SECRET).body("{\"model\":\"m\",\"seed\":1}"), 200, "nothing", 8),
        ] {
            let answer = client.ask(&request).await;
            assert_eq!((answer.status, did(&answer)), (status, what), "{version:?} {request:?}");
            assert_eq!(engine.requests() - before, asked, "{version:?} {request:?}");
            if status == 504 {
                assert_eq!(answer.code(), "not_cached");
            }
        }
    }
}

#[tokio::test]
async fn where_no_models_answers_are_kept_the_cache_takes_no_memory() {
    let engine = Engine::fine().await;
    let without = in_front_of(&[&engine]).start().await;
    assert!(without.current.store().is_none());
    assert!(cached(in_front_of(&[&engine])).start().await.current.store().is_some());
}

#[tokio::test]
async fn two_keys_share_only_where_the_model_says_so() {
    for (terms, what) in [("", "MISS"), ("scope = \"shared\"", "HIT")] {
        let engine = Engine::fine().await;
        let forebay = cached_with(in_front_of(&[&engine]), terms).start().await;
        let mut client = Client::connect(&forebay, Version::H1).await;
        client.ask(&prompt("")).await;
        let other = post("/v1/chat/completions").key(OTHER).body("{\"model\":\"c\",\"temperature\":0}");
        assert_eq!(did(&client.ask(&other).await), what);
    }
}

#[tokio::test]
async fn an_engine_gets_only_what_is_part_of_the_key() {
    let engine = Engine::fine().await;
    let forebay = cached(in_front_of(&[&engine])).pool("set_headers = { \"x-team\" = \"search\" }").start().await;
    let mut client = Client::connect(&forebay, Version::H1).await;
    let request = prompt("")
        .header("accept", "application/json")
        .header("content-type", "application/json")
        .header("user-agent", "someone")
        .header("cookie", "a=b")
        .header("x-request-id", "mine");
    let answer = client.ask(&request).await;
    assert_eq!(answer.header("x-request-id"), Some("mine"));
    let asked = engine.asked(0).await;
    let fields = asked.head.lines().skip(1).filter_map(|line| line.split_once(':'));
    let mut names: Vec<String> = fields.map(|(name, _)| name.to_lowercase()).collect();
    names.sort_unstable();
    assert_eq!(names, ["accept", "content-length", "content-type", "host", "x-request-id", "x-team"]);
    assert_ne!(asked.header("x-request-id"), Some("mine"));
    assert_eq!(asked.header("host"), Some(&*engine.address.to_string()));
}

#[tokio::test]
async fn what_expired_is_never_given() {
    let engine = Engine::fine().await;
    let forebay = cached_with(in_front_of(&[&engine]), "ttl = \"200ms\"").start().await;
    let mut client = Client::connect(&forebay, Version::H2).await;
    let kept = Instant::now();
    client.ask(&prompt("")).await;
    eventually("its time is over", || (kept.elapsed() > Duration::from_millis(250)).then_some(())).await;
    assert_eq!((did(&client.ask(&prompt("")).await), engine.requests()), ("MISS", 2));
}

#[tokio::test]
async fn a_stuck_reader_holds_nobody_up() {
    let block = format!("data: {}\n\n", "x".repeat(10_000));
    let reply = (0..60).fold(Reply::events(), |reply, _| reply.chunk(&block)).chunk("data: [DONE]\n\n").last();
    let engine = Engine::always(reply).await;
    let forebay = cached(in_front_of(&[&engine])).start().await;
    let Client::H2(mut stuck) = Client::connect(&forebay, Version::H2).await else { panic!("HTTP/2") };
    let unread = Http2::start(&mut stuck, &prompt(",\"stream\":true")).await;
    let unread = unread.answer().await;
    let mut client = Client::connect(&forebay, Version::H1).await;
    let whole = client.ask(&prompt(",\"stream\":true")).await;
    assert!(whole.complete && whole.text().ends_with("data: [DONE]\n\n"));
    assert_eq!(engine.requests(), 1);
    unread.leave(Leaving::Stream);
    forebay.idle().await;
}

#[tokio::test]
async fn what_is_being_computed_is_held_once_and_counts() {
    let gate = Gate::new();
    let large = format!("data: {}\n\n", "x".repeat(50_000));
    let engine = Engine::always(Reply::events().chunk(&large).wait(&gate).chunk("data: [DONE]\n\n").last()).await;
    let forebay = cached(in_front_of(&[&engine])).start().await;
    let bytes = || forebay.current.cached().bytes;
    let mut client = Client::connect(&forebay, Version::H1).await;
    let mut answer = client.send(&prompt(",\"stream\":true")).await.answer().await;
    assert_eq!(answer.event().await.as_deref(), Some(&*large));
    assert!((50_000..60_000).contains(&bytes()), "{}", bytes());
    assert_eq!(forebay.current.cached().entries, 0);
    gate.open();
    assert!(answer.whole().await.complete);
    let once = || ((50_000..60_000).contains(&bytes()) && forebay.current.cached().entries == 1).then_some(());
    eventually("only the store holds it", once).await;
}

#[tokio::test]
async fn what_is_being_computed_takes_no_more_than_its_part_of_the_memory_and_comes_whole() {
    const MANY: usize = 30;
    let gates = [Gate::new(), Gate::new()];
    let block = format!("data: {}\n\n", "x".repeat(10_000));
    let reply = (0..10).fold(Reply::events(), |reply, _| reply.chunk(&block));
    let reply = reply.wait(&gates[0]).chunk("data: 1\n\n").wait(&gates[1]).chunk("data: [DONE]\n\n").last();
    let engine = Engine::always(reply).await;
    let small = "[cache]\nmemory = \"1MiB\"\nmax_body = \"128KiB\"";
    let forebay = cached(in_front_of(&[&engine])).and(small).start().await;
    let mut clients = Vec::new();
    for n in 0..MANY {
        let request = prompt(&format!(",\"stream\":true,\"user\":\"{n}\""));
        clients.push((Client::connect(&forebay, VERSIONS[n % 2]).await, request));
    }
    let asks = clients.iter_mut().map(|(client, request)| async { client.send(request).await.answer().await });
    let mut answers = futures::future::join_all(asks).await;
    for answer in &mut answers {
        for _ in 0..10 {
            assert_eq!(answer.event().await.as_deref(), Some(&*block));
        }
    }
    (0..MANY).for_each(|_| gates[0].open());
    for answer in &mut answers {
        assert_eq!(answer.event().await.as_deref(), Some("data: 1\n\n"));
    }
    let bytes = forebay.current.cached().bytes;
    assert!(bytes <= (1 << 18) + MANY * 1000, "{bytes} bytes are held of {}", MANY * 100_000);
    (0..MANY).for_each(|_| gates[1].open());
    for answer in answers {
        let whole = answer.whole().await;
        assert!(whole.complete && whole.text() == "data: [DONE]\n\n", "{}", whole.text());
    }
    forebay.idle().await;
    forebay.current.purge(None);
    eventually("nothing is held", || (forebay.current.cached().bytes == 0).then_some(())).await;
}

#[tokio::test]
async fn a_purge_means_what_is_being_computed_too() {
    for (purged, stays) in [(Some("c"), false), (None, false), (Some("m"), true)] {
        let (gate, count) = (Gate::new(), AtomicU16::new(0));
        let opens = gate.clone();
        let engine = Engine::new(move |_| {
            let n = count.fetch_add(1, SeqCst);
            Reply::raw("").wait(&opens).bytes(format!("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{n}"))
        })
        .await;
        let forebay = cached(in_front_of(&[&engine])).start().await;
        let mut clients = Vec::new();
        for version in [Version::H1, Version::H2, Version::H1] {
            clients.push(Client::connect(&forebay, version).await);
        }
        let request = prompt("");
        // Nobody else: what is computed lands nowhere.
        let alone = clients[0].send(&request).await;
        engine.asked(0).await;
        forebay.current.purge(purged);
        gate.open();
        assert_eq!(alone.answer().await.whole().await.text(), "0");
        let [first, second, third] = &mut clients[..] else { unreachable!() };
        if stays {
            assert_eq!(did(&second.ask(&request).await), "HIT");
            continue;
        }
        // Who asks after the purge does not see what was begun before it.
        let before = first.send(&request).await;
        engine.asked(1).await;
        forebay.current.purge(purged);
        let after = second.send(&request).await;
        engine.asked(2).await;
        (0..2).for_each(|_| gate.open());
        let (before, after) = (before.answer().await.whole().await, after.answer().await.whole().await);
        assert_eq!((did(&before), before.text(), did(&after), after.text()), ("MISS", "1", "MISS", "2"));
        let kept = third.ask(&request).await;
        assert_eq!((did(&kept), kept.text()), ("HIT", "2"));
    }
}

#[tokio::test]
async fn a_large_prompt_is_kept_as_any_other_and_whoever_sends_it_may_leave() {
    let large = format!(",\"x\":\"{}\"", "x".repeat(1_000_000));
    for (version, how) in WAYS {
        let engine = Engine::fine().await;
        let forebay = cached(in_front_of(&[&engine])).start().await;
        let mut leaves = Client::connect(&forebay, version).await;
        leaves.send(&prompt(&large)).await.leave(how);
        forebay.record().await;
        forebay.idle().await;
        forebay.current.purge(None);
        let mut client = Client::connect(&forebay, version).await;
        for what in ["MISS", "HIT"] {
            let answer = client.ask(&prompt(&large)).await;
            assert_eq!((answer.status, did(&answer), answer.complete), (200, what, true), "{version:?} {how:?}");
        }
    }
}

#[tokio::test]
async fn clients_of_http_1_0_have_it_in_a_form_that_they_know() {
    let (one, two) = ("data: 1\n\n", "data: [DONE]\n\n");
    let both = [one, two].concat();
    for (measured, keeps) in [(true, true), (true, false), (false, true), (false, false)] {
        let gate = Gate::new();
        let head =
            format!("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: {}\r\n\r\n", both.len());
        let reply = if measured {
            Reply::raw(head).bytes(both.clone())
        } else {
            Reply::events().chunk(one).wait(&gate).chunk(two).last()
        };
        let engine = Engine::always(reply).await;
        let forebay = cached(in_front_of(&[&engine])).start().await;
        let body = "{\"model\":\"c\",\"temperature\":0,\"stream\":true}";
        let ask = |more: &str| {
            let connection = if keeps { "connection: keep-alive\r\n" } else { "" };
            let head =
                format!("POST /v1/chat/completions HTTP/1.0\r\nauthorization: Bearer {SECRET}\r\n{connection}{more}");
            format!("{head}content-length: {}\r\n\r\n{body}", body.len())
        };
        // The first finds nothing, and where the answer has begun before its end, the next one watches it too.
        let dids = if measured { &["MISS"][..] } else { &["MISS", "COALESCED"] };
        let mut clients = Vec::new();
        for _ in dids {
            clients.push(Http1::connect(forebay.address).await);
        }
        let mut answers = Vec::new();
        for client in &mut clients {
            client.write(ask("").as_bytes()).await;
            let mut answer = client.answer().await;
            assert_eq!(answer.event().await.as_deref(), Some(one));
            answers.push(answer);
        }
        gate.open();
        for (answer, what) in answers.into_iter().zip(dids) {
            let whole = answer.whole().await;
            assert_eq!((did(&whole), whole.text(), whole.complete), (*what, two, true), "{measured} {keeps}");
            assert_eq!(whole.header("transfer-encoding"), None, "HTTP/1.0 knows no chunks");
            assert_eq!(whole.header("content-length").is_some(), measured);
        }
        let mut client = clients.remove(0);
        let mut stays = keeps && measured;
        for (more, what, length) in
            [("", "HIT", true), ("", "HIT", true), ("cache-control: no-store\r\n", "BYPASS", measured)]
        {
            if !stays {
                client.is_closed().await;
                client = Http1::connect(forebay.address).await;
            }
            client.write(ask(more).as_bytes()).await;
            gate.open();
            let whole = client.answer().await.whole().await;
            assert_eq!((did(&whole), whole.text(), whole.complete), (what, &*both, true), "{measured} {keeps}");
            assert_eq!(whole.header("transfer-encoding"), None, "HTTP/1.0 knows no chunks");
            assert_eq!(whole.header("content-length").is_some(), length);
            stays = keeps && length;
            assert_eq!(whole.header("connection"), Some(if stays { "keep-alive" } else { "close" }));
        }
        assert_eq!(engine.requests(), 2);
    }
}
