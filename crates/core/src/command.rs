//! What the core wants done.

use serde::{Deserialize, Serialize};

use crate::model::{
    Bytes, Generation, ImageRef, Job, JobId, MachineTypeName, Repository, RunnerId, RunnerName,
    Timestamp,
};

/// Something to be done outside. Doing it twice does no harm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Make the run's directory, fork its disk, write its seed disk:
    /// answered by `Prepared`.
    Prepare {
        /// Which run.
        runner: RunnerName,
        /// Of which machine type.
        machine: MachineTypeName,
        /// Whether it may start from the machine type's snapshot, where that fits its image.
        restore: bool,
    },
    /// Register the runner and keep its JIT configuration: answered by `Registered`.
    Register {
        /// Which run.
        runner: RunnerName,
        /// Of which machine type.
        machine: MachineTypeName,
    },
    /// Remove the runner from GitHub: answered by `Deregistered`.
    Deregister {
        /// Which run.
        runner: RunnerName,
        /// Where.
        repository: Repository,
        /// GitHub's id; without one the runner is looked up by its name.
        id: Option<RunnerId>,
    },
    /// Remove a runner that no run here owns. No answer.
    RemoveOrphan {
        /// Its name.
        runner: RunnerName,
        /// Where.
        repository: Repository,
        /// GitHub's id.
        id: RunnerId,
    },
    /// Start the virtual machine with its JIT configuration: answered by `VmStarted` or
    /// `StartFailed`, later by `VmExited`.
    StartVm {
        /// Which run.
        runner: RunnerName,
        /// GitHub's id of its runner, to be kept with the run.
        id: RunnerId,
    },
    /// Have the supervisor end the run at a time. Replaces an earlier deadline;
    /// [`Timestamp::NEVER`] lifts it.
    SetJobDeadline {
        /// Which run.
        runner: RunnerName,
        /// When its job's time is up.
        at: Timestamp,
    },
    /// Press the guest's power button.
    PowerDown {
        /// Which run.
        runner: RunnerName,
    },
    /// End the virtual machine now: answered by `VmExited`, after which it does not start any more,
    /// should it not have been started yet.
    Kill {
        /// Which run.
        runner: RunnerName,
        /// Why it may be ended.
        why: KillReason,
    },
    /// Read what the job left on its job-config disk: answered by `ReadBack`.
    ReadBack {
        /// Which run.
        runner: RunnerName,
        /// Of which machine type.
        machine: MachineTypeName,
    },
    /// Make the run's disk the machine type's next image: answered by `Promoted`.
    Promote {
        /// Which run.
        runner: RunnerName,
        /// Of which machine type.
        machine: MachineTypeName,
        /// The image that the run started from.
        parent: Option<ImageRef>,
        /// The job that made it, where known.
        job: Option<Box<Job>>,
    },
    /// Remove the run's disk: answered by `Discarded`.
    Discard {
        /// Which run.
        runner: RunnerName,
        /// Of which machine type.
        machine: MachineTypeName,
    },
    /// Nothing is left to do for this run: keep its log, forget the rest.
    Forget {
        /// Which run.
        runner: RunnerName,
        /// Of which machine type.
        machine: MachineTypeName,
    },
    /// A generation does not boot: make the one before it current. No answer.
    MarkBroken {
        /// Whose image.
        machine: MachineTypeName,
        /// Which one.
        generation: Generation,
        /// Why.
        why: String,
    },
    /// Look whether the machine type has a snapshot that fits: answered by `SnapshotChecked`.
    CheckSnapshot {
        /// Which machine type.
        machine: MachineTypeName,
    },
    /// Boot the machine type's image and save the guest: answered by `SnapshotBuilt`.
    BuildSnapshot {
        /// Which machine type.
        machine: MachineTypeName,
    },
    /// Give up building: `SnapshotBuilt` comes soon, with whatever result.
    CancelSnapshot {
        /// Which machine type.
        machine: MachineTypeName,
    },
    /// A snapshot does not restore: it is not to be used any more. No answer.
    DropSnapshot {
        /// Which machine type.
        machine: MachineTypeName,
    },
    /// Keep with the run which job it has, for the next daemon.
    RecordJob {
        /// Which run.
        runner: RunnerName,
        /// Which job.
        job: JobId,
    },
    /// Ask GitHub for a repository's jobs and runners: answered by `JobReported`s, `JobMissing`s
    /// and one `Polled`.
    Poll {
        /// Which repository.
        repository: Repository,
        /// Jobs that are to be asked for one by one where the list does not show them.
        known: Vec<JobId>,
    },
    /// Ask GitHub for one job: answered by `JobReported` or `JobMissing`, or not at all.
    FetchJob {
        /// Where.
        repository: Repository,
        /// Which one.
        job: JobId,
    },
    /// Look for webhooks that never arrived and have them sent again: answered by
    /// `DeliveriesRepaired`.
    RepairDeliveries,
    /// Make room on the disk with what nobody needs, and then with what is needed least, until so much
    /// is free. No answer: the next measurement tells.
    Reclaim {
        /// What is to be free.
        wanted: Bytes,
    },
    /// Tell people.
    Note(Note),
}

/// Why a virtual machine may be ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KillReason {
    /// GitHub confirmed that the runner does not exist: it can have no job.
    Fenced,
    /// Its job is over, and the guest did not shut down in the time it was given.
    AfterJob,
    /// The operator said so.
    Operator,
}

/// A line for the log: what happened, in plain words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// How much it matters.
    pub level: Level,
    /// The run it is about.
    pub runner: Option<RunnerName>,
    /// The job it is about.
    pub job: Option<JobId>,
    /// What happened and what is done about it.
    pub text: String,
}

/// How much a note matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Only of interest when looking for something.
    Debug,
    /// The normal course of things.
    Info,
    /// Something went wrong, and was dealt with.
    Warn,
    /// Somebody has to do something.
    Error,
}
