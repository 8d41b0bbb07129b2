//! Workflow runs: triggering, needs, approvals, cancelling, re-running, forgetting.

use std::sync::Arc;

use super::assign::unassign_cancelled;
use super::event::{Announcement, JobAction, What};
use super::ids::{JobId, RepositoryId, RunId};
use super::job::{Conclusion, Job, JobState, JobTimes, JobView, Step, StepView};
use super::log::JobLog;
use super::runner::RemovalReason;
use super::time::Moment;
use super::timer::Timer;
use super::workflow::{JobSpec, Workflow, WorkflowRun};
use super::world::World;
use crate::error::SimError;

/// How many finished workflow runs are kept.
pub const MAX_FINISHED_RUNS: usize = 10_000;
/// How much the logs of all jobs together may take, in bytes; the oldest go first.
pub const MAX_LOGS_BYTES: usize = 256 << 20;

/// A workflow run's status and conclusion, which follow from its jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RunStatus {
    pub(crate) status: &'static str,
    pub(crate) conclusion: Option<&'static str>,
}

impl World {
    /// Triggers a workflow.
    pub(crate) fn queue_workflow(
        &mut self,
        repository: RepositoryId,
        workflow: Workflow,
        now: Moment,
    ) -> Result<RunId, SimError> {
        workflow.check()?;
        let head_repository = workflow.from_fork.then(|| self.fork_of(repository, now));
        let repo = self
            .repositories
            .get_mut(&repository)
            .ok_or_else(|| SimError::UnknownRepository(repository.to_string()))?;
        repo.run_count += 1;
        let number = repo.run_count;
        let id = self.ids.run();
        let sha = workflow.sha.clone().unwrap_or_else(|| self.random.hex(40));
        let workflow = Arc::new(workflow);
        let run = WorkflowRun {
            id,
            number,
            repository,
            head_repository,
            workflow: Arc::clone(&workflow),
            sha,
            created_at: now,
            attempt_started_at: now,
            updated_at: now,
            attempts: Vec::new(),
        };
        self.runs.insert(id, run);
        let jobs = workflow
            .jobs
            .iter()
            .map(|spec| self.add_job(id, 1, Arc::new(spec.clone()), now))
            .collect();
        self.begin_attempt(id, jobs, now);
        Ok(id)
    }

    fn add_job(&mut self, run: RunId, attempt: u32, spec: Arc<JobSpec>, now: Moment) -> JobId {
        let id = self.ids.job();
        let repository = self.runs.get(&run).map_or(RepositoryId(0), |run| run.repository);
        self.logs.insert(id, JobLog::masking(spec.secrets.values().cloned()));
        let job = Job {
            id,
            run,
            attempt,
            repository,
            spec,
            state: JobState::Blocked,
            created_at: now,
            times: JobTimes::default(),
            runner: None,
            steps: Vec::new(),
        };
        self.jobs.insert(id, job);
        id
    }

    fn begin_attempt(&mut self, run: RunId, jobs: Vec<JobId>, now: Moment) {
        if let Some(there) = self.runs.get_mut(&run) {
            there.attempts.push(jobs);
            there.attempt_started_at = now;
            there.updated_at = now;
        }
        self.release(run, now);
        self.assign(now);
    }

    /// Lets go of the jobs whose needs are done, until none is left.
    fn release(&mut self, run: RunId, now: Moment) {
        while let Some((job, fits)) = self.next_released(run) {
            let Some(there) = self.jobs.get_mut(&job) else { return };
            there.created_at = now;
            if !fits || there.spec.skip {
                self.settle(job, Conclusion::Skipped, now);
            } else if there.is_gated() {
                there.state = JobState::Waiting;
                self.announce(job, JobAction::Queued);
                self.announce(job, JobAction::Waiting);
                self.note(now, What::JobWaiting { job });
            } else {
                self.enqueue(job, now);
            }
        }
        self.finish_run(run, now);
    }

    /// A blocked job whose needs are done, and whether all of them succeeded.
    fn next_released(&self, run: RunId) -> Option<(JobId, bool)> {
        let jobs: Vec<&Job> =
            self.runs.get(&run)?.jobs().iter().filter_map(|id| self.jobs.get(id)).collect();
        jobs.iter().filter(|job| job.state == JobState::Blocked).find_map(|job| {
            let needs: Vec<_> =
                jobs.iter().filter(|j| job.spec.needs.contains(&j.spec.name)).collect();
            let done = needs.iter().all(|need| need.state.is_completed());
            let well =
                needs.iter().all(|need| need.state.conclusion() == Some(Conclusion::Success));
            done.then_some((job.id, well))
        })
    }

    /// Puts a job into the queue, with 24 hours from now.
    fn enqueue(&mut self, job: JobId, now: Moment) {
        let deadline = now.after(self.settings.queue_timeout);
        let Some(there) = self.jobs.get_mut(&job) else { return };
        there.state = JobState::Queued { deadline };
        let queued = *there.times.queued.get_or_insert(now);
        self.queue.insert((queued, job));
        self.arm(deadline, Timer::Queue(job));
        self.announce(job, JobAction::Queued);
        self.note(now, What::JobQueued { job });
    }

    /// Tells webhooks of a job as it is now.
    pub(crate) fn announce(&mut self, job: JobId, action: JobAction) {
        if let Some(job) = self.jobs.get(&job) {
            self.outbox.push(Announcement { action, job: job.clone() });
        }
    }

    /// Ends a job, whatever it was doing. What becomes of its runner is the caller's business.
    pub(crate) fn complete(&mut self, job: JobId, conclusion: Conclusion, now: Moment) {
        let Some((run, state)) = self.jobs.get(&job).map(|job| (job.run, job.state)) else {
            return;
        };
        if state.is_completed() {
            return;
        }
        self.settle(job, conclusion, now);
        self.release(run, now);
        self.assign(now);
    }

    fn settle(&mut self, job: JobId, conclusion: Conclusion, now: Moment) {
        let Some(there) = self.jobs.get_mut(&job) else { return };
        if there.state.is_completed() {
            return;
        }
        if let JobState::Queued { deadline } = there.state {
            let queued = there.times.queued.unwrap_or(now);
            self.queue.remove(&(queued, job));
            self.timers.remove(&(deadline, Timer::Queue(job)));
        }
        there.state = JobState::Completed { conclusion };
        there.times.completed = Some(now);
        for step in &mut there.steps {
            let verdict = match (step.started, conclusion) {
                (None, _) => Conclusion::Skipped,
                (Some(_), Conclusion::Success | Conclusion::Skipped) => Conclusion::Success,
                (Some(_), Conclusion::Failure) => Conclusion::Failure,
                (Some(_), Conclusion::Cancelled) => Conclusion::Cancelled,
            };
            step.started.get_or_insert(now);
            step.completed.get_or_insert((now, verdict));
        }
        if let Some(log) = self.logs.get_mut(&job) {
            log.flush(now);
        }
        self.announce(job, JobAction::Completed);
        self.note(now, What::JobCompleted { job, conclusion });
    }

    fn finish_run(&mut self, run: RunId, now: Moment) {
        let Some(there) = self.runs.get_mut(&run) else { return };
        there.updated_at = now;
        if self.run_status(run).status == "completed" {
            self.finished_runs.insert((now, run));
            while self.finished_runs.len() > MAX_FINISHED_RUNS {
                if let Some((_, oldest)) = self.finished_runs.pop_first() {
                    self.forget_run(oldest);
                }
            }
        }
    }

    fn forget_run(&mut self, run: RunId) {
        let Some(run) = self.runs.remove(&run) else { return };
        for job in run.attempts.into_iter().flatten() {
            self.jobs.remove(&job);
            self.forget_log(job);
        }
    }

    fn forget_log(&mut self, job: JobId) {
        if let Some(log) = self.logs.remove(&job) {
            self.log_bytes = self.log_bytes.saturating_sub(log.len());
        }
    }

    /// Appends to a job's log.
    pub(crate) fn append_log(&mut self, job: JobId, bytes: &[u8], now: Moment) {
        let Some(log) = self.logs.get_mut(&job) else { return };
        let before = log.len();
        log.append(bytes, now);
        self.log_bytes = (self.log_bytes + log.len()).saturating_sub(before);
        self.touched += 1;
        while self.log_bytes > MAX_LOGS_BYTES {
            match self.logs.keys().copied().find(|oldest| *oldest != job) {
                Some(oldest) => self.forget_log(oldest),
                None => break,
            }
        }
    }

    /// A workflow run's status, from the jobs of its latest attempt.
    pub(crate) fn run_status(&self, run: RunId) -> RunStatus {
        let states: Vec<JobState> = self
            .runs
            .get(&run)
            .map(|run| run.jobs().iter().filter_map(|id| self.state_of(*id)).collect())
            .unwrap_or_default();
        let any = |test: fn(&JobState) -> bool| states.iter().any(test);
        let ended = |wanted| states.iter().any(|s| s.conclusion() == Some(wanted));
        if states.iter().all(JobState::is_completed) {
            let conclusion = if ended(Conclusion::Failure) {
                Conclusion::Failure
            } else if ended(Conclusion::Cancelled) {
                Conclusion::Cancelled
            } else if ended(Conclusion::Success) {
                Conclusion::Success
            } else {
                Conclusion::Skipped
            };
            return RunStatus { status: "completed", conclusion: Some(conclusion.as_str()) };
        }
        let began = any(|s| matches!(s, JobState::InProgress { .. }))
            || states.iter().any(|s| {
                s.conclusion().is_some_and(|conclusion| conclusion != Conclusion::Skipped)
            });
        let status = if began {
            "in_progress"
        } else if any(|s| matches!(s, JobState::Queued { .. } | JobState::Assigned { .. })) {
            "queued"
        } else {
            "waiting"
        };
        RunStatus { status, conclusion: None }
    }

    /// Approves (or rejects) a job that waits for that.
    pub(crate) fn approve(
        &mut self,
        job: JobId,
        approved: bool,
        now: Moment,
    ) -> Result<(), SimError> {
        match self.state_of(job).ok_or(SimError::UnknownJob(job))? {
            JobState::Waiting if approved => {
                self.enqueue(job, now);
                self.assign(now);
                Ok(())
            }
            JobState::Waiting => {
                self.complete(job, Conclusion::Failure, now);
                Ok(())
            }
            other => Err(SimError::JobState {
                job,
                status: other.status(),
                wanted: "approved or rejected",
            }),
        }
    }

    /// Cancels a workflow run. Jobs in progress get time to stop, unless `force` is set.
    pub(crate) fn cancel_run(
        &mut self,
        run: RunId,
        force: bool,
        now: Moment,
    ) -> Result<(), SimError> {
        let jobs = self.runs.get(&run).ok_or(SimError::UnknownRun(run))?.jobs().to_vec();
        let status = self.run_status(run).status;
        if status == "completed" {
            return Err(SimError::RunState { run, status, wanted: "cancelled" });
        }
        for job in jobs {
            match self.state_of(job) {
                Some(JobState::Blocked | JobState::Waiting | JobState::Queued { .. }) => {
                    self.settle(job, Conclusion::Cancelled, now);
                }
                Some(JobState::Assigned { .. }) => unassign_cancelled(self, job, force, now),
                Some(JobState::InProgress { runner, .. }) if force => {
                    self.settle(job, Conclusion::Cancelled, now);
                    self.remove_runner(runner, RemovalReason::JobDone, now);
                }
                Some(JobState::InProgress { .. }) => self.cancel_in_progress(job, now),
                Some(JobState::Completed { .. }) | None => {}
            }
        }
        self.release(run, now);
        self.assign(now);
        Ok(())
    }

    /// Runs a finished workflow run again: all of its jobs, or those that failed and what depends
    /// on them. Jobs that are not run again stay as they are and are announced once more.
    pub(crate) fn rerun(
        &mut self,
        run: RunId,
        failed_only: bool,
        now: Moment,
    ) -> Result<(), SimError> {
        let status = self.run_status(run).status;
        let there = self.runs.get(&run).ok_or(SimError::UnknownRun(run))?;
        if status != "completed" {
            return Err(SimError::RunState { run, status, wanted: "run again" });
        }
        let attempt = there.attempt() + 1;
        let old = there.jobs().to_vec();
        self.finished_runs.retain(|(_, finished)| *finished != run);
        let mut jobs = Vec::with_capacity(old.len());
        for id in old {
            let Some(job) = self.jobs.get(&id) else { continue };
            if failed_only && job.state.conclusion() == Some(Conclusion::Success) {
                self.announce(id, JobAction::Completed);
                jobs.push(id);
            } else {
                let spec = Arc::clone(&job.spec);
                jobs.push(self.add_job(run, attempt, spec, now));
            }
        }
        self.begin_attempt(run, jobs, now);
        Ok(())
    }

    /// A job as tests and scripts see it.
    pub(crate) fn job_view(&self, job: JobId) -> Result<JobView, SimError> {
        let job = self.jobs.get(&job).ok_or(SimError::UnknownJob(job))?;
        let run = self.runs.get(&job.run).ok_or(SimError::UnknownRun(job.run))?;
        let repository = self.repositories.get(&job.repository);
        Ok(JobView {
            id: job.id,
            run_id: job.run,
            run_attempt: job.attempt,
            repository: repository.map(super::Repository::full_name).unwrap_or_default(),
            name: job.spec.name.clone(),
            status: job.state.status(),
            assigned: matches!(job.state, JobState::Assigned { .. }),
            conclusion: job.state.conclusion(),
            labels: job.labels().to_vec(),
            runner_id: job.runner.as_ref().map(|runner| runner.id),
            runner_name: job.runner.as_ref().map(|runner| runner.name.clone()),
            times: job.times,
            steps: job.steps.iter().map(StepView::from).collect(),
            event: run.workflow.event.clone(),
            log_bytes: self.logs.get(&job.id).map_or(0, JobLog::len),
        })
    }

    /// The steps of a job that is about to run.
    pub(crate) fn planned_steps(spec: &JobSpec, now: Moment) -> Vec<Step> {
        let step = |name: &str| Step { name: name.to_owned(), started: None, completed: None };
        let set_up = Step {
            started: Some(now),
            completed: Some((now, Conclusion::Success)),
            ..step("Set up job")
        };
        std::iter::once(set_up)
            .chain(spec.steps.iter().map(|own| step(&own.name)))
            .chain(std::iter::once(step("Complete job")))
            .collect()
    }
}
