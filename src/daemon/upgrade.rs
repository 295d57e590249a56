//! Handing over to a new process, the same command line with whatever binary stands at its place by now.
//!
//! The successor is started with the listening sockets, and with a line to us as its standard input. Over that line it hears what
//! is known of the servers, and says that it serves, or why it cannot. Until then both have the sockets and only we accept; it
//! accepts before it says so, and only then do we stop. A successor that is not ready in time is killed. When we let go of the
//! line, it is the main process.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream as Line;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt as _, FdMapping};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use socket2::Socket;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::watch;

use super::listen::Bound;
use super::notify::Supervisor;
use crate::live::{Current, Live};
use crate::pool::server::Memory;

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
    supervisor: Arc<Supervisor>,
    /// What to run, and with what; none: this process has no command line that would do.
    command: Option<Vec<OsString>>,
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

/// The process that this one takes over from.
pub struct Predecessor {
    line: Line,
}

/// What a process leaves to its successor.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Legacy {
    /// The files of unix sockets that are to be removed at the end.
    pub files: Vec<PathBuf>,
    /// What is known of the servers, by pool and address.
    pools: BTreeMap<String, BTreeMap<String, Memory>>,
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
    /// For a daemon with these sockets, which `command` started.
    ///
    /// # Errors
    /// When the system has no descriptor left.
    pub fn new(
        current: Arc<Current>,
        supervisor: Arc<Supervisor>,
        command: Option<Vec<OsString>>,
        all: &[Bound],
    ) -> io::Result<Self> {
        let sockets = all.iter().map(|bound| bound.socket.try_clone()).collect::<io::Result<_>>()?;
        let files = all.iter().filter_map(|bound| bound.file.as_ref()).map(|file| file.path().to_owned()).collect();
        let (sockets, turn) = (Mutex::new(Some((sockets, files))), tokio::sync::Mutex::default());
        Ok(Self { current, supervisor, command, sockets, turn, successor: watch::channel(None).0 })
    }

    /// Starts a successor, and returns once it serves: then this process must not accept any more.
    ///
    /// # Errors
    /// Why there is none. Then all is as it was, and nothing is left of it.
    pub async fn upgrade(&self) -> Result<Successor, String> {
        let Ok(_turn) = self.turn.try_lock() else {
            log::warn!("not upgraded: an upgrade is under way already");
            return Err("an upgrade is under way already".to_owned());
        };
        log::info!("upgrading: a successor is started");
        let started = tokio::select! {
            started = self.start() => started,
            () = self.given_up() => Err("the daemon stops".to_owned()),
        };
        match &started {
            Ok(successor) => {
                log::info!("upgraded: process {} serves, version {}", successor.pid, successor.version);
                self.successor.send_replace(Some(successor.clone()));
            }
            Err(why) => log::error!("not upgraded, and this process serves on: {why}"),
        }
        started
    }

    /// Waits until another process serves.
    pub async fn upgraded(&self) -> Successor {
        let mut successor = self.successor.subscribe();
        match successor.wait_for(Option::is_some).await.ok().and_then(|successor| successor.clone()) {
            Some(successor) => successor,
            None => std::future::pending().await, // its sender is ours
        }
    }

    /// Closes the sockets that were kept for a successor. One that is being started is killed.
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

    async fn start(&self) -> Result<Successor, String> {
        let (ours, theirs) = Line::pair().map_err(|e| format!("no socket for it: {e}"))?;
        let (mut command, legacy) = self.command(theirs)?;
        let program = command.get_program().display().to_string();
        // A process with much memory takes its time to fork.
        let spawned = tokio::task::spawn_blocking(move || command.spawn()).await;
        let child = spawned.map_err(|e| e.to_string())?.map_err(|e| format!("cannot run {program}: {e}"))?;
        let pid = child.id();
        let mut child = Unready(Some(child));
        let mut line =
            ours.set_nonblocking(true).and_then(|()| UnixStream::from_std(ours)).map_err(|e| e.to_string())?;
        let reply = tokio::time::timeout(LONGEST, converse(&mut line, &legacy)).await;
        match reply {
            Ok(Ok(Some(Reply::Serves { version }))) => {
                child.0 = None; // it lives on; this process ends before it, so nobody has to reap it
                self.supervisor.hand_over(pid);
                Ok(Successor { pid, version })
            }
            Ok(Ok(Some(Reply::Failed { why }))) => Err(why),
            Ok(Ok(None)) => Err(format!("process {pid} ended before it was ready: {}", child.ended())),
            Ok(Err(e)) => Err(format!("process {pid} was lost: {e}")),
            Err(_) => Err(format!("process {pid} was not ready after {} s, and is killed", LONGEST.as_secs())),
        }
    }

    /// What starts a successor that has `line` as its standard input, and what it is to be told.
    fn command(&self, line: Line) -> Result<(Command, Legacy), String> {
        let words = self.command.as_deref().unwrap_or_default();
        let Some((program, arguments)) = words.split_first() else {
            return Err("this process was not started by `forebay run`".to_owned());
        };
        let (sockets, files) = {
            let sockets = self.sockets.lock();
            let Some((sockets, files)) = &*sockets else { return Err("the daemon stops".to_owned()) };
            let sockets = sockets.iter().map(Socket::try_clone).collect::<io::Result<Vec<Socket>>>();
            (sockets.map_err(|e| format!("no descriptor is left for it: {e}"))?, files.clone())
        };
        let passed = sockets.into_iter().zip(FIRST..);
        let mappings = passed.map(|(socket, child_fd)| FdMapping { parent_fd: OwnedFd::from(socket), child_fd });
        let mappings: Vec<FdMapping> = mappings.collect();
        let mut command = Command::new(program);
        command.args(arguments).stdin(OwnedFd::from(line)).env(SUCCESSOR, "1");
        command.env("LISTEN_FDS", mappings.len().to_string());
        // These name this process.
        command.env_remove("LISTEN_PID").env_remove("LISTEN_FDNAMES").env_remove("WATCHDOG_PID");
        command.fd_mappings(mappings).map_err(|e| e.to_string())?;
        Ok((command, Legacy { files, pools: known(&self.current.live()) }))
    }
}

/// Tells a successor what it is to know, and hears what it says, if it says anything before its end.
async fn converse(line: &mut UnixStream, legacy: &Legacy) -> io::Result<Option<Reply>> {
    let told = [serde_json::to_vec(legacy)?, b"\n".to_vec()].concat();
    let told = line.write_all(&told).await;
    let mut said = Vec::new();
    let heard = line.read_to_end(&mut said).await;
    if said.is_empty() {
        // One that ends before it has listened may have said nothing: its end is the news.
        return Ok(None);
    }
    told.and(heard)?;
    Ok(Some(serde_json::from_slice(&said)?))
}

// === impl Unready ===

impl Unready {
    /// How it ended, if it has; it is killed if it has not.
    fn ended(&mut self) -> String {
        let Some(mut child) = self.0.take() else { return String::new() };
        // It closed the line, so its end is near or here.
        let killed = child.kill().and_then(|()| child.wait());
        killed.map_or_else(|e| e.to_string(), |status| status.to_string())
    }
}

impl Drop for Unready {
    fn drop(&mut self) {
        self.ended();
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
        Some(Self { line })
    }

    /// Another end of the same line.
    #[must_use]
    pub fn again(&self) -> Option<Self> {
        Some(Self { line: self.line.try_clone().ok()? })
    }

    /// What it leaves us. Nothing, if it says what this version does not understand: servers are then tried afresh.
    #[must_use]
    pub fn legacy(&self) -> Legacy {
        let mut text = Vec::new();
        let read = BufReader::new(&self.line).read_until(b'\n', &mut text).map_err(|e| e.to_string()); // no more is said
        let legacy = read.and_then(|_| serde_json::from_slice(&text).map_err(|e| e.to_string()));
        legacy.unwrap_or_else(|e| {
            log::warn!("what the former process knows of its servers is not understood, they are tried afresh: {e}");
            Legacy::default()
        })
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

// === impl Legacy ===

impl Legacy {
    /// Has the servers of `live` go on with what is known of them.
    pub fn pass_on(mut self, live: &Live) {
        let now = Instant::now();
        for pool in live.pools() {
            let Some(mut known) = self.pools.remove(&*pool.settings.name) else { continue };
            for server in &pool.servers {
                if let Some(memory) = known.remove(&server.address.to_string()) {
                    server.recall(memory, now);
                }
            }
        }
    }
}

/// What is known of the servers, by pool and address.
fn known(live: &Live) -> BTreeMap<String, BTreeMap<String, Memory>> {
    let now = Instant::now();
    let servers = |pool: &Arc<crate::pool::Pool>| {
        pool.servers.iter().map(|server| (server.address.to_string(), server.memory(now))).collect()
    };
    live.pools().map(|pool| (pool.settings.name.to_string(), servers(pool))).collect()
}
