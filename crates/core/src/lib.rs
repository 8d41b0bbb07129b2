//! Forrest's decisions, as a pure state machine: events in, commands out.
//!
//! Nothing here reads a clock, a file or a socket, starts a thread or knows tokio. Time comes in as
//! an argument, randomness from a seed, and every collection is ordered, so a run of the core can be
//! replayed exactly.

pub mod model;
