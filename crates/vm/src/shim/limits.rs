//! The resources that a QEMU may take of the host: bounds far above what it takes in order, so that one
//! that is taken over by its guest cannot take everything. And who goes first where the host has too little.

use std::fs;

use forrest_core::model::Bytes;
use rustix::process::{Resource, Rlimit, setrlimit};
use serde::{Deserialize, Serialize};

use crate::argv::ram_bytes;
use crate::spec::{Boot, RunSpec};

/// What QEMU needs of memory besides the guest's RAM: 0.2 GiB in practice.
const MEMORY: Bytes = Bytes::gib(4);
/// The same for each virtual CPU: translated code and stacks.
const MEMORY_PER_CPU: Bytes = Bytes::mib(64);
/// Threads besides those of the virtual CPUs: at most 64 for disks, and a few of its own.
const THREADS: u64 = 192;
/// Open files: a guest's network connections, mostly.
const FILES: u64 = 16_384;
/// How much larger a disk's file can be than the disk: an overlay's tables.
const OVERLAY_SHARE: u64 = 64;
/// The same for the smallest disks.
const OVERLAY_LEAST: Bytes = Bytes::mib(64);
/// Where a process says how readily the kernel may end it for want of memory: from -1000 to 1000, thousandths of
/// the memory that it counts as taking on top of what it takes (`proc_pid_oom_score_adj(5)`).
const SACRIFICE: &str = "/proc/self/oom_score_adj";
/// A guest: rather than the daemon, its supervisor, or what keeps the host together. It costs one job at most.
const SACRIFICE_OF_RUN: i32 = 300;
/// A guest that a snapshot is taken of: before all others. It costs nobody anything but time.
const SACRIFICE_OF_TEMPLATE: i32 = 600;

/// The bounds of one QEMU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Limits {
    /// Memory of its own, in bytes.
    memory: u64,
    /// Open files.
    files: u64,
    /// Threads; only for a user of its own, whose only ones they are.
    threads: u64,
    /// The largest file that it can write, in bytes; `None`: it writes to shared directories, whose files
    /// are as large as a guest wants.
    file_len: Option<u64>,
    /// How readily the kernel may end it for want of memory.
    sacrifice: i32,
}

impl Limits {
    pub(crate) fn of(spec: &RunSpec) -> Self {
        let cpus = u64::from(spec.cpus);
        let ram = ram_bytes(spec);
        let memory = ram.saturating_add(MEMORY.0).saturating_add(MEMORY_PER_CPU.0 * cpus);
        let shares = spec.shared.iter().any(|dir| dir.writable);
        let file_len = disk_len_max(spec).filter(|_| !shares).map(|len| len.max(ram));
        let sacrifice = match spec.boot {
            Boot::Cold | Boot::Restored { .. } => SACRIFICE_OF_RUN,
            Boot::Template { .. } => SACRIFICE_OF_TEMPLATE,
        };
        Self { memory, files: FILES, threads: THREADS + cpus, file_len, sacrifice }
    }

    /// Offers the calling process to a kernel that is out of memory, ahead of others. As long as it is Forrest's user:
    /// this file is not the other user's.
    pub(crate) fn offer(&self) {
        let now = fs::read_to_string(SACRIFICE).ok().and_then(|text| text.trim().parse().ok());
        // Whoever started Forrest may want it to go sooner. To be less ready than that takes a privilege.
        if now.is_none_or(|now: i32| now < self.sacrifice) {
            // Where this is not possible, the kernel mostly takes the largest process, which is a QEMU, too.
            let _ = fs::write(SACRIFICE, self.sacrifice.to_string());
        }
    }

    /// Binds the calling process, for good. `own_user`: nobody else's threads are this user's.
    pub(crate) fn apply(&self, own_user: bool) -> Result<(), String> {
        let bound = |resource, most: u64, what: &str| {
            let limit = Rlimit { current: Some(most), maximum: Some(most) };
            setrlimit(resource, limit).map_err(|err| format!("could not bound {what}: {err}"))
        };
        crate::dumps::bound().map_err(|err| format!("could not bound core dumps: {err}"))?;
        bound(Resource::Data, self.memory, "the memory")?;
        // Raising what the host allows takes a privilege that Forrest need not have.
        let allowed = rustix::process::getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
        bound(Resource::Nofile, self.files.min(allowed), "the open files")?;
        if own_user {
            bound(Resource::Nproc, self.threads, "the threads")?;
        }
        match self.file_len {
            Some(most) => bound(Resource::Fsize, most, "the files' sizes"),
            None => Ok(()),
        }
    }
}

/// The longest that the disk's file can become, in bytes, whatever the guest writes; `None` where the disk's size is
/// not known.
pub(crate) fn disk_len_max(spec: &RunSpec) -> Option<u64> {
    spec.disk.virtual_size.map(|size| {
        let tables = (size.0 / OVERLAY_SHARE).max(OVERLAY_LEAST.0);
        size.0.saturating_add(tables)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::example;

    #[test]
    fn a_host_without_memory_loses_a_snapshots_guest_before_a_job() {
        let sacrifice = |boot| Limits::of(&RunSpec { boot, ..example() }).sacrifice;
        let template = Boot::Template { ram: "ram".into(), state: "state".into() };
        let restored = Boot::Restored { ram: "ram".into(), state: "state".into() };
        assert!(sacrifice(Boot::Cold) > 0);
        assert_eq!(sacrifice(Boot::Cold), sacrifice(restored));
        assert!(sacrifice(template) > sacrifice(Boot::Cold));
    }
}
