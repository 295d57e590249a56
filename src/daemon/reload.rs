//! Reads the configuration again and puts it in force, or changes nothing.
//!
//! A file that somebody writes just now may be half there, and half a configuration may well be without a fault. So the files are read
//! when they have been as they are for a moment, and again if they change meanwhile.

mod watch;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use tokio::task::spawn_blocking;

use super::notify::Supervisor;
use super::probe::Probes;
use crate::config::Footprint;
use crate::config::changes::{Changes, upgrade_needed};
use crate::config::plan::{Admin, Log, Plan, Server};
use crate::live::{Current, Live, Stage};
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
    /// What the process was started with. Not its whole plan: that would never go.
    started: (Server, Admin),
    /// What was read last, well or not.
    last_read: Mutex<Arc<Footprint>>,
    last: Mutex<LastReload>,
    probes: Mutex<Option<Probes>>,
    /// Held by the one reload that is under way, or by an upgrade.
    turn: tokio::sync::Mutex<()>,
}

/// How the configuration was last read.
#[derive(Debug, Clone)]
pub struct LastReload {
    /// When.
    pub at: SystemTime,
    /// What was wrong with it; then the one before stays in force.
    pub faults: Vec<String>,
    /// The settings in force that wait for an upgrade.
    pub upgrade_needed: Vec<&'static str>,
}

/// What a reload has done.
#[derive(Debug)]
pub struct Reloaded {
    /// What is otherwise than before.
    pub changes: Changes,
    /// The settings that wait for an upgrade.
    pub upgrade_needed: Vec<&'static str>,
}

/// For how long the files must have been as they are before they are read. Between the writes of one who writes a file in pieces is
/// less, unless it waits for something.
const QUIET: Duration = Duration::from_millis(50);
/// How often files that change are read.
const TRIES: usize = 20;

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
        let live = current.live();
        let plan = &live.plan;
        Self {
            path,
            environment,
            started: (plan.server.clone(), plan.admin.clone()),
            last_read: Mutex::new(Arc::new(plan.footprint.clone())),
            current,
            observer,
            supervisor,
            last: Mutex::new(LastReload { at, faults: vec![], upgrade_needed: vec![] }),
            probes: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// Begins to probe what is in force, and to watch its files. Waits for so long, if at all, until all servers have been probed. To be
    /// called inside the runtime.
    pub async fn start(self: &Arc<Self>, longest: Option<Duration>) {
        let mut probes = Probes::start(&self.current.live(), &self.observer);
        if let Some(longest) = longest {
            let _ = tokio::time::timeout(longest, probes.first_round()).await; // who is unknown then is starting still
        }
        *self.probes.lock() = Some(probes);
        tokio::spawn(watch::watch(self.clone()));
    }

    /// Waits until no reload is under way. As long as what this gives is held, none begins.
    pub async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// Reads the files and puts them in force for all requests from now on. Requests under way keep what they began with.
    ///
    /// Servers that are new are probed first, so that a model that moves to them is served without a gap.
    ///
    /// # Errors
    /// Every fault there is; then nothing has changed.
    pub async fn reload(&self) -> Result<Reloaded, Vec<String>> {
        let _turn = self.turn().await;
        if self.current.stage() >= Stage::HandedOver {
            return Err(vec!["another process serves by now: ask that one".to_owned()]);
        }
        let _told = self.supervisor.reloading();
        let logs = |log: &Log| set_logs(&self.observer, log);
        let plan = self.read().await;
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
        self.note(&reloaded);
        reloaded
    }

    /// How the configuration was last read.
    #[must_use]
    pub fn last(&self) -> LastReload {
        self.last.lock().clone()
    }

    /// The plan that the files give, none of them half-written.
    async fn read(&self) -> Result<Plan, Vec<String>> {
        let (path, environment, former) = (self.path.clone(), self.environment.clone(), self.last_read.lock().clone());
        let read = spawn_blocking(move || read(&path, &*environment, former.look())).await;
        let (plan, faults) = read.map_err(|e| vec![format!("the configuration could not be read: {e}")])?;
        *self.last_read.lock() = Arc::new(plan.footprint.clone());
        if faults.is_empty() { Ok(plan) } else { Err(faults) }
    }

    async fn put_in_force(&self, plan: Plan) -> Reloaded {
        self.current.forget(&self.observer.metrics); // else all would pile up where nobody asks for metrics
        let former = self.current.live();
        let changes = Changes::between(&former.plan, &plan);
        let upgrade_needed = upgrade_needed((&self.started.0, &self.started.1), &plan);
        let live = Live::new(plan, Some(&former));
        drop(former);
        let mut probes = Probes::start(&live, &self.observer);
        probes.first_round().await;
        self.current.replace(live);
        // Limits may be higher than those for which requests wait.
        self.current.live().pools().for_each(|pool| pool.serve(Instant::now()));
        *self.probes.lock() = Some(probes);
        Reloaded { changes, upgrade_needed }
    }

    /// Tells how a reload went: in the log, the status and the metrics.
    fn note(&self, reloaded: &Result<Reloaded, Vec<String>>) {
        let mut last = self.last.lock();
        last.at = SystemTime::now();
        match reloaded {
            Ok(Reloaded { changes, upgrade_needed }) => {
                last.faults.clear();
                last.upgrade_needed.clone_from(upgrade_needed);
                for setting in upgrade_needed {
                    log::warn!("`{setting}` holds until an upgrade (forebay upgrade)");
                }
                log::info!("configuration reloaded: {changes}");
            }
            Err(faults) => {
                faults.iter().for_each(|fault| log::error!("not reloaded: {fault}"));
                last.faults.clone_from(faults);
            }
        }
        self.observer.metrics.count_reload(reloaded.is_ok()); // what is counted is in force
        self.observer.metrics.reloaded(reloaded.is_ok(), seconds(last.at));
    }
}

/// Reads the configuration at `path` once its files are quiet, and again when one has changed meanwhile; and all that is wrong with it:
/// with faults it is no plan to run. `before` is how the files look now, as far as they are known.
fn read(path: &Path, environment: &dyn Fn(&str) -> Option<String>, mut before: Footprint) -> (Plan, Vec<String>) {
    let mut tries = 0;
    loop {
        thread::sleep(QUIET);
        let (plan, faults) = Plan::read(path, environment);
        let after = plan.footprint.look();
        let moved = plan.footprint.changed(&before).or_else(|| after.changed(&plan.footprint));
        tries += 1;
        match moved.map(Path::to_owned) {
            None => return (plan, faults.iter().map(ToString::to_string).collect()),
            Some(_) if tries < TRIES => before = plan.footprint,
            Some(file) => {
                let file = file.display();
                return (plan, vec![format!("{file}: changes while it is read; reload once it is written")]);
            }
        }
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::fs;

    use super::*;
    use crate::config::Folder;

    /// A pool, and so much that it is a configuration.
    const POOL: &str = "[pool.p]\nservers = [\"a:1\"]\n[server]\nheader_timeout = \"${TIME}\"\n";

    /// What somebody does in a folder.
    type Act<'a> = &'a dyn Fn(&Folder);

    /// Reads while somebody acts whenever the variable is asked for.
    fn read_while(folder: &Folder, act: &dyn Fn()) -> (Plan, Vec<String>) {
        let environment = |_: &str| {
            act();
            Some("5s".to_owned())
        };
        let path = folder.path("main");
        let (former, _) = Plan::read(&path, &|_| Some("5s".to_owned()));
        read(&path, &environment, former.footprint)
    }

    fn models(plan: &Plan) -> Vec<String> {
        plan.models.iter().map(|model| model.name.to_string()).collect()
    }

    #[test]
    fn what_is_written_while_it_is_read_is_taken_whole() {
        let whole = format!("{POOL}[model.m]\npool = \"p\"\n");
        let write = |folder: &Folder, name: &str, text: &str| fs::write(folder.path(name), text).unwrap();
        let more = "[model.n]\npool = \"p\"\n";
        let cases: &[(&str, Act, &[&str])] = &[
            ("nothing happens", &|_| {}, &["old"]),
            ("the rest of a file comes", &|folder| write(folder, "main", &whole), &["m"]),
            (
                "one takes its place",
                &|folder| {
                    write(folder, "new", &whole);
                    fs::rename(folder.path("new"), folder.path("main")).unwrap();
                },
                &["m"],
            ),
            ("an included file comes", &|folder| write(folder, "d/n.toml", more), &["n", "old"]),
            ("an included file changes", &|folder| write(folder, "d/old.toml", more), &["n"]),
        ];
        for (what, act, expected) in cases {
            let main = format!("include = [\"d/*.toml\"]\n{POOL}");
            let folder = Folder::new(&[("main", &main), ("d/old.toml", "[model.old]\npool = \"p\"\n")]);
            let acted = Cell::new(false);
            let (plan, faults) = read_while(&folder, &|| {
                if !acted.replace(true) {
                    act(&folder);
                }
            });
            assert_eq!(
                (models(&plan), faults),
                (expected.iter().map(|name| name.to_string()).collect(), vec![]),
                "{what}"
            );
        }
    }

    #[test]
    fn what_was_written_just_before_is_read_once_more() {
        let folder = Folder::new(&[("main", POOL)]);
        let (path, times) = (folder.path("main"), Cell::new(0));
        let environment = |_: &str| {
            times.set(times.get() + 1);
            Some("5s".to_owned())
        };
        let before = Plan::read(&path, &environment).0.footprint;
        fs::write(&path, POOL.to_owned() + "#").unwrap();
        for (before, reads) in [(before.clone(), 2), (before.look(), 1)] {
            times.set(0);
            let (_, faults) = read(&path, &environment, before);
            assert_eq!((faults, times.get()), (vec![], reads));
        }
    }

    #[test]
    fn a_file_that_does_not_come_to_rest_is_a_fault() {
        let folder = Folder::new(&[("main", POOL)]);
        let (times, path) = (Cell::new(0), folder.path("main"));
        let (plan, faults) = read_while(&folder, &|| {
            times.set(times.get() + 1);
            fs::write(&path, POOL.to_owned() + &"#".repeat(times.get())).unwrap();
        });
        assert_eq!(faults, [format!("{}: changes while it is read; reload once it is written", path.display())]);
        assert_eq!(times.get(), TRIES);
        assert!(plan.footprint.look().changed(&plan.footprint).is_some(), "it is looked at again");
    }
}
