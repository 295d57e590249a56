//! A minute of everything at once before two models, one of them with a cache that is too small, and engines that err: a fifth of
//! the clients leave at any moment. All are told of, and in the end every count is where it belongs.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::configuration::{Configuration, SECRET};
use crate::crowd::{Dice, Draw, all_are_told_of, all_is_over, ask, count, how_many, metrics, still_answers, sum};
use crate::harness::{Engine, Folder, Forebay, Over, until};
use crate::http::Client;

const MINUTE: Duration = Duration::from_secs(60);
/// How many connections there are over HTTP/1.1, one request each at a time, and over HTTP/2, four each.
const CLIENTS: [usize; 2] = [16, 4];
/// How many different prompts there are. Which is asked follows Zipf's law.
const PROMPTS: f64 = 3000.0;
/// Of the cache, in bytes.
const MEMORY: f64 = (1 << 20) as f64;
/// How fast each engine is: a whole answer in 120 ms.
const PACE: [&str; 6] = ["--first-token", "60", "--tokens-per-second", "400", "--jitter", "50"];

fn draw(dice: &mut Dice, number: usize) -> Draw {
    // The number of a prompt is as probable as its inverse: its logarithm is as probable as any other.
    let subject = PROMPTS.powf(dice.below(1 << 20) as f64 / f64::from(1 << 20)) as usize;
    // The same prompt is the same each time.
    let mut of_prompt = Dice(subject as u64);
    Draw {
        number,
        way: ("/v1/chat/completions", if dice.below(4) == 0 { "plain" } else { "kept" }),
        stream: of_prompt.below(2) == 0,
        subject,
        words: 1 + of_prompt.below(10),
        padding: if of_prompt.below(20) == 0 { of_prompt.below(100_000) } else { 0 },
        settled: dice.below(10) > 0,
        cache_control: match dice.below(50) {
            0 => Some("no-cache"),
            1 => Some("no-store"),
            2 => Some("only-if-cached"),
            _ => None,
        },
        pause: Duration::from_millis(dice.below(150) as u64),
        leaves: dice.leaves(5),
    }
}

/// Models `plain` and `kept`, whose answers are kept for a short while, before these engines.
fn configuration(folder: &Folder, engines: &[Engine], log: &str) -> Configuration {
    let servers: Vec<&str> = engines.iter().map(|engine| &*engine.address).collect();
    Configuration::empty()
        .admin_listen(&format!("unix:{}", folder.path("admin.sock")))
        .more(&format!("[pool.p]\nservers = {servers:?}\nmax_in_flight = 6\n[pool.p.health]\ninterval = \"100ms\""))
        .more("[pool.p.queue]\nsize = 1000\ntimeout = \"60s\"\n[pool.p.connections]\nidle_timeout = \"1s\"")
        .more("[cache]\nmemory = \"1MiB\"\nmax_body = \"64KiB\"\n[model.kept.cache]\nttl = \"2s\"")
        .model("plain", "p")
        .model("kept", "p")
        .key("tester", SECRET, "[\"*\"]")
        .more(&format!("[log]\naccess = {log:?}"))
}

/// What one client asks until the time is over.
fn draws(seed: u64, numbers: &AtomicUsize, until: Instant) -> impl Iterator<Item = Draw> + Send {
    let mut dice = Dice(seed);
    std::iter::from_fn(move || (Instant::now() < until).then(|| draw(&mut dice, numbers.fetch_add(1, Relaxed))))
}

/// The most bytes that the cache had while `load` lasted, and what came of that.
fn most_kept<T>(forebay: &Forebay, load: impl FnOnce() -> T) -> (f64, T) {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let end = Over(&over);
        let watch = scope.spawn(|| {
            let mut most = 0_f64;
            while !over.load(Relaxed) {
                most = most.max(sum(&metrics(forebay.admin_address()), "forebay_cache_bytes"));
                thread::sleep(Duration::from_millis(200)); // between two looks
            }
            most
        });
        let came = load();
        drop(end);
        (watch.join().expect("no failure"), came)
    })
}

/// How many prompts the engines are at.
fn running(engines: &[Engine]) -> f64 {
    engines.iter().map(|engine| sum(&metrics(&engine.address), "vllm:num_requests_running")).sum()
}

/// Streams of half a minute, several clients each: when all have left, the engines are free at once.
fn who_leaves_frees_the_engines(forebay: &Forebay, engines: &[Engine]) {
    let clients: Vec<Client> = (0..12)
        .map(|n| {
            let messages = serde_json::json!([{"role": "user", "content": format!("long {}", n % 4)}]);
            let mut body = serde_json::json!({"model": "kept", "messages": messages, "stream": true, "seed": 1});
            body["max_tokens"] = 15_000.into();
            let key = format!("authorization: Bearer {SECRET}");
            let mut client = forebay.client();
            client.send("POST", "/v1/chat/completions", &[&key], &body.to_string()).expect("sent");
            client
        })
        .collect();
    until("the engines are at it", || (running(engines) > 0.0).then_some(()));
    drop(clients);
    let left = Instant::now();
    until("the engines are free", || (running(engines) == 0.0).then_some(()));
    println!("free {:?} after the last client left", left.elapsed());
    assert!(left.elapsed() < Duration::from_secs(5), "{:?}", left.elapsed());
}

/// That the cache's counts are those of the access log, and that there were many of each kind.
fn the_cache_is_told_of(forebay: &Forebay, records: &[&Value]) {
    let text = metrics(forebay.admin_address());
    for result in ["hit", "miss", "coalesced", "bypass"] {
        let seen = records.iter().filter(|record| record["cache"] == result).count();
        println!("{result}: {seen}");
        assert!(seen > 20, "{result}: only {seen}");
        let series = format!("forebay_cache_requests_total{{model=\"kept\",result={result:?}}}");
        assert_eq!(sum(&text, &series), seen as f64, "{result}");
    }
    let attempts = |told: &dyn Fn(&Value) -> bool| {
        let told = records.iter().filter(|record| told(record));
        told.map(|record| record["attempts"].as_f64().expect("a number")).sum::<f64>()
    };
    // A computation is told of with its first asker, unless that one left before the answer began.
    let alone = attempts(&|record| matches!(record["cache"].as_str(), None | Some("bypass")));
    let first = attempts(&|record| record["cache"] == "miss");
    let all = sum(&text, "forebay_upstream_attempts_total");
    let misses = records.iter().filter(|record| record["cache"] == "miss").count();
    assert!((alone + first..=alone + 3.0 * misses as f64).contains(&all), "{alone}, {first} and {misses}: {all}");
    let evicted = sum(&text, "forebay_cache_evictions_total");
    println!("evictions: {evicted}");
    assert!(evicted > 50.0, "only {evicted} were thrown out");
}

/// That nothing is kept after a purge.
fn a_purge_leaves_nothing(forebay: &Forebay) {
    let kept = forebay.status()["cache"]["entries"].clone();
    let purged = Client::connect(forebay.admin_address()).ask("POST", "/cache/purge", &[], "{}").expect("an answer");
    assert_eq!(purged.json()["purged"], kept);
    let cache = forebay.status()["cache"].clone();
    assert_eq!((&cache["entries"], &cache["bytes"]), (&0.into(), &0.into()));
}

#[test]
fn a_minute_of_mixed_load_with_a_cache_leaves_every_count_where_it_belongs() {
    let engines = [&["--fail", "500"][..], &["--fail", "503"], &["--truncate-after", "3"]]
        .map(|fails| Engine::start("e", &[&PACE[..], fails, &["--fail-share", "3"]].concat()));
    let folder = Folder::new();
    let log = folder.path("access.log");
    let configuration = configuration(&folder, &engines, &log);
    let forebay = Forebay::start_in(folder, &configuration);
    forebay.until_ready();
    let files = count(&forebay, "fd");
    still_answers(&forebay, ["plain", "kept"]);
    let threads = count(&forebay, "task");

    let (numbers, until_then) = (AtomicUsize::new(0), Instant::now() + MINUTE);
    let clients: [Vec<_>; 2] =
        CLIENTS.map(|many| (0..many).map(|n| draws((many * 100 + n) as u64, &numbers, until_then)).collect());
    let [over_http1, over_http2] = clients;
    let (most, told) = most_kept(&forebay, || ask(forebay.traffic(), over_http1, over_http2));
    println!("{} requests, {most} bytes kept at most", told.len());
    assert!(most <= MEMORY, "{most}");

    who_leaves_frees_the_engines(&forebay, &engines);
    all_is_over(&forebay, &engines);
    let records = all_are_told_of(&forebay, &log, &told);
    let gone = how_many(&records, |record| record["end"] == "client_gone");
    assert!(gone > told.len() / 10, "only {gone} of {} have left", told.len());
    the_cache_is_told_of(&forebay, &records.values().collect::<Vec<_>>());
    a_purge_leaves_nothing(&forebay);
    for (what, before) in [("fd", files), ("task", threads)] {
        until(format!("no more in {what} than the {before} before"), || {
            (count(&forebay, what) <= before).then_some(())
        });
    }
    let said = forebay.log();
    let error = said.lines().find(|line| line.contains("\"level\":\"error\"") || line.contains("panicked"));
    assert_eq!(error, None);
    still_answers(&forebay, ["plain", "kept"]);
}
