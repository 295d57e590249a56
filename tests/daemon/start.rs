//! How the daemon comes up, and what it leaves behind.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::configuration::{Configuration, SECRET};
use crate::harness::{DEADLINE, Engine, Folder, Forebay, forebay, powerless};
use crate::http::Client;

/// What `run` says of a configuration that it cannot serve, at once.
fn refused(configuration: &Configuration) -> String {
    let folder = Folder::with(&[("forebay.toml", &configuration.to_string())]);
    let began = Instant::now();
    let said = forebay(&["run", "-c", &folder.path("forebay.toml")]);
    assert!(began.elapsed() < Duration::from_secs(10), "it took {:?}", began.elapsed()); // Pingora would try for 30 s
    assert_eq!((said.code, &*said.stdout), (Some(1), ""), "{said:?}");
    assert_eq!(said.stderr.lines().count(), 1, "{}", said.stderr);
    said.stderr.trim_end().to_owned()
}

#[test]
fn an_address_in_use_is_one_clear_line_at_once() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let expected = format!("forebay: cannot listen on {address}: another process listens there already");
    let configuration = Configuration::of(&["127.0.0.1:1"]);
    assert_eq!(refused(&configuration.clone().listen(&address)), expected);
    assert_eq!(refused(&configuration.admin_listen(&address)), expected);
}

#[test]
fn an_address_that_is_not_ours_is_one_clear_line() {
    let said = refused(&Configuration::of(&["127.0.0.1:1"]).listen("192.0.2.1:8080"));
    assert_eq!(said, "forebay: cannot listen on 192.0.2.1:8080: this machine has no such address");
}

#[test]
fn a_unix_socket_that_cannot_be_made_is_one_clear_line() {
    let folder = Folder::with(&[("file", "not a folder")]);
    for path in ["none/forebay.sock", "file/forebay.sock", "file"] {
        let listen = format!("unix:{}", folder.path(path));
        let said = refused(&Configuration::of(&["127.0.0.1:1"]).listen(&listen));
        assert!(said.starts_with(&format!("forebay: cannot listen on {listen}: ")), "{said}");
    }
    assert_eq!(folder.read("file"), "not a folder", "a file that is no socket is left alone");
}

#[test]
fn what_is_not_permitted_is_one_clear_line() {
    let folder = Folder::with(&[("closed/access.log", "")]);
    let permit = |name: &str, mode| fs::set_permissions(folder.path(name), Permissions::from_mode(mode));
    let (file, socket) = (folder.path("forebay.toml"), folder.path("closed/forebay.sock"));
    let log = folder.path("closed/access.log");
    permit("closed/access.log", 0o400).and(permit("closed", 0o500)).expect("set");
    let good = Configuration::of(&["127.0.0.1:1"]);
    let is_folder = "permission denied: forebay must be allowed to write to its folder";
    let is_port = "permission denied: a port below 1024 needs CAP_NET_BIND_SERVICE";
    let unprivileged = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").expect("a setting");
    let mut cases = vec![
        (good.clone(), 0o000, 2, format!("{file}: cannot be read: Permission denied (os error 13)")),
        (
            good.clone().listen(&format!("unix:{socket}")),
            0o400,
            1,
            format!("forebay: cannot listen on unix:{socket}: {is_folder}"),
        ),
        (
            good.clone().more(&format!("[log]\naccess = {log:?}")),
            0o400,
            1,
            format!("forebay: cannot write the access log to {log}: Permission denied (os error 13)"),
        ),
    ];
    if unprivileged.trim() != "0" {
        let told = format!("forebay: cannot listen on 127.0.0.1:1: {is_port}");
        cases.push((good.listen("127.0.0.1:1"), 0o400, 1, told));
    }
    for (configuration, mode, code, told) in cases {
        folder.write("forebay.toml", &configuration.to_string());
        permit("forebay.toml", mode).expect("set");
        let said = powerless(&["run", "-c", &file]);
        assert_eq!((said.code, &*said.stdout, &*said.stderr), (Some(code), "", &*format!("{told}\n")));
        permit("forebay.toml", 0o600).expect("set");
    }
    permit("closed", 0o700).expect("set");
}

#[test]
fn a_start_that_fails_leaves_no_socket_behind() {
    let folder = Folder::new();
    let socket = folder.path("traffic.sock");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    refused(&Configuration::of(&["127.0.0.1:1"]).listen(&format!("unix:{socket}")).listen(&address));
    assert!(!Path::new(&socket).exists());
}

#[test]
fn unix_listeners_serve_traffic_and_admin_and_their_files_go_with_the_daemon() {
    let engine = Engine::start("e", &[]);
    let folder = Folder::new();
    let (traffic, admin) = (folder.path("traffic.sock"), folder.path("admin.sock"));
    let configuration = Configuration::of(&[&engine.address])
        .listen("127.0.0.1:0")
        .listen(&format!("unix:{traffic}"))
        .admin_listen(&format!("unix:{admin}"));
    let mut forebay = Forebay::ready(&configuration);
    assert_eq!(forebay.admin_address(), format!("unix:{admin}"));
    for address in [forebay.traffic(), &format!("unix:{traffic}")] {
        let mut client = Client::connect(address);
        for _ in 0..2 {
            let answer = client.chat("m").expect("an answer");
            assert_eq!((answer.status, answer.closes()), (200, false), "{address}");
        }
    }
    let reloaded = Client::connect(forebay.admin_address()).ask("POST", "/reload", &[], "").expect("an answer");
    assert_eq!(reloaded.status, 200, "over a unix socket no token is asked for");
    forebay.signal("TERM");
    assert_eq!(forebay.until_ended(), Some(0));
    assert!(!Path::new(&traffic).exists() && !Path::new(&admin).exists());
}

#[test]
fn a_socket_file_left_by_a_crash_is_replaced_and_one_in_use_is_not() {
    let folder = Folder::new();
    let socket = folder.path("stale.sock");
    drop(UnixListener::bind(&socket).expect("a socket"));
    assert!(Path::new(&socket).exists(), "nobody listens, the file is there");
    let configuration = Configuration::of(&["127.0.0.1:1"]).listen(&format!("unix:{socket}"));
    let forebay = Forebay::start(&configuration);
    assert_eq!(Client::connect(&format!("unix:{socket}")).get("/health").status, 503);
    let said = refused(&configuration);
    assert_eq!(said, format!("forebay: cannot listen on unix:{socket}: another process listens there already"));
    assert_eq!(Client::connect(&format!("unix:{socket}")).get("/health").status, 503, "it serves on");
    drop(forebay);
}

#[test]
fn a_socket_file_that_another_daemon_has_made_anew_is_left_alone() {
    let folder = Folder::new();
    let socket = folder.path("taken.sock");
    let configuration = Configuration::of(&["127.0.0.1:1"]).listen(&format!("unix:{socket}"));
    let mut former = Forebay::start(&configuration);
    std::fs::remove_file(&socket).expect("removed");
    let latter = Forebay::start(&configuration);
    former.signal("TERM");
    assert_eq!(former.until_ended(), Some(0));
    assert_eq!(Client::connect(&format!("unix:{socket}")).get("/health").status, 503);
    drop(latter); // killed, so its file is left
    std::fs::remove_file(&socket).expect("removed");
    std::fs::write(&socket, "no socket").expect("written");
    let said = refused(&configuration);
    assert_eq!(said, format!("forebay: cannot listen on unix:{socket}: a file stands there that is not a socket"));
}

#[test]
fn a_daemon_listens_on_every_address_it_was_given() {
    let configuration =
        Configuration::of(&["127.0.0.1:1"]).listen("127.0.0.1:0").listen("127.0.0.2:0").admin_listen("127.0.0.3:0");
    let forebay = Forebay::start(&configuration);
    let listening =
        forebay.messages().into_iter().filter_map(|said| Some(said.split_once("listening on ")?.1.to_owned()));
    let listening: Vec<String> = listening.collect();
    assert_eq!(listening.len(), 3);
    for (address, path, status) in
        [(&listening[0], "/health", 503), (&listening[1], "/health", 503), (&listening[2], "/livez", 200)]
    {
        assert_eq!(Client::connect(address).get(path).status, status, "{address}");
    }
}

#[test]
fn the_limit_of_open_files_is_raised_as_far_as_it_goes_and_that_is_said() {
    let folder = Folder::with(&[("forebay.toml", &Configuration::of(&["127.0.0.1:1"]).to_string())]);
    let script = "ulimit -S -n 100 && ulimit -H -n 900 && exec \"$0\" run -c \"$1\"";
    let mut command = Command::new("sh");
    command.args(["-c", script, env!("CARGO_BIN_EXE_forebay"), &folder.path("forebay.toml")]).stderr(Stdio::piped());
    let mut child = command.spawn().expect("`sh` runs");
    let mut log = BufReader::new(child.stderr.take().expect("piped")).lines().map_while(Result::ok);
    let said = log.find(|line| line.contains("\"900 files and connections may be open at once\""));
    let limits = fs::read_to_string(format!("/proc/{}/limits", child.id())).expect("a child");
    child.kill().expect("a child");
    child.wait().expect("a child");
    assert!(said.is_some());
    let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("that limit");
    assert_eq!(line.split_whitespace().collect::<Vec<_>>()[3..5], ["900", "900"], "{line}");
}

/// A thousand models on so many pools, with a thousand servers among them, none of which answers a probe.
fn large(pools: usize, silent: &[TcpListener]) -> Configuration {
    let server = |n: usize| match n % 4 {
        0 => format!("127.0.{}.{}:1", n / 250, 1 + n % 250), // refuses
        1 => format!("198.51.100.{}:{}", n % 250, 1 + n),    // cannot be reached: kept free by RFC 5737
        2 => format!("none-{n}.invalid:80"),
        _ => silent[n / 4].local_addr().expect("an address").to_string(),
    };
    let each = 1000 / pools;
    let pool = |configuration: Configuration, pool: usize| {
        let servers: Vec<String> = (pool * each..(pool + 1) * each).map(server).collect();
        let servers: Vec<&str> = servers.iter().map(String::as_str).collect();
        configuration.pool(&format!("p{pool}"), &servers, "interval = \"60s\"\ntimeout = \"60s\"")
    };
    let model =
        |configuration: Configuration, n: usize| configuration.model(&format!("model-{n}"), &format!("p{}", n % pools));
    let configuration = (0..pools).fold(Configuration::empty(), pool);
    (0..1000).fold(configuration, model).key("tester", SECRET, "[\"*\"]")
}

#[test]
fn a_daemon_of_a_thousand_models_and_servers_waits_for_none_of_them() {
    let silent: Vec<TcpListener> = (0..250).map(|_| TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
    for pools in [1, 1000] {
        let folder = Folder::with(&[("forebay.toml", &large(pools, &silent).to_string())]);
        let began = Instant::now();
        let mut forebay = Forebay::start_with(folder, "forebay.toml");
        assert_eq!(forebay.admin("/livez").status, 200);
        let took = began.elapsed();
        println!("{pools} pools: lives after {took:?}");
        assert!(took < DEADLINE, "{took:?}");
        let answer = forebay.client().chat("model-3").expect("an answer");
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (503, &"no_healthy_upstream".into()));
        let began = Instant::now();
        forebay.signal("TERM");
        assert_eq!(forebay.until_ended(), Some(0));
        println!("{pools} pools: ended after {:?}", began.elapsed());
        assert!(began.elapsed() < DEADLINE, "{:?}", began.elapsed());
    }
}
