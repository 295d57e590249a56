//! The running process, without `pingora::Server`, whose stop takes minutes and whose upgrade loses connections.
//!
//! The order of things: plan → sockets (before any thread) → runtime → signals → accept loops and probes → ready → control
//! loop → stop accepting → drain → exit.

pub mod connection;
pub mod door;
pub mod listen;
pub mod probe;
mod refusal;
pub mod reload;
pub mod resolve;
pub mod wire;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pingora::apps::HttpServerApp;
use pingora::protocols::http::v2::server::default_h2_options;
use pingora::proxy::{HttpProxy, Subrequest, http_proxy};
use pingora::server::configuration::ServerConf;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::admin::Admin;
use crate::config::Listen;
use crate::config::plan::Plan;
use crate::live::clients::Clients;
use crate::live::{Current, Live};
use crate::observe::Observer;
use crate::proxy::Proxy;
use door::Door;
use listen::{Bound, SocketFile};
use reload::Reloader;

/// How long tasks that are cut at the end have to notice.
const CUT: Duration = Duration::from_millis(100);
/// Streams that one HTTP/2 client connection may have open at once.
const STREAMS: u32 = 256;

/// A daemon whose sockets are bound, and that has no thread yet.
pub struct Daemon {
    current: Arc<Current>,
    observer: Arc<Observer>,
    reloader: Arc<Reloader>,
    traffic: Vec<Bound>,
    admin: Vec<Bound>,
    threads: usize,
    upstream_idle: usize,
}

/// The signals that the daemon acts on, once they are installed.
pub struct Signals {
    term: Signal,
    int: Signal,
    hup: Signal,
}

/// What a signal means.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    /// Finish and end.
    Stop,
    /// Read the configuration again.
    Reload,
}

/// The accept loops of one application, and how to tell every connection to end.
struct Doors {
    stop: watch::Sender<bool>,
    open: mpsc::Receiver<()>,
    loops: JoinSet<io::Result<()>>,
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
    ) -> Result<Self, String> {
        reload::set_logs(&observer, &plan.log)?;
        let listens: Vec<Listen> = plan.server.listen.iter().chain(&plan.admin.listen).cloned().collect();
        let mut traffic = listen::bind(&listens)?;
        let admin = traffic.split_off(plan.server.listen.len());
        let (threads, upstream_idle) = (plan.server.threads, plan.server.upstream_idle);
        let current = Arc::new(Current::new(Live::new(plan, None)));
        let reloader = Arc::new(Reloader::new(path, environment, current.clone(), observer.clone()));
        Ok(Self { current, observer, reloader, traffic, admin, threads, upstream_idle })
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
        let files: Vec<_> = self.traffic.iter().chain(&self.admin).filter_map(|bound| bound.file.clone()).collect();
        let served = runtime.block_on(self.serve(early)).map_err(|e| format!("cannot start: {e}"));
        runtime.shutdown_timeout(CUT);
        files.iter().for_each(SocketFile::remove);
        served
    }

    async fn serve(self, early: Option<Signals>) -> io::Result<()> {
        let mut signals = early.map_or_else(Signals::install, Ok)?;
        let current = self.current.clone();
        let reloader = self.reloader.clone();
        let (mut doors, _admin) = self.open(); // the admin's stay open to the end
        reloader.start_probes();
        log::info!("forebay {} serves", crate::VERSION);
        while signals.next().await == Told::Reload {
            let reloader = reloader.clone();
            tokio::spawn(async move { reloader.reload().await }); // its faults are logged there
        }
        current.drain();
        let limit = current.live().plan.server.drain;
        log::info!("stopping: requests in flight have {} s", limit.as_secs_f32());
        doors.stop.send_replace(true);
        tokio::select! {
            () = doors.close() => log::info!("stopped: every request was finished"),
            () = tokio::time::sleep(limit) => log::warn!("stopped: requests were cut off after {} s", limit.as_secs_f32()),
            () = signals.stopped() => log::warn!("stopped: told a second time, requests were cut off"),
        }
        Ok(())
    }

    /// Starts the accept loops: for traffic, and for the admin.
    fn open(self) -> (Doors, Doors) {
        let Self { current, observer, reloader, traffic, admin, threads, upstream_idle } = self;
        for (what, all) in [("listening on", &traffic), ("admin listening on", &admin)] {
            all.iter().for_each(|bound| log::info!("{what} {}", listen::address(bound)));
        }
        // Pingora multiplies it by the threads.
        let upstream_keepalive_pool_size = upstream_idle.div_ceil(threads);
        let max_retries = usize::MAX; // `pool::retry` bounds them
        let conf = ServerConf { threads, upstream_keepalive_pool_size, max_retries, ..ServerConf::default() };
        let proxy = Proxy::new(current.clone(), observer.clone(), connection::header_complete);
        let proxy = pingora(proxy, conf);
        let answers = |bound: &Bound| {
            let unix = matches!(bound.listen, Listen::Unix(_));
            Arc::new(Admin::new(current.clone(), observer.clone(), reloader.clone(), unix))
        };
        let (clients, tools) = (current.clients.clone(), Clients::default());
        let traffic = Doors::open(traffic, &current, clients, true, |_| proxy.clone());
        (traffic, Doors::open(admin, &current, tools, false, answers))
    }
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
        let (stop, stopped) = watch::channel(false);
        let (held, open) = mpsc::channel(1);
        let mut loops = JoinSet::new();
        for bound in all {
            let (current, stop, open) = (current.clone(), stopped.clone(), held.clone());
            loops.spawn(Door { app: app(&bound), current, stop, open, clients: clients.clone(), limited }.run(bound));
        }
        Self { stop, open, loops }
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
        })
    }

    async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.term.recv() => Told::Stop,
            _ = self.int.recv() => Told::Stop,
            _ = self.hup.recv() => Told::Reload,
        }
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
