//! The truth about GitHub: jobs, runners, and the webhooks that tell of them.

use std::collections::{BTreeMap, BTreeSet};

use forrest_core::event::{Persist, Runner};
use forrest_core::model::{
    Conclusion, Job, JobId, JobStatus, MachineType, Repository, RunnerId, RunnerName, Timestamp,
    WorkflowRunId,
};

/// Where a job really is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum At {
    /// Waits for an approval.
    Held,
    /// Waits for a runner.
    Queued,
    /// Given to a runner that has not taken it yet.
    Assigned(RunnerName),
    /// Runs.
    Running(RunnerName),
    /// Runs on a runner of somebody else; its name, where it looks like one of ours.
    Elsewhere(Option<RunnerName>),
    /// Over.
    Done(Conclusion, Option<RunnerName>),
}

/// A job as it really is.
#[derive(Debug, Clone)]
pub struct TrueJob {
    /// Its machine type's place in the plan.
    pub machine: usize,
    /// Its workflow run.
    pub workflow_run: WorkflowRunId,
    /// Which attempt.
    pub attempt: u32,
    /// When it was created, in GitHub's time.
    pub created: Timestamp,
    /// Where it is.
    pub at: At,
    /// The runner that it was given to last, and when it was given to that one first: some of GitHub's
    /// answers call it running from then on.
    pub given: Option<(RunnerName, u64)>,
    /// How long it runs, in milliseconds.
    pub takes: u64,
    /// When it ended, in milliseconds since the day began.
    pub ended: Option<u64>,
    /// How it ends if nothing comes between.
    pub outcome: Conclusion,
    /// What it leaves on its disk.
    pub persist: Persist,
}

/// A runner as it really is.
#[derive(Debug, Clone)]
pub struct TrueRunner {
    /// Its id.
    pub id: RunnerId,
    /// Its machine type's place in the plan.
    pub machine: usize,
    /// Whether it is connected.
    pub online: bool,
    /// The job that was given to it.
    pub job: Option<JobId>,
    /// Lists do not show it before this time.
    pub listed_from: u64,
}

/// A webhook.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// What it says.
    pub job: Job,
}

/// GitHub.
#[derive(Debug, Default)]
pub struct GitHub {
    /// All jobs.
    pub jobs: BTreeMap<JobId, TrueJob>,
    /// All runners that are registered.
    pub runners: BTreeMap<RunnerName, TrueRunner>,
    /// The log of webhooks.
    pub deliveries: Vec<Delivery>,
    /// Webhooks whose delivery failed, so that they can be asked for again, by their place there.
    pub undelivered: BTreeSet<usize>,
    /// Jobs that are not over.
    pub open: BTreeSet<JobId>,
    last_job: u64,
    last_runner: u64,
}

impl GitHub {
    /// Takes in a new job.
    pub fn add(&mut self, job: TrueJob) -> JobId {
        self.last_job += 1;
        let id = JobId(self.last_job);
        self.open.insert(id);
        self.jobs.insert(id, job);
        id
    }

    /// Registers a runner; `None` when the name is taken.
    pub fn register(
        &mut self,
        name: &RunnerName,
        machine: usize,
        listed_from: u64,
    ) -> Option<RunnerId> {
        if self.runners.contains_key(name) {
            return None;
        }
        self.last_runner += 1;
        let id = RunnerId(self.last_runner);
        let runner = TrueRunner { id, machine, online: false, job: None, listed_from };
        self.runners.insert(name.clone(), runner);
        Some(id)
    }

    /// The job that GitHub has given to a runner and that is not over.
    pub fn job_on(&self, name: &RunnerName) -> Option<JobId> {
        self.runners.get(name)?.job
    }

    /// Ends a job.
    pub fn conclude(&mut self, now: u64, id: JobId, conclusion: Conclusion) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.ended = Some(now);
        let runner = match &job.at {
            At::Assigned(runner) | At::Running(runner) => {
                if let Some(entry) = self.runners.get_mut(runner) {
                    entry.job = None;
                }
                Some(runner.clone())
            }
            At::Elsewhere(runner) => runner.clone(),
            At::Held | At::Queued | At::Done(..) => None,
        };
        job.at = At::Done(conclusion, runner);
        self.open.remove(&id);
    }

    /// What GitHub says of a job.
    pub fn report(
        &self,
        id: JobId,
        machines: &[MachineType],
        assigned_in_progress: bool,
    ) -> Option<Job> {
        let job = self.jobs.get(&id)?;
        let machine = &machines[job.machine];
        let (status, runner, conclusion) = match &job.at {
            At::Held => (JobStatus::Waiting, None, None),
            At::Assigned(runner) if assigned_in_progress => {
                (JobStatus::InProgress, Some(runner.clone()), None)
            }
            At::Queued | At::Assigned(_) => (JobStatus::Queued, None, None),
            At::Running(runner) => (JobStatus::InProgress, Some(runner.clone()), None),
            At::Elsewhere(runner) => (JobStatus::InProgress, runner.clone(), None),
            At::Done(conclusion, runner) => {
                (JobStatus::Completed, runner.clone(), Some(*conclusion))
            }
        };
        Some(Job {
            id,
            repository: machine.name.repository().clone(),
            workflow_run: job.workflow_run,
            run_attempt: job.attempt,
            status,
            conclusion,
            labels: ["self-hosted", "forrest", machine.name.machine()].into_iter().collect(),
            runner,
            name: None,
            workflow_name: None,
            head_branch: None,
            head_sha: None,
            created_at: Some(job.created),
        })
    }

    /// The list of a repository's runners.
    pub fn list(&self, now: u64, repository: &Repository, machines: &[MachineType]) -> Vec<Runner> {
        let there = |runner: &&TrueRunner| {
            runner.listed_from <= now && machines[runner.machine].name.repository() == repository
        };
        self.runners
            .iter()
            .filter(|(_, runner)| there(runner))
            .map(|(name, runner)| Runner {
                id: runner.id,
                name: name.clone(),
                online: runner.online,
                busy: runner.job.is_some(),
            })
            .collect()
    }
}
