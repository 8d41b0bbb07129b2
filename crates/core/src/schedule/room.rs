//! How much of the host is left.

use crate::core::Core;
use crate::model::{Bytes, MachineType};
use crate::policy::{Capacity, Resources};

use super::Waiting;

/// Room that is left while scheduling.
pub(super) struct Room {
    ram: Bytes,
    cpus: Option<u32>,
    disk: Option<Bytes>,
    runs: u32,
    disks: u32,
}

/// Why there is no room.
pub(super) struct Refusal {
    pub(super) waiting: Waiting,
    /// Whether there can ever be enough of it.
    pub(super) hopeless: bool,
}

impl Room {
    pub(super) fn refuse(&self, machine: &MachineType, capacity: &Capacity) -> Option<Refusal> {
        let need = Resources::from(machine);
        // A guest that fits always gets its place on an otherwise empty host, whatever QEMU is
        // estimated to need beside it: else its job could wait for ever.
        let waived = self.runs == 0;
        let too_large = machine.ram > capacity.ram;
        if too_large || (need.ram > self.ram && !waived) {
            let waiting = Waiting::Ram { needed: need.ram, free: self.ram };
            return Some(Refusal { waiting, hopeless: too_large });
        }
        if let (Some(free), Some(all)) = (self.cpus, capacity.cpus)
            && need.cpus > free
        {
            let waiting = Waiting::Cpus { needed: need.cpus, free };
            return Some(Refusal { waiting, hopeless: machine.cpus > all });
        }
        let free = self.disk?;
        let reserve = capacity.min_free_disk;
        // The first disk may be larger than what is free: that is the most that it can grow to.
        let needed = if self.disks > 0 { need.disk.saturating_add(reserve) } else { reserve };
        let waiting = Waiting::Disk { needed, free };
        (needed > free).then_some(Refusal { waiting, hopeless: false })
    }

    pub(super) fn take(&mut self, need: Resources) {
        self.ram = self.ram.saturating_sub(need.ram);
        self.cpus = self.cpus.map(|free| free.saturating_sub(need.cpus));
        self.disk = self.disk.map(|free| free.saturating_sub(need.disk));
        self.runs += 1;
        self.disks += 1;
    }
}

impl Core {
    pub(super) fn room(&self) -> Room {
        let held = self.runs.total();
        let builds = self.held_by_builds();
        let capacity = self.policy.capacity;
        let disk =
            self.free_disk.map(|free| free.saturating_sub(held.growth).saturating_sub(builds.disk));
        Room {
            ram: capacity.ram.saturating_sub(held.ram).saturating_sub(builds.ram),
            cpus: capacity.cpus.map(|cpus| cpus.saturating_sub(held.cpus + builds.cpus)),
            disk,
            runs: held.runs + u32::from(builds.ram > Bytes(0)),
            disks: held.disks,
        }
    }
}
