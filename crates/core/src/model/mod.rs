//! The words that every crate shares: names, labels, sizes, points in time, images, machine types,
//! jobs.
//!
//! Plain data with checked constructors. No policy and no state machine lives here.

mod bytes;
pub mod foreign_text;
mod image;
mod job;
mod label;
mod machine;
mod name;
mod time;
mod uids;

pub use bytes::{Bytes, ParseBytesError};
pub use image::{Generation, ImageRef, StartImage};
pub use job::{Conclusion, Job, JobId, JobStatus, RunnerId, WorkflowRunId};
pub use label::{Label, Labels};
pub use machine::{MachineType, UseBase};
pub use name::{MachineTypeName, NameError, Repository, RunnerName};
pub use time::Timestamp;
pub use uids::{UidRange, UidRangeError};
