//! How people and scripts reach the daemon: HTTP with JSON on `<base_dir>/control.sock`.
//!
//! | request | answer |
//! |---|---|
//! | `GET /status` | [`Status`] |
//! | `GET /watch` | a [`Status`] in a line of its own, now and after each change, without end |
//! | `POST /runs/RUNNER/stop` | 202; 404 for a run that is not there |
//! | `POST /drain`, `POST /resume` | 202 |
//! | `GET /snapshots` | all [`SnapshotFiles`] |
//! | `POST /snapshots/OWNER/REPOSITORY/MACHINE/build`, `.../remove` | 202; 404 where it is to have none |
//!
//! The socket has mode 0600: whoever can open it may do all this.

mod client;
mod server;

use std::path::{Path, PathBuf};

use forrest_core::View;
use forrest_core::model::{Bytes, ImageRef, MachineTypeName, Timestamp};
use serde::{Deserialize, Serialize};

pub use client::{Client, ControlError, Watch};
pub(crate) use server::router;

/// Where the control socket of a base directory is.
pub fn socket(base_dir: &Path) -> PathBuf {
    base_dir.join("control.sock")
}

/// What `GET /status` answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The daemon itself.
    pub daemon: DaemonStatus,
    /// What it knows and does.
    #[serde(flatten)]
    pub view: View,
}

/// The daemon itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonStatus {
    /// Its version.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// Since when it runs.
    pub started_at: Timestamp,
    /// Its configuration file.
    pub config: PathBuf,
    /// Where its images and runs are.
    pub base_dir: PathBuf,
    /// Where webhooks come in.
    pub webhooks: String,
    /// How disks are forked, in words.
    pub fork: String,
    /// How guest code is executed: `kvm` or `tcg`.
    pub accel: String,
    /// QEMU's version.
    pub qemu: String,
    /// What keeps guests inside elsewhere and does not here, in words.
    #[serde(default)]
    pub uncontained: Vec<String>,
}

/// A snapshot's files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotFiles {
    /// The machine type that it was built for.
    pub machine: MachineTypeName,
    /// Its key: a hash of all that the saved guest depends on.
    pub key: String,
    /// The image that its guest booted from.
    pub image: ImageRef,
    /// When the guest was saved.
    pub built_at: Timestamp,
    /// The room that its files take, in bytes.
    pub size: Bytes,
}
