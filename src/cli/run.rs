//! `forebay run`: the daemon.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use super::{Failure, Source};
use crate::config::plan::Plan;
use crate::daemon::reload::Environment;
use crate::daemon::upgrade::Predecessor;
use crate::daemon::{Daemon, Origin, Signals};
use crate::observe::logger::Logger;
use crate::observe::sink::Sink;
use crate::observe::{AccessLog, Metrics, Observer};

/// Run the proxy in the foreground; logs go to stderr
///
/// SIGHUP reloads the configuration; SIGUSR2 hands over to a new process; SIGTERM and SIGINT finish the requests in flight and end,
/// a second one at once.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  forebay run -c forebay.toml")]
pub(super) struct Run {
    #[command(flatten)]
    source: Source,
}

/// How long the logs have for their last lines.
const LAST: Duration = Duration::from_secs(1);

// === impl Run ===

impl Run {
    pub(super) fn run(self) -> Result<(), Failure> {
        let origin = Origin::of_this_process();
        let predecessor = origin.predecessor.as_ref().and_then(Predecessor::again);
        let told = |why: &str| predecessor.is_some_and(|predecessor| predecessor.failed(why).is_ok());
        let served = serve(self.source.config.clone(), Arc::new(self.source.environment()), origin, None, |_| {});
        match served {
            // Who started this process has a log for it.
            Err(failure) if failure.said().is_some_and(told) => Err(Failure::Silent),
            served => served,
        }
    }
}

/// Runs what the file says until it is told to stop, by the signals that are installed already if they are. `bound` hears of the
/// daemon once it has its sockets.
pub(super) fn serve(
    file: PathBuf,
    environment: Environment,
    origin: Origin,
    early: Option<Signals>,
    bound: impl FnOnce(&Daemon),
) -> Result<(), Failure> {
    let plan = Plan::load(&file, &*environment).map_err(|faults| Failure::Usage(faults.to_string()))?;
    let runtime = |e: &dyn std::fmt::Display| Failure::Runtime(e.to_string());
    let sink = Sink::shared(std::io::stderr()).map_err(|e| runtime(&e))?;
    Logger::install(sink.clone());
    let metrics = Metrics::new().map_err(|e| runtime(&e))?;
    let observer = Arc::new(Observer { metrics, access_log: AccessLog::new(sink.clone()) });
    let daemon = Daemon::bind(file, environment, plan, observer.clone(), origin).map_err(|e| runtime(&e))?;
    bound(&daemon);
    let served = daemon.run(early);
    observer.access_log.flush(LAST);
    sink.flush(LAST);
    served.map_err(|e| runtime(&e))
}
