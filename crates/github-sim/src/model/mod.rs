//! The state of this GitHub: pure, without I/O, clock or threads. Time is an argument, chance comes
//! from a seed. What it looks like over HTTP is not its business.

mod account;
mod assign;
mod delivery;
mod event;
mod fault;
mod ids;
mod job;
mod limit;
mod log;
mod random;
mod repository;
mod runner;
mod runs;
mod settings;
mod time;
mod timer;
mod workflow;
mod world;

pub use account::{
    Account, AccountKind, App, Hook, HookContent, HookTarget, Installation, Permissions, Selection,
    Token, default_permissions,
};
pub use delivery::{MAX_ANSWER_BYTES, MAX_DELIVERIES};
pub use event::{JobAction, MAX_TIMELINE, TimelineEvent, What};
pub use fault::{ApiEffect, ApiFault, Faults, MAX_FAULTS, WebhookEffect, WebhookFault, When};
pub use ids::{AccountId, AppId, DeliveryId, InstallationId, JobId, RepositoryId, RunId, RunnerId};
pub use job::{
    Assignment, Conclusion, Job, JobState, JobTimes, JobView, RunnerRef, Step, StepView,
};
pub use log::{MAX_LINE_BYTES, MAX_LOG_BYTES};
pub use repository::Repository;
pub use runner::{RemovalReason, Runner, RunnerState, RunnerView};
pub use runs::{MAX_FINISHED_RUNS, MAX_LOGS_BYTES};
pub use settings::Settings;
pub use time::Moment;
pub use workflow::{JobSpec, MAX_JOBS_PER_WORKFLOW, StepSpec, Workflow, WorkflowRun};
pub use world::{MAX_TOKENS, STRANGER};

pub(crate) use account::grants;
pub(crate) use assign::{Orders, RegisterError};
pub(crate) use delivery::{Delivery, Outcome};
pub(crate) use event::Announcement;
pub(crate) use limit::{Budget, Payer};
pub(crate) use log::JobLog;
pub(crate) use world::World;
