//! Servers that an operator takes out and brings back, by the admin listener and by the commands.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use serde_json::{Value, json};

use crate::configuration::{Configuration, SECRET, digest};
use crate::harness::{Engine, Folder, Forebay, Over, Said, forebay, until, with_environment};
use crate::http::{Answer, Client};
use crate::stub::{Stub, whole};

const TOKEN: &str = "the-operators-own-token";

/// A daemon, and the configuration by which it was started.
struct World {
    forebay: Forebay,
    configuration: Configuration,
}

/// A daemon with an admin listener on a unix socket, and these tables besides pool `p` with these servers.
fn world(servers: &str, more: &str) -> World {
    let folder = Folder::new();
    let configuration = Configuration::empty().admin_listen(&format!("unix:{}", folder.path("admin.sock"))).more(more);
    let forebay = Forebay::start_in(folder, &with_servers(&configuration, servers));
    forebay.until_ready();
    until("all are probed", || (forebay.admin("/startupz").status == 200).then_some(()));
    World { forebay, configuration }
}

fn with_servers(configuration: &Configuration, servers: &str) -> Configuration {
    let pool = format!("[pool.p]\nservers = [{servers}]\n[pool.p.health]\ninterval = \"100ms\"\nrise = 1\nfall = 1");
    configuration.clone().more(&pool).model("m*", "p").key("tester", SECRET, "[\"*\"]")
}

fn named(address: &str, name: &str) -> String {
    format!("{{ address = {address:?}, name = {name:?} }}")
}

/// Servers `a` and `b`.
fn two(a: &str, b: &str) -> String {
    format!("{}, {}", named(a, "a"), named(b, "b"))
}

/// Two engines of twenty tokens a second.
fn slow() -> (Engine, Engine) {
    let engine = |name| Engine::start(name, &["--tokens-per-second", "20"]);
    (engine("a"), engine("b"))
}

// === impl World ===

impl World {
    fn command(&self, arguments: &[&str]) -> Said {
        forebay(&[arguments, &["--admin", self.forebay.admin_address()]].concat())
    }

    /// Runs a command in the background.
    fn background(&self, arguments: &[&str]) -> JoinHandle<Said> {
        let arguments: Vec<String> = arguments.iter().map(|word| (*word).to_owned()).collect();
        let admin = self.forebay.admin_address().to_owned();
        thread::spawn(move || {
            let words: Vec<&str> = arguments.iter().map(String::as_str).chain(["--admin", &admin]).collect();
            forebay(&words)
        })
    }

    fn post(&self, path: &str, body: &str) -> Answer {
        let mut client = Client::connect(self.forebay.admin_address());
        client.ask("POST", path, &[], body).unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    /// What one member of a server's status is.
    fn is(&self, place: usize, member: &str) -> Value {
        self.forebay.server("p", place)[member].clone()
    }

    fn until_is(&self, place: usize, member: &str, value: &Value) {
        until(format!("{member} is {value}"), || (self.is(place, member) == *value).then_some(()));
    }

    /// The engines that answer so many requests.
    fn answerers(&self, count: usize) -> Vec<String> {
        let by = |_| {
            let answer = self.forebay.client().chat("m").expect("an answer");
            assert_eq!(answer.status, 200, "{}", answer.text());
            answer.headers["x-engine"].clone()
        };
        (0..count).map(by).collect()
    }

    fn share(&self, name: &str, of: usize) -> usize {
        self.answerers(of).iter().filter(|by| *by == name).count()
    }
}

#[test]
fn a_drained_server_gets_nothing_new_and_finishes_its_streams_while_the_command_waits() {
    let (a, b) = slow();
    let world = world(&two(&a.address, &b.address), "");
    let mut streams: Vec<Client> = (0..6).map(|_| world.forebay.client()).collect();
    streams.iter_mut().for_each(|client| drop(client.begin_stream("m", 40).expect("a stream")));
    assert_eq!((world.is(0, "in_flight"), world.is(1, "in_flight")), (json!(3), json!(3)));
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let end = Over(&over);
        // Requests come all the time, and none of them may notice.
        let load: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut client = world.forebay.client();
                    let mut statuses = vec![];
                    while !over.load(Ordering::Relaxed) {
                        statuses.push(client.chat("m").expect("an answer").status);
                    }
                    statuses
                })
            })
            .collect();
        let drains = world.background(&["drain", "p/a"]);
        world.until_is(0, "state", &json!("draining"));
        let requests = world.is(0, "requests");
        assert_eq!(world.answerers(4), ["b"; 4]);
        streams.iter_mut().for_each(|client| assert!(client.end_stream().expect("a whole stream")));
        let said = drains.join().expect("it ran");
        assert_eq!((said.code, &*said.stderr), (Some(0), ""), "{said:?}");
        let lines: Vec<&str> = said.stdout.lines().collect();
        let (last, progress) = lines.split_last().expect("lines");
        assert_eq!(*last, "p/a: drained, nothing is in flight there; `forebay ready p/a` brings it back");
        assert!(progress.iter().all(|line| line.starts_with("p/a: draining, ") && line.ends_with(" in flight")));
        assert!(!progress.is_empty() && progress.windows(2).all(|two| two[0] != two[1]), "{said:?}");
        assert_eq!((world.is(0, "requests"), world.is(0, "in_flight")), (requests, json!(0)), "nothing new");
        drop(end);
        let statuses: Vec<u16> = load.into_iter().flat_map(|load| load.join().expect("it ran")).collect();
        assert!(statuses.len() > 3 && statuses.iter().all(|status| *status == 200), "{statuses:?}");
    });
    let why = "by the operator; up: probe answered";
    assert_eq!((world.is(0, "state"), world.is(0, "why")), (json!("draining"), json!(why)));
    assert_eq!(world.forebay.metric("forebay_server_up{pool=\"p\",server=\"a\"}"), Some(0.0));
    let table = world.command(&["status"]).stdout;
    assert!(table.contains("\n  a     draining  ") && table.contains(&format!("\n    {why}\n")), "{table}");
    assert_eq!(world.command(&["drain", "p/a"]).code, Some(0), "again, of an empty one");
    let said = world.command(&["ready", "p/a"]);
    assert_eq!((said.code, &*said.stdout), (Some(0), "p/a: up, 0 in flight\n"), "{said:?}");
    assert_eq!(world.share("a", 4), 2, "at once, and without a slow start");
    world.forebay.until_said("server p/a is draining, weight 1 (was up, weight 1): by the operator");
    world.forebay.until_said("server p/a is up, weight 1 (was draining, weight 1): by the operator");
}

#[test]
fn a_drain_that_takes_too_long_says_what_is_left_and_the_server_stays_drained() {
    let a = Engine::start("a", &["--tokens-per-second", "2"]);
    let world = world(&named(&a.address, "a"), "");
    let mut client = world.forebay.client();
    client.begin_stream("m", 1000).expect("a stream");
    let said = world.command(&["drain", "p/a", "--timeout", "300ms"]);
    assert_eq!((said.code, &*said.stdout), (Some(1), "p/a: draining, 1 in flight\n"), "{said:?}");
    let left = "1 in flight at p/a, which stays drained; `forebay ready p/a` brings it back\n";
    assert_eq!(said.stderr, format!("forebay: not empty after 300ms: {left}"));
    assert_eq!(world.is(0, "state"), "draining");
    world.forebay.until_said("pool p has no usable server any more");
    let ready = world.forebay.admin("/readyz");
    assert_eq!((ready.status, &ready.json()["reasons"]), (503, &json!(["no pool has a usable server"])));
    assert_eq!(world.forebay.client().chat("m").expect("an answer").json()["error"]["code"], "no_healthy_upstream");
    let drains = world.background(&["drain", "p/a", "--timeout", "1h"]);
    drop(client);
    assert_eq!(drains.join().expect("it ran").code, Some(0), "a client that leaves is one less");
    world.command(&["ready", "p/a"]);
    assert_eq!(world.forebay.admin("/readyz").status, 200);
}

#[test]
fn a_server_that_goes_or_comes_back_by_a_reload_is_not_waited_for() {
    let (a, b) = slow();
    for (servers, why) in [
        (named(&b.address, "b"), "p/a is gone: a reload took it out of the configuration."),
        (
            format!("{{ address = {:?}, name = \"a\", weight = 2 }}, {}", a.address, named(&b.address, "b")),
            "p/a is up again: somebody brought it back, a reload changed it, or forebay was restarted\n",
        ),
    ] {
        let world = world(&two(&a.address, &b.address), "");
        let mut client = world.forebay.client();
        client.begin_stream("m", 100).expect("a stream");
        let drains = world.background(&["drain", "p/a"]);
        world.until_is(0, "state", &json!("draining"));
        world.forebay.rewrite(&with_servers(&world.configuration, &servers));
        world.forebay.reload();
        let said = drains.join().expect("it ran");
        assert_eq!((said.code, &*said.stdout), (Some(1), "p/a: draining, 1 in flight\n"), "{said:?}");
        assert!(said.stderr.starts_with(&format!("forebay: {why}")), "{said:?}");
        assert!(client.end_stream().expect("a whole stream"), "what was under way is finished all the same");
    }
}

#[test]
fn a_server_in_maintenance_is_not_probed_and_nothing_under_way_there_is_moved() {
    let answers = || Stub::tcp(|_, out| whole(out, 200, "{}"));
    let (a, b, slow) = (answers(), answers(), Engine::start("slow", &["--first-token", "1500"]));
    let servers = format!("{}, {}", two(&a.address, &b.address), named(&slow.address, "slow"));
    let world = world(&servers, "");
    let probes = |stub: &Stub| stub.heard("GET /v1/models ").len();
    let said = world.command(&["maint", "p/a"]);
    assert_eq!((said.code, &*said.stdout), (Some(0), "p/a: maint, 0 in flight\n"), "{said:?}");
    assert_eq!(world.is(0, "why"), "by the operator; not probed");
    let (of_a, of_b) = (probes(&a), probes(&b));
    until("others are probed", || (probes(&b) >= of_b + 6).then_some(()));
    assert!(probes(&a) <= of_a + 1, "but for one under way");
    // A prompt that waits for its first byte stays where it is.
    world.post("/servers/p/b", r#"{"state": "drain"}"#);
    let mut client = world.forebay.client();
    let key = format!("authorization: Bearer {SECRET}");
    let prompt = crate::http::chat("m", "word", true);
    client.send("POST", "/v1/chat/completions", &[&key], &prompt).expect("sent");
    world.until_is(2, "in_flight", &json!(1));
    world.command(&["maint", "p/slow"]);
    world.post("/servers/p/b", r#"{"state": "ready"}"#);
    let begun = client.begun().expect("an answer");
    assert_eq!((begun.status, &*begun.headers["x-engine"]), (200, "slow"));
    assert!(client.end_stream().expect("a whole stream"));
    assert_eq!(world.forebay.admin("/readyz").status, 200);
    let said = world.command(&["ready", "p/a"]);
    let down = "p/a: down (not probed since its maintenance), 0 in flight\n";
    assert!(said.code == Some(0) && [down, "p/a: up, 0 in flight\n"].contains(&&*said.stdout), "{said:?}");
    world.until_is(0, "state", &json!("up"));
    assert_eq!(world.is(0, "why"), "probe answered", "the first probe decides");
}

#[test]
fn what_was_known_before_a_maintenance_or_comes_during_it_counts_no_more() {
    const ANSWERS: u16 = 200;
    const HANGS: u16 = 0;
    let (mode, hanging) = (Arc::new(AtomicU16::new(ANSWERS)), Arc::new(AtomicU16::new(0)));
    let (told, hang) = (mode.clone(), hanging.clone());
    let a = Stub::tcp(move |_, out| {
        if told.load(Ordering::SeqCst) == HANGS {
            hang.fetch_add(1, Ordering::SeqCst);
            let status = until("it answers", || Some(told.load(Ordering::SeqCst)).filter(|status| *status != HANGS));
            whole(out, status, "{}")?;
            hang.fetch_sub(1, Ordering::SeqCst);
            return Ok(());
        }
        whole(out, told.load(Ordering::SeqCst), "{}")
    });
    let world = world(&named(&a.address, "a"), "");
    mode.store(HANGS, Ordering::SeqCst);
    until("a probe is under way", || (hanging.load(Ordering::SeqCst) == 1).then_some(()));
    world.post("/servers/p/a", r#"{"state": "maint"}"#);
    mode.store(503, Ordering::SeqCst);
    until("the probe is answered", || (hanging.load(Ordering::SeqCst) == 0).then_some(()));
    assert_eq!(world.forebay.admin("/readyz").json()["pools_without_a_usable_server"], json!(["p"]));
    assert_eq!(world.forebay.admin("/startupz").status, 200, "once started it stays so");
    mode.store(HANGS, Ordering::SeqCst);
    let answer = world.post("/servers/p/a", r#"{"state": "ready"}"#).json();
    let why = "not probed since its maintenance";
    assert_eq!((&answer["state"], &answer["why"]), (&json!("down"), &json!(why)));
    let ready = world.forebay.admin("/readyz");
    assert_eq!((ready.status, &ready.json()["reasons"]), (503, &json!(["no pool has a usable server"])));
    assert_eq!(world.forebay.admin("/startupz").status, 200);
    mode.store(ANSWERS, Ordering::SeqCst);
    world.forebay.until_ready();
    let said = world.forebay.messages();
    assert!(!said.iter().any(|said| said.contains("server p/a is down (was up)")), "{said:?}");
}

#[test]
fn a_weight_is_as_the_operator_says_until_it_is_taken_back() {
    let (a, b) = (Engine::start("a", &[]), Engine::start("b", &[]));
    let world = world(&two(&a.address, &b.address), "");
    let weights = || (world.is(0, "weight"), world.is(0, "configured_weight"));
    let answer = world.post("/servers/p/a", r#"{"weight": 5}"#);
    assert_eq!((answer.status, &answer.json()), (200, &world.forebay.server("p", 0)), "as /status shows it");
    assert_eq!(weights(), (json!(5), json!(1)));
    assert!((47..=53).contains(&world.share("a", 60)), "five of six");
    world.post("/servers/p/a", r#"{"weight": 0}"#);
    assert_eq!((world.share("a", 20), world.is(0, "state")), (0, json!("up")), "up, and gets nothing");
    let said = world.command(&["ready", "p/a"]);
    assert_eq!(said.stdout, "p/a: up, weight 0 (1 in the configuration), 0 in flight\n", "a state leaves the weight");
    let table = world.command(&["status"]).stdout;
    assert!(table.contains("\n    weight 0 by the operator; 1 in the configuration\n"), "{table}");
    let said = world.command(&["ready", "p/a", "--weight", "5"]);
    assert_eq!(said.stdout, "p/a: up, weight 5 (1 in the configuration), 0 in flight\n");
    let said = world.command(&["ready", "p/a", "--weight", "file"]);
    assert_eq!(said.stdout, "p/a: up, 0 in flight\n");
    assert_eq!(weights(), (json!(1), json!(1)));
    assert!((9..=11).contains(&world.share("a", 20)));
}

#[test]
fn the_operators_word_outlives_a_reload_unless_it_changes_that_server() {
    let (a, b) = (Engine::start("a", &[]), Engine::start("b", &[]));
    let servers = two(&a.address, &b.address);
    let world = world(&servers, "");
    world.post("/servers/p/a", r#"{"state": "drain", "weight": 5}"#);
    world.post("/servers/p/b", r#"{"weight": 7}"#);
    let more = with_servers(&world.configuration, &servers).model("x", "p");
    world.forebay.rewrite(&more);
    world.forebay.reload();
    assert_eq!(world.forebay.client().chat("x").expect("an answer").headers["x-engine"], "b", "it is in force");
    assert_eq!((world.is(0, "state"), world.is(0, "weight")), (json!("draining"), json!(5)));
    let changed = servers.replacen("name = \"a\"", "name = \"a\", weight = 2", 1);
    world.forebay.rewrite(&with_servers(&world.configuration, &changed));
    world.forebay.reload();
    assert_eq!((world.is(0, "state"), world.is(0, "weight")), (json!("up"), json!(2)));
    assert_eq!(world.is(1, "weight"), 7, "the other one is as it was");
}

#[test]
fn what_is_wrong_with_a_call_is_said_with_what_would_be_right() {
    let a = Engine::start("a", &[]);
    let more = format!("[pool.\"q r/s\"]\nservers = [\"unix:/nowhere/e.sock\", {:?}]", a.address);
    let world = world(&two(&a.address, "127.0.0.1:1"), &more);
    let drain = r#"{"state": "drain"}"#;
    let long = "x".repeat(5000);
    for (path, body, status, why) in [
        ("/servers/q/a", drain, 404, "no pool is called \"q\"; there is p, q r/s"),
        ("/servers/", drain, 404, "no pool is called \"\"; there is p, q r/s"),
        ("/servers/p", drain, 404, "no server of pool \"p\" is called \"\"; it has a, b"),
        ("/servers/p/c", drain, 404, "no server of pool \"p\" is called \"c\"; it has a, b"),
        ("/servers/p/%FF", drain, 404, "no server of pool \"p\" is called \"\u{fffd}\"; it has a, b"),
        ("/servers", drain, 404, "nothing is served here"),
        ("/servers/p/a", "", 400, "the body is not what is expected: EOF while parsing a value at line 1 column 0"),
        ("/servers/p/a", "{}", 400, "the body has neither `state` nor `weight`; send such as {\"state\": \"drain\"}"),
        ("/servers/p/a", "{\"sate\": 1}", 400, "unknown member \"sate\"; known are `state` and `weight`"),
        ("/servers/p/a", "{\"state\": \"off\"}", 400, "`state` is \"drain\", \"maint\" or \"ready\", not \"off\""),
        ("/servers/p/a", "{\"weight\": 10001}", 400, "`weight` is a whole number from 0 to 10000"),
        ("/servers/p/a", &long, 413, "the body is larger than 4096 bytes"),
    ] {
        let answer = world.post(path, body);
        let said = answer.json()["error"].as_str().expect("text").to_owned();
        assert!(answer.status == status && said.contains(why), "{path} {body}: {} {said}", answer.status);
    }
    assert_eq!(world.is(0, "state"), "up", "none of them did anything");
    let mut client = Client::connect(world.forebay.admin_address());
    for method in ["GET", "HEAD", "PUT", "DELETE"] {
        let mut client = Client::connect(world.forebay.admin_address());
        client.send(method, "/servers/p/a", &["connection: close"], "").expect("sent");
        let head = String::from_utf8(client.rest()).expect("text").to_lowercase();
        assert!(head.starts_with("http/1.1 405 ") && head.contains("\r\nallow: post\r\n"), "{method}: {head}");
    }
    // A name may be an address, encoded or not, and a client may ask before it sends.
    let address = a.address.replace(':', "%3A");
    for path in ["unix:/nowhere/e.sock", "unix%3A%2Fnowhere%2Fe.sock", &address, &a.address] {
        let path = format!("/servers/q%20r%2Fs/{path}");
        let answer = client.ask("POST", &path, &[], drain).expect("an answer");
        assert_eq!((answer.status, &answer.json()["state"]), (200, &json!("draining")), "{path}");
    }
    let head = "POST /servers/p/a HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 13\r\n\r\n";
    client.write(head.as_bytes()).expect("sent");
    assert_eq!(client.line().expect("a line"), "HTTP/1.1 100 Continue");
    assert_eq!(client.line().expect("a line"), "");
    client.write(b"{\"weight\": 3}").expect("sent");
    assert_eq!(client.answer().expect("an answer").json()["weight"], 3);
}

#[test]
fn a_body_that_does_not_come_whole_changes_nothing() {
    let a = Engine::start("a", &[]);
    let world = world(&named(&a.address, "a"), "");
    let head = b"POST /servers/p/a HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
    for (rest, status, why) in [
        (&b"11\r\n{\"state\": \"drain\"\r\n"[..], 408, "the body was not here in 5 s"),
        (b"nonsense\r\n\r\n", 400, "the body breaks off or is malformed"),
    ] {
        let mut client = Client::connect(world.forebay.admin_address());
        client.write(&[head, rest].concat()).expect("sent");
        let began = Instant::now();
        let answer = client.answer().expect("an answer");
        assert_eq!((answer.status, &answer.json()["error"]), (status, &json!(why)));
        assert!(answer.closes() && client.rest().is_empty(), "{why}");
        assert!(began.elapsed().as_secs() < 15, "{:?}", began.elapsed());
    }
    assert_eq!(world.is(0, "state"), "up");
}

#[test]
fn over_tcp_the_token_is_asked_for_and_it_appears_nowhere() {
    let a = Engine::start("a", &[]);
    let folder = Folder::new();
    let socket = format!("unix:{}", folder.path("admin.sock"));
    let without = with_servers(&Configuration::empty().more("[log]\nlevel = \"trace\""), &named(&a.address, "a"));
    let without = without.admin_listen(&socket).admin_listen("127.0.0.1:0");
    let forebay = Forebay::start_in(folder, &without);
    forebay.until_ready();
    let drain = |admin: &str, token: &str| {
        with_environment(&["drain", "p/a", "--admin", admin], &[("FOREBAY_ADMIN_TOKEN", token)])
    };
    let tcp = forebay.admin_address().to_owned();
    let mut all = vec![];
    let mut refused = |token: &str, code: i32, why: &str| {
        let said = drain(&tcp, token);
        assert_eq!((said.code, &*said.stdout, &*said.stderr), (Some(code), "", &*format!("forebay: {why}\n")));
        assert_eq!(forebay.server("p", 0)["state"], "up");
        all.push(said.stderr);
    };
    let none = "the daemon refused: no token is configured: set [admin] token_sha256, or use a unix socket \
                with --admin unix:/path";
    refused("", 1, none);
    refused(TOKEN, 1, none);
    forebay.rewrite(&without.clone().admin(&format!("token_sha256 = {:?}", digest(TOKEN))));
    forebay.reload();
    let or_socket = "or use its unix socket with --admin unix:/path";
    refused("", 1, &format!("the daemon asks for its token: set FOREBAY_ADMIN_TOKEN, {or_socket}"));
    let wrong = format!("the daemon does not take the token in FOREBAY_ADMIN_TOKEN: correct it, {or_socket}");
    refused("the-operators-own-tokem", 1, &wrong);
    let odd = "the token in FOREBAY_ADMIN_TOKEN is more than one line of visible ASCII characters";
    refused(&format!("{TOKEN}\nx"), 2, odd);
    for (admin, token) in [(&tcp, TOKEN), (&tcp, &format!("{TOKEN}\n")), (&socket, ""), (&socket, "anything")] {
        let said = drain(admin, token);
        assert_eq!(said.code, Some(0), "{said:?}");
        assert_eq!(forebay.server("p", 0)["state"], "draining");
        all.extend([said.stdout, said.stderr]);
        let key = [&*format!("authorization: Bearer {TOKEN}")];
        let back = Client::connect(&tcp).ask("POST", "/servers/p/a", &key, r#"{"state": "ready"}"#);
        assert_eq!(back.expect("an answer").status, 200);
    }
    // Of the listeners in a file, the socket is asked first.
    forebay.write("cli.toml", &format!("[admin]\nlisten = [{tcp:?}, {socket:?}]\n"));
    assert_eq!(with_environment(&["drain", "p/a", "-c", &forebay.path("cli.toml")], &[]).code, Some(0));
    all.push(forebay.log());
    let told = all.iter().any(|text| text.contains("operators-own") || text.contains(&digest(TOKEN)));
    assert!(!told, "the token is somewhere");
}

#[test]
fn wrong_usage_of_the_commands_says_what_would_be_right() {
    let a = Engine::start("a", &[]);
    let world = world(&two(&a.address, "127.0.0.1:1"), "");
    for (words, why) in [
        (&["drain", "q/a"][..], "forebay: no pool is called \"q\"; there is p\n"),
        (&["maint", "p/c"], "forebay: no server of pool \"p\" is called \"c\"; it has a, b\n"),
        (&["ready", "p/a/b"], "forebay: no server of pool \"p\" is called \"a/b\"; it has a, b\n"),
        (&["drain", "a"], "write the pool, a slash and the server, such as llama/gpu1; `forebay status` shows them"),
        (&["drain", "p/"], "write the pool, a slash and the server"),
        (&["drain", "p/a", "--timeout", "10"], "\"10\" has no unit; write \"10s\""),
        (&["ready", "p/a", "--weight", "10001"], "write a number from 0 to 10000, or `file`"),
    ] {
        let said = world.command(words);
        assert!(said.code == Some(2) && said.stdout.is_empty() && said.stderr.contains(why), "{words:?}: {said:?}");
    }
    let said = forebay(&["drain", "p/a", "--admin", world.forebay.traffic()]);
    assert_eq!((said.code, &*said.stdout), (Some(1), ""));
    let strange = "forebay: POST /servers/p/a was answered with 404: is it forebay's admin listener?";
    assert!(said.stderr.starts_with(strange), "{said:?}");
    for command in ["drain", "ready", "maint"] {
        let said = forebay(&[command, "--help"]);
        assert!(said.code == Some(0) && said.stdout.contains("Example:\n  forebay"), "{said:?}");
        assert!(said.stdout.contains("$FOREBAY_ADMIN_TOKEN"), "{said:?}");
    }
}
