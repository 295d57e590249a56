//! A new process takes over under load, and nothing is lost; or it fails to, and the one before serves on.

use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::configuration::Configuration;
use crate::harness::{Engine, Folder, Forebay, Manner, forebay as command, signal, until};
use crate::http::{Client, canned};

/// A daemon whose binary can be replaced at its place, `forebay` in its folder.
fn replaceable(configuration: &Configuration) -> Forebay {
    let folder = Folder::with(&[("forebay.toml", &configuration.to_string())]);
    let program = folder.path("forebay");
    symlink(env!("CARGO_BIN_EXE_forebay"), &program).expect("a link");
    let forebay = Forebay::start_so(folder, "forebay.toml", Manner { program: Some(&program), ..Manner::default() });
    forebay.until_ready();
    forebay
}

/// Puts a script in the binary's place.
fn replace(forebay: &Forebay, script: &str) {
    let program = forebay.path("forebay");
    fs::remove_file(&program).expect("it was there");
    fs::write(&program, format!("#!/bin/sh\n{script}\n")).expect("written");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("a mode");
}

fn is_there(pid: u32) -> bool {
    // A zombie is there for `kill`.
    let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    state.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

#[test]
fn ten_upgrades_under_load_fail_no_request_and_break_no_stream() {
    let engines = [Engine::start("a", &[]), Engine::start("b", &["--tokens-per-second", "20"])];
    let configuration = Configuration::empty()
        .pool("fast", &[&engines[0].address], "")
        .pool("slow", &[&engines[1].address], "")
        .model("m", "fast")
        .model("slow", "slow")
        .key("tester", crate::configuration::SECRET, "[\"*\"]");
    let mut forebay = Forebay::ready(&configuration);
    let address = forebay.traffic().to_owned();
    let over = Arc::new(AtomicBool::new(false));
    let served = Arc::new(AtomicUsize::new(0));
    let mut load = Vec::new();
    // Connections that are kept: each may end only by being told so.
    for _ in 0..52 {
        let (address, over, served) = (address.clone(), over.clone(), served.clone());
        load.push(thread::spawn(move || -> io::Result<()> {
            while !over.load(Relaxed) {
                let mut client = Client::try_connect(&address)?;
                loop {
                    let answer = client.chat("m")?;
                    assert_eq!(answer.status, 200, "{}", answer.text());
                    served.fetch_add(1, Relaxed);
                    if answer.closes() || over.load(Relaxed) {
                        break;
                    }
                }
            }
            Ok(())
        }));
    }
    // A new connection for each request.
    for _ in 0..8 {
        let (address, over) = (address.clone(), over.clone());
        load.push(thread::spawn(move || -> io::Result<()> {
            while !over.load(Relaxed) {
                assert_eq!(Client::try_connect(&address)?.chat("m")?.status, 200);
            }
            Ok(())
        }));
    }
    // Streams of six seconds, which outlive the process that they are in.
    for _ in 0..50 {
        let (address, over) = (address.clone(), over.clone());
        load.push(thread::spawn(move || -> io::Result<()> {
            while !over.load(Relaxed) {
                let mut client = Client::try_connect(&address)?;
                assert_eq!(client.begin_stream("slow", 120)?.status, 200);
                assert!(client.end_stream()?, "a stream without its end");
            }
            Ok(())
        }));
    }
    // HTTP/2 clients, each of one connection at a time.
    for _ in 0..4 {
        let (address, over) = (address.clone(), over.clone());
        load.push(thread::spawn(move || http2(&address, &over)));
    }
    for round in 0..10 {
        let before = served.load(Relaxed);
        until(format!("requests are served before upgrade {round}"), || {
            (served.load(Relaxed) > before + 200).then_some(())
        });
        forebay.upgrade();
    }
    let before = served.load(Relaxed);
    until("requests are served after the last", || (served.load(Relaxed) > before + 200).then_some(()));
    over.store(true, Relaxed);
    for client in load {
        client.join().expect("no panic").expect("nothing failed");
    }
    assert_eq!(forebay.until_ended(), Some(0), "the first one has ended");
    let log = forebay.log();
    let errors: Vec<&str> = log.lines().filter(|line| line.contains("\"level\":\"error\"")).collect();
    assert!(errors.is_empty(), "{errors:?}");
    let pid = forebay.pid();
    assert_eq!(forebay.status()["pid"], pid);
    forebay.signal("TERM");
    until("the last one has ended", || (!is_there(pid)).then_some(()));
}

/// Requests over HTTP/2, one after the other; a connection that says it goes is let go.
fn http2(address: &str, over: &AtomicBool) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        while !over.load(Relaxed) {
            let stream = tokio::net::TcpStream::connect(address).await?;
            let (sender, connection) = h2::client::handshake(stream).await.map_err(io::Error::other)?;
            let gone = tokio::spawn(connection);
            while !over.load(Relaxed) && !gone.is_finished() {
                let Ok(ready) = sender.clone().ready().await else { break };
                match crate::signals::ask(ready, "word", false).await {
                    Ok((status, _)) => assert_eq!(status, 200),
                    // Refused unseen: it may be sent again (RFC 9113 §8.7).
                    Err(e) if e.is_go_away() || e.reason() == Some(h2::Reason::REFUSED_STREAM) => break,
                    Err(e) => return Err(io::Error::other(e)),
                }
            }
        }
        Ok(())
    })
}

#[test]
fn the_old_process_finishes_its_streams_while_the_new_one_serves() {
    let engine = Engine::start("slow", &["--tokens-per-second", "20"]);
    let mut forebay = Forebay::ready(&Configuration::of(&[&engine.address]));
    let (before, mut kept) = (forebay.pid(), forebay.client());
    let mut client = forebay.client();
    client.begin_stream("m", 40).expect("a stream");
    let pid = forebay.upgrade();
    assert_ne!(pid, before);
    assert_eq!(forebay.status()["pid"], pid, "the admin listener is the new one's");
    assert_eq!(forebay.admin("/readyz").status, 200, "it is ready from its first moment");
    assert!(kept.rest().is_empty(), "an idle connection to the old one ends");
    assert_eq!(forebay.client().chat("m").expect("an answer").status, 200);
    assert!(forebay.ended().is_none(), "the old one has a stream");
    assert!(client.end_stream().expect("a whole stream"));
    assert_eq!(forebay.until_ended(), Some(0));
    assert!(is_there(pid));
}

#[test]
fn a_stream_that_takes_longer_than_drain_upgrade_is_cut_visibly() {
    let engine = Engine::start("slow", &["--tokens-per-second", "20"]);
    let mut forebay = Forebay::ready(&Configuration::of(&[&engine.address]).server("drain_upgrade = \"500ms\""));
    let mut client = forebay.client();
    client.begin_stream("m", 4000).expect("a stream");
    forebay.upgrade();
    client.end_stream().expect_err("no last chunk");
    assert_eq!(forebay.until_ended(), Some(0));
}

#[test]
fn a_stop_after_an_upgrade_gives_the_old_process_the_time_of_any_stop() {
    let engine = Engine::start("slow", &["--tokens-per-second", "20"]);
    let mut forebay = Forebay::ready(&Configuration::of(&[&engine.address]));
    let old = forebay.pid();
    let mut client = forebay.client();
    client.begin_stream("m", 40).expect("a stream");
    let new = forebay.upgrade();
    [old, new].iter().for_each(|pid| assert!(signal(*pid, "TERM"), "as systemd does"));
    assert!(client.end_stream().expect("a whole stream"));
    assert_eq!(forebay.until_ended(), Some(0));

    let mut forebay = Forebay::ready(&Configuration::of(&[&engine.address]).server("drain = \"500ms\""));
    let old = forebay.pid();
    let mut client = forebay.client();
    client.begin_stream("m", 4000).expect("a stream");
    forebay.upgrade();
    signal(old, "TERM");
    client.end_stream().expect_err("no last chunk");
    assert_eq!(forebay.until_ended(), Some(0));
    forebay.until_said("requests were cut off after 0.5 s");
}

#[test]
fn what_is_known_of_the_servers_is_known_to_the_new_process() {
    let engines = ["a", "b"].map(|name| Engine::start(name, &[]));
    let fails = Engine::start("fails", &["--fail", "500"]);
    let addresses = [&*engines[0].address, &*engines[1].address, &*fails.address];
    // Nobody is probed again while this runs: what is known is what was handed over.
    let configuration = Configuration::empty()
        .admin("token_sha256 = \"\"")
        .pool("p", &addresses, "interval = \"1h\"\n[pool.p.eject]\nfailures = 1\nduration = \"1h\"")
        .model("m", "p")
        .key("tester", crate::configuration::SECRET, "[\"*\"]");
    let folder = Folder::new();
    let admin = format!("unix:{}", folder.path("admin.sock"));
    let mut forebay = Forebay::start_in(folder, &configuration.admin_listen(&admin));
    forebay.until_ready();
    let order = |place: usize, body: &str| {
        let path = format!("/servers/p/{}", addresses[place]);
        assert_eq!(Client::connect(&admin).ask("POST", &path, &[], body).expect("an answer").status, 200);
    };
    order(0, "{\"state\": \"drain\"}");
    order(1, "{\"weight\": 7}");
    until("one is ejected", || {
        forebay.client().chat("m").expect("an answer");
        (forebay.server("p", 2)["state"] == "ejected").then_some(())
    });
    let known = |forebay: &Forebay| {
        let mut servers = forebay.status()["pools"]["p"]["servers"].clone();
        for server in servers.as_array_mut().expect("a list") {
            // Each process counts and probes for itself.
            let server = server.as_object_mut().expect("a table");
            server.retain(|name, _| !["requests", "errors", "last_probe"].contains(&name.as_str()));
        }
        servers
    };
    let before = known(&forebay);
    forebay.upgrade();
    assert_eq!(known(&forebay), before);
    for _ in 0..4 {
        let answer = forebay.client().chat("m").expect("an answer");
        assert_eq!((answer.status, &*answer.headers["x-engine"]), (200, "b"), "the others are drained and ejected");
    }
    // The socket's file has been handed on, and goes with the last process.
    let file = admin.trim_start_matches("unix:").to_owned();
    assert!(Path::new(&file).exists());
    assert_eq!(forebay.until_ended(), Some(0));
    assert!(Path::new(&file).exists(), "the process before has left it");
    forebay.signal("TERM");
    until("its file is removed", || (!Path::new(&file).exists()).then_some(()));
}

#[test]
fn a_successor_that_fails_leaves_the_old_process_serving_and_the_log_says_why() {
    let engine = Engine::start("e", &[]);
    let good = Configuration::of(&[&engine.address]);
    let forebay = replaceable(&good);
    let serves = || assert_eq!(forebay.client().chat("m").expect("an answer").status, 200);
    let mut kept = forebay.client();
    kept.chat("m").expect("an answer");

    forebay.write("forebay.toml", "[server]\nlisen = []\n");
    forebay.signal("USR2");
    let said = forebay.until_said("not upgraded");
    assert!(said.contains("forebay.toml:2:1: unknown key `lisen`"), "{said}");
    serves();
    forebay.rewrite(&good);

    replace(&forebay, "exit 3");
    forebay.signal("USR2");
    forebay.until_said("ended before it was ready: exit status: 3");
    serves();

    fs::remove_file(forebay.path("forebay")).expect("a file");
    forebay.signal("USR2");
    forebay.until_said("cannot run");
    serves();
    let answer = kept.chat("m").expect("an answer on the connection from before");
    assert_eq!((answer.status, answer.closes()), (200, false));
    assert_eq!(forebay.status()["pid"], forebay.pid());
}

#[test]
fn a_successor_that_hangs_is_killed_and_another_one_may_follow() {
    let engine = Engine::start("e", &[]);
    let mut forebay = replaceable(&Configuration::of(&[&engine.address]));
    replace(&forebay, "echo $$ > \"$(dirname \"$0\")/hung\"; exec sleep 120");
    let since = Instant::now();
    forebay.signal("USR2");
    let pid = until("it runs", || fs::read_to_string(forebay.path("hung")).ok()?.trim().parse().ok());
    forebay.signal("USR2");
    forebay.until_said("an upgrade is under way already");
    while since.elapsed() < Duration::from_secs(25) {
        assert_eq!(forebay.client().chat("m").expect("an answer").status, 200);
        thread::sleep(Duration::from_millis(500)); // the load, not a wait
    }
    until("it is given up", || forebay.log().contains("was not ready after 30 s, and is killed").then_some(()));
    assert!(!is_there(pid), "nothing is left of it");
    fs::remove_file(forebay.path("forebay")).expect("a script");
    symlink(env!("CARGO_BIN_EXE_forebay"), forebay.path("forebay")).expect("a link");
    forebay.upgrade();
    assert_eq!(forebay.client().chat("m").expect("an answer").status, 200);
}

#[test]
fn a_daemon_that_is_told_to_stop_takes_its_unready_successor_with_it() {
    let engine = Engine::start("e", &[]);
    let mut forebay = replaceable(&Configuration::of(&[&engine.address]));
    replace(&forebay, "echo $$ > \"$(dirname \"$0\")/hung\"; exec sleep 120");
    forebay.signal("USR2");
    let pid = until("it runs", || fs::read_to_string(forebay.path("hung")).ok()?.trim().parse().ok());
    forebay.signal("TERM");
    assert_eq!(forebay.until_ended(), Some(0));
    until("nothing is left of it", || (!is_there(pid)).then_some(()));
}

#[test]
fn a_successor_that_is_told_to_stop_before_it_serves_leaves_the_old_process_serving() {
    let engine = Engine::start("e", &[]);
    let forebay = replaceable(&Configuration::of(&[&engine.address]));
    // It waits for the first probe of a server that does not answer.
    forebay.rewrite(&Configuration::of(&[&engine.address, &canned("")]));
    late(&forebay);
    let limits = || forebay.log().matches("may be open at once").count();
    let before = limits();
    forebay.signal("USR2");
    let pid = until("it runs", || fs::read_to_string(forebay.path("late")).ok()?.trim().parse().ok());
    forebay.write("go", "");
    until("it has its sockets", || (limits() > before).then_some(()));
    signal(pid, "TERM");
    let said = forebay.until_said("not upgraded");
    assert!(said.contains("told to stop before it served") || said.contains("signal: 15"), "{said}");
    until("it has ended", || (!is_there(pid)).then_some(()));
    assert_eq!(forebay.client().chat("m").expect("an answer").status, 200);
    assert_eq!(forebay.status()["pid"], forebay.pid());
}

#[test]
fn a_successor_whose_predecessor_is_killed_meanwhile_does_not_stay() {
    let engine = Engine::start("e", &[]);
    let mut forebay = replaceable(&Configuration::of(&[&engine.address]));
    late(&forebay);
    forebay.signal("USR2");
    let pid = until("it runs", || fs::read_to_string(forebay.path("late")).ok()?.trim().parse().ok());
    forebay.signal("KILL");
    forebay.until_ended();
    forebay.write("go", "");
    until("it has ended", || (!is_there(pid)).then_some(()));
    assert!(forebay.log().contains("takes over from does not wait for it"), "{}", forebay.log());
}

#[test]
fn the_command_and_the_admin_listener_upgrade_and_say_who_serves() {
    let engine = Engine::start("e", &[]);
    let folder = Folder::new();
    let admin = format!("unix:{}", folder.path("admin.sock"));
    let configuration = Configuration::of(&[&engine.address]).admin_listen(&admin);
    let mut forebay = Forebay::start_in(folder, &configuration);
    forebay.until_ready();
    let said = command(&["upgrade", "--admin", &admin]);
    let pid = forebay.until_upgraded();
    assert_eq!((said.code, &*said.stderr), (Some(0), ""));
    assert!(said.stdout.starts_with(&format!("upgraded: process {pid} serves, version ")), "{}", said.stdout);
    let answer = Client::connect(&admin).ask("POST", "/upgrade", &[], "").expect("an answer");
    let pid = forebay.until_upgraded();
    assert_eq!((answer.status, &answer.json()["pid"]), (200, &json!(pid)));
    forebay.write("forebay.toml", "[server]\nlisen = []\n");
    let said = command(&["upgrade", "--admin", &admin]);
    assert_eq!((said.code, &*said.stdout), (Some(1), ""));
    assert!(said.stderr.contains("serves on") && said.stderr.contains("unknown key `lisen`"), "{}", said.stderr);
    let answer = Client::connect(&admin).ask("GET", "/upgrade", &[], "").expect("an answer");
    assert_eq!((answer.status, &*answer.headers["allow"]), (405, "POST"));
}

#[test]
fn listeners_that_come_and_go_do_so_by_an_upgrade() {
    let engine = Engine::start("e", &[]);
    let folder = Folder::new();
    let [old, new] = ["old.sock", "new.sock"].map(|name| format!("unix:{}", folder.path(name)));
    let configuration = |more: &str| Configuration::of(&[&engine.address]).listen("127.0.0.1:0").listen(more);
    let mut forebay = Forebay::start_in(folder, &configuration(&old));
    forebay.until_ready();
    assert_eq!(Client::connect(&old).get("/health").status, 200);
    forebay.rewrite(&configuration(&new));
    forebay.reload();
    forebay.until_said("`[server] listen` holds until an upgrade");
    assert!(Client::try_connect(&new).is_err());
    forebay.upgrade();
    assert_eq!(Client::connect(&new).get("/health").status, 200);
    assert_eq!(forebay.client().get("/health").status, 200);
    assert!(Client::try_connect(&old).is_err(), "nobody listens there any more");
    until("its file goes with the process before", || {
        (!Path::new(old.trim_start_matches("unix:")).exists()).then_some(())
    });
    assert_eq!(forebay.until_ended(), Some(0));
    assert!(Path::new(new.trim_start_matches("unix:")).exists());
}

#[test]
fn an_address_that_a_passed_socket_keeps_from_us_is_told_with_what_to_do() {
    let engine = Engine::start("e", &[]);
    let forebay = Forebay::ready(&Configuration::of(&[&engine.address]));
    let port = forebay.traffic().rsplit_once(':').expect("a port").1.to_owned();
    forebay.rewrite(&Configuration::of(&[&engine.address]).listen(&format!("0.0.0.0:{port}")));
    forebay.signal("USR2");
    let said = forebay.until_said("not upgraded");
    assert!(said.contains(&format!("cannot listen on 0.0.0.0:{port}: 127.0.0.1:{port} was passed")), "{said}");
    assert!(said.contains("a restart leads"), "{said}");
    assert_eq!(forebay.client().chat("m").expect("an answer").status, 200);
}

#[test]
fn what_an_upgrade_under_way_would_not_know_is_not_taken_or_taken_afterwards() {
    let engine = Engine::start("e", &[]);
    let folder = Folder::new();
    let admin = format!("unix:{}", folder.path("admin.sock"));
    let configuration = Configuration::of(&[&engine.address]).admin_listen(&admin);
    folder.write("forebay.toml", &configuration.to_string());
    let program = folder.path("forebay");
    symlink(env!("CARGO_BIN_EXE_forebay"), &program).expect("a link");
    let mut forebay =
        Forebay::start_so(folder, "forebay.toml", Manner { program: Some(&program), ..Manner::default() });
    forebay.until_ready();
    late(&forebay);
    forebay.signal("USR2");
    until("it runs", || fs::read_to_string(forebay.path("late")).ok());
    let path = format!("/servers/p/{}", engine.address);
    let answer = Client::connect(&admin).ask("POST", &path, &[], "{\"state\": \"drain\"}").expect("an answer");
    assert_eq!(answer.status, 409, "{}", answer.text());
    let answer = Client::connect(&admin).ask("POST", "/upgrade", &[], "").expect("an answer");
    assert_eq!(answer.status, 409, "{}", answer.text());
    forebay.signal("HUP"); // read before or after the new one has read it: the new one reads it again
    forebay.write("go", "");
    forebay.until_upgraded();
    until("the new process has read it again", || (forebay.reloads("success") == 1.0).then_some(()));
    let answer = Client::connect(&admin).ask("POST", &path, &[], "{\"state\": \"drain\"}").expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.text());
}

/// Puts a successor in the binary's place that goes on only when `go` is there.
fn late(forebay: &Forebay) {
    let program = env!("CARGO_BIN_EXE_forebay");
    let waits = "while [ ! -e \"$here/go\" ]; do sleep 0.05; done";
    replace(forebay, &format!("here=$(dirname \"$0\"); echo $$ > \"$here/late\"; {waits}; exec {program} \"$@\""));
}

#[test]
fn a_drain_after_an_upgrade_waits_for_the_process_before_too() {
    let engine = Engine::start("slow", &["--tokens-per-second", "20"]);
    let folder = Folder::new();
    let admin = format!("unix:{}", folder.path("admin.sock"));
    let mut forebay = Forebay::start_in(folder, &Configuration::of(&[&engine.address]).admin_listen(&admin));
    forebay.until_ready();
    let old = forebay.pid();
    let mut client = forebay.client();
    client.begin_stream("m", 60).expect("a stream");
    forebay.upgrade();
    assert_eq!((&forebay.status()["former_pid"], &forebay.server("p", 0)["in_flight"]), (&json!(old), &json!(0)));
    let server = format!("p/{}", engine.address);
    let said = command(&["drain", &server, "--admin", &admin, "--timeout", "300ms"]);
    assert_eq!(said.code, Some(1));
    assert!(said.stderr.contains(&format!("process {old} still finishes")), "{}", said.stderr);
    let streams = thread::spawn(move || client.end_stream());
    let said = command(&["drain", &server, "--admin", &admin]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(streams.is_finished(), "it waited for the stream");
    assert!(streams.join().expect("no panic").expect("a whole stream"));
    assert_eq!(forebay.status()["former_pid"], json!(null));
}

#[test]
fn a_process_whose_supervisor_would_not_hear_of_another_one_is_not_replaced() {
    let engine = Engine::start("e", &[]);
    let folder = Folder::with(&[("forebay.toml", &Configuration::of(&[&engine.address]).to_string())]);
    let forebay = Forebay::start_with_environment(folder, "forebay.toml", &[("INVOCATION_ID", "1")]);
    forebay.signal("USR2");
    let said = forebay.until_said("not upgraded");
    assert!(said.contains("the unit needs Type=notify"), "{said}");
}

// --- sockets that are passed ---

fn passed(listener: &TcpListener) -> OwnedFd {
    listener.try_clone().expect("a descriptor").into()
}

#[test]
fn connections_that_arrive_while_no_process_runs_wait_in_a_socket_that_was_passed() {
    let engine = Engine::start("e", &[]);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    let configuration = Configuration::of(&[&engine.address]).listen(&address).to_string();
    let start = || {
        let manner = Manner { sockets: vec![passed(&listener)], ..Manner::default() };
        Forebay::start_so(Folder::with(&[("forebay.toml", &configuration)]), "forebay.toml", manner)
    };
    let mut forebay = start();
    forebay.until_ready();
    assert_eq!(forebay.client().chat("m").expect("an answer").status, 200);
    forebay.signal("KILL");
    forebay.until_ended();
    let mut waiting: Vec<Client> = (0..8).map(|_| Client::connect(&address)).collect();
    let again = start();
    again.until_ready();
    for client in &mut waiting {
        assert_eq!(client.chat("m").expect("an answer").status, 200);
    }
    // And one more time, with a signal: the socket is the test's, and stays.
    again.signal("TERM");
    until("it is gone", || Client::try_connect(again.admin_address()).is_err().then_some(()));
    Client::connect(&address);
}

#[test]
fn a_socket_that_nothing_listens_on_is_closed_and_named() {
    let engine = Engine::start("e", &[]);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    let folder = Folder::new();
    let admin = format!("unix:{}", folder.path("admin.sock"));
    let configuration = Configuration::of(&[&engine.address]).listen("[::1]:0").admin_listen(&admin);
    folder.write("forebay.toml", &configuration.to_string());
    let manner = Manner { sockets: vec![passed(&listener)], ..Manner::default() };
    let forebay = Forebay::start_so(folder, "forebay.toml", manner);
    forebay.until_said(&format!("nothing in the configuration listens on: {address}; it is closed"));
    assert_eq!(forebay.client().get("/health").status, 200);
}
