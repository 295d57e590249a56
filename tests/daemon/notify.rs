//! What systemd hears of the daemon, at a real socket.

use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use crate::configuration::Configuration;
use crate::harness::{DEADLINE, Engine, Folder, Forebay};
use crate::http::Client;

/// systemd, as far as a service knows it.
struct Manager {
    socket: UnixDatagram,
    /// As the service finds it in its environment.
    name: String,
    _folder: Folder,
}

impl Manager {
    /// One that listens at a path.
    fn new() -> Self {
        let folder = Folder::new();
        let name = folder.path("notify");
        Self { socket: UnixDatagram::bind(&name).expect("a socket"), name, _folder: folder }
    }

    /// One that listens without a path.
    fn without_a_path() -> Self {
        let (folder, named) = (Folder::new(), format!("forebay-notify-{}", std::process::id()));
        let address = SocketAddr::from_abstract_name(&named).expect("an address");
        Self {
            socket: UnixDatagram::bind_addr(&address).expect("a socket"),
            name: format!("@{named}"),
            _folder: folder,
        }
    }

    /// A daemon of this one that serves, with these variables too.
    fn start(&self, configuration: &Configuration, more: &[(&str, &str)]) -> Forebay {
        let folder = Folder::with(&[("forebay.toml", &configuration.to_string())]);
        let environment = [&[("NOTIFY_SOCKET", &*self.name)], more].concat();
        Forebay::start_with_environment(folder, "forebay.toml", &environment)
    }

    /// The messages until one is as wanted, with that one. Pings in between give it no more time.
    fn hear(&self, what: &str, is_wanted: impl Fn(&str) -> bool) -> Vec<String> {
        let (deadline, mut messages) = (Instant::now() + DEADLINE, vec![]);
        while !messages.last().is_some_and(|message: &String| is_wanted(message)) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "not within {DEADLINE:?}: {what:?}, but {messages:?}");
            let mut text = [0; 1024];
            self.socket.set_read_timeout(Some(left)).expect("an option");
            let length = self.socket.recv(&mut text).unwrap_or_else(|e| panic!("{what:?} after {messages:?}: {e}"));
            messages.push(String::from_utf8_lossy(&text[..length]).into_owned());
        }
        messages
    }

    /// The next message.
    fn next(&self) -> String {
        self.hear("a message", |_| true).remove(0)
    }

    /// The next message that begins so; nothing but pings and status texts comes before it.
    fn until(&self, beginning: &str) -> String {
        let minor = |message: &str| ["WATCHDOG=1", "STATUS="].iter().any(|minor| message.starts_with(minor));
        let heard = self.hear(beginning, |message| message.starts_with(beginning) || !minor(message));
        let message = heard.into_iter().next_back().expect("a message");
        assert!(message.starts_with(beginning), "{message:?} before {beginning:?}");
        message
    }
}

/// The time of systemd's clock, in microseconds.
fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec * 1_000_000 + now.tv_nsec / 1000).expect("after the start")
}

#[test]
fn it_is_ready_when_it_accepts_without_waiting_for_engines() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port"); // takes connections, and never answers
    let engine = silent.local_addr().expect("an address").to_string();
    for manager in [Manager::new(), Manager::without_a_path()] {
        let configuration = Configuration::empty().pool("llama", &[&engine], "timeout = \"2s\"").model("m", "llama");
        let configuration = configuration.key("tester", "fb-secret", "[\"*\"]");
        let forebay = manager.start(&configuration, &[]);
        assert_eq!(manager.next(), "READY=1\nSTATUS=0 pools up, 1 starting");
        assert_eq!(forebay.client().get("/health").status, 503);
        assert_eq!(manager.next(), "STATUS=0 pools up, 1 down (llama)");
    }
}

#[test]
fn the_status_text_follows_the_pools() {
    let (manager, one, mut two) = (Manager::new(), Engine::start("one", &[]), Engine::start("two", &[]));
    let configuration = Configuration::of(&[&one.address]).pool("llama", &[&two.address], "").model("l", "llama");
    let _forebay = manager.start(&configuration, &[]);
    let until = |text: &str| {
        manager.hear(text, |message| message.ends_with(&format!("STATUS={text}")));
    };
    until("2 pools up"); // it may be so when it is ready
    two.kill();
    until("1 pool up, 1 down (llama)");
    two.restart();
    until("2 pools up");
}

#[test]
fn a_reload_is_announced_and_so_is_its_end_whether_it_went_well_or_not() {
    let (manager, engine) = (Manager::new(), Engine::start("e", &[]));
    let socket = Folder::new();
    let admin = format!("unix:{}", socket.path("admin.sock"));
    let configuration = Configuration::of(&[&engine.address]).admin_listen(&admin);
    let forebay = manager.start(&configuration, &[]);
    manager.until("READY=1\nSTATUS=");
    let more = configuration.pool("llama", &["127.0.0.1:1"], "").model("l", "llama");
    let by_signal: &dyn Fn() = &|| forebay.signal("HUP");
    let by_request: &dyn Fn() = &|| {
        Client::connect(&admin).ask("POST", "/reload", &[], "").expect("an answer");
    };
    for (file, reload, status) in [
        (more.to_string(), by_signal, "1 pool up, 1 down (llama)"),
        ("nonsense".to_owned(), by_signal, "1 pool up, 1 down (llama)"),
        ("[pool.p]\nservers = []".to_owned(), by_request, "1 pool up, 1 down (llama)"),
        (more.to_string(), by_request, "1 pool up, 1 down (llama)"),
    ] {
        forebay.write("forebay.toml", &file);
        let before = now();
        reload();
        let message = manager.until("RELOADING=1\n");
        let time = message.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC="));
        let time: u64 = time.expect("a time").parse().expect("a number");
        assert!((before..=now()).contains(&time), "{message:?} was sent between {before} and {}", now());
        assert_eq!(manager.until("READY=1\n"), format!("READY=1\nSTATUS={status}"), "{file}");
    }
    assert_eq!((forebay.reloads("success"), forebay.reloads("failure")), (2.0, 2.0));
}

#[test]
fn a_stop_is_announced_and_has_the_time_that_the_file_gives_it() {
    let (manager, engine) = (Manager::new(), Engine::start("e", &[]));
    let mut forebay = manager.start(&Configuration::of(&[&engine.address]).server("drain = \"2m\""), &[]);
    manager.until("READY=1\nSTATUS=");
    forebay.signal("TERM");
    let stopping = manager.until("STOPPING=1\n");
    assert!(stopping.starts_with("STOPPING=1\nEXTEND_TIMEOUT_USEC=125000000\n"), "{stopping:?}");
    assert_eq!(forebay.until_ended(), Some(0));
}

#[test]
fn the_watchdog_is_fed_at_half_its_interval() {
    let (manager, began) = (Manager::new(), Instant::now());
    let _forebay = manager.start(&Configuration::of(&["127.0.0.1:1"]), &[("WATCHDOG_USEC", "1000000")]);
    manager.until("READY=1\nSTATUS=");
    manager.until("WATCHDOG=1");
    let gaps: Vec<Duration> = (0..5)
        .map(|_| {
            let last = Instant::now();
            manager.until("WATCHDOG=1");
            last.elapsed()
        })
        .collect();
    // A busy machine makes pings late and never early, so the time is taken from before the first one, and one gap may do.
    assert!(began.elapsed() >= Duration::from_millis(2500), "{gaps:?}");
    assert!(gaps.iter().any(|gap| *gap < Duration::from_millis(900)), "{gaps:?}");
}

#[test]
fn who_is_not_watched_does_not_feed_the_watchdog() {
    for (more, fed) in [
        (&[("WATCHDOG_USEC", "20000")][..], true),
        (&[("WATCHDOG_USEC", "20000"), ("WATCHDOG_PID", "1")], false),
        (&[], false),
    ] {
        let (manager, engine) = (Manager::new(), Engine::start("e", &[]));
        let mut forebay = manager.start(&Configuration::of(&[&engine.address]), more);
        // A look at the pools, a second after the last one, comes after some hundred pings.
        let mut messages = manager.hear("1 pool up", |message| message.ends_with("STATUS=1 pool up"));
        forebay.signal("TERM");
        messages.extend(manager.hear("STOPPING", |message| message.starts_with("STOPPING=1\n")));
        assert_eq!(messages.contains(&"WATCHDOG=1".to_owned()), fed, "{more:?}: {messages:?}");
        assert_eq!(forebay.until_ended(), Some(0));
    }
}

#[test]
fn a_socket_that_does_not_take_anything_is_told_once_and_harms_nothing() {
    let engine = Engine::start("e", &[]);
    let folder = Folder::new();
    for (name, told) in [(&*folder.path("gone"), "systemd does not hear us: "), ("gone", "systemd will not hear of us")]
    {
        let folder = Folder::with(&[("forebay.toml", &Configuration::of(&[&engine.address]).to_string())]);
        let environment = [("NOTIFY_SOCKET", name), ("WATCHDOG_USEC", "20000")];
        let mut forebay = Forebay::start_with_environment(folder, "forebay.toml", &environment);
        forebay.until_ready();
        forebay.reload();
        forebay.reload();
        forebay.signal("TERM");
        assert_eq!(forebay.until_ended(), Some(0));
        forebay.until_said("stopped");
        let said = forebay.messages();
        assert_eq!(said.iter().filter(|said| said.starts_with(told)).count(), 1, "{said:?}");
        assert_eq!(said.iter().filter(|said| said.contains("hear")).count(), 1, "{said:?}");
    }
}

#[test]
fn an_upgrade_names_the_new_main_process_before_that_one_speaks() {
    let (manager, engine) = (Manager::new(), Engine::start("e", &[]));
    let mut forebay = manager.start(&Configuration::of(&[&engine.address]), &[("WATCHDOG_USEC", "400000")]);
    manager.until("READY=1\nSTATUS=");
    for _ in 0..2 {
        let pid = forebay.upgrade();
        let said = manager.until("MAINPID=");
        assert!(said.starts_with(&format!("MAINPID={pid}\nREADY=1\n")), "{said:?}");
        assert_eq!(manager.until("READY=1\n"), "READY=1\nSTATUS=1 pool up", "by the new one");
        for _ in 0..3 {
            assert_eq!(manager.until("WATCHDOG=1"), "WATCHDOG=1", "it feeds the watchdog");
        }
    }
    forebay.signal("TERM");
    manager.until("STOPPING=1\n");
}
