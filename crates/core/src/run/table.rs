//! All runs, with the sums that scheduling needs kept up to date.

use std::collections::BTreeMap;

use crate::model::{Bytes, MachineTypeName, Repository, RunnerName};
use crate::policy::Resources;

use super::Run;

/// What a group of runs holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Held {
    /// RAM of live virtual machines.
    pub ram: Bytes,
    /// Virtual CPUs of live virtual machines.
    pub cpus: u32,
    /// Runs with a live or coming virtual machine.
    pub runs: u32,
    /// Runs that a queued job can still get.
    pub supply: u32,
}

impl Held {
    fn add(&mut self, share: &Share) {
        self.ram = self.ram.saturating_add(share.held.ram);
        self.cpus += share.held.cpus;
        self.runs += share.held.runs;
        self.supply += share.held.supply;
    }

    fn remove(&mut self, share: &Share) {
        self.ram = self.ram.saturating_sub(share.held.ram);
        self.cpus -= share.held.cpus;
        self.runs -= share.held.runs;
        self.supply -= share.held.supply;
    }
}

/// What one run adds to the sums.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Share {
    machine: MachineTypeName,
    held: Held,
}

impl Share {
    fn of(run: &Run) -> Self {
        let Resources { ram, cpus, .. } = run.resources;
        let held = if run.holds_memory() {
            Held { ram, cpus, runs: 1, supply: u32::from(run.is_supply()) }
        } else {
            Held::default()
        };
        Self { machine: run.machine.clone(), held }
    }
}

/// All runs.
#[derive(Debug, Clone, Default)]
pub struct Runs {
    by_name: BTreeMap<RunnerName, Run>,
    by_machine: BTreeMap<MachineTypeName, Held>,
    by_repository: BTreeMap<Repository, Held>,
    total: Held,
}

impl Runs {
    /// The run of this name.
    pub fn get(&self, runner: &RunnerName) -> Option<&Run> {
        self.by_name.get(runner)
    }

    /// All runs in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &Run> {
        self.by_name.values()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// Adds a run.
    pub fn insert(&mut self, run: Run) {
        self.count(&Share::of(&run));
        let before = self.by_name.insert(run.runner.clone(), run);
        assert!(before.is_none(), "a runner's name was used twice");
    }

    /// Takes a run out.
    pub fn remove(&mut self, runner: &RunnerName) -> Option<Run> {
        let run = self.by_name.remove(runner)?;
        self.discount(&Share::of(&run));
        Some(run)
    }

    /// Changes a run and keeps the sums true. `None` when there is no such run.
    pub fn change<T>(
        &mut self,
        runner: &RunnerName,
        change: impl FnOnce(&mut Run) -> T,
    ) -> Option<T> {
        let run = self.by_name.get_mut(runner)?;
        let before = Share::of(run);
        let result = change(run);
        let after = Share::of(run);
        if before != after {
            self.discount(&before);
            self.count(&after);
        }
        Some(result)
    }

    /// What the machine type's runs hold.
    pub fn of_machine(&self, machine: &MachineTypeName) -> Held {
        self.by_machine.get(machine).copied().unwrap_or_default()
    }

    /// What the repository's runs hold.
    pub fn of_repository(&self, repository: &Repository) -> Held {
        self.by_repository.get(repository).copied().unwrap_or_default()
    }

    /// What all runs hold.
    pub fn total(&self) -> Held {
        self.total
    }

    fn count(&mut self, share: &Share) {
        self.total.add(share);
        self.by_machine.entry(share.machine.clone()).or_default().add(share);
        self.by_repository.entry(share.machine.repository().clone()).or_default().add(share);
    }

    fn discount(&mut self, share: &Share) {
        self.total.remove(share);
        if let Some(held) = self.by_machine.get_mut(&share.machine) {
            held.remove(share);
        }
        if let Some(held) = self.by_repository.get_mut(share.machine.repository()) {
            held.remove(share);
        }
    }
}
