//! Why jobs wait.

use serde::{Deserialize, Serialize};

use crate::model::{Bytes, JobId, RunnerName, Timestamp};

/// Why the jobs of a machine type wait.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "for", rename_all = "snake_case")]
pub enum Waiting {
    /// No new runs are wanted.
    Drained,
    /// Starts failed; there is a pause before the next one.
    Pause {
        /// Until when.
        until: Timestamp,
        /// What went wrong.
        trouble: String,
    },
    /// The machine type's own limit.
    MachineLimit {
        /// The most runs at a time.
        max_runs: u32,
    },
    /// The repository's limit.
    RepositoryLimit {
        /// The most runs at a time.
        max_runs: u32,
    },
    /// The image it starts from is about to appear.
    Base {
        /// The run that makes it.
        runner: RunnerName,
    },
    /// RAM.
    Ram {
        /// How much it needs.
        needed: Bytes,
        /// How much is left.
        free: Bytes,
    },
    /// Virtual CPUs.
    Cpus {
        /// How many it needs.
        needed: u32,
        /// How many are left.
        free: u32,
    },
    /// Disk space.
    Disk {
        /// The most it may need, with the reserve that has to stay free.
        needed: Bytes,
        /// What is left when all runs fill their disks.
        free: Bytes,
    },
    /// An older job that needs more room goes first.
    OlderJob {
        /// Which one.
        job: JobId,
    },
}

impl Waiting {
    /// Whether it ends when others give up RAM, CPUs or disk space.
    pub(crate) fn is_for_room(&self) -> bool {
        match self {
            Self::Ram { .. } | Self::Cpus { .. } | Self::Disk { .. } | Self::OlderJob { .. } => {
                true
            }
            Self::Drained
            | Self::Pause { .. }
            | Self::MachineLimit { .. }
            | Self::RepositoryLimit { .. }
            | Self::Base { .. } => false,
        }
    }
}
