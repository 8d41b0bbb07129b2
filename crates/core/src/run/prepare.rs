//! From the decision to start a run to the start of its virtual machine.

use crate::command::Command;
use crate::core::Core;
use crate::event::{EndReason, RegisterTrouble, Trouble, VmEnd};
use crate::model::{Bytes, MachineType, RunnerId, RunnerName, StartImage, Timestamp};
use crate::policy::Resources;

use super::{DiskDebt, RegistrationDebt, Run, RunState, RunTimes, Settling, Step, Vm};

/// Which half of a preparation failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failed {
    /// The disk: there is none.
    Image,
    /// The registration, and GitHub has no runner of this name.
    Registration,
    /// The registration, but GitHub may have a runner of this name.
    RegistrationPerhaps,
    /// Neither: the run is not wanted any more.
    Neither,
}

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
            hindrance: None,
            complaints: 0,
            disk_used: Bytes(0),
            paused: None,
        });
        let restore = self.may_restore(&machine.name);
        out.push(Command::Prepare {
            runner: runner.clone(),
            machine: machine.name.clone(),
            restore,
        });
        out.push(Command::Register { runner, machine: machine.name.clone() });
    }

    pub(super) fn prepared(
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
                self.start_vm_when_prepared(now, runner, out);
            }
            (RunState::Preparing { .. }, Err(trouble)) => {
                self.start_failed(now, runner, &trouble, out);
                self.abandon(now, runner, trouble.what, Failed::Image, out);
            }
            (RunState::Settling(Settling { disk: DiskDebt::AwaitingPreparation, .. }), _) => {
                self.discard(runner, out);
            }
            _ => {}
        }
    }

    pub(super) fn registered(
        &mut self,
        now: Timestamp,
        runner: &RunnerName,
        result: Result<RunnerId, RegisterTrouble>,
        out: &mut Vec<Command>,
    ) {
        let Some(run) = self.runs.get(runner) else { return };
        match (&run.state, result) {
            (RunState::Preparing { .. }, Ok(id)) => {
                self.runs.change(runner, |run| {
                    run.times.registered = Some(now);
                    if let RunState::Preparing { registration, .. } = &mut run.state {
                        *registration = Step::Done(id);
                    }
                });
                self.start_vm_when_prepared(now, runner, out);
            }
            (RunState::Preparing { .. }, Err(error)) => {
                let (failed, trouble) = match error {
                    RegisterTrouble::Refused(trouble) => (Failed::Registration, trouble),
                    RegisterTrouble::Unknown(trouble) => (Failed::RegistrationPerhaps, trouble),
                };
                self.start_failed(now, runner, &trouble, out);
                self.abandon(now, runner, trouble.what, failed, out);
            }
            // It was given up meanwhile; whatever GitHub made of it has to go.
            (
                RunState::Settling(Settling {
                    registration: RegistrationDebt::AwaitingRegistration,
                    ..
                }),
                result,
            ) => match result {
                Err(RegisterTrouble::Refused(_)) => self.owe_nothing(now, runner, out),
                Err(RegisterTrouble::Unknown(_)) => self.owe_deregistration(now, runner, None, out),
                Ok(id) => self.owe_deregistration(now, runner, Some(id), out),
            },
            _ => {}
        }
    }

    fn start_vm_when_prepared(
        &mut self,
        now: Timestamp,
        runner: &RunnerName,
        out: &mut Vec<Command>,
    ) {
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
            self.watch_boot(now, runner);
        }
    }

    /// Gives up a run that has no virtual machine yet, and undoes what was achieved of it.
    pub(super) fn abandon(
        &mut self,
        now: Timestamp,
        runner: &RunnerName,
        why: String,
        failed: Failed,
        out: &mut Vec<Command>,
    ) {
        let Some(Run { state: RunState::Preparing { image, registration }, .. }) =
            self.runs.get(runner)
        else {
            return;
        };
        let (start_image, registered) = (image.done().cloned(), registration.done().copied());
        let image_pending = start_image.is_none() && failed != Failed::Image;
        self.runs.change(runner, |run| {
            run.state = RunState::Settling(Settling {
                since: now,
                end: VmEnd { reason: EndReason::NeverStarted, detail: Some(why), at: now },
                job: None,
                image: start_image,
                restored: false,
                registration: RegistrationDebt::AwaitingRegistration,
                disk: DiskDebt::AwaitingPreparation,
            });
        });
        if !image_pending {
            self.discard(runner, out);
        }
        match (failed, registered) {
            (_, Some(id)) => self.owe_deregistration(now, runner, Some(id), out),
            (Failed::Registration, None) => self.owe_nothing(now, runner, out),
            (Failed::RegistrationPerhaps, None) => self.owe_deregistration(now, runner, None, out),
            (Failed::Image | Failed::Neither, None) => {}
        }
    }
}

impl<T> Step<T> {
    fn done(&self) -> Option<&T> {
        match self {
            Self::Asked => None,
            Self::Done(result) => Some(result),
        }
    }
}
