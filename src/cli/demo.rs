//! `forebay demo`: stand-in engines and a proxy in front of them, in one process.
//!
//! The proxy is what `run` runs, by a real file; the file's folder goes away when the demo ends.

mod welcome;

use std::fs::{self, DirBuilder};
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::time::sleep;
use uuid::Uuid;

use super::key::{hex, secret};
use super::{Failure, run};
use crate::access::key::digest;
use crate::config::Listen;
use crate::daemon::{Daemon, Origin, Signals, listen};
use crate::engine::{self, Options};
use crate::live::Current;
use welcome::Welcome;

/// Where the admin listens if that is free.
const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9180);
/// How often the daemon is asked whether it is ready.
const POLL: Duration = Duration::from_millis(10);

/// Try it: stand-in engines and a proxy in front of them, ready to use
///
/// Prints the base URL, a key, and lines to paste. Everything runs in this one process and ends with it.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  forebay demo --listen 127.0.0.1:8080 --engines 3")]
pub(super) struct Demo {
    /// Where the proxy listens; port 0 lets the system choose
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// How many engines stand behind it
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=16))]
    engines: u8,
}

/// One engine of the demo.
#[derive(Debug, Clone, PartialEq)]
struct Engine {
    name: String,
    /// Its share of the requests.
    weight: u32,
    tokens_per_second: f64,
    first_token: Duration,
    /// Where it listens, on a port that the system picks.
    address: SocketAddr,
}

/// Running engines; they end when this is dropped.
struct Engines {
    all: Vec<Engine>,
    runtime: Runtime,
    _stop: watch::Sender<bool>,
}

/// A folder of our own, which goes away with this value.
struct Folder(PathBuf);

// === impl Demo ===

impl Demo {
    pub(super) fn run(self) -> Result<(), Failure> {
        let failed = |what: &'static str| move |e: io::Error| Failure::Runtime(format!("{what}: {e}"));
        // Let go at once: only whether it can be had is asked, while there is nothing to clean up.
        listen::bind(&[Listen::Tcp(self.listen)], vec![])
            .map_err(|why| Failure::Runtime(format!("{why}; with --listen 127.0.0.1:0 the system picks a port")))?;
        let engines = Engines::start(Engine::all(self.engines)).map_err(failed("cannot start the engines"))?;
        let secret = secret().map_err(|e| Failure::Runtime(format!("no randomness: {e}")))?;
        // Before there is anything to clean up: a signal ends the daemon then, and not the process.
        let signals = engines.runtime.block_on(async { Signals::install() }).map_err(failed("cannot hear signals"))?;
        let folder = Folder::make().map_err(failed("cannot make a folder for the demo's file"))?;
        let file = folder.0.join("forebay.toml");
        let configuration = configuration(self.listen, self.admin(), &engines.all, &secret);
        fs::write(&file, configuration).map_err(failed("cannot write the demo's file"))?;
        let environment = Arc::new(|name: &str| std::env::var(name).ok());
        run::serve(file.clone(), environment, Origin::default(), Some(signals), |daemon| {
            engines.announce(daemon, secret, file)
        })
    }

    /// Where the admin is to listen: the usual port, unless somebody has it.
    fn admin(&self) -> SocketAddr {
        let free = self.listen.port() != ADMIN.port() && std::net::TcpListener::bind(ADMIN).is_ok();
        if free { ADMIN } else { SocketAddr::new(ADMIN.ip(), 0) }
    }
}

/// The file that the demo's daemon runs by.
fn configuration(listen: SocketAddr, admin: SocketAddr, engines: &[Engine], secret: &str) -> String {
    let servers: String = engines.iter().map(Engine::table).collect();
    let digest = hex(&digest(secret.as_bytes()));
    format!(
        r#"# What `forebay demo` runs by. SIGHUP has it read again; it goes away when the demo ends.

[server]
listen = ["{listen}"]
drain  = "2s"   # how long Ctrl-C waits for requests in flight

[admin]
listen = "{admin}"

[log]
level  = "warn"
access = "off"   # "stderr" shows a line for each request

[pool.demo]
servers = [
{servers}]
health = {{ interval = "1s" }}

[model.demo]
pool = "demo"

[model.demo.cache]

[[key]]
name   = "demo"
sha256 = "{digest}"
models = ["*"]
"#
    )
}

// === impl Engine ===

impl Engine {
    /// So many: the first has three times the weight of another, and the last is slow, where there are enough of them.
    fn all(count: u8) -> Vec<Self> {
        let engine = |number: u8| {
            let slow = count >= 3 && number == count;
            Self {
                name: format!("engine-{number}"),
                weight: if count >= 2 && number == 1 { 3 } else { 1 },
                tokens_per_second: if slow { 10.0 } else { 40.0 },
                first_token: Duration::from_millis(if slow { 800 } else { 0 }),
                address: SocketAddr::new(ADMIN.ip(), 0),
            }
        };
        (1..=count).map(engine).collect()
    }

    /// Its line in the pool.
    fn table(&self) -> String {
        let Self { name, weight, address, .. } = self;
        format!("  {{ name = \"{name}\", address = \"{address}\", weight = {weight} }},\n")
    }

    /// What it answers with.
    fn options(&self) -> Options {
        let Self { tokens_per_second, first_token, .. } = *self;
        Options { name: self.name.clone(), tokens_per_second, first_token, ..Options::default() }
    }
}

// === impl Engines ===

impl Engines {
    /// Starts them on a thread of their own, and notes where they listen.
    fn start(mut all: Vec<Engine>) -> io::Result<Self> {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).thread_name("engines").enable_all().build()?;
        let (stop, stopped) = watch::channel(false);
        for engine in &mut all {
            let listener = runtime.block_on(TcpListener::bind(engine.address))?;
            engine.address = listener.local_addr()?;
            runtime.spawn(engine::serve(listener, engine.options(), stopped.clone()));
        }
        Ok(Self { all, runtime, _stop: stop })
    }

    /// Says how to use the daemon as soon as it is ready.
    fn announce(&self, daemon: &Daemon, secret: String, file: PathBuf) {
        let (mut traffic, mut admin) = daemon.addresses();
        let (traffic, admin) = (traffic.pop().unwrap_or_default(), admin.pop().unwrap_or_default());
        let program = std::env::args().next().unwrap_or_default();
        let welcome = Welcome { traffic, admin, secret, file, program, engines: self.all.clone() };
        let current = daemon.current();
        self.runtime.spawn(async move {
            ready(&current).await;
            let _ = io::stdout().lock().write_all(welcome.to_string().as_bytes()); // nobody listens: it serves all the same
        });
    }
}

async fn ready(current: &Current) {
    while !current.readiness().is_ready() {
        sleep(POLL).await;
    }
}

// === impl Folder ===

impl Folder {
    /// Makes one that nobody else can enter.
    fn make() -> io::Result<Self> {
        let path = std::env::temp_dir().join(format!("forebay-demo-{}", Uuid::now_v7().simple()));
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0); // gone already: fine
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::config::plan::Plan;

    #[test]
    fn the_file_is_good_for_any_number_of_engines_and_tells_no_secret() {
        let folder = Folder::make().unwrap();
        let file = folder.0.join("forebay.toml");
        for count in 1..=16 {
            let mut engines = Engine::all(count);
            (8000..).zip(&mut engines).for_each(|(port, engine)| engine.address.set_port(port));
            let text = configuration(ADMIN, SocketAddr::new(ADMIN.ip(), 0), &engines, "fb-secret");
            assert!(!text.contains("fb-secret"));
            fs::write(&file, text).unwrap();
            let plan = Plan::load(&file, &|_| None).unwrap();
            let weights: Vec<u32> = plan.pools[0].servers.iter().map(|server| server.weight).collect();
            assert_eq!(weights, engines.iter().map(|engine| engine.weight).collect::<Vec<_>>());
            assert_eq!(weights[0], if count == 1 { 1 } else { 3 });
            let slow: Vec<bool> = engines.iter().map(|engine| !engine.first_token.is_zero()).collect();
            assert_eq!(slow.iter().filter(|slow| **slow).count(), usize::from(count >= 3));
        }
    }

    #[test]
    fn the_folder_is_private_and_goes_away() {
        let folder = Folder::make().unwrap();
        let path = folder.0.clone();
        fs::write(path.join("file"), "").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        drop(folder);
        assert!(!path.exists());
    }
}
