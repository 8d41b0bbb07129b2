//! GitHub's JSON, reduced to the fields that Forrest reads, and its translation into the model.
//!
//! GitHub leaves fields out, sets them to null and adds enum values as it likes. So every field but
//! the identifying ones may be absent or null, enums are read as text, and unknown fields are
//! skipped.

use std::collections::BTreeMap;

use forrest_core::model::{
    Conclusion, Job, JobId, JobStatus, Label, Labels, Repository, RunnerId, RunnerName,
    WorkflowRunId,
};
use serde::{Deserialize, Deserializer};

use crate::clock;

/// Takes null for the default: an empty list, false.
fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A job, from REST and webhooks alike.
#[derive(Debug, Deserialize)]
pub(crate) struct WireJob {
    id: u64,
    run_id: u64,
    run_attempt: Option<u32>,
    pub(crate) status: Option<String>,
    conclusion: Option<String>,
    #[serde(default, deserialize_with = "nullable")]
    labels: Vec<String>,
    runner_name: Option<String>,
    name: Option<String>,
    workflow_name: Option<String>,
    head_branch: Option<String>,
    head_sha: Option<String>,
    created_at: Option<String>,
}

impl WireJob {
    /// The job in Forrest's words.
    pub(crate) fn into_job(self, repository: &Repository) -> Job {
        Job {
            id: JobId(self.id),
            repository: repository.clone(),
            workflow_run: WorkflowRunId(self.run_id),
            run_attempt: self.run_attempt.unwrap_or(1).max(1),
            status: self.status.as_deref().map_or(JobStatus::Unknown, status),
            conclusion: self.conclusion.as_deref().map(conclusion),
            labels: self.labels.into_iter().collect(),
            // Another manager's or GitHub's own runner is nobody that Forrest knows.
            runner: self.runner_name.and_then(|name| name.parse().ok()),
            name: self.name,
            workflow_name: self.workflow_name,
            head_branch: self.head_branch,
            head_sha: self.head_sha,
            created_at: self.created_at.as_deref().and_then(clock::rfc3339),
        }
    }
}

pub(crate) fn status(text: &str) -> JobStatus {
    match text {
        "queued" => JobStatus::Queued,
        "waiting" => JobStatus::Waiting,
        "in_progress" => JobStatus::InProgress,
        "completed" => JobStatus::Completed,
        _ => JobStatus::Unknown,
    }
}

fn conclusion(text: &str) -> Conclusion {
    match text {
        "success" => Conclusion::Success,
        "failure" => Conclusion::Failure,
        "cancelled" => Conclusion::Cancelled,
        "skipped" => Conclusion::Skipped,
        "timed_out" => Conclusion::TimedOut,
        _ => Conclusion::Other,
    }
}

/// `GET …/runs/{id}/jobs`.
#[derive(Debug, Deserialize)]
pub(crate) struct WireJobs {
    #[serde(default, deserialize_with = "nullable")]
    pub(crate) jobs: Vec<WireJob>,
}

/// `GET …/actions/runs`, of which only the ids matter.
#[derive(Debug, Deserialize)]
pub(crate) struct WireRuns {
    #[serde(default, deserialize_with = "nullable")]
    pub(crate) workflow_runs: Vec<WireRunId>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct WireRunId {
    pub(crate) id: u64,
}

/// `GET …/actions/runs/{id}`.
#[derive(Debug, Deserialize)]
pub(crate) struct WireRun {
    id: u64,
    event: Option<String>,
    head_branch: Option<String>,
    head_sha: Option<String>,
    head_repository: Option<WireRepository>,
}

/// Where a workflow run comes from; webhooks do not say it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkflowRunFacts {
    /// The workflow run.
    pub id: WorkflowRunId,
    /// What caused it: `push`, `pull_request`, `schedule`, `workflow_dispatch`…; GitHub's list is
    /// open.
    pub event: Option<String>,
    /// The repository that the commit is in; `None` when GitHub does not say, as for a fork that
    /// has been deleted.
    pub head_repository: Option<Repository>,
    /// The branch.
    pub head_branch: Option<String>,
    /// The commit.
    pub head_sha: Option<String>,
    /// Whether the commit is, or may be, from another repository than the one whose job it is. An
    /// unknown head repository counts as a fork.
    pub from_fork: bool,
}

impl WireRun {
    pub(crate) fn into_facts(self, repository: &Repository) -> WorkflowRunFacts {
        let head_repository = self.head_repository.and_then(WireRepository::into_name);
        let own = head_repository.as_ref().is_some_and(|head| same(head, repository));
        WorkflowRunFacts {
            id: WorkflowRunId(self.id),
            event: self.event,
            head_repository,
            head_branch: self.head_branch,
            head_sha: self.head_sha,
            from_fork: !own,
        }
    }
}

/// GitHub compares names without case, and a configuration may spell them as it likes.
fn same(a: &Repository, b: &Repository) -> bool {
    a.owner().eq_ignore_ascii_case(b.owner()) && a.name().eq_ignore_ascii_case(b.name())
}

/// A repository inside another object.
#[derive(Debug, Deserialize)]
pub(crate) struct WireRepository {
    pub(crate) full_name: Option<String>,
}

impl WireRepository {
    pub(crate) fn into_name(self) -> Option<Repository> {
        self.full_name?.parse().ok()
    }
}

/// A registered runner.
#[derive(Debug, Deserialize)]
pub(crate) struct WireRunner {
    id: u64,
    name: Option<String>,
    status: Option<String>,
    busy: Option<bool>,
    ephemeral: Option<bool>,
    #[serde(default, deserialize_with = "nullable")]
    labels: Vec<WireLabel>,
}

#[derive(Debug, Deserialize)]
struct WireLabel {
    name: Option<String>,
}

/// A registered runner, Forrest's or another one's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runner {
    /// GitHub's id of it.
    pub id: RunnerId,
    /// Its name as GitHub has it.
    pub name: String,
    /// Its name, if it has the form of those that Forrest gives.
    pub forrest_name: Option<RunnerName>,
    /// Whether it is connected.
    pub online: bool,
    /// Whether it has a job. After a crash GitHub may say so for up to 15 minutes.
    pub busy: bool,
    /// Whether GitHub removes it after one job; `None` where GitHub does not say.
    pub ephemeral: Option<bool>,
    /// Its labels.
    pub labels: Labels,
}

impl From<WireRunner> for Runner {
    fn from(wire: WireRunner) -> Self {
        let name = wire.name.unwrap_or_default();
        Self {
            id: RunnerId(wire.id),
            forrest_name: name.parse().ok(),
            name,
            online: wire.status.is_some_and(|status| status == "online"),
            // Doubt counts as busy: nothing is stopped because a field was missing.
            busy: wire.busy.unwrap_or(true),
            ephemeral: wire.ephemeral,
            labels: wire
                .labels
                .into_iter()
                .filter_map(|label| label.name)
                .map(Label::from)
                .collect(),
        }
    }
}

/// `GET …/actions/runners`.
#[derive(Debug, Deserialize)]
pub(crate) struct WireRunners {
    #[serde(default, deserialize_with = "nullable")]
    pub(crate) runners: Vec<WireRunner>,
}

/// The answer of `generate-jitconfig`. No `Debug`: it holds the runner's credentials.
#[derive(Deserialize)]
pub(crate) struct WireJit {
    pub(crate) runner: WireRunner,
    pub(crate) encoded_jit_config: String,
}

/// `GET …/installation`.
#[derive(Debug, Deserialize)]
pub(crate) struct WireInstallation {
    pub(crate) id: u64,
    pub(crate) account: Option<WireAccount>,
    pub(crate) suspended_at: Option<String>,
    pub(crate) permissions: Option<BTreeMap<String, Option<String>>>,
    pub(crate) events: Option<Vec<String>>,
    pub(crate) html_url: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct WireAccount {
    /// Users and organisations have this.
    pub(crate) login: Option<String>,
    /// Enterprises have this instead.
    pub(crate) slug: Option<String>,
}

/// The answer of `access_tokens`. No `Debug`: it holds the token.
#[derive(Deserialize)]
pub(crate) struct WireToken {
    pub(crate) token: String,
    pub(crate) expires_at: Option<String>,
}

/// `GET /app`.
#[derive(Debug, Deserialize)]
pub(crate) struct WireApp {
    pub(crate) id: Option<u64>,
    pub(crate) slug: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) html_url: Option<String>,
    pub(crate) permissions: Option<BTreeMap<String, Option<String>>>,
    pub(crate) events: Option<Vec<String>>,
}

/// One entry of `GET /app/hook/deliveries`.
#[derive(Debug, Deserialize)]
pub(crate) struct WireDelivery {
    pub(crate) id: u64,
    pub(crate) guid: Option<String>,
    pub(crate) delivered_at: Option<String>,
    pub(crate) redelivery: Option<bool>,
    pub(crate) status: Option<String>,
    pub(crate) status_code: Option<i64>,
    pub(crate) event: Option<String>,
    pub(crate) action: Option<String>,
}

/// What GitHub says in an error.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct WireError {
    pub(crate) message: Option<String>,
    /// A list of texts or objects, or one text.
    pub(crate) errors: Option<serde_json::Value>,
}
