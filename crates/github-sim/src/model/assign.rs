//! Runners and jobs find each other: registration, connections, assignment, pick-up, the end of a
//! job, loss and removal.
//!
//! ```text
//! registered ─> Offline ─connects─> Idle ─job─> Assigned ─picks up─> Busy ─done─> removed
//!                  ^ └────────a day──────────────┐ │ 60 s              │ ^
//!                  └──disconnects─────┴────────────┘                   v │ reconnects
//!                                                                 Busy, lost ──15 min──> removed
//! ```

use std::collections::BTreeMap;

use super::event::{JobAction, What};
use super::ids::{JobId, RepositoryId, RunnerId};
use super::job::{Assignment, Conclusion, Job, JobState, RunnerRef};
use super::runner::{RemovalReason, Runner, RunnerState, RunnerView};
use super::time::Moment;
use super::timer::Timer;
use super::workflow::WorkflowRun;
use super::world::World;
use crate::error::SimError;

/// Why a runner is not registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RegisterError {
    /// There is one of this name.
    NameTaken,
}

/// What a connected runner is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Orders {
    /// Nothing new.
    Wait,
    /// Pick up this job.
    Run(JobId),
    /// Stop this job, which it runs.
    Stop(JobId),
    /// Go: it is no longer registered, or another connection took its place.
    Leave,
}

impl World {
    /// Registers a just-in-time runner.
    pub(crate) fn register_runner(
        &mut self,
        repository: RepositoryId,
        name: &str,
        labels: Vec<String>,
        now: Moment,
    ) -> Result<RunnerId, RegisterError> {
        let taken = self
            .runners
            .values()
            .any(|r| r.repository == repository && r.name.eq_ignore_ascii_case(name));
        if taken {
            return Err(RegisterError::NameTaken);
        }
        let id = self.ids.runner();
        let secret = self.random.alphanumeric(32);
        let runner = Runner {
            id,
            name: name.to_owned(),
            repository,
            label_set: labels.iter().map(|label| label.to_lowercase()).collect(),
            labels,
            secret: secret.clone(),
            registered_at: now,
            first_online: None,
            session: 0,
            state: RunnerState::Offline { since: now },
        };
        self.runner_secrets.insert(secret, id);
        self.runners.insert(id, runner);
        self.arm(now.after(self.settings.unconnected_timeout), Timer::Unconnected(id));
        self.note(now, What::RunnerRegistered { runner: id, name: name.to_owned() });
        Ok(id)
    }

    /// A runner connects and waits for a job. Returns its id and the number of the connection.
    pub(crate) fn connect_runner(
        &mut self,
        secret: &str,
        now: Moment,
    ) -> Result<(RunnerId, u64), SimError> {
        let id = *self.runner_secrets.get(secret).ok_or(SimError::JitConfig)?;
        let runner = self.runners.get_mut(&id).ok_or(SimError::JitConfig)?;
        match runner.state {
            RunnerState::Offline { .. } => {
                runner.state = RunnerState::Idle { since: now };
                self.idle_runners.insert(id);
            }
            RunnerState::Busy { job, lost: true } => {
                runner.state = RunnerState::Busy { job, lost: false };
                if let Some(JobState::InProgress { lost, .. }) =
                    self.jobs.get_mut(&job).map(|job| &mut job.state)
                {
                    *lost = None;
                }
            }
            RunnerState::Idle { .. }
            | RunnerState::Assigned { .. }
            | RunnerState::Busy { lost: false, .. } => return Err(SimError::RunnerConnected(id)),
        }
        runner.first_online.get_or_insert(now);
        runner.session += 1;
        let session = runner.session;
        if let Some(limit) = self.settings.idle_timeout {
            self.arm(now.after(limit), Timer::Idle(id));
        }
        self.note(now, What::RunnerOnline { runner: id });
        self.assign(now);
        Ok((id, session))
    }

    /// What a connected runner is to do now.
    pub(crate) fn orders(&self, runner: RunnerId, session: u64) -> Orders {
        let Some(there) = self.runners.get(&runner) else {
            return if self.settings.tell_removed_runners { Orders::Leave } else { Orders::Wait };
        };
        if there.session != session {
            return Orders::Leave;
        }
        match there.state {
            RunnerState::Offline { .. } => Orders::Leave,
            RunnerState::Idle { .. } => Orders::Wait,
            RunnerState::Assigned { job } => Orders::Run(job),
            RunnerState::Busy { job, .. } => match self.state_of(job) {
                Some(JobState::InProgress { cancelling: Some(_), .. }) => Orders::Stop(job),
                Some(_) | None => Orders::Wait,
            },
        }
    }

    /// Gives queued jobs, longest waiting first, to idle runners, oldest first. Any runner of the
    /// repository that has all labels will do.
    pub(crate) fn assign(&mut self, now: Moment) {
        if self.idle_runners.is_empty() || self.queue.is_empty() {
            return;
        }
        for (queued, job) in self.queue.iter().copied().collect::<Vec<_>>() {
            if self.idle_runners.is_empty() {
                break;
            }
            let Some(there) = self.jobs.get_mut(&job) else { continue };
            let fit = self.idle_runners.iter().copied().find(|id| {
                self.runners.get(id).is_some_and(|runner| {
                    runner.repository == there.repository && runner.serves(&there.spec.runs_on)
                })
            });
            let (Some(runner), JobState::Queued { deadline }) = (fit, there.state) else {
                continue;
            };
            there.state = JobState::Assigned { runner, since: now, deadline, cancelled: false };
            there.times.assigned = Some(now);
            self.queue.remove(&(queued, job));
            self.disarm(deadline, Timer::Queue(job));
            self.set_runner(runner, RunnerState::Assigned { job });
            self.arm(now.after(self.settings.pickup_timeout), Timer::Pickup(job));
            self.note(now, What::JobAssigned { job, runner });
        }
    }

    /// Changes a runner's state and keeps the set of idle ones true.
    fn set_runner(&mut self, id: RunnerId, state: RunnerState) {
        if let Some(runner) = self.runners.get_mut(&id) {
            runner.state = state;
            if matches!(state, RunnerState::Idle { .. }) {
                self.idle_runners.insert(id);
            } else {
                self.idle_runners.remove(&id);
            }
        }
    }

    /// A runner begins with the job that it was given.
    pub(crate) fn pick_up(
        &mut self,
        runner: RunnerId,
        session: u64,
        job: JobId,
        now: Moment,
    ) -> Result<(), SimError> {
        if self.orders(runner, session) != Orders::Run(job) {
            return Err(SimError::RunnerGone(runner));
        }
        let there = self.runners.get(&runner).ok_or(SimError::RunnerGone(runner))?;
        let (name, online) = (there.name.clone(), there.first_online);
        let job_there = self.jobs.get_mut(&job).ok_or(SimError::UnknownJob(job))?;
        let cancelled = matches!(job_there.state, JobState::Assigned { cancelled: true, .. });
        job_there.state = JobState::InProgress { runner, lost: None, cancelling: None };
        job_there.times.runner_online = online;
        job_there.times.picked_up = Some(now);
        job_there.runner = Some(RunnerRef { id: runner, name: name.clone() });
        job_there.steps = Self::planned_steps(&job_there.spec, now);
        let limit = std::time::Duration::from_secs(job_there.spec.timeout_minutes * 60);
        self.set_runner(runner, RunnerState::Busy { job, lost: false });
        self.arm(now.after(limit), Timer::JobLimit(job));
        self.announce(job, JobAction::InProgress);
        self.note(now, What::JobPickedUp { job, runner, name });
        if cancelled {
            self.cancel_in_progress(job, now);
        }
        Ok(())
    }

    /// Asks a runner to stop its job.
    pub(crate) fn cancel_in_progress(&mut self, job: JobId, now: Moment) {
        if let Some(JobState::InProgress { cancelling: cancelling @ None, .. }) =
            self.jobs.get_mut(&job).map(|job| &mut job.state)
        {
            *cancelling = Some(now);
            self.arm(now.after(self.settings.cancel_timeout), Timer::Cancel(job));
            self.note(now, What::JobCancelling { job });
        }
    }

    /// A step of a job printed something.
    pub(crate) fn job_output(&mut self, job: JobId, bytes: &[u8], now: Moment) {
        let Some(there) = self.jobs.get_mut(&job) else { return };
        if bytes.is_empty() || !matches!(there.state, JobState::InProgress { .. }) {
            return;
        }
        if there.times.first_log_line.is_none() {
            there.times.first_log_line = Some(now);
            self.note(now, What::FirstLogLine { job });
        }
        self.append_log(job, bytes, now);
    }

    /// The job's own step `index` (from 0) begins.
    pub(crate) fn step_started(&mut self, job: JobId, index: usize, now: Moment) {
        if let Some(step) = self.own_step(job, index) {
            step.started.get_or_insert(now);
        }
    }

    /// The job's own step `index` (from 0) is over.
    pub(crate) fn step_ended(&mut self, job: JobId, index: usize, how: Conclusion, now: Moment) {
        if let Some(log) = self.logs.get_mut(&job) {
            log.flush(now);
        }
        if let Some(step) = self.own_step(job, index) {
            step.started.get_or_insert(now);
            step.completed.get_or_insert((now, how));
        }
    }

    fn own_step(&mut self, job: JobId, index: usize) -> Option<&mut super::job::Step> {
        let job = self.jobs.get_mut(&job)?;
        // The first is "Set up job", the last is "Complete job".
        let own = index.checked_add(1).filter(|own| own + 1 < job.steps.len())?;
        matches!(job.state, JobState::InProgress { .. }).then(|| job.steps.get_mut(own))?
    }

    /// A runner is done with its job, and with that itself.
    pub(crate) fn finish_job(
        &mut self,
        runner: RunnerId,
        session: u64,
        job: JobId,
        conclusion: Conclusion,
        now: Moment,
    ) -> Result<(), SimError> {
        let there = self.runners.get(&runner).ok_or(SimError::RunnerGone(runner))?;
        if there.session != session || there.state != (RunnerState::Busy { job, lost: false }) {
            return Err(SimError::RunnerGone(runner));
        }
        self.complete(job, conclusion, now);
        self.remove_runner(runner, RemovalReason::JobDone, now);
        Ok(())
    }

    /// A runner's connection ended.
    pub(crate) fn disconnect_runner(&mut self, runner: RunnerId, session: u64, now: Moment) {
        let Some(there) = self.runners.get(&runner).filter(|r| r.session == session) else {
            return;
        };
        match there.state {
            RunnerState::Offline { .. } | RunnerState::Busy { lost: true, .. } => return,
            RunnerState::Idle { .. } => {
                self.set_runner(runner, RunnerState::Offline { since: now });
                self.arm(now.after(self.settings.unconnected_timeout), Timer::Unconnected(runner));
            }
            // The job stays assigned until the minute is over: GitHub does not know better.
            RunnerState::Assigned { .. } => {}
            RunnerState::Busy { job, .. } => {
                self.set_runner(runner, RunnerState::Busy { job, lost: true });
                if let Some(JobState::InProgress { lost, .. }) =
                    self.jobs.get_mut(&job).map(|job| &mut job.state)
                {
                    *lost = Some(now);
                }
                self.arm(now.after(self.settings.lost_timeout), Timer::Lost(job));
            }
        }
        self.note(now, What::RunnerOffline { runner });
    }

    /// Forgets a runner. A job that it was given and did not pick up is queued again.
    pub(crate) fn remove_runner(&mut self, id: RunnerId, reason: RemovalReason, now: Moment) {
        let Some(runner) = self.runners.remove(&id) else { return };
        self.runner_secrets.remove(&runner.secret);
        self.idle_runners.remove(&id);
        self.note(now, What::RunnerRemoved { runner: id, name: runner.name, reason });
        if let RunnerState::Assigned { job } = runner.state {
            unassign_due(self, job, id, now);
        }
    }

    /// A runner as tests and scripts see it.
    pub(crate) fn runner_view(&self, id: RunnerId) -> Result<RunnerView, SimError> {
        let runner = self.runners.get(&id).ok_or(SimError::UnknownRunner(id))?;
        let repository = self.repositories.get(&runner.repository);
        Ok(RunnerView {
            id,
            name: runner.name.clone(),
            repository: repository.map(super::Repository::full_name).unwrap_or_default(),
            labels: runner.labels.clone(),
            status: runner.state.status(),
            job: runner.state.job(),
            registered_at: runner.registered_at,
            first_online: runner.first_online,
        })
    }

    /// What a runner needs to run the job.
    pub(crate) fn assignment(&self, job: JobId, runner: RunnerId) -> Option<Assignment> {
        let job = self.jobs.get(&job)?;
        let run = self.runs.get(&job.run)?;
        let mut env = self.github_env(job, run)?;
        env.insert("RUNNER_NAME".to_owned(), self.runners.get(&runner)?.name.clone());
        env.extend(job.spec.env.clone());
        let visible = run.workflow.sees_secrets();
        env.extend(job.spec.secrets.iter().map(|(name, value)| {
            (name.clone(), if visible { value.clone() } else { String::new() })
        }));
        Some(Assignment {
            job: job.id,
            name: job.spec.name.clone(),
            env,
            steps: job
                .spec
                .steps
                .iter()
                .map(|step| (step.name.clone(), step.run.clone(), step.always))
                .collect(),
        })
    }

    fn github_env(&self, job: &Job, run: &WorkflowRun) -> Option<BTreeMap<String, String>> {
        let repo = self.repositories.get(&job.repository)?;
        let (git_ref, ref_name, head_ref, base_ref) = if run.workflow.event == "pull_request" {
            let name = format!("{}/merge", run.number);
            (format!("refs/pull/{name}"), name, run.workflow.branch.clone(), "main".to_owned())
        } else {
            let branch = run.workflow.branch.clone();
            (format!("refs/heads/{branch}"), branch, String::new(), String::new())
        };
        let env = [
            ("CI", "true".to_owned()),
            ("GITHUB_ACTIONS", "true".to_owned()),
            ("GITHUB_ACTOR", "octocat".to_owned()),
            ("GITHUB_API_URL", self.settings.api_url.clone()),
            ("GITHUB_BASE_REF", base_ref),
            ("GITHUB_EVENT_NAME", run.workflow.event.clone()),
            ("GITHUB_HEAD_REF", head_ref),
            ("GITHUB_JOB", job.spec.name.clone()),
            ("GITHUB_REF", git_ref),
            ("GITHUB_REF_NAME", ref_name),
            ("GITHUB_REPOSITORY", repo.full_name()),
            ("GITHUB_REPOSITORY_OWNER", repo.owner.clone()),
            ("GITHUB_RUN_ATTEMPT", job.attempt.to_string()),
            ("GITHUB_RUN_ID", run.id.to_string()),
            ("GITHUB_RUN_NUMBER", run.number.to_string()),
            ("GITHUB_SERVER_URL", self.settings.html_url.clone()),
            ("GITHUB_SHA", run.sha.clone()),
            ("GITHUB_WORKFLOW", run.workflow.name.clone()),
            ("RUNNER_OS", "Linux".to_owned()),
        ];
        Some(env.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }
}

/// Takes a job back from a runner that did not pick it up; it is queued again with what is left of
/// its 24 hours, or over when it was cancelled meanwhile.
pub(super) fn unassign_due(world: &mut World, job: JobId, runner: RunnerId, now: Moment) {
    let Some(there) = world.jobs.get_mut(&job) else { return };
    let JobState::Assigned { deadline, cancelled, .. } = there.state else { return };
    there.state = JobState::Queued { deadline };
    there.times.assigned = None;
    let queued = there.times.queued.unwrap_or(now);
    world.queue.insert((queued, job));
    world.arm(deadline, Timer::Queue(job));
    world.set_runner(runner, RunnerState::Offline { since: now });
    world.arm(now.after(world.settings.unconnected_timeout), Timer::Unconnected(runner));
    world.note(now, What::JobRequeued { job, runner });
    if cancelled {
        world.complete(job, Conclusion::Cancelled, now);
    } else {
        world.assign(now);
    }
}

/// Cancels a job that was given to a runner and is not picked up yet: at once with `force`,
/// otherwise as soon as the runner picks it up or its minute is over.
pub(super) fn unassign_cancelled(world: &mut World, job: JobId, force: bool, now: Moment) {
    let Some(there) = world.jobs.get_mut(&job) else { return };
    let JobState::Assigned { runner, cancelled, .. } = &mut there.state else { return };
    let runner = *runner;
    *cancelled = true;
    if force {
        unassign_due(world, job, runner, now);
    }
}
