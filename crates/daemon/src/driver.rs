//! The one loop: take a message, ask the core, have its commands carried out.
//!
//! The driver owns everything that changes. Whoever wants something sends a [`Message`]; whoever
//! carries something out gets copies of what it needs and sends a message when it is done. The
//! driver itself never waits for anything but the next message.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use forrest_config::Config;
use forrest_core::event::{AdoptedRun, AdoptedVm, RegisterTrouble};
use forrest_core::model::{MachineTypeName, Repository, RunnerId, RunnerName, Timestamp};
use forrest_core::{Command, Core, Event, Level, Note, RunEvent, View};
use forrest_github::webhook::Verifier;
use secrecy::SecretString;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::now;
use crate::containment::log_unfiltered;
use crate::executors::{Executors, Limit, RunContext, housekeeping};
use crate::policy::policy;
use crate::{startup, systemd};

/// Messages that wait for the driver. A webhook that finds the inbox full is refused, and GitHub
/// keeps it for redelivery; everything else waits for a place.
pub const INBOX_MAX: usize = 16_384;
/// How long the driver waits at its own end for what is being carried out.
const STOP_GRACE: Duration = Duration::from_secs(30);

/// Something for the driver.
#[derive(Debug)]
pub enum Message {
    /// Something happened.
    Event(Event),
    /// The answer to a registration. The JIT configuration is a secret that the core never sees.
    Registered {
        /// Which run.
        runner: RunnerName,
        /// GitHub's id and the JIT configuration.
        result: Result<(RunnerId, SecretString), RegisterTrouble>,
    },
    /// The configuration file has a sound new version.
    ConfigLoaded(Arc<Config>),
    /// Somebody wants to see everything.
    View(oneshot::Sender<View>),
}

/// Sends messages to the driver.
pub type Inbox = mpsc::Sender<Message>;

/// The driver.
#[derive(Debug)]
pub struct Driver {
    core: Core,
    config: Arc<Config>,
    executors: Executors,
    inbox: mpsc::Receiver<Message>,
    /// What webhooks are verified with.
    verifier: watch::Sender<Arc<Verifier>>,
    tasks: TaskTracker,
    /// The JIT configurations of runners that are registered and not started yet.
    jit_configs: BTreeMap<RunnerName, SecretString>,
    /// What each run was created with: it keeps that, whatever the configuration says later.
    runs: BTreeMap<RunnerName, Arc<RunContext>>,
    /// Snapshots that are being built, and how each is given up.
    builds: BTreeMap<MachineTypeName, CancellationToken>,
    /// Says that something happened, to whoever follows along.
    changed: watch::Sender<()>,
    /// GitHub's spelling of repositories may differ from the configuration's in case.
    spellings: BTreeMap<String, Repository>,
}

impl Driver {
    /// A driver over what the host looks like now.
    pub(crate) fn new(
        config: Arc<Config>,
        seed: u64,
        executors: Executors,
        inbox: mpsc::Receiver<Message>,
        verifier: watch::Sender<Arc<Verifier>>,
        changed: watch::Sender<()>,
    ) -> Self {
        let core = Core::new(policy(&config), seed);
        let spellings = spellings(&core);
        Self {
            core,
            config,
            executors,
            inbox,
            verifier,
            changed,
            tasks: TaskTracker::new(),
            jit_configs: BTreeMap::new(),
            runs: BTreeMap::new(),
            builds: BTreeMap::new(),
            spellings,
        }
    }

    /// Takes over a run that an earlier daemon left behind.
    pub(crate) fn adopt(&mut self, run: AdoptedRun) {
        let context = RunContext::new(&self.config, &self.executors, &run.runner, &run.machine);
        let context = Arc::new(context);
        if let AdoptedVm::Live { .. } = run.vm {
            self.executors.clone().watch(Arc::clone(&context));
        }
        self.runs.insert(run.runner.clone(), context);
        self.handle(Event::Adopted(Box::new(run)));
    }

    /// Tells the core something before the loop begins.
    pub(crate) fn tell(&mut self, event: Event) {
        self.handle(event);
    }

    /// Starts polling and scheduling: everything that is known from before was told.
    pub(crate) fn start(&mut self) {
        self.tasks.spawn(self.executors.clone().prepare_base_images(Arc::clone(&self.config)));
        self.handle(Event::PolicyChanged(policy(&self.config)));
    }

    /// Runs until `stop` resolves. Virtual machines go on after that.
    pub(crate) async fn run(mut self, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        let mut watchdog = systemd::watchdog_interval().map(tokio::time::interval);
        let mut house = tokio::time::interval(housekeeping::INTERVAL);
        house.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let deadline = self.core.next_deadline();
            tokio::select! {
                biased;
                () = &mut stop => break,
                () = tick(&mut watchdog) => systemd::alive(),
                message = self.inbox.recv() => match message {
                    Some(message) => self.take(message),
                    None => break,
                },
                () = until(deadline) => self.handle(Event::Tick),
                _ = house.tick() => drop(self.tasks.spawn(self.executors.clone().keep_house())),
            }
        }
        self.stop().await;
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Event(event) => self.handle(event),
            Message::Registered { runner, result } => {
                let result = result.map(|(id, jit_config)| {
                    if self.core.runs().get(&runner).is_some() {
                        self.jit_configs.insert(runner.clone(), jit_config);
                    }
                    id
                });
                self.handle(Event::Run { runner, event: RunEvent::Registered(result) });
            }
            Message::ConfigLoaded(config) => {
                self.config = config;
                self.executors.configure(&self.config);
                log_unfiltered(&self.config);
                let config = Arc::clone(&self.config);
                self.tasks.spawn(self.executors.clone().prepare_base_images(config));
                match startup::verifier(&self.config) {
                    Ok(verifier) => drop(self.verifier.send_replace(Arc::new(verifier))),
                    Err(error) => tracing::error!(%error, "webhooks keep the old secret"),
                }
                self.handle(Event::PolicyChanged(policy(&self.config)));
                self.spellings = spellings(&self.core);
            }
            Message::View(answer) => {
                // The asker may be gone: then nobody wants the answer.
                let _ = answer.send(self.core.view(now()));
            }
        }
    }

    fn handle(&mut self, mut event: Event) {
        if let Event::JobReported { job, .. } = &mut event
            && let Some(name) = self.spellings.get(&job.repository.to_string().to_lowercase())
        {
            job.repository = name.clone();
        }
        if let Event::SnapshotBuilt { machine, .. } = &event {
            self.builds.remove(machine);
        }
        let mut commands = Vec::new();
        self.core.handle(now(), event, &mut commands);
        for command in commands {
            self.carry_out(command);
        }
        self.changed.send_replace(());
    }

    fn carry_out(&mut self, command: Command) {
        let executors = self.executors.clone();
        match command {
            Command::Note(note) => log(&note),
            Command::Prepare { runner, machine, restore } => {
                let run = Arc::new(RunContext::new(&self.config, &executors, &runner, &machine));
                self.runs.insert(runner, Arc::clone(&run));
                self.tasks.spawn(executors.prepare(run, restore));
            }
            Command::Poll { repository, known } => {
                self.tasks.spawn(executors.poll(repository, known));
            }
            Command::FetchJob { repository, job } => {
                self.tasks.spawn(executors.fetch_job(repository, job));
            }
            Command::RepairDeliveries => {
                self.tasks.spawn(executors.repair_deliveries());
            }
            Command::RemoveOrphan { repository, id, .. } => {
                self.tasks.spawn(executors.remove_orphan(repository, id));
            }
            Command::Reclaim { wanted } => {
                self.tasks.spawn(executors.reclaim(wanted));
            }
            Command::MarkBroken { machine, generation, why } => {
                let taking_out = executors.take_out();
                self.tasks.spawn(executors.mark_broken(machine, generation, why, taking_out));
            }
            Command::CheckSnapshot { machine } => {
                let settings = executors.with_snapshot(&machine);
                self.tasks.spawn(executors.check_snapshot(machine, settings));
            }
            Command::BuildSnapshot { machine } => {
                let settings = executors.with_snapshot(&machine);
                let given_up = CancellationToken::new();
                self.builds.insert(machine.clone(), given_up.clone());
                self.tasks.spawn(executors.build_snapshot(machine, settings, given_up));
            }
            Command::CancelSnapshot { machine } => {
                if let Some(given_up) = self.builds.get(&machine) {
                    given_up.cancel();
                }
            }
            Command::DropSnapshot { machine } => {
                self.tasks.spawn(executors.drop_snapshot(machine));
            }
            Command::Register { ref runner, .. }
            | Command::Deregister { ref runner, .. }
            | Command::StartVm { ref runner, .. }
            | Command::SetJobDeadline { ref runner, .. }
            | Command::PowerDown { ref runner }
            | Command::Kill { ref runner, .. }
            | Command::ReadBack { ref runner, .. }
            | Command::Promote { ref runner, .. }
            | Command::Discard { ref runner, .. }
            | Command::Forget { ref runner, .. }
            | Command::RecordJob { ref runner, .. } => match self.runs.get(runner) {
                Some(run) => self.carry_out_for(Arc::clone(run), command),
                None => tracing::error!(?command, "a command for a run that is not known"),
            },
        }
    }

    /// The commands about a run that exists.
    fn carry_out_for(&mut self, run: Arc<RunContext>, command: Command) {
        let executors = self.executors.clone();
        match command {
            Command::Register { .. } => self.tasks.spawn(executors.register(run)),
            Command::Deregister { id, .. } => {
                self.jit_configs.remove(&run.runner);
                self.tasks.spawn(executors.deregister(run, id))
            }
            Command::StartVm { id, .. } => {
                let jit_config = self.jit_configs.remove(&run.runner);
                self.tasks.spawn(executors.start(run, id, jit_config))
            }
            Command::SetJobDeadline { at, .. } => {
                run.deadline.say(Limit::at(at));
                self.tasks.spawn(executors.set_job_deadline(run))
            }
            Command::PowerDown { .. } => self.tasks.spawn(executors.power_down(run)),
            Command::Kill { why, .. } => self.tasks.spawn(executors.kill(run, why)),
            Command::ReadBack { .. } => self.tasks.spawn(executors.read_back(run)),
            Command::Promote { job, .. } => self.tasks.spawn(executors.promote(run, job)),
            Command::Discard { .. } => self.tasks.spawn(executors.discard(run)),
            Command::Forget { .. } => {
                self.runs.remove(&run.runner);
                self.jit_configs.remove(&run.runner);
                self.tasks.spawn(executors.forget(run))
            }
            Command::RecordJob { job, .. } => {
                run.recorded_job.say(job);
                self.tasks.spawn(executors.record_job(run))
            }
            Command::Note(_)
            | Command::Prepare { .. }
            | Command::Poll { .. }
            | Command::FetchJob { .. }
            | Command::RepairDeliveries
            | Command::RemoveOrphan { .. }
            | Command::CheckSnapshot { .. }
            | Command::BuildSnapshot { .. }
            | Command::CancelSnapshot { .. }
            | Command::DropSnapshot { .. }
            | Command::Reclaim { .. }
            | Command::MarkBroken { .. } => return,
        };
    }

    async fn stop(self) {
        systemd::stopping();
        // They are no runs: the next daemon would only end them.
        self.builds.values().for_each(CancellationToken::cancel);
        self.tasks.close();
        if tokio::time::timeout(STOP_GRACE, self.tasks.wait()).await.is_err() {
            tracing::warn!("stopping although some work is not done; the next start finishes it");
        }
        let live = self.core.runs().iter().filter(|run| run.vm().is_some()).count();
        if live > 0 {
            tracing::info!("{live} virtual machines go on; the next start takes them over");
        }
    }
}

async fn tick(interval: &mut Option<tokio::time::Interval>) {
    match interval {
        Some(interval) => {
            interval.tick().await;
        }
        None => std::future::pending().await,
    }
}

async fn until(deadline: Option<Timestamp>) {
    match deadline {
        Some(at) => tokio::time::sleep(at.since(now())).await,
        None => std::future::pending().await,
    }
}

fn spellings(core: &Core) -> BTreeMap<String, Repository> {
    let repositories = core.policy().repositories().into_iter();
    repositories.map(|name| (name.to_string().to_lowercase(), name)).collect()
}

fn log(note: &Note) {
    let runner = note.runner.as_ref().map(tracing::field::display);
    let job = note.job.as_ref().map(tracing::field::display);
    let text = note.text.as_str();
    match note.level {
        Level::Debug => tracing::debug!(runner, job, "{text}"),
        Level::Info => tracing::info!(runner, job, "{text}"),
        Level::Warn => tracing::warn!(runner, job, "{text}"),
        Level::Error => tracing::error!(runner, job, "{text}"),
    }
}
