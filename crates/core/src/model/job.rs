//! Jobs, as GitHub reports them.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Labels, Repository, RunnerName, Timestamp};

macro_rules! github_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

github_id! {
    /// GitHub's id of a job. A re-run of the job has a new one.
    JobId
}
github_id! {
    /// GitHub's id of a workflow run.
    WorkflowRunId
}
github_id! {
    /// GitHub's id of a registered runner.
    RunnerId
}

/// A job's status. GitHub's list is open: what Forrest does not know is [`JobStatus::Unknown`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobStatus {
    /// Waits for a runner.
    Queued,
    /// Held back by an approval or a concurrency group: not to be served yet.
    Waiting,
    /// Runs on a runner.
    InProgress,
    /// Over, with a conclusion.
    Completed,
    /// Something that this version does not know, or `requested`/`pending`: not to be served.
    Unknown,
}

/// How a job ended. GitHub's list is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Conclusion {
    /// All steps succeeded.
    Success,
    /// A step failed.
    Failure,
    /// Somebody cancelled it.
    Cancelled,
    /// Never ran.
    Skipped,
    /// Ran into GitHub's time limit.
    TimedOut,
    /// Anything else.
    Other,
}

/// What one report, webhook or poll, says of a job.
///
/// Everything that GitHub may leave out is optional.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The job's id.
    pub id: JobId,
    /// The repository it belongs to.
    pub repository: Repository,
    /// The workflow run it belongs to.
    pub workflow_run: WorkflowRunId,
    /// Which attempt of the workflow run, from 1.
    pub run_attempt: u32,
    /// Its status.
    pub status: JobStatus,
    /// How it ended, once [`JobStatus::Completed`].
    pub conclusion: Option<Conclusion>,
    /// What it asks for in `runs-on`.
    pub labels: Labels,
    /// The runner that took it, where that is one of Forrest's.
    pub runner: Option<RunnerName>,
    /// The job's name in the workflow.
    pub name: Option<String>,
    /// The workflow's name.
    pub workflow_name: Option<String>,
    /// The branch.
    pub head_branch: Option<String>,
    /// The commit.
    pub head_sha: Option<String>,
    /// When GitHub created the job.
    pub created_at: Option<Timestamp>,
}
