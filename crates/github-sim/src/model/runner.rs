//! Self-hosted runners, all of them just-in-time ones, which GitHub removes after one job.

use std::collections::BTreeSet;

use serde::Serialize;

use super::ids::{JobId, RepositoryId, RunnerId};
use super::time::Moment;

/// Where a runner is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunnerState {
    /// Without a connection and without a job.
    Offline {
        /// Since when.
        since: Moment,
    },
    /// Connected, waits for a job.
    Idle {
        /// Since when.
        since: Moment,
    },
    /// Was given a job and has not picked it up.
    Assigned {
        /// The job.
        job: JobId,
    },
    /// Runs a job.
    Busy {
        /// The job.
        job: JobId,
        /// Whether the connection is lost.
        lost: bool,
    },
}

impl RunnerState {
    /// The API's `status`.
    pub const fn status(&self) -> &'static str {
        match self {
            Self::Offline { .. } | Self::Busy { lost: true, .. } => "offline",
            Self::Idle { .. } | Self::Assigned { .. } | Self::Busy { lost: false, .. } => "online",
        }
    }

    /// The job that it holds, if any; GitHub calls such a runner busy.
    pub const fn job(&self) -> Option<JobId> {
        match self {
            Self::Offline { .. } | Self::Idle { .. } => None,
            Self::Assigned { job } | Self::Busy { job, .. } => Some(*job),
        }
    }
}

/// Why a runner was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RemovalReason {
    /// Its one job is over.
    JobDone,
    /// Through the API.
    Deleted,
    /// It was never connected, or not for long.
    Unconnected,
    /// It waited for a job for too long.
    Idle,
    /// Its connection was lost while it held a job.
    Lost,
    /// By the test, behind the client's back.
    BehindBack,
}

/// A registered runner.
#[derive(Debug, Clone)]
pub struct Runner {
    /// Its id.
    pub id: RunnerId,
    /// Its name.
    pub name: String,
    /// The repository it is registered for.
    pub repository: RepositoryId,
    /// Its labels as they were sent.
    pub labels: Vec<String>,
    /// The same in lower case, for comparison.
    pub(crate) label_set: BTreeSet<String>,
    /// What proves that a connection is its.
    pub(crate) secret: String,
    /// When it was registered.
    pub registered_at: Moment,
    /// When it connected first.
    pub first_online: Option<Moment>,
    /// Counts its connections: what an older one says no longer counts.
    pub(crate) session: u64,
    /// Where it is.
    pub state: RunnerState,
}

impl Runner {
    /// Whether a job with these labels can run on it: all of them are its own, without regard to
    /// case. A job without labels (`runs-on: {group: …}`) fits no runner of a repository.
    pub fn serves(&self, labels: &[String]) -> bool {
        !labels.is_empty()
            && labels.iter().all(|label| self.label_set.contains(&label.to_lowercase()))
    }
}

/// A runner as tests and scripts see it.
#[derive(Debug, Clone, Serialize)]
pub struct RunnerView {
    /// Its id.
    pub id: RunnerId,
    /// Its name.
    pub name: String,
    /// `owner/name`.
    pub repository: String,
    /// Its labels.
    pub labels: Vec<String>,
    /// The API's `status`.
    pub status: &'static str,
    /// The job that it holds.
    pub job: Option<JobId>,
    /// When it was registered.
    pub registered_at: Moment,
    /// When it connected first.
    pub first_online: Option<Moment>,
}
