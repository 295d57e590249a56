//! What the admin listener tells of health, over time, and what the metrics hold.

use std::collections::BTreeMap;
use std::net::TcpListener;

use serde_json::json;

use crate::configuration::{Configuration, SECRET};
use crate::harness::{Engine, Folder, Forebay, forebay, until};
use crate::http::{Client, canned, chat};

/// Waits until the server is in this state, and tells why it is.
pub(crate) fn until_state(forebay: &Forebay, place: usize, state: &str) -> String {
    until(format!("server {place} is {state}: {}", forebay.server("p", place)), || {
        let server = forebay.server("p", place);
        (server["state"] == state).then(|| server["why"].as_str().unwrap_or_default().to_owned())
    })
}

#[test]
fn a_server_is_starting_until_its_first_probe_is_over_and_the_daemon_with_it() {
    let silent = canned("");
    let forebay = Forebay::start(
        &Configuration::empty().pool("p", &[&silent], "timeout = \"2s\"").model("m*", "p").key("t", SECRET, "[\"*\"]"),
    );
    assert_eq!(forebay.admin("/livez").status, 200);
    assert_eq!(forebay.admin("/startupz").status, 503);
    let ready = forebay.admin("/readyz");
    let reasons = json!(["the first round of health checks is not over", "no pool has a usable server"]);
    assert_eq!((ready.status, &ready.json()["reasons"]), (503, &reasons));
    let server = forebay.server("p", 0);
    assert_eq!((&server["state"], &server["last_probe"]), (&json!("starting"), &json!(null)));
    let answer = forebay.client().chat("m").expect("an answer");
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (503, &json!("no_healthy_upstream")));
    assert!(answer.headers.contains_key("retry-after"));
    assert_eq!(until_state(&forebay, 0, "down"), "no answer to the probe in 2 s");
    assert_eq!(forebay.admin("/startupz").status, 200, "the first round is over, whatever it found");
    let ready = forebay.admin("/readyz");
    assert_eq!((ready.status, &ready.json()["reasons"]), (503, &json!(["no pool has a usable server"])));
    assert_eq!(ready.json()["pools_without_a_usable_server"], json!(["p"]));
}

#[test]
fn a_killed_engine_is_down_after_fall_probes_and_up_again_after_rise() {
    let mut engine = Engine::start("e", &[]);
    let forebay = Forebay::ready(&Configuration::of(&[&engine.address]));
    let up = format!("forebay_server_up{{pool=\"p\",server=\"{}\"}}", engine.address);
    assert_eq!(until_state(&forebay, 0, "up"), "probe answered");
    assert_eq!((forebay.metric(&up), forebay.client().get("/health").status), (Some(1.0), 200));
    engine.kill();
    let answer = forebay.client().chat("m").expect("an answer");
    assert!(matches!(answer.status, 502 | 503), "{}", answer.text());
    assert_eq!(until_state(&forebay, 0, "down"), "connection refused");
    assert_eq!((forebay.metric(&up), forebay.client().get("/health").status), (Some(0.0), 503));
    assert_eq!(forebay.admin("/readyz").status, 503);
    assert_eq!(forebay.admin("/startupz").status, 200, "once started it stays so");
    assert_eq!(forebay.client().chat("m").expect("an answer").status, 503);
    forebay.until_said(&format!("server p/{} is down (was up): connection refused", engine.address));
    engine.restart();
    assert_eq!(until_state(&forebay, 0, "up"), "probe answered");
    forebay.until_said(&format!("server p/{} is up (was down): probe answered", engine.address));
    forebay.until_ready();
    assert_eq!(forebay.client().chat("m").expect("an answer").status, 200);
}

#[test]
fn rise_and_fall_are_counted() {
    let mut engine = Engine::start("e", &[]);
    let health = "interval = \"200ms\"\nrise = 4\nfall = 1";
    let forebay = Forebay::ready(&Configuration::empty().pool("p", &[&engine.address], health).model("m*", "p"));
    engine.kill();
    until_state(&forebay, 0, "down");
    engine.restart();
    let began = std::time::Instant::now();
    until_state(&forebay, 0, "up");
    assert!(began.elapsed().as_millis() > 550, "four good probes take {:?}", began.elapsed());
}

#[test]
fn what_a_probe_is_answered_decides() {
    const EMPTY: &str = "content-length: 0\r\nconnection: close\r\n\r\n";
    let answer = |status: &str| -> &'static str { format!("HTTP/1.1 {status} X\r\n{EMPTY}").leak() };
    for (engine, state, why) in [
        (canned(answer("200")), "up", "probe answered"),
        (canned(answer("204")), "up", "probe answered"),
        (canned(answer("401")), "up", "alive, but it refuses the probe with 401: see the pool's `api_key`"),
        (canned(answer("403")), "up", "alive, but it refuses the probe with 403: see the pool's `api_key`"),
        (canned(answer("429")), "up", "busy: it refused the probe with 429"),
        (canned(answer("404")), "down", "the probe was answered with 404"),
        (canned(answer("500")), "down", "the probe was answered with 500"),
        (canned(answer("503")), "down", "the probe was answered with 503"),
        (canned(answer("302")), "down", "the probe was answered with 302"),
        (canned("\r\n"), "down", ""),
        (canned("SSH-2.0-OpenSSH_9.6\r\n"), "down", ""),
        (canned("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nshort"), "", ""),
    ] {
        let forebay =
            Forebay::start(&Configuration::empty().pool("p", &[&engine], "timeout = \"500ms\"").model("m", "p"));
        until("it was probed", || (forebay.admin("/startupz").status == 200).then_some(()));
        let server = forebay.server("p", 0);
        assert!(state.is_empty() || server["state"] == state, "{why}: {server}");
        assert!(why.is_empty() || server["why"] == why, "{why}: {server}");
        assert!(!server["why"].as_str().expect("text").is_empty());
    }
}

#[test]
fn a_body_that_never_ends_does_not_keep_a_server_up() {
    let engine = canned("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
    let forebay = Forebay::start(&Configuration::empty().pool("p", &[&engine], "timeout = \"300ms\"").model("m", "p"));
    until("it was probed", || (forebay.admin("/startupz").status == 200).then_some(()));
}

#[test]
fn an_engine_of_any_kind_is_probed_by_connecting_to_it() {
    let silent = canned("");
    let lost = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").to_string();
    let pool =
        format!("[pool.p]\nengine = \"http\"\nservers = [{silent:?}, {lost:?}]\n[pool.p.health]\ninterval = \"100ms\"");
    let forebay = Forebay::start(&Configuration::empty().more(&pool).model("m", "p"));
    assert_eq!(until_state(&forebay, 0, "up"), "probe answered");
    assert_eq!(until_state(&forebay, 1, "down"), "connection refused");
}

#[test]
fn probes_go_to_the_port_and_path_that_are_configured() {
    let (engine, other) = (canned(""), canned("HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"));
    let port = other.rsplit(':').next().expect("a port");
    let health = format!("port = {port}\npath = \"/ready\"");
    let forebay = Forebay::start(&Configuration::empty().pool("p", &[&engine], &health).model("m", "p"));
    until_state(&forebay, 0, "up");
}

#[test]
fn a_name_that_does_not_resolve_is_a_server_that_is_down_and_no_fault() {
    let engine = Engine::start("e", &[]);
    let configuration = Configuration::of(&["no-such-host.invalid:80", &engine.address]);
    let folder = Folder::with(&[("forebay.toml", &configuration.to_string())]);
    assert_eq!(forebay(&["check", "-c", &folder.path("forebay.toml")]).code, Some(0));
    let forebay = Forebay::start_with(folder, "forebay.toml");
    let why = until_state(&forebay, 0, "down");
    assert!(why.starts_with("no-such-host.invalid does not resolve: "), "{why}");
    until_state(&forebay, 1, "up");
    for _ in 0..4 {
        assert_eq!(forebay.client().chat("m").expect("an answer").status, 200);
    }
}

#[test]
fn a_host_name_is_resolved() {
    let mut engine = Engine::start("e", &[]);
    let port = engine.address.rsplit(':').next().expect("a port").to_owned();
    let name = format!("localhost:{port}");
    let forebay = Forebay::ready(&Configuration::of(&[&name]));
    let server = forebay.server("p", 0);
    assert_eq!((&server["name"], &server["address"]), (&json!(name), &json!(name)));
    assert_eq!(forebay.client().chat("m").expect("an answer").status, 200);
    engine.kill();
    until_state(&forebay, 0, "down");
    engine.restart();
    until_state(&forebay, 0, "up");
}

#[test]
fn a_backup_serves_only_while_no_other_server_can() {
    let (mut first, backup) = (Engine::start("first", &[]), Engine::start("backup", &[]));
    let pool = format!(
        "[pool.p]\nservers = [{{ address = {:?}, name = \"a\" }}, {{ address = {:?}, name = \"b\", backup = true }}]\n\
         [pool.p.health]\ninterval = \"100ms\"\nfall = 1\nrise = 1",
        first.address, backup.address
    );
    let forebay = Forebay::ready(&Configuration::empty().more(&pool).model("m*", "p").key("t", SECRET, "[\"*\"]"));
    until_state(&forebay, 0, "up");
    until_state(&forebay, 1, "up");
    let by = || forebay.client().chat("m").expect("an answer").headers["x-engine"].clone();
    assert_eq!([by(), by(), by()], ["first", "first", "first"]);
    first.kill();
    assert_eq!(by(), "backup", "a refused connection moves on");
    until_state(&forebay, 0, "down");
    assert_eq!([by(), by()], ["backup", "backup"]);
    first.restart();
    until_state(&forebay, 0, "up");
    assert_eq!(by(), "first");
    let server = forebay.server("p", 1);
    assert_eq!((&server["name"], &server["backup"], &server["weight"]), (&json!("b"), &json!(true), &json!(1)));
}

#[test]
fn the_status_has_no_secret_and_no_digest() {
    let engine = Engine::start("e", &[]);
    let token = format!("token_sha256 = {:?}", crate::configuration::digest("admin-token"));
    let forebay = Forebay::ready(&Configuration::of(&[&engine.address]).admin(&token));
    forebay.client().chat("m").expect("an answer");
    let status = forebay.admin("/status");
    assert_eq!(status.headers["content-type"], "application/json");
    let text = status.text();
    for secret in [SECRET, "admin-token"] {
        assert!(!text.contains(secret) && !text.contains(&crate::configuration::digest(secret)));
    }
    let status = status.json();
    assert_eq!(status["keys"][0]["name"], "tester");
    assert_eq!(status["models"]["m*"]["pool"], "p");
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    for moment in [&status["started"], &status["config"]["last_reload"], &status["pools"]["p"]["servers"][0]["since"]] {
        assert!(moment.as_str().is_some_and(|at| at.ends_with('Z')), "{moment}");
    }
}

#[test]
fn the_admin_listener_answers_odd_requests_plainly() {
    let forebay = Forebay::start(&Configuration::of(&["127.0.0.1:1"]));
    let mut client = Client::connect(forebay.admin_address());
    for (method, path, status) in [
        ("GET", "/", 404),
        ("GET", "/livez/", 404),
        ("GET", "/v1/models", 404),
        ("GET", "/livez?verbose", 200),
        ("POST", "/livez", 405),
        ("DELETE", "/status", 405),
        ("GET", "/reload", 405),
    ] {
        let answer = client.ask(method, path, &[], "").expect("an answer");
        assert_eq!(answer.status, status, "{method} {path}");
        answer.json();
    }
    client.write(b"HEAD /livez HTTP/1.1\r\nhost: x\r\n\r\nGET /livez HTTP/1.1\r\nhost: x\r\n\r\n").expect("sent");
    let mut other = Client::connect(forebay.admin_address());
    other.write(b"HEAD /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").expect("sent");
    let head = String::from_utf8(other.rest()).expect("text");
    assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"), "{head}");
}

// --- metrics ---

/// Every sample by its name and labels, each line held to Prometheus' text format.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let (mut kinds, mut samples) = (BTreeMap::new(), BTreeMap::new());
    for line in text.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let words: Vec<&str> = comment.splitn(3, ' ').collect();
            match words[..] {
                ["HELP", name, help] => assert!(!name.is_empty() && !help.is_empty()),
                ["TYPE", name, kind] => {
                    assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                    assert_eq!(kinds.insert(name.to_owned(), kind.to_owned()), None, "{line}");
                }
                _ => panic!("not a comment: {line}"),
            }
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("not a sample: {line}"));
        let value: f64 = value.parse().unwrap_or_else(|_| panic!("not a number: {line}"));
        let name = series.split('{').next().expect("a name");
        assert!(name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'), "{line}");
        let family = kinds.keys().any(|kind| name == kind || name.starts_with(&format!("{kind}_")));
        assert!(family, "no TYPE before: {line}");
        if let Some(labels) = series.strip_prefix(name).filter(|labels| !labels.is_empty()) {
            assert!(labels.starts_with('{') && labels.ends_with("\"}"), "{line}");
        }
        assert_eq!(samples.insert(series.to_owned(), value), None, "twice: {line}");
    }
    samples
}

#[test]
fn metrics_count_what_happened_and_hold_nothing_that_clients_send() {
    let engine = Engine::start("e", &["--model", "m-good"]);
    let pool = format!("[pool.p]\nservers = [{{ address = {:?}, name = \"gpu \\\"1\\\"\" }}]", engine.address);
    let forebay =
        Forebay::ready(&Configuration::empty().more(&pool).model("m-*", "p").key("tester", SECRET, "[\"*\"]"));
    let mut client = forebay.client();
    for _ in 0..3 {
        assert_eq!(client.chat("m-good").expect("an answer").status, 200);
    }
    assert_eq!(client.chat("m-zebra").expect("an answer").status, 404, "the engine does not have it");
    assert_eq!(client.chat("zebra").expect("an answer").status, 404);
    assert_eq!(client.chat_as("zebra-secret", "m-good").expect("an answer").status, 401);
    let key = format!("authorization: Bearer {SECRET}");
    for (method, path, headers, body) in [
        ("GET", "/zebra", &[&*key][..], String::new()),
        ("GET", "/v1/zebra?zebra=1", &[&key], String::new()),
        ("ZEBRA", "/v1/chat/completions", &[&key], chat("m-good", "zebra", false)),
        ("POST", "/v1/chat/completions", &[&key, "host: zebra"], chat("m-good", "zebra", false)), // refused by the parser
        ("POST", "/v1/chat/completions", &[&key, "x-zebra: 1", "x-request-id: zebra"], chat("m-good", "zebra", true)),
        ("GET", "/v1/models/zebra", &[&key], String::new()),
    ] {
        forebay.client().ask(method, path, headers, &body).expect("an answer");
    }
    until("all is counted", || {
        let counted = samples(&forebay.admin("/metrics").text());
        let requests = counted.iter().filter(|(series, _)| series.starts_with("forebay_requests_total"));
        (requests.map(|(_, count)| count).sum::<f64>() >= 11.0).then_some(())
    });
    until("the last lease is given back", || (forebay.server("p", 0)["in_flight"] == 0).then_some(()));
    let answer = forebay.admin("/metrics");
    assert!(answer.headers["content-type"].starts_with("text/plain; version=0.0.4"));
    let text = answer.text();
    assert!(!text.contains("zebra") && !text.contains(SECRET) && !text.contains("m-good"), "{text}");
    let samples = samples(&text);
    let labels = "model=\"m-*\",pool=\"p\",route=\"default\"";
    assert_eq!(samples.get(&format!("forebay_requests_total{{code=\"404\",{labels}}}")), Some(&1.0), "{text}");
    assert_eq!(
        samples.get("forebay_requests_total{code=\"401\",model=\"\",pool=\"\",route=\"default\"}"),
        Some(&1.0),
        "{text}"
    );
    assert_eq!(
        samples.get("forebay_requests_total{code=\"404\",model=\"\",pool=\"\",route=\"\"}"),
        Some(&1.0),
        "{text}"
    );
    let server = "pool=\"p\",server=\"gpu \\\"1\\\"\"";
    assert_eq!(samples.get(&format!("forebay_in_flight{{{server}}}")), Some(&0.0));
    assert_eq!(samples.get(&format!("forebay_server_up{{{server}}}")), Some(&1.0));
    let answered = samples.get(&format!("forebay_upstream_attempts_total{{outcome=\"answered\",{server}}}"));
    assert!(answered.is_some_and(|count| *count >= 5.0), "{text}");
    let build = format!(
        "forebay_build_info{{revision=\"{}\",version=\"{}\"}}",
        forebay.status()["revision"].as_str().expect("text"),
        env!("CARGO_PKG_VERSION")
    );
    assert_eq!(samples.get(&build), Some(&1.0), "{text}");
    for name in
        ["process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds", "process_start_time_seconds"]
    {
        assert!(samples.keys().any(|series| series.ends_with(name)), "{name} in {text}");
    }
    assert!(samples["forebay_config_last_reload_success_timestamp_seconds"] > 1.7e9);
}

#[test]
fn methods_of_strangers_do_not_grow_the_metrics() {
    let engine = Engine::start("e", &[]);
    let forebay = Forebay::ready(&Configuration::of(&[&engine.address]));
    let count = || forebay.admin("/metrics").text().lines().count();
    let mut client = forebay.client();
    let mut grown = vec![];
    for n in 0..200 {
        client.chat(&format!("m{n}")).expect("an answer");
        client.ask("GET", &format!("/v1/{n}"), &[], "").expect("an answer");
        if n % 100 == 10 {
            grown.push(count());
        }
    }
    grown.push(count());
    assert!(grown[2] <= grown[0] + 1, "{grown:?}");
}
