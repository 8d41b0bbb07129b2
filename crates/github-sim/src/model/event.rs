//! The timeline: what happened, in order. And what is to be announced by webhook.

use std::collections::VecDeque;

use serde::Serialize;

use super::ids::{DeliveryId, JobId, RunnerId};
use super::job::{Conclusion, Job};
use super::runner::RemovalReason;
use super::time::Moment;

/// How many events the timeline keeps.
pub const MAX_TIMELINE: usize = 20_000;

/// One entry of the timeline.
#[derive(Debug, Clone, Serialize)]
pub struct TimelineEvent {
    /// Its number, from 1, without gaps.
    pub seq: u64,
    /// When.
    pub at: Moment,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum What {
    /// A job waits for an approval.
    JobWaiting {
        /// The job.
        job: JobId,
    },
    /// A job waits for a runner.
    JobQueued {
        /// The job.
        job: JobId,
    },
    /// A job was given to a runner.
    JobAssigned {
        /// The job.
        job: JobId,
        /// The runner.
        runner: RunnerId,
    },
    /// A job was taken back from a runner that did not pick it up.
    JobRequeued {
        /// The job.
        job: JobId,
        /// The runner.
        runner: RunnerId,
    },
    /// A runner began with a job.
    JobPickedUp {
        /// The job.
        job: JobId,
        /// The runner.
        runner: RunnerId,
        /// The runner's name.
        name: String,
    },
    /// A step of the job printed something for the first time.
    FirstLogLine {
        /// The job.
        job: JobId,
    },
    /// A job is to be stopped.
    JobCancelling {
        /// The job.
        job: JobId,
    },
    /// A job is over.
    JobCompleted {
        /// The job.
        job: JobId,
        /// How.
        conclusion: Conclusion,
    },
    /// A runner was registered.
    RunnerRegistered {
        /// The runner.
        runner: RunnerId,
        /// Its name.
        name: String,
    },
    /// A runner connected.
    RunnerOnline {
        /// The runner.
        runner: RunnerId,
    },
    /// A runner's connection ended.
    RunnerOffline {
        /// The runner.
        runner: RunnerId,
    },
    /// A runner is no longer registered.
    RunnerRemoved {
        /// The runner.
        runner: RunnerId,
        /// Its name.
        name: String,
        /// Why.
        reason: RemovalReason,
    },
    /// An attempt to deliver a webhook ended.
    WebhookDelivered {
        /// The attempt.
        delivery: DeliveryId,
        /// The event.
        event: String,
        /// The action.
        action: Option<String>,
        /// The receiver's status, or what GitHub notes where there is none.
        status: u16,
    },
    /// A webhook was lost on purpose.
    WebhookLost {
        /// The event.
        event: String,
        /// The action.
        action: Option<String>,
    },
}

/// The action of a `workflow_job` event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobAction {
    /// `queued`, also for jobs that wait for an approval.
    Queued,
    /// `waiting`.
    Waiting,
    /// `in_progress`.
    InProgress,
    /// `completed`.
    Completed,
}

impl JobAction {
    /// As the payload writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Waiting => "waiting",
            Self::InProgress => "in_progress",
            Self::Completed => "completed",
        }
    }
}

/// A change of a job that webhooks tell of, with the job as it was at that time.
#[derive(Debug, Clone)]
pub(crate) struct Announcement {
    pub(crate) action: JobAction,
    pub(crate) job: Job,
}

/// The latest events.
#[derive(Debug, Default)]
pub(crate) struct Timeline {
    events: VecDeque<TimelineEvent>,
    last: u64,
}

impl Timeline {
    pub(crate) fn push(&mut self, at: Moment, what: What) {
        self.last += 1;
        if self.events.len() >= MAX_TIMELINE {
            self.events.pop_front();
        }
        self.events.push_back(TimelineEvent { seq: self.last, at, what });
    }

    /// The number of the latest event, 0 before the first.
    pub(crate) const fn last(&self) -> u64 {
        self.last
    }

    /// The kept events after number `seq`.
    pub(crate) fn after(&self, seq: u64) -> impl Iterator<Item = &TimelineEvent> {
        let newer = usize::try_from(self.last.saturating_sub(seq)).unwrap_or(usize::MAX);
        self.events.iter().skip(self.events.len().saturating_sub(newer))
    }
}
