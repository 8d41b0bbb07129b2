//! A hostile world in a box: GitHub, a host, its guests and its disk as models, with every fault that
//! they can have, around the real [`forrest_core::Core`].
//!
//! A seed decides everything, so every day can be lived again. The [`checker`] watches from outside:
//! it sees events, commands and the world's truth, and shares no code with what it judges.
//!
//! Where to find what: [`plan`] draws a seed's workload and faults, [`world`] lives the day,
//! [`campaign`] does so for many seeds, [`bench`] measures the core's speed.

pub mod bench;
pub mod campaign;
pub mod checker;
pub mod plan;
mod random;
pub mod world;

pub use campaign::{Campaign, Outcome, Summary};
