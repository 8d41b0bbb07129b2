//! GitHub as Forrest sees it: the REST API as one App, and the webhooks that GitHub sends.
//!
//! - [`GitHub`] asks and acts: registrations, runners, jobs, deliveries. It authenticates, keeps
//!   limits, and says exactly what a failure means. It decides nothing: when to ask, what to repeat
//!   and how long to wait is the core's business.
//! - [`webhook`] verifies and reads deliveries. It has no socket; the server is the daemon's.
//! - [`answers`] reads what GitHub answers, without a connection: for tests.
//!
//! The protocol follows GitHub's OpenAPI description. Whatever GitHub may leave out is optional, and
//! whatever it may add is tolerated.

mod access;
pub mod answers;
mod app;
mod app_key;
mod cache;
mod client;
mod clock;
mod deliveries;
mod error;
mod jobs;
mod link;
mod permissions;
mod rate;
mod runners;
#[cfg(test)]
mod test_key;
mod transport;
pub mod webhook;
mod wire;

pub use access::Installation;
pub use app::{AppFacts, HookConfig};
pub use client::{GitHub, GitHubConfig};
pub use deliveries::{
    DeliveryCursor, DeliveryId, DeliveryPage, FailedDeliveries, FailedDelivery, HookDelivery,
    REDELIVERY_WINDOW,
};
pub use error::{GitHubError, RegisterError};
pub use jobs::ActiveJobs;
pub use permissions::{Permissions, REQUIRED_EVENTS, REQUIRED_PERMISSIONS};
pub use rate::RateLimit;
pub use runners::{Deletion, JitRegistration};
pub use wire::{Runner, WorkflowRunFacts};
