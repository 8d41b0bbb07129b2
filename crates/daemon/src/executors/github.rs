//! What GitHub is asked.

use std::sync::Arc;

use forrest_core::event::{Deregistration, RegisterTrouble, Runner, Source, Trouble};
use forrest_core::model::{Job, JobId, Repository, RunnerId};
use forrest_core::{Event, RunEvent};
use forrest_github::{Deletion, GitHubError, REDELIVERY_WINDOW, RegisterError, WorkflowRunFacts};

use super::{Executors, RunContext};
use crate::clock::now;
use crate::driver::Message;

/// Attempts after which a delivery is not asked for again: whoever answers is not there, or refuses it.
const DELIVERY_ATTEMPTS_MAX: u32 = 5;
/// The most deliveries that are asked for again at a time; the others wait for the next look.
const REDELIVERIES_MAX: usize = 100;
/// Jobs that one poll asks for one by one.
const SINGLE_JOBS_MAX: usize = 200;

impl Executors {
    pub(crate) async fn register(self, run: Arc<RunContext>) {
        if let Err(what) = self.begin(&run).await {
            let result = Err(RegisterTrouble::Refused(Trouble::new(what)));
            return self.send(Message::Registered { runner: run.runner.clone(), result }).await;
        }
        let repository = run.machine.repository();
        let registered =
            self.github.generate_jit_config(repository, &run.runner, &run.labels).await;
        let result = registered.map(|jit| (jit.runner_id, jit.jit_config)).map_err(|error| {
            let text = error.to_string();
            match error {
                RegisterError::GitHub(error) => RegisterTrouble::Refused(trouble(&error)),
                RegisterError::NoAccess { .. } => RegisterTrouble::Refused(Trouble::new(text)),
                // A runner of this name exists, or may exist: it has to be looked for.
                _ => RegisterTrouble::Unknown(Trouble::new(text)),
            }
        });
        self.send(Message::Registered { runner: run.runner.clone(), result }).await;
    }

    pub(crate) async fn deregister(self, run: Arc<RunContext>, id: Option<RunnerId>) {
        let result = self.delete(&run, id).await.map_err(|error| trouble(&error));
        self.answer(&run, RunEvent::Deregistered(result)).await;
    }

    async fn delete(
        &self,
        run: &RunContext,
        id: Option<RunnerId>,
    ) -> Result<Deregistration, GitHubError> {
        let repository = run.machine.repository();
        let id = match id {
            Some(id) => id,
            None => match self.github.find_runner(repository, &run.runner).await? {
                Some(runner) => runner.id,
                None => return Ok(Deregistration::AlreadyGone),
            },
        };
        Ok(match self.github.delete_runner(repository, id).await? {
            Deletion::Deleted => Deregistration::Removed,
            Deletion::AlreadyGone => Deregistration::AlreadyGone,
            Deletion::Busy => Deregistration::Busy,
        })
    }

    pub(crate) async fn remove_orphan(self, repository: Repository, id: RunnerId) {
        if let Err(error) = self.github.delete_runner(&repository, id).await {
            tracing::warn!(%error, "could not remove an orphaned runner; the next poll tries again");
        }
    }

    pub(crate) async fn poll(self, repository: Repository, known: Vec<JobId>) {
        let asked_at = now();
        let result = self.ask_all(&repository, known).await.map_err(|error| trouble(&error));
        self.send(Message::Event(Event::Polled { repository, result, asked_at })).await;
    }

    async fn ask_all(
        &self,
        repository: &Repository,
        known: Vec<JobId>,
    ) -> Result<Vec<Runner>, GitHubError> {
        let asked_at = now();
        let active = self.github.active_jobs(repository).await?;
        let unlisted: Vec<JobId> = known
            .into_iter()
            .filter(|id| active.jobs.iter().all(|job| job.id != *id))
            .take(SINGLE_JOBS_MAX)
            .collect();
        for job in active.jobs {
            let source = Source::Asked(asked_at);
            self.send(Message::Event(Event::JobReported { job, source })).await;
        }
        for id in unlisted {
            self.ask_for_job(repository, id).await?;
        }
        let runners = self.github.list_runners(repository).await?;
        let ours = |runner: forrest_github::Runner| {
            let (id, online, busy) = (runner.id, runner.online, runner.busy);
            runner.forrest_name.map(|name| Runner { id, name, online, busy })
        };
        Ok(runners.into_iter().filter_map(ours).collect())
    }

    pub(crate) async fn fetch_job(self, repository: Repository, job: JobId) {
        if let Err(error) = self.ask_for_job(&repository, job).await {
            tracing::warn!(%job, %error, "could not ask for a job; the next poll does it");
        }
    }

    async fn ask_for_job(&self, repository: &Repository, id: JobId) -> Result<(), GitHubError> {
        let asked_at = now();
        let event = match self.github.job(repository, id).await? {
            Some(job) => Event::JobReported { job, source: Source::Asked(asked_at) },
            None => Event::JobMissing { repository: repository.clone(), job: id, asked_at },
        };
        self.send(Message::Event(event)).await;
        Ok(())
    }

    /// What started the job, for the record of the image that it leaves behind; `None` where GitHub
    /// does not say.
    pub(super) async fn workflow_run(
        &self,
        run: &RunContext,
        job: Option<&Job>,
    ) -> Option<WorkflowRunFacts> {
        let job = job?;
        match self.github.workflow_run(&job.repository, job.workflow_run).await {
            Ok(facts) => facts,
            Err(error) => {
                tracing::warn!(runner = %run.runner, %error, "what started the job is not known");
                None
            }
        }
    }

    pub(crate) async fn repair_deliveries(self) {
        let result = self.ask_again().await.map_err(|error| trouble(&error));
        self.send(Message::Event(Event::DeliveriesRepaired(result))).await;
    }

    async fn ask_again(&self) -> Result<u32, GitHubError> {
        let failed = self.github.failed_delivery_guids(REDELIVERY_WINDOW).await?.failed;
        let mut count = 0;
        let hopeful = failed.into_iter().filter(|d| d.attempts < DELIVERY_ATTEMPTS_MAX);
        for delivery in hopeful.take(REDELIVERIES_MAX) {
            self.github.redeliver(delivery.newest).await?;
            count += 1;
        }
        Ok(count)
    }
}

fn trouble(error: &GitHubError) -> Trouble {
    Trouble { what: error.to_string(), not_before: error.until() }
}
