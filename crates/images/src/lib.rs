//! The image store: the disks of src, machine and run, and the small disks that seed a guest.
//!
//! Where to find what: [`Store`] is the base directory; [`run_disk`] forks a run's disk, [`snapshots`]
//! keeps saved guests with theirs, [`promote`] makes a disk a generation, `retention` goes back and cleans
//! up, [`src_cache`] looks after the operator's images; [`template`] renders a setup template, [`seed`]
//! writes it to a FAT file system, [`readback`] reads what the guest left there, [`persistence`] compares
//! the token; [`durable`] makes every change of a file.
//!
//! Everything blocks; nothing here knows tokio, GitHub, QEMU's command line or the configuration file.

mod chain;
mod disk_check;
pub mod durable;
mod error;
mod format;
pub mod generations;
mod layout;
pub mod persistence;
pub mod promote;
pub mod qcow2;
mod qemu_img;
pub mod readback;
mod retention;
pub mod run_disk;
mod runs;
pub mod seed;
pub mod snapshots;
pub mod src_cache;
mod store;
pub mod template;

pub use chain::MAX_BACKING_DEPTH;
pub use error::ImageError;
pub use format::{DiskFormat, SrcFile, inspect_src};
pub use generations::{BackingFile, BrokenMark, GenerationInfo, Lineage, Origin};
pub use qcow2::MAX_DISK;
pub use qemu_img::Progress;
pub use retention::Pruned;
pub use run_disk::RunDisk;
pub use runs::{RunDir, RunDirs};
pub use snapshots::{Snapshot, SnapshotDir, SnapshotKey, SnapshotMeta};
pub use src_cache::SrcKeeping;
pub use store::{Driver, Space, Store, StoreOptions};
