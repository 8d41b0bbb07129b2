//! While the virtual machine lives: boot, idle, busy, and what reports of jobs mean for it.

use crate::command::{Command, Level};
use crate::core::{Core, note};
use crate::jobs::Phase;
use crate::model::{Conclusion, JobId, RunnerName, Timestamp};
use crate::timers::Timer;

use super::{
    BOOT_MARGIN, BOOT_TIMEOUT_UNKNOWN, COMPLAINT_CHARS_MAX, COMPLAINTS_MAX, FinishStep, Run,
    RunState, SHUTDOWN_GRACE, UNKNOWN_JOB_MAX, Vm,
};

impl Core {
    pub(super) fn vm_started(&mut self, now: Timestamp, runner: &RunnerName, restored: bool) {
        let started = self.runs.change(runner, |run| {
            run.times.vm_started.get_or_insert(now);
            if let Some(vm) = run.vm_mut() {
                vm.restored = restored;
            }
            let RunState::Starting(vm) = &run.state else { return false };
            run.state = RunState::Booting(vm.clone());
            true
        });
        if started == Some(true) {
            if let Some(machine) = self.runs.get(runner).map(|run| run.machine.clone()) {
                self.count_start(&machine, self.may_restore(&machine), restored);
            }
            self.watch_boot(now, runner);
        }
    }

    /// The supervisor ends a guest that does not become ready. This is for the case that it cannot,
    /// or that the start itself is never answered.
    pub(super) fn watch_boot(&mut self, now: Timestamp, runner: &RunnerName) {
        let Some(run) = self.runs.get(runner) else { return };
        let configured = self.policy.machines.get(&run.machine);
        let boot_timeout = configured.map_or(BOOT_TIMEOUT_UNKNOWN, |machine| machine.boot_timeout);
        self.timers.set(Timer::Run(runner.clone()), now + boot_timeout + BOOT_MARGIN);
    }

    pub(super) fn guest_ready(&mut self, now: Timestamp, runner: &RunnerName) {
        let ready = self.runs.change(runner, |run| {
            run.times.guest_ready.get_or_insert(now);
            match &mut run.state {
                RunState::Booting(vm) | RunState::Starting(vm) => {
                    run.state = RunState::Idle { vm: vm.clone(), since: now };
                    true
                }
                RunState::Retiring { ready, .. } => {
                    *ready = true;
                    false
                }
                RunState::Preparing { .. }
                | RunState::Idle { .. }
                | RunState::Busy { .. }
                | RunState::Finishing { .. }
                | RunState::Settling(_) => false,
            }
        });
        if ready == Some(true) {
            self.guest_was_ready(runner);
            self.watch_idle(now, runner);
        }
    }

    pub(crate) fn watch_idle(&mut self, now: Timestamp, runner: &RunnerName) {
        let Some(run) = self.runs.get(runner) else { return };
        let timeout = match self.policy.machines.get(&run.machine) {
            Some(machine) => machine.idle_timeout,
            None => self.policy.timing.idle_timeout,
        };
        let at = now + timeout;
        self.timers.set(Timer::Run(runner.clone()), at);
    }

    /// A guest complains; it is not trusted with more than a few lines.
    pub(super) fn guest_complains(
        &mut self,
        runner: &RunnerName,
        text: &str,
        out: &mut Vec<Command>,
    ) {
        let text: String = text.chars().take(COMPLAINT_CHARS_MAX).collect();
        let heard = self.runs.change(runner, |run| {
            run.complaints = run.complaints.saturating_add(1);
            run.trouble = Some(text.clone());
            run.complaints <= COMPLAINTS_MAX
        });
        if heard == Some(true) {
            out.push(note(Level::Warn, runner, format!("the guest reports: {text}")));
        }
    }

    /// GitHub says that the runner is busy.
    pub(crate) fn runner_is_busy(
        &mut self,
        now: Timestamp,
        runner: &RunnerName,
        vm: Vm,
        out: &mut Vec<Command>,
    ) {
        self.runs.change(runner, |run| {
            run.state = RunState::Busy { vm, since: now, job: None };
            run.times.in_progress.get_or_insert(now);
        });
        match self.jobs.running_on(runner) {
            Some(job) => self.run_has_job(now, runner, job, out),
            // The polls will tell which job it is.
            None => {
                self.timers.set(Timer::Run(runner.clone()), now + UNKNOWN_JOB_MAX);
                self.poll_soon(now, runner, out);
            }
        }
    }

    /// A report says that this run's runner has a job.
    pub(crate) fn run_has_job(
        &mut self,
        now: Timestamp,
        runner: &RunnerName,
        id: JobId,
        out: &mut Vec<Command>,
    ) {
        let changed = self.runs.change(runner, |run| {
            let is_new = run.job() != Some(id);
            match &mut run.state {
                RunState::Booting(vm)
                | RunState::Starting(vm)
                | RunState::Idle { vm, .. }
                | RunState::Retiring { vm, .. } => {
                    run.state = RunState::Busy { vm: vm.clone(), since: now, job: Some(id) };
                }
                // Its earlier job was cancelled before the runner took it, and it has another one.
                RunState::Finishing {
                    vm,
                    job,
                    step: FinishStep::ShuttingDown | FinishStep::Fencing { .. },
                } if *job != Some(id) => {
                    run.state = RunState::Busy { vm: vm.clone(), since: now, job: Some(id) };
                }
                RunState::Busy { job, .. } | RunState::Finishing { job, .. } => *job = Some(id),
                RunState::Settling(settling) => settling.job = Some(id),
                RunState::Preparing { .. } => return None,
            }
            run.times.runner_online.get_or_insert(now);
            run.times.in_progress.get_or_insert(now);
            // An earlier daemon's deadline for the same job stays.
            let deadline = run.job_timeout.filter(|_| is_new).map(|timeout| now + timeout);
            Some((matches!(run.state, RunState::Busy { .. }), deadline))
        });
        if let Some(Some((busy, deadline))) = changed {
            if busy {
                self.timers.clear(&Timer::Run(runner.clone()));
                if let Some(at) = deadline {
                    out.push(Command::SetJobDeadline { runner: runner.clone(), at });
                }
            }
            out.push(Command::RecordJob { runner: runner.clone(), job: id });
            self.job_was_taken(runner);
        }
    }

    /// A report says that this run's runner does not have the job that it was known to have: it was
    /// not taken in time, another runner has it, or GitHub does not know it any more.
    pub(crate) fn run_lost_job(
        &mut self,
        now: Timestamp,
        runner: &RunnerName,
        id: JobId,
        out: &mut Vec<Command>,
    ) {
        let other = self.jobs.running_on(runner).filter(|other| *other != id);
        if self.runs.get(runner).is_some_and(|run| run.vm().is_some() && run.job() == Some(id)) {
            self.lift_deadline(runner, out);
        }
        let unclear = self.runs.change(runner, |run| match &mut run.state {
            RunState::Busy { since, job, .. } if *job == Some(id) => {
                (*since, *job) = (now, other);
                other.is_none()
            }
            RunState::Finishing { job, .. } if *job == Some(id) => {
                *job = other;
                false
            }
            RunState::Settling(settling) if settling.job == Some(id) => {
                settling.job = other;
                false
            }
            RunState::Preparing { .. }
            | RunState::Starting(_)
            | RunState::Booting(_)
            | RunState::Idle { .. }
            | RunState::Busy { .. }
            | RunState::Retiring { .. }
            | RunState::Finishing { .. }
            | RunState::Settling(_) => false,
        });
        if unclear == Some(true) {
            self.timers.set(Timer::Run(runner.clone()), now + UNKNOWN_JOB_MAX);
            self.poll_soon(now, runner, out);
        }
        // The end of the job that it really had may have been told while it was taken to have this one.
        if other.is_none()
            && self.runs.get(runner).is_some_and(|run| run.job().is_none())
            && let Some(had) = self.jobs.finished_on(runner)
        {
            self.run_finished_job(now, runner, had, out);
        }
    }

    /// A report says that the job of this run's runner is over.
    pub(crate) fn run_finished_job(
        &mut self,
        now: Timestamp,
        runner: &RunnerName,
        id: JobId,
        out: &mut Vec<Command>,
    ) {
        // A job that was cancelled may be one that the runner never took: one that it has finished counts more.
        let had = self.was_cancelled(Some(id)).then(|| self.jobs.finished_on(runner));
        let id = had.flatten().unwrap_or(id);
        let other = self.jobs.running_on(runner).filter(|other| *other != id);
        let replaces = |job: Option<JobId>| job != Some(id) && self.was_cancelled(job);
        let replaces = replaces(self.runs.get(runner).and_then(Run::job));
        let finishing = self.runs.change(runner, |run| {
            match &mut run.state {
                // A job that was cancelled before the runner took it, and it has another one.
                RunState::Busy { job: Some(job), .. } if *job != id && other == Some(*job) => false,
                RunState::Starting(vm)
                | RunState::Booting(vm)
                | RunState::Idle { vm, .. }
                | RunState::Busy { vm, .. }
                | RunState::Retiring { vm, .. } => {
                    let (vm, job, step) = (vm.clone(), Some(id), FinishStep::ShuttingDown);
                    run.state = RunState::Finishing { vm, job, step };
                    true
                }
                // Now that it is known to have had a job, it gets the time for putting it away.
                RunState::Finishing {
                    job,
                    step: step @ (FinishStep::ShuttingDown | FinishStep::Fencing { .. }),
                    ..
                } if replaces => {
                    (*job, *step) = (Some(id), FinishStep::ShuttingDown);
                    true
                }
                RunState::Finishing { job, .. } if replaces => {
                    *job = Some(id);
                    false
                }
                RunState::Settling(settling) if replaces => {
                    settling.job = Some(id);
                    false
                }
                RunState::Finishing { .. } | RunState::Settling(_) => false,
                RunState::Preparing { .. } => false,
            }
        });
        if self.runs.get(runner).is_some_and(|run| run.job() == Some(id)) {
            self.job_was_taken(runner);
            self.runs.change(runner, |run| *run.times.completed.get_or_insert(now));
            out.push(Command::RecordJob { runner: runner.clone(), job: id });
        }
        if finishing == Some(true) {
            if self.runs.get(runner).is_some_and(|run| run.job_timeout.is_some()) {
                self.lift_deadline(runner, out);
            }
            self.timers.set(Timer::Run(runner.clone()), now + SHUTDOWN_GRACE);
        }
        self.conclude(now, runner, out);
    }

    /// Whether this is no job that the runner really had, as far as is known: one that was cancelled,
    /// perhaps before the runner took it, or none.
    pub(super) fn was_cancelled(&self, job: Option<JobId>) -> bool {
        let entry = job.and_then(|id| self.jobs.get(id));
        match entry {
            Some(entry) => entry.job.conclusion == Some(Conclusion::Cancelled),
            None => job.is_none(),
        }
    }

    /// A deadline was that of a job: the next one must not suffer from it.
    fn lift_deadline(&self, runner: &RunnerName, out: &mut Vec<Command>) {
        out.push(Command::SetJobDeadline { runner: runner.clone(), at: Timestamp::NEVER });
    }

    /// Whether the news of the end of this job is still missing.
    pub(super) fn is_unfinished(&self, job: Option<JobId>) -> bool {
        job.and_then(|id| self.jobs.get(id)).is_none_or(|entry| entry.phase != Phase::Done)
    }
}
