//! Nothing is kept for longer than it is needed, neither in the core nor on the disk.

use forrest_core::model::JobId;
use forrest_core::sizes::{ASKED_MAX, DONE_JOBS_MAX, FINISHED_RUNS_MAX, ORPHANS_MAX};

use crate::plan::{DAY, HOUR};
use crate::world::World;
use crate::world::host::{KEEP_GENERATIONS, KEEP_RUNS, TrueSnapshot};

use super::Broken;

/// How long after its end a job may still count as open: GitHub may not answer for hours, and then ask
/// for two more. A daemon that was told of it only later, by a webhook that is as old, has as long from there.
const STALE_MAX: u64 = 12 * HOUR;
/// How long a snapshot is built at most, jobs that need the room or not.
const BUILD_MAX: u64 = 2 * HOUR;
/// How long a run's directory is there at most, from the first step to the last: a job with everything
/// that can come between.
const RUN_AGE_MAX: u64 = DAY;

impl World {
    /// Whether anything piles up.
    pub(super) fn judge_growth(&self) -> Result<(), Broken> {
        self.directories()?;
        let Some(daemon) = &self.daemon else { return Ok(()) };
        let sizes = daemon.core.sizes();
        let machines = self.plan.machines.len();
        let within = |what: &str, is: usize, most: usize| match is <= most {
            true => Ok(()),
            false => Err(Broken(format!("the core remembers {is} {what}, not at most {most}"))),
        };
        within("jobs", sizes.jobs, DONE_JOBS_MAX + sizes.unfinished_jobs)?;
        within("finished runs", sizes.finished_runs, FINISHED_RUNS_MAX)?;
        within("jobs of adopted runs", sizes.adopted_jobs, sizes.runs)?;
        within("jobs asked for", sizes.asked_jobs, ASKED_MAX)?;
        within("repositories", sizes.repositories + sizes.blocked_repositories, machines)?;
        within("orphans", sizes.orphans, ORPHANS_MAX * machines)?;
        within("failing machine types", sizes.health, machines)?;
        within("proven images", sizes.proven, machines)?;
        within("snapshots", sizes.snapshots, machines)?;
        within("waiting machine types", sizes.waiting, machines)?;
        // Three of each run, a pause of each machine type, a poll of each repository, and the daemon's.
        within("deadlines", sizes.timers, 3 * sizes.runs + machines + sizes.repositories + 3)?;
        let hangs = |snapshot: &TrueSnapshot| {
            snapshot.building.is_some_and(|(_, since)| self.now - since > BUILD_MAX)
        };
        if let Some(place) = self.host.snapshots.iter().position(hangs) {
            let machine = &self.plan.machines[place].name;
            return Err(Broken(format!("the snapshot of {machine} is being built for hours")));
        }
        let stale = |id: &JobId| {
            let ended = self.github.jobs.get(id).and_then(|job| job.ended);
            let heard = self.checker.heard.get(id).copied().unwrap_or_default();
            ended.is_some_and(|at| self.now - at.max(heard) > STALE_MAX)
        };
        let mut open = daemon.core.jobs().unfinished().map(|entry| entry.job.id);
        match open.find(stale) {
            Some(job) => Err(Broken(format!("job {job} was over long ago, and still counts"))),
            None => Ok(()),
        }
    }

    /// What the disk holds after the image store's own cleaning up.
    fn directories(&self) -> Result<(), Broken> {
        let runs = &self.host.runs;
        if let Some((runner, _)) = runs.iter().find(|(_, run)| self.now - run.made > RUN_AGE_MAX) {
            return Err(Broken(format!("the directory of {runner} is there for more than a day")));
        }
        if self.host.over > KEEP_RUNS {
            return Err(Broken(format!("{} directories of finished runs", self.host.over)));
        }
        Ok(())
    }

    /// A promotion cleaned up after itself: what is left beside the newest generations is needed by a
    /// run or a snapshot, or in use.
    pub(super) fn judge_generations(&self, machine: usize) -> Result<(), Broken> {
        let most = KEEP_GENERATIONS + self.host.runs.len() + self.plan.machines.len() + 1;
        let is = self.host.images[machine].generations.len();
        if is > most {
            let machine = &self.plan.machines[machine].name;
            return Err(Broken(format!("{machine} has {is} generations, not at most {most}")));
        }
        Ok(())
    }
}
