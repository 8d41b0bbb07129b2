//! From the end of a run's virtual machine to the end of the run: what is owed, until it is done.

use crate::command::{Command, Level};
use crate::core::{Core, FINISHED_RUNS_MAX, note};
use crate::event::{Deregistration, Persist, Trouble};
use crate::jobs::Phase;
use crate::model::{Conclusion, Generation, RunnerId, RunnerName, Timestamp};
use crate::timers::Timer;

use super::{
    ANSWER_MAX, CONCLUSION_WAIT, CONCLUSION_WAIT_MAX, DiskDebt, FinishedRun, KEEP_ATTEMPTS,
    RegistrationDebt, RunState, Settling, retry_at, retry_pause,
};

impl Core {
    fn settling<T>(
        &mut self,
        runner: &RunnerName,
        change: impl FnOnce(&mut Settling) -> T,
    ) -> Option<T> {
        self.runs
            .change(runner, |run| match &mut run.state {
                RunState::Settling(settling) => Some(change(settling)),
                RunState::Preparing { .. }
                | RunState::Starting(_)
                | RunState::Booting(_)
                | RunState::Idle { .. }
                | RunState::Busy { .. }
                | RunState::Retiring { .. }
                | RunState::Finishing { .. } => None,
            })
            .flatten()
    }

    /// Says what keeps the run from being put away, in the log and in the status.
    fn hindered(
        &mut self,
        level: Level,
        runner: &RunnerName,
        text: String,
        out: &mut Vec<Command>,
    ) {
        self.runs.change(runner, |run| run.hindrance = Some(text.clone()));
        out.push(note(level, runner, text));
    }

    /// From now on the runner is to be removed from GitHub until it is.
    pub(super) fn owe_deregistration(
        &mut self,
        now: Timestamp,
        runner: &RunnerName,
        id: Option<RunnerId>,
        out: &mut Vec<Command>,
    ) {
        self.settling(runner, |settling| {
            settling.registration = RegistrationDebt::Asked { id, failures: 0 };
        });
        out.extend(self.deregistration(runner, id));
        self.timers.set(Timer::Registration(runner.clone()), now + ANSWER_MAX);
    }

    /// GitHub has no such runner.
    pub(super) fn owe_nothing(
        &mut self,
        now: Timestamp,
        runner: &RunnerName,
        out: &mut Vec<Command>,
    ) {
        self.settling(runner, |settling| settling.registration = RegistrationDebt::Settled);
        self.forget_when_settled(now, runner, out);
    }

    /// The pause is over, or an answer did not come: another try.
    pub(crate) fn ask_for_deregistration(
        &mut self,
        now: Timestamp,
        runner: &RunnerName,
        out: &mut Vec<Command>,
    ) {
        let unanswered = self.settling(runner, |settling| {
            matches!(settling.registration, RegistrationDebt::Asked { .. })
        });
        if unanswered == Some(true) {
            let text = "GitHub does not answer to the runner's removal: asking again";
            out.push(note(Level::Warn, runner, text.into()));
        }
        let id = self.settling(runner, |settling| match settling.registration {
            RegistrationDebt::Pausing { id, failures }
            | RegistrationDebt::Asked { id, failures } => {
                settling.registration = RegistrationDebt::Asked { id, failures };
                Some(id)
            }
            RegistrationDebt::AwaitingRegistration | RegistrationDebt::Settled => None,
        });
        if let Some(Some(id)) = id {
            out.extend(self.deregistration(runner, id));
            self.timers.set(Timer::Registration(runner.clone()), now + ANSWER_MAX);
        }
    }

    pub(super) fn debt_answered(
        &mut self,
        now: Timestamp,
        runner: &RunnerName,
        result: Result<Deregistration, Trouble>,
        out: &mut Vec<Command>,
    ) {
        let retry_at = self.settling(runner, |settling| {
            let RegistrationDebt::Asked { id, failures } = settling.registration else {
                return None;
            };
            let not_before = match &result {
                Ok(Deregistration::Removed | Deregistration::AlreadyGone) => {
                    settling.registration = RegistrationDebt::Settled;
                    return None;
                }
                // The virtual machine is gone; GitHub notices after some minutes.
                Ok(Deregistration::Busy) => None,
                Err(trouble) => trouble.not_before,
            };
            let failed = failures.saturating_add(1);
            settling.registration = RegistrationDebt::Pausing { id, failures: failed };
            Some(retry_at(now, retry_pause(failures), not_before))
        });
        if let Some(Some(at)) = retry_at {
            if let Err(trouble) = result {
                let text = format!("could not deregister, trying again: {}", trouble.what);
                self.hindered(Level::Warn, runner, text, out);
            }
            self.timers.set(Timer::Registration(runner.clone()), at);
        }
        self.forget_when_settled(now, runner, out);
    }

    pub(super) fn read_back(
        &mut self,
        now: Timestamp,
        runner: &RunnerName,
        result: Result<Persist, Trouble>,
        out: &mut Vec<Command>,
    ) {
        let failures = self.settling(runner, |settling| match settling.disk {
            DiskDebt::ReadingBack { failures } => Some(failures),
            DiskDebt::AwaitingPreparation
            | DiskDebt::AwaitingConclusion
            | DiskDebt::Promoting { .. }
            | DiskDebt::Discarding { .. }
            | DiskDebt::Settled(_) => None,
        });
        let Some(failures) = failures.flatten() else { return };
        let (level, text) = match result {
            Ok(Persist::Valid) => {
                self.settling(runner, |s| s.disk = DiskDebt::AwaitingConclusion);
                self.timers.set(Timer::Disk(runner.clone()), now + CONCLUSION_WAIT);
                self.conclude(now, runner, out);
                if self.runs.get(runner).is_some_and(super::Run::is_unclear) {
                    self.poll_soon(now, runner, out);
                }
                return;
            }
            Ok(Persist::Absent) => {
                (Level::Info, "no persistence token: the disk is removed".into())
            }
            Ok(Persist::WrongToken) => {
                (Level::Warn, "the persistence token is wrong: the disk is removed".into())
            }
            Ok(Persist::Damaged) => (
                Level::Warn,
                "the job-config disk cannot be made sense of: the disk is removed".into(),
            ),
            // The host's trouble, not the guest's: the token may be there.
            Err(trouble) if failures + 1 < KEEP_ATTEMPTS => {
                self.settling(runner, |s| {
                    s.disk = DiskDebt::ReadingBack { failures: failures + 1 };
                });
                let text =
                    format!("could not read the job-config disk, trying again: {}", trouble.what);
                self.hindered(Level::Error, runner, text, out);
                self.timers.set(Timer::Disk(runner.clone()), now + retry_pause(failures));
                return;
            }
            Err(trouble) => (Level::Error, format!("the disk is removed unread: {}", trouble.what)),
        };
        out.push(note(level, runner, text));
        self.discard(runner, out);
    }

    fn read_back_again(&mut self, runner: &RunnerName, out: &mut Vec<Command>) {
        let Some(run) = self.runs.get(runner) else { return };
        let (runner, machine) = (runner.clone(), run.machine.clone());
        out.push(Command::ReadBack { runner, machine });
    }

    /// Promotes or discards a disk with a valid token as soon as its job's conclusion is known. A job that was cancelled
    /// may be one that the runner never took: the news of the one that it had may still come.
    pub(crate) fn conclude(&mut self, now: Timestamp, runner: &RunnerName, out: &mut Vec<Command>) {
        let Some(run) = self.runs.get(runner) else { return };
        if !matches!(
            run.state,
            RunState::Settling(Settling { disk: DiskDebt::AwaitingConclusion, .. })
        ) {
            return;
        }
        match self.job_succeeded(runner) {
            Some(true) => self.promote(runner, out),
            Some(false) if !self.was_cancelled(run.job()) => self.discard_failed(runner, out),
            Some(false) | None => return,
        }
        self.forget_when_settled(now, runner, out);
    }

    /// Whether the run's job succeeded; `None` while GitHub does not say.
    fn job_succeeded(&self, runner: &RunnerName) -> Option<bool> {
        let entry = self.jobs.get(self.runs.get(runner)?.job()?)?;
        if entry.phase != Phase::Done {
            return None;
        }
        match entry.job.conclusion {
            Some(Conclusion::Success) | None => Some(true),
            Some(
                Conclusion::Failure
                | Conclusion::Cancelled
                | Conclusion::Skipped
                | Conclusion::TimedOut
                | Conclusion::Other,
            ) => Some(false),
        }
    }

    fn discard_failed(&mut self, runner: &RunnerName, out: &mut Vec<Command>) {
        let text =
            "the persistence token is right, but the job did not succeed: the disk is removed";
        out.push(note(Level::Warn, runner, text.into()));
        self.discard(runner, out);
    }

    fn promote(&mut self, runner: &RunnerName, out: &mut Vec<Command>) {
        self.timers.clear(&Timer::Disk(runner.clone()));
        self.settling(runner, |settling| {
            let failures = match settling.disk {
                DiskDebt::Promoting { failures } => failures,
                DiskDebt::AwaitingPreparation
                | DiskDebt::ReadingBack { .. }
                | DiskDebt::AwaitingConclusion
                | DiskDebt::Discarding { .. }
                | DiskDebt::Settled(_) => 0,
            };
            settling.disk = DiskDebt::Promoting { failures };
        });
        let Some(run) = self.runs.get(runner) else { return };
        let job =
            run.job().and_then(|id| self.jobs.get(id)).map(|entry| Box::new(entry.job.clone()));
        out.push(Command::Promote {
            runner: runner.clone(),
            machine: run.machine.clone(),
            parent: run.image().map(|start| start.image.clone()),
            job,
        });
    }

    pub(super) fn promoted(
        &mut self,
        now: Timestamp,
        runner: &RunnerName,
        result: Result<Generation, Trouble>,
        out: &mut Vec<Command>,
    ) {
        let before = self.settling(runner, |settling| match (&settling.disk, &result) {
            (DiskDebt::Promoting { .. }, Ok(generation)) => {
                settling.disk = DiskDebt::Settled(Some(*generation));
                None
            }
            (&DiskDebt::Promoting { failures: before }, Err(_)) => {
                settling.disk = DiskDebt::Promoting { failures: before.saturating_add(1) };
                Some(before)
            }
            _ => None,
        });
        match (before.flatten(), result) {
            (None, Ok(generation)) => {
                let text = format!("its disk is now generation {generation} of the machine image");
                out.push(note(Level::Info, runner, text));
                if let Some(machine) = self.runs.get(runner).map(|run| run.machine.clone()) {
                    self.taken_out.remove(&machine);
                    self.image_changed(&machine, out);
                }
            }
            (Some(before), Err(trouble)) if before + 1 >= KEEP_ATTEMPTS => {
                let text = format!("could not keep the disk, it is removed: {}", trouble.what);
                out.push(note(Level::Error, runner, text));
                self.discard(runner, out);
            }
            (Some(before), Err(trouble)) => {
                let text = format!("could not keep the disk, trying again: {}", trouble.what);
                self.hindered(Level::Error, runner, text, out);
                self.timers.set(Timer::Disk(runner.clone()), now + retry_pause(before));
            }
            (None, Err(_)) | (Some(_), Ok(_)) => {}
        }
        self.forget_when_settled(now, runner, out);
    }

    /// The configuration does not let this job's disk become a machine image.
    pub(super) fn promotion_refused(
        &mut self,
        runner: &RunnerName,
        why: &str,
        out: &mut Vec<Command>,
    ) {
        let promoting = self.settling(runner, |s| matches!(s.disk, DiskDebt::Promoting { .. }));
        if promoting == Some(true) {
            let text = format!("the disk is removed although its token is right: {why}");
            out.push(note(Level::Warn, runner, text));
            self.discard(runner, out);
        }
    }

    /// Removes the run's disk, whatever was to become of it before.
    pub(crate) fn discard(&mut self, runner: &RunnerName, out: &mut Vec<Command>) {
        self.timers.clear(&Timer::Disk(runner.clone()));
        self.settling(runner, |settling| {
            let failures = match settling.disk {
                DiskDebt::Discarding { failures } => failures,
                DiskDebt::AwaitingPreparation
                | DiskDebt::ReadingBack { .. }
                | DiskDebt::AwaitingConclusion
                | DiskDebt::Promoting { .. }
                | DiskDebt::Settled(_) => 0,
            };
            settling.disk = DiskDebt::Discarding { failures };
        });
        let Some(run) = self.runs.get(runner) else { return };
        out.push(Command::Discard { runner: runner.clone(), machine: run.machine.clone() });
    }

    pub(super) fn discarded(
        &mut self,
        now: Timestamp,
        runner: &RunnerName,
        result: Result<(), Trouble>,
        out: &mut Vec<Command>,
    ) {
        let before = self.settling(runner, |settling| match (&settling.disk, &result) {
            (DiskDebt::Discarding { .. }, Ok(())) => {
                settling.disk = DiskDebt::Settled(None);
                None
            }
            (&DiskDebt::Discarding { failures: before }, Err(_)) => {
                settling.disk = DiskDebt::Discarding { failures: before.saturating_add(1) };
                Some(before)
            }
            _ => None,
        });
        if let (Some(Some(before)), Err(trouble)) = (before, result) {
            let text = format!("could not remove the disk, trying again: {}", trouble.what);
            self.hindered(Level::Error, runner, text, out);
            self.timers.set(Timer::Disk(runner.clone()), now + retry_pause(before));
        }
        self.forget_when_settled(now, runner, out);
    }

    pub(crate) fn disk_timer(
        &mut self,
        now: Timestamp,
        runner: &RunnerName,
        out: &mut Vec<Command>,
    ) {
        let Some(disk) = self.settling(runner, |settling| settling.disk.clone()) else { return };
        match disk {
            // Cancelled, and of no other job has been heard; or what GitHub did not say before the first try to promote,
            // it has said by now.
            DiskDebt::AwaitingConclusion | DiskDebt::Promoting { .. }
                if self.job_succeeded(runner) == Some(false) =>
            {
                self.discard_failed(runner, out);
            }
            DiskDebt::AwaitingConclusion => self.promote_unless_news_may_come(now, runner, out),
            DiskDebt::Promoting { .. } => self.promote(runner, out),
            DiskDebt::Discarding { .. } => self.discard(runner, out),
            DiskDebt::ReadingBack { .. } => self.read_back_again(runner, out),
            DiskDebt::AwaitingPreparation | DiskDebt::Settled(_) => {}
        }
        self.forget_when_settled(now, runner, out);
    }

    /// Whoever has the token is trusted; only the news of the success is missing. It is waited for as
    /// long as GitHub calls the job unfinished or cannot be asked, within limits.
    fn promote_unless_news_may_come(
        &mut self,
        now: Timestamp,
        runner: &RunnerName,
        out: &mut Vec<Command>,
    ) {
        let Some(run) = self.runs.get(runner) else { return };
        let RunState::Settling(Settling { since, job, .. }) = &run.state else { return };
        let (last_poll, _) = self.polls.state(run.machine.repository());
        let asked_since = last_poll.is_some_and(|at| at > *since);
        let known = job.is_some_and(|id| self.jobs.get(id).is_some());
        let waited_enough = *since + CONCLUSION_WAIT_MAX <= now;
        if !waited_enough && (known || !asked_since) {
            self.timers.set(Timer::Disk(runner.clone()), now + CONCLUSION_WAIT);
            self.poll_soon(now, runner, out);
            return;
        }
        let text = "GitHub does not say how the job ended; its token is right, so the disk is kept";
        out.push(note(Level::Warn, runner, text.into()));
        self.promote(runner, out);
    }

    fn forget_when_settled(&mut self, now: Timestamp, runner: &RunnerName, out: &mut Vec<Command>) {
        let settled = self.settling(runner, |settling| {
            settling.registration == RegistrationDebt::Settled
                && matches!(settling.disk, DiskDebt::Settled(_))
        });
        if settled != Some(true) {
            return;
        }
        let Some(run) = self.runs.remove(runner) else { return };
        let RunState::Settling(Settling {
            end,
            job,
            image,
            restored,
            disk: DiskDebt::Settled(result),
            ..
        }) = run.state
        else {
            unreachable!("only settled runs come here")
        };
        for timer in [Timer::Run, Timer::Registration, Timer::Disk] {
            self.timers.clear(&timer(runner.clone()));
        }
        out.push(Command::Forget { runner: runner.clone(), machine: run.machine.clone() });
        // Also the one that an earlier daemon knew it to have, when it turned out to have another one.
        self.adopted_jobs.retain(|_, holder| holder != runner);
        let entry = job.and_then(|id| self.jobs.get(id));
        let finished = FinishedRun {
            runner: run.runner,
            machine: run.machine,
            job_queued: entry.map(|entry| entry.queued_at),
            job: entry.map(|entry| entry.job.clone()),
            start_image: image,
            result,
            restored,
            end: end.reason,
            detail: end.detail,
            times: super::RunTimes { gone: Some(now), ..run.times },
        };
        let repository = finished.machine.repository().clone();
        if self.finished.len() == FINISHED_RUNS_MAX {
            self.finished.pop_front();
        }
        self.finished.push_back(finished);
        self.stop_polling_unless_needed(&repository);
    }
}
