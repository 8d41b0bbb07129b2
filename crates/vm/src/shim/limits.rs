//! The resources that a QEMU may take of the host: bounds far above what it takes in order, so that one
//! that is taken over by its guest cannot take everything.

use forrest_core::model::Bytes;
use rustix::process::{Resource, Rlimit, setrlimit};
use serde::{Deserialize, Serialize};

use crate::argv::ram_bytes;
use crate::spec::RunSpec;

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
}

impl Limits {
    pub(crate) fn of(spec: &RunSpec) -> Self {
        let cpus = u64::from(spec.cpus);
        let ram = ram_bytes(spec);
        let memory = ram.saturating_add(MEMORY.0).saturating_add(MEMORY_PER_CPU.0 * cpus);
        let shares = spec.shared.iter().any(|dir| dir.writable);
        let file_len = spec.disk.virtual_size.filter(|_| !shares).map(|size| {
            let tables = (size.0 / OVERLAY_SHARE).max(OVERLAY_LEAST.0);
            size.0.saturating_add(tables).max(ram)
        });
        Self { memory, files: FILES, threads: THREADS + cpus, file_len }
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
