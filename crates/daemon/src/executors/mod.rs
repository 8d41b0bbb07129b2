//! How the core's commands are carried out, each in a task of its own, each answered by a message.
//!
//! - `disks`: what happens to a run's files: prepare, read back, promote, discard.
//! - `images`: what runs start from.
//! - `housekeeping`: what is kept of what is over.
//! - `reclaim`: making room on a disk that is nearly full.
//! - `machines`: what happens to its virtual machine, through its supervisor.
//! - `snapshots`: guests that were booted once, to be restored any number of times.
//! - `github`: what GitHub is asked.
//! - `last_word`: what is passed on in order although each command has a task of its own.

mod disks;
mod github;
pub(crate) mod housekeeping;
mod images;
mod last_word;
mod machines;
mod reclaim;
mod snapshots;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use forrest_config::{Config, Machine, NeverShared};
use forrest_core::event::Trouble;
use forrest_core::model::{Bytes, JobId, Labels, MachineTypeName, RunnerName};
use forrest_core::{Event, RunEvent};
use forrest_github::GitHub;
use forrest_images::{ImageError, RunDir, Store};
use forrest_vm::spec::Accel;
use secrecy::SecretString;
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore, watch};

use crate::containment::Containment;
use crate::driver::{Inbox, Message};
use housekeeping::{KeptImages, KeptRuns};
use last_word::LastWord;

pub(crate) use disks::disk_exists;
pub(crate) use housekeeping::is_forgotten;
pub(crate) use machines::{Limit, accel_name, supervisor_lost, vm_end};

/// Operations on images at a time, all of them short: they share one disk.
const DISK_WORK_MAX: usize = 4;
/// Promotions at a time. They may take minutes, and no job is to wait for them.
const PROMOTIONS_MAX: usize = 2;

/// Restored guests on their way to their runner at a time, for each of the host's CPUs. Many at once get
/// in each other's way: all of them would be there when the last one is.
const TURNS_PER_CPU: usize = 2;

fn turns_at_once() -> usize {
    TURNS_PER_CPU * std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// What the host offers to virtual machines; found out once, at the start.
#[derive(Debug, Clone)]
pub struct Host {
    /// The QEMU program.
    pub qemu: PathBuf,
    /// Its version.
    pub version: String,
    /// What its distributor calls this build.
    pub package: String,
    /// Whether it can save and restore guests, or why not.
    pub snapshots: Result<(), String>,
    /// How guest code is executed.
    pub accel: Accel,
    /// What CPU guests see.
    pub cpu_model: String,
    /// Changes with every boot of the host.
    pub boot_id: String,
    /// The program that supervises a virtual machine: Forrest itself.
    pub supervisor: PathBuf,
    /// What keeps guests inside.
    pub(crate) containment: Containment,
    /// What no guest may see of the host. The fields that it depends on need a restart.
    pub(crate) never_shared: NeverShared,
}

/// What one run was created with.
#[derive(Debug)]
pub(crate) struct RunContext {
    /// The run.
    pub(crate) runner: RunnerName,
    /// Its machine type.
    pub(crate) machine: MachineTypeName,
    /// The machine type's settings when the run was created; `None` for an adopted run whose machine
    /// type is not configured any more.
    pub(crate) settings: Option<Arc<Machine>>,
    /// What its runner registers.
    pub(crate) labels: Labels,
    /// The repository's persistence token.
    pub(crate) token: Option<SecretString>,
    /// Its files.
    pub(crate) dir: RunDir,
    /// When its supervisor is to end its job.
    pub(crate) deadline: LastWord<Limit>,
    /// The job that its record is to name.
    pub(crate) recorded_job: LastWord<JobId>,
    /// Whether its directory was made, or why it could not be.
    begun: OnceCell<Result<(), String>>,
    /// Set once its guest is being restored, ahead of its registration.
    restored: OnceCell<()>,
    /// Its place among the guests that are on their way to their runner.
    turn: Mutex<Option<OwnedSemaphorePermit>>,
}

impl RunContext {
    /// The run with the settings in force.
    pub(crate) fn new(
        config: &Config,
        executors: &Executors,
        runner: &RunnerName,
        machine: &MachineTypeName,
    ) -> Self {
        let repository = config.repositories.get(machine.repository());
        let settings = repository.and_then(|found| found.machines.get(machine.machine()));
        let token = repository.and_then(|found| found.persistence_token.as_ref());
        let types = config.machine_types();
        let labels = types.into_iter().find(|found| &found.name == machine).map(|m| m.labels);
        Self {
            runner: runner.clone(),
            machine: machine.clone(),
            settings: settings.map(|settings| Arc::new(settings.clone())),
            labels: labels.unwrap_or_default(),
            token: token.map(|token| SecretString::from(token.expose())),
            dir: executors.store.run_dir(runner, machine),
            deadline: LastWord::new(),
            recorded_job: LastWord::new(),
            begun: OnceCell::new(),
            restored: OnceCell::new(),
            turn: Mutex::new(None),
        }
    }

    fn take_turn(&self, turn: OwnedSemaphorePermit) {
        *self.turn.lock().unwrap_or_else(PoisonError::into_inner) = Some(turn);
    }

    /// Lets another guest have its turn, if it has one.
    fn end_turn(&self) {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Whether its guest was restored, or is about to be, ahead of its registration.
    fn is_restored(&self) -> bool {
        self.restored.initialized()
    }
}

/// Everything that carrying out a command takes. Clones share.
#[derive(Debug, Clone)]
pub(crate) struct Executors {
    store: Store,
    github: GitHub,
    inbox: Inbox,
    host: Arc<Host>,
    /// Bounds the blocking work on images.
    disk_work: Arc<Semaphore>,
    /// Bounds the promotions under way: one that flattens a chain copies a whole disk.
    promotions: Arc<Semaphore>,
    /// For whoever takes a base image into the store: that may be a full copy of it.
    imports: Arc<Semaphore>,
    /// Places for restored guests on their way to their runner.
    turns: Arc<Semaphore>,
    /// How many generations are just being taken out of use: no image is chosen meanwhile.
    taken_out: Arc<watch::Sender<usize>>,
    settings: Arc<Settings>,
}

/// What the configuration says that is not about one machine type.
#[derive(Debug)]
struct Settings {
    /// Finished runs whose logs are kept.
    kept_runs: KeptRuns,
    /// Machine images that are kept, for each machine type.
    kept_images: Vec<KeptImages>,
    /// The machine types whose runs start from snapshots.
    with_snapshots: Vec<Arc<Machine>>,
}

impl Settings {
    fn of(config: &Config) -> Arc<Self> {
        let machines = || config.repositories.values().flat_map(|r| r.machines.values());
        Arc::new(Self {
            kept_runs: KeptRuns::of(config),
            kept_images: machines().map(KeptImages::of).collect(),
            with_snapshots: machines()
                .filter(|m| m.snapshot)
                .map(|m| Arc::new(m.clone()))
                .collect(),
        })
    }
}

impl Executors {
    pub(crate) fn new(
        store: Store,
        github: GitHub,
        inbox: Inbox,
        host: Host,
        config: &Config,
    ) -> Self {
        Self {
            store,
            github,
            inbox,
            host: Arc::new(host),
            disk_work: Arc::new(Semaphore::new(DISK_WORK_MAX)),
            promotions: Arc::new(Semaphore::new(PROMOTIONS_MAX)),
            imports: Arc::new(Semaphore::new(1)),
            turns: Arc::new(Semaphore::new(turns_at_once())),
            taken_out: Arc::new(watch::Sender::new(0)),
            settings: Settings::of(config),
        }
    }

    /// Takes over a new configuration for what is carried out from now on.
    pub(crate) fn configure(&mut self, config: &Config) {
        self.settings = Settings::of(config);
    }

    /// Free disk space, and what each run's disk takes.
    pub(crate) async fn measure(&self) -> Result<(Bytes, BTreeMap<RunnerName, Bytes>), ImageError> {
        let store = self.store.clone();
        blocking(move || {
            let free = store.space()?.free;
            let disks = store.find_run_dirs()?.runs.into_iter().map(|dir| {
                let taken = disks::allocated(&dir.disk());
                (dir.runner().clone(), taken)
            });
            Ok((free, disks.collect()))
        })
        .await
    }

    /// A machine type's settings as they are now, where its runs start from snapshots.
    pub(crate) fn with_snapshot(&self, machine: &MachineTypeName) -> Option<Arc<Machine>> {
        self.settings.with_snapshots.iter().find(|found| &found.name == machine).cloned()
    }

    /// From here on, until the result is dropped, no image is chosen: a generation is being taken out of use.
    pub(crate) fn take_out(&self) -> TakingOut {
        self.taken_out.send_modify(|count| *count += 1);
        TakingOut(Arc::clone(&self.taken_out))
    }

    /// Waits until no generation is being taken out of use.
    async fn images_settled(&self) {
        // It is never closed: this executor has the sender.
        let _ = self.taken_out.subscribe().wait_for(|count| *count == 0).await;
    }

    async fn answer(&self, run: &RunContext, event: RunEvent) {
        self.send(Message::Event(Event::Run { runner: run.runner.clone(), event })).await;
    }

    async fn send(&self, message: Message) {
        // The driver is gone only when the daemon stops; the next start finds out for itself.
        if self.inbox.send(message).await.is_err() {
            tracing::debug!("a result came after the driver had stopped");
        }
    }

    /// Does blocking work on images that is short, a bounded number at a time.
    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, ImageError> + Send + 'static,
    ) -> Result<T, Trouble> {
        self.on_disk_among(&self.disk_work, work).await
    }

    /// Does blocking work on images, as many of this kind at a time as `places` has.
    async fn on_disk_among<T: Send + 'static>(
        &self,
        places: &Semaphore,
        work: impl FnOnce(&Store) -> Result<T, ImageError> + Send + 'static,
    ) -> Result<T, Trouble> {
        let _permit = places.acquire().await;
        let store = self.store.clone();
        blocking(move || work(&store)).await.map_err(|error| Trouble::new(error.to_string()))
    }
}

/// A generation is being taken out of use.
#[derive(Debug)]
pub(crate) struct TakingOut(Arc<watch::Sender<usize>>);

impl Drop for TakingOut {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// Runs blocking work on a thread for that.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => std::future::pending().await,
    }
}
