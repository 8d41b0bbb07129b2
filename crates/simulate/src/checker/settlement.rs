//! Every run is settled, once, and images come from where they may come from.

use forrest_core::Command;
use forrest_core::event::{EndReason, Persist};
use forrest_core::model::{Conclusion, RunnerName};

use crate::world::World;
use crate::world::host::{Disk, Vm};

use super::Broken;

/// Failed promotions, or attempts to read its job-config disk, after which a disk may be given up.
const KEEP_MIN: u32 = 15;

impl World {
    /// A disk is to become an image.
    pub(super) fn judge_promotion(&self, runner: &RunnerName) -> Result<(), Broken> {
        let Some(run) = self.host.runs.get(runner) else {
            return Err(Broken(format!("{runner} is to be promoted, but there is no such run")));
        };
        let Vm::Ended(Some(end)) = &run.vm else {
            return Err(Broken(format!("{runner} is to be promoted, but its guest: {:?}", run.vm)));
        };
        if end.reason != EndReason::GuestShutdown {
            return Err(Broken(format!("{runner} is to be promoted after {}", end.reason)));
        }
        if run.persist != Persist::Valid {
            return Err(Broken(format!("{runner} is to be promoted with {:?}", run.persist)));
        }
        let told = run.ran.and_then(|job| self.checker.concluded.get(&job));
        match told {
            Some(Conclusion::Success) | None => Ok(()),
            Some(other) => {
                Err(Broken(format!("{runner} is to be promoted although its job is {other:?}")))
            }
        }
    }

    /// A disk is to be removed.
    pub(super) fn judge_removal(&mut self, runner: &RunnerName) -> Result<(), Broken> {
        if let Some(claim) = self.checker.claims.get_mut(runner) {
            claim.memory = false;
        }
        let Some(run) = self.host.runs.get(runner) else { return Ok(()) };
        if let Vm::Live(_) = run.vm {
            return Err(Broken(format!("the disk of {runner} is to be removed under its guest")));
        }
        if let Some(1..KEEP_MIN) = self.checker.unread.get(runner) {
            return Err(Broken(format!("the disk of {runner} is to be removed unread")));
        }
        let told = run.ran.and_then(|job| self.checker.concluded.get(&job));
        let failed = self.checker.failed_promotions.get(runner).copied().unwrap_or_default();
        let wanted = self.checker.valid.contains(runner)
            && told == Some(&Conclusion::Success)
            && run.disk == Disk::Forked
            && !self.checker.refused.contains(runner)
            && failed < KEEP_MIN;
        if wanted {
            return Err(Broken(format!(
                "the disk of {runner} is to be removed, but was to be kept"
            )));
        }
        Ok(())
    }

    /// A run that was forgotten is over: nothing is to be done for it any more.
    pub(super) fn judge_memory(&self, command: &Command) -> Result<(), Broken> {
        let runner = match command {
            Command::Prepare { runner, .. }
            | Command::Register { runner, .. }
            | Command::Deregister { runner, .. }
            | Command::StartVm { runner, .. }
            | Command::SetJobDeadline { runner, .. }
            | Command::PowerDown { runner }
            | Command::Kill { runner, .. }
            | Command::ReadBack { runner, .. }
            | Command::Promote { runner, .. }
            | Command::Discard { runner, .. }
            | Command::Forget { runner, .. }
            | Command::RecordJob { runner, .. } => runner,
            Command::RemoveOrphan { .. }
            | Command::MarkBroken { .. }
            | Command::CheckSnapshot { .. }
            | Command::BuildSnapshot { .. }
            | Command::CancelSnapshot { .. }
            | Command::DropSnapshot { .. }
            | Command::Poll { .. }
            | Command::FetchJob { .. }
            | Command::RepairDeliveries
            | Command::Reclaim { .. }
            | Command::Note(_) => return Ok(()),
        };
        if self.checker.forgotten.contains(runner) {
            return Err(Broken(format!("{runner} was forgotten, but: {command:?}")));
        }
        Ok(())
    }

    /// A run is to be forgotten.
    pub(super) fn judge_settlement(&self, runner: &RunnerName) -> Result<(), Broken> {
        if self.github.runners.contains_key(runner) && !self.checker.late.contains(runner) {
            return Err(Broken(format!("{runner} is forgotten, but GitHub still has its runner")));
        }
        let Some(run) = self.host.runs.get(runner) else { return Ok(()) };
        if let Vm::Live(_) = run.vm {
            return Err(Broken(format!("{runner} is forgotten, but its guest lives")));
        }
        if run.disk == Disk::Forked {
            return Err(Broken(format!("{runner} is forgotten, but its disk is there")));
        }
        Ok(())
    }
}
