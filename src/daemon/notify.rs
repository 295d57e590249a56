//! What systemd hears: its notification protocol, datagrams of `KEY=value` lines to `$NOTIFY_SOCKET`.
//!
//! Nothing is sent without that variable. Nor is it before the daemon is ready, or after another process has taken over: systemd
//! listens to the unit's main process alone, and complains of any other in its log.

use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::live::{Current, Live};

/// How often the status text is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How long systemd may take to take a message, lest it hold us up.
const SENDING: Duration = Duration::from_secs(1);
/// How long the process may take to end once its time to drain is over.
const ENDING: Duration = Duration::from_secs(5);
/// The longest status text, in characters.
const LONGEST: usize = 120;

/// The service manager that started us, if one did.
#[derive(Debug)]
pub struct Supervisor {
    current: Arc<Current>,
    line: Option<Line>,
    /// How often it wants to hear that all is well.
    watchdog: Option<Duration>,
    told: Mutex<Told>,
}

/// A reload that it knows of. When this is dropped, however the reload went, it hears that the daemon is ready again.
#[derive(Debug)]
#[must_use]
pub struct Reloading<'s>(&'s Supervisor);

/// Where it listens.
#[derive(Debug)]
struct Line {
    socket: UnixDatagram,
    address: SocketAddr,
}

/// What it knows.
#[derive(Debug, Default)]
struct Told {
    phase: Phase,
    status: String,
    /// Whether the last message did not get out.
    failed: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// It waits until we are ready.
    #[default]
    Starting,
    Serving,
    Stopping,
    /// Another process is the main one.
    HandedOver,
}

/// How somebody who is asked whether he still turns says that he does.
type Answer = mpsc::Sender<()>;

// === impl Supervisor ===

impl Supervisor {
    /// The one that the environment names. Its status text is about `current`.
    #[must_use]
    pub fn new(environment: &dyn Fn(&str) -> Option<String>, current: Arc<Current>) -> Self {
        let line = environment("NOTIFY_SOCKET").and_then(|name| {
            Line::to(&name).inspect_err(|e| log::warn!("systemd will not hear of us at `{name}`: {e}")).ok()
        });
        let watchdog = line.as_ref().and_then(|_| watchdog(environment));
        Self { current, line, watchdog, told: Mutex::default() }
    }

    /// The listeners accept. A process that takes over from another says so once it is the main one.
    pub fn ready(&self) {
        let mut told = self.told.lock();
        if told.phase == Phase::Starting {
            told.phase = Phase::Serving;
        }
        self.say(&mut told, "READY=1");
    }

    /// The configuration is read again, until the answer is dropped.
    pub fn reloading(&self) -> Reloading<'_> {
        let now = clock_gettime(ClockId::Monotonic);
        let now = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1000;
        self.say(&mut self.told.lock(), &format!("RELOADING=1\nMONOTONIC_USEC={now}"));
        Reloading(self)
    }

    /// The daemon stops, and requests in flight have this long: systemd waits for it even where `TimeoutStopSec` is shorter.
    pub fn stopping(&self, limit: Duration) {
        let limit = limit.saturating_add(ENDING).as_micros();
        self.end(&format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={limit}"), Phase::Stopping);
    }

    /// This process is the main one from now on, and it is ready. We fall silent.
    pub fn hand_over(&self, process: u32) {
        // With a ping: its own next one may be half the watchdog's time away.
        self.end(&format!("MAINPID={process}\nREADY=1\nWATCHDOG=1"), Phase::HandedOver);
    }

    /// Does the daemon's work. Beside it the status text is kept true, and the watchdog is fed while both the runtime and the
    /// thread that polls this do anything at all. To be called inside the runtime.
    ///
    /// A runtime does as long as one of its threads does: the others take over what waits for one that is blocked.
    ///
    /// # Errors
    /// The work's, or when the system gives us no thread.
    pub async fn attend<T>(self: &Arc<Self>, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
        let (ask, asked) = mpsc::channel(1);
        if let Some(every) = self.watchdog {
            let (supervisor, runtime) = (self.clone(), Handle::current());
            // A thread of its own: on the runtime, it could not tell a blocked one, and a blocked one would hold it up.
            let feed = move || supervisor.feed(every, &runtime, &ask);
            thread::Builder::new().name("watchdog".to_owned()).spawn(feed)?;
        }
        tokio::select! {
            done = work => done,
            never = self.renew() => match never {},
            never = answer(asked) => match never {},
        }
    }

    /// Feeds the watchdog until there is nobody left to ask.
    fn feed(&self, every: Duration, runtime: &Handle, ask: &mpsc::Sender<Answer>) {
        while turns(runtime, ask) {
            let mut told = self.told.lock();
            if matches!(told.phase, Phase::Serving | Phase::Stopping) {
                self.send(&mut told, "WATCHDOG=1");
            }
            drop(told);
            thread::sleep(every);
        }
    }

    /// Says how the pools are whenever that has changed.
    async fn renew(&self) -> Infallible {
        if self.line.is_none() {
            return pending().await;
        }
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            let mut told = self.told.lock();
            let status = status(&self.current.live());
            if told.phase == Phase::Serving && told.status != status {
                self.send(&mut told, &format!("STATUS={status}"));
                told.status = status;
            }
        }
    }

    /// Sends what changes the state that systemd has of us, with the status text.
    fn say(&self, told: &mut Told, what: &str) {
        if told.phase == Phase::Serving {
            told.status = status(&self.current.live());
            let text = format!("{what}\nSTATUS={}", told.status);
            self.send(told, &text);
        }
    }

    /// Says the last of what is not a ping.
    fn end(&self, what: &str, phase: Phase) {
        let mut told = self.told.lock();
        self.say(&mut told, what);
        if told.phase == Phase::Serving {
            told.phase = phase;
        }
    }

    fn send(&self, told: &mut Told, text: &str) {
        let Some(line) = &self.line else { return };
        let sent = line.socket.send_to_addr(text.as_bytes(), &line.address);
        if let Err(e) = &sent
            && !told.failed
        {
            log::warn!("systemd does not hear us: {e}");
        }
        told.failed = sent.is_err();
    }
}

// === impl Reloading ===

impl Drop for Reloading<'_> {
    fn drop(&mut self) {
        self.0.say(&mut self.0.told.lock(), "READY=1");
    }
}

// === impl Line ===

impl Line {
    /// To a socket by its path, or by its name where it has none: that is written after an `@`.
    fn to(name: &str) -> io::Result<Self> {
        let address = match name.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None if name.starts_with('/') => SocketAddr::from_pathname(name)?,
            None => return Err(io::Error::new(io::ErrorKind::Unsupported, "it is neither a path nor an @name")),
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(SENDING))?;
        Ok(Self { socket, address })
    }
}

/// How often to say that all is well, if anybody wants to hear it from us: twice in the time that systemd waits.
fn watchdog(environment: &dyn Fn(&str) -> Option<String>) -> Option<Duration> {
    let of_another = environment("WATCHDOG_PID").is_some_and(|process| process != std::process::id().to_string());
    let allowed = environment("WATCHDOG_USEC")?.parse().ok().filter(|&allowed| allowed > 0 && !of_another)?;
    Some(Duration::from_micros(allowed) / 2)
}

/// Waits, however long it takes, until a task ran on the runtime and the one who is asked has answered. `false`: one of them is gone.
fn turns(runtime: &Handle, ask: &mpsc::Sender<Answer>) -> bool {
    let (answer, mut answers) = mpsc::channel(2);
    let task = answer.clone();
    runtime.spawn(async move {
        sleep(Duration::from_millis(1)).await; // somebody looks after the timers, and so after the sockets
        let _ = task.try_send(());
    });
    ask.blocking_send(answer).is_ok() && answers.blocking_recv().is_some() && answers.blocking_recv().is_some()
}

/// Answers whoever asks.
async fn answer(mut asked: mpsc::Receiver<Answer>) -> Infallible {
    while let Some(answer) = asked.recv().await {
        let _ = answer.try_send(()); // there is room for all
    }
    pending().await
}

/// How the pools are, in a line: "2 pools up, 1 down (llama)".
fn status(live: &Live) -> String {
    let (up, others): (Vec<_>, Vec<_>) = live.pools().partition(|pool| pool.is_usable());
    let (down, starting): (Vec<_>, Vec<_>) = others.into_iter().partition(|pool| pool.is_probed());
    let down: Vec<&str> = down.iter().map(|pool| &*pool.settings.name).collect();
    in_words(up.len(), starting.len(), &down)
}

fn in_words(up: usize, starting: usize, down: &[&str]) -> String {
    let mut text = format!("{up} {} up", if up == 1 { "pool" } else { "pools" });
    if starting > 0 {
        text += &format!(", {starting} starting");
    }
    if !down.is_empty() {
        text += &format!(", {} down ({})", down.len(), down.join(", "));
    }
    if let Some((cut, _)) = text.char_indices().nth(LONGEST) {
        text.truncate(cut);
        text.push('…');
    }
    text.replace(char::is_control, " ") // a line's end would begin another message
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
    use std::sync::mpsc::{Receiver, channel};
    use std::time::Instant;

    use tokio::runtime::{Builder, Runtime};
    use tokio::sync::oneshot;

    use super::*;
    use crate::config::plan::Plan;

    /// How often the watchdog is fed here: half of the time that systemd would wait.
    const EVERY: Duration = Duration::from_millis(50);
    const DEADLINE: Duration = Duration::from_secs(20);

    /// systemd, which listens without a path.
    struct Manager {
        name: String,
        socket: UnixDatagram,
    }

    impl Manager {
        fn new() -> Self {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let name = format!("forebay-notify-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
            let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
            Self { name: format!("@{name}"), socket }
        }

        /// Whom a process of its own would tell, with these variables too.
        fn supervisor(&self, more: &[(&str, String)]) -> Arc<Supervisor> {
            let plan = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/conf/minimal.toml"));
            let plan = Plan::load(plan, &|_| None).unwrap_or_else(|faults| panic!("{faults}"));
            let socket = ("NOTIFY_SOCKET", self.name.clone());
            let environment = |name: &str| {
                let found = more.iter().chain([&socket]).find(|(known, _)| *known == name);
                found.map(|(_, value)| value.clone())
            };
            Arc::new(Supervisor::new(&environment, Arc::new(Current::new(Live::new(plan, None)))))
        }

        /// The next message within this time.
        fn heard(&self, within: Duration) -> Option<String> {
            let mut text = [0; 1024];
            self.socket.set_read_timeout(Some(within)).unwrap();
            self.socket.recv(&mut text).ok().map(|length| String::from_utf8_lossy(&text[..length]).into_owned())
        }

        fn hears(&self, expected: &str) {
            assert_eq!(self.heard(DEADLINE).as_deref(), Some(expected));
        }

        fn hears_nothing(&self) {
            assert_eq!(self.heard(EVERY), None);
        }

        /// Pings stop while something is blocked and come again when it no longer is.
        fn hears_a_pause(&self, block: impl FnOnce(Receiver<()>)) {
            self.hears("WATCHDOG=1");
            let (release, blocked) = channel();
            block(blocked);
            let deadline = Instant::now() + DEADLINE;
            while self.heard(EVERY * 10).is_some() {
                assert!(Instant::now() < deadline, "the pings go on");
            }
            drop(release);
            for _ in 0..3 {
                self.hears("WATCHDOG=1");
            }
        }
    }

    fn allowed() -> [(&'static str, String); 1] {
        [("WATCHDOG_USEC", (EVERY * 2).as_micros().to_string())]
    }

    fn runtime(threads: usize) -> Runtime {
        Builder::new_multi_thread().worker_threads(threads).enable_all().build().unwrap()
    }

    /// Blocks a worker until it is released. Returns when it is blocked.
    fn block_worker(runtime: &Handle, release: Receiver<()>) {
        let (blocks, blocked) = channel();
        runtime.spawn(async move {
            blocks.send(()).unwrap();
            let _ = release.recv();
        });
        blocked.recv().unwrap();
    }

    /// A main thread that does what it is sent, until nobody can send any more.
    fn main_thread(
        supervisor: Arc<Supervisor>,
        runtime: Runtime,
    ) -> (mpsc::Sender<Receiver<()>>, thread::JoinHandle<()>) {
        supervisor.ready();
        let (send, mut sent) = mpsc::channel::<Receiver<()>>(1);
        let work = async move {
            while let Some(release) = sent.recv().await {
                let _ = release.recv(); // blocks
            }
            Ok(())
        };
        (send, thread::spawn(move || runtime.block_on(supervisor.attend(work)).unwrap()))
    }

    #[test]
    fn a_blocked_runtime_stops_the_pings_and_they_resume() {
        let (manager, runtime) = (Manager::new(), runtime(2));
        let handle = runtime.handle().clone();
        let (end, thread) = main_thread(manager.supervisor(&allowed()), runtime);
        manager.hears("READY=1\nSTATUS=0 pools up, 1 starting");
        let (release, blocked) = channel();
        block_worker(&handle, blocked);
        manager.hears_a_pause(|release| block_worker(&handle, release));
        drop((release, end));
        thread.join().unwrap();
    }

    #[test]
    fn one_blocked_worker_of_two_does_not_stop_the_pings() {
        let (manager, runtime) = (Manager::new(), runtime(2));
        let handle = runtime.handle().clone();
        let (end, thread) = main_thread(manager.supervisor(&allowed()), runtime);
        manager.hears("READY=1\nSTATUS=0 pools up, 1 starting");
        let (release, blocked) = channel();
        block_worker(&handle, blocked);
        for _ in 0..10 {
            manager.hears("WATCHDOG=1");
        }
        drop((release, end));
        thread.join().unwrap();
    }

    #[test]
    fn a_blocked_main_thread_stops_the_pings_and_they_resume() {
        let manager = Manager::new();
        let (work, thread) = main_thread(manager.supervisor(&allowed()), runtime(1));
        manager.hears("READY=1\nSTATUS=0 pools up, 1 starting");
        manager.hears_a_pause(|release| work.blocking_send(release).unwrap());
        drop(work);
        thread.join().unwrap();
    }

    #[test]
    fn the_pings_end_with_the_work() {
        let manager = Manager::new();
        let supervisor = manager.supervisor(&allowed());
        let (work, thread) = main_thread(supervisor.clone(), runtime(1));
        manager.hears("READY=1\nSTATUS=0 pools up, 1 starting");
        drop(work);
        thread.join().unwrap();
        let deadline = Instant::now() + DEADLINE;
        while Arc::strong_count(&supervisor) > 1 {
            assert!(Instant::now() < deadline, "its thread goes on");
            thread::sleep(Duration::from_millis(1)); // between two looks
        }
    }

    #[test]
    fn the_watchdog_is_fed_only_by_whom_it_watches() {
        let manager = Manager::new();
        let own = std::process::id().to_string();
        let half = Some(Duration::from_millis(1500));
        for (usec, pid, expected) in [
            (Some("3000000"), None, half),
            (Some("3000000"), Some(&*own), half),
            (Some("3000000"), Some("1"), None),
            (Some("3000000"), Some(""), None),
            (Some("0"), None, None),
            (Some("soon"), None, None),
            (None, Some(&*own), None),
        ] {
            let more = [("WATCHDOG_USEC", usec), ("WATCHDOG_PID", pid)];
            let more: Vec<_> = more.into_iter().filter_map(|(name, value)| Some((name, value?.to_owned()))).collect();
            assert_eq!(manager.supervisor(&more).watchdog, expected, "{more:?}");
        }
    }

    #[test]
    fn nothing_is_said_before_it_is_ready_nor_after_another_took_over() {
        let manager = Manager::new();
        let supervisor = manager.supervisor(&[]);
        drop(supervisor.reloading());
        manager.hears_nothing();
        supervisor.ready();
        manager.hears("READY=1\nSTATUS=0 pools up, 1 starting");
        supervisor.hand_over(4711);
        manager.hears("MAINPID=4711\nREADY=1\nWATCHDOG=1\nSTATUS=0 pools up, 1 starting");
        supervisor.ready();
        drop(supervisor.reloading());
        supervisor.stopping(Duration::ZERO);
        manager.hears_nothing();
        assert_eq!(supervisor.told.lock().phase, Phase::HandedOver, "nor are there pings, however it ends");
    }

    #[test]
    fn a_reload_is_over_when_it_is_dropped_but_for_one_that_the_end_overtook() {
        let manager = Manager::new();
        let supervisor = manager.supervisor(&[]);
        supervisor.ready();
        manager.hears("READY=1\nSTATUS=0 pools up, 1 starting");
        let reloading = supervisor.reloading();
        assert!(manager.heard(DEADLINE).is_some_and(|said| said.starts_with("RELOADING=1\nMONOTONIC_USEC=")));
        drop(reloading);
        manager.hears("READY=1\nSTATUS=0 pools up, 1 starting");
        let reloading = supervisor.reloading();
        assert!(manager.heard(DEADLINE).is_some_and(|said| said.starts_with("RELOADING=1\n")));
        supervisor.stopping(Duration::from_secs(30));
        manager.hears("STOPPING=1\nEXTEND_TIMEOUT_USEC=35000000\nSTATUS=0 pools up, 1 starting");
        drop(reloading);
        manager.hears_nothing();
    }

    #[test]
    fn a_manager_that_is_gone_harms_nothing_and_is_heard_of_once() {
        let manager = Manager::new();
        let supervisor = manager.supervisor(&[]);
        drop(manager);
        assert!(!supervisor.told.lock().failed);
        for _ in 0..2 {
            supervisor.ready();
            assert!(supervisor.told.lock().failed);
        }
    }

    #[test]
    fn the_socket_is_a_path_or_an_abstract_name() {
        for (name, good) in [("/run/systemd/notify", true), ("@name", true), ("vsock:2:1", false), ("", false)] {
            assert_eq!(Line::to(name).is_ok(), good, "{name:?}");
        }
        assert!(Line::to(&format!("/{}", "x".repeat(200))).is_err());
    }

    #[test]
    fn the_status_is_a_short_line() {
        let many: Vec<String> = (0..1000).map(|n| format!("pool-{n}")).collect();
        let many: Vec<&str> = many.iter().map(AsRef::as_ref).collect();
        for (up, starting, down, expected) in [
            (0, 0, &[][..], "0 pools up"),
            (1, 0, &[], "1 pool up"),
            (2, 0, &["llama"], "2 pools up, 1 down (llama)"),
            (2, 1, &["llama", "qwen"], "2 pools up, 1 starting, 2 down (llama, qwen)"),
            (0, 0, &["a\nREADY=1"], "0 pools up, 1 down (a READY=1)"),
        ] {
            assert_eq!(in_words(up, starting, down), expected);
        }
        let text = in_words(3, 0, &many);
        assert!(text.starts_with("3 pools up, 1000 down (pool-0, pool-1, ") && text.ends_with('…'), "{text}");
        assert_eq!(text.chars().count(), LONGEST + 1);
    }

    #[tokio::test]
    async fn without_a_socket_nothing_happens() {
        let manager = Manager::new();
        let current = manager.supervisor(&[]).current.clone();
        let environment = |name: &str| (name == "WATCHDOG_USEC").then(|| "1000".to_owned());
        let supervisor = Arc::new(Supervisor::new(&environment, current));
        assert!(supervisor.line.is_none() && supervisor.watchdog.is_none());
        supervisor.ready();
        let (done, work) = oneshot::channel();
        done.send(Ok(7)).unwrap();
        assert_eq!(supervisor.attend(async { work.await.unwrap() }).await.unwrap(), 7);
    }
}
