//! A stateful stand-in for GitHub with a real HTTP face, for Forrest's demo, tests and benchmarks.
//!
//! What it knows of GitHub comes from GitHub's API description and documentation, not from Forrest's
//! client: the two share no code, so that two equal mistakes cannot cancel out.
//!
//! - [`model`]: the state and its rules, without I/O or clock.
//! - `api`: GitHub's REST API over that state.
//! - [`webhooks`]: signed deliveries, their log, redelivery.
//! - [`runner`]: JIT configs, the stand-in runner that guests execute, virtual runners for tests.
//! - [`Sim`] and `/_sim/`: steering it from Rust and over HTTP.
//! - `contract` (feature `contract`): checks of requests and answers against GitHub's own
//!   descriptions.
//!
//! It stands in for GitHub and for GitHub's runner. It is neither, and keeps secrets like a test
//! does: badly.

mod api;
#[cfg(feature = "contract")]
pub mod contract;
mod control;
mod error;
mod key;
pub mod model;
pub mod runner;
mod server;
mod shared;
pub mod webhooks;

pub use api::{MAX_RECORDED, MAX_RECORDED_BODY, OPERATIONS, Recorded};
pub use control::{AppHandle, AppSpec, HELP, RepositorySpec, Sim, SimConfig, WorkflowIds};
pub use error::SimError;
pub use key::AppKey;
pub use server::{MAX_BODY_BYTES, MAX_CONNECTIONS};
pub use shared::MAX_QUEUED_WEBHOOKS;
