//! What people see: a copy of everything that matters, made for `status` and the control socket.

use serde::{Deserialize, Serialize};

use crate::core::Core;
use crate::health::TakenOut;
use crate::jobs::Phase;
use crate::model::{
    Bytes, Job, JobId, Labels, MachineTypeName, Repository, RunnerName, StartImage, Timestamp,
};
use crate::run::{FinishedRun, RunTimes};
use crate::snapshots::Snapshot;

pub use crate::schedule::Waiting;

/// The state of everything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// When it was taken.
    pub now: Timestamp,
    /// Whether new runs are held back.
    pub draining: bool,
    /// What the host gives and has left.
    pub capacity: CapacityView,
    /// The repositories.
    pub repositories: Vec<RepositoryView>,
    /// The machine types.
    pub machines: Vec<MachineView>,
    /// The runs that are not over.
    pub runs: Vec<RunView>,
    /// The jobs that are not over.
    pub jobs: Vec<JobView>,
    /// The runs that are over, oldest first.
    pub finished: Vec<FinishedRun>,
}

/// What the host gives and has left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapacityView {
    /// RAM for virtual machines.
    pub ram: Bytes,
    /// RAM that they hold, QEMU's own share included.
    pub ram_held: Bytes,
    /// Virtual CPUs; `None`: not limited.
    pub cpus: Option<u32>,
    /// Virtual CPUs that they hold.
    pub cpus_held: u32,
    /// Free space on the disk, where it was measured.
    pub disk_free: Option<Bytes>,
    /// Space that must stay free.
    pub min_free_disk: Bytes,
}

/// A repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositoryView {
    /// Its name.
    pub name: Repository,
    /// When GitHub last answered for it.
    pub polled_at: Option<Timestamp>,
    /// What keeps it from answering.
    pub trouble: Option<String>,
    /// Jobs that run.
    pub running: usize,
}

/// A machine type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineView {
    /// Its name.
    pub name: MachineTypeName,
    /// RAM of its guests.
    pub ram: Bytes,
    /// Virtual CPUs of its guests.
    pub cpus: u32,
    /// Every label that its runners have: those of a job must be among them.
    #[serde(default)]
    pub labels: Labels,
    /// Its snapshot, where its runs are to start from one.
    pub snapshot: Option<Snapshot>,
    /// Jobs that are queued for it.
    pub queued: usize,
    /// Live runs.
    pub runs: u32,
    /// Starts that failed since the last good one.
    pub failures: u32,
    /// What went wrong last.
    pub trouble: Option<String>,
    /// The generation of its image that was taken out of use, until a job leaves a newer one behind.
    #[serde(default)]
    pub taken_out: Option<TakenOut>,
    /// Why its queued jobs wait, where no run is on its way for them.
    pub waiting: Option<Waiting>,
}

/// A run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunView {
    /// Its name.
    pub runner: RunnerName,
    /// Its machine type.
    pub machine: MachineTypeName,
    /// Where it is in its life.
    pub state: String,
    /// The job it has or had.
    pub job: Option<JobId>,
    /// The image it started from.
    pub start_image: Option<StartImage>,
    /// Whether it was restored from a snapshot.
    pub restored: bool,
    /// When it reached which point.
    pub times: RunTimes,
    /// What its guest complained about last.
    pub trouble: Option<String>,
    /// What keeps it from being put away: what was tried last, and failed.
    #[serde(default)]
    pub hindrance: Option<String>,
    /// Whether the host paused its guest, and why.
    pub paused: Option<String>,
}

/// A job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobView {
    /// What GitHub said last.
    pub job: Job,
    /// Where it stands.
    pub phase: Phase,
    /// Its machine type.
    pub machine: Option<MachineTypeName>,
    /// When it was first seen queued.
    pub queued_at: Timestamp,
    /// What it waits for.
    pub waits_for: Option<JobWait>,
}

/// What a queued job waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobWait {
    /// A runner that is on its way or waits for jobs.
    Runner,
    /// Something that keeps a run from being started.
    Start(Waiting),
    /// GitHub: an approval or a concurrency group.
    GitHub,
}

impl View {
    pub(crate) fn of(core: &Core, now: Timestamp) -> Self {
        let held = core.runs.total();
        let capacity = core.policy.capacity;
        Self {
            now,
            draining: core.draining,
            capacity: CapacityView {
                ram: capacity.ram,
                ram_held: held.ram,
                cpus: capacity.cpus,
                cpus_held: held.cpus,
                disk_free: core.free_disk,
                min_free_disk: capacity.min_free_disk,
            },
            repositories: repositories(core),
            machines: machines(core),
            runs: core
                .runs
                .iter()
                .map(|run| RunView {
                    runner: run.runner.clone(),
                    machine: run.machine.clone(),
                    state: run.state_name().to_owned(),
                    job: run.job(),
                    start_image: run.image().cloned(),
                    restored: run.restored(),
                    times: run.times,
                    trouble: run.trouble.clone(),
                    hindrance: run.hindrance.clone(),
                    paused: run.paused.clone(),
                })
                .collect(),
            jobs: jobs(core),
            finished: core.finished.iter().cloned().collect(),
        }
    }
}

fn repositories(core: &Core) -> Vec<RepositoryView> {
    let view = |name: Repository| {
        let (polled_at, trouble) = core.polls.state(&name);
        let trouble = trouble.map(str::to_owned);
        RepositoryView { polled_at, trouble, running: core.running_jobs(&name), name }
    };
    core.policy.repositories().into_iter().map(view).collect()
}

fn machines(core: &Core) -> Vec<MachineView> {
    let view = |machine: &crate::model::MachineType| {
        let health = core.health.get(&machine.name);
        MachineView {
            name: machine.name.clone(),
            ram: machine.ram,
            cpus: machine.cpus,
            labels: machine.labels.clone(),
            snapshot: core.snapshots.get(&machine.name).cloned(),
            queued: core.jobs.queued_count(&machine.name),
            runs: core.runs.of_machine(&machine.name).runs,
            failures: health.map_or(0, |health| health.failures),
            trouble: health.and_then(|health| health.trouble.clone()),
            taken_out: core.taken_out.get(&machine.name).cloned(),
            waiting: core.waiting.get(&machine.name).cloned(),
        }
    };
    core.policy.machines.values().map(view).collect()
}

fn jobs(core: &Core) -> Vec<JobView> {
    let active = core.jobs.iter().filter(|entry| entry.phase != Phase::Done);
    let mut covered = std::collections::BTreeSet::new();
    for machine in core.policy.machines.keys() {
        let supply = core.runs.of_machine(machine).supply as usize;
        covered.extend(core.jobs.queued(machine).take(supply).map(|(_, job)| job));
    }
    active
        .map(|entry| JobView {
            job: entry.job.clone(),
            phase: entry.phase,
            machine: entry.machine.clone(),
            queued_at: entry.queued_at,
            waits_for: match entry.phase {
                Phase::Held => Some(JobWait::GitHub),
                Phase::Queued if covered.contains(&entry.job.id) => Some(JobWait::Runner),
                Phase::Queued => {
                    let waiting = entry.machine.as_ref().and_then(|m| core.waiting.get(m));
                    waiting.cloned().map(JobWait::Start)
                }
                Phase::Running | Phase::Done => None,
            },
        })
        .collect()
}
