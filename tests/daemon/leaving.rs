//! Ten thousand requests of every kind, a third of whose clients leave at any moment: all are told of, and nothing of them stays.

use std::time::Duration;

use crate::configuration::{Configuration, SECRET};
use crate::crowd::{Dice, Draw, all_are_told_of, all_is_over, ask, count, how_many, metrics, still_answers, sum};
use crate::harness::{Engine, Folder, Forebay, until};

const REQUESTS: usize = 10_000;
/// How many clients there are of each protocol.
const CLIENTS: usize = 16;
/// How many requests an engine has of a pool at once: fewer than there are, so that many queue.
const MOST: u32 = 3;
/// To the pools `p` and `q`, by model and by route.
const WAYS: [(&str, &str); 4] = [
    ("/v1/chat/completions", "mp"),
    ("/v1/chat/completions", "mq"),
    ("/p/v1/chat/completions", "any"),
    ("/q/v1/chat/completions", "any"),
];

fn draw(dice: &mut Dice, number: usize) -> Draw {
    Draw {
        number,
        way: WAYS[dice.below(WAYS.len())],
        stream: dice.below(2) == 0,
        subject: number,
        words: 1 + dice.below(10),
        padding: if dice.below(20) == 0 { dice.below(50_000) } else { 0 },
        settled: false,
        cache_control: None,
        pause: Duration::ZERO,
        leaves: dice.leaves(3),
    }
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
    still_answers(&forebay, ["mp", "mq"]);
    let threads = count(&forebay, "task");

    let mut dice = Dice(20_260_101);
    let draws: Vec<Draw> = (0..REQUESTS).map(|number| draw(&mut dice, number)).collect();
    let mut clients: Vec<_> = draws.chunks(REQUESTS.div_ceil(2 * CLIENTS)).map(|draws| draws.iter().copied()).collect();
    let over_http2 = clients.split_off(CLIENTS);
    let told = ask(forebay.traffic(), clients, over_http2);

    all_is_over(&forebay, &engines);
    let records = all_are_told_of(&forebay, &log, &told);
    let gone = how_many(&records, |record| record["end"] == "client_gone");
    assert!(gone > REQUESTS / 6, "only {gone} have left");
    let queued = how_many(&records, |record| record["queue_ms"].is_number());
    assert!(queued > REQUESTS / 10, "only {queued} have queued");
    let attempts: f64 = records.values().map(|record| record["attempts"].as_f64().expect("a number")).sum();
    assert_eq!(sum(&metrics(forebay.admin_address()), "forebay_upstream_attempts_total"), attempts);
    for (what, before) in [("fd", files), ("task", threads)] {
        until(format!("no more in {what} than the {before} before"), || {
            (count(&forebay, what) <= before).then_some(())
        });
    }
    still_answers(&forebay, ["mp", "mq"]);
}
