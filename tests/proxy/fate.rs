//! What becomes of a request, by how its first engine behaves: what the client sees, which engines are asked and how often,
//! and what the log and the metrics say of it.
//!
//! The first engine in the file has the first turn, so each case has a forebay of its own.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures::future::join_all;
use h2::Reason;
use parking_lot::Mutex;
use tokio::net::TcpListener;

use crate::client::{Client, Request, VERSIONS, Version, WAYS, Whole, get, post, prompt};
use crate::harness::{Forebay, at, in_front_of};
use crate::upstream::{Asked, Engine, Full, Reply, http2};

/// What a good engine says.
const FINE: &str = "{\"ok\":true}";
const UNAVAILABLE: &str = "\"upstream_unavailable\"";
const TIMEOUT: &str = "\"upstream_timeout\"";
/// Short limits, and an end that is far.
const SHORT: &str = "[pool.p.timeouts]\nfirst_byte = \"300ms\"\nidle = \"300ms\"";
/// A route by pool that lets everybody in.
const RAW: &str = "[[route]]\nname = \"raw\"\npath = \"/raw/*\"\npool = \"p\"\nauth = \"none\"\n\
                   [[route]]\nname = \"v1\"\npath = \"/v1/*\"\nby = \"model\"\n";

/// What a request meets at its end.
struct Fate {
    /// The status, what is in the body, and whether it ended as an answer ends.
    sees: (u16, &'static str, bool),
    /// How often each engine was asked.
    asked: &'static [usize],
    /// In the log.
    end: &'static str,
    /// In the metrics.
    outcomes: &'static str,
}

/// An engine of either protocol, as far as it is counted.
trait Counted {
    fn requests(&self) -> usize;
}

impl Counted for Engine {
    fn requests(&self) -> usize {
        Engine::requests(self)
    }
}

impl Counted for http2::Engine {
    fn requests(&self) -> usize {
        http2::Engine::requests(self)
    }
}

/// One row of a table.
fn fate(sees: (u16, &'static str, bool), asked: &'static [usize], end: &'static str, outcomes: &'static str) -> Fate {
    Fate { sees, asked, end, outcomes }
}

/// It went to the second engine, after the first attempt ended so.
fn moves_on(outcomes: &'static str) -> Fate {
    fate((200, FINE, true), &[1, 1], "complete", outcomes)
}

impl Fate {
    /// Asks, and checks all of it. The answer, for more.
    async fn of(
        &self,
        name: &str,
        version: Version,
        forebay: &Forebay,
        engines: &[&dyn Counted],
        request: &Request,
    ) -> Whole {
        let case = format!("{name}, {version:?}");
        let answer = Client::connect(forebay, version).await.ask(request).await;
        let (status, says, complete) = self.sees;
        assert_eq!((answer.status, answer.complete), (status, complete), "{case}: {answer:?}");
        assert!(answer.text().contains(says), "{case}: {answer:?}");
        assert!(complete || !answer.text().contains("[DONE]"), "{case}: {answer:?}");
        let record = forebay.record().await;
        assert_eq!((&record["end"], &record["status"]), (&self.end.into(), &status.into()), "{case}: {record}");
        let attempts: u64 =
            self.outcomes.split(", ").map(|one| one.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum();
        assert_eq!(record["attempts"], attempts, "{case}: {record}");
        assert_eq!(forebay.outcomes(), self.outcomes, "{case}");
        let asked: Vec<usize> = engines.iter().map(|engine| engine.requests()).collect();
        assert_eq!(asked, self.asked, "{case}");
        forebay.idle().await;
        answer
    }
}

/// A first engine that answers so, a good second one, and what becomes of this request.
async fn second_is_fine(name: &str, reply: &Reply, tables: &str, request: &Request, fate: &Fate) {
    let each = VERSIONS.map(async |version| {
        let (first, second) = (Engine::always(reply.clone()).await, Engine::fine().await);
        let forebay = in_front_of(&[&first, &second]).and(tables).start().await;
        fate.of(name, version, &forebay, &[&first, &second], request).await;
    });
    join_all(each).await;
}

fn status(status: u16, more: &str) -> Reply {
    let body = format!("{{\"engine\":{status}}}");
    Reply::raw(format!(
        "HTTP/1.1 {status} Status\r\nx-engine: yes\r\n{more}content-length: {}\r\n\r\n{body}",
        body.len()
    ))
}

fn json(framing: &str) -> Reply {
    Reply::raw(format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n{framing}\r\n\r\n"))
}

fn events() -> Reply {
    Reply::events().chunk("data: {\"n\":1}\n\n")
}

/// The body of a prompt of a megabyte.
fn large_body() -> String {
    format!("{{\"model\":\"m\",\"x\":\"{}\"}}", "x".repeat(1 << 20))
}

/// That prompt.
fn large() -> Request {
    prompt().body(large_body())
}

#[tokio::test]
async fn what_an_engine_turns_away_or_loses_before_a_byte_goes_to_the_next() {
    let refused = || moves_on("s0 refused 1, s1 answered 1");
    let reset = || moves_on("s0 reset 1, s1 answered 1");
    let early = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n";
    for (name, reply, fate) in [
        ("503", status(503, ""), refused()),
        ("503 for a while", status(503, "retry-after: 7\r\n"), refused()),
        ("429", status(429, ""), refused()),
        ("429 for a while", status(429, "retry-after: 7\r\n"), refused()),
        ("502", status(502, ""), refused()),
        ("503 that is cut", Reply::raw("HTTP/1.1 503 No\r\ncontent-length: 9\r\n\r\nhalf").close(), refused()),
        ("503 that stalls", Reply::raw("HTTP/1.1 503 No\r\ncontent-length: 9\r\n\r\nhalf").stall(), refused()),
        ("503 as a stream", Reply::raw("HTTP/1.1 503 No\r\ntransfer-encoding: chunked\r\n\r\n").stall(), refused()),
        ("100 and 103, then 503", Reply::raw(early).bytes("HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n"), refused()),
        ("closes", Reply::raw("").close(), reset()),
        ("resets", Reply::raw("").reset(), reset()),
        ("half a status line, closed", Reply::raw("HTTP/1.1 20").close(), reset()),
        ("half a header, closed", Reply::raw("HTTP/1.1 200 OK\r\ncontent-ty").close(), reset()),
        ("half a header, reset", Reply::raw("HTTP/1.1 200 OK\r\ncontent-ty").reset(), reset()),
        ("100 and 103, then closed", Reply::raw(early).close(), reset()),
    ] {
        second_is_fine(name, &reply, SHORT, &prompt(), &fate).await;
    }
}

#[tokio::test]
async fn what_an_engine_answers_otherwise_is_the_clients() {
    let passes = |status, says, outcomes| fate((status, says, true), &[1, 0], "complete", outcomes);
    let failed = |outcomes| fate((502, UNAVAILABLE, true), &[1, 0], "error", outcomes);
    let early = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n";
    let wide = format!("HTTP/1.1 200 OK\r\nx-wide: {}\r\ncontent-length: 0\r\n\r\n", "x".repeat(1 << 20));
    for (name, reply, fate) in [
        ("500", status(500, ""), passes(500, "{\"engine\":500}", "s0 server_error 1")),
        ("504", status(504, "retry-after: 7\r\n"), passes(504, "{\"engine\":504}", "s0 server_error 1")),
        ("501", status(501, ""), passes(501, "{\"engine\":501}", "s0 server_error 1")),
        ("400", status(400, ""), passes(400, "{\"engine\":400}", "s0 answered 1")),
        ("408", status(408, ""), passes(408, "{\"engine\":408}", "s0 answered 1")),
        ("100 and 103, then 200", Reply::raw(early).bytes("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"), {
            passes(200, "ok", "s0 answered 1")
        }),
        ("more than its length", json("content-length: 2").bytes("okTOO MUCH"), passes(200, "ok", "s0 answered 1")),
        ("garbage", Reply::raw("garbage that is no HTTP at all\r\n\r\n").stall(), failed("s0 reset 1")),
        ("a header of a megabyte", Reply::raw(wide), failed("s0 reset 1")),
        ("another protocol", Reply::raw("HTTP/1.1 101 Switching Protocols\r\n\r\nhello").close(), failed("s0 reset 1")),
    ] {
        second_is_fine(name, &reply, SHORT, &prompt(), &fate).await;
    }
}

#[tokio::test]
async fn an_engine_that_is_slow_is_given_up_and_no_other_is_asked() {
    let late = || fate((504, TIMEOUT, true), &[1, 0], "error", "s0 timed_out 1");
    let stuck = || fate((200, TIMEOUT, false), &[1, 0], "upstream_truncated", "s0 truncated 1");
    let cut = || fate((200, "{\"half\":", false), &[1, 0], "upstream_truncated", "s0 truncated 1");
    let drip = || (0..40).fold(Reply::events(), |reply, _| reply.chunk("data: 1\n\n").pause(Duration::from_millis(50)));
    let total = "[pool.p.timeouts]\ntotal = \"400ms\"";
    for (name, reply, tables, fate) in [
        ("before the header", Reply::silence(), SHORT, late()),
        ("in the status line", Reply::raw("HTTP/1.1 2").stall(), SHORT, late()),
        ("in the header", Reply::raw("HTTP/1.1 200 OK\r\ncontent-ty").stall(), SHORT, late()),
        ("after a 100", Reply::raw("HTTP/1.1 100 Continue\r\n\r\n").stall(), SHORT, late()),
        ("in a length", json("content-length: 99").bytes("{\"half\":").stall(), SHORT, cut()),
        ("in chunks", json("transfer-encoding: chunked").chunk("{\"half\":").stall(), SHORT, cut()),
        ("before the first event", Reply::events().stall(), SHORT, stuck()),
        ("between events", events().stall(), SHORT, stuck()),
        ("in an event", events().chunk("data: {\"ha").stall(), SHORT, stuck()),
        ("in all, before a byte", Reply::silence(), total, late()),
        ("in all, with a header in time", events().stall(), total, stuck()),
        ("in all, with events in time", drip().last(), total, stuck()),
    ] {
        second_is_fine(name, &reply, tables, &prompt(), &fate).await;
    }
}

#[tokio::test]
async fn an_answer_that_has_begun_is_nobody_elses() {
    let cut = |says| fate((200, says, false), &[1, 0], "upstream_truncated", "s0 truncated 1");
    let chunk = || json("transfer-encoding: chunked").chunk("{\"half\":");
    for (name, reply, fate) in [
        ("a short length", json("content-length: 99").bytes("{\"half\":").close(), cut("{\"half\":")),
        ("nothing of a length", json("content-length: 99").close(), cut("")),
        ("half a chunk", chunk().bytes("ff\r\nhalf").close(), cut("{\"half\":")),
        ("no last chunk", chunk().close(), cut("{\"half\":")),
        ("no chunk at all", chunk().bytes("zz\r\nx\r\n").close(), cut("{\"half\":")),
        ("a stream, closed", events().close(), cut(UNAVAILABLE)),
        ("a stream, reset", events().reset(), cut(UNAVAILABLE)),
        ("a stream without its last event", events().last(), cut(UNAVAILABLE)),
    ] {
        second_is_fine(name, &reply, SHORT, &prompt(), &fate).await;
    }
}

#[tokio::test]
async fn what_the_only_engine_says_passes_as_it_is() {
    for version in VERSIONS {
        for code in [500, 502, 503, 504, 429] {
            for (more, after) in [("", None), ("retry-after: 7\r\n", Some("7"))] {
                let engine = Engine::always(status(code, more)).await;
                let forebay = in_front_of(&[&engine]).start().await;
                let outcome = if code == 429 { "s0 answered 1" } else { "s0 server_error 1" };
                let fate = fate((code, "", true), &[1], "complete", outcome);
                let answer = fate.of("alone", version, &forebay, &[&engine], &prompt()).await;
                assert_eq!(answer.text(), format!("{{\"engine\":{code}}}"), "{version:?}");
                assert_eq!((answer.header("x-engine"), answer.header("retry-after")), (Some("yes"), after), "{code}");
            }
        }
    }
}

/// What becomes of a prompt to engines that answer so, in their order.
async fn in_turn(name: &str, replies: &[Reply], tables: &str, fate: &Fate) {
    for version in VERSIONS {
        let mut engines = Vec::new();
        for reply in replies {
            engines.push(Engine::always(reply.clone()).await);
        }
        let forebay = in_front_of(&engines.iter().collect::<Vec<_>>()).and(tables).start().await;
        let counted: Vec<&dyn Counted> = engines.iter().map(|engine| engine as &dyn Counted).collect();
        fate.of(name, version, &forebay, &counted, &prompt()).await;
    }
}

#[tokio::test]
async fn engines_are_asked_one_after_the_other_and_none_twice() {
    let [busy, bad, limited] = [503, 502, 429].map(|code| status(code, ""));
    let (fails, closed, fine) = (status(500, ""), Reply::raw("").close(), Reply::json(200, FINE));
    let late = Reply::raw("").pause(Duration::from_millis(200)).bytes("HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n");
    let total = "[pool.p.timeouts]\ntotal = \"600ms\"";
    let one = "[pool.p.retry]\nattempts = 1";
    let two = "[pool.p.retry]\nattempts = 2";
    let serves = |outcomes| fate((200, FINE, true), &[1, 1, 1], "complete", outcomes);
    let passes = |status, says, asked, outcomes| fate((status, says, true), asked, "complete", outcomes);
    let failed = |asked, outcomes| fate((502, UNAVAILABLE, true), asked, "error", outcomes);
    for (name, replies, tables, fate) in [
        ("503, 503", vec![&busy, &busy, &fine], "", serves("s0 refused 1, s1 refused 1, s2 answered 1")),
        ("429, 503", vec![&limited, &busy, &fine], "", serves("s0 refused 1, s1 refused 1, s2 answered 1")),
        ("502, 503", vec![&bad, &busy, &fine], "", serves("s0 refused 1, s1 refused 1, s2 answered 1")),
        ("503, 502", vec![&busy, &bad, &fine], "", serves("s0 refused 1, s1 refused 1, s2 answered 1")),
        ("closed, 429", vec![&closed, &limited, &fine], "", serves("s0 reset 1, s1 refused 1, s2 answered 1")),
        ("503, closed", vec![&busy, &closed, &fine], "", serves("s0 refused 1, s1 reset 1, s2 answered 1")),
        ("502 twice", vec![&bad, &bad, &fine], "", {
            passes(502, "{\"engine\":502}", &[1, 1, 0], "s0 refused 1, s1 server_error 1")
        }),
        ("closed, 502", vec![&closed, &bad, &fine], "", {
            passes(502, "{\"engine\":502}", &[1, 1, 0], "s0 reset 1, s1 server_error 1")
        }),
        ("502, closed", vec![&bad, &closed, &fine], "", failed(&[1, 1, 0], "s0 refused 1, s1 reset 1")),
        ("closed twice", vec![&closed, &closed, &fine], "", failed(&[1, 1, 0], "s0 reset 1, s1 reset 1")),
        ("503 three times", vec![&busy, &busy, &busy, &fine], "", {
            passes(503, "{\"engine\":503}", &[1, 1, 1, 0], "s0 refused 1, s1 refused 1, s2 server_error 1")
        }),
        ("503, then all are asked", vec![&busy, &limited], "", {
            passes(429, "{\"engine\":429}", &[1, 1], "s0 refused 1, s1 answered 1")
        }),
        ("503, 500", vec![&busy, &fails, &fine], "", {
            passes(500, "{\"engine\":500}", &[1, 1, 0], "s0 refused 1, s1 server_error 1")
        }),
        ("503, then silence", vec![&busy, &Reply::silence(), &fine], SHORT, {
            fate((504, TIMEOUT, true), &[1, 1, 0], "error", "s0 refused 1, s1 timed_out 1")
        }),
        ("503 late, then silence, too long in all", vec![&late, &Reply::silence(), &fine], total, {
            fate((504, TIMEOUT, true), &[1, 1, 0], "error", "s0 refused 1, s1 timed_out 1")
        }),
        ("503, then a stream that breaks", vec![&busy, &events().close(), &fine], "", {
            fate((200, UNAVAILABLE, false), &[1, 1, 0], "upstream_truncated", "s0 refused 1, s1 truncated 1")
        }),
        ("503, one attempt", vec![&busy, &fine], one, {
            passes(503, "{\"engine\":503}", &[1, 0], "s0 server_error 1")
        }),
        ("502, one attempt", vec![&bad, &fine], one, passes(502, "{\"engine\":502}", &[1, 0], "s0 server_error 1")),
        ("closed, one attempt", vec![&closed, &fine], one, failed(&[1, 0], "s0 reset 1")),
        ("503, two attempts", vec![&busy, &busy, &fine], two, {
            passes(503, "{\"engine\":503}", &[1, 1, 0], "s0 refused 1, s1 server_error 1")
        }),
    ] {
        let replies: Vec<Reply> = replies.into_iter().cloned().collect();
        in_turn(name, &replies, tables, &fate).await;
    }
}

#[tokio::test]
async fn an_engine_that_cannot_be_reached_is_passed_by() {
    for version in VERSIONS {
        let (dead, second) = (Engine::fine().await, Engine::fine().await);
        let forebay = in_front_of(&[&dead, &second]).start().await;
        dead.kill().await;
        let fate = fate((200, FINE, true), &[0, 1], "complete", "s0 connect_failed 1, s1 answered 1");
        fate.of("refuses", version, &forebay, &[&dead, &second], &large()).await;
        assert_eq!(second.asked(0).await.body(), large_body());
    }
}

#[tokio::test]
async fn an_engine_that_does_not_accept_is_passed_by_in_time() {
    let full = Full::new().await;
    for version in VERSIONS {
        let second = Engine::fine().await;
        let health = format!("port = {}", second.address.port());
        let addresses = [full.address, second.address];
        let timeout = "[pool.p.timeouts]\nconnect = \"300ms\"";
        let forebay = at(&addresses).health(&health).and(timeout).start().await;
        let asked = Instant::now();
        let fate = fate((200, FINE, true), &[1], "complete", "s0 connect_failed 1, s1 answered 1");
        fate.of("full", version, &forebay, &[&second], &prompt()).await;
        assert!(asked.elapsed() > Duration::from_millis(300));
    }
}

#[tokio::test]
async fn an_engine_that_closes_each_connection_as_it_comes_is_passed_by() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let accepting = tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    for version in VERSIONS {
        for request in [prompt(), large()] {
            let second = Engine::fine().await;
            let health = format!("port = {}", second.address.port());
            let forebay = at(&[address, second.address]).health(&health).start().await;
            let fate = fate((200, FINE, true), &[1], "complete", "s0 reset 1, s1 answered 1");
            fate.of("closes", version, &forebay, &[&second], &request).await;
        }
    }
    accepting.abort();
}

#[tokio::test]
async fn a_megabyte_arrives_whole_at_the_next_engine() {
    let refused = "s0 refused 1, s1 answered 1";
    let reset = "s0 reset 1, s1 answered 1";
    for version in VERSIONS {
        for (name, reply, outcomes) in [
            ("503", status(503, ""), refused),
            ("429", status(429, ""), refused),
            ("502", status(502, ""), refused),
            ("closed", Reply::raw("").close(), reset),
            ("reset", Reply::raw("").reset(), reset),
        ] {
            for early in [false, true] {
                let reply = reply.clone();
                let script = move |_: &Asked| reply.clone();
                let first = if early { Engine::hasty(script.clone()).await } else { Engine::new(script.clone()).await };
                let second = Engine::fine().await;
                let forebay = in_front_of(&[&first, &second]).start().await;
                let name = format!("{name}, early: {early}");
                moves_on(outcomes).of(&name, version, &forebay, &[&first, &second], &large()).await;
                assert_eq!(second.asked(0).await.body(), large_body(), "{name}");
            }
        }
    }
}

#[tokio::test]
async fn an_early_answer_to_a_body_that_is_not_read_is_the_clients() {
    for version in VERSIONS {
        for (code, outcome) in [(200, "s0 answered 1"), (413, "s0 answered 1"), (500, "s0 server_error 1")] {
            let first = Engine::hasty(move |_| status(code, "connection: close\r\n")).await;
            let second = Engine::fine().await;
            let forebay = in_front_of(&[&first, &second]).start().await;
            let fate = fate((code, "{\"engine\":", true), &[1, 0], "complete", outcome);
            fate.of("early", version, &forebay, &[&first, &second], &large()).await;
        }
    }
}

// === HTTP/2 engines ===

#[tokio::test]
async fn engines_over_http2_have_the_same_fate() {
    type Reply = http2::Reply;
    let refused = || moves_on("s0 refused 1, s1 answered 1");
    let reset = || moves_on("s0 reset 1, s1 answered 1");
    let passes = |status, says, outcomes| fate((status, says, true), &[1, 0], "complete", outcomes);
    let late = || fate((504, TIMEOUT, true), &[1, 0], "error", "s0 timed_out 1");
    let breaks = |says| fate((200, says, false), &[1, 0], "upstream_truncated", "s0 truncated 1");
    let events = || Reply::events().data("data: {\"n\":1}\n\n");
    let drip = || (0..40).fold(Reply::events(), |reply, _| reply.data("data: 1\n\n").pause(Duration::from_millis(50)));
    let half = || Reply::head(200, "application/json").measured(99).data("{\"half\":");
    let total = "[pool.p.timeouts]\ntotal = \"400ms\"";
    for (name, reply, tables, fate) in [
        ("503", Reply::json(503, "{}"), SHORT, refused()),
        ("429", Reply::json(429, "{}"), SHORT, refused()),
        ("502", Reply::json(502, "{}"), SHORT, refused()),
        ("503 that stalls", Reply::head(503, "text/plain").stall(), SHORT, refused()),
        ("reset", Reply::silence().reset(Reason::INTERNAL_ERROR), SHORT, reset()),
        ("reset without an error", Reply::silence().reset(Reason::NO_ERROR), SHORT, reset()),
        ("its connection ends", Reply::silence().breaks(), SHORT, reset()),
        ("500", Reply::json(500, "its own"), SHORT, passes(500, "its own", "s0 server_error 1")),
        ("504", Reply::json(504, "its own"), SHORT, passes(504, "its own", "s0 server_error 1")),
        ("400", Reply::json(400, "its own"), SHORT, passes(400, "its own", "s0 answered 1")),
        ("silence", Reply::silence().stall(), SHORT, late()),
        ("silence in all", Reply::silence().stall(), total, late()),
        ("silence in a length", half().stall(), SHORT, breaks("{\"half\":")),
        ("silence between events", events().stall(), SHORT, breaks(TIMEOUT)),
        ("events for too long", drip().end(), total, breaks(TIMEOUT)),
        ("a short length", half().end(), SHORT, breaks("")),
        ("a stream that is reset", events().reset(Reason::INTERNAL_ERROR), SHORT, breaks(UNAVAILABLE)),
        ("a stream whose connection ends", events().breaks(), SHORT, breaks(UNAVAILABLE)),
        ("a stream without its last event", events().end(), SHORT, breaks(UNAVAILABLE)),
    ] {
        for version in VERSIONS {
            let (first, second) = (http2::Engine::always(reply.clone()).await, http2::Engine::fine().await);
            let forebay = at(&[first.address, second.address]).pool("protocol = \"http2\"").and(tables).start().await;
            fate.of(name, version, &forebay, &[&first, &second], &prompt()).await;
        }
    }
}

#[tokio::test]
async fn a_megabyte_arrives_whole_at_the_next_engine_over_http2() {
    type Reply = http2::Reply;
    let refused = || moves_on("s0 refused 1, s1 answered 1");
    let reset = || moves_on("s0 reset 1, s1 answered 1");
    for (name, reply, fate) in [
        ("503", Reply::json(503, "{}"), refused()),
        ("502", Reply::json(502, "{}"), refused()),
        ("reset", Reply::silence().reset(Reason::INTERNAL_ERROR), reset()),
        ("its connection ends", Reply::silence().breaks(), reset()),
    ] {
        for version in VERSIONS {
            for reads in ["first", "meanwhile", "never"] {
                let reply = reply.clone();
                let first = match reads {
                    "first" => http2::Engine::always(reply).await,
                    "meanwhile" => http2::Engine::hasty(move |_| reply.clone()).await,
                    _ => http2::Engine::unreading(reply).await,
                };
                let second = http2::Engine::fine().await;
                let forebay = at(&[first.address, second.address]).pool("protocol = \"http2\"").start().await;
                fate.of(&format!("{name}, read {reads}"), version, &forebay, &[&first, &second], &large()).await;
                assert_eq!(second.asked(0).await.body(), large_body(), "{name} {version:?}");
            }
        }
    }
}

// === never twice ===

#[tokio::test]
async fn a_request_on_a_route_by_pool_reaches_one_engine_once() {
    let passes = |status, says, outcomes| fate((status, says, true), &[1, 0], "complete", outcomes);
    let failed = || fate((502, UNAVAILABLE, true), &[1, 0], "error", "s0 reset 1");
    let tables = format!("{RAW}{SHORT}");
    let body = "x".repeat(200_000);
    for request in [get("/raw/x"), post("/raw/x").body(body.clone()), post("/raw/x").body(body).pieces(10_000)] {
        for (name, reply, fate) in [
            ("503", status(503, ""), passes(503, "{\"engine\":503}", "s0 server_error 1")),
            ("502", status(502, ""), passes(502, "{\"engine\":502}", "s0 server_error 1")),
            ("429", status(429, ""), passes(429, "{\"engine\":429}", "s0 answered 1")),
            ("closed", Reply::raw("").close(), failed()),
            ("reset", Reply::raw("").reset(), failed()),
            ("silence", Reply::silence(), fate((504, TIMEOUT, true), &[1, 0], "error", "s0 timed_out 1")),
        ] {
            second_is_fine(name, &reply, &tables, &request, &fate).await;
        }
    }
}

#[tokio::test]
async fn a_request_whose_client_has_gone_is_nobody_elses() {
    for (version, leaving) in WAYS {
        for (first, stuck, outcomes) in [
            (Reply::silence(), 0, "s0 cancelled 1"),
            (Reply::raw("HTTP/1.1 200 OK\r\ncontent-ty").stall(), 0, "s0 cancelled 1"),
            (status(503, ""), 1, "s0 refused 1, s1 cancelled 1"),
            (Reply::raw("").close(), 1, "s0 reset 1, s1 cancelled 1"),
        ] {
            let engines = [Engine::always(first).await, Engine::always(Reply::silence()).await, Engine::fine().await];
            let forebay = in_front_of(&engines.each_ref()).start().await;
            let mut client = Client::connect(&forebay, version).await;
            let pending = client.send(&large()).await;
            let asked = engines[stuck].asked(0).await;
            pending.leave(leaving);
            asked.gone().await;
            let record = forebay.record().await;
            assert_eq!((&record["end"], &record["status"]), (&"client_gone".into(), &499.into()), "{record}");
            assert_eq!(forebay.outcomes(), outcomes, "{version:?} {leaving:?}");
            let requests: Vec<usize> = engines.iter().map(Engine::requests).collect();
            assert_eq!(requests, [1, stuck, 0], "{version:?} {leaving:?}");
            forebay.idle().await;
        }
    }
}

// === kept connections ===

#[tokio::test]
async fn that_kept_connections_end_is_no_clients_affair() {
    let ok = || Reply::json(200, FINE);
    for version in VERSIONS {
        for (name, reply) in [("under the next", ok().dies_under_the_next()), ("at once", ok().close())] {
            for (request, count) in [(prompt(), 200), (get("/raw/x"), 200), (large(), 20)] {
                let engines = [Engine::always(reply.clone()).await, Engine::always(reply.clone()).await];
                let forebay = in_front_of(&engines.each_ref()).and(RAW).start().await;
                let mut client = Client::connect(&forebay, version).await;
                for n in 0..count {
                    let answer = client.ask(&request).await;
                    assert_eq!((answer.status, answer.text()), (200, FINE), "{name} {version:?} {n}");
                }
                for record in forebay.records(count).await {
                    assert_eq!((&record["attempts"], &record["end"]), (&1.into(), &"complete".into()), "{record}");
                }
                let half = count / 2;
                assert_eq!(forebay.outcomes(), format!("s0 answered {half}, s1 answered {half}"), "{name} {version:?}");
                assert_eq!((forebay.server(0).errors(), forebay.server(1).errors()), (0, 0));
            }
        }
    }
}

#[tokio::test]
async fn what_a_fresh_connection_brings_after_a_kept_one_died_decides() {
    for (name, then, outcomes) in [
        ("503", status(503, ""), "s0 answered 1, s0 refused 1, s1 answered 1"),
        ("closed", Reply::raw("").close(), "s0 answered 1, s0 reset 1, s1 answered 1"),
        ("reset", Reply::raw("").reset(), "s0 answered 1, s0 reset 1, s1 answered 1"),
    ] {
        for version in VERSIONS {
            let first = Mutex::new(Some(Reply::json(200, FINE).dies_under_the_next()));
            let then = then.clone();
            let first = Engine::new(move |_| first.lock().take().unwrap_or_else(|| then.clone())).await;
            let second = Engine::fine().await;
            let backup = ["weight = 1", "backup = true"];
            let forebay = in_front_of(&[&first, &second]).each(&backup).start().await;
            assert_eq!(Client::connect(&forebay, version).await.ask(&large()).await.status, 200);
            forebay.idle().await;
            assert_eq!(forebay.record().await["attempts"], 1);
            let answer = Client::connect(&forebay, version).await.ask(&large()).await;
            assert_eq!((answer.status, answer.text()), (200, FINE), "{name} {version:?}");
            assert_eq!(forebay.record().await["attempts"], 2, "{name} {version:?}");
            assert_eq!(forebay.outcomes(), outcomes, "{name} {version:?}");
            assert_eq!((first.requests(), second.asked(0).await.body()), (2, large_body().into()), "{name}");
        }
    }
}

// === the budget ===

#[tokio::test]
async fn all_retries_of_a_pool_stay_within_its_budget() {
    const PROMPTS: usize = 300;
    const FLOOR: usize = 30;
    const NOT_EJECTED: &str = "[pool.p.eject]\nfailures = 1000000";
    for (tables, share) in
        [("", 20), ("[pool.p.retry]\nbudget = \"0%\"", 0), ("[pool.p.retry]\nbudget = \"100%\"", 100)]
    {
        let engines = [Engine::always(status(503, "")).await, Engine::always(status(503, "")).await];
        let forebay = in_front_of(&engines.each_ref()).and(tables).and(NOT_EJECTED).start().await;
        let began = Instant::now();
        let mut client = Client::connect(&forebay, Version::H1).await;
        for n in 0..PROMPTS {
            let answer = client.ask(&prompt()).await;
            assert_eq!((answer.status, answer.text()), (503, "{\"engine\":503}"), "{n}");
        }
        let windows = 1 + usize::try_from(began.elapsed().as_secs() / 10).unwrap();
        let retries = engines.iter().map(Engine::requests).sum::<usize>() - PROMPTS;
        let (least, most) = (PROMPTS * share / 100 + FLOOR, PROMPTS * share / 100 + FLOOR * windows);
        assert!((least.min(PROMPTS)..=most).contains(&retries), "{share} %: {retries} retries");
        let attempts: u64 =
            forebay.records(PROMPTS).await.iter().map(|record| record["attempts"].as_u64().unwrap()).sum();
        assert_eq!(usize::try_from(attempts).unwrap(), PROMPTS + retries);
    }
}

// === whose fault slowness is ===

#[tokio::test]
async fn an_answer_whose_pieces_come_in_time_may_last() {
    const PIECES: usize = 15;
    const STEP: Duration = Duration::from_millis(100);
    let events = (0..PIECES).fold(Reply::events(), |reply, _| reply.chunk("data: 1\n\n").pause(STEP));
    let json = (0..PIECES).fold(json("content-length: 30"), |reply, _| reply.bytes("ab").pause(STEP));
    let limits = "[pool.p.timeouts]\nfirst_byte = \"700ms\"\nidle = \"700ms\"\ntotal = \"10s\"";
    for (name, reply, says) in [
        ("events", events.chunk("data: [DONE]\n\n").last(), "data: 1\n\ndata: [DONE]\n\n"),
        ("a length", json, "ababababab"),
    ] {
        let fate = Fate { sees: (200, says, true), asked: &[1, 0], end: "complete", outcomes: "s0 answered 1" };
        second_is_fine(name, &reply, limits, &prompt(), &fate).await;
    }
}

/// An answer that no chain of buffers holds.
const MUCH: usize = 16 << 20;

/// An engine of this protocol that says that much, as fast as it can, and the lines that let forebay speak with it.
async fn talkative(protocol: &str) -> (SocketAddr, Box<dyn Counted>, String) {
    let much = format!("data: {}\n\n", "x".repeat(MUCH));
    let lines = format!("protocol = \"{protocol}\"");
    if protocol == "http2" {
        let reply = http2::Reply::events().data(much).data("data: [DONE]\n\n").end();
        let engine = http2::Engine::always(reply).await;
        (engine.address, Box::new(engine), lines)
    } else {
        let engine = Engine::always(Reply::events().chunk(&much).chunk("data: [DONE]\n\n").last()).await;
        (engine.address, Box::new(engine), lines)
    }
}

#[tokio::test]
async fn that_a_client_reads_slowly_is_not_the_engines_fault() {
    for protocol in ["http1", "http2"] {
        for version in VERSIONS {
            let (address, _engine, lines) = talkative(protocol).await;
            let forebay = at(&[address]).pool(&lines).and(SHORT).start().await;
            let mut client = Client::connect(&forebay, version).await;
            let answer = client.send(&prompt()).await.answer().await;
            tokio::time::sleep(Duration::from_secs(1)).await; // the passing of time is what is tested
            assert_eq!(forebay.server(0).in_flight(), 1, "{version:?}, {protocol}: it is not held by buffers");
            let whole = answer.whole().await;
            assert!(whole.complete && whole.body.len() > MUCH, "{version:?}, {protocol}: {}", whole.body.len());
            assert_eq!(forebay.record().await["end"], "complete");
            assert_eq!((&*forebay.outcomes(), forebay.server(0).errors()), ("s0 answered 1", 0));
        }
    }
}

#[tokio::test]
async fn what_lasts_too_long_in_all_ends_though_its_client_reads_nothing() {
    for protocol in ["http1", "http2"] {
        for version in VERSIONS {
            let (address, engine, lines) = talkative(protocol).await;
            let forebay = at(&[address]).pool(&lines).and("[pool.p.timeouts]\ntotal = \"500ms\"").start().await;
            let mut client = Client::connect(&forebay, version).await;
            let answer = client.send(&prompt()).await.answer().await;
            let record = forebay.record().await;
            assert_eq!((&record["end"], &record["attempts"]), (&"upstream_truncated".into(), &1.into()), "{record}");
            assert_eq!((&record["code"], &*forebay.outcomes()), (&"upstream_timeout".into(), "s0 truncated 1"));
            forebay.idle().await;
            let whole = answer.whole().await;
            assert!(!whole.complete && !whole.text().contains("[DONE]"), "{version:?}, {protocol}");
            assert_eq!(engine.requests(), 1);
        }
    }
}
