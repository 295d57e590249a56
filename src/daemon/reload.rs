//! Reads the configuration again and puts it in force, or changes nothing.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::probe::Probes;
use crate::config::Faults;
use crate::config::plan::Plan;
use crate::live::{Current, Live};
use crate::observe::Observer;

/// Where the values of `${NAME}` come from.
pub type Environment = Box<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// Where the configuration comes from and goes to.
pub struct Reloader {
    path: PathBuf,
    environment: Environment,
    current: Arc<Current>,
    observer: Arc<Observer>,
    state: Mutex<Reloaded>,
}

/// How the last reload went, with the probes of what it put in force.
struct Reloaded {
    at: SystemTime,
    faults: Vec<String>,
    /// `None` until the runtime is there.
    probes: Option<Probes>,
}

/// What a reload does not change: the sockets and threads that the process was started with.
const FIXED: &str = "`[server] listen`, `threads` and `upstream_idle` and `[admin] listen` hold until a restart";

// === impl Reloader ===

impl Reloader {
    /// For the configuration at `path`, which is in force as `current`.
    #[must_use]
    pub fn new(path: PathBuf, environment: Environment, current: Arc<Current>, observer: Arc<Observer>) -> Self {
        let at = SystemTime::now();
        observer.metrics.reloaded(true, seconds(at));
        let state = Mutex::new(Reloaded { at, faults: vec![], probes: None });
        Self { path, environment, current, observer, state }
    }

    /// Begins to probe what is in force. To be called inside the runtime.
    pub fn start_probes(&self) {
        self.state.lock().probes = Some(Probes::start(&self.current.live()));
    }

    /// Reads the files and puts them in force for all requests from now on. Requests under way keep what they began with.
    ///
    /// # Errors
    /// Every fault there is; then nothing has changed.
    pub fn reload(&self) -> Result<(), Faults> {
        let mut state = self.state.lock(); // one at a time
        let plan = Plan::load(&self.path, &self.environment);
        state.at = SystemTime::now();
        self.observer.metrics.count_reload(plan.is_ok());
        self.observer.metrics.reloaded(plan.is_ok(), seconds(state.at));
        match plan {
            Ok(plan) => {
                state.faults.clear();
                self.put_in_force(plan, &mut state);
                log::info!("configuration reloaded");
                Ok(())
            }
            Err(faults) => {
                state.faults = faults.iter().map(|fault| fault.to_string()).collect();
                for fault in &state.faults {
                    log::error!("not reloaded: {fault}");
                }
                Err(faults)
            }
        }
    }

    /// The files, when they were last read, and what was wrong with them.
    #[must_use]
    pub fn status(&self) -> Value {
        let state = self.state.lock();
        let files: Vec<String> = self.current.live().plan.files.iter().map(|file| file.display().to_string()).collect();
        json!({"files": files, "last_reload": crate::admin::time(state.at), "faults": state.faults})
    }

    fn put_in_force(&self, plan: Plan, state: &mut Reloaded) {
        let former = self.current.live();
        let (old, new) = (&former.plan, &plan);
        if (&old.server.listen, old.server.threads, old.server.upstream_idle, &old.admin.listen)
            != (&new.server.listen, new.server.threads, new.server.upstream_idle, &new.admin.listen)
        {
            log::warn!("{FIXED}");
        }
        log::set_max_level(plan.log.level);
        self.observer.set_access_log(plan.log.access);
        let live = Live::new(plan, Some(&former));
        state.probes = Some(Probes::start(&live));
        self.current.replace(live);
    }
}

impl fmt::Debug for Reloader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reloader").field("path", &self.path).finish_non_exhaustive()
    }
}

fn seconds(at: SystemTime) -> f64 {
    at.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
