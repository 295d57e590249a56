//! Reloads when a file of the configuration has changed.
//!
//! The files are looked at, once a second. The kernel could tell of changes as they happen, but not on network file systems, and
//! not where a link on the way to a file leads elsewhere, as Kubernetes changes what it mounts; and it would take a dependency.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};

use super::Reloader;
use crate::config::Footprint;
use crate::live::Stage;

/// From one look to the next.
const EVERY: Duration = Duration::from_secs(1);

/// How the files looked, while they have changed and may still change.
#[derive(Default)]
struct Unrest(Option<Footprint>);

/// Looks at the files and reloads, whenever the plan in force says so, until the daemon stops.
pub(super) async fn watch(reloader: Arc<Reloader>) {
    let (mut ticks, mut unrest) = (interval(EVERY), Unrest::default());
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if reloader.current.stage() > Stage::Serving {
            return;
        }
        if !reloader.current.live().plan.server.watch {
            unrest = Unrest::default();
            continue;
        }
        let read = reloader.last_read.lock().clone();
        let Ok((now, read)) = spawn_blocking(move || (read.look(), read)).await else { continue };
        if let Some(file) = unrest.settle(now, &read) {
            log::info!("{} has changed", file.display());
            let _ = reloader.reload().await; // its faults are logged there
        }
    }
}

// === impl Unrest ===

impl Unrest {
    /// The file that has changed since the files were read, once two looks in a row are alike: until then somebody writes.
    fn settle(&mut self, now: Footprint, read: &Footprint) -> Option<PathBuf> {
        let before = self.0.take();
        let file = now.changed(read)?.to_owned();
        if before.is_some_and(|before| now.changed(&before).is_none()) {
            return Some(file);
        }
        self.0 = Some(now);
        None
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config::Folder;
    use crate::config::plan::Plan;

    #[test]
    fn a_change_counts_once_nothing_changes_any_more() {
        let good = "[pool.p]\nservers = [\"a:1\"]\n";
        let folder = Folder::new(&[("main", good)]);
        let path = folder.path("main");
        let read = || Plan::read(&path, &|_| None).0.footprint;
        let (mut unrest, mut former) = (Unrest::default(), read());
        let write = |text: &str| fs::write(&path, text).unwrap();
        let mut look = |former: &Footprint| unrest.settle(former.look(), former);
        assert_eq!(look(&former), None);
        write("[pool");
        assert_eq!(look(&former), None, "seen for the first time");
        write("[pool.p]");
        assert_eq!(look(&former), None, "it has changed once more");
        assert_eq!(look(&former).as_ref(), Some(&path));
        former = read();
        assert_eq!((look(&former), look(&former)), (None, None), "a fault is not told twice");
        write(good);
        assert_eq!(look(&former), None);
        former = read(); // by a signal, meanwhile
        assert_eq!((look(&former), look(&former)), (None, None));
    }
}
