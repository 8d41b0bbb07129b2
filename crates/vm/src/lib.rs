//! One virtual machine, from its description to its end.
//!
//! ```text
//!  daemon ── run.json ──▶ shim (one process per VM) ── QMP, console, guest port ──▶ QEMU
//!     ▲                    │
//!     ├── control.sock ◀───┤   requests, state, events
//!     └── outcome.json ◀───┘   why the VM ended, also when nobody was there to see it
//! ```
//!
//! - [`spec`]: what a VM is made of (`run.json`).
//! - [`argv`]: from there to QEMU's arguments; pure.
//! - [`qmp`]: the client of QEMU's monitor.
//! - [`lines`]: lines of bounded length, for everything that QEMU and guests say.
//! - [`shim`]: the supervisor, the entry points of the hidden verb `forrest shim`.
//! - [`protocol`], [`client`]: how the daemon and the shim talk.
//! - [`job_files`]: what a guest is told of its job configuration.
//! - [`outcome`]: how a VM ended (`outcome.json`).
//! - [`run_dir`]: the files of a run and what they say about it: live, over, never started.
//! - [`console`]: the bounded console log and how to read it.
//! - [`snapshot`]: templates of booted guests.
//! - [`dumps`]: no core dumps of processes that hold secrets.
//! - [`host`]: what this host's QEMU, KVM and CPU can do.
//!
//! What must not live here: which VM runs when (the core), where disks come from and what happens to
//! them afterwards (the image store), and anything about GitHub.

pub mod argv;
pub mod client;
pub mod console;
pub mod dumps;
mod error;
pub mod host;
pub mod job_files;
pub mod lines;
pub mod outcome;
pub mod protocol;
pub mod qmp;
pub mod run_dir;
pub mod shim;
pub mod snapshot;
pub mod spec;

pub use client::{ShimClient, Watch, spawn_shim};
pub use error::VmError;
pub use job_files::JobFiles;
pub use outcome::{EndReason, Outcome};
pub use protocol::{Request, ShimEvent, VmState};
pub use run_dir::RunDirState;
pub use spec::RunSpec;
