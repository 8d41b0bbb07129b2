//! How much the core remembers: what a year of operation must not let grow.

use crate::core::Core;
pub use crate::core::FINISHED_RUNS_MAX;
pub use crate::jobs::{ACTIVE_JOBS_MAX, DONE_JOBS_MAX};
pub use crate::polls::ORPHANS_MAX;
pub use crate::trust::ASKED_MAX;

/// How many of everything the core keeps in mind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sizes {
    /// Jobs, finished ones included.
    pub jobs: usize,
    /// Jobs that are not over.
    pub unfinished_jobs: usize,
    /// Jobs of adopted runs that no report told of.
    pub adopted_jobs: usize,
    /// Jobs that GitHub was asked for lately, because reports about them are doubtful.
    pub asked_jobs: usize,
    /// Runs that are not over.
    pub runs: usize,
    /// Runs that are over.
    pub finished_runs: usize,
    /// Deadlines.
    pub timers: usize,
    /// Repositories that are polled.
    pub repositories: usize,
    /// Repositories that are not polled now and must not be asked for yet.
    pub blocked_repositories: usize,
    /// Runners on GitHub that belong to no run.
    pub orphans: usize,
    /// Machine types whose last runs failed.
    pub health: usize,
    /// Machine types with an image that is known to boot.
    pub proven: usize,
    /// Machine types with a snapshot.
    pub snapshots: usize,
    /// Machine types whose jobs wait.
    pub waiting: usize,
}

impl Core {
    /// How much is kept in mind, for checks and simulations.
    pub fn sizes(&self) -> Sizes {
        let (repositories, blocked_repositories, orphans) = self.polls.sizes();
        Sizes {
            jobs: self.jobs.iter().count(),
            unfinished_jobs: self.jobs.unfinished().count(),
            adopted_jobs: self.adopted_jobs.len(),
            asked_jobs: self.asked.len(),
            runs: self.runs.len(),
            finished_runs: self.finished.len(),
            timers: self.timers.len(),
            repositories,
            blocked_repositories,
            orphans,
            health: self.health.len(),
            proven: self.proven.len(),
            snapshots: self.snapshots.len(),
            waiting: self.waiting.len(),
        }
    }
}
