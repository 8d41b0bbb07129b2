//! RAM, virtual CPUs and disk space are never promised twice.

use forrest_core::model::{Bytes, MachineType, MachineTypeName, RunnerName};

use crate::world::World;
use crate::world::host::{Disk, Vm};

use super::{Broken, Claim};

/// What QEMU needs beside its guest: 150 MiB, 8 MiB for each virtual CPU, 0.5 % of the guest's RAM.
fn with_overhead(machine: &MachineType) -> u64 {
    machine.ram.0 + (150 << 20) + u64::from(machine.cpus) * (8 << 20) + machine.ram.0 / 200
}

/// Which disks of runs count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Disks {
    /// Those that are there.
    There,
    /// Those that the daemon was not told to be gone: one whose removal takes effect, and fails, it takes to be there.
    NotToldGone,
}

impl World {
    /// Whether the run of this claim still holds RAM, as far as the host knows.
    fn is_live(&self, name: &RunnerName, claim: &Claim) -> bool {
        let run = self.host.runs.get(name);
        claim.memory && !run.is_some_and(|run| matches!(run.vm, Vm::Ended(_)))
    }

    /// A run of this machine type is about to be begun: whether its limits allow it.
    pub(super) fn judge_limits(&self, machine: &MachineTypeName) -> Result<(), Broken> {
        if self.checker.draining {
            return Err(Broken(format!("a run of {machine} is begun on a drained host")));
        }
        let place = self.place(machine);
        let live = |of: &dyn Fn(usize) -> bool| {
            let claims = self.checker.claims.iter();
            claims.filter(|(name, claim)| of(claim.machine) && self.is_live(name, claim)).count()
        };
        let limit = self.policy.machines.get(machine).and_then(|machine| machine.max_runs);
        let runs = live(&|other| other == place);
        if limit.is_some_and(|most| runs >= most as usize) {
            return Err(Broken(format!("{machine} has {runs} runs, and gets another one")));
        }
        let repository = machine.repository();
        let limit = self.policy.max_runs.get(repository);
        let runs = live(&|other| self.plan.machines[other].name.repository() == repository);
        if limit.is_some_and(|most| runs >= *most as usize) {
            return Err(Broken(format!("{repository} has {runs} runs, and gets another one")));
        }
        Ok(())
    }

    /// Room is about to be promised to a run or a build of this machine type.
    pub(super) fn judge_capacity(
        &self,
        machine: usize,
        what: &str,
        counted: Disks,
    ) -> Result<(), Broken> {
        let checker = &self.checker;
        let wanted = &checker.machines[machine];
        let capacity = &self.policy.capacity;
        let (mut ram, mut cpus, mut memories, mut growth, mut disks) = (0, 0, 0, 0, 0);
        let nothing = std::collections::BTreeMap::new();
        let used = checker.measured.as_ref().map_or(&nothing, |(_, used)| used);
        for (name, claim) in &checker.claims {
            let run = self.host.runs.get(name);
            let of = &checker.machines[claim.machine];
            if self.is_live(name, claim) {
                ram += with_overhead(of);
                cpus += of.cpus;
                memories += 1;
            }
            let settled =
                run.is_some_and(|run| matches!(run.disk, Disk::Promoted(_) | Disk::Removed));
            if claim.disk && (counted == Disks::NotToldGone || !settled) {
                let used = used.get(name).copied().unwrap_or_default();
                growth += of.disk.0.saturating_sub(used.0);
                disks += 1;
            }
        }
        for build in &checker.builds {
            let of = &checker.machines[*build];
            ram += with_overhead(of);
            cpus += of.cpus;
            growth += of.disk.0;
            memories += 1;
        }
        let fits_alone = wanted.ram <= capacity.ram;
        if ram + with_overhead(wanted) > capacity.ram.0 && !(memories == 0 && fits_alone) {
            return Err(Broken(format!(
                "{what} of {} overdraws the RAM: {} of {} are promised to {memories} others",
                wanted.name,
                Bytes(ram),
                capacity.ram
            )));
        }
        if capacity.cpus.is_some_and(|all| cpus + wanted.cpus > all) {
            return Err(Broken(format!("{what} of {} overdraws the CPUs", wanted.name)));
        }
        if let Some((free, _)) = &checker.measured {
            let needed = if disks == 0 { 0 } else { growth + wanted.disk.0 };
            if needed + capacity.min_free_disk.0 > free.0 {
                return Err(Broken(format!(
                    "{what} of {} overdraws the disk: {free} are free, {disks} others may grow by {}",
                    wanted.name,
                    Bytes(growth)
                )));
            }
        }
        Ok(())
    }
}
