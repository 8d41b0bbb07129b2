//! What things look like as JSON, in answers and in webhooks. The shapes are checked against
//! GitHub's own descriptions by the tests.

mod account;
mod app;
mod delivery;
mod job;
mod repository;
mod run;
mod runner;

pub(crate) use account::{organization, user};
pub(crate) use app::{app, installation};
pub(crate) use delivery::{delivery, delivery_item, request_headers};
pub(crate) use job::{deployment, job};
pub(crate) use repository::repository;
pub(crate) use run::run;
pub(crate) use runner::{label, runner};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// A global node id, as GitHub's older ones are made.
fn node_id(kind: &str, id: u64) -> String {
    STANDARD.encode(format!("0{}:{kind}{id}", kind.len()))
}
