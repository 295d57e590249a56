//! Engines that die, stop or err under load: which requests fail for it, what is tried, and how soon all are served again.
//!
//! Nothing that a client is told may deceive it: every answer is checked to be one engine's, to the question that was asked,
//! and whole where it ends well. What an answer looks like is settled by the question: the engine repeats it.

use std::fs;
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::Value;

use crate::configuration::{Configuration, SECRET};
use crate::harness::{Engine, Folder, Forebay, Over, until};
use crate::http::{Answer, Client};
use crate::probes::until_state;

/// Connections that ask all the time.
const CLIENTS: usize = 64;
/// How long a client waits after a failure before it asks again.
const PAUSE: Duration = Duration::from_millis(200);
/// How long an engine is hurt at least.
const SPELL: Duration = Duration::from_millis(1500);
/// By how much a busy machine may be late to find that an engine is stopped.
const LATE: Duration = Duration::from_secs(3);
/// How long all engines are hurt.
const OUTAGE: Duration = Duration::from_secs(10);
/// An engine whose answers take a while, so that some are under way when it is hurt.
const PACE: [&str; 4] = ["--first-token", "40", "--tokens-per-second", "50"];
/// What each question ends with. The answer is "You said:" and the question: so many tokens.
const WORDS: &str = "one two three four five six seven";
const TOKENS: usize = 11;

/// Connections that ask one thing after another until it is over.
struct Load<'f> {
    forebay: &'f Forebay,
    over: AtomicBool,
    /// How many requests were answered whole so far.
    whole: AtomicUsize,
    asked: Mutex<Vec<Asked>>,
}

/// One request, from its client's side.
#[derive(Debug)]
struct Asked {
    from: Instant,
    /// When the header of the answer was there.
    answered: Option<Instant>,
    to: Instant,
    /// Who answered, as the answer says.
    engine: Option<String>,
    end: End,
}

/// How a request ended.
#[derive(Debug, PartialEq)]
enum End {
    /// Answered whole.
    Whole,
    /// Its answer had begun and broke off for all to see.
    Broken,
    /// With an engine's own error.
    Erred,
    /// Otherwise, and so it was seen.
    Failed(String),
}

/// A time in which an engine was hurt.
struct Spell {
    place: usize,
    how: How,
    from: Instant,
    to: Instant,
}

/// How an engine is hurt.
#[derive(Debug, PartialEq)]
enum How {
    Killed,
    /// It answers 500; from a moment on it was known to be ejected for that.
    Erring(Instant),
    /// It is stopped as by a debugger; from a moment on that was known.
    Stopped(Instant),
}

// === impl Load ===

impl<'f> Load<'f> {
    fn on(forebay: &'f Forebay) -> Self {
        Self { forebay, over: AtomicBool::new(false), whole: AtomicUsize::new(0), asked: Mutex::default() }
    }

    /// Asks while the trouble lasts. What it returns, and every request.
    fn during<T>(self, trouble: impl FnOnce(&Self) -> T) -> (T, Vec<Asked>) {
        let result = thread::scope(|scope| {
            let _over = Over(&self.over);
            for connection in 0..CLIENTS {
                let load = &self;
                scope.spawn(move || load.ask(connection));
            }
            trouble(&self)
        });
        (result, self.asked.into_inner().expect("not poisoned"))
    }

    /// One connection's requests, three of four as a stream.
    fn ask(&self, connection: usize) {
        let mut kept = None;
        for n in (0..).take_while(|_| !self.over.load(Ordering::Relaxed)) {
            let (question, stream) = (format!("{connection} {n} {WORDS}"), n % 4 > 0);
            let mut client = kept.take().unwrap_or_else(|| self.forebay.client());
            let (asked, stays) = put(&mut client, &question, stream);
            kept = stays.then_some(client);
            let whole = asked.end == End::Whole;
            self.whole.fetch_add(usize::from(whole), Ordering::Relaxed);
            self.asked.lock().expect("not poisoned").push(asked);
            if !whole {
                thread::sleep(PAUSE); // that is how such clients are
            }
        }
    }

    /// Waits for so long, and until so many more requests were answered.
    fn goes_on(&self, time: Duration, requests: usize) {
        let (from, before) = (Instant::now(), self.whole.load(Ordering::Relaxed));
        let more = || self.whole.load(Ordering::Relaxed) - before;
        until("requests are answered", || (from.elapsed() >= time && more() >= requests).then_some(()));
    }
}

/// Asks one question. How it ended, and whether the connection can be asked again.
fn put(client: &mut Client, question: &str, stream: bool) -> (Asked, bool) {
    let key = format!("authorization: Bearer {SECRET}");
    let messages = serde_json::json!([{"role": "user", "content": question}]);
    let body = serde_json::json!({"model": "m", "messages": messages, "stream": stream, "max_tokens": TOKENS});
    let from = Instant::now();
    let header = client.send("POST", "/v1/chat/completions", &[&key], &body.to_string()).and_then(|()| client.header());
    let answered = header.is_ok().then(Instant::now);
    let (engine, stays, end) = match header {
        Err(e) => (None, false, End::Failed(e.to_string())),
        Ok(mut answer) => {
            let came = client.body(&mut answer);
            let engine = answer.headers.get("x-engine").cloned();
            (engine, came.is_ok() && !answer.closes(), End::of(&answer, &came, question))
        }
    };
    (Asked { from, answered, to: Instant::now(), engine, end }, stays)
}

// === impl End ===

impl End {
    /// How a request ended whose answer came so.
    fn of(answer: &Answer, came: &io::Result<()>, question: &str) -> Self {
        match answer.status {
            200 => {
                trust(answer, came.is_ok(), question);
                if came.is_ok() { Self::Whole } else { Self::Broken }
            }
            500.. if answer.headers.contains_key("x-engine") => Self::Erred,
            status => Self::Failed(format!("{status}, {came:?}: {}", answer.text())),
        }
    }
}

/// An answer is one engine's, to this question, and the whole of it if it ended well.
fn trust(answer: &Answer, whole: bool, question: &str) {
    let (text, engine) = (answer.text(), &answer.headers["x-engine"]);
    let (mut said, mut done, mut error) = (String::new(), !answer.headers["content-type"].contains("event"), false);
    let pieces = text.split_inclusive("\n\n").filter_map(|event| match event.trim_end().strip_prefix("data: ") {
        Some("[DONE]") => {
            done = true;
            None
        }
        Some(data) => serde_json::from_str(data).ok(), // it breaks off within an event
        None if event.starts_with("event: error\n") => {
            error = true;
            None
        }
        None => serde_json::from_str(event).ok(),
    });
    for piece in pieces.collect::<Vec<Value>>() {
        assert_eq!(piece["system_fingerprint"], **engine, "two engines in one answer: {text}");
        let choice = &piece["choices"][0];
        said += ["delta", "message"].iter().find_map(|member| choice[member]["content"].as_str()).unwrap_or_default();
    }
    let expected = format!("You said: {question}");
    assert!(expected.starts_with(&said), "not what the engine says to {question:?}: {text}");
    assert!(!whole || done && !error && said == expected, "it ended as if it were whole: {text}");
}

// === impl Asked ===

impl Asked {
    /// Whether the failure of an engine hurt so excuses how it ended: its answer had begun, or was the engine's own.
    fn is_excused_by(&self, spell: &Spell) -> bool {
        let meets = self.from <= spell.to && spell.from <= self.to;
        let excused = match spell.how {
            How::Killed | How::Stopped(_) => End::Broken,
            How::Erring(_) => End::Erred,
        };
        meets && self.is_by(spell.place) && self.end == excused
    }

    /// Whether it waited for a stopped engine all the time: asked before that was known, answered when it went on.
    fn is_held_by(&self, spell: &Spell) -> bool {
        let How::Stopped(found) = spell.how else { return false };
        self.is_by(spell.place) && self.from < found && self.answered.is_some_and(|answered| answered > spell.to)
    }

    fn is_by(&self, place: usize) -> bool {
        self.engine.as_deref() == Some(&*name(place))
    }
}

/// The engine in this place of the pool.
fn name(place: usize) -> String {
    format!("e{place}")
}

fn four() -> Vec<Engine> {
    (0..4).map(|place| Engine::start(&name(place), &PACE)).collect()
}

fn in_front_of(engines: &[Engine], health: &str) -> Configuration {
    let addresses: Vec<&str> = engines.iter().map(|engine| &*engine.address).collect();
    Configuration::empty().pool("p", &addresses, health).model("m", "p").key("tester", SECRET, "[\"*\"]")
}

/// The sum of a metric over the series that have this label.
fn sum(forebay: &Forebay, metric: &str, label: &str) -> usize {
    let text = forebay.admin("/metrics").text();
    let series = text.lines().filter(|line| line.starts_with(&format!("{metric}{{")) && line.contains(label));
    series.map(|line| line.rsplit(' ').next().and_then(|count| count.parse::<usize>().ok()).expect("a count")).sum()
}

// === each in turn ===

fn ejections(forebay: &Forebay, engine: &Engine) -> usize {
    let label = format!("reason=\"server_error\",server={:?}", engine.address);
    sum(forebay, "forebay_server_ejections_total", &label)
}

/// Kills an engine and waits until that is known.
fn kill(load: &Load<'_>, engine: &mut Engine, place: usize) -> Spell {
    let from = Instant::now();
    engine.kill();
    until_state(load.forebay, place, "down");
    Spell { place, how: How::Killed, from, to: Instant::now() }
}

/// An engine is killed and comes back.
fn killed(load: &Load<'_>, engine: &mut Engine, place: usize) -> Vec<Spell> {
    let spell = kill(load, engine, place);
    load.goes_on(SPELL, 250);
    engine.restart();
    until_state(load.forebay, place, "up");
    vec![spell]
}

/// An engine is killed, comes back and answers 500, is ejected, fails two trials, and is killed again for a good one.
fn erring(load: &Load<'_>, engine: &mut Engine, place: usize) -> Vec<Spell> {
    let (first, from, before) = (kill(load, engine, place), Instant::now(), ejections(load.forebay, engine));
    engine.restart_with(&["--fail", "500"]);
    until_state(load.forebay, place, "ejected");
    let ejected = Instant::now();
    until("two trials fail", || (ejections(load.forebay, engine) >= before + 3).then_some(()));
    load.goes_on(SPELL.saturating_sub(ejected.elapsed()), 250);
    let second = kill(load, engine, place);
    let erring = Spell { place, how: How::Erring(ejected), from, to: second.to };
    engine.restart_with(&PACE);
    until_state(load.forebay, place, "up");
    vec![first, erring, second]
}

#[test]
fn while_two_good_engines_are_left_one_request_in_a_thousand_fails_at_most() {
    let mut engines = four();
    let forebay = Forebay::ready(&in_front_of(&engines, "").more("[pool.p.eject]\nduration = \"300ms\""));
    // Two halves of the pool, in each of which one engine at most is hurt at a time: once in each way.
    let (spells, asked) = Load::on(&forebay).during(|load| {
        load.goes_on(Duration::ZERO, 100);
        let (first, second) = engines.split_at_mut(2);
        thread::scope(|scope| {
            let halves = [(0, first, [killed, erring]), (2, second, [erring, killed])];
            let halves = halves.map(|(place, half, ways)| {
                scope.spawn(move || -> Vec<Spell> {
                    let each = half.iter_mut().zip(place..);
                    each.flat_map(|(engine, place)| ways.map(|way| way(load, engine, place))).flatten().collect()
                })
            });
            halves.into_iter().flat_map(|half| half.join().expect("no panic")).collect::<Vec<_>>()
        })
    });
    let excused = |asked: &&Asked| spells.iter().any(|spell| asked.is_excused_by(spell));
    let failed: Vec<&Asked> = asked.iter().filter(|asked| asked.end != End::Whole && !excused(asked)).collect();
    assert!(failed.len() * 1000 <= asked.len(), "{} of {} failed: {failed:?}", failed.len(), asked.len());
    assert!(asked.iter().any(|asked| asked.end == End::Broken), "an engine was killed amid its streams");
    for spell in &spells {
        let How::Erring(ejected) = spell.how else { continue };
        let (early, late): (Vec<&Asked>, Vec<&Asked>) =
            asked.iter().filter(|asked| asked.is_excused_by(spell)).partition(|asked| asked.from < ejected);
        assert!((5..5 + CLIENTS).contains(&early.len()), "{} errors until the ejection", early.len());
        let trials = ejections(&forebay, &engines[spell.place]) - 1;
        assert!(late.len() <= trials, "{} errors in {trials} trials", late.len());
    }
}

/// An engine is stopped, which is found soon enough, and goes on.
fn stopped(load: &Load<'_>, engine: &Engine, place: usize, limit: Duration) -> Spell {
    let from = Instant::now();
    engine.signal("STOP");
    until("it is found", || {
        let state = load.forebay.server("p", place)["state"].clone();
        ["ejected", "down"].iter().any(|found| state == *found).then_some(())
    });
    let found = Instant::now();
    assert!(found - from <= limit + LATE, "found after {:?}", found - from);
    load.goes_on(SPELL, 250);
    let to = Instant::now();
    engine.signal("CONT");
    until_state(load.forebay, place, "up");
    Spell { place, how: How::Stopped(found), from, to }
}

/// Each engine is stopped in turn, two at a time, which is to be found within the limit. Almost all clients wait for those two
/// then, so that on a busy machine, where little else was asked, the common budget would not let all of them move on at once.
fn stopping(health: &str, stall: &str, limit: Duration) {
    let engines = four();
    let pool = format!(
        "[pool.p.eject]\nduration = \"300ms\"\nstall = {stall:?}\nstall_per_100kb = \"0s\"\n\
         [pool.p.retry]\nbudget = \"100%\""
    );
    let forebay = Forebay::ready(&in_front_of(&engines, health).more(&pool));
    let (spells, asked) = Load::on(&forebay).during(|load| {
        load.goes_on(Duration::ZERO, 100);
        thread::scope(|scope| {
            let halves = [0, 2].map(|first| {
                let engines = &engines;
                scope.spawn(move || [first, first + 1].map(|place| stopped(load, &engines[place], place, limit)))
            });
            halves.into_iter().flat_map(|half| half.join().expect("no panic")).collect::<Vec<_>>()
        })
    });
    let excused = |asked: &Asked| asked.end == End::Whole || spells.iter().any(|spell| asked.is_excused_by(spell));
    let held = |asked: &Asked| spells.iter().any(|spell| asked.is_held_by(spell));
    let failed: Vec<&Asked> = asked.iter().filter(|asked| !excused(asked) || held(asked)).collect();
    assert!(failed.len() * 1000 <= asked.len(), "{} of {} failed: {failed:?}", failed.len(), asked.len());
}

#[test]
fn a_stopped_engine_is_found_by_its_silence_and_who_waits_for_it_moves_on() {
    stopping("", "1s", Duration::from_secs(1));
}

#[test]
fn a_stopped_engine_is_found_by_its_probes_and_who_waits_for_it_moves_on() {
    // An interval until the next probe, and from then on each begins when the one before is over.
    let health = "interval = \"500ms\"\ntimeout = \"1s\"\nfall = 3";
    stopping(health, "60s", Duration::from_millis(500) + 3 * Duration::from_secs(1));
}

// === all at once ===

/// One request, as the access log has it.
struct Logged {
    from: Timestamp,
    /// When its last attempt was answered, or had failed.
    settled: Timestamp,
    attempts: usize,
}

fn logged(path: &str) -> Vec<Logged> {
    let text = fs::read_to_string(path).expect("a log");
    let whole = text.lines().filter(|line| line.ends_with('}'));
    let record = |line: &str| {
        let record: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        let from: Timestamp = record["time"].as_str().and_then(|time| time.parse().ok()).expect("a time");
        let millis = record["ttfb_ms"].as_f64().or(record["duration_ms"].as_f64()).expect("a duration");
        let attempts = record["attempts"].as_u64().and_then(|attempts| usize::try_from(attempts).ok());
        let settled = from + Duration::from_secs_f64(millis / 1e3);
        Logged { from, settled, attempts: attempts.expect("a count") }
    };
    whole.map(record).collect()
}

/// Whenever a request was sent again, the retries of the last ten seconds were few enough for the requests in them. The log does
/// not say when exactly a request began its way or was sent again, only that it was before its answer: what may lie outside the
/// ten seconds is not counted as a retry, and what may lie within them is counted as a request.
fn within_the_budget(log: &[Logged]) {
    const WINDOW: Duration = Duration::from_secs(10);
    for Logged { from, settled, .. } in log.iter().filter(|logged| logged.attempts > 1) {
        let (begins, may_begin) = (*settled - WINDOW, *from - WINDOW);
        let within = log.iter().filter(|logged| logged.from > begins && logged.settled <= *settled);
        let retries: usize = within.map(|logged| logged.attempts.saturating_sub(1)).sum();
        let requests = log.iter().filter(|logged| logged.settled > may_begin && logged.from <= *settled).count();
        assert!(retries <= requests / 5 + 30, "{retries} retries of {requests} requests until {settled}");
    }
}

/// For a while no engine can be connected to, or all answer as these flags say: what is tried, and how soon it is over.
fn outage(flags: Option<&[&str]>) {
    const RISE: u32 = 2;
    const INTERVAL: Duration = Duration::from_secs(1);
    let (folder, mut engines) = (Folder::new(), four());
    let access_log = folder.path("access.log");
    let health = format!("interval = \"{}s\"\nrise = {RISE}", INTERVAL.as_secs());
    let configuration = in_front_of(&engines, &health).more(&format!("[log]\naccess = {access_log:?}"));
    let forebay = Forebay::start_in(folder, &configuration);
    forebay.until_ready();
    let restart = |engines: &mut [Engine], flags: &[&str]| {
        thread::scope(|scope| engines.iter_mut().for_each(|engine| drop(scope.spawn(|| engine.restart_with(flags)))));
        Instant::now()
    };
    let ((hurt, healed, listening), asked) = Load::on(&forebay).during(|load| {
        load.goes_on(Duration::ZERO, 100);
        let hurt = flags.map(|flags| restart(&mut engines, flags)).unwrap_or_else(|| {
            engines.iter_mut().for_each(Engine::kill);
            Instant::now()
        });
        until("the outage is over", || (hurt.elapsed() >= OUTAGE).then_some(())); // its length is what is tested
        let healed = Instant::now();
        let listening = restart(&mut engines, &PACE);
        load.goes_on(Duration::ZERO, 100);
        (hurt, healed, listening)
    });
    let whole = || asked.iter().filter(|asked| asked.end == End::Whole);
    assert_eq!(whole().filter(|asked| asked.from > hurt && asked.to < healed).count(), 0, "no engine was well");
    let served = whole().filter_map(|asked| asked.answered).filter(|at| *at > healed).min().expect("it is over");
    let took = served.saturating_duration_since(listening);
    assert!(took <= RISE * INTERVAL + Duration::from_secs(1), "served {took:?} after all listened");
    let after = |asked: &&Asked| asked.from > served.max(listening);
    let failed: Vec<&Asked> = asked.iter().filter(after).filter(|asked| asked.end != End::Whole).collect();
    assert!(failed.is_empty(), "{} failed after the recovery: {failed:?}", failed.len());
    let log = until("all is logged", || Some(logged(&access_log)).filter(|log| log.len() == asked.len()));
    let attempts = sum(&forebay, "forebay_upstream_attempts_total", "pool=\"p\"");
    assert_eq!(log.iter().map(|logged| logged.attempts).sum::<usize>(), attempts);
    within_the_budget(&log);
}

#[test]
fn an_outage_of_killed_engines_costs_no_more_than_the_budget_and_ends_with_it() {
    outage(None);
}

#[test]
fn an_outage_of_engines_that_are_busy_costs_no_more_than_the_budget_and_ends_with_it() {
    outage(Some(&["--fail", "503"]));
}

#[test]
fn an_outage_of_engines_that_err_costs_no_more_than_the_budget_and_ends_with_it() {
    outage(Some(&["--fail", "500"]));
}
