//! From a run's start to the end of its virtual machine.

use std::time::Duration;

use crate::command::{Command, KillReason, Level};
use crate::core::{Core, note};
use crate::event::{
    AdoptedRun, AdoptedVm, Deregistration, EndReason, RegisterTrouble, RunEvent, Trouble, VmEnd,
};
use crate::jobs::Phase;
use crate::model::{ImageRef, JobId, MachineType, RunnerId, RunnerName, StartImage, Timestamp};
use crate::policy::Resources;
use crate::timers::Timer;

use super::{
    DiskDebt, FinishStep, KILL_RETRY, POWER_DOWN_GRACE, RegistrationDebt, RetireReason, Run,
    RunState, RunTimes, SHUTDOWN_GRACE, Settling, Step, Vm, retry_pause,
};

/// First pause of a machine type after a start that failed; doubles up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_secs(1);
/// Longest pause of a machine type after failed starts.
const BACKOFF_MAX: Duration = Duration::from_secs(5 * 60);
/// Guests of one generation that have to stay silent, one after the other, before the generation
/// counts as broken. More than one: a busy host can make a single boot slow.
const BROKEN_AFTER: u32 = 2;
/// Time that the supervisor has on top of the guest's boot time before the core steps in.
const BOOT_MARGIN: Duration = Duration::from_secs(60);

impl Core {
    /// Starts a run of this machine type.
    pub(crate) fn start_run(
        &mut self,
        now: Timestamp,
        machine: &MachineType,
        out: &mut Vec<Command>,
    ) {
        let mut runner = RunnerName::from_random(&machine.name, self.random.bytes());
        while self.runs.get(&runner).is_some() {
            runner = RunnerName::from_random(&machine.name, self.random.bytes());
        }
        self.runs.insert(Run {
            runner: runner.clone(),
            machine: machine.name.clone(),
            resources: Resources::from(machine),
            job_timeout: machine.job_timeout,
            state: RunState::Preparing { image: Step::Asked, registration: Step::Asked },
            times: RunTimes { created: now, ..RunTimes::default() },
            trouble: None,
            paused: None,
        });
        let restore = self.may_restore(&machine.name);
        out.push(Command::Prepare { runner: runner.clone(), machine: machine.name.clone(), restore });
        out.push(Command::Register { runner, machine: machine.name.clone() });
    }

    /// Takes in what happened to a run. Events for runs that are gone, or that do not fit the state
    /// any more, are stale and dropped.
    pub(crate) fn run_event(
        &mut self,
        now: Timestamp,
        runner: &RunnerName,
        event: RunEvent,
        out: &mut Vec<Command>,
    ) {
        if self.runs.get(runner).is_none() {
            return;
        }
        match event {
            RunEvent::Prepared(result) => self.prepared(now, runner, result, out),
            RunEvent::Registered(result) => self.registered(now, runner, result, out),
            RunEvent::Deregistered(result) => self.deregistered(now, runner, result, out),
            RunEvent::VmStarted { restored } => self.vm_started(now, runner, restored),
            RunEvent::StartFailed(trouble) => {
                let end =
                    VmEnd { reason: EndReason::QemuFailed, detail: Some(trouble.what), at: now };
                self.vm_exited(now, runner, end, out);
            }
            RunEvent::GuestReady => self.guest_ready(now, runner),
            RunEvent::RunnerStarted => {
                self.runs.change(runner, |run| *run.times.runner_online.get_or_insert(now));
            }
            RunEvent::GuestError(text) => {
                out.push(note(Level::Warn, runner, format!("the guest reports: {text}")));
                self.runs.change(runner, |run| run.trouble = Some(text));
            }
            RunEvent::Paused(why) => {
                out.push(note(Level::Error, runner, format!("the guest is paused: {why}")));
                self.runs.change(runner, |run| run.paused = Some(why));
            }
            RunEvent::Resumed => {
                out.push(note(Level::Info, runner, "the guest goes on".into()));
                self.runs.change(runner, |run| run.paused = None);
            }
            RunEvent::VmExited(end) => self.vm_exited(now, runner, end, out),
            RunEvent::ReadBack(result) => self.read_back(now, runner, result, out),
            RunEvent::Promoted(result) => self.promoted(now, runner, result, out),
            RunEvent::PromotionRefused(why) => self.promotion_refused(runner, &why, out),
            RunEvent::Discarded(result) => self.discarded(now, runner, result, out),
        }
    }

    fn prepared(
        &mut self,
        now: Timestamp,
        runner: &RunnerName,
        result: Result<StartImage, Trouble>,
        out: &mut Vec<Command>,
    ) {
        let Some(run) = self.runs.get(runner) else { return };
        match (&run.state, result) {
            (RunState::Preparing { .. }, Ok(start)) => {
                self.runs.change(runner, |run| {
                    run.times.prepared = Some(now);
                    if let RunState::Preparing { image, .. } = &mut run.state {
                        *image = Step::Done(start);
                    }
                });
                self.start_vm_when_prepared(runner, out);
            }
            (RunState::Preparing { .. }, Err(trouble)) => {
                self.start_failed(now, runner, &trouble, out);
                self.abandon(now, runner, trouble.what, true, out);
            }
            (RunState::Settling(Settling { disk: DiskDebt::AwaitingPreparation, .. }), _) => {
                self.discard(runner, out);
            }
            _ => {}
        }
    }

    fn registered(
        &mut self,
        now: Timestamp,
        runner: &RunnerName,
        result: Result<RunnerId, RegisterTrouble>,
        out: &mut Vec<Command>,
    ) {
        let Some(run) = self.runs.get(runner) else { return };
        let awaited = matches!(
            &run.state,
            RunState::Settling(Settling {
                registration: RegistrationDebt::AwaitingRegistration,
                ..
            })
        );
        match (&run.state, result) {
            (RunState::Preparing { .. }, Ok(id)) => {
                self.runs.change(runner, |run| {
                    run.times.registered = Some(now);
                    if let RunState::Preparing { registration, .. } = &mut run.state {
                        *registration = Step::Done(id);
                    }
                });
                self.start_vm_when_prepared(runner, out);
            }
            (RunState::Preparing { .. }, Err(error)) => {
                let (RegisterTrouble::Refused(trouble) | RegisterTrouble::Unknown(trouble)) = error;
                self.start_failed(now, runner, &trouble, out);
                self.abandon(now, runner, trouble.what, false, out);
            }
            // It was given up meanwhile; whatever GitHub made of it has to go.
            (RunState::Settling(_), result) if awaited => {
                self.owe_deregistration(runner, result.ok(), out);
            }
            _ => {}
        }
    }

    fn start_vm_when_prepared(&mut self, runner: &RunnerName, out: &mut Vec<Command>) {
        let id = self.runs.change(runner, |run| match &run.state {
            RunState::Preparing { image: Step::Done(image), registration: Step::Done(id) } => {
                let (runner_id, image) = (*id, image.clone());
                run.state = RunState::Starting(Vm { runner_id, image, restored: false });
                Some(runner_id)
            }
            _ => None,
        });
        if let Some(Some(id)) = id {
            out.push(Command::StartVm { runner: runner.clone(), id });
        }
    }

    fn vm_started(&mut self, now: Timestamp, runner: &RunnerName, restored: bool) {
        let started = self.runs.change(runner, |run| {
            let RunState::Starting(vm) = &run.state else { return false };
            run.times.vm_started = Some(now);
            run.state = RunState::Booting(Vm { restored, ..vm.clone() });
            true
        });
        if started == Some(true) {
            if let Some(machine) = self.runs.get(runner).map(|run| run.machine.clone()) {
                self.count_start(&machine, self.may_restore(&machine), restored);
            }
            self.watch_boot(now, runner);
        }
    }

    /// The supervisor ends a guest that does not become ready. This is for the case that it cannot.
    fn watch_boot(&mut self, now: Timestamp, runner: &RunnerName) {
        let Some(run) = self.runs.get(runner) else { return };
        let boot_timeout = self
            .policy
            .machines
            .get(&run.machine)
            .map_or(self.policy.timing.idle_timeout, |machine| machine.boot_timeout);
        self.timers.set(Timer::Run(runner.clone()), now + boot_timeout + BOOT_MARGIN);
    }

    fn guest_ready(&mut self, now: Timestamp, runner: &RunnerName) {
        let ready = self.runs.change(runner, |run| {
            run.times.guest_ready.get_or_insert(now);
            let (RunState::Booting(vm) | RunState::Starting(vm)) = &run.state else { return false };
            run.state = RunState::Idle { vm: vm.clone(), since: now };
            true
        });
        if ready == Some(true) {
            self.start_succeeded(runner);
            let at = now + self.policy.timing.idle_timeout;
            self.timers.set(Timer::Run(runner.clone()), at);
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
            match &mut run.state {
                RunState::Booting(vm)
                | RunState::Starting(vm)
                | RunState::Idle { vm, .. }
                | RunState::Retiring { vm, .. } => {
                    run.state = RunState::Busy { vm: vm.clone(), since: now, job: Some(id) };
                }
                RunState::Busy { job, .. } | RunState::Finishing { job, .. } => *job = Some(id),
                RunState::Settling(settling) => settling.job = Some(id),
                RunState::Preparing { .. } => return None,
            }
            run.times.runner_online.get_or_insert(now);
            let since = *run.times.in_progress.get_or_insert(now);
            let deadline = run.job_timeout.map(|timeout| since + timeout);
            Some((matches!(run.state, RunState::Busy { .. }), deadline))
        });
        if let Some(Some((busy, deadline))) = changed {
            out.push(Command::RecordJob { runner: runner.clone(), job: id });
            if busy {
                self.start_succeeded(runner);
                self.timers.clear(&Timer::Run(runner.clone()));
                if let Some(at) = deadline {
                    out.push(Command::SetJobDeadline { runner: runner.clone(), at });
                }
            }
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
        let finishing = self.runs.change(runner, |run| {
            run.times.completed.get_or_insert(now);
            match &mut run.state {
                RunState::Starting(vm)
                | RunState::Booting(vm)
                | RunState::Idle { vm, .. }
                | RunState::Busy { vm, .. }
                | RunState::Retiring { vm, .. } => {
                    run.state = RunState::Finishing {
                        vm: vm.clone(),
                        job: Some(id),
                        step: FinishStep::ShuttingDown,
                    };
                    true
                }
                RunState::Finishing { job, .. } => {
                    *job = Some(id);
                    false
                }
                RunState::Settling(settling) => {
                    settling.job = Some(id);
                    false
                }
                RunState::Preparing { .. } => false,
            }
        });
        if finishing == Some(true) {
            out.push(Command::RecordJob { runner: runner.clone(), job: id });
            self.timers.set(Timer::Run(runner.clone()), now + SHUTDOWN_GRACE);
        }
        self.conclude(now, runner, out);
    }

    /// GitHub answered a deregistration.
    fn deregistered(
        &mut self,
        now: Timestamp,
        runner: &RunnerName,
        result: Result<Deregistration, Trouble>,
        out: &mut Vec<Command>,
    ) {
        let Some(run) = self.runs.get(runner) else { return };
        match (&run.state, result) {
            (RunState::Retiring { vm, .. }, Ok(Deregistration::Busy)) => {
                let vm = vm.clone();
                self.runs.change(runner, |run| {
                    run.state = RunState::Busy { vm, since: now, job: None };
                    run.times.in_progress.get_or_insert(now);
                });
                let text = "GitHub keeps this runner: it has a job already. The run goes on".into();
                out.push(note(Level::Info, runner, text));
                self.poll_soon(now, runner, out);
            }
            (RunState::Retiring { vm, .. }, Ok(_)) => {
                let vm = vm.clone();
                let step = FinishStep::Killing(KillReason::Fenced);
                self.runs.change(runner, |run| {
                    run.state = RunState::Finishing { vm, job: None, step };
                });
                self.unscheduled = true;
                self.run_timer(now, runner, out);
            }
            (RunState::Retiring { failures, .. }, Err(trouble)) => {
                let pause = retry_pause(*failures);
                let at = (now + pause).max(trouble.not_before.unwrap_or_default());
                self.runs.change(runner, |run| {
                    if let RunState::Retiring { failures, .. } = &mut run.state {
                        *failures += 1;
                    }
                });
                self.timers.set(Timer::Run(runner.clone()), at);
                let text = format!("could not retire the runner, trying again: {}", trouble.what);
                out.push(note(Level::Warn, runner, text));
            }
            (RunState::Settling(_), result) => self.debt_answered(now, runner, result, out),
            // It got a job while GitHub was being asked: it stays. What GitHub thinks of it now is
            // found out by asking for its jobs.
            _ => self.poll_soon(now, runner, out),
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
            RunState::Booting(_) | RunState::Idle { .. } => {
                self.retire(runner, RetireReason::IdleTimeout, out);
            }
            RunState::Retiring { vm, .. } => {
                out.extend(self.deregistration(runner, Some(vm.runner_id)));
            }
            RunState::Finishing { step, .. } => {
                let (step, command, pause) = match *step {
                    FinishStep::ShuttingDown => (
                        FinishStep::PoweringDown,
                        Command::PowerDown { runner: runner.clone() },
                        POWER_DOWN_GRACE,
                    ),
                    FinishStep::PoweringDown => {
                        let why = KillReason::AfterJob;
                        let kill = Command::Kill { runner: runner.clone(), why };
                        (FinishStep::Killing(why), kill, KILL_RETRY)
                    }
                    FinishStep::Killing(why) => {
                        let kill = Command::Kill { runner: runner.clone(), why };
                        (FinishStep::Killing(why), kill, KILL_RETRY)
                    }
                };
                self.runs.change(runner, |run| {
                    if let RunState::Finishing { step: current, .. } = &mut run.state {
                        *current = step;
                    }
                });
                out.push(command);
                self.timers.set(Timer::Run(runner.clone()), now + pause);
            }
            RunState::Preparing { .. }
            | RunState::Starting(_)
            | RunState::Busy { .. }
            | RunState::Settling(_) => {}
        }
    }

    /// The virtual machine is gone, or never came.
    fn vm_exited(
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
        } else if job.is_none() && matches!(run.state, RunState::Starting(_) | RunState::Booting(_)) {
            self.boot_failed(now, runner, &vm.image.image, &end, out);
        }
        let level = match end.reason {
            EndReason::GuestShutdown => Level::Info,
            EndReason::Killed => Level::Info,
            _ => Level::Warn,
        };
        let detail = end.detail.as_ref().map(|d| format!(": {d}")).unwrap_or_default();
        out.push(note(
            level,
            runner,
            format!("the virtual machine ended ({}){detail}", end.reason),
        ));
        let may_persist = end.reason == EndReason::GuestShutdown;
        self.runs.change(runner, |run| {
            run.times.vm_exited = Some(end.at);
            run.paused = None;
            run.state = RunState::Settling(Settling {
                end,
                job,
                image: Some(vm.image),
                restored: vm.restored,
                registration: RegistrationDebt::Settled,
                disk: DiskDebt::ReadingBack,
            });
        });
        self.timers.clear(&Timer::Run(runner.clone()));
        self.unscheduled = true;
        self.owe_deregistration(runner, Some(vm.runner_id), out);
        if may_persist {
            let machine = self.runs.get(runner).map(|run| run.machine.clone());
            out.extend(
                machine.map(|machine| Command::ReadBack { runner: runner.clone(), machine }),
            );
        } else {
            self.discard(runner, out);
        }
        // Where the news of the job's end is missing, GitHub is asked.
        if job.and_then(|id| self.jobs.get(id)).is_none_or(|entry| entry.phase != Phase::Done) {
            self.poll_soon(now, runner, out);
        }
    }

    /// Gives up a run that has no virtual machine yet.
    fn abandon(
        &mut self,
        now: Timestamp,
        runner: &RunnerName,
        why: String,
        image_failed: bool,
        out: &mut Vec<Command>,
    ) {
        let Some(Run { state: RunState::Preparing { image, registration }, .. }) =
            self.runs.get(runner)
        else {
            return;
        };
        let start_image = match image {
            Step::Done(image) => Some(image.clone()),
            Step::Asked => None,
        };
        let (image_pending, registered) = (
            start_image.is_none() && !image_failed,
            match registration {
                Step::Done(id) => Some(*id),
                Step::Asked => None,
            },
        );
        // Only the half that failed has answered; the other half may still be under way.
        let registration_pending = image_failed && registered.is_none();
        self.runs.change(runner, |run| {
            run.state = RunState::Settling(Settling {
                end: VmEnd { reason: EndReason::NeverStarted, detail: Some(why), at: now },
                job: None,
                image: start_image,
                restored: false,
                registration: RegistrationDebt::AwaitingRegistration,
                disk: DiskDebt::AwaitingPreparation,
            });
        });
        self.unscheduled = true;
        if !registration_pending {
            self.owe_deregistration(runner, registered, out);
        }
        if !image_pending {
            self.discard(runner, out);
        }
    }

    fn start_failed(
        &mut self,
        now: Timestamp,
        runner: &RunnerName,
        trouble: &Trouble,
        out: &mut Vec<Command>,
    ) {
        let Some(machine) = self.runs.get(runner).map(|run| run.machine.clone()) else { return };
        let health = self.health.entry(machine.clone()).or_default();
        let pause = BACKOFF_MIN.saturating_mul(1 << health.failures.min(16)).min(BACKOFF_MAX);
        let until = (now + pause).max(trouble.not_before.unwrap_or_default());
        health.failures = health.failures.saturating_add(1);
        health.paused_until = Some(until);
        health.trouble = Some(trouble.what.clone());
        self.timers.set(Timer::Backoff(machine), until);
        let seconds = until.since(now).as_secs();
        let text = format!("the run could not start, next try in {seconds} s: {}", trouble.what);
        out.push(note(Level::Error, runner, text));
    }

    fn start_succeeded(&mut self, runner: &RunnerName) {
        let Some(machine) = self.runs.get(runner).map(|run| run.machine.clone()) else { return };
        if self.health.remove(&machine).is_some() {
            self.timers.clear(&Timer::Backoff(machine));
            self.unscheduled = true;
        }
    }

    /// The guest ended before it was ready: its image may be at fault.
    fn boot_failed(
        &mut self,
        now: Timestamp,
        runner: &RunnerName,
        image: &ImageRef,
        end: &VmEnd,
        out: &mut Vec<Command>,
    ) {
        let detail = end.detail.as_ref().map(|d| format!(" ({d})")).unwrap_or_default();
        let what = format!("its guest did not become ready: {}{detail}", end.reason);
        self.start_failed(now, runner, &Trouble::new(what.clone()), out);
        // Where the host is at fault, the image is not.
        let suspicious = matches!(
            end.reason,
            EndReason::BootTimeout
                | EndReason::GuestReset
                | EndReason::GuestPanicked
                | EndReason::GuestShutdown
        );
        let ImageRef::Machine { machine, generation } = image else { return };
        let Some(run) = self.runs.get(runner) else { return };
        let Some(health) = self.health.get_mut(&run.machine).filter(|_| suspicious) else { return };
        let count = match &health.unready {
            Some((before, count)) if before == image => count + 1,
            Some(_) | None => 1,
        };
        health.unready = Some((image.clone(), count));
        if count >= BROKEN_AFTER {
            health.unready = None;
            let why = format!("{count} guests in a row: {what}");
            let text = format!("{image} is taken out of use: {why}");
            out.push(note(Level::Error, runner, text));
            let (machine, generation) = (machine.clone(), *generation);
            out.push(Command::MarkBroken { machine, generation, why });
        }
    }

    /// Takes over a run that an earlier daemon left behind.
    pub(crate) fn adopt(&mut self, now: Timestamp, adopted: AdoptedRun, out: &mut Vec<Command>) {
        let AdoptedRun { runner, machine, ram, cpus, disk, created_at, vm, job } = adopted;
        if self.runs.get(&runner).is_some() {
            return;
        }
        let never = || VmEnd {
            reason: EndReason::NeverStarted,
            detail: Some("the daemon was restarted while it was being prepared".into()),
            at: now,
        };
        let settling = |end, image, disk| {
            RunState::Settling(Settling {
                end,
                job,
                image,
                restored: false,
                registration: RegistrationDebt::Settled,
                disk,
            })
        };
        let mut next: Option<(Option<RunnerId>, Next)> = None;
        let state = match vm {
            AdoptedVm::Live { runner_id, image, restored, ready } => {
                let vm = Vm { runner_id, image, restored };
                match (job, ready) {
                    (Some(_), _) => RunState::Busy { vm, since: now, job },
                    (None, true) => RunState::Idle { vm, since: now },
                    (None, false) => RunState::Booting(vm),
                }
            }
            AdoptedVm::NotStarted => {
                next = Some((None, Next::Discard));
                settling(never(), None, DiskDebt::Discarding { failures: 0 })
            }
            AdoptedVm::Ended { end, runner_id, image } => {
                let persist = end.reason == EndReason::GuestShutdown;
                next = Some((runner_id, if persist { Next::ReadBack } else { Next::Discard }));
                settling(end, image, DiskDebt::ReadingBack)
            }
            AdoptedVm::DiskSettled => {
                next = Some((None, Next::Nothing));
                settling(never(), None, DiskDebt::Settled(None))
            }
        };
        let configured = self.policy.machines.get(&machine);
        let job_timeout = configured.and_then(|machine| machine.job_timeout);
        let (booting, idle) =
            (matches!(state, RunState::Booting(_)), matches!(state, RunState::Idle { .. }));
        self.runs.insert(Run {
            runner: runner.clone(),
            machine: machine.clone(),
            resources: Resources::of(ram, cpus, disk),
            job_timeout,
            state,
            times: RunTimes { created: created_at, ..RunTimes::default() },
            trouble: None,
            paused: None,
        });
        self.unscheduled = true;
        if booting {
            self.watch_boot(now, &runner);
        }
        if idle {
            let at = now + self.policy.timing.idle_timeout;
            self.timers.set(Timer::Run(runner.clone()), at);
        }
        if let Some((id, next)) = next {
            self.owe_deregistration(&runner, id, out);
            match next {
                Next::ReadBack => out.push(Command::ReadBack { runner: runner.clone(), machine }),
                Next::Discard => self.discard(&runner, out),
                Next::Nothing => {}
            }
        }
        self.poll_soon(now, &runner, out);
    }
}

/// What an adopted run's disk needs.
enum Next {
    ReadBack,
    Discard,
    Nothing,
}
