//! Forrest's decisions, as a pure state machine: events in, commands out.
//!
//! Nothing here reads a clock, a file or a socket, starts a thread or knows tokio. Time comes in as
//! an argument, randomness from a seed, and every collection is ordered, so a run of the core can be
//! replayed exactly.
//!
//! Where to find what: [`run`] is the life of one run,
//! [`snapshots`] that of the booted guests that runs are restored from, [`Core`] joins runs, jobs and polls,
//! `schedule` decides which job is served next, [`check`] says what must always hold, [`view`] is
//! what people see.

pub mod check;
mod clock;
pub mod command;
pub mod event;
mod health;
pub mod image_choice;
pub mod jobs;
pub mod model;
pub mod policy;
mod polls;
mod random;
mod reclaim;
pub mod run;
mod schedule;
pub mod sizes;
pub mod snapshots;
mod timers;
mod trust;
pub mod view;

mod core;

pub use command::{Command, KillReason, Level, Note};
pub use core::{Core, FINISHED_RUNS_MAX};
pub use event::{Event, RunEvent};
pub use health::TakenOut;
pub use policy::{Capacity, Policy, Resources, Timing};
pub use view::View;
