//! The truth about the host: run directories, virtual machines, images. All of it outlives the daemon.

use std::collections::BTreeMap;

use forrest_core::event::{EndReason, Persist, VmEnd};
use forrest_core::model::{
    Bytes, Generation, ImageRef, JobId, MachineTypeName, RunnerId, RunnerName, StartImage,
    Timestamp,
};

/// A run's directory.
#[derive(Debug, Clone)]
pub struct RunDir {
    /// Its machine type's place in the plan.
    pub machine: usize,
    /// When it was made, by the host's clock.
    pub created: Timestamp,
    /// When it really was, in milliseconds since the day began.
    pub made: u64,
    /// Its disk.
    pub disk: Disk,
    /// The image it was forked from.
    pub image: Option<StartImage>,
    /// Space that the disk takes.
    pub used: Bytes,
    /// GitHub's id of the runner, once the virtual machine was to start.
    pub runner_id: Option<RunnerId>,
    /// The job that was recorded.
    pub job: Option<JobId>,
    /// The virtual machine.
    pub vm: Vm,
    /// What the job left on the job-config disk.
    pub persist: Persist,
    /// The job that really ran in it.
    pub ran: Option<JobId>,
}

/// A run's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disk {
    /// Not made yet.
    None,
    /// There.
    Forked,
    /// It became this generation.
    Promoted(Generation),
    /// Removed.
    Removed,
}

/// A run's virtual machine.
#[derive(Debug, Clone)]
pub enum Vm {
    /// None was started.
    None,
    /// It lives.
    Live(Guest),
    /// It ended. Without an outcome, its supervisor died with it.
    Ended(Option<VmEnd>),
}

/// A live virtual machine.
#[derive(Debug, Clone)]
pub struct Guest {
    /// Tells this guest's steps from an earlier one's.
    pub number: u64,
    /// Whether it was restored.
    pub restored: bool,
    /// Whether it has been ready.
    pub ready: bool,
    /// When the supervisor ends its job, and the job that its runner had when that was ordered.
    pub job_deadline: Option<(u64, Option<JobId>)>,
    /// Whether it will never end by itself.
    pub hung: bool,
    /// Whether it does not hear its power button.
    pub deaf: bool,
    /// Whether the host has paused it: nothing happens in it.
    pub paused: bool,
}

/// Finished runs whose directories are kept: `host.keep_runs`.
pub const KEEP_RUNS: usize = 50;
/// Generations that are kept, beside those that are needed: `keep_generations`.
pub const KEEP_GENERATIONS: usize = 3;

/// A machine type's images.
#[derive(Debug, Clone, Default)]
pub struct Images {
    /// Each generation, with whether its guests boot and whether it was marked broken.
    pub generations: BTreeMap<Generation, Image>,
}

/// A generation.
#[derive(Debug, Clone, Copy)]
pub struct Image {
    /// Whether its guests never become ready.
    pub broken: bool,
    /// Whether it was taken out of use.
    pub marked: bool,
    /// When it was made.
    pub made: Timestamp,
}

impl Images {
    /// The generation in use.
    pub fn current(&self) -> Option<(Generation, Image)> {
        let usable = self.generations.iter().rev().find(|(_, image)| !image.marked);
        usable.map(|(generation, image)| (*generation, *image))
    }

    /// The number of the next generation.
    pub fn next(&self) -> Generation {
        Generation(self.generations.keys().next_back().map_or(1, |last| last.0 + 1))
    }
}

/// A machine type's snapshot.
#[derive(Debug, Clone, Default)]
pub struct TrueSnapshot {
    /// The image that it was made of.
    pub of: Option<ImageRef>,
    /// The build under way, by its number, and when it began.
    pub building: Option<(u64, u64)>,
}

/// The host.
#[derive(Debug, Default)]
pub struct Host {
    /// All run directories.
    pub runs: BTreeMap<RunnerName, RunDir>,
    /// The images of each machine type.
    pub images: Vec<Images>,
    /// The snapshot of each machine type.
    pub snapshots: Vec<TrueSnapshot>,
    /// Directories of runs that are over, kept for their logs.
    pub over: usize,
    /// Space that something else takes.
    pub taken: Bytes,
    last: u64,
}

impl Host {
    /// A host for this many machine types.
    pub fn new(machines: usize) -> Self {
        Self {
            images: vec![Images::default(); machines],
            snapshots: vec![TrueSnapshot::default(); machines],
            ..Self::default()
        }
    }

    /// Removes a machine type's old generations, as the image store does it after each promotion: all
    /// but the newest ones, the one in use, and those that a run or a snapshot was made from.
    pub fn prune(&mut self, place: usize, machine: &MachineTypeName) {
        let images = &self.images[place];
        let current = images.current().map(|(generation, _)| generation);
        let is_needed = |generation: Generation| {
            let image = ImageRef::Machine { machine: machine.clone(), generation };
            let mut runs = self.runs.values().filter_map(|run| run.image.as_ref());
            runs.any(|start| start.image == image)
                || self.snapshots.iter().any(|snapshot| snapshot.of.as_ref() == Some(&image))
        };
        let old = images.generations.keys().rev().skip(KEEP_GENERATIONS).copied();
        let gone: Vec<_> = old.filter(|g| Some(*g) != current && !is_needed(*g)).collect();
        for generation in gone {
            self.images[place].generations.remove(&generation);
        }
    }

    /// A run is over: its directory is one of those that are kept for a while.
    pub fn forget(&mut self, runner: &RunnerName) {
        if self.runs.remove(runner).is_some() {
            self.over = (self.over + 1).min(KEEP_RUNS);
        }
    }

    /// A number that no guest or build had before.
    pub fn number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// The live guest of a run.
    pub fn guest(&mut self, runner: &RunnerName) -> Option<&mut Guest> {
        match &mut self.runs.get_mut(runner)?.vm {
            Vm::Live(guest) => Some(guest),
            Vm::None | Vm::Ended(_) => None,
        }
    }

    /// Whether it is this guest that lives in the run.
    pub fn lives(&mut self, runner: &RunnerName, number: u64) -> bool {
        self.guest(runner).is_some_and(|guest| guest.number == number)
    }

    /// Free disk space. Images share most of what they hold with each other.
    pub fn free(&self, disk: Bytes) -> Bytes {
        let used: Bytes =
            self.runs.values().filter(|run| run.disk == Disk::Forked).map(|run| run.used).sum();
        disk.saturating_sub(used).saturating_sub(self.taken)
    }
}

/// How a virtual machine ended, as whoever finds it later says.
pub fn told_end(end: &Option<VmEnd>, now: Timestamp) -> VmEnd {
    end.clone().unwrap_or(VmEnd { reason: EndReason::SupervisorLost, detail: None, at: now })
}
