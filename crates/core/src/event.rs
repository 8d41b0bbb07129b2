//! What the core is told.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::model::{
    Bytes, Generation, Job, JobId, MachineTypeName, Repository, RunnerId, RunnerName, StartImage,
    Timestamp,
};
use crate::policy::Policy;
use crate::snapshots::BuildTrouble;

/// Something that happened outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The configuration was loaded or re-loaded.
    PolicyChanged(Policy),
    /// GitHub said something of one job.
    JobReported {
        /// What it said.
        job: Job,
        /// How the report came.
        source: Source,
    },
    /// GitHub does not know this job any more.
    JobMissing {
        /// Where it was.
        repository: Repository,
        /// Which one.
        job: JobId,
        /// When GitHub was asked.
        asked_at: Timestamp,
    },
    /// The answer to [`Command::Poll`](crate::Command::Poll); the jobs it found came before it as
    /// `JobReported`.
    Polled {
        /// Which repository.
        repository: Repository,
        /// Every runner registered there, or what kept the poll from completing.
        result: Result<Vec<Runner>, Trouble>,
        /// When GitHub was asked.
        asked_at: Timestamp,
    },
    /// The answer to [`Command::RepairDeliveries`](crate::Command::RepairDeliveries): how many
    /// deliveries GitHub was asked to send again.
    DeliveriesRepaired(Result<u32, Trouble>),
    /// Free space and what the runs' disks hold of it.
    HostMeasured {
        /// Free space on the file system of `base_dir`.
        free_disk: Bytes,
        /// Space that each run's disk takes already.
        run_disks: BTreeMap<RunnerName, Bytes>,
    },
    /// A run that an earlier daemon left behind.
    Adopted(Box<AdoptedRun>),
    /// Something happened to one run.
    Run {
        /// Which one.
        runner: RunnerName,
        /// What.
        event: RunEvent,
    },
    /// The answer to [`Command::CheckSnapshot`](crate::Command::CheckSnapshot): whether a snapshot is
    /// there that fits what a run would start from now. Comes unasked, too, where a run that was to be
    /// restored found none.
    SnapshotChecked {
        /// Which machine type.
        machine: MachineTypeName,
        /// Whether it fits, or why there can be none.
        fits: Result<bool, Trouble>,
    },
    /// The answer to [`Command::BuildSnapshot`](crate::Command::BuildSnapshot).
    SnapshotBuilt {
        /// Which machine type.
        machine: MachineTypeName,
        /// Whether it was built.
        result: Result<(), BuildTrouble>,
    },
    /// The operator wants a run ended, whatever it does.
    StopRequested {
        /// Which one.
        runner: RunnerName,
    },
    /// The operator wants no new runs (`true`), or wants them again.
    DrainRequested(bool),
    /// The operator wants a machine type's snapshot built, again where there is one.
    SnapshotBuildRequested {
        /// Whose.
        machine: MachineTypeName,
    },
    /// The operator wants a machine type's snapshot gone.
    SnapshotRemovalRequested {
        /// Whose.
        machine: MachineTypeName,
    },
    /// Time passed.
    Tick,
}

/// How a report of a job came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// By webhook: may be late, doubled or out of order.
    Webhook,
    /// By asking: true as of the time given.
    Asked(Timestamp),
}

/// A runner in GitHub's list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runner {
    /// GitHub's id.
    pub id: RunnerId,
    /// Its name, where Forrest (this host or another) gave it.
    pub name: RunnerName,
    /// Whether it is connected.
    pub online: bool,
    /// Whether it has a job.
    pub busy: bool,
}

/// Something that happened to one run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunEvent {
    /// The run's disk is forked and its seed disks are written.
    Prepared(Result<StartImage, Trouble>),
    /// The runner is registered.
    Registered(Result<RunnerId, RegisterTrouble>),
    /// The answer to a deregistration.
    Deregistered(Result<Deregistration, Trouble>),
    /// The virtual machine runs.
    VmStarted {
        /// Whether it was restored from a snapshot.
        restored: bool,
    },
    /// The virtual machine could not be started.
    StartFailed(Trouble),
    /// The guest is up and waits for its job configuration.
    GuestReady,
    /// The guest starts the runner.
    RunnerStarted,
    /// The guest says that it failed; it is not trusted with more than its own log line.
    GuestError(String),
    /// QEMU stopped the guest because the host's disk is full or failing.
    Paused(String),
    /// The guest goes on.
    Resumed,
    /// The virtual machine is gone.
    VmExited(VmEnd),
    /// The job-config disk was read.
    ReadBack(Result<Persist, Trouble>),
    /// The run's disk became a machine image.
    Promoted(Result<Generation, Trouble>),
    /// The configuration does not let this job's disk become a machine image: why.
    PromotionRefused(String),
    /// The run's disk was removed.
    Discarded(Result<(), Trouble>),
}

/// Why something did not work, as a sentence for people, and whether it is worth another try.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// What failed, on what, and why.
    pub what: String,
    /// Not before this time, where the other side said so.
    pub not_before: Option<Timestamp>,
}

impl Trouble {
    /// Trouble without a time.
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), not_before: None }
    }
}

/// Why a registration did not work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RegisterTrouble {
    /// GitHub refused: there is no such runner now.
    Refused(Trouble),
    /// The name exists already, or the answer was lost: a runner of this name may exist.
    Unknown(Trouble),
}

/// What became of a runner that was to be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Deregistration {
    /// GitHub removed it now.
    Removed,
    /// It was not there.
    AlreadyGone,
    /// GitHub refuses: it has a job.
    Busy,
}

/// How a virtual machine ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmEnd {
    /// Why.
    pub reason: EndReason,
    /// More, for people.
    pub detail: Option<String>,
    /// When.
    pub at: Timestamp,
}

/// Why a run's virtual machine ended. Only `GuestShutdown` may persist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndReason {
    /// The guest powered itself off.
    GuestShutdown,
    /// The guest rebooted.
    GuestReset,
    /// The guest's kernel panicked.
    GuestPanicked,
    /// Forrest killed it, after GitHub confirmed that it has no job, or the operator asked.
    Killed,
    /// The host's disk failed it.
    IoError,
    /// It could not be restored from its snapshot; it never ran.
    RestoreFailed,
    /// It was not ready in time.
    BootTimeout,
    /// The job took longer than the configuration allows.
    JobTimeout,
    /// QEMU could not be started or died.
    QemuFailed,
    /// The supervisor was killed; QEMU died with it.
    SupervisorLost,
    /// It never started.
    NeverStarted,
}

/// As in `outcome.json` and on the command line: `guest-shutdown`.
impl std::fmt::Display for EndReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::GuestShutdown => "guest-shutdown",
            Self::GuestReset => "guest-reset",
            Self::GuestPanicked => "guest-panicked",
            Self::Killed => "killed",
            Self::IoError => "io-error",
            Self::RestoreFailed => "restore-failed",
            Self::BootTimeout => "boot-timeout",
            Self::JobTimeout => "job-timeout",
            Self::QemuFailed => "qemu-failed",
            Self::SupervisorLost => "supervisor-lost",
            Self::NeverStarted => "never-started",
        })
    }
}

/// What the job left in the file `persist`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Persist {
    /// No file, or the repository has no token.
    Absent,
    /// A file with the wrong token.
    WrongToken,
    /// The repository's token.
    Valid,
    /// The disk could not be made sense of.
    Damaged,
}

/// What an earlier daemon left behind of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdoptedRun {
    /// Its name.
    pub runner: RunnerName,
    /// Its machine type; it may not be configured any more.
    pub machine: MachineTypeName,
    /// The resources it holds while its virtual machine lives.
    pub ram: Bytes,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Disk size.
    pub disk: Bytes,
    /// When it was made.
    pub created_at: Timestamp,
    /// What is known of its virtual machine.
    pub vm: AdoptedVm,
    /// The job it was known to run.
    pub job: Option<JobId>,
}

/// What an earlier daemon left behind of a virtual machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AdoptedVm {
    /// It was being prepared: nothing runs.
    NotStarted,
    /// It runs.
    Live {
        /// GitHub's id of the runner.
        runner_id: RunnerId,
        /// The image it started from.
        image: StartImage,
        /// Whether it was restored from a snapshot.
        restored: bool,
        /// Whether the guest has been ready.
        ready: bool,
    },
    /// It ended, and its disk is still there.
    Ended {
        /// How.
        end: VmEnd,
        /// GitHub's id of the runner.
        runner_id: Option<RunnerId>,
        /// The image it started from.
        image: Option<StartImage>,
    },
    /// Its disk is promoted or removed; only the deregistration may be left to do.
    DiskSettled,
}
