//! Handing over to a new process, the same command line with whatever binary stands at its place by now.
//!
//! The successor is started with the listening sockets, and with a line to us as its standard input. Over that line it hears what
//! is known of the servers, and says that it serves, or why it cannot. Until then both have the sockets and only we accept; it
//! accepts before it says so, and only then do we stop. A successor that is not ready in time is killed. When we let go of the
//! line, it is the main process.

mod legacy;

use std::ffi::OsString;
use std::fmt;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream as Line;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use command_fds::{CommandFdExt as _, FdMapping};
use parking_lot::Mutex;
use rustix::process::{Pid, Signal, getppid, kill_process};
use serde::{Deserialize, Serialize};
use socket2::Socket;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::watch;

use super::listen::Bound;
use super::notify::Supervisor;
use super::reload::Reloader;
use crate::live::{Current, Stage};
use legacy::Legacy;

/// Its being there says that standard input is a line to a predecessor.
const SUCCESSOR: &str = "FOREBAY_SUCCESSOR";
/// The first descriptor that is passed on, by the protocol of systemd's socket activation.
const FIRST: i32 = 3;
/// How long a successor may take until it serves.
const LONGEST: Duration = Duration::from_secs(30);
/// How long a successor waits for its servers to be probed that its predecessor knew nothing of.
pub(super) const UNKNOWN: Duration = Duration::from_secs(10);
/// How long either side may take to say what it is to say once it is connected.
const SAYING: Duration = Duration::from_secs(10);

/// Starts a successor, once, for a daemon that serves.
pub struct Upgrader {
    current: Arc<Current>,
    reloader: Arc<Reloader>,
    supervisor: Arc<Supervisor>,
    /// What to run, and with what; none: this process has no command line that would do.
    command: Option<Vec<OsString>>,
    /// The process that this one took over from.
    former: Option<Pid>,
    /// The listening sockets and the files that are ours to remove. None once they are given up.
    sockets: Mutex<Option<(Vec<Socket>, Vec<PathBuf>)>>,
    /// Held by the one upgrade that is under way.
    turn: tokio::sync::Mutex<()>,
    successor: watch::Sender<Option<Successor>>,
}

/// The process that serves now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Successor {
    /// Its process id.
    pub pid: u32,
    /// Its version.
    pub version: String,
}

/// Why there is no successor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotUpgraded {
    /// One is being started already.
    UnderWay,
    /// The daemon stops, or another process serves.
    Stopping,
    /// Why it failed, or cannot be.
    Failed(String),
}

/// The process that this one takes over from.
pub struct Predecessor {
    line: Line,
    process: Option<Pid>,
}

/// What a successor says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Reply {
    /// It serves.
    Serves {
        /// Its version.
        version: String,
    },
    /// It cannot.
    Failed {
        /// Why.
        why: String,
    },
}

/// A successor that is not ready yet. Dropped, it is killed.
struct Unready(Option<Child>);

// === impl Upgrader ===

impl Upgrader {
    /// For a daemon with these sockets, which `command` started, and which has to remove these files and those of the sockets.
    ///
    /// # Errors
    /// When the system has no descriptor left.
    pub fn new(
        (current, reloader, supervisor): (Arc<Current>, Arc<Reloader>, Arc<Supervisor>),
        command: Option<Vec<OsString>>,
        predecessor: Option<&Predecessor>,
        all: &[Bound],
        files: &[PathBuf],
    ) -> io::Result<Self> {
        let sockets = all.iter().map(|bound| bound.socket.try_clone()).collect::<io::Result<_>>()?;
        let made = all.iter().filter_map(|bound| bound.file.as_ref()).map(|file| file.path().to_owned());
        let (sockets, turn) =
            (Mutex::new(Some((sockets, made.chain(files.iter().cloned()).collect()))), Default::default());
        let former = predecessor.and_then(|predecessor| predecessor.process);
        Ok(Self { current, reloader, supervisor, command, former, sockets, turn, successor: watch::channel(None).0 })
    }

    /// Starts a successor, and returns once it serves: then this process must not accept any more.
    ///
    /// # Errors
    /// Why there is none. Then all is as it was, and nothing is left of it.
    pub async fn upgrade(&self) -> Result<Successor, NotUpgraded> {
        let Ok(_turn) = self.turn.try_lock() else {
            log::warn!("not upgraded: {}", NotUpgraded::UnderWay);
            return Err(NotUpgraded::UnderWay);
        };
        log::info!("upgrading: a successor is started");
        let started = tokio::select! {
            started = self.start() => started,
            () = self.given_up() => Err(NotUpgraded::Stopping),
        };
        match &started {
            Ok(Successor { pid, version }) => log::info!("upgraded: process {pid} serves, version {version}"),
            Err(why) => log::error!("not upgraded, and this process serves on: {why}"),
        }
        started
    }

    /// Whether a successor is being started: it will not know what this process hears from now on.
    #[must_use]
    pub fn is_under_way(&self) -> bool {
        self.turn.try_lock().is_err()
    }

    /// The process that serves now, if it is another one.
    #[must_use]
    pub fn successor(&self) -> Option<Successor> {
        self.successor.borrow().clone()
    }

    /// Waits until another process serves.
    pub async fn upgraded(&self) -> Successor {
        let mut successor = self.successor.subscribe();
        match successor.wait_for(Option::is_some).await.ok().and_then(|successor| successor.clone()) {
            Some(successor) => successor,
            None => std::future::pending().await, // its sender is ours
        }
    }

    /// The process that this one took over from, while it finishes its requests.
    #[must_use]
    pub fn former(&self) -> Option<u32> {
        let former = self.former.filter(|former| getppid() == Some(*former))?; // who loses his parent gets another one
        Some(former.as_raw_nonzero().get().unsigned_abs())
    }

    /// Closes the sockets that were kept for a successor. One that is being started is killed, unless it serves by now.
    pub fn give_up(&self) {
        *self.sockets.lock() = None;
        self.successor.send_modify(|_| {});
    }

    async fn given_up(&self) {
        let mut told = self.successor.subscribe();
        while self.sockets.lock().is_some() {
            let _ = told.changed().await; // its sender is ours
        }
    }

    async fn start(&self) -> Result<Successor, NotUpgraded> {
        let failed = |why: String| NotUpgraded::Failed(why);
        let _unchanged = self.reloader.turn().await; // what is in the files is what it gets
        let (ours, theirs) = Line::pair().map_err(|e| failed(format!("no socket for it: {e}")))?;
        let (mut command, legacy) = self.command(theirs)?;
        let program = command.get_program().display().to_string();
        // A process with much memory takes its time to fork.
        let spawned = tokio::task::spawn_blocking(move || command.spawn().map(|child| Unready(Some(child)))).await;
        let spawned = spawned.map_err(|e| failed(e.to_string()))?;
        let child = spawned.map_err(|e| failed(format!("cannot run {program}: {e}")))?;
        let pid = child.pid();
        let line = ours.set_nonblocking(true).and_then(|()| UnixStream::from_std(ours));
        let mut line = line.map_err(|e| failed(e.to_string()))?;
        let reply = tokio::time::timeout(LONGEST, converse(&mut line, &legacy)).await;
        Err(failed(match reply {
            Ok(Ok(Some(Reply::Serves { version }))) => return self.hand_over(child, Successor { pid, version }),
            Ok(Ok(Some(Reply::Failed { why }))) => why,
            Ok(Ok(None)) => format!("process {pid} ended before it was ready: {}", child.end()),
            Ok(Err(e)) => format!("process {pid} was lost: {e}"),
            Err(_) => format!("process {pid} was not ready after {} s, and is killed", LONGEST.as_secs()),
        }))
    }

    /// From here on the successor serves, and nothing takes that back.
    fn hand_over(&self, child: Unready, successor: Successor) -> Result<Successor, NotUpgraded> {
        let sockets = self.sockets.lock();
        if sockets.is_none() {
            return Err(NotUpgraded::Stopping); // which kills it
        }
        self.current.enter(Stage::HandedOver); // before the accept loops hear of it: who waits is the successor's
        self.supervisor.hand_over(successor.pid);
        child.release();
        self.successor.send_replace(Some(successor.clone()));
        drop(sockets);
        Ok(successor)
    }

    /// What starts a successor that has `line` as its standard input, and what it is to be told.
    fn command(&self, line: Line) -> Result<(Command, Legacy), NotUpgraded> {
        let failed = |why: String| NotUpgraded::Failed(why);
        let words = self.command.as_deref().unwrap_or_default();
        let Some((program, arguments)) = words.split_first() else {
            return Err(failed("this process was not started by `forebay run`".to_owned()));
        };
        if let Some(why) = irreplaceable() {
            return Err(failed(why.to_owned()));
        }
        let (sockets, files) = {
            let sockets = self.sockets.lock();
            let Some((sockets, files)) = &*sockets else { return Err(NotUpgraded::Stopping) };
            let sockets = sockets.iter().map(Socket::try_clone).collect::<io::Result<Vec<Socket>>>();
            (sockets.map_err(|e| failed(format!("no descriptor is left for it: {e}")))?, files.clone())
        };
        let passed = sockets.into_iter().zip(FIRST..);
        let mappings = passed.map(|(socket, child_fd)| FdMapping { parent_fd: OwnedFd::from(socket), child_fd });
        let mappings: Vec<FdMapping> = mappings.collect();
        let mut command = Command::new(program);
        command.args(arguments).stdin(OwnedFd::from(line)).env(SUCCESSOR, "1");
        command.env("LISTEN_FDS", mappings.len().to_string());
        // These name this process.
        for name in ["LISTEN_PID", "LISTEN_FDNAMES", "LISTEN_FDS_FIRST_FD", "WATCHDOG_PID"] {
            command.env_remove(name);
        }
        command.fd_mappings(mappings).map_err(|e| failed(e.to_string()))?;
        Ok((command, Legacy::of(&self.current.live(), files)))
    }
}

/// Why the end of this process would be the end of its successor, if it would.
fn irreplaceable() -> Option<&'static str> {
    let is_set = |name| std::env::var_os(name).is_some();
    if std::process::id() == 1 {
        return Some(
            "with this process, the first one of its container, all others end: replace the container instead",
        );
    }
    // systemd takes the end of the main process for that of the service, unless it is told of another one.
    let unheard = is_set("INVOCATION_ID") && !is_set("NOTIFY_SOCKET");
    unheard.then_some("systemd would not learn of the new process: the unit needs Type=notify, or else restart it")
}

/// Tells a successor what it is to know, and hears what it says, if it says anything before its end.
async fn converse(line: &mut UnixStream, legacy: &Legacy) -> io::Result<Option<Reply>> {
    let told = [serde_json::to_vec(legacy)?, b"\n".to_vec()].concat();
    let told = line.write_all(&told).await;
    let mut said = Vec::new();
    let heard = line.read_to_end(&mut said).await;
    // One that has not listened before its end breaks the line, whatever it said.
    match serde_json::from_slice(&said) {
        Ok(reply) => Ok(Some(reply)),
        Err(_) if said.is_empty() => Ok(None), // its end is the news
        Err(e) => told.and(heard).and(Err(e.into())),
    }
}

// === impl NotUpgraded ===

impl fmt::Display for NotUpgraded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UnderWay => "an upgrade is under way already",
            Self::Stopping => "the daemon stops",
            Self::Failed(why) => why,
        })
    }
}

// === impl Successor ===

impl Successor {
    /// Has it read the configuration again.
    pub fn hang_up(&self) {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        if let Some(Err(e)) = pid.map(|pid| kill_process(pid, Signal::Hup)) {
            log::error!("process {} is not told to reload: {e}", self.pid);
        }
    }
}

// === impl Unready ===

impl Unready {
    fn pid(&self) -> u32 {
        self.0.as_ref().map_or(0, Child::id)
    }

    /// How it ended, if it has; it is killed if it has not.
    fn end(mut self) -> String {
        self.kill()
    }

    fn kill(&mut self) -> String {
        let Some(mut child) = self.0.take() else { return String::new() };
        // It closed the line, so its end is near or here.
        let killed = child.kill().and_then(|()| child.wait());
        killed.map_or_else(|e| e.to_string(), |status| status.to_string())
    }

    /// It is ready, and lives on. As long as this process does, somebody has to say so when it crashes.
    fn release(mut self) {
        let Some(mut child) = self.0.take() else { return };
        let waits = thread::Builder::new().name("successor".to_owned()).spawn(move || {
            let pid = child.id();
            match child.wait() {
                Ok(status) if status.success() => {} // it was told to, or another one took over from it
                Ok(status) => log::error!("process {pid}, which took over from this one, has ended: {status}"),
                Err(e) => log::error!("process {pid}, which took over from this one, was lost: {e}"),
            }
        });
        drop(waits); // without it, it is merely not said
    }
}

impl Drop for Unready {
    fn drop(&mut self) {
        self.kill();
    }
}

// === impl Predecessor ===

impl Predecessor {
    /// The process that this one was started by to take over, if it was.
    #[must_use]
    pub fn find() -> Option<Self> {
        std::env::var_os(SUCCESSOR)?;
        let line = Line::from(io::stdin().as_fd().try_clone_to_owned().ok()?);
        line.set_read_timeout(Some(SAYING)).and_then(|()| line.set_write_timeout(Some(SAYING))).ok()?;
        Some(Self { line, process: getppid() })
    }

    /// Another end of the same line.
    #[must_use]
    pub fn again(&self) -> Option<Self> {
        Some(Self { line: self.line.try_clone().ok()?, process: self.process })
    }

    /// What it leaves us. Nothing, if it says what this version does not understand: servers are then tried afresh.
    #[must_use]
    pub fn legacy(&self) -> Legacy {
        let mut text = Vec::new();
        let read = BufReader::new(&self.line).read_until(b'\n', &mut text).map_err(|e| e.to_string()); // no more is said
        let legacy = read.and_then(|_| serde_json::from_slice(&text).map_err(|e| e.to_string()));
        legacy.unwrap_or_else(|e| {
            log::warn!("what the former process says is not understood, and all servers are tried afresh: {e}");
            Legacy::default()
        })
    }

    /// Whether it still waits for us. It says nothing more, so the line is silent or at its end.
    #[must_use]
    pub fn waits(&self) -> bool {
        let silent = || {
            self.line.set_nonblocking(true)?;
            let read = (&self.line).read(&mut [0]);
            self.line.set_nonblocking(false)?;
            read
        };
        silent().is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock)
    }

    /// This process accepts: it may stop. When this returns, this process is the main one for whoever supervises it.
    ///
    /// # Errors
    /// When it does not wait for this any more. Then it serves on, and this process must end.
    pub fn serves(self) -> io::Result<()> {
        self.say(&Reply::Serves { version: crate::VERSION.to_owned() })?;
        let _ = (&self.line).read(&mut [0]); // its end, or it takes its time
        Ok(())
    }

    /// This process cannot take over.
    ///
    /// # Errors
    /// When it has ended.
    pub fn failed(&self, why: &str) -> io::Result<()> {
        self.say(&Reply::Failed { why: why.to_owned() })
    }

    fn say(&self, reply: &Reply) -> io::Result<()> {
        (&self.line).write_all(&serde_json::to_vec(reply)?)?;
        self.line.shutdown(Shutdown::Write) // standard input is another end of it
    }
}
