//! How a virtual machine comes to its end: retired, finished after its job, stopped by the operator,
//! or by itself.
//!
//! The rule of this module: before a power button is pressed or anything is killed, GitHub has
//! confirmed that the runner is deleted, so that it has no job and will get none. The operator's word
//! is the one exception.

use crate::command::{Command, KillReason, Level};
use crate::core::{Core, note};
use crate::event::{Deregistration, EndReason, Trouble, VmEnd};
use crate::model::{RunnerId, RunnerName, Timestamp};
use crate::timers::Timer;

use super::prepare::Failed;
use super::{
    ANSWER_MAX, DiskDebt, FinishStep, GONE_GRACE, KILL_RETRY, POWER_DOWN_GRACE, RETIRE_GRACE,
    RegistrationDebt, RetireReason, RunState, Settling, Vm, retry_at, retry_pause,
};

/// What a confirmed or refused deletion means for a run with a virtual machine.
enum Fence {
    /// Nothing more than what is known.
    Nothing,
    /// The runner is gone, but may have had a job before: the guest gets time for putting it away.
    LetFinish(Vm),
    /// The runner is gone and has no job: its guest can go.
    PowerDown(Vm),
    /// The same, for a guest that never got far enough to have a job.
    Kill(Vm),
    /// It has a job.
    Busy(Vm),
    /// GitHub is not to be reached; how often it was not before.
    Again(u32),
}

impl Core {
    /// The operator wants the run ended, whatever it does.
    pub(crate) fn stop_requested(
        &mut self,
        now: Timestamp,
        runner: &RunnerName,
        out: &mut Vec<Command>,
    ) {
        let Some(run) = self.runs.get(runner) else { return };
        let preparing = matches!(run.state, RunState::Preparing { .. });
        if !preparing && run.vm().is_none() {
            return;
        }
        out.push(note(Level::Warn, runner, "the operator ends this run".into()));
        if preparing {
            let why = "the operator ended it before it started".into();
            self.abandon(now, runner, why, Failed::Neither, out);
            return;
        }
        self.runs.change(runner, |run| {
            if let Some(vm) = run.vm().cloned() {
                let (job, step) = (run.job(), FinishStep::Killing(KillReason::Operator));
                run.state = RunState::Finishing { vm, job, step };
            }
        });
        self.run_timer(now, runner, out);
    }

    /// Retires a runner that has no known job: GitHub is asked to delete it first.
    pub(crate) fn retire(
        &mut self,
        now: Timestamp,
        runner: &RunnerName,
        why: RetireReason,
        out: &mut Vec<Command>,
    ) {
        let id = self.runs.change(runner, |run| match &run.state {
            RunState::Starting(vm)
            | RunState::Booting(vm)
            | RunState::Idle { vm, .. }
            | RunState::Busy { vm, job: None, .. } => {
                let (vm, id) = (vm.clone(), vm.runner_id);
                let ready = !matches!(run.state, RunState::Starting(_) | RunState::Booting(_));
                run.state = RunState::Retiring { vm, why, ready, failures: 0 };
                Some(id)
            }
            RunState::Preparing { .. }
            | RunState::Busy { job: Some(_), .. }
            | RunState::Retiring { .. }
            | RunState::Finishing { .. }
            | RunState::Settling(_) => None,
        });
        if let Some(Some(id)) = id {
            let text = match why {
                RetireReason::Surplus => "no job is left for this runner: retiring it",
                RetireReason::Forgotten => "GitHub has forgotten this runner: replacing it",
                RetireReason::IdleTimeout => "the runner waited too long for a job: retiring it",
                RetireReason::Silent => "the guest is not ready after all this time: retiring it",
                RetireReason::Unclear => {
                    "nobody knows what this runner is busy with: retiring it if GitHub lets go of it"
                }
            };
            out.push(note(Level::Info, runner, text.into()));
            self.ask_to_delete(now, runner, id, out);
        }
    }

    fn ask_to_delete(
        &mut self,
        now: Timestamp,
        runner: &RunnerName,
        id: RunnerId,
        out: &mut Vec<Command>,
    ) {
        out.extend(self.deregistration(runner, Some(id)));
        self.timers.set(Timer::Run(runner.clone()), now + ANSWER_MAX);
    }

    /// GitHub answered a deregistration.
    pub(super) fn deregistered(
        &mut self,
        now: Timestamp,
        runner: &RunnerName,
        result: Result<Deregistration, Trouble>,
        out: &mut Vec<Command>,
    ) {
        let Some(run) = self.runs.get(runner) else { return };
        if matches!(run.state, RunState::Settling(_)) {
            self.debt_answered(now, runner, result, out);
            return;
        }
        let job = run.job();
        match fence(&run.state, &result) {
            Fence::Nothing => self.poll_soon(now, runner, out),
            Fence::LetFinish(vm) => {
                let step = FinishStep::ShuttingDown;
                self.runs.change(runner, |run| run.state = RunState::Finishing { vm, job, step });
                self.timers.set(Timer::Run(runner.clone()), now + GONE_GRACE);
                self.poll_soon(now, runner, out);
            }
            Fence::PowerDown(vm) => {
                let text = "GitHub has let go of the runner: its guest's power button is pressed";
                out.push(note(Level::Info, runner, text.into()));
                let grace = if job.is_some() { POWER_DOWN_GRACE } else { RETIRE_GRACE };
                let step = FinishStep::PoweringDown;
                self.runs.change(runner, |run| run.state = RunState::Finishing { vm, job, step });
                out.push(Command::PowerDown { runner: runner.clone() });
                self.timers.set(Timer::Run(runner.clone()), now + grace);
            }
            Fence::Kill(vm) => {
                let step = FinishStep::Killing(KillReason::Fenced);
                self.runs.change(runner, |run| run.state = RunState::Finishing { vm, job, step });
                self.run_timer(now, runner, out);
            }
            Fence::Busy(vm) => {
                let text = "GitHub keeps this runner: it has a job. The run goes on".into();
                out.push(note(Level::Info, runner, text));
                self.runner_is_busy(now, runner, vm, out);
            }
            Fence::Again(failed) => {
                let Err(trouble) = result else { return };
                self.runs.change(runner, |run| match &mut run.state {
                    RunState::Retiring { failures, .. }
                    | RunState::Finishing { step: FinishStep::Fencing { failures }, .. } => {
                        *failures = failures.saturating_add(1);
                    }
                    _ => {}
                });
                let at = retry_at(now, retry_pause(failed), trouble.not_before);
                self.timers.set(Timer::Run(runner.clone()), at);
                let text = format!("could not retire the runner, trying again: {}", trouble.what);
                out.push(note(Level::Warn, runner, text));
            }
        }
    }

    /// The run has been in its state for long enough.
    pub(crate) fn run_timer(
        &mut self,
        now: Timestamp,
        runner: &RunnerName,
        out: &mut Vec<Command>,
    ) {
        let Some(run) = self.runs.get(runner) else { return };
        match &run.state {
            RunState::Starting(_) | RunState::Booting(_) => {
                self.retire(now, runner, RetireReason::Silent, out);
            }
            RunState::Idle { .. } => self.retire(now, runner, RetireReason::IdleTimeout, out),
            RunState::Busy { .. } => self.retire(now, runner, RetireReason::Unclear, out),
            RunState::Retiring { vm, .. } => {
                let id = vm.runner_id;
                self.ask_to_delete(now, runner, id, out);
            }
            RunState::Finishing { vm, job, step } => match *step {
                FinishStep::ShuttingDown | FinishStep::Fencing { .. } => {
                    let id = vm.runner_id;
                    if *step == FinishStep::ShuttingDown {
                        let text = "the guest does not shut down by itself: asking GitHub to let go \
                                    of its runner before it is ended";
                        out.push(note(Level::Warn, runner, text.into()));
                        self.finish_step(runner, FinishStep::Fencing { failures: 0 });
                    }
                    self.ask_to_delete(now, runner, id, out);
                }
                FinishStep::PoweringDown => {
                    let text = "the guest does not hear its power button: ending it";
                    out.push(note(Level::Warn, runner, text.into()));
                    let why = job.map_or(KillReason::Fenced, |_| KillReason::AfterJob);
                    self.finish_step(runner, FinishStep::Killing(why));
                    self.kill(now, runner, why, out);
                }
                FinishStep::Killing(why) => self.kill(now, runner, why, out),
            },
            RunState::Preparing { .. } | RunState::Settling(_) => {}
        }
    }

    fn kill(
        &mut self,
        now: Timestamp,
        runner: &RunnerName,
        why: KillReason,
        out: &mut Vec<Command>,
    ) {
        out.push(Command::Kill { runner: runner.clone(), why });
        self.timers.set(Timer::Run(runner.clone()), now + KILL_RETRY);
    }

    fn finish_step(&mut self, runner: &RunnerName, next: FinishStep) {
        self.runs.change(runner, |run| {
            if let RunState::Finishing { step, .. } = &mut run.state {
                *step = next;
            }
        });
    }

    /// The virtual machine is gone, or never came.
    pub(super) fn vm_exited(
        &mut self,
        now: Timestamp,
        runner: &RunnerName,
        end: VmEnd,
        out: &mut Vec<Command>,
    ) {
        let Some(run) = self.runs.get(runner) else { return };
        let Some(vm) = run.vm().cloned() else { return };
        let job = run.job().or_else(|| self.jobs.running_on(runner));
        if end.reason == EndReason::RestoreFailed {
            let machine = run.machine.clone();
            self.restore_failed(&machine, end.detail.as_deref().unwrap_or("no reason known"), out);
        } else if job.is_none() {
            self.ended_without_job(now, runner, &vm.image.image, &end, out);
        }
        let level = match end.reason {
            EndReason::GuestShutdown | EndReason::Killed => Level::Info,
            _ => Level::Warn,
        };
        let detail = end.detail.as_ref().map(|d| format!(": {d}")).unwrap_or_default();
        let lost = job.is_some() && self.is_unfinished(job) && level == Level::Warn;
        let lost = if lost { "; its job is lost with it, and GitHub will say so" } else { "" };
        let text = format!("the virtual machine ended ({}){detail}{lost}", end.reason);
        out.push(note(level, runner, text));
        let may_persist = end.reason == EndReason::GuestShutdown;
        let machine = self.runs.change(runner, |run| {
            run.times.vm_exited = Some(end.at);
            run.paused = None;
            run.state = RunState::Settling(Settling {
                since: now,
                end,
                job,
                image: Some(vm.image),
                restored: vm.restored,
                registration: RegistrationDebt::Settled,
                disk: DiskDebt::ReadingBack { failures: 0 },
            });
            run.machine.clone()
        });
        self.timers.clear(&Timer::Run(runner.clone()));
        self.owe_deregistration(now, runner, Some(vm.runner_id), out);
        match machine {
            Some(machine) if may_persist => {
                out.push(Command::ReadBack { runner: runner.clone(), machine });
            }
            _ => self.discard(runner, out),
        }
        // Where the news of the job's end is missing, GitHub is asked; a job that the runner had
        // not really taken is queued again after some minutes, and no webhook needs to say so.
        if self.is_unfinished(job) {
            self.watch_closely(now, runner);
            self.poll_soon(now, runner, out);
        }
    }

    /// The runner's removal, as a command.
    pub(super) fn deregistration(
        &self,
        runner: &RunnerName,
        id: Option<RunnerId>,
    ) -> Option<Command> {
        let repository = self.runs.get(runner)?.machine.repository().clone();
        Some(Command::Deregister { runner: runner.clone(), repository, id })
    }
}

fn fence(state: &RunState, result: &Result<Deregistration, Trouble>) -> Fence {
    use Deregistration::{AlreadyGone, Busy, Removed};
    match (state, result) {
        (RunState::Retiring { vm, .. }, Ok(Busy))
        | (RunState::Finishing { vm, step: FinishStep::Fencing { .. }, .. }, Ok(Busy)) => {
            Fence::Busy(vm.clone())
        }
        (RunState::Retiring { vm, ready: true, .. }, Ok(Removed))
        | (
            RunState::Finishing { vm, step: FinishStep::Fencing { .. }, .. },
            Ok(Removed | AlreadyGone),
        ) => Fence::PowerDown(vm.clone()),
        (RunState::Retiring { vm, ready: false, .. }, Ok(Removed | AlreadyGone)) => {
            Fence::Kill(vm.clone())
        }
        // GitHub deletes a runner by itself when its job is over. A runner never comes back, so even
        // an answer to an earlier question says that this one has no job.
        (RunState::Retiring { vm, ready: true, .. }, Ok(AlreadyGone))
        | (
            RunState::Starting(vm) | RunState::Booting(vm) | RunState::Idle { vm, .. },
            Ok(Removed | AlreadyGone),
        )
        | (RunState::Busy { vm, .. }, Ok(Removed)) => Fence::LetFinish(vm.clone()),
        (RunState::Retiring { failures, .. }, Err(_))
        | (RunState::Finishing { step: FinishStep::Fencing { failures }, .. }, Err(_)) => {
            Fence::Again(*failures)
        }
        // Its known job may be over, or still be running although somebody removed the runner:
        // asking for the job tells. Everything else was answered before, or does not matter now.
        (
            RunState::Preparing { .. }
            | RunState::Starting(_)
            | RunState::Booting(_)
            | RunState::Idle { .. }
            | RunState::Busy { .. }
            | RunState::Finishing { .. }
            | RunState::Settling(_),
            _,
        ) => Fence::Nothing,
    }
}
