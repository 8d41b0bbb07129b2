//! One run: a virtual machine with one runner for one job, from its first step to its last.
//!
//! ```text
//! Preparing ──▶ Starting ──▶ Booting ──▶ Idle ◀──▶ Busy ──▶ Finishing ──┐
//!     │             │           │         │ ▲       ▲ │          ▲      │ the VM
//!     │             │           └───┐     ▼ │       │ │          │      │ exited
//!     │             └───────────▶ Retiring ─────────┘◀┘          │      │
//!     │                          (deregister) ───────────────────┘      │
//!     ▼                                                                 ▼
//!     └──────────────────────────────────────────────────────────▶ Settling ──▶ forgotten
//! ```
//!
//! - `Preparing`: the disk is forked and the runner registered, side by side. When both are done the
//!   virtual machine starts; when one fails, whatever the other achieves is undone in `Settling`.
//! - `Booting` ends when the guest says that it is ready. The supervisor ends a guest that does not.
//! - `Idle` ends when a report names this runner, when GitHub refuses to delete it (`Busy`, with the
//!   job not known yet), or when it has waited for too long (`Retiring`).
//! - `Busy` ends when a report says that its job is over. Where the news is that the runner does not
//!   have the job, or GitHub only ever said "busy", the polls decide: `Idle` or `Retiring`.
//! - `Retiring`: GitHub is asked to delete the runner. Only its confirmation leads to `Finishing`;
//!   a refusal leads to `Busy`.
//! - `Finishing`: the virtual machine is to end. After a job the guest gets time to shut down by
//!   itself. One that does not is fenced (GitHub is asked to delete the runner, and must not refuse),
//!   its power button is pressed, then it is killed.
//! - `Settling`: the virtual machine is gone. Two things are owed, each until it succeeds: the
//!   runner's deregistration and the disk's promotion or removal.
//!
//! From every state with a virtual machine, its exit leads to `Settling`. Nothing but a confirmed
//! deletion of the runner, the operator, and the supervisor's own time limits stops a guest.

mod adopt;
mod ending;
mod events;
mod live;
mod prepare;
mod settle;
mod table;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::command::KillReason;
use crate::event::{EndReason, VmEnd};
use crate::model::{
    Bytes, Generation, Job, JobId, MachineTypeName, RunnerId, RunnerName, StartImage, Timestamp,
};
use crate::policy::Resources;

pub use table::{Held, Runs};

/// Time a guest has for shutting down by itself after its job: a persisted build tree takes a while
/// to be written back.
pub const SHUTDOWN_GRACE: Duration = Duration::from_secs(10 * 60);
/// Time a guest has for shutting down by itself when its runner turns out to be gone: it may have had
/// a job that no report told of.
pub const GONE_GRACE: Duration = Duration::from_secs(2 * 60);
/// Time a guest has after its power button was pressed, before it is killed.
pub const POWER_DOWN_GRACE: Duration = Duration::from_secs(2 * 60);
/// The same for a guest that waited for a job and had none.
pub const RETIRE_GRACE: Duration = Duration::from_secs(30);
/// Time that the supervisor has on top of the guest's boot time before the core steps in.
pub const BOOT_MARGIN: Duration = Duration::from_secs(60);
/// Boot time of a guest whose machine type is not configured any more.
pub const BOOT_TIMEOUT_UNKNOWN: Duration = Duration::from_secs(15 * 60);
/// A question to GitHub that has no answer after this time is asked again.
pub const ANSWER_MAX: Duration = Duration::from_secs(10 * 60);
/// How long a runner can be busy without anybody knowing with what, before GitHub is asked to delete
/// it. GitHub refuses while it has a job.
pub const UNKNOWN_JOB_MAX: Duration = Duration::from_secs(30 * 60);
/// Pause between two attempts to kill; the first one is enough unless the supervisor is stuck.
pub const KILL_RETRY: Duration = Duration::from_secs(30);
/// First pause between two attempts to settle something; doubles up to [`RETRY_MAX`].
pub const RETRY_MIN: Duration = Duration::from_secs(2);
/// Longest pause between two attempts to settle something.
pub const RETRY_MAX: Duration = Duration::from_secs(5 * 60);
/// The longest pause that the other side can ask for. GitHub's own limits are per hour.
pub const NOT_BEFORE_MAX: Duration = Duration::from_secs(2 * 60 * 60);
/// Attempts to read a job-config disk, or to promote a disk, before the disk is given up and removed: some
/// 40 minutes.
pub const KEEP_ATTEMPTS: u32 = 15;
/// How long a disk with a valid token waits at least for the news that its job succeeded.
pub const CONCLUSION_WAIT: Duration = Duration::from_secs(2 * 60);
/// How long it waits at most, when GitHub does not answer or calls the job unfinished.
pub const CONCLUSION_WAIT_MAX: Duration = Duration::from_secs(60 * 60);
/// Complaints of one guest that are passed on.
pub const COMPLAINTS_MAX: u32 = 100;
/// Characters of a guest's complaint that are passed on.
pub const COMPLAINT_CHARS_MAX: usize = 500;

/// A run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Its name, and its runner's.
    pub runner: RunnerName,
    /// Its machine type.
    pub machine: MachineTypeName,
    /// What it holds until its virtual machine is gone.
    pub resources: Resources,
    /// How long its job may take.
    pub job_timeout: Option<Duration>,
    /// Where it is in its life.
    pub state: RunState,
    /// When it reached which point.
    pub times: RunTimes,
    /// What its guest complained about last, for people.
    pub trouble: Option<String>,
    /// What keeps it from being put away, for people: what was tried last, and failed.
    pub hindrance: Option<String>,
    /// How often its guest complained.
    pub complaints: u32,
    /// Space that its disk was last seen to take.
    pub disk_used: Bytes,
    /// Whether the host paused its guest, and why.
    pub paused: Option<String>,
}

/// Where a run is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum RunState {
    /// Disk and registration are under way.
    Preparing {
        /// The disk.
        image: Step<StartImage>,
        /// The registration.
        registration: Step<RunnerId>,
    },
    /// The virtual machine was asked to start.
    Starting(Vm),
    /// The virtual machine runs; the guest was not heard yet.
    Booting(Vm),
    /// The guest is ready; the runner waits for a job or is about to.
    Idle {
        /// The virtual machine.
        vm: Vm,
        /// Since when.
        since: Timestamp,
    },
    /// The runner has a job.
    Busy {
        /// The virtual machine.
        vm: Vm,
        /// Since when.
        since: Timestamp,
        /// Which job; `None` when GitHub only said that it has one.
        job: Option<JobId>,
    },
    /// GitHub was asked to delete the runner.
    Retiring {
        /// The virtual machine.
        vm: Vm,
        /// Why.
        why: RetireReason,
        /// Whether the guest had been ready: it may have had a job that nobody knows of.
        ready: bool,
        /// Attempts so far that failed.
        failures: u32,
    },
    /// The virtual machine is to end.
    Finishing {
        /// The virtual machine.
        vm: Vm,
        /// The job it had, where known.
        job: Option<JobId>,
        /// How far its end is.
        step: FinishStep,
    },
    /// The virtual machine is gone.
    Settling(Settling),
}

/// Something under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step<T> {
    /// Asked for.
    Asked,
    /// Achieved.
    Done(T),
}

/// A started virtual machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vm {
    /// GitHub's id of its runner.
    pub runner_id: RunnerId,
    /// The image it started from.
    pub image: StartImage,
    /// Whether it was restored from a snapshot; `false` until it runs.
    pub restored: bool,
}

/// Why a runner is retired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RetireReason {
    /// More runners than jobs, and others need the room.
    Surplus,
    /// It waited too long for a job.
    IdleTimeout,
    /// GitHub does not list it any more.
    Forgotten,
    /// Its guest is not ready long after it should have been.
    Silent,
    /// Nobody knows what it is busy with.
    Unclear,
}

/// How far a virtual machine's end is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishStep {
    /// The guest is expected to shut down by itself.
    ShuttingDown,
    /// It did not; GitHub was asked to delete its runner.
    Fencing {
        /// Attempts so far that failed.
        failures: u32,
    },
    /// Its power button was pressed.
    PoweringDown,
    /// It is being killed.
    Killing(KillReason),
}

/// What is still owed after a virtual machine's end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settling {
    /// Since when it is settled.
    pub since: Timestamp,
    /// How it ended.
    pub end: VmEnd,
    /// The job it had, where known.
    pub job: Option<JobId>,
    /// The image it started from, where it got that far.
    pub image: Option<StartImage>,
    /// Whether it had been restored from a snapshot.
    pub restored: bool,
    /// The runner's removal from GitHub.
    pub registration: RegistrationDebt,
    /// The disk's promotion or removal.
    pub disk: DiskDebt,
}

/// A runner's removal from GitHub.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RegistrationDebt {
    /// The registration itself is still under way; its answer comes first.
    AwaitingRegistration,
    /// GitHub was asked to delete it.
    Asked {
        /// GitHub's id; without one it is looked up by name.
        id: Option<RunnerId>,
        /// Attempts so far that failed.
        failures: u32,
    },
    /// A pause until the next attempt.
    Pausing {
        /// GitHub's id.
        id: Option<RunnerId>,
        /// Attempts so far that failed.
        failures: u32,
    },
    /// Done.
    Settled,
}

/// A disk's promotion or removal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskDebt {
    /// Its preparation is still under way; its answer comes first.
    AwaitingPreparation,
    /// The job-config disk is being read.
    ReadingBack {
        /// Attempts so far that failed.
        failures: u32,
    },
    /// The token is right; whether the job succeeded is not known yet.
    AwaitingConclusion,
    /// It becomes a machine image.
    Promoting {
        /// Attempts so far that failed.
        failures: u32,
    },
    /// It is being removed.
    Discarding {
        /// Attempts so far that failed.
        failures: u32,
    },
    /// Done: the generation it became, or `None` when it was removed.
    Settled(Option<Generation>),
}

/// When a run reached which point of its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RunTimes {
    /// The run was created.
    pub created: Timestamp,
    /// GitHub knew the runner.
    pub registered: Option<Timestamp>,
    /// The disk was forked.
    pub prepared: Option<Timestamp>,
    /// The virtual machine ran.
    pub vm_started: Option<Timestamp>,
    /// The guest was ready for its job configuration.
    pub guest_ready: Option<Timestamp>,
    /// The runner started in the guest, or GitHub saw it.
    pub runner_online: Option<Timestamp>,
    /// The first report that it had a job.
    pub in_progress: Option<Timestamp>,
    /// The report that its job was over.
    pub completed: Option<Timestamp>,
    /// The virtual machine was gone.
    pub vm_exited: Option<Timestamp>,
    /// Everything was settled.
    pub gone: Option<Timestamp>,
}

impl Run {
    /// Whether a queued job can still get this runner.
    pub fn is_supply(&self) -> bool {
        match &self.state {
            RunState::Preparing { .. }
            | RunState::Starting(_)
            | RunState::Booting(_)
            | RunState::Idle { .. } => true,
            RunState::Busy { .. }
            | RunState::Retiring { .. }
            | RunState::Finishing { .. }
            | RunState::Settling(_) => false,
        }
    }

    /// Whether its virtual machine's RAM and CPUs are still taken.
    pub fn holds_memory(&self) -> bool {
        !matches!(self.state, RunState::Settling(_))
    }

    /// Whether its disk still takes space.
    pub fn holds_disk(&self) -> bool {
        !matches!(&self.state, RunState::Settling(Settling { disk: DiskDebt::Settled(_), .. }))
    }

    /// Whether it never had a guest and GitHub could not be made to remove its runner yet.
    pub fn is_owing(&self) -> bool {
        match &self.state {
            RunState::Settling(settling) => match settling.registration {
                RegistrationDebt::Asked { failures, .. }
                | RegistrationDebt::Pausing { failures, .. } => {
                    failures > 0 && settling.end.reason == EndReason::NeverStarted
                }
                RegistrationDebt::AwaitingRegistration | RegistrationDebt::Settled => false,
            },
            RunState::Preparing { .. }
            | RunState::Starting(_)
            | RunState::Booting(_)
            | RunState::Idle { .. }
            | RunState::Busy { .. }
            | RunState::Retiring { .. }
            | RunState::Finishing { .. } => false,
        }
    }

    /// Whether it has a job, and which is known.
    pub fn has_known_job(&self) -> bool {
        matches!(&self.state, RunState::Busy { job: Some(_), .. })
    }

    /// Whether it is past its job and its disk may still become an image.
    pub fn may_leave_image(&self) -> bool {
        match &self.state {
            RunState::Finishing { step, .. } => match step {
                FinishStep::ShuttingDown
                | FinishStep::Fencing { .. }
                | FinishStep::PoweringDown => true,
                FinishStep::Killing(_) => false,
            },
            RunState::Settling(settling) => match settling.disk {
                DiskDebt::ReadingBack { .. }
                | DiskDebt::AwaitingConclusion
                | DiskDebt::Promoting { .. } => true,
                DiskDebt::AwaitingPreparation
                | DiskDebt::Discarding { .. }
                | DiskDebt::Settled(_) => false,
            },
            RunState::Preparing { .. }
            | RunState::Starting(_)
            | RunState::Booting(_)
            | RunState::Idle { .. }
            | RunState::Busy { .. }
            | RunState::Retiring { .. } => false,
        }
    }

    /// Whether it is not clear what its runner does, so that GitHub has to be asked more often.
    pub fn is_unclear(&self) -> bool {
        match &self.state {
            RunState::Busy { job, .. } => job.is_none(),
            RunState::Settling(settling) => settling.disk == DiskDebt::AwaitingConclusion,
            RunState::Preparing { .. }
            | RunState::Starting(_)
            | RunState::Booting(_)
            | RunState::Idle { .. }
            | RunState::Retiring { .. }
            | RunState::Finishing { .. } => false,
        }
    }

    /// The job it has or had, where known.
    pub fn job(&self) -> Option<JobId> {
        match &self.state {
            RunState::Preparing { .. }
            | RunState::Starting(_)
            | RunState::Booting(_)
            | RunState::Idle { .. }
            | RunState::Retiring { .. } => None,
            RunState::Busy { job, .. } | RunState::Finishing { job, .. } => *job,
            RunState::Settling(settling) => settling.job,
        }
    }

    /// The image it started from, where it got that far.
    pub fn image(&self) -> Option<&StartImage> {
        match &self.state {
            RunState::Preparing { image: Step::Done(image), .. } => Some(image),
            RunState::Preparing { image: Step::Asked, .. } => None,
            RunState::Starting(vm)
            | RunState::Booting(vm)
            | RunState::Idle { vm, .. }
            | RunState::Busy { vm, .. }
            | RunState::Retiring { vm, .. }
            | RunState::Finishing { vm, .. } => Some(&vm.image),
            RunState::Settling(settling) => settling.image.as_ref(),
        }
    }

    /// Whether it was restored from a snapshot.
    pub fn restored(&self) -> bool {
        match &self.state {
            RunState::Preparing { .. } => false,
            RunState::Starting(vm)
            | RunState::Booting(vm)
            | RunState::Idle { vm, .. }
            | RunState::Busy { vm, .. }
            | RunState::Retiring { vm, .. }
            | RunState::Finishing { vm, .. } => vm.restored,
            RunState::Settling(settling) => settling.restored,
        }
    }

    /// The virtual machine, while there is one.
    pub fn vm(&self) -> Option<&Vm> {
        match &self.state {
            RunState::Preparing { .. } | RunState::Settling(_) => None,
            RunState::Starting(vm)
            | RunState::Booting(vm)
            | RunState::Idle { vm, .. }
            | RunState::Busy { vm, .. }
            | RunState::Retiring { vm, .. }
            | RunState::Finishing { vm, .. } => Some(vm),
        }
    }

    /// The virtual machine, to be changed.
    pub(crate) fn vm_mut(&mut self) -> Option<&mut Vm> {
        match &mut self.state {
            RunState::Preparing { .. } | RunState::Settling(_) => None,
            RunState::Starting(vm)
            | RunState::Booting(vm)
            | RunState::Idle { vm, .. }
            | RunState::Busy { vm, .. }
            | RunState::Retiring { vm, .. }
            | RunState::Finishing { vm, .. } => Some(vm),
        }
    }

    /// The state's name, for people and scripts.
    pub fn state_name(&self) -> &'static str {
        match &self.state {
            RunState::Preparing { .. } => "preparing",
            RunState::Starting(_) => "starting",
            RunState::Booting(_) => "booting",
            RunState::Idle { .. } => "idle",
            RunState::Busy { .. } => "busy",
            RunState::Retiring { .. } => "retiring",
            RunState::Finishing { .. } => "finishing",
            RunState::Settling(settling) => match settling.disk {
                DiskDebt::AwaitingPreparation => "cleaning-up",
                DiskDebt::ReadingBack { .. } | DiskDebt::AwaitingConclusion => "reading-back",
                DiskDebt::Promoting { .. } => "promoting",
                DiskDebt::Discarding { .. } => "discarding",
                DiskDebt::Settled(_) => "deregistering",
            },
        }
    }
}

/// A run that is over, as people and reports want to know of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinishedRun {
    /// Its name.
    pub runner: RunnerName,
    /// Its machine type.
    pub machine: MachineTypeName,
    /// The job it ran, where known.
    pub job: Option<Job>,
    /// The image it started from.
    pub start_image: Option<StartImage>,
    /// The generation its disk became; `None` when it was removed.
    pub result: Option<Generation>,
    /// Whether it was restored from a snapshot.
    pub restored: bool,
    /// How its virtual machine ended.
    pub end: EndReason,
    /// More on that, for people.
    pub detail: Option<String>,
    /// When it reached which point.
    pub times: RunTimes,
    /// When its job was first seen queued.
    pub job_queued: Option<Timestamp>,
}

/// The pause before attempt number `failures + 1`: doubles from [`RETRY_MIN`] to [`RETRY_MAX`].
pub fn retry_pause(failures: u32) -> Duration {
    RETRY_MIN.saturating_mul(1 << failures.min(16)).min(RETRY_MAX)
}

/// When to try again: after the pause, or when the other side said. That is bounded too: a broken
/// answer must not silence Forrest for ever.
pub(crate) fn retry_at(
    now: Timestamp,
    pause: Duration,
    not_before: Option<Timestamp>,
) -> Timestamp {
    (now + pause).max(not_before.unwrap_or_default().min(now + NOT_BEFORE_MAX))
}
