//! What the configuration says, as far as decisions depend on it.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::{Bytes, Labels, MachineType, MachineTypeName, Repository};

/// Everything that the core decides by.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Policy {
    /// What the host may give to virtual machines.
    pub capacity: Capacity,
    /// The machine types by name.
    pub machines: BTreeMap<MachineTypeName, MachineType>,
    /// The most runs of one repository at a time; absent: no limit.
    pub max_runs: BTreeMap<Repository, u32>,
    /// Limits and intervals.
    pub timing: Timing,
}

/// What the host may give to virtual machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Capacity {
    /// RAM.
    pub ram: Bytes,
    /// Virtual CPUs; `None`: not limited.
    pub cpus: Option<u32>,
    /// Space that must stay free on the disk.
    pub min_free_disk: Bytes,
}

/// Limits and intervals, each with its default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// How often every repository is polled when webhooks arrive; at least
    /// [`POLLING_INTERVAL_MIN`].
    pub polling_interval: Duration,
    /// How long a job can be overtaken by smaller ones.
    pub max_overtake: Duration,
    /// How long a runner may wait for a job where its machine type is not configured any more.
    pub idle_timeout: Duration,
}

/// The shortest polling interval that is taken seriously.
pub const POLLING_INTERVAL_MIN: Duration = Duration::from_secs(5);

impl Timing {
    /// The polling interval, or the shortest one that is taken seriously.
    pub fn polling_interval(&self) -> Duration {
        self.polling_interval.max(POLLING_INTERVAL_MIN)
    }
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            polling_interval: Duration::from_secs(15 * 60),
            max_overtake: Duration::from_secs(10 * 60),
            idle_timeout: Duration::from_secs(5 * 60),
        }
    }
}

impl Policy {
    /// The machine type that a job with these labels in this repository gets: all labels are among
    /// those its runners register, and the job names it.
    pub fn machine_for(&self, repository: &Repository, labels: &Labels) -> Option<&MachineType> {
        self.machines.values().find(|machine| {
            machine.name.repository() == repository
                && labels.contains(&machine.name.machine().into())
                && labels.is_subset(&machine.labels)
        })
    }

    /// The repository's machine types.
    pub fn machines_of<'a>(
        &'a self,
        repository: &'a Repository,
    ) -> impl Iterator<Item = &'a MachineType> {
        self.machines.values().filter(move |machine| machine.name.repository() == repository)
    }

    /// Every repository that has a machine type, in order.
    pub fn repositories(&self) -> Vec<Repository> {
        let mut all: Vec<_> = self.machines.keys().map(|name| name.repository().clone()).collect();
        all.dedup();
        all
    }
}

/// The most RAM that one run is counted with.
pub const RAM_MAX: Bytes = Bytes(1 << 46);
/// The most virtual CPUs that one run is counted with.
pub const CPUS_MAX: u32 = 1 << 14;
/// The most disk space that one run is counted with.
pub const DISK_MAX: Bytes = Bytes(1 << 48);

/// What a run's virtual machine is counted with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Resources {
    /// The guest's RAM and what QEMU needs beside it.
    pub ram: Bytes,
    /// Virtual CPUs.
    pub cpus: u32,
    /// The most that its disk can grow to.
    pub disk: Bytes,
}

impl Resources {
    /// QEMU's own need beside the guest's RAM: 150 MiB, 8 MiB per virtual CPU, 0.5 % of the RAM.
    ///
    /// Absurd sizes are cut to [`RAM_MAX`], [`CPUS_MAX`] and [`DISK_MAX`], so that no sum of them
    /// can overflow.
    pub fn of(ram: Bytes, cpus: u32, disk: Bytes) -> Self {
        let (ram, cpus, disk) = (ram.min(RAM_MAX), cpus.min(CPUS_MAX), disk.min(DISK_MAX));
        let overhead = Bytes::mib(150 + 8 * u64::from(cpus)).saturating_add(Bytes(ram.0 / 200));
        Self { ram: ram.saturating_add(overhead), cpus, disk }
    }
}

impl From<&MachineType> for Resources {
    fn from(machine: &MachineType) -> Self {
        Self::of(machine.ram, machine.cpus, machine.disk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_counted_with_what_qemu_needs_beside_its_guest() {
        let run = Resources::of(Bytes::gib(4), 2, Bytes::gib(10));
        let overhead = Bytes::mib(166).0 + Bytes::gib(4).0 / 200;
        assert_eq!(run.ram, Bytes(Bytes::gib(4).0 + overhead));
        assert_eq!((run.cpus, run.disk), (2, Bytes::gib(10)));
    }

    #[test]
    fn absurd_sizes_are_cut() {
        let run = Resources::of(Bytes(u64::MAX), u32::MAX, Bytes(u64::MAX));
        assert_eq!((run.cpus, run.disk), (CPUS_MAX, DISK_MAX));
        assert!(run.ram > RAM_MAX && run.ram.0 < 2 * RAM_MAX.0);
        let large = Resources::of(Bytes::gib(4096), 1024, Bytes::gib(1 << 17));
        assert_eq!((large.cpus, large.disk), (1024, Bytes::gib(1 << 17)));
    }
}
