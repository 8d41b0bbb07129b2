//! No guest is stopped whose runner may have a job.

use forrest_core::Core;
use forrest_core::model::RunnerName;

use crate::plan::{MINUTE, SECOND};
use crate::world::World;
use crate::world::github::At;
use crate::world::host::Vm;

use super::Broken;

/// How long after its limit a job may run on: what is told by an old report may be set right by a later one.
const LIMIT_LATE_MAX: u64 = MINUTE;

impl World {
    /// A guest is powered down or killed, or is to be.
    pub(super) fn judge_stop(&self, runner: &RunnerName, how: &str) -> Result<(), Broken> {
        let lives = self.host.runs.get(runner).is_some_and(|run| matches!(run.vm, Vm::Live(_)));
        if !lives || self.checker.by_operator.contains(runner) {
            return Ok(());
        }
        match self.github.job_on(runner) {
            Some(job) => Err(Broken(format!("{runner} {how}, but GitHub has given it job {job}"))),
            None => Ok(()),
        }
    }

    /// A guest is killed: one that would have put its finished job away by itself must not be.
    pub(super) fn judge_kill(&self, runner: &RunnerName) -> Result<(), Broken> {
        let Some(run) = self.host.runs.get(runner) else { return Ok(()) };
        let Vm::Live(guest) = &run.vm else { return Ok(()) };
        let finished = run.ran.and_then(|id| self.github.jobs.get(&id));
        let finished = finished.is_some_and(|job| matches!(job.at, At::Done(..)));
        if finished && !guest.hung && !self.checker.by_operator.contains(runner) {
            return Err(Broken(format!("{runner} is killed while it puts its job away")));
        }
        Ok(())
    }

    /// Whether a job runs on that should have been ended, as the daemon has been told for long enough.
    pub(super) fn judge_limits_that_never_come(&self, core: &Core) -> Result<(), Broken> {
        for (runner, (job, told)) in &self.checker.running {
            let has =
                self.github.jobs.get(job).map(|job| &job.at) == Some(&At::Running(runner.clone()));
            let Some(run) = self.host.runs.get(runner).filter(|_| has) else { continue };
            let Vm::Live(guest) = &run.vm else { continue };
            let machine = &self.plan.machines[run.machine];
            let Some(limit) = machine.job_timeout else { continue };
            // A run that was taken over while its machine type was not configured has no limit; where the clock jumps
            // between an order and its effect, it moves.
            let excused = guest.paused
                || core.runs().get(runner).is_none_or(|run| run.job_timeout.is_none())
                || *told < self.checker.jumped + MINUTE;
            if !excused && self.now > told + limit.as_millis() as u64 + LIMIT_LATE_MAX {
                let limit = limit.as_secs();
                return Err(Broken(format!(
                    "job {job} on {runner} was told of {} s ago, and may take {limit} s",
                    (self.now - told) / SECOND
                )));
            }
        }
        Ok(())
    }

    /// A guest is ended because its job takes too long.
    pub(super) fn judge_deadline(&self, runner: &RunnerName) -> Result<(), Broken> {
        let Some(run) = self.host.runs.get(runner) else { return Ok(()) };
        let Some(limit) = self.plan.machines[run.machine].job_timeout else {
            return Err(Broken(format!("{runner} has a deadline without a limit")));
        };
        let id = self.github.job_on(runner);
        let Vm::Live(guest) = &run.vm else { return Ok(()) };
        // GitHub took a job back, and there is no daemon to tell the supervisor of the one that it gave instead.
        if self.daemon.is_none() && guest.job_deadline.is_some_and(|(_, of)| of != id) {
            return Ok(());
        }
        let job = id.and_then(|id| self.github.jobs.get(&id));
        let Some(since) = job.and_then(|job| job.given.as_ref()) else { return Ok(()) };
        let ran = self.now - since.1;
        if ran + SECOND < limit.as_millis() as u64 {
            return Err(Broken(format!("{runner} is ended after {} s of its job", ran / SECOND)));
        }
        Ok(())
    }
}
