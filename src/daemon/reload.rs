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
    turn: tokio::sync::Mutex<()>,
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
        Self { path, environment, current, observer, state, turn: tokio::sync::Mutex::default() }
    }

    /// Begins to probe what is in force. To be called inside the runtime.
    pub fn start_probes(&self) {
        self.state.lock().probes = Some(Probes::start(&self.current.live()));
    }

    /// Reads the files and puts them in force for all requests from now on. Requests under way keep what they began with.
    ///
    /// A pool that is new is probed first, so that a model that moves to it is served without a gap.
    ///
    /// # Errors
    /// Every fault there is; then nothing has changed.
    pub async fn reload(&self) -> Result<(), Faults> {
        let _turn = self.turn.lock().await; // one at a time
        let plan = Plan::load(&self.path, &self.environment);
        let faults = plan.as_ref().err().map_or(vec![], |faults| faults.iter().map(ToString::to_string).collect());
        faults.iter().for_each(|fault| log::error!("not reloaded: {fault}"));
        let reloaded = match plan {
            Ok(plan) => {
                self.put_in_force(plan).await;
                log::info!("configuration reloaded");
                Ok(())
            }
            Err(faults) => Err(faults),
        };
        let mut state = self.state.lock();
        (state.at, state.faults) = (SystemTime::now(), faults);
        self.observer.metrics.count_reload(reloaded.is_ok()); // what is counted is in force
        self.observer.metrics.reloaded(reloaded.is_ok(), seconds(state.at));
        reloaded
    }

    /// The files, when they were last read, and what was wrong with them.
    #[must_use]
    pub fn status(&self) -> Value {
        let state = self.state.lock();
        let files: Vec<String> = self.current.live().plan.files.iter().map(|file| file.display().to_string()).collect();
        json!({"files": files, "last_reload": crate::admin::time(state.at), "faults": state.faults})
    }

    async fn put_in_force(&self, plan: Plan) {
        let former = self.current.live();
        let (old, new) = (&former.plan, &plan);
        if (&old.server.listen, old.server.threads, old.server.upstream_idle, &old.admin.listen)
            != (&new.server.listen, new.server.threads, new.server.upstream_idle, &new.admin.listen)
        {
            log::warn!("{FIXED}");
        }
        let live = Live::new(plan, Some(&former));
        let mut probes = Probes::start(&live);
        probes.first_round().await;
        log::set_max_level(live.plan.log.level);
        self.observer.set_access_log(live.plan.log.access);
        self.current.replace(live);
        self.state.lock().probes = Some(probes);
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
