//! Jobs and workflow runs: what polling asks for.

use std::collections::BTreeSet;

use forrest_core::model::{Job, JobId, Repository, Timestamp, WorkflowRunId};
use futures::StreamExt;

use crate::GitHubError;
use crate::client::{Call, GitHub};
use crate::permissions;
use crate::wire::{WireJob, WireJobs, WireRun, WireRuns, WorkflowRunFacts};

/// The statuses of workflow runs that can hold jobs which are not over, in the order in which a run
/// passes through them: one that moves on while we read is met again further down.
const ACTIVE: [&str; 5] = ["requested", "pending", "waiting", "queued", "in_progress"];

/// Workflow runs older than this are not looked at. GitHub ends a run after 35 days and lets one be
/// repeated for 30; what is older is debris that GitHub never closed.
const ACTIVE_DAYS: u64 = 70;

/// The most pages of 100 workflow runs per status; GitHub itself gives no more than 1,000.
const RUN_PAGES_MAX: usize = 10;

/// The most workflow runs of one repository whose jobs are read.
const RUNS_MAX: usize = 500;

/// The most pages of 100 jobs per workflow run.
const JOB_PAGES_MAX: usize = 20;

/// How many workflow runs are read at a time.
const RUNS_AT_A_TIME: usize = 6;

/// What polling found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActiveJobs {
    /// Every job of every workflow run that is not over, in ascending order of its id. Jobs that are
    /// over are among them: that repairs a missed `completed`.
    pub jobs: Vec<Job>,
    /// Whether these are all. If not, a job's absence says nothing.
    pub complete: bool,
}

impl GitHub {
    /// Reads the jobs of all workflow runs that are not over. Costs nothing when nothing has changed:
    /// each address is asked conditionally, the jobs of each run too, since GitHub need not touch
    /// the run when one of its jobs changes.
    ///
    /// # Errors
    /// As every request; nothing is returned then, because half a list would be misread.
    pub async fn active_jobs(&self, repository: &Repository) -> Result<ActiveJobs, GitHubError> {
        let since = day(self.github_now(), ACTIVE_DAYS);
        let mut runs = BTreeSet::new();
        let mut complete = true;
        for status in ACTIVE {
            let path = format!(
                "/repos/{repository}/actions/runs?status={status}&created=%3E%3D{since}\
                 &exclude_pull_requests=true&per_page=100"
            );
            let (pages, all) = self.pages(repository, path, RUN_PAGES_MAX, parse_runs).await?;
            runs.extend(pages.iter().flat_map(|page| page.iter().copied()));
            complete &= all;
        }
        complete &= runs.len() <= RUNS_MAX;
        // The newest ones, if not all.
        let chosen: Vec<WorkflowRunId> = runs.into_iter().rev().take(RUNS_MAX).collect();
        let mut answers = futures::stream::iter(chosen)
            .map(|run| self.jobs_of(repository, run))
            .buffer_unordered(RUNS_AT_A_TIME);
        let mut jobs = Vec::new();
        while let Some(answer) = answers.next().await {
            let (some, all) = answer?;
            jobs.extend(some);
            complete &= all;
        }
        jobs.sort_by_key(|job: &Job| job.id);
        jobs.dedup_by_key(|job| job.id);
        Ok(ActiveJobs { jobs, complete })
    }

    /// Reads one job.
    ///
    /// # Errors
    /// As every request; a job that GitHub does not know (any more) is `None`.
    pub async fn job(
        &self,
        repository: &Repository,
        id: JobId,
    ) -> Result<Option<Job>, GitHubError> {
        let call = Call::get(format!("/repos/{repository}/actions/jobs/{id}"));
        let Some(body) = self.body_if_found(repository, &call).await? else { return Ok(None) };
        let wire: WireJob = call.parse(&body)?;
        Ok(Some(wire.into_job(repository)))
    }

    /// Reads what caused a workflow run and where its commit is from.
    ///
    /// # Errors
    /// As every request; a run that GitHub does not know (any more) is `None`.
    pub async fn workflow_run(
        &self,
        repository: &Repository,
        id: WorkflowRunId,
    ) -> Result<Option<WorkflowRunFacts>, GitHubError> {
        let path = format!("/repos/{repository}/actions/runs/{id}?exclude_pull_requests=true");
        let call = Call::get(path);
        let Some(body) = self.body_if_found(repository, &call).await? else { return Ok(None) };
        let wire: WireRun = call.parse(&body)?;
        Ok(Some(wire.into_facts(repository)))
    }

    async fn jobs_of(
        &self,
        repository: &Repository,
        run: WorkflowRunId,
    ) -> Result<(Vec<Job>, bool), GitHubError> {
        let path =
            format!("/repos/{repository}/actions/runs/{run}/jobs?filter=latest&per_page=100");
        match self.pages(repository, path, JOB_PAGES_MAX, parse_jobs).await {
            Ok((pages, all)) => {
                Ok((pages.iter().flat_map(|page| page.iter().cloned()).collect(), all))
            }
            // Deleted since it was listed.
            Err(GitHubError::NotFound { .. }) => Ok((Vec::new(), true)),
            Err(error) => Err(error),
        }
    }

    async fn body_if_found(
        &self,
        repository: &Repository,
        call: &Call,
    ) -> Result<Option<Vec<u8>>, GitHubError> {
        let (answer, missing) = self.call(repository, call).await?;
        if matches!(answer.status, 404 | 410) {
            return Ok(None);
        }
        let hint =
            permissions::hint(Some(repository), &missing, answer.accepted_permissions.as_deref());
        Ok(Some(self.expect_success(call, answer, Some(hint))?.body))
    }
}

pub(crate) fn parse_runs(
    body: &[u8],
    _: &Repository,
) -> Result<Vec<WorkflowRunId>, serde_json::Error> {
    let wire: WireRuns = serde_json::from_slice(body)?;
    Ok(wire.workflow_runs.into_iter().map(|run| WorkflowRunId(run.id)).collect())
}

pub(crate) fn parse_jobs(
    body: &[u8],
    repository: &Repository,
) -> Result<Vec<Job>, serde_json::Error> {
    let wire: WireJobs = serde_json::from_slice(body)?;
    Ok(wire.jobs.into_iter().map(|job| job.into_job(repository)).collect())
}

/// The day, some days before `now`, as `2026-01-31`. A day rather than a time keeps the address, and
/// with it the conditional request, the same for a day.
fn day(now: Timestamp, days_before: u64) -> String {
    const DAY_MS: u64 = 24 * 3600 * 1000;
    let then = now.0.saturating_sub(days_before * DAY_MS);
    let time = i64::try_from(then).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    time.unwrap_or(jiff::Timestamp::UNIX_EPOCH).strftime("%Y-%m-%d").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_day_is_the_same_all_day() {
        let at = |text| crate::clock::rfc3339(text).expect("a time");
        assert_eq!(day(at("2026-03-01T00:00:01Z"), 1), "2026-02-28");
        assert_eq!(day(at("2026-03-01T23:59:59Z"), 1), "2026-02-28");
        assert_eq!(day(Timestamp(0), 70), "1970-01-01");
    }
}
