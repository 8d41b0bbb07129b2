//! All runs, with the sums that scheduling needs kept up to date.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{Bytes, JobId, MachineTypeName, Repository, RunnerName};
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
    /// Runs that have a known job.
    pub busy: u32,
    /// Runs past their job whose disk may still become an image.
    pub leaving: u32,
    /// Runs that never had a guest, and whose runner GitHub could not be made to remove yet.
    pub owing: u32,
    /// Disks that take space.
    pub disks: u32,
    /// Space that those disks can still come to take.
    pub growth: Bytes,
}

impl Held {
    /// What one run adds to the sums.
    fn of(run: &Run) -> Self {
        let Resources { ram, cpus, disk } = run.resources;
        let live = run.holds_memory();
        let on_disk = run.holds_disk();
        Self {
            ram: if live { ram } else { Bytes(0) },
            cpus: if live { cpus } else { 0 },
            runs: u32::from(live),
            supply: u32::from(run.is_supply()),
            busy: u32::from(run.has_known_job()),
            leaving: u32::from(run.may_leave_image()),
            owing: u32::from(run.is_owing()),
            disks: u32::from(on_disk),
            growth: if on_disk { disk.saturating_sub(run.disk_used) } else { Bytes(0) },
        }
    }

    fn add(&mut self, share: &Self) {
        self.ram = self.ram.saturating_add(share.ram);
        self.cpus += share.cpus;
        self.runs += share.runs;
        self.supply += share.supply;
        self.busy += share.busy;
        self.leaving += share.leaving;
        self.owing += share.owing;
        self.disks += share.disks;
        self.growth = self.growth.saturating_add(share.growth);
    }

    fn remove(&mut self, share: &Self) {
        self.ram = self.ram.saturating_sub(share.ram);
        self.cpus -= share.cpus;
        self.runs -= share.runs;
        self.supply -= share.supply;
        self.busy -= share.busy;
        self.leaving -= share.leaving;
        self.owing -= share.owing;
        self.disks -= share.disks;
        self.growth = self.growth.saturating_sub(share.growth);
    }
}

/// What changed since somebody looked, as far as scheduling is concerned.
#[derive(Debug, Clone, Default)]
pub(crate) struct Changes {
    /// Something was given back that a waiting job may have waited for, other than disk space.
    pub(crate) freed: bool,
    /// Disk space was given back.
    pub(crate) freed_disk: bool,
    /// Machine types whose image one run less is about to change.
    pub(crate) images: Vec<MachineTypeName>,
    /// Machine types whose supply is another.
    pub(crate) supply: Vec<MachineTypeName>,
}

impl Changes {
    fn note(&mut self, machine: &MachineTypeName, before: &Held, after: &Held) {
        self.freed |= after.ram < before.ram
            || after.cpus < before.cpus
            || after.runs < before.runs
            || after.owing < before.owing;
        self.freed_disk |= after.growth < before.growth || after.disks < before.disks;
        if after.busy < before.busy || after.leaving < before.leaving {
            self.images.push(machine.clone());
        }
        if after.supply != before.supply {
            self.supply.push(machine.clone());
        }
    }
}

/// The runs of one machine type.
#[derive(Debug, Clone, Default)]
struct Group {
    held: Held,
    /// How many there are.
    count: usize,
    /// Those that have a known job.
    busy: BTreeMap<RunnerName, JobId>,
    /// Those past their job whose disk may still become an image.
    leaving: BTreeSet<RunnerName>,
}

impl Group {
    /// Takes notice of a run that has changed.
    fn follow(&mut self, run: &Run) {
        match run.job().filter(|_| run.has_known_job()) {
            Some(job) => drop(self.busy.insert(run.runner.clone(), job)),
            None => drop(self.busy.remove(&run.runner)),
        }
        if run.may_leave_image() {
            self.leaving.insert(run.runner.clone());
        } else {
            self.leaving.remove(&run.runner);
        }
    }
}

/// All runs.
#[derive(Debug, Clone, Default)]
pub struct Runs {
    by_name: BTreeMap<RunnerName, Run>,
    by_machine: BTreeMap<MachineTypeName, Group>,
    by_repository: BTreeMap<Repository, Held>,
    total: Held,
    changes: Changes,
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
        let group = entry(&mut self.by_machine, &run.machine);
        group.count += 1;
        group.follow(&run);
        self.count(&run.machine, &Held::default(), &Held::of(&run));
        let before = self.by_name.insert(run.runner.clone(), run);
        assert!(before.is_none(), "a runner's name was used twice");
    }

    /// Takes a run out.
    pub fn remove(&mut self, runner: &RunnerName) -> Option<Run> {
        let run = self.by_name.remove(runner)?;
        self.count(&run.machine, &Held::of(&run), &Held::default());
        if let Some(group) = self.by_machine.get_mut(&run.machine) {
            group.busy.remove(runner);
            group.leaving.remove(runner);
            group.count -= 1;
            if group.count == 0 {
                self.by_machine.remove(&run.machine);
            }
        }
        let repository = run.machine.repository();
        if !self.by_machine.keys().any(|machine| machine.repository() == repository) {
            self.by_repository.remove(repository);
        }
        Some(run)
    }

    /// Changes a run and keeps the sums true. The change must leave its names alone. `None` when
    /// there is no such run.
    pub fn change<T>(
        &mut self,
        runner: &RunnerName,
        change: impl FnOnce(&mut Run) -> T,
    ) -> Option<T> {
        let run = self.by_name.get_mut(runner)?;
        let (before, had) = (Held::of(run), run.job());
        let result = change(run);
        let after = Held::of(run);
        if before != after || had != run.job() {
            if let Some(group) = self.by_machine.get_mut(&run.machine) {
                group.follow(run);
            }
            let machine = run.machine.clone();
            self.count(&machine, &before, &after);
        }
        Some(result)
    }

    /// Takes over what was measured of the runs' disks; those that are not mentioned take none.
    pub(crate) fn disks_measured(&mut self, used: &BTreeMap<RunnerName, Bytes>) {
        let names: Vec<_> = self.by_name.keys().cloned().collect();
        for name in names {
            let used = used.get(&name).copied().unwrap_or_default();
            self.change(&name, |run| run.disk_used = used);
        }
    }

    /// What changed since this was asked last.
    pub(crate) fn take_changes(&mut self) -> Changes {
        std::mem::take(&mut self.changes)
    }

    /// What the machine type's runs hold.
    pub fn of_machine(&self, machine: &MachineTypeName) -> Held {
        self.by_machine.get(machine).map(|group| group.held).unwrap_or_default()
    }

    /// The machine type's runs that have a known job, with it.
    pub(crate) fn busy(
        &self,
        machine: &MachineTypeName,
    ) -> impl Iterator<Item = (&RunnerName, JobId)> {
        let busy = self.by_machine.get(machine).into_iter().flat_map(|group| &group.busy);
        busy.map(|(runner, job)| (runner, *job))
    }

    /// One of the machine type's runs that are past their job and whose disk may become an image.
    pub(crate) fn leaving(&self, machine: &MachineTypeName) -> Option<&RunnerName> {
        self.by_machine.get(machine)?.leaving.first()
    }

    /// The machine types that have runs, with what those hold.
    pub(crate) fn machines(&self) -> impl Iterator<Item = (&MachineTypeName, &Held)> {
        self.by_machine.iter().map(|(machine, group)| (machine, &group.held))
    }

    /// What the repository's runs hold.
    pub fn of_repository(&self, repository: &Repository) -> Held {
        self.by_repository.get(repository).copied().unwrap_or_default()
    }

    /// What all runs hold.
    pub fn total(&self) -> Held {
        self.total
    }

    fn count(&mut self, machine: &MachineTypeName, before: &Held, after: &Held) {
        self.changes.note(machine, before, after);
        let machine_held = &mut entry(&mut self.by_machine, machine).held;
        let repository_held = entry(&mut self.by_repository, machine.repository());
        for held in [&mut self.total, machine_held, repository_held] {
            held.remove(before);
            held.add(after);
        }
    }
}

/// The name is copied only where it is new.
fn entry<'a, K: Ord + Clone, V: Default>(map: &'a mut BTreeMap<K, V>, key: &K) -> &'a mut V {
    if !map.contains_key(key) {
        map.insert(key.clone(), V::default());
    }
    map.get_mut(key).unwrap_or_else(|| unreachable!("it was put there above"))
}
