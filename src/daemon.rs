//! The running process, without `pingora::Server`, whose stop takes minutes and whose upgrade loses connections.
//!
//! The order of things: what was passed to us (before any thread) → plan → sockets → runtime → signals → probes and accept loops → ready → control
//! loop → stop accepting → drain → exit. A process that takes over from another one accepts once its servers are known.

pub mod connection;
mod descriptors;
pub mod door;
pub mod listen;
pub mod notify;
pub mod probe;
mod refusal;
pub mod reload;
pub mod resolve;
pub mod upgrade;
pub mod wire;

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pingora::apps::HttpServerApp;
use pingora::protocols::http::v2::server::default_h2_options;
use pingora::proxy::{HttpProxy, Subrequest, http_proxy};
use pingora::server::configuration::ServerConf;
use socket2::Socket;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::admin::Admin;
use crate::config::Listen;
use crate::config::plan::Plan;
use crate::live::clients::Clients;
use crate::live::{Current, Live, Stage};
use crate::observe::Observer;
use crate::proxy::Proxy;
use door::Door;
use listen::{Bound, SocketFile};
use notify::Supervisor;
use reload::Reloader;
use upgrade::{Predecessor, Successor, UNKNOWN, Upgrader};

/// How long requests that are cut off have to say so to their clients.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How long tasks that are left at the end have to notice.
const CUT: Duration = Duration::from_millis(100);
/// Streams that one HTTP/2 client connection may have open at once.
const STREAMS: u32 = 256;

/// A daemon whose sockets are bound, and that does not serve yet.
pub struct Daemon {
    current: Arc<Current>,
    observer: Arc<Observer>,
    reloader: Arc<Reloader>,
    upgrader: Arc<Upgrader>,
    predecessor: Option<Predecessor>,
    supervisor: Arc<Supervisor>,
    traffic: Vec<Bound>,
    admin: Vec<Bound>,
    /// The files that it has made, and those that it takes over.
    files: Vec<SocketFile>,
    inherited: Vec<PathBuf>,
    threads: usize,
    upstream_idle: usize,
}

/// What a process was started with.
#[derive(Default)]
pub struct Origin {
    /// The listening sockets that were passed to it.
    pub sockets: Vec<Socket>,
    /// The process that it takes over from.
    pub predecessor: Option<Predecessor>,
    /// The command line that starts a successor.
    pub command: Option<Vec<OsString>>,
}

/// The signals that the daemon acts on, once they are installed.
pub struct Signals {
    term: Signal,
    int: Signal,
    hup: Signal,
    usr2: Signal,
}

/// What a signal means.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    /// Finish and end.
    Stop,
    /// Read the configuration again.
    Reload,
    /// Hand over to a new process.
    Upgrade,
}

/// The accept loops of one application, and how to tell every connection to end.
struct Doors {
    stop: watch::Sender<bool>,
    cut: watch::Sender<bool>,
    open: mpsc::Receiver<()>,
    loops: JoinSet<io::Result<()>>,
}

// === impl Origin ===

impl Origin {
    /// Of this process. To be called once, before there is a thread.
    #[must_use]
    pub fn of_this_process() -> Self {
        let command = Some(std::env::args_os().collect());
        Self { sockets: listen::inherited(), predecessor: Predecessor::find(), command }
    }
}

// === impl Daemon ===

impl Daemon {
    /// Opens the log of a plan and binds its sockets.
    ///
    /// # Errors
    /// A line that says which file or socket cannot be had, and why.
    pub fn bind(
        path: PathBuf,
        environment: reload::Environment,
        plan: Plan,
        observer: Arc<Observer>,
        origin: Origin,
    ) -> Result<Self, String> {
        let Origin { sockets, predecessor, command } = origin;
        reload::set_logs(&observer, &plan.log)?;
        let mut legacy = predecessor.as_ref().map(Predecessor::legacy).unwrap_or_default();
        let listens: Vec<Listen> = plan.server.listen.iter().chain(&plan.admin.listen).cloned().collect();
        let mut bound = listen::bind(&listens, sockets)?;
        let files = bound.iter().filter_map(|bound| bound.file.clone()).collect();
        descriptors::raise_limit(); // after that, so that a start that fails says nothing else
        let (threads, upstream_idle) = (plan.server.threads, plan.server.upstream_idle);
        let traffic_listens = plan.server.listen.len();
        let live = Live::new(plan, None);
        legacy.pass_on(&live);
        let current = Arc::new(Current::new(live));
        let supervisor = Arc::new(Supervisor::new(&*environment, current.clone()));
        let reloader =
            Arc::new(Reloader::new(path, environment, current.clone(), observer.clone(), supervisor.clone()));
        let parts = (current.clone(), reloader.clone(), supervisor.clone());
        let upgrader = Upgrader::new(parts, command, predecessor.as_ref(), &bound, &legacy.files);
        let upgrader = Arc::new(upgrader.map_err(|e| format!("no descriptor is left: {e}"))?);
        let (admin, traffic, inherited) = (bound.split_off(traffic_listens), bound, legacy.files);
        Ok(Self {
            current,
            observer,
            reloader,
            upgrader,
            predecessor,
            supervisor,
            traffic,
            admin,
            files,
            inherited,
            threads,
            upstream_idle,
        })
    }

    /// What is in force.
    #[must_use]
    pub fn current(&self) -> Arc<Current> {
        self.current.clone()
    }

    /// Where it listens, for traffic and for the admin; with port 0, as the system chose.
    #[must_use]
    pub fn addresses(&self) -> (Vec<String>, Vec<String>) {
        let addresses = |all: &[Bound]| all.iter().map(listen::address).collect();
        (addresses(&self.traffic), addresses(&self.admin))
    }

    /// Serves until it is told to stop and every request is finished or its time is over. Told by `early`, if there is something
    /// to clean up should a signal come before it listens to them itself.
    ///
    /// # Errors
    /// A line that says why it could not start.
    pub fn run(self, early: Option<Signals>) -> Result<(), String> {
        let runtime = runtime(self.threads).map_err(|e| format!("cannot start: {e}"))?;
        let made = self.files.clone();
        let supervisor = self.supervisor.clone();
        let served = runtime.block_on(supervisor.attend(self.serve(early)));
        runtime.shutdown_timeout(CUT);
        let left = served.as_ref().unwrap_or(&made);
        left.iter().for_each(SocketFile::remove);
        served.map(drop).map_err(|e| format!("cannot start: {e}"))
    }

    /// The files that are to be removed: none, if another process serves.
    async fn serve(mut self, early: Option<Signals>) -> io::Result<Vec<SocketFile>> {
        let mut signals = early.map_or_else(Signals::install, Ok)?;
        let (current, reloader, upgrader) = (self.current.clone(), self.reloader.clone(), self.upgrader.clone());
        let (supervisor, predecessor) = (self.supervisor.clone(), self.predecessor.take());
        tokio::select! {
            biased; // it is over at once where nobody waits for this process
            () = reloader.start(predecessor.as_ref().map(|_| UNKNOWN)) => {}
            () = signals.stopped() => return Err(io::Error::other("it was told to stop before it served")),
        }
        let listens: Vec<PathBuf> = self.traffic.iter().chain(&self.admin).filter_map(|bound| bound.path()).collect();
        let (mut files, inherited) = (std::mem::take(&mut self.files), std::mem::take(&mut self.inherited));
        let alone = || io::Error::other("the process that this one takes over from does not wait for it");
        if predecessor.as_ref().is_some_and(|predecessor| !predecessor.waits()) {
            return Err(alone());
        }
        let (mut doors, mut admin) = self.open();
        predecessor.map_or(Ok(()), Predecessor::serves).map_err(|_| alone())?;
        // Until then they were the other's.
        let (used, left): (Vec<_>, Vec<_>) = inherited.into_iter().partition(|path| listens.contains(path));
        files.extend(used.iter().filter_map(|path| SocketFile::at(path)));
        left.iter().filter_map(|path| SocketFile::at(path)).for_each(|file| file.remove());
        log::info!("forebay {} serves", crate::VERSION);
        supervisor.ready();
        signals.obey(&reloader, &upgrader).await;
        upgrader.give_up();
        let handed_over = upgrader.successor().is_some();
        if handed_over {
            admin.stop.send_replace(true); // else they stay open to the end
        } else {
            let server = &current.live().plan.server;
            supervisor.stopping(server.min_drain.saturating_add(server.drain));
        }
        end(&current, &mut doors, &mut signals, handed_over).await;
        if handed_over {
            let _ = tokio::time::timeout(LAST_WORDS, admin.close()).await; // one of them may wait for the news
            files.clear();
        }
        Ok(files)
    }

    /// Starts the accept loops: for traffic, and for the admin.
    fn open(self) -> (Doors, Doors) {
        let Self { current, observer, reloader, upgrader, traffic, admin, threads, upstream_idle, .. } = self;
        for (what, all) in [("listening on", &traffic), ("admin listening on", &admin)] {
            all.iter().for_each(|bound| log::info!("{what} {}", listen::address(bound)));
        }
        // Pingora multiplies it by the threads.
        let upstream_keepalive_pool_size = upstream_idle.div_ceil(threads);
        let max_retries = usize::MAX; // `pool::retry` bounds them
        let conf = ServerConf { threads, upstream_keepalive_pool_size, max_retries, ..ServerConf::default() };
        let proxy = Proxy::new(current.clone(), observer.clone(), connection::OF_A_REQUEST);
        let proxy = pingora(proxy, conf);
        let answers = |bound: &Bound| {
            let unix = matches!(bound.listen, Listen::Unix(_));
            Arc::new(Admin::new(current.clone(), observer.clone(), reloader.clone(), upgrader.clone(), unix))
        };
        let (clients, tools) = (current.clients.clone(), Clients::default());
        let traffic = Doors::open(traffic, &current, clients, true, |_| proxy.clone());
        (traffic, Doors::open(admin, &current, tools, false, answers))
    }
}

/// Lets what is in flight end, as much of it as there is time for; the rest is cut off.
async fn end(current: &Current, doors: &mut Doors, signals: &mut Signals, handed_over: bool) {
    let server = &current.live().plan.server;
    let limit = if handed_over { server.drain_upgrade } else { server.drain };
    let finish = async {
        if !handed_over {
            current.enter(Stage::Leaving);
            if !server.min_drain.is_zero() {
                log::info!("stopping: clients are accepted for another {} s", server.min_drain.as_secs_f32());
                tokio::time::sleep(server.min_drain).await;
            }
            current.enter(Stage::Closing);
        }
        log::info!("stopping: requests in flight have {} s", limit.as_secs_f32());
        doors.stop.send_replace(true);
        tokio::time::timeout(limit, doors.close()).await
    };
    let over = |time: Duration| format!("requests were cut off after {} s", time.as_secs_f32());
    let why = tokio::select! {
        biased;
        why = signals.stopped_again(handed_over.then_some(server.drain)) => why.map_or_else(over, str::to_owned),
        finished = finish => match finished {
            Ok(()) => return log::info!("stopped: every request was finished"),
            Err(_) => over(limit),
        },
    };
    log::warn!("stopped: {why}");
    current.enter(Stage::Cut);
    doors.stop.send_replace(true);
    doors.cut.send_replace(true);
    let _ = tokio::time::timeout(LAST_WORDS, doors.close()).await;
}

// === impl Doors ===

impl Doors {
    fn open<A>(
        all: Vec<Bound>,
        current: &Arc<Current>,
        clients: Clients,
        limited: bool,
        app: impl Fn(&Bound) -> Arc<A>,
    ) -> Self
    where
        A: HttpServerApp + Send + Sync + 'static,
    {
        let ((stop, stopped), (cut, cut_off)) = (watch::channel(false), watch::channel(false));
        let (held, open) = mpsc::channel(1);
        let mut loops = JoinSet::new();
        for bound in all {
            let (current, open, clients) = (current.clone(), held.clone(), clients.clone());
            let (stop, cut) = (stopped.clone(), cut_off.clone());
            loops.spawn(Door { app: app(&bound), current, stop, cut, open, clients, limited }.run(bound));
        }
        Self { stop, cut, open, loops }
    }

    /// Returns when no connection is left. First the accept loops end: one may hold a connection that nobody serves yet.
    async fn close(&mut self) {
        while let Some(ended) = self.loops.join_next().await {
            if let Ok(Err(e)) = ended {
                log::error!("an accept loop failed: {e}");
            }
        }
        while self.open.recv().await.is_some() {}
    }
}

// === impl Signals ===

impl Signals {
    /// Listens to them from now on. To be called inside a runtime, which has to live on.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn install() -> io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            hup: signal(SignalKind::hangup())?,
            usr2: signal(SignalKind::user_defined2())?,
        })
    }

    async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.term.recv() => Told::Stop,
            _ = self.int.recv() => Told::Stop,
            _ = self.hup.recv() => Told::Reload,
            _ = self.usr2.recv() => Told::Upgrade,
        }
    }

    /// Does as they say, until the daemon is to stop, or another process serves.
    async fn obey(&mut self, reloader: &Arc<Reloader>, upgrader: &Arc<Upgrader>) {
        loop {
            let told = tokio::select! {
                _ = upgrader.upgraded() => return,
                told = self.next() => told,
            };
            let (reloader, upgrader) = (reloader.clone(), upgrader.clone());
            match told {
                Told::Stop => return,
                // What goes wrong is logged there. Who serves after an upgrade that was under way has read the files before this.
                Told::Reload => drop(tokio::spawn(async move {
                    let _ = reloader.reload().await;
                    upgrader.successor().iter().for_each(Successor::hang_up);
                })),
                Told::Upgrade => drop(tokio::spawn(async move { upgrader.upgrade().await })),
            }
        }
    }

    /// Returns when the daemon is told a second time to stop, and why what is in flight is to end then. If it stops because another
    /// process serves, this is the first time: then there is so much time left.
    async fn stopped_again(&mut self, left: Option<Duration>) -> Result<&'static str, Duration> {
        self.stopped().await;
        if let Some(left) = left {
            log::info!("stopping: requests in flight have {} s", left.as_secs_f32());
            tokio::time::timeout(left, self.stopped()).await.map_err(|_| left)?;
        }
        Ok("told a second time, requests were cut off")
    }

    async fn stopped(&mut self) {
        while self.next().await != Told::Stop {}
    }
}

fn runtime(threads: usize) -> io::Result<Runtime> {
    Builder::new_multi_thread().worker_threads(threads).thread_name("worker").enable_all().build()
}

/// Pingora's proxy around ours.
#[must_use]
pub fn pingora(proxy: Proxy, conf: ServerConf) -> Arc<HttpProxy<Proxy>> {
    let itself = proxy.itself();
    let mut proxy = http_proxy(&Arc::new(conf), proxy);
    let mut h2 = default_h2_options();
    h2.max_concurrent_streams(STREAMS);
    proxy.h2_options = Some(h2);
    let proxy = Arc::new(proxy);
    let around: Arc<dyn Subrequest + Send + Sync> = proxy.clone();
    let _ = itself.set(Arc::downgrade(&around)); // it is set nowhere else
    proxy
}
