//! The simulator as a value: starting, steering, watching.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::broadcast;
use tokio::task::JoinSet;

use crate::api::Recorded;
use crate::error::SimError;
use crate::key::AppKey;
use crate::model::{
    AccountKind, ApiFault, AppId, Faults, Hook, InstallationId, JobAction, JobId, JobView, Moment,
    Permissions, RemovalReason, RunId, RunnerId, RunnerView, Settings, TimelineEvent, WebhookFault,
    Workflow, World, default_permissions,
};
use crate::runner::VirtualRunner;
use crate::shared::Shared;
use crate::{server, webhooks};

/// How to start the simulator.
#[derive(Debug, Clone)]
pub struct SimConfig {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// What chance is made of.
    pub seed: u64,
    /// How many webhooks are under way at a time. With 1 they arrive in order.
    pub webhook_concurrency: usize,
    /// How this GitHub behaves.
    pub settings: Settings,
}

impl Default for SimConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            seed: 0,
            webhook_concurrency: 1,
            settings: Settings::default(),
        }
    }
}

/// A GitHub App to register.
#[derive(Debug, Clone)]
pub struct AppSpec {
    /// Its name in addresses.
    pub slug: String,
    /// Its private key; by default one that is generated once per process.
    pub key: Option<AppKey>,
    /// Its webhook.
    pub hook: Option<Hook>,
    /// What it may do; by default what Forrest's documentation asks for.
    pub permissions: Permissions,
}

impl Default for AppSpec {
    fn default() -> Self {
        Self {
            slug: "forrest".to_owned(),
            key: None,
            hook: None,
            permissions: default_permissions(),
        }
    }
}

/// A registered App.
#[derive(Debug, Clone)]
pub struct AppHandle {
    /// Its id.
    pub id: AppId,
    /// Its client id.
    pub client_id: String,
    /// Its private key, PEM, as GitHub hands it out.
    pub private_key_pem: String,
}

/// A repository to make.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RepositorySpec {
    /// Its owner.
    pub owner: String,
    /// Its name.
    pub name: String,
    /// Whether the owner is an organisation, where it is new.
    #[serde(default)]
    pub organization: bool,
    /// Whether only its people see it.
    #[serde(default)]
    pub private: bool,
}

/// What a triggered workflow became.
#[derive(Debug, Clone, Serialize)]
pub struct WorkflowIds {
    /// The workflow run.
    pub run: RunId,
    /// The jobs' names and ids, in the workflow's order.
    pub jobs: Vec<(String, JobId)>,
}

impl WorkflowIds {
    /// The id of the job of this name.
    ///
    /// # Panics
    /// When there is none: that is a mistake in the test.
    pub fn job(&self, name: &str) -> JobId {
        match self.jobs.iter().find(|(there, _)| there == name) {
            Some((_, id)) => *id,
            None => panic!("the workflow run {} has no job named {name:?}", self.run),
        }
    }
}

/// A running simulator. When the last clone is dropped, it stops: its port is closed, its connections
/// break.
#[derive(Debug, Clone)]
pub struct Sim {
    shared: Arc<Shared>,
    address: SocketAddr,
    _tasks: Arc<Tasks>,
}

/// What runs for a simulator, until this is dropped.
#[derive(Debug)]
struct Tasks {
    shared: Arc<Shared>,
    /// Dropping it ends them.
    _set: JoinSet<()>,
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl Sim {
    /// Starts the simulator in the current tokio runtime.
    ///
    /// # Errors
    /// [`SimError::Listen`] when the address is taken, [`SimError::RunnerAddress`] when runners could
    /// not reach it.
    pub async fn start(config: SimConfig) -> Result<Self, SimError> {
        let listen = |source| SimError::Listen { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let mut settings = config.settings;
        let own = format!("http://{address}");
        for url in [&mut settings.api_url, &mut settings.html_url, &mut settings.runner_url] {
            if url.is_empty() {
                url.clone_from(&own);
            }
        }
        if let Some(host) = settings.runner_url.strip_suffix(":0") {
            settings.runner_url = format!("{host}:{}", address.port());
        }
        check_runner_url(&settings.runner_url)?;
        let (shared, queue) = Shared::new(World::new(settings, config.seed));
        let mut tasks = JoinSet::new();
        tasks.spawn(server::serve(Arc::clone(&shared), listener));
        tasks.spawn(webhooks::run(Arc::clone(&shared), queue, config.webhook_concurrency));
        tasks.spawn(Arc::clone(&shared).keep_time());
        let tasks = Tasks { shared: Arc::clone(&shared), _set: tasks };
        Ok(Self { shared, address, _tasks: Arc::new(tasks) })
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The API's address, for `github.api_url`: `http://127.0.0.1:PORT`. Enterprise Server's
    /// `/api/v3` may follow.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Registers an App. It is installed on the owners of all repositories, present and future.
    ///
    /// # Errors
    /// [`SimError::Key`] when no key can be made.
    pub fn add_app(&self, spec: AppSpec) -> Result<AppHandle, SimError> {
        let key = spec.key.map_or_else(AppKey::shared, Ok)?;
        let private_key_pem = key.private_pem().to_owned();
        Ok(self.shared.with(|world, now| {
            let id = world.add_app(&spec.slug, key, spec.hook, spec.permissions, now);
            let owners: Vec<String> = world
                .repositories
                .values()
                .filter(|repo| !repo.fork)
                .map(|repo| repo.owner.clone())
                .collect();
            for owner in owners {
                world.install(id, &owner, now);
            }
            let client_id = world.apps.get(&id).map(|app| app.client_id.clone());
            AppHandle { id, client_id: client_id.unwrap_or_default(), private_key_pem }
        }))
    }

    /// Changes where an App's webhooks go.
    pub fn set_hook(&self, app: AppId, hook: Option<Hook>) {
        self.shared.with(|world, _| {
            if let Some(app) = world.apps.get_mut(&app) {
                app.hook = hook;
            }
        });
    }

    /// Makes a repository of a person, and installs every App on its owner. Returns `owner/name`.
    pub fn add_repository(&self, owner: &str, name: &str) -> String {
        let (owner, name) = (owner.to_owned(), name.to_owned());
        self.add_repository_as(&RepositorySpec { owner, name, organization: false, private: false })
    }

    /// Makes a repository, and installs every App on its owner. Returns `owner/name`.
    pub fn add_repository_as(&self, spec: &RepositorySpec) -> String {
        let kind = if spec.organization { AccountKind::Organization } else { AccountKind::User };
        self.shared.with(|world, now| {
            world.add_repository(&spec.owner, &spec.name, kind, spec.private, now);
        });
        format!("{}/{}", spec.owner, spec.name)
    }

    /// The installation of an App on the owner of a repository.
    pub fn installation(&self, app: AppId, repository: &str) -> Option<InstallationId> {
        let owner = repository.split('/').next().unwrap_or_default().to_lowercase();
        self.shared.with(|world, _| {
            let found = |i: &&crate::model::Installation| i.app == app && i.account == owner;
            world.installations.values().find(found).map(|installation| installation.id)
        })
    }

    /// Suspends an installation, or lifts the suspension.
    ///
    /// # Errors
    /// [`SimError::UnknownInstallation`].
    pub fn suspend(&self, installation: InstallationId, yes: bool) -> Result<(), SimError> {
        self.shared.with(|world, now| world.suspend(installation, yes, now))
    }

    /// Withdraws all access tokens before their time.
    pub fn expire_tokens(&self) {
        self.shared.with(|world, _| world.tokens.clear());
    }

    /// Triggers a workflow in `owner/name`.
    ///
    /// # Errors
    /// [`SimError::UnknownRepository`], [`SimError::Workflow`].
    pub fn queue_workflow(
        &self,
        repository: &str,
        workflow: Workflow,
    ) -> Result<WorkflowIds, SimError> {
        self.shared.with(|world, now| {
            let id = world.repository_named(repository)?;
            let run = world.queue_workflow(id, workflow, now)?;
            self.ids_of(world, run)
        })
    }

    fn ids_of(&self, world: &World, run: RunId) -> Result<WorkflowIds, SimError> {
        let there = world.runs.get(&run).ok_or(SimError::UnknownRun(run))?;
        let jobs = there.jobs().iter().filter_map(|id| world.jobs.get(id));
        Ok(WorkflowIds { run, jobs: jobs.map(|job| (job.spec.name.clone(), job.id)).collect() })
    }

    /// Cancels a workflow run; with `force` without waiting for its runners.
    ///
    /// # Errors
    /// [`SimError::UnknownRun`], [`SimError::RunState`].
    pub fn cancel(&self, run: RunId, force: bool) -> Result<(), SimError> {
        self.shared.with(|world, now| world.cancel_run(run, force, now))
    }

    /// Runs a finished workflow run again, or only what failed in it. Returns the new attempt's jobs.
    ///
    /// # Errors
    /// [`SimError::UnknownRun`], [`SimError::RunState`].
    pub fn rerun(&self, run: RunId, failed_only: bool) -> Result<WorkflowIds, SimError> {
        self.shared.with(|world, now| {
            world.rerun(run, failed_only, now)?;
            self.ids_of(world, run)
        })
    }

    /// Approves a job that waits for that, or rejects it.
    ///
    /// # Errors
    /// [`SimError::UnknownJob`], [`SimError::JobState`].
    pub fn approve(&self, job: JobId, yes: bool) -> Result<(), SimError> {
        self.shared.with(|world, now| world.approve(job, yes, now))
    }

    /// A job as it is now.
    ///
    /// # Errors
    /// [`SimError::UnknownJob`].
    pub fn job(&self, job: JobId) -> Result<JobView, SimError> {
        self.shared.with(|world, _| world.job_view(job))
    }

    /// All jobs that are kept, by id.
    pub fn jobs(&self) -> Vec<JobView> {
        self.shared.with(|world, _| {
            world.jobs.keys().filter_map(|job| world.job_view(*job).ok()).collect()
        })
    }

    /// A job's log so far, each line behind its time.
    ///
    /// # Errors
    /// [`SimError::UnknownJob`], also when the log is no longer kept.
    pub fn job_log(&self, job: JobId) -> Result<String, SimError> {
        self.shared.with(|world, _| {
            world.logs.get(&job).map(crate::model::JobLog::text).ok_or(SimError::UnknownJob(job))
        })
    }

    /// Waits, in real time, until a job satisfies `wanted`.
    ///
    /// # Errors
    /// [`SimError::UnknownJob`], [`SimError::Timeout`].
    pub async fn wait_for(
        &self,
        job: JobId,
        timeout: Duration,
        wanted: impl Fn(&JobView) -> bool,
    ) -> Result<JobView, SimError> {
        let found = self.shared.wait(|world| match world.job_view(job) {
            Ok(view) => wanted(&view).then_some(Ok(view)),
            Err(error) => Some(Err(error)),
        });
        match tokio::time::timeout(timeout, found).await {
            Ok(found) => found,
            Err(_) => {
                let status = self.job(job)?.status;
                Err(SimError::Timeout { job, status, waited_s: timeout.as_secs() })
            }
        }
    }

    /// Waits, in real time, until a job is over.
    ///
    /// # Errors
    /// As [`Sim::wait_for`].
    pub async fn wait_completed(&self, job: JobId, timeout: Duration) -> Result<JobView, SimError> {
        self.wait_for(job, timeout, |view| view.status == "completed").await
    }

    /// The registered runners, by id.
    pub fn runners(&self) -> Vec<RunnerView> {
        self.shared.with(|world, _| {
            world.runners.keys().filter_map(|id| world.runner_view(*id).ok()).collect()
        })
    }

    /// Waits, in real time, until the registered runners satisfy `wanted`.
    pub async fn wait_for_runners(
        &self,
        wanted: impl Fn(&[RunnerView]) -> bool,
    ) -> Vec<RunnerView> {
        self.shared
            .wait(|world| {
                let views: Vec<RunnerView> =
                    world.runners.keys().filter_map(|id| world.runner_view(*id).ok()).collect();
                wanted(&views).then_some(views)
            })
            .await
    }

    /// Removes a runner behind the client's back.
    ///
    /// # Errors
    /// [`SimError::UnknownRunner`], [`SimError::RunnerBusy`] while it runs a job.
    pub fn remove_runner(&self, runner: RunnerId) -> Result<(), SimError> {
        self.shared.with(|world, now| {
            let there = world.runners.get(&runner).ok_or(SimError::UnknownRunner(runner))?;
            if matches!(there.state, crate::model::RunnerState::Busy { .. }) {
                return Err(SimError::RunnerBusy(runner));
            }
            world.remove_runner(runner, RemovalReason::BehindBack, now);
            Ok(())
        })
    }

    /// Plays a runner: connects with a JIT config that the API handed out.
    ///
    /// # Errors
    /// [`SimError::JitConfig`], [`SimError::RunnerConnected`].
    pub fn connect_runner(&self, jit_config: &str) -> Result<VirtualRunner, SimError> {
        VirtualRunner::connect(&self.shared, jit_config)
    }

    /// The timeline from now on. A follower that is too slow loses the oldest events.
    pub fn events(&self) -> broadcast::Receiver<TimelineEvent> {
        self.shared.follow()
    }

    /// The timeline so far, after event number `after` (0: all that is kept).
    pub fn timeline(&self, after: u64) -> Vec<TimelineEvent> {
        self.shared.with(|world, _| world.timeline.after(after).cloned().collect())
    }

    /// The faults in force.
    pub fn faults(&self) -> Faults {
        self.shared.with(|world, _| world.faults.clone())
    }

    /// Changes the faults in force.
    pub fn set_faults(&self, change: impl FnOnce(&mut Faults)) {
        self.shared.with(|world, _| change(&mut world.faults));
    }

    /// Adds a fault of the API.
    pub fn api_fault(&self, fault: ApiFault) {
        self.set_faults(|faults| faults.add(Faults { api: vec![fault], ..Faults::default() }));
    }

    /// Adds a fault of webhooks.
    pub fn webhook_fault(&self, fault: WebhookFault) {
        self.set_faults(|faults| {
            faults.add(Faults { webhooks: vec![fault], ..Faults::default() });
        });
    }

    /// Ends all faults.
    pub fn clear_faults(&self) {
        self.set_faults(|faults| *faults = Faults::default());
    }

    /// The requests to the API so far, oldest first.
    pub fn requests(&self) -> Vec<Recorded> {
        self.shared.requests()
    }

    /// Forgets the requests so far.
    pub fn clear_requests(&self) {
        self.shared.clear_requests();
    }

    /// Sends a `ping` to every App's webhook.
    pub fn ping(&self) {
        self.shared.with(|world, now| {
            for dispatch in webhooks::ping(world, now) {
                self.shared.enqueue(world, dispatch, now);
            }
        });
    }

    /// Headers and body of a signed `workflow_job` delivery about a job as it is now, for load
    /// generators that send on their own.
    ///
    /// # Errors
    /// [`SimError::UnknownJob`], [`SimError::UnknownRepository`].
    pub fn sample_webhook(
        &self,
        job: JobId,
        action: JobAction,
    ) -> Result<(Vec<(String, String)>, Bytes), SimError> {
        self.shared.with(|world, now| webhooks::sample(world, job, action, now))
    }

    /// The time by this GitHub.
    pub fn now(&self) -> Moment {
        self.shared.with(|_, now| now)
    }

    /// Puts this GitHub's clock forward: what is due by then happens at once.
    pub fn advance(&self, by: Duration) {
        self.shared.advance(by);
    }
}

/// Whether the stand-in runner could make anything of the address.
fn check_runner_url(url: &str) -> Result<(), SimError> {
    let wrong = || SimError::RunnerAddress(url.to_owned());
    let authority = url.strip_prefix("http://").ok_or_else(wrong)?;
    let (host, port) = authority.rsplit_once(':').ok_or_else(wrong)?;
    // It stands in JIT configs, in few characters.
    let plain = host.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'.');
    if host.is_empty() || !plain || port.parse::<u16>().is_err() {
        return Err(wrong());
    }
    Ok(())
}
