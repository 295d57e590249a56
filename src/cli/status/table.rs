//! A daemon's report as lines of at most 80 columns.
//!
//! Its text comes from elsewhere, so what would move a terminal's cursor is taken out of it.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use jiff::Timestamp;
use serde::Deserialize;

/// The longest line, in characters.
const WIDTH: usize = 80;
/// Spaces between two columns.
const GAP: &str = "  ";
/// Why a server is up that is simply well.
const WELL: &str = "probe answered";

/// What `GET /status` answers, as far as it is shown.
#[derive(Debug, Deserialize)]
pub(super) struct Report {
    version: String,
    pid: u32,
    started: String,
    config: Config,
    pools: BTreeMap<String, Pool>,
}

#[derive(Debug, Deserialize)]
struct Config {
    files: Vec<String>,
    last_reload: String,
    faults: Vec<String>,
    upgrade_needed: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Pool {
    servers: Vec<Server>,
    queue: Option<Queue>,
}

#[derive(Debug, Deserialize)]
struct Queue {
    waiting: u64,
    size: u64,
}

#[derive(Debug, Deserialize)]
struct Server {
    name: String,
    state: String,
    why: String,
    since: String,
    in_flight: u64,
    weight: u32,
    configured_weight: u32,
    requests: u64,
    errors: u64,
    last_probe: Option<String>,
}

/// Requests a second of each server, from one report to the next.
#[derive(Debug, Default)]
pub(super) struct Rates {
    last: Option<Counted>,
    a_second: HashMap<(String, String), f64>,
}

/// What a report counted.
#[derive(Debug)]
struct Counted {
    at: Instant,
    pid: u32,
    requests: HashMap<(String, String), u64>,
}

/// A line of the table.
enum Line {
    /// Across the columns: where it begins, and what it says.
    Whole(usize, String),
    /// A cell for each column.
    Cells(Vec<String>),
}

// === impl Rates ===

impl Rates {
    /// Takes in a report that was read at `at`.
    pub(super) fn update(&mut self, report: &Report, at: Instant) {
        let servers = report.pools.iter().flat_map(|(pool, all)| all.servers.iter().map(move |server| (pool, server)));
        let requests = servers.map(|(pool, server)| ((pool.clone(), server.name.clone()), server.requests));
        let counted = Counted { at, pid: report.pid, requests: requests.collect() };
        self.a_second.clear();
        if let Some(last) = self.last.take().filter(|last| last.pid == counted.pid && last.at < at) {
            let seconds = (at - last.at).as_secs_f64();
            for (server, requests) in &counted.requests {
                let more = last.requests.get(server).and_then(|before| requests.checked_sub(*before));
                self.a_second.extend(more.map(|more| (server.clone(), more as f64 / seconds)));
            }
        }
        self.last = Some(counted);
    }

    fn of(&self, pool: &str, server: &str) -> String {
        match self.a_second.get(&(pool.to_owned(), server.to_owned())) {
            Some(rate) if *rate < 100.0 => format!("{rate:.1}"),
            Some(rate) => count(*rate as u64),
            None => "-".into(),
        }
    }
}

// === what is shown ===

/// The whole report as it is at `now`, with a column of `rates` if they are given.
pub(super) fn table(report: &Report, rates: Option<&Rates>, now: Timestamp) -> String {
    let mut head = vec!["SERVER", "STATE", "SINCE", "IN FLIGHT", "REQUESTS", "ERRORS", "PROBED"];
    if rates.is_some() {
        head.insert(5, "REQ/S");
    }
    let mut lines = vec![Line::Cells(head.into_iter().map(str::to_owned).collect())];
    for (pool, all) in &report.pools {
        let queue = all.queue.as_ref().map(|queue| format!(": {} of {} in the queue", queue.waiting, queue.size));
        lines.push(Line::Whole(0, format!("{pool}{}", queue.unwrap_or_default())));
        for server in &all.servers {
            lines.push(Line::Cells(cells(server, rates.map(|rates| rates.of(pool, &server.name)), now)));
            let is_well = server.state == "up" && server.why == WELL;
            lines.extend((!is_well).then(|| Line::Whole(4, server.why.clone())));
            let Server { weight, configured_weight, .. } = server;
            lines.extend((weight != configured_weight).then(|| {
                Line::Whole(4, format!("weight {weight} by the operator; {configured_weight} in the configuration"))
            }));
        }
    }
    let mut shown = above(report, now);
    shown.push(String::new());
    let widths = widths(&lines);
    shown.extend(lines.iter().map(|line| match line {
        Line::Whole(indent, text) => format!("{:indent$}{}", "", short(text, WIDTH - indent)),
        Line::Cells(cells) => row(cells, &widths),
    }));
    shown.iter().map(|line| format!("{}\n", line.trim_end())).collect()
}

fn above(report: &Report, now: Timestamp) -> Vec<String> {
    let Report { version, pid, config, .. } = report;
    let up = age(&report.started, now);
    let mut lines = vec![format!("forebay {version}, pid {pid}, up {up}")];
    let main = config.files.first().map_or("", String::as_str);
    let more = match config.files.len() {
        0 | 1 => String::new(),
        files => format!(" and {} more", files - 1),
    };
    let ago = age(&config.last_reload, now);
    if config.faults.is_empty() {
        lines.push(format!("configuration loaded {ago} ago: {main}{more}"));
    } else {
        lines.push(format!("configuration not reloaded {ago} ago; the former goes on, for this one has faults:"));
        lines.extend(config.faults.iter().map(|fault| format!("  {fault}")));
    }
    if !config.upgrade_needed.is_empty() {
        lines.push(format!("waits for an upgrade: {}", config.upgrade_needed.join(", ")));
    }
    lines.iter().map(|line| short(line, WIDTH)).collect()
}

fn cells(server: &Server, rate: Option<String>, now: Timestamp) -> Vec<String> {
    let probed = server.last_probe.as_ref().map_or("-".into(), |at| age(at, now));
    let mut cells = vec![
        format!("  {}", server.name),
        short(&server.state, 10),
        age(&server.since, now),
        count(server.in_flight),
        count(server.requests),
        count(server.errors),
        probed,
    ];
    if let Some(rate) = rate {
        cells.insert(5, rate);
    }
    cells
}

/// As wide as each column's widest cell; the first one yields where a line would be too long.
fn widths(lines: &[Line]) -> Vec<usize> {
    let mut widths: Vec<usize> = Vec::new();
    for line in lines {
        let Line::Cells(cells) = line else { continue };
        widths.resize(cells.len(), 0);
        for (width, cell) in widths.iter_mut().zip(cells) {
            *width = (*width).max(cell.chars().count());
        }
    }
    if let Some((first, others)) = widths.split_first_mut() {
        let others: usize = others.iter().map(|width| GAP.len() + width).sum();
        *first = (*first).min(WIDTH.saturating_sub(others));
    }
    widths
}

/// Words to the left, figures to the right.
fn row(cells: &[String], widths: &[usize]) -> String {
    let cells = cells.iter().zip(widths).enumerate().map(|(column, (cell, &width))| {
        let cell = short(cell, width);
        if column < 2 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
    });
    cells.collect::<Vec<_>>().join(GAP)
}

/// How long ago a time was, in one unit: 5s, 3m, 2h, 9d.
fn age(at: &str, now: Timestamp) -> String {
    let Ok(at) = at.parse::<Timestamp>() else { return "?".into() };
    let seconds = now.as_second().saturating_sub(at.as_second()).max(0); // clocks go back too
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A count in at most eight characters.
fn count(number: u64) -> String {
    const UNITS: [(u64, char); 4] =
        [(1_000_000, 'M'), (1_000_000_000, 'G'), (1_000_000_000_000, 'T'), (1_000_000_000_000_000, 'P')];
    let unit = UNITS.iter().find(|(size, _)| number / size < 100_000);
    match unit {
        Some((size, unit)) if number >= 100_000_000 => format!("{}{unit}", number / size),
        _ => number.to_string(),
    }
}

/// The text in at most `width` characters, none of which moves a cursor.
fn short(text: &str, width: usize) -> String {
    let shown = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    if text.chars().count() <= width {
        return text.chars().map(shown).collect();
    }
    text.chars().take(width.saturating_sub(1)).map(shown).chain(std::iter::once('…')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use serde_json::{Value, json};

    use crate::pool::health::{Probed, Rules};
    use crate::pool::server;
    use crate::pool::settings::Address;

    const NOW: &str = "2026-01-02T00:00:00Z";

    fn now() -> Timestamp {
        NOW.parse().unwrap()
    }

    fn server(name: &str, state: &str, why: &str, requests: u64) -> Value {
        json!({
            "name": name, "address": "127.0.0.1:1", "state": state, "why": why, "since": "2026-01-01T23:57:00.000Z",
            "in_flight": 1, "weight": 1, "configured_weight": 1, "backup": false, "requests": requests, "errors": 2,
            "last_probe": "2026-01-01T23:59:58Z", "a member of a later version": {},
        })
    }

    fn weighted(mut server: Value, weight: u32) -> Value {
        server["weight"] = weight.into();
        server
    }

    fn report(pid: u32, pools: &Value) -> Report {
        let config = json!({
            "files": ["/etc/forebay/forebay.toml"], "last_reload": "2026-01-01T22:00:00.000Z", "faults": [], "upgrade_needed": [],
        });
        let report = json!({"pid": pid, "version": "1.2.3", "started": "2025-12-31T00:00:00Z", "config": config, "pools": pools});
        serde_json::from_value(report).unwrap()
    }

    #[test]
    fn servers_stand_under_their_pools_and_say_why_they_are_not_well() {
        let llama = [
            server("gpu1", "up", WELL, 1234),
            server("gpu2", "down", "the probe was answered with 503", 7),
            server("gpu3", "up", "alive, but it refuses the probe with 401: see the pool's `api_key`", 0),
            weighted(server("gpu4", "draining", "by the operator; up: probe answered", 9), 5),
            weighted(server("gpu5", "up", WELL, 0), 0),
        ];
        let report = report(
            42,
            &json!({"llama": {"servers": llama, "queue": {"waiting": 3, "size": 100, "timeout_ms": 1}}, "empty": {"servers": [], "queue": null}}),
        );
        let expected = "\
forebay 1.2.3, pid 42, up 2d
configuration loaded 2h ago: /etc/forebay/forebay.toml

SERVER  STATE     SINCE  IN FLIGHT  REQUESTS  ERRORS  PROBED
empty
llama: 3 of 100 in the queue
  gpu1  up           3m          1      1234       2      2s
  gpu2  down         3m          1         7       2      2s
    the probe was answered with 503
  gpu3  up           3m          1         0       2      2s
    alive, but it refuses the probe with 401: see the pool's `api_key`
  gpu4  draining     3m          1         9       2      2s
    by the operator; up: probe answered
    weight 5 by the operator; 1 in the configuration
  gpu5  up           3m          1         0       2      2s
    weight 0 by the operator; 1 in the configuration
";
        assert_eq!(table(&report, None, now()), expected);
    }

    #[test]
    fn faults_and_what_waits_for_an_upgrade_stand_on_top() {
        let mut report = report(42, &json!({}));
        report.config.files.push("more.toml".into());
        report.config.upgrade_needed = vec!["[server] listen".into(), "[server] threads".into()];
        let lines = |report: &Report| table(report, None, now()).lines().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(
            lines(&report)[1..3],
            [
                "configuration loaded 2h ago: /etc/forebay/forebay.toml and 1 more",
                "waits for an upgrade: [server] listen, [server] threads"
            ]
        );
        report.config.faults = vec!["a.toml:1:2: wrong".into(), "a.toml:3:4: wrong too".into()];
        assert_eq!(
            lines(&report)[1..4],
            [
                "configuration not reloaded 2h ago; the former goes on, for this one has faults:",
                "  a.toml:1:2: wrong",
                "  a.toml:3:4: wrong too"
            ]
        );
    }

    #[test]
    fn no_line_is_longer_than_a_terminal_is_wide() {
        let long = "x".repeat(300);
        let wide = "模型\u{200d}é\u{1f600}".repeat(40);
        let escapes = "\x1b[2J\n\t".repeat(30);
        for (pool, name, state, why, number) in [
            ("p", "gpu1", "up", WELL, 1),
            (long.as_str(), "gpu1", "down", long.as_str(), 99_999_999),
            ("p", long.as_str(), "starting", "not probed yet", u64::MAX),
            (long.as_str(), long.as_str(), long.as_str(), long.as_str(), u64::MAX),
            (wide.as_str(), wide.as_str(), wide.as_str(), wide.as_str(), 100_000_000),
            (escapes.as_str(), escapes.as_str(), escapes.as_str(), escapes.as_str(), 0),
            ("", "", "", "", 0),
        ] {
            let mut server = server(name, state, why, number);
            (server["in_flight"], server["errors"]) = (number.into(), number.into());
            for (since, probe) in
                [("0001-01-01T00:00:00Z", Value::Null), ("9999-01-01T00:00:00Z", json!("")), ("", json!(NOW))]
            {
                (server["since"], server["last_probe"]) = (since.into(), probe);
                let mut report = report(u32::MAX, &json!({pool: {"servers": [server]}}));
                report.config.files = vec![long.clone(), wide.clone()];
                report.config.faults = vec![long.clone(), escapes.clone()];
                report.config.upgrade_needed = vec![long.clone()];
                let rates = Rates { last: None, a_second: [((pool.into(), name.into()), f64::MAX)].into() };
                for rates in [None, Some(&rates), Some(&Rates::default())] {
                    for line in table(&report, rates, now()).lines() {
                        assert!(line.chars().count() <= WIDTH, "{line}");
                        assert!(!line.contains(char::is_control), "{line:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_too_long_is_cut_where_the_figures_begin() {
        let name = "a-server-with-quite-a-long-name.rack.internal:8000";
        let report = report(42, &json!({"p": {"servers": [server(name, "up", WELL, 5)]}}));
        let shown = table(&report, None, now());
        let row = shown.lines().last().unwrap();
        assert_eq!(row, "  a-server-with-quite-a-long…  up        3m          1         5       2      2s");
        assert_eq!(row.chars().count(), WIDTH);
    }

    #[test]
    fn rates_are_the_difference_of_two_reports_of_one_process() {
        let report = |pid, requests| report(pid, &json!({"p": {"servers": [server("a", "up", WELL, requests)]}}));
        let start = Instant::now();
        let mut rates = Rates::default();
        for (second, pid, requests, shown) in [
            (0.0, 1, 100, "-"),
            (2.0, 1, 105, "2.5"),
            (3.0, 1, 105, "0.0"),
            (4.0, 1, 2_105, "2000"),
            (4.0, 1, 2_106, "-"), // no time has passed
            (5.0, 2, 9_000, "-"), // another process
            (6.0, 2, 3, "-"),     // a server of the same name, counted anew
            (7.0, 2, 5, "2.0"),
        ] {
            rates.update(&report(pid, requests), start + Duration::from_secs_f64(second));
            assert_eq!(rates.of("p", "a"), shown, "at {second} s");
        }
        let shown = table(&report(2, 5), Some(&rates), now());
        assert_eq!(shown.lines().nth(3).unwrap(), "SERVER  STATE  SINCE  IN FLIGHT  REQUESTS  REQ/S  ERRORS  PROBED");
        assert_eq!(shown.lines().last().unwrap(), "  a     up        3m          1         5    2.0       2      2s");
    }

    #[test]
    fn an_age_has_one_unit() {
        for (at, shown) in [
            ("2026-01-02T00:00:00.000Z", "0s"),
            ("2026-01-01T23:59:01Z", "59s"),
            ("2026-01-01T23:59:00Z", "1m"),
            ("2026-01-01T23:00:01Z", "59m"),
            ("2026-01-01T23:00:00Z", "1h"),
            ("2026-01-01T00:00:01Z", "23h"),
            ("2026-01-01T00:00:00Z", "1d"),
            ("2024-01-02T00:00:00Z", "731d"),
            ("2027-01-01T00:00:00Z", "0s"),
            ("", "?"),
        ] {
            assert_eq!(age(at, now()), shown, "{at}");
        }
    }

    #[test]
    fn a_server_that_is_well_is_so_in_the_daemons_words() {
        let server = server::Server::new(Address::new("127.0.0.1", 1), false);
        server.observe(Probed::Alive, Rules { rise: 1, fall: 1 }, Instant::now());
        assert_eq!(server.health(Instant::now()).why, WELL);
    }
}
