//! Reads the configuration again and puts it in force, or changes nothing.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use super::notify::Supervisor;
use super::probe::Probes;
use crate::config::plan::{Log, Plan};
use crate::live::{Current, Live};
use crate::observe::access_log::Destination;
use crate::observe::{Observer, logger};

/// Where the values of `${NAME}` come from.
pub type Environment = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// Where the configuration comes from and goes to.
pub struct Reloader {
    path: PathBuf,
    environment: Environment,
    current: Arc<Current>,
    observer: Arc<Observer>,
    supervisor: Arc<Supervisor>,
    /// What the process was started with.
    started: Arc<Live>,
    last: Mutex<LastReload>,
    probes: Mutex<Option<Probes>>,
    /// Held by the one reload that is under way.
    turn: tokio::sync::Mutex<()>,
}

/// How the configuration was last read.
#[derive(Debug, Clone)]
pub struct LastReload {
    /// When.
    pub at: SystemTime,
    /// What was wrong with it; then the one before stays in force.
    pub faults: Vec<String>,
    /// The settings in force that wait for a restart.
    pub restart_needed: Vec<&'static str>,
}

// === impl Reloader ===

impl Reloader {
    /// For the configuration at `path`, which is in force as `current`.
    #[must_use]
    pub fn new(
        path: PathBuf,
        environment: Environment,
        current: Arc<Current>,
        observer: Arc<Observer>,
        supervisor: Arc<Supervisor>,
    ) -> Self {
        let at = SystemTime::now();
        observer.metrics.reloaded(true, seconds(at));
        Self {
            path,
            environment,
            started: current.live(),
            current,
            observer,
            supervisor,
            last: Mutex::new(LastReload { at, faults: vec![], restart_needed: vec![] }),
            probes: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// Begins to probe what is in force, and waits for so long, if at all, until all of it has been probed. To be called inside
    /// the runtime.
    pub async fn start_probes(&self, longest: Option<Duration>) {
        let mut probes = Probes::start(&self.current.live(), &self.observer);
        if let Some(longest) = longest {
            let _ = tokio::time::timeout(longest, probes.first_round()).await; // who is unknown then is starting still
        }
        *self.probes.lock() = Some(probes);
    }

    /// Reads the files and puts them in force for all requests from now on. Requests under way keep what they began with.
    ///
    /// Servers that are new are probed first, so that a model that moves to them is served without a gap.
    ///
    /// # Errors
    /// Every fault there is; then nothing has changed.
    pub async fn reload(&self) -> Result<LastReload, Vec<String>> {
        let _turn = self.turn.lock().await;
        let _told = self.supervisor.reloading();
        let (path, environment) = (self.path.clone(), self.environment.clone());
        let plan = tokio::task::spawn_blocking(move || Plan::load(&path, &*environment)).await;
        let plan = match plan {
            Ok(Ok(plan)) => Ok(plan),
            Ok(Err(faults)) => Err(faults.iter().map(ToString::to_string).collect()),
            Err(panicked) => Err(vec![format!("the configuration could not be read: {panicked}")]),
        };
        let logs = |log: &Log| set_logs(&self.observer, log);
        let plan = plan.and_then(|plan| logs(&plan.log).map(|()| plan).map_err(|why| vec![why]));
        let reloaded = match plan {
            Ok(plan) => Ok(self.put_in_force(plan).await),
            Err(faults) => {
                // A log that was moved away is let go all the same.
                if let Err(why) = logs(&self.current.live().plan.log) {
                    log::warn!("{why}");
                }
                Err(faults)
            }
        };
        let mut last = self.last.lock();
        last.at = SystemTime::now();
        match &reloaded {
            Ok(restart_needed) => {
                last.faults.clear();
                last.restart_needed.clone_from(restart_needed);
                restart_needed.iter().for_each(|setting| log::warn!("`{setting}` holds until a restart"));
                log::info!("configuration reloaded");
            }
            Err(faults) => {
                faults.iter().for_each(|fault| log::error!("not reloaded: {fault}"));
                last.faults.clone_from(faults);
            }
        }
        self.observer.metrics.count_reload(reloaded.is_ok()); // what is counted is in force
        self.observer.metrics.reloaded(reloaded.is_ok(), seconds(last.at));
        reloaded.map(|_| last.clone())
    }

    /// How the configuration was last read.
    #[must_use]
    pub fn last(&self) -> LastReload {
        self.last.lock().clone()
    }

    /// The settings that wait for a restart.
    async fn put_in_force(&self, plan: Plan) -> Vec<&'static str> {
        let (runs, wanted) = (&self.started.plan, &plan);
        let fixed = [
            ("[server] listen", runs.server.listen == wanted.server.listen),
            ("[server] threads", runs.server.threads == wanted.server.threads),
            ("[server] upstream_idle", runs.server.upstream_idle == wanted.server.upstream_idle),
            ("[admin] listen", runs.admin.listen == wanted.admin.listen),
        ];
        let live = Live::new(plan, Some(&self.current.live()));
        let mut probes = Probes::start(&live, &self.observer);
        probes.first_round().await;
        self.current.replace(live);
        // Limits may be higher than those for which requests wait.
        self.current.live().pools().for_each(|pool| pool.serve(Instant::now()));
        *self.probes.lock() = Some(probes);
        fixed.into_iter().filter(|(_, same)| !same).map(|(setting, _)| setting).collect()
    }
}

/// Says what the configuration wants to hear, where it wants it.
///
/// # Errors
/// A line that says which file cannot be had, and why; then all is as before.
pub fn set_logs(observer: &Observer, log: &Log) -> Result<(), String> {
    observer.access_log.set(&log.access, log.format).map_err(|e| match &log.access {
        Destination::File(path) => format!("cannot write the access log to {}: {e}", path.display()),
        Destination::Stderr | Destination::Off => format!("cannot write the access log: {e}"),
    })?;
    logger::set(log.level, log.format);
    Ok(())
}

fn seconds(at: SystemTime) -> f64 {
    at.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
