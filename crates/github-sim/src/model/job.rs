//! Jobs and their steps.
//!
//! ```text
//! Blocked ──needs done──┬─> Waiting ──approved──> Queued <──not picked up── Assigned
//!    │                  └──────────────────────────^ └──────runner free──────^ │
//!    │ a need failed              │ rejected         │ 24 h, cancelled         │ picked up
//!    v                            v                  v                         v
//! Completed (skipped)       Completed           Completed <───────────── InProgress
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use super::ids::{JobId, RepositoryId, RunId, RunnerId};
use super::time::Moment;
use super::workflow::JobSpec;

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Conclusion {
    /// Every step succeeded.
    Success,
    /// A step failed, or the job could not be run.
    Failure,
    /// Somebody cancelled it.
    Cancelled,
    /// It never ran.
    Skipped,
}

impl Conclusion {
    /// As the API writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Cancelled => "cancelled",
            Self::Skipped => "skipped",
        }
    }
}

/// Where a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobState {
    /// Its needs are not done; the API does not show it.
    Blocked,
    /// Held back by an approval.
    Waiting,
    /// Waits for a runner.
    Queued {
        /// Until when a runner must have it.
        deadline: Moment,
    },
    /// Given to a runner that has not picked it up. The API says `queued`.
    Assigned {
        /// The runner.
        runner: RunnerId,
        /// Since when.
        since: Moment,
        /// Until when a runner must have it, should this one not pick it up.
        deadline: Moment,
        /// Whether it was cancelled meanwhile.
        cancelled: bool,
    },
    /// Runs.
    InProgress {
        /// The runner.
        runner: RunnerId,
        /// Since when the runner has had no connection.
        lost: Option<Moment>,
        /// Since when the runner is asked to stop.
        cancelling: Option<Moment>,
    },
    /// Over.
    Completed {
        /// How.
        conclusion: Conclusion,
    },
}

impl JobState {
    /// The API's `status`.
    pub const fn status(&self) -> &'static str {
        match self {
            Self::Blocked => "blocked",
            Self::Waiting => "waiting",
            Self::Queued { .. } | Self::Assigned { .. } => "queued",
            Self::InProgress { .. } => "in_progress",
            Self::Completed { .. } => "completed",
        }
    }

    /// The conclusion, once there is one.
    pub const fn conclusion(&self) -> Option<Conclusion> {
        match self {
            Self::Completed { conclusion } => Some(*conclusion),
            Self::Blocked
            | Self::Waiting
            | Self::Queued { .. }
            | Self::Assigned { .. }
            | Self::InProgress { .. } => None,
        }
    }

    /// Whether it is over.
    pub const fn is_completed(&self) -> bool {
        matches!(self, Self::Completed { .. })
    }
}

/// When what happened to a job: what the benchmarks read. Taken when the simulator learnt of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct JobTimes {
    /// It became `queued` (first time).
    pub queued: Option<Moment>,
    /// It was given to the runner that ran it.
    pub assigned: Option<Moment>,
    /// The runner that ran it came online (first time).
    pub runner_online: Option<Moment>,
    /// The runner picked it up: `in_progress`.
    pub picked_up: Option<Moment>,
    /// The first byte that one of its steps printed arrived.
    pub first_log_line: Option<Moment>,
    /// It was over.
    pub completed: Option<Moment>,
}

/// The runner that has or had the job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunnerRef {
    /// Its id.
    pub id: RunnerId,
    /// Its name.
    pub name: String,
}

/// A step of a job that runs or ran.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Its name.
    pub name: String,
    /// When it began.
    pub started: Option<Moment>,
    /// When and how it ended.
    pub completed: Option<(Moment, Conclusion)>,
}

/// A job of one attempt of a workflow run.
#[derive(Debug, Clone)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// The workflow run.
    pub run: RunId,
    /// The attempt, from 1.
    pub attempt: u32,
    /// The repository.
    pub repository: RepositoryId,
    /// What it is.
    pub spec: Arc<JobSpec>,
    /// Where it is.
    pub state: JobState,
    /// When the API began to show it.
    pub created_at: Moment,
    /// When what happened.
    pub times: JobTimes,
    /// The runner that picked it up.
    pub runner: Option<RunnerRef>,
    /// Its steps, once picked up: `Set up job`, its own, `Complete job`.
    pub steps: Vec<Step>,
}

impl Job {
    /// Its labels: what `runs-on` says, and nothing for a skipped job.
    pub fn labels(&self) -> &[String] {
        if self.state.conclusion() == Some(Conclusion::Skipped) { &[] } else { &self.spec.runs_on }
    }

    /// The API's `started_at`: when it was picked up, before that when it was created.
    pub fn started_at(&self) -> Moment {
        self.times.picked_up.unwrap_or(self.created_at)
    }

    /// Whether it is behind an approval.
    pub fn is_gated(&self) -> bool {
        self.spec.environment.is_some()
    }
}

/// A job as tests and scripts see it.
#[derive(Debug, Clone, Serialize)]
pub struct JobView {
    /// Its id.
    pub id: JobId,
    /// The workflow run.
    pub run_id: RunId,
    /// The attempt, from 1.
    pub run_attempt: u32,
    /// `owner/name`.
    pub repository: String,
    /// Its name in the workflow.
    pub name: String,
    /// The API's `status`, or `blocked` before the API shows it.
    pub status: &'static str,
    /// Whether a runner was given the job and has not picked it up yet.
    pub assigned: bool,
    /// How it ended.
    pub conclusion: Option<Conclusion>,
    /// `runs-on`.
    pub labels: Vec<String>,
    /// The runner that picked it up.
    pub runner_id: Option<RunnerId>,
    /// The runner's name.
    pub runner_name: Option<String>,
    /// When what happened, in seconds since the Unix epoch.
    pub times: JobTimes,
    /// The steps by name with their conclusions.
    pub steps: Vec<StepView>,
    /// The event that triggered the workflow.
    pub event: String,
    /// The size of its log in bytes.
    pub log_bytes: usize,
}

/// A step as tests and scripts see it.
#[derive(Debug, Clone, Serialize)]
pub struct StepView {
    /// Its name.
    pub name: String,
    /// When it began.
    pub started: Option<Moment>,
    /// When it ended.
    pub completed: Option<Moment>,
    /// How.
    pub conclusion: Option<Conclusion>,
}

impl From<&Step> for StepView {
    fn from(step: &Step) -> Self {
        Self {
            name: step.name.clone(),
            started: step.started,
            completed: step.completed.map(|(at, _)| at),
            conclusion: step.completed.map(|(_, conclusion)| conclusion),
        }
    }
}

/// Everything that a runner needs to run a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// The job.
    pub job: JobId,
    /// Its name.
    pub name: String,
    /// Its environment: GitHub's variables, the job's own, and its secrets where it may see them.
    pub env: BTreeMap<String, String>,
    /// Its steps: name, script, whether to run after a failure too.
    pub steps: Vec<(String, String, bool)>,
}
