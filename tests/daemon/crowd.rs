//! Clients of both protocols that ask one thing after another, some of whom leave at any moment; and what is left of them.
//!
//! Each knows what became of its requests, so that the daemon's word can be held against it. An answer that is whole must be one
//! to the question that was asked: the engine repeats it.

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
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use crate::configuration::SECRET;
use crate::harness::{Engine, Forebay, until};
use crate::http::{Answer, Client};

/// How many requests an HTTP/2 client has under way at once.
const AT_ONCE: usize = 4;

/// One request, and what its client does.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Draw {
    /// What its id is made of.
    pub(crate) number: usize,
    /// Path and model.
    pub(crate) way: (&'static str, &'static str),
    pub(crate) stream: bool,
    /// What the prompt begins with.
    pub(crate) subject: usize,
    /// Further words of it.
    pub(crate) words: usize,
    /// Bytes of a last one.
    pub(crate) padding: usize,
    /// Whether a cache may keep the answer.
    pub(crate) settled: bool,
    pub(crate) cache_control: Option<&'static str>,
    /// How long its client waits before it asks.
    pub(crate) pause: Duration,
    pub(crate) leaves: Option<Leaves>,
}

/// How a client leaves.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Leaves {
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
pub(crate) enum Told {
    /// It was answered whole, with this status and by this use of the cache.
    Answered(u16, Option<&'static str>),
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
pub(crate) struct Dice(pub(crate) u64);

/// Sends what these clients ask, each its own, and leaves as they say.
pub(crate) fn ask<D: Iterator<Item = Draw> + Send>(
    address: &str,
    over_http1: Vec<D>,
    over_http2: Vec<D>,
) -> Vec<(Draw, Told)> {
    thread::scope(|scope| {
        let first: Vec<_> =
            over_http1.into_iter().map(|draws| scope.spawn(move || self::over_http1(address, draws))).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let second = over_http2.into_iter().map(|draws| self::over_http2(address, draws));
        let second = runtime.block_on(join_all(second));
        let first = first.into_iter().map(|client| client.join().expect("no failure"));
        first.chain(second).flatten().collect()
    })
}

// === impl Dice ===

impl Dice {
    /// The next number below this one.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % end as u64) as usize
    }

    /// How one of so many clients leaves.
    pub(crate) fn leaves(&mut self, one_of: usize) -> Option<Leaves> {
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
        (self.below(one_of) == 0).then_some(leaves)
    }
}

// === impl Draw ===

impl Draw {
    fn id(&self) -> String {
        format!("r-{}", self.number)
    }

    fn content(&self) -> String {
        format!("{}{}{}", self.subject, " word".repeat(self.words), " x".to_owned() + &"x".repeat(self.padding))
    }

    fn body(&self) -> String {
        let messages = json!([{"role": "user", "content": self.content()}]);
        let mut body = json!({"model": self.way.1, "messages": messages, "stream": self.stream});
        if self.settled {
            body["temperature"] = 0.into();
        }
        body.to_string()
    }

    /// Its header's fields, but for the length.
    fn fields(&self) -> Vec<(&'static str, String)> {
        let cache_control = self.cache_control.map(|said| ("cache-control", said.to_owned()));
        let fields = [("authorization", format!("Bearer {SECRET}")), ("x-request-id", self.id())];
        fields.into_iter().chain(cache_control).collect()
    }

    /// As HTTP/1.1 has its header.
    fn head(&self, length: usize) -> String {
        let fields: String = self.fields().iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        format!("POST {} HTTP/1.1\r\nhost: forebay\r\n{fields}content-length: {length}\r\n\r\n", self.way.0)
    }

    /// The same as HTTP/2 has it.
    fn request(&self) -> http::Request<()> {
        let request = http::Request::post(format!("http://forebay{}", self.way.0));
        let request = self.fields().into_iter().fold(request, |request, (name, value)| request.header(name, value));
        request.body(()).expect("a request")
    }

    /// A whole answer, which must be one to this very question.
    fn answered(&self, answer: &Answer) -> Told {
        if answer.status == 200 {
            let question = format!("You said: {} —", self.content());
            assert!(said(answer).starts_with(&question), "{self:?}: {}", answer.text());
        }
        let cached = answer.headers.get("x-forebay-cache").map(|said| match &**said {
            "HIT" => "hit",
            "MISS" => "miss",
            "COALESCED" => "coalesced",
            "BYPASS" => "bypass",
            other => panic!("{other}"),
        });
        Told::Answered(answer.status, cached)
    }
}

/// What an engine says in an answer, in one piece or as a stream to its end.
fn said(answer: &Answer) -> String {
    if !answer.headers["content-type"].starts_with("text/event-stream") {
        return answer.json()["choices"][0]["message"]["content"].as_str().expect("a text").to_owned();
    }
    let text = answer.text();
    let events = text.strip_suffix("data: [DONE]\n\n").expect("a whole stream");
    let events = events.split_terminator("\n\n").map(|event| event.strip_prefix("data: ").expect("an event"));
    let events = events.map(|event| serde_json::from_str::<Value>(event).expect("JSON"));
    events.filter_map(|event| event["choices"][0]["delta"]["content"].as_str().map(str::to_owned)).collect()
}

// === over HTTP/1.1 ===

/// Sends these one after the other, and leaves as they say.
fn over_http1(address: &str, draws: impl Iterator<Item = Draw>) -> Vec<(Draw, Told)> {
    let mut kept = None;
    let mut ask = |draw: &Draw| {
        thread::sleep(draw.pause); // the client's pace
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
        draw.answered(&answer)
    };
    draws.map(|draw| (draw, ask(&draw))).collect()
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
async fn over_http2(address: &str, mut draws: impl Iterator<Item = Draw>) -> Vec<(Draw, Told)> {
    let (mut kept, mut all) = (None, Vec::new());
    loop {
        let few: Vec<Draw> = draws.by_ref().take(AT_ONCE).collect();
        if few.is_empty() {
            return all;
        }
        let connection = match kept.take() {
            Some(connection) => connection,
            None => Http2::connect(address).await,
        };
        let told = join_all(few.iter().map(|draw| connection.ask(draw))).await;
        let told = few.into_iter().zip(told);
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
        tokio::time::sleep(draw.pause).await; // the client's pace
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
            let (header, mut answer) = response.into_parts();
            let mut whole = Answer::of(&header);
            while let Some(piece) = answer.data().await {
                let Ok(piece) = piece else { return if self.cut.get() { Told::Left } else { Told::Broken } };
                let _ = answer.flow_control().release_capacity(piece.len()); // a stream that is over needs none
                whole.body.extend(piece);
                if at.is_some() {
                    break;
                }
            }
            if at.is_none() {
                return draw.answered(&whole);
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
pub(crate) fn sum(text: &str, name: &str) -> f64 {
    let series = text.lines().filter_map(|line| line.strip_prefix(name)?.rsplit_once(' '));
    let series = series.filter(|(labels, _)| labels.is_empty() || labels.starts_with('{'));
    series.map(|(_, value)| value.parse::<f64>().expect("a number")).sum()
}

pub(crate) fn metrics(address: &str) -> String {
    Client::connect(address).get("/metrics").text()
}

/// How many files, or threads, forebay has open; but for clocks: Pingora 0.9.1 starts another one, for good, whenever the one that it
/// has got no turn for two seconds.
pub(crate) fn count(forebay: &Forebay, what: &str) -> usize {
    let path = format!("/proc/{}/{what}", forebay.status()["pid"]);
    let names = fs::read_dir(path).expect("a process").map(|entry| entry.expect("an entry").path().join("comm"));
    names.filter(|name| fs::read_to_string(name).map_or(true, |name| name.trim_end() != "Timer thread")).count()
}

/// That each of these models answers, at least when its bad engines have had their turn.
pub(crate) fn still_answers(forebay: &Forebay, models: [&str; 2]) {
    for model in models {
        until(model, || forebay.client().chat(model).is_ok_and(|answer| answer.status == 200).then_some(()));
    }
}

/// That nothing is under way any more, in forebay and in its engines.
pub(crate) fn all_is_over(forebay: &Forebay, engines: &[Engine]) {
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

/// That each request has one record and one count, which say what its client saw. The access log, by request.
pub(crate) fn all_are_told_of(forebay: &Forebay, log: &str, told: &[(Draw, Told)]) -> HashMap<String, Value> {
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
    let gone = how_many(&records, |record| record["end"] == "client_gone");
    assert_eq!(sum(&metrics, "forebay_client_aborts_total"), gone as f64);
    let queued = how_many(&records, |record| record["queue_ms"].is_number());
    assert_eq!(sum(&metrics, "forebay_queue_wait_seconds_count"), queued as f64);
    records
}

/// How many records are like that.
pub(crate) fn how_many(records: &HashMap<String, Value>, like: impl Fn(&Value) -> bool) -> usize {
    records.values().filter(|record| like(record)).count()
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
        Told::Answered(status, cached) => {
            record.is_some_and(|record| record["status"] == status && record["cache"].as_str() == cached)
                && matches!(end, Some("complete" | "error"))
        }
        Told::Broken => end == Some("upstream_truncated"),
        Told::Left => record.is_some(),
        Told::Cut => true,
        Told::Never => record.is_none(),
    };
    assert!(good, "{draw:?}: {told:?}, and {record:?}");
}
