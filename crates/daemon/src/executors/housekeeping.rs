//! What is kept of what is over, by number and by age: the logs of finished runs, and machine images that
//! were replaced. Current images and what anything is built on are not touched.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use forrest_config::{Config, Machine};
use forrest_core::model::{MachineTypeName, Timestamp};
use forrest_images::{ImageError, RunDir, Store};

use super::{Executors, RunContext};
use crate::clock::now;

/// Time between two looks for what has become too old. What is too much goes as soon as it is.
pub(crate) const INTERVAL: Duration = Duration::from_secs(60 * 60);
/// A run's directory with this file in it is over: only its log is kept.
const OVER: &str = "over";

/// Whether the run in this directory is over, so that only its log is left.
pub(crate) fn is_forgotten(run_dir: &Path) -> bool {
    run_dir.join(OVER).exists()
}

/// Which finished runs' directories are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct KeptRuns {
    /// The newest ones.
    count: usize,
    /// How long after their end.
    age: Duration,
}

impl KeptRuns {
    /// What makes most room.
    pub(super) const NONE: Self = Self { count: 0, age: Duration::ZERO };

    pub(super) fn of(config: &Config) -> Self {
        Self { count: config.host.keep_runs as usize, age: config.host.keep_runs_for }
    }
}

/// Which machine images of a machine type are kept, beside the current one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KeptImages {
    machine: MachineTypeName,
    count: usize,
    /// How long after another one has replaced them.
    age: Duration,
}

impl KeptImages {
    pub(super) fn of(machine: &Machine) -> Self {
        Self {
            machine: machine.name.clone(),
            count: machine.keep_generations as usize,
            age: machine.keep_generations_for,
        }
    }

    fn prune(&self, store: &Store, now: Timestamp) -> Result<(), ImageError> {
        store.prune_old(&self.machine, self.count, now.before(self.age)).map(drop)
    }
}

impl Executors {
    /// Removes what has become too old.
    pub(crate) async fn keep_house(self) {
        self.remove_old_runs().await;
        for kept in self.settings.kept_images.clone() {
            self.remove_old_images(kept).await;
        }
    }

    /// Marks the run's directory as that of a run that is over; old ones are removed.
    pub(crate) async fn forget(self, run: Arc<RunContext>) {
        let path = run.dir.path().join(OVER);
        if run.dir.path().exists()
            && let Err(error) = std::fs::write(&path, b"")
        {
            tracing::warn!(runner = %run.runner, %error, "could not mark the run as over");
        }
        self.remove_old_runs().await;
    }

    async fn remove_old_runs(&self) {
        let kept = self.settings.kept_runs;
        let removed = self.on_disk(move |store| remove_old_runs(store, kept, SystemTime::now()));
        if let Err(trouble) = removed.await {
            tracing::warn!("could not remove old runs' logs: {}", trouble.what);
        }
    }

    pub(super) async fn remove_old_images(&self, kept: KeptImages) {
        if let Err(trouble) = self.on_disk(move |store| kept.prune(store, now())).await {
            tracing::warn!("could not remove old generations: {}", trouble.what);
        }
    }
}

/// Removes what is left of finished runs, but for those that are to be kept.
pub(super) fn remove_old_runs(
    store: &Store,
    kept: KeptRuns,
    now: SystemTime,
) -> Result<(), ImageError> {
    let over_since = |dir: &RunDir| std::fs::metadata(dir.path().join(OVER))?.modified();
    let mut over: Vec<_> = store
        .find_run_dirs()?
        .runs
        .into_iter()
        .filter_map(|dir| Some((over_since(&dir).ok()?, dir)))
        .collect();
    // The newest first.
    over.sort_by(|a, b| b.cmp(a));
    for (index, (since, dir)) in over.into_iter().enumerate() {
        // What lies ahead (clocks jump) is not old.
        let age = now.duration_since(since).unwrap_or_default();
        if index >= kept.count || age > kept.age {
            store.remove_run_dir(&dir)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use forrest_core::model::RunnerName;

    use super::*;

    #[test]
    fn finished_runs_go_by_number_and_by_age() {
        const DAY: Duration = Duration::from_secs(24 * 3600);
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path()).expect("an empty store");
        let machine: MachineTypeName = "o/r/m".parse().expect("a name");
        let now = SystemTime::now();
        let run = |number: u8| {
            let runner = RunnerName::from_random(&machine, [number; 16]);
            store.create_run_dir(&runner, &machine).expect("a new run")
        };
        let mut dirs: Vec<RunDir> = (0..6).map(run).collect();
        // The last one is not over; the others ended one day after the other, number 0 now.
        for (days, dir) in (0..).zip(&dirs[..5]) {
            let over = std::fs::File::create(dir.path().join(OVER)).expect("a file");
            over.set_modified(now - DAY * days).expect("its time");
        }
        let left = |count, age| {
            remove_old_runs(&store, KeptRuns { count, age }, now).expect("removable");
            dirs.iter().map(|dir| dir.path().exists()).collect::<Vec<_>>()
        };
        assert_eq!(left(9, DAY * 4), [true; 6]);
        assert_eq!(left(4, DAY * 4), [true, true, true, true, false, true]);
        assert_eq!(left(4, DAY * 3 / 2), [true, true, false, false, false, true]);
        remove_old_runs(&store, KeptRuns::NONE, now + DAY).expect("removable");
        assert!(dirs.pop().expect("the last").path().exists());
        assert!(!dirs[0].path().exists() && !dirs[1].path().exists());
    }
}
