//! `forebay drain`, `ready` and `maint`: takes a server of the running daemon out, and brings it back.
//!
//! The daemon forgets neither when this ends: only a reload that changes the server, or a restart, takes the word back.

use std::fmt;
use std::io::{self, IsTerminal};
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, sleep_until};

use super::Failure;
use super::admin::{Caller, Whom, block_on};
use super::explain::time;
use crate::config::parse_duration;
use crate::pool::settings::HEAVIEST;

/// From one look at the server to the next.
const EVERY: Duration = Duration::from_millis(250);
/// Puts the cursor at the beginning of an empty line.
const REWRITE: &str = "\r\x1b[K";

/// Take a server out of its pool, and wait until it is empty
///
/// It gets nothing new from now on, and what is under way there is finished. That holds until `forebay ready`, until a reload that
/// changes the server, or until the daemon ends, whether somebody waits here or not.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  forebay drain llama/gpu1 --timeout 5m && ssh gpu1 systemctl stop vllm

Exits with 0 when nothing is in flight there, with 1 when that cannot be said. Over TCP the daemon asks for the token in
$FOREBAY_ADMIN_TOKEN.")]
pub(super) struct Drain {
    #[command(flatten)]
    server: Which,
    /// How long to wait, such as 30s, 10m or 1h
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = parse_duration)]
    timeout: Duration,
}

/// Bring a server back that was taken out
///
/// After a `maint` it is used once a probe has found it well. A weight that was given to it at run time stays as it is.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  forebay ready llama/gpu1 --weight 1       # a first small share; --weight file gives it its own back

Over TCP the daemon asks for the token in $FOREBAY_ADMIN_TOKEN.")]
pub(super) struct Ready {
    #[command(flatten)]
    server: Which,
    /// Its weight from now on: 0 to 10000, or `file` for what the configuration says
    #[arg(long, value_name = "N")]
    weight: Option<Weight>,
}

/// Take a server out of its pool, and do not probe it
///
/// Nothing is waited for: it gets nothing new, and what is under way there goes on. After `forebay ready` a probe decides whether it
/// is used, so that an engine which still starts gets nothing.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  forebay maint llama/gpu1

Over TCP the daemon asks for the token in $FOREBAY_ADMIN_TOKEN.")]
pub(super) struct Maint {
    #[command(flatten)]
    server: Which,
}

/// The server, and the daemon that has it.
#[derive(Debug, Args)]
struct Which {
    /// The pool and the server, as `forebay status` names them
    #[arg(value_name = "POOL/SERVER")]
    name: Name,
    #[command(flatten)]
    whom: Whom,
}

/// A server by its pool's name and its own, of which only the latter may hold slashes.
#[derive(Debug, Clone)]
struct Name {
    pool: String,
    server: String,
}

/// A weight; none: the configuration's.
#[derive(Debug, Clone, Copy)]
struct Weight(Option<u32>);

/// A server as the daemon tells it, as far as it matters here.
#[derive(Debug, Deserialize)]
struct Told {
    state: String,
    why: String,
    in_flight: u64,
    weight: u32,
    configured_weight: u32,
    /// The process before an upgrade that finishes its requests, perhaps there.
    #[serde(skip)]
    former: Option<u64>,
}

/// The lines that say how far it is.
struct Progress {
    /// Whether one line is written over and over.
    rewrites: bool,
    last: String,
}

// === impl Drain ===

impl Drain {
    pub(super) fn run(self) -> Result<(), Failure> {
        block_on(async {
            let caller = self.server.whom.caller()?;
            self.server.order(&caller, &json!({"state": "drain"})).await?;
            self.wait(&caller).await
        })
    }

    async fn wait(&self, caller: &Caller) -> Result<(), Failure> {
        let mut interrupted = signal(SignalKind::interrupt()).map_err(|e| Failure::Runtime(e.to_string()))?;
        let name = &self.server.name;
        let end = Instant::now() + self.timeout;
        let mut progress = Progress { rewrites: io::stdout().is_terminal(), last: String::new() };
        let back = format!("`forebay ready {name}` brings it back");
        let mut told = self.server.look(caller).await?;
        while told.in_flight > 0 || told.former.is_some() {
            progress.show(&told.line(name))?;
            let left = format!("{} at {name}, which stays drained; {back}", told.in_flight());
            let next = tokio::select! {
                _ = interrupted.recv() => Err(Failure::Runtime(format!("stopped waiting: {left}"))),
                () = sleep_until(end) => {
                    Err(Failure::Runtime(format!("not empty after {}: {left}", time(Some(self.timeout)))))
                }
                told = async { sleep(EVERY).await; self.server.look(caller).await } => told,
            };
            told = match next {
                Ok(told) => told,
                Err(failure) => return progress.end().and(Err(failure)),
            };
        }
        progress.show(&format!("{name}: drained, nothing is in flight there; {back}"))?;
        progress.end()
    }
}

// === impl Ready ===

impl Ready {
    pub(super) fn run(self) -> Result<(), Failure> {
        let mut body = json!({"state": "ready"});
        if let Some(Weight(weight)) = self.weight {
            body["weight"] = json!(weight);
        }
        self.server.tell(&body)
    }
}

// === impl Maint ===

impl Maint {
    pub(super) fn run(self) -> Result<(), Failure> {
        self.server.tell(&json!({"state": "maint"}))
    }
}

// === impl Which ===

impl Which {
    /// Gives an order, and says how the server is then.
    fn tell(&self, body: &Value) -> Result<(), Failure> {
        block_on(async {
            let told = self.order(&self.whom.caller()?, body).await?;
            super::print(&format!("{}\n", told.line(&self.name)))
        })
    }

    async fn order(&self, caller: &Caller, body: &Value) -> Result<Told, Failure> {
        let encoded = |part: &str| utf8_percent_encode(part, NON_ALPHANUMERIC).to_string();
        let Name { pool, server } = &self.name;
        caller.change(&format!("/servers/{}/{}", encoded(pool), encoded(server)), body).await
    }

    /// How the server is now, if it still gets nothing.
    async fn look(&self, caller: &Caller) -> Result<Told, Failure> {
        let Name { pool, server } = &self.name;
        let name = &self.name;
        let status: Value = caller.read("/status").await?;
        let servers = status["pools"][pool]["servers"].as_array();
        let found = servers.and_then(|servers| servers.iter().find(|found| found["name"] == **server));
        let Some(mut told) = found.and_then(|found| Told::deserialize(found).ok()) else {
            return Err(Failure::Runtime(format!(
                "{name} is gone: a reload took it out of the configuration. What is in flight there is finished, but cannot be \
                 counted any more"
            )));
        };
        if !["draining", "maint"].contains(&&*told.state) {
            return Err(Failure::Runtime(format!(
                "{name} is {} again: somebody brought it back, a reload changed it, or forebay was restarted",
                told.state
            )));
        }
        told.former = status["former_pid"].as_u64();
        Ok(told)
    }
}

// === impl Told ===

impl Told {
    fn line(&self, name: &Name) -> String {
        let Self { state, why, weight, configured_weight, .. } = self;
        let why = match &**state {
            "up" | "draining" | "maint" => String::new(),
            _ => format!(" ({why})"),
        };
        let weight = match weight == configured_weight {
            true => String::new(),
            false => format!(", weight {weight} ({configured_weight} in the configuration)"),
        };
        format!("{name}: {state}{why}{weight}, {}", self.in_flight()).replace(char::is_control, " ")
    }

    fn in_flight(&self) -> String {
        match self.former {
            Some(pid) => {
                format!("{} in flight, and process {pid} still finishes what came before an upgrade", self.in_flight)
            }
            None => format!("{} in flight", self.in_flight),
        }
    }
}

// === impl Progress ===

impl Progress {
    /// Shows a line, if it is another one than the last.
    fn show(&mut self, line: &str) -> Result<(), Failure> {
        if line == self.last {
            return Ok(());
        }
        line.clone_into(&mut self.last);
        super::print(&if self.rewrites { format!("{REWRITE}{line}") } else { format!("{line}\n") })
    }

    /// Lets what follows begin a line of its own.
    fn end(&self) -> Result<(), Failure> {
        if self.rewrites { super::print("\n") } else { Ok(()) }
    }
}

// === impl Name ===

impl FromStr for Name {
    type Err = String;

    fn from_str(written: &str) -> Result<Self, String> {
        match written.split_once('/') {
            Some((pool, server)) if !pool.is_empty() && !server.is_empty() => {
                Ok(Self { pool: pool.to_owned(), server: server.to_owned() })
            }
            _ => {
                Err("write the pool, a slash and the server, such as llama/gpu1; `forebay status` shows them"
                    .to_owned())
            }
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.pool, self.server)
    }
}

// === impl Weight ===

impl FromStr for Weight {
    type Err = String;

    fn from_str(written: &str) -> Result<Self, String> {
        if written == "file" {
            return Ok(Self(None));
        }
        let weight = written.parse().ok().filter(|weight| *weight <= HEAVIEST);
        weight.map(|weight| Self(Some(weight))).ok_or_else(|| format!("write a number from 0 to {HEAVIEST}, or `file`"))
    }
}
