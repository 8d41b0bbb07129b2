//! Forrest's configuration file: from YAML to settings that are complete and free of
//! contradictions, or to a list of everything that is wrong with it.
//!
//! ```text
//! file --tree--> places and merge keys --decode, fields--> values --bases, machine--> Config
//!                                  \________ problem --> Diagnostic (text, JSON)
//! ```
//!
//! [`Config::load`] reads the file; [`Config::check_files`] looks whether the files that it names
//! are there; [`Config::diff`] says what a change means for a running daemon; [`schema`] describes
//! the file to editors. `tables.rs` lists every field; `docs/config.md` explains them.
//!
//! What the settings *do* is decided elsewhere: nothing here starts, schedules or downloads.

mod bases;
mod config;
mod decode;
pub mod defaults;
mod diagnostic;
mod diff;
mod duration;
mod fields;
mod files;
mod github;
mod host;
mod labels;
mod load;
mod machine;
mod network;
mod path;
mod persist;
mod problem;
mod read;
mod redact;
mod repository;
mod scalars;
mod schema;
mod secret;
mod shared;
mod source;
mod suggest;
mod syntax;
mod tables;
mod tree;
mod unknown;

pub use config::Config;
pub use diagnostic::{Code, Diagnostic, Location, Note, Severity, render_all};
pub use diff::Changes;
pub use github::GitHub;
pub use host::{Accel, Host, WebhookListen};
pub use load::{ConfigErrors, FILE_BYTES_MAX, Loaded};
pub use machine::{BUILT_IN_PARAMETERS, Base, Machine, Network, SetupTemplate};
pub use network::{Destination, DestinationError};
pub use path::{ConfigPath, Found};
pub use persist::PersistFrom;
pub use repository::RepositoryConfig;
pub use schema::schema;
pub use secret::Secret;
pub use shared::{NeverShared, Shared, SharedError};
pub use tables::{CPUS_MAX, SHARED_MAX};
