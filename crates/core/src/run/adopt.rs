//! Taking over what an earlier daemon left behind.

use crate::command::{Command, Level};
use crate::core::{Core, note};
use crate::event::{AdoptedRun, AdoptedVm, EndReason, VmEnd};
use crate::model::{Bytes, JobId, Repository, RunnerId, RunnerName, StartImage, Timestamp};
use crate::policy::Resources;

use super::{DiskDebt, RegistrationDebt, Run, RunState, RunTimes, Settling, Vm};

/// What has to be done first for an adopted run.
enum First {
    WatchBoot,
    WatchIdle,
    AskForJob(JobId),
    /// The virtual machine is gone: the runner is to be removed, and this is left of its disk.
    Settle(Option<RunnerId>, Disk),
}

/// What is left of an adopted run's disk.
enum Disk {
    ToRead,
    ToRemove,
    Gone,
}

impl Core {
    /// Takes over a run that an earlier daemon left behind. Nothing is stopped here: a runner that
    /// GitHub may have given a job is left alone until GitHub says otherwise.
    pub(crate) fn adopt(&mut self, now: Timestamp, adopted: AdoptedRun, out: &mut Vec<Command>) {
        let AdoptedRun { runner, machine, ram, cpus, disk, created_at, vm, job } = adopted;
        if self.runs.get(&runner).is_some() {
            return;
        }
        let job = job.filter(|id| self.is_plausible(*id, &runner, machine.repository()));
        if let AdoptedVm::Live { image, ready: true, .. } = &vm {
            self.note_proven(&image.image);
        }
        out.push(note(Level::Info, &runner, taken_over(&vm, job)));
        let (state, first) = adopted_state(now, vm, job);
        if let Some(id) = job.filter(|id| self.jobs.get(*id).is_none()) {
            // GitHub gave the job to another runner when the first one did not take it in time.
            if let Some(first) = self.adopted_jobs.insert(id, runner.clone()) {
                self.run_lost_job(now, &first, id, out);
            }
        }
        let configured = self.policy.machines.get(&machine);
        self.runs.insert(Run {
            runner: runner.clone(),
            machine: machine.clone(),
            resources: Resources::of(ram, cpus, disk),
            job_timeout: configured.and_then(|machine| machine.job_timeout),
            state,
            times: RunTimes { created: created_at, ..RunTimes::default() },
            trouble: None,
            hindrance: None,
            complaints: 0,
            disk_used: Bytes(0),
            paused: None,
        });
        self.ensure_polled(machine.repository());
        match first {
            First::WatchBoot => self.watch_boot(now, &runner),
            First::WatchIdle => self.watch_idle(now, &runner),
            // What became of its job meanwhile no webhook will tell again.
            First::AskForJob(job) => {
                out.push(Command::FetchJob { repository: machine.repository().clone(), job });
            }
            First::Settle(id, disk) => {
                match disk {
                    Disk::ToRead => {
                        out.push(Command::ReadBack { runner: runner.clone(), machine });
                    }
                    Disk::ToRemove => self.discard(&runner, out),
                    Disk::Gone => {}
                }
                self.owe_deregistration(now, &runner, id, out);
            }
        }
        self.poll_soon(now, &runner, out);
    }

    /// Whether nothing that GitHub said contradicts that this runner has or had the job.
    fn is_plausible(&self, job: JobId, runner: &RunnerName, repository: &Repository) -> bool {
        self.jobs.get(job).is_none_or(|entry| {
            entry.job.runner.as_ref() == Some(runner) && &entry.job.repository == repository
        })
    }
}

/// What an earlier daemon left behind, in words.
fn taken_over(vm: &AdoptedVm, job: Option<JobId>) -> String {
    let what = match (vm, job) {
        (AdoptedVm::NotStarted, _) => "it had not started, and is put away".into(),
        (AdoptedVm::Live { .. }, Some(job)) => format!("its guest runs job {job}, and goes on"),
        (AdoptedVm::Live { ready: true, .. }, None) => "its guest waits for a job".into(),
        (AdoptedVm::Live { ready: false, .. }, None) => "its guest boots".into(),
        (AdoptedVm::Ended { end, .. }, _) => {
            format!("its virtual machine ended ({}), and is put away", end.reason)
        }
        (AdoptedVm::DiskSettled, _) => "only its runner is left to be removed from GitHub".into(),
    };
    format!("taken over from an earlier daemon: {what}")
}

fn adopted_state(now: Timestamp, vm: AdoptedVm, job: Option<JobId>) -> (RunState, First) {
    let never = || VmEnd {
        reason: EndReason::NeverStarted,
        detail: Some("the daemon was restarted while it was being prepared".into()),
        at: now,
    };
    let settling = |end, image: Option<StartImage>, disk| {
        RunState::Settling(Settling {
            since: now,
            end,
            job,
            image,
            restored: false,
            registration: RegistrationDebt::Settled,
            disk,
        })
    };
    match vm {
        AdoptedVm::Live { runner_id, image, restored, ready } => {
            let vm = Vm { runner_id, image, restored };
            match (job, ready) {
                (Some(id), _) => (RunState::Busy { vm, since: now, job }, First::AskForJob(id)),
                (None, true) => (RunState::Idle { vm, since: now }, First::WatchIdle),
                (None, false) => (RunState::Booting(vm), First::WatchBoot),
            }
        }
        AdoptedVm::NotStarted => {
            let state = settling(never(), None, DiskDebt::Discarding { failures: 0 });
            (state, First::Settle(None, Disk::ToRemove))
        }
        AdoptedVm::Ended { end, runner_id, image } => {
            let to_read = end.reason == EndReason::GuestShutdown;
            let state = settling(end, image, DiskDebt::ReadingBack { failures: 0 });
            let disk = if to_read { Disk::ToRead } else { Disk::ToRemove };
            (state, First::Settle(runner_id, disk))
        }
        AdoptedVm::DiskSettled => {
            let state = settling(never(), None, DiskDebt::Settled(None));
            (state, First::Settle(None, Disk::Gone))
        }
    }
}
