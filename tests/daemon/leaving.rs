//! Ten thousand requests of every kind, a third of whose clients leave at any moment: all are told of, and nothing of them stays.

use std::cell::Cell;
use std::collections::HashMap;
use std::fs;
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use h2::client::SendRequest;
use h2::{Ping, PingPong, Reason};
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use crate::configuration::{Configuration, SECRET};
use crate::harness::{Engine, Folder, Forebay, until};
use crate::http::{Client, chat};

const REQUESTS: usize = 10_000;
/// How many clients there are of each protocol.
const CLIENTS: usize = 16;
/// How many requests an HTTP/2 client has under way at once.
const AT_ONCE: usize = 4;
/// How many requests an engine has of a pool at once: fewer than there are, so that many queue.
const MOST: u32 = 3;
/// To the pools `p` and `q`, by model and by route.
const WAYS: [(&str, &str); 4] = [
    ("/v1/chat/completions", "mp"),
    ("/v1/chat/completions", "mq"),
    ("/p/v1/chat/completions", "any"),
    ("/q/v1/chat/completions", "any"),
];

/// One request, and what its client does.
#[derive(Debug, Clone, Copy)]
struct Draw {
    number: usize,
    way: (&'static str, &'static str),
    stream: bool,
    /// Words of the prompt, each of which an engine says again.
    words: usize,
    /// Bytes of a further one.
    padding: usize,
    leaves: Option<Leaves>,
}

/// How a client leaves.
#[derive(Debug, Clone, Copy)]
struct Leaves {
    at: Moment,
    /// How long it waits before it does.
    after: Duration,
    /// Over HTTP/2: with the whole connection, and not with its stream alone.
    connection: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    /// In its header; over HTTP/2 that comes whole.
    Header,
    /// Before its body.
    Begun,
    /// In its body.
    Body,
    /// When all is sent.
    Sent,
    /// In the answer.
    Answer,
}

/// What became of a request, as its client has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// It was answered whole, with this status.
    Answered(u16),
    /// Its answer broke off.
    Broken,
    /// The client left after the whole header.
    Left,
    /// The connection ended with another's leaving: perhaps before the header was read.
    Cut,
    /// Its header was never whole.
    Never,
}

/// Numbers that look random, and are the same each time: SplitMix64.
struct Dice(u64);

// === impl Dice ===

impl Dice {
    /// The next number below this one.
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % end as u64) as usize
    }

    fn draw(&mut self, number: usize) -> Draw {
        const MOMENTS: [Moment; 8] = [
            Moment::Header,
            Moment::Begun,
            Moment::Body,
            Moment::Sent,
            Moment::Sent,
            Moment::Answer,
            Moment::Answer,
            Moment::Answer,
        ];
        let leaves = Leaves {
            at: MOMENTS[self.below(MOMENTS.len())],
            after: Duration::from_millis(self.below(15) as u64),
            connection: self.below(8) == 0,
        };
        Draw {
            number,
            way: WAYS[self.below(WAYS.len())],
            stream: self.below(2) == 0,
            words: 1 + self.below(10),
            padding: if self.below(20) == 0 { self.below(50_000) } else { 0 },
            leaves: (self.below(3) == 0).then_some(leaves),
        }
    }
}

// === impl Draw ===

impl Draw {
    fn id(&self) -> String {
        format!("r-{}", self.number)
    }

    fn body(&self) -> String {
        let content = format!("{}{}", "word ".repeat(self.words), "x".repeat(self.padding));
        chat(self.way.1, &content, self.stream)
    }

    /// As HTTP/1.1 has its header.
    fn head(&self, length: usize) -> String {
        let (path, id) = (self.way.0, self.id());
        format!(
            "POST {path} HTTP/1.1\r\nhost: forebay\r\nauthorization: Bearer {SECRET}\r\nx-request-id: {id}\r\n\
             content-length: {length}\r\n\r\n"
        )
    }

    /// The same as HTTP/2 has it.
    fn request(&self) -> http::Request<()> {
        let request = http::Request::post(format!("http://forebay{}", self.way.0))
            .header("authorization", format!("Bearer {SECRET}"))
            .header("x-request-id", self.id());
        request.body(()).expect("a request")
    }
}

// === over HTTP/1.1 ===

/// Sends these one after the other, and leaves as they say.
fn over_http1(address: &str, draws: &[Draw]) -> Vec<(Draw, Told)> {
    let mut kept = None;
    let mut ask = |draw: &Draw| {
        let mut client = kept.take().unwrap_or_else(|| Client::connect(address));
        let body = draw.body();
        let head = draw.head(body.len());
        let all = [head.as_bytes(), body.as_bytes()].concat();
        let sent = match draw.leaves.map(|leaves| leaves.at) {
            Some(Moment::Header) => head.len() / 2,
            Some(Moment::Begun) => head.len(),
            Some(Moment::Body) => head.len() + body.len() / 2,
            Some(Moment::Sent | Moment::Answer) | None => all.len(),
        };
        client.write(&all[..sent]).expect("forebay reads");
        if let Some(leaves) = draw.leaves {
            if leaves.at == Moment::Answer {
                client.header().expect("an answer");
            }
            thread::sleep(leaves.after); // the client's pace
            return if leaves.at == Moment::Header { Told::Never } else { Told::Left };
        }
        let Ok(answer) = client.answer() else { return Told::Broken };
        if !answer.closes() {
            kept = Some(client);
        }
        Told::Answered(answer.status)
    };
    draws.iter().map(|draw| (*draw, ask(draw))).collect()
}

// === over HTTP/2 ===

/// A connection on which several ask at once.
struct Http2 {
    sender: SendRequest<Bytes>,
    ping: Mutex<PingPong>,
    driver: JoinHandle<Result<(), h2::Error>>,
    /// Somebody has left with all of it.
    cut: Cell<bool>,
}

/// Sends these, a few at once, and leaves as they say.
async fn over_http2(address: &str, draws: &[Draw]) -> Vec<(Draw, Told)> {
    let (mut kept, mut all) = (None, Vec::new());
    for few in draws.chunks(AT_ONCE) {
        let connection = match kept.take() {
            Some(connection) => connection,
            None => Http2::connect(address).await,
        };
        let told = join_all(few.iter().map(|draw| connection.ask(draw))).await;
        let told = few.iter().copied().zip(told);
        if connection.cut.get() {
            // What was read and not yet looked at is lost with its connection.
            let told = told.map(|(draw, told)| match told {
                Told::Left if draw.leaves.is_some_and(|leaves| leaves.at != Moment::Answer) => (draw, Told::Cut),
                told => (draw, told),
            });
            all.extend(told);
        } else {
            all.extend(told);
            kept = Some(connection);
        }
    }
    all
}

impl Http2 {
    async fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address).expect("a connection");
        stream.set_nodelay(true).expect("set");
        stream.set_nonblocking(true).expect("set");
        let stream = tokio::net::TcpStream::from_std(stream).expect("a stream");
        let (sender, mut connection) = h2::client::handshake(stream).await.expect("HTTP/2");
        let ping = Mutex::new(connection.ping_pong().expect("the first to ask"));
        Self { sender, ping, driver: tokio::spawn(connection), cut: Cell::new(false) }
    }

    async fn ask(&self, draw: &Draw) -> Told {
        let at = draw.leaves.map(|leaves| leaves.at);
        let Ok(mut sender) = self.sender.clone().ready().await else { return self.lost(Told::Never) };
        let Ok((response, mut body)) = sender.send_request(draw.request(), false) else {
            return self.lost(Told::Never);
        };
        let all = Bytes::from(draw.body());
        let sent = match at {
            Some(Moment::Header | Moment::Begun) => Ok(()),
            Some(Moment::Body) => body.send_data(all.slice(..all.len() / 2), false),
            Some(Moment::Sent | Moment::Answer) | None => body.send_data(all, true),
        };
        if sent.is_err() {
            return self.lost(Told::Cut);
        }
        let mut told = Told::Cut;
        if matches!(at, None | Some(Moment::Answer)) {
            let Ok(response) = response.await else { return self.lost(Told::Cut) };
            told = Told::Left; // that it was read is known now
            let (status, mut answer) = (response.status().as_u16(), response.into_body());
            while let Some(piece) = answer.data().await {
                let Ok(piece) = piece else { return if self.cut.get() { Told::Left } else { Told::Broken } };
                let _ = answer.flow_control().release_capacity(piece.len()); // a stream that is over needs none
                if at.is_some() {
                    break;
                }
            }
            if at.is_none() {
                return Told::Answered(status);
            }
        } else if self.ping.lock().await.ping(Ping::opaque()).await.is_ok() {
            told = Told::Left; // the crate takes back what is not on its way yet
        }
        let leaves = draw.leaves.expect("who does not was answered");
        tokio::time::sleep(leaves.after).await; // the client's pace
        if leaves.connection {
            self.cut.set(true);
            self.driver.abort();
        } else {
            body.send_reset(Reason::CANCEL);
        }
        told
    }

    /// What it means that a connection takes no more: nothing, where somebody left with it.
    fn lost(&self, told: Told) -> Told {
        if self.cut.get() { told } else { Told::Broken }
    }
}

// === what is left ===

/// The sum of a metric's series.
fn sum(text: &str, name: &str) -> f64 {
    let series = text.lines().filter_map(|line| line.strip_prefix(name)?.rsplit_once(' '));
    let series = series.filter(|(labels, _)| labels.is_empty() || labels.starts_with('{'));
    series.map(|(_, value)| value.parse::<f64>().expect("a number")).sum()
}

fn metrics(address: &str) -> String {
    Client::connect(address).get("/metrics").text()
}

/// How many files, or threads, forebay has open.
fn count(forebay: &Forebay, what: &str) -> usize {
    let path = format!("/proc/{}/{what}", forebay.status()["pid"]);
    fs::read_dir(path).expect("a process").count()
}

/// That each pool answers, at least when its bad engines have had their turn.
fn still_answers(forebay: &Forebay) {
    for model in ["mp", "mq"] {
        until(model, || forebay.client().chat(model).is_ok_and(|answer| answer.status == 200).then_some(()));
    }
}

/// The access log, by request.
fn records(log: &str) -> HashMap<String, Value> {
    let records = log.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    records.map(|record| (record["request_id"].as_str().expect("an id").to_owned(), record)).collect()
}

/// That a request is recorded as its client saw it.
fn is_told_of(draw: &Draw, told: Told, record: Option<&Value>) {
    let end = record.map(|record| record["end"].as_str().expect("a word"));
    let good = match told {
        Told::Answered(status) => {
            record.is_some_and(|record| record["status"] == status) && matches!(end, Some("complete" | "error"))
        }
        Told::Broken => end == Some("upstream_truncated"),
        Told::Left => record.is_some(),
        Told::Cut => true,
        Told::Never => record.is_none(),
    };
    assert!(good, "{draw:?}: {told:?}, and {record:?}");
}

fn configuration(engines: &[Engine], log: &str) -> Configuration {
    let servers: Vec<&str> = engines.iter().map(|engine| &*engine.address).collect();
    let pool = |name: &str, protocol: &str| {
        format!(
            "[pool.{name}]\nprotocol = {protocol:?}\nservers = {servers:?}\nmax_in_flight = {MOST}\n\
             [pool.{name}.queue]\nsize = 1000\ntimeout = \"60s\"\n\
             [pool.{name}.connections]\nidle_timeout = \"1s\"\n\
             [pool.{name}.eject]\nfailures = 1000000\n\
             [[route]]\nname = {name:?}\npath = \"/{name}/*\"\nstrip_prefix = \"/{name}\"\npool = {name:?}\nauth = \"none\""
        )
    };
    Configuration::empty()
        .more(&pool("p", "http1"))
        .more(&pool("q", "http2"))
        .more("[[route]]\nname = \"v1\"\npath = \"/v1/*\"\nby = \"model\"")
        .model("mp", "p")
        .model("mq", "q")
        .key("tester", SECRET, "[\"*\"]")
        .more(&format!("[log]\naccess = {log:?}"))
}

/// Sends all of these, half of them over each protocol, by many clients at once.
fn ask(address: &str, draws: &[Draw]) -> Vec<(Draw, Told)> {
    let (first, second) = draws.split_at(draws.len() / 2);
    let share = first.len().div_ceil(CLIENTS);
    thread::scope(|scope| {
        let over_http1: Vec<_> =
            first.chunks(share).map(|draws| scope.spawn(move || over_http1(address, draws))).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let over_http2 = runtime.block_on(join_all(second.chunks(share).map(|draws| over_http2(address, draws))));
        let over_http1 = over_http1.into_iter().map(|client| client.join().expect("no failure"));
        over_http1.chain(over_http2).flatten().collect()
    })
}

/// That nothing is under way any more, in forebay and in its engines.
fn all_is_over(forebay: &Forebay, engines: &[Engine]) {
    for gauge in ["forebay_in_flight", "forebay_queued", "forebay_client_connections"] {
        until(format!("{gauge} is 0"), || (sum(&metrics(forebay.admin_address()), gauge) == 0.0).then_some(()));
    }
    for pool in forebay.status()["pools"].as_object().expect("pools").values() {
        for server in pool["servers"].as_array().expect("servers") {
            assert_eq!(server["in_flight"], 0, "{server}");
        }
    }
    for engine in engines {
        for gauge in ["vllm:num_requests_running", "vllm:num_requests_waiting"] {
            until(format!("{gauge} is 0"), || (sum(&metrics(&engine.address), gauge) == 0.0).then_some(()));
        }
    }
}

/// That each request has one record and one count, which say what its client saw.
fn all_are_told_of(forebay: &Forebay, log: &str, told: &[(Draw, Told)]) {
    let metrics = metrics(forebay.admin_address());
    let counted = sum(&metrics, "forebay_requests_total");
    let log = until("all records", || {
        let log = fs::read_to_string(log).expect("a log");
        (log.lines().count() as f64 >= counted).then_some(log)
    });
    let records = records(&log);
    assert_eq!((log.lines().count(), counted), (records.len(), records.len() as f64), "each is there once");
    for (draw, told) in told {
        is_told_of(draw, *told, records.get(&draw.id()));
    }
    let gone = records.values().filter(|record| record["end"] == "client_gone").count();
    assert!(gone > REQUESTS / 6, "only {gone} have left");
    assert_eq!(sum(&metrics, "forebay_client_aborts_total"), gone as f64);
    let queued = records.values().filter(|record| record["queue_ms"].is_number()).count();
    assert!(queued > REQUESTS / 10, "only {queued} have queued");
    assert_eq!(sum(&metrics, "forebay_queue_wait_seconds_count"), queued as f64);
    let attempts: f64 = records.values().map(|record| record["attempts"].as_f64().expect("a number")).sum();
    assert_eq!(sum(&metrics, "forebay_upstream_attempts_total"), attempts);
}

#[test]
fn ten_thousand_requests_a_third_of_whose_clients_leave_are_all_told_of_and_leave_nothing() {
    let engines = [
        &[][..],
        &["--first-token", "10", "--tokens-per-second", "500"],
        &["--fail", "500", "--fail-share", "50"],
        &["--fail", "503", "--fail-share", "20"],
        &["--reset", "--fail-share", "30"],
        &["--truncate-after", "3", "--fail-share", "50"],
    ]
    .map(|flags| Engine::start("e", flags));
    let folder = Folder::new();
    let log = folder.path("access.log");
    folder.write("forebay.toml", &configuration(&engines, &log).to_string());
    let forebay = Forebay::ready_with(folder, "forebay.toml");
    let files = count(&forebay, "fd");
    still_answers(&forebay);
    let threads = count(&forebay, "task"); // Pingora starts one with the first time-out

    let mut dice = Dice(20_260_101);
    let draws: Vec<Draw> = (0..REQUESTS).map(|number| dice.draw(number)).collect();
    let told = ask(forebay.traffic(), &draws);

    all_is_over(&forebay, &engines);
    all_are_told_of(&forebay, &log, &told);
    for (what, before) in [("fd", files), ("task", threads)] {
        until(format!("no more in {what} than the {before} before"), || {
            (count(&forebay, what) <= before).then_some(())
        });
    }
    still_answers(&forebay);
}
