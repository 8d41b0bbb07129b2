//! The daemon: the core's decisions carried out.
//!
//! ```text
//!  webhooks ─┐                                   ┌─▶ image store (blocking threads)
//!  polls ────┼─▶ inbox ─▶ driver ─▶ core ─▶ commands ─▶ GitHub
//!  shims ────┤   (one queue, one loop)           └─▶ shims (one process per VM)
//!  control ──┘        ▲                                  │
//!                     └────────── results ◀──────────────┘
//! ```
//!
//! - [`driver`]: the one loop. It owns all state; nothing here needs a lock.
//! - `executors`: how each command is carried out.
//! - `ingress`: how webhooks come in.
//! - [`control`]: how `forrest status` and friends reach the daemon.
//! - `containment`: what keeps guests inside on this host.
//! - `adoption`: what an earlier daemon left behind.
//! - `reload`: the configuration file is watched.
//! - [`doctor`], [`inspect`]: what the command line looks at by itself, without a running daemon.
//! - [`startup`]: everything wired together.
//!
//! What must not live here: decisions. They belong to the core, where they can be tested without
//! waiting.

mod adoption;
mod clock;
mod containment;
pub mod control;
pub mod doctor;
pub mod driver;
mod error;
mod executors;
mod groups;
mod ingress;
pub mod inspect;
mod measure;
mod policy;
mod record;
mod reload;
pub mod startup;
mod systemd;

pub use containment::filter_possible;
pub use error::DaemonError;
pub use forrest_vm::shim::{VERB as SHIM_VERB, main as shim_main};
pub use startup::{Options, run};

/// Whether guests can use hardware virtualisation on this host.
pub fn kvm_is_usable() -> bool {
    forrest_vm::host::probe_kvm().usable
}
