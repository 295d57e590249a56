//! `forebay status`: the running daemon's servers as a table.
//!
//! No line is longer than a terminal of 80 columns. What a server's state is due to has a line of its own, for it is the
//! longest, and it is left out where a server is simply well.

mod table;

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use clap::Args;
use jiff::Timestamp;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};

use super::Failure;
use super::admin::{Caller, Whom, block_on};
use table::{Rates, Report, table};

/// From one table to the next.
const EVERY: Duration = Duration::from_secs(1);
/// Puts the cursor at the top of an empty screen.
const CLEAR: &str = "\x1b[2J\x1b[H";

/// Show the running daemon's pools and servers
///
/// Asks the daemon's admin listener, which is named by --admin or in the configuration.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  forebay status --admin 127.0.0.1:9180 --watch")]
pub(super) struct Status {
    #[command(flatten)]
    whom: Whom,
    /// Show it again each second, with requests a second, until Ctrl-C
    #[arg(long)]
    watch: bool,
}

// === impl Status ===

impl Status {
    pub(super) fn run(self) -> Result<(), Failure> {
        block_on(async {
            let caller = self.whom.caller()?;
            if self.watch { watch(&caller).await } else { once(&caller).await }
        })
    }
}

async fn once(caller: &Caller) -> Result<(), Failure> {
    super::print(&table(&read(caller).await?, None, Timestamp::now()))
}

async fn watch(caller: &Caller) -> Result<(), Failure> {
    let mut interrupted = signal(SignalKind::interrupt()).map_err(|e| Failure::Runtime(e.to_string()))?;
    let (mut before, between) = if io::stdout().is_terminal() { (CLEAR, CLEAR) } else { ("", "\n") };
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut rates = Rates::default();
    loop {
        let report = tokio::select! {
            _ = interrupted.recv() => return Ok(()),
            report = async { ticks.tick().await; read(caller).await } => report?,
        };
        rates.update(&report, Instant::now());
        let shown = table(&report, Some(&rates), Timestamp::now());
        super::print(&format!("{before}{shown}"))?;
        before = between;
    }
}

async fn read(caller: &Caller) -> Result<Report, Failure> {
    caller.read("/status").await
}
