//! Machine types: what a job can ask for.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Bytes, Labels, MachineTypeName};

/// When a run starts from the base instead of the machine type's own image.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum UseBase {
    /// When the base is newer than the machine image, or there is no machine image.
    #[default]
    IfNewer,
    /// Always: machine images are never used.
    Always,
    /// Only when there is no machine image yet.
    Never,
}

/// What the core needs to know of one machine type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineType {
    /// `owner/repository/machine`.
    pub name: MachineTypeName,
    /// Every label that its runners register; a job's labels must be a subset.
    pub labels: Labels,
    /// The machine type whose image it starts from, where it has no base image file.
    pub base_machine: Option<MachineTypeName>,
    /// RAM of the guest.
    pub ram: Bytes,
    /// Virtual CPUs of the guest, at least 1.
    pub cpus: u32,
    /// Size of the disk, which is also the most that a run can add to the host's disk.
    pub disk: Bytes,
    /// The most runs of this machine type at a time; `None`: no limit of its own.
    pub max_runs: Option<u32>,
    /// How long a guest may take until it says that it is ready.
    pub boot_timeout: Duration,
    /// How long its runners may wait for a job before they are retired.
    pub idle_timeout: Duration,
    /// How long a job may run; `None`: as long as GitHub lets it.
    pub job_timeout: Option<Duration>,
    /// Whether its runs start from a snapshot of the booted guest.
    pub snapshot: bool,
}
