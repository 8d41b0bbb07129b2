//! How tests, demos and scripts steer the simulator: a Rust interface, and the same over HTTP below
//! `/_sim/`.

mod http;
mod sim;

pub use sim::{AppHandle, AppSpec, RepositorySpec, Sim, SimConfig, WorkflowIds};

pub use http::HELP;
pub(crate) use http::answer;
