//! Snapshots of booted guests: whether one fits, building one, removing those that nobody wants.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use forrest_config::Machine;
use forrest_core::Event;
use forrest_core::event::Trouble;
use forrest_core::model::{Bytes, MachineTypeName, RunnerName, StartImage};
use forrest_core::snapshots::BuildTrouble;
use forrest_images::seed::{JOBDATA, SeedFiles};
use forrest_images::template::{Part, Template};
use forrest_images::{ImageError, RunDir, Snapshot, SnapshotKey, Store, snapshots};
use forrest_vm::run_dir;
use forrest_vm::spec::{Boot, RunSpec};
use forrest_vm::{EndReason, VmError, snapshot};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::machines::{self, Ending};
use super::{Executors, Host, accel_name, blocking, disks, images};
use crate::clock::now;
use crate::driver::Message;

/// Changes whenever guests are made or saved in another way.
const FORMAT: u32 = 1;

/// Everything that a saved guest depends on; the snapshot's key is made of it.
#[derive(Debug, Serialize)]
struct Facts<'a> {
    format: u32,
    forrest: &'static str,
    image: &'a StartImage,
    template: &'a str,
    instance_id: &'a str,
    /// The guest sees its parts.
    machine: &'a MachineTypeName,
    cpus: u32,
    ram: Bytes,
    disk: Bytes,
    accel: &'static str,
    qemu: &'a Path,
    qemu_version: &'a str,
    qemu_package: &'a str,
    cpu_model: &'a str,
    /// Nothing of a snapshot is forced to the disk.
    boot_id: &'a str,
}

/// The snapshot that runs of a machine type would start from now.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) key: SnapshotKey,
    pub(super) start: StartImage,
    pub(super) template: Template,
}

/// What a snapshot of this machine type would be of, or why there can be none.
pub(super) fn wanted(store: &Store, settings: &Machine, host: &Host) -> Result<Wanted, String> {
    let start = images::start_image(store, settings)?;
    let template = disks::template(settings).map_err(|error| error.to_string())?;
    wanted_of(settings, host, start, template)
}

/// As [`wanted`], where image and template are known already.
pub(super) fn wanted_of(
    settings: &Machine,
    host: &Host,
    start: StartImage,
    template: Template,
) -> Result<Wanted, String> {
    host.snapshots.clone()?;
    let name = &settings.name;
    if !settings.shared.is_empty() {
        return Err(format!(
            "{name} has `shared` directories, which cannot be saved with a guest: remove `shared` or \
             `snapshot`"
        ));
    }
    let of_run = template.run_values_in_cloud_init();
    if let Some(first) = of_run.first() {
        return Err(format!(
            "the setup template of {name} has {first}, which is different in each run, so its guests \
             cannot be saved: move it to job-config, or remove `snapshot`"
        ));
    }
    let facts = Facts {
        format: FORMAT,
        forrest: env!("CARGO_PKG_VERSION"),
        image: &start,
        template: &template.content_hash(),
        instance_id: &disks::instance_id(&template, &start),
        machine: name,
        cpus: settings.cpus,
        ram: settings.ram,
        disk: settings.disk,
        accel: accel_name(host.accel),
        qemu: &host.qemu,
        qemu_version: &host.version,
        qemu_package: &host.package,
        cpu_model: &host.cpu_model,
        boot_id: &host.boot_id,
    };
    let facts = serde_json::to_vec(&facts).map_err(|error| error.to_string())?;
    Ok(Wanted { key: SnapshotKey::of(&facts), start, template })
}

/// The snapshot that a run may start from instead of this image; `None`, with the reason in the log,
/// where there is none: it starts cold then.
pub(super) fn fitting(
    store: &Store,
    settings: &Machine,
    host: &Host,
    start: &StartImage,
    template: &Template,
) -> Option<Snapshot> {
    let found = wanted_of(settings, host, start.clone(), template.clone())
        .and_then(|wanted| store.find_snapshot(&wanted.key).map_err(|error| error.to_string()));
    let machine = &settings.name;
    match found {
        Ok(Some(snapshot)) => Some(snapshot),
        Ok(None) => {
            tracing::info!(%machine, "no snapshot fits {} any more: starting cold", start.image);
            None
        }
        Err(why) => {
            tracing::warn!(%machine, "starting cold: {why}");
            None
        }
    }
}

/// A build that is ready to begin.
struct Prepared {
    key: SnapshotKey,
    start: StartImage,
    dir: RunDir,
    spec: RunSpec,
}

impl Executors {
    /// Looks whether the snapshot that the machine type's runs would start from now is there.
    pub(crate) async fn check_snapshot(
        self,
        machine: MachineTypeName,
        settings: Option<Arc<Machine>>,
    ) {
        self.images_settled().await;
        let fits = match settings {
            None => Err(not_configured(&machine)),
            Some(settings) => {
                let (store, host) = (self.store.clone(), Arc::clone(&self.host));
                blocking(move || {
                    let key = wanted(&store, &settings, &host)?.key;
                    store.find_snapshot(&key).map_err(|error| error.to_string())
                })
                .await
            }
        };
        self.prune_snapshots().await;
        let fits = fits.map(|found| found.is_some()).map_err(Trouble::new);
        self.send(Message::Event(Event::SnapshotChecked { machine, fits })).await;
    }

    /// Boots the image that the machine type's runs would start from now and saves the guest.
    pub(crate) async fn build_snapshot(
        self,
        machine: MachineTypeName,
        settings: Option<Arc<Machine>>,
        given_up: CancellationToken,
    ) {
        let result = match settings {
            None => Err(BuildTrouble::Host(Trouble::new(not_configured(&machine)))),
            Some(settings) => self.build(settings, given_up).await,
        };
        if result.is_ok() {
            self.prune_snapshots().await;
        }
        self.send(Message::Event(Event::SnapshotBuilt { machine, result })).await;
    }

    async fn build(
        &self,
        settings: Arc<Machine>,
        given_up: CancellationToken,
    ) -> Result<(), BuildTrouble> {
        let host = |what: String| BuildTrouble::Host(Trouble::new(what));
        self.images_settled().await;
        let key = {
            let (store, on, settings) =
                (self.store.clone(), Arc::clone(&self.host), Arc::clone(&settings));
            blocking(move || wanted(&store, &settings, &on)).await.map_err(host)?.key
        };
        machines::end(&self.store.snapshot_build_dir(&key), Ending::Build).await.map_err(host)?;
        let prepared = {
            let _permit = self.disk_work.acquire().await;
            let (store, on) = (self.store.clone(), Arc::clone(&self.host));
            blocking(move || prepare_build(&store, &settings, &on)).await.map_err(host)?
        };
        let Prepared { key, start, dir, spec } = prepared;
        tracing::info!(machine = %dir.machine(), %key, "building a snapshot of {}", start.image);
        let built = tokio::select! {
            built = snapshot::build(&self.host.supervisor, dir.path(), &spec) => Some(built),
            () = given_up.cancelled() => None,
        };
        match built {
            Some(Ok(built)) => {
                tracing::info!(
                    machine = %dir.machine(),
                    "the guest was ready after {} ms and saved in {} ms",
                    built.booted_in.as_millis(),
                    built.saved_in.as_millis(),
                );
                let finished =
                    self.on_disk(move |store| store.finish_snapshot(&dir, &key, start, now()));
                finished.await.map(drop).map_err(BuildTrouble::Host)
            }
            Some(Err(error)) => Err(self.build_failed(key, dir, start, &error).await),
            None => {
                machines::end(dir.path(), Ending::Build).await.map_err(host)?;
                let path = dir.path().to_owned();
                self.on_disk(move |store| store.remove_snapshot_build(&path))
                    .await
                    .map_err(BuildTrouble::Host)?;
                Err(BuildTrouble::GaveWay)
            }
        }
    }

    /// What went wrong, with the build's files removed but for the logs.
    async fn build_failed(
        &self,
        key: SnapshotKey,
        dir: RunDir,
        image: StartImage,
        error: &VmError,
    ) -> BuildTrouble {
        let reason = match error {
            // It names a log that is about to move.
            VmError::Snapshot { reason, .. } => reason.clone(),
            error => error.to_string(),
        };
        let outcome = run_dir::read_outcome(dir.path()).ok();
        if let Err(what) = machines::end(dir.path(), Ending::Build).await {
            return BuildTrouble::Host(Trouble::new(format!("{reason}; {what}")));
        }
        let kept = self.on_disk(move |store| store.keep_failed_snapshot(&key, &dir)).await;
        let what = match kept {
            Ok(kept) => format!(
                "{reason} (the console's output is in {})",
                kept.join(run_dir::files::CONSOLE).display()
            ),
            Err(trouble) => format!("{reason}; {}", trouble.what),
        };
        match outcome.map(|outcome| outcome.reason) {
            Some(
                EndReason::BootTimeout
                | EndReason::GuestReset
                | EndReason::GuestPanicked
                | EndReason::GuestShutdown,
            ) => BuildTrouble::Guest { what, image: image.image },
            _ => BuildTrouble::Host(Trouble::new(what)),
        }
    }

    /// Takes the snapshot that the machine type's runs would start from now out of use.
    pub(crate) async fn drop_snapshot(self, machine: MachineTypeName) {
        let dropped = self.on_disk(move |store| {
            for snapshot in store.list_snapshots()? {
                if snapshot.meta.machine == machine {
                    store.drop_snapshot(&snapshot.meta.key)?;
                }
            }
            Ok(())
        });
        if let Err(trouble) = dropped.await {
            tracing::error!("could not take a snapshot out of use: {}", trouble.what);
        }
        self.prune_snapshots().await;
    }

    /// Ends the builds that an earlier daemon left behind, and removes what is of no use any more. To be
    /// called before the first build.
    pub(crate) async fn clean_up_snapshots(&self) {
        match self.store.snapshot_builds() {
            Ok(builds) => {
                for path in builds {
                    self.clean_up_build(path).await;
                }
            }
            Err(error) => tracing::error!(%error, "could not look for unfinished snapshots"),
        }
        self.prune_snapshots().await;
    }

    async fn clean_up_build(&self, path: PathBuf) {
        tracing::info!(path = %path.display(), "removing an unfinished snapshot");
        let removed = match machines::end(&path, Ending::Build).await {
            Ok(()) => self.on_disk(move |store| store.remove_snapshot_build(&path)).await,
            Err(what) => Err(Trouble::new(what)),
        };
        if let Err(trouble) = removed {
            tracing::error!("an unfinished snapshot is left: {}", trouble.what);
        }
    }

    /// Removes snapshots that no machine type wants and no run needs.
    pub(super) async fn prune_snapshots(&self) {
        let (settings, host) = (Arc::clone(&self.settings), Arc::clone(&self.host));
        let pruned = self.on_disk(move |store| prune(store, &settings.with_snapshots, &host));
        if let Err(trouble) = pruned.await {
            tracing::warn!("could not remove old snapshots: {}", trouble.what);
        }
    }
}

fn prune(store: &Store, machines: &[Arc<Machine>], host: &Host) -> Result<(), ImageError> {
    let mut keys = BTreeSet::new();
    // What they want cannot be told now; perhaps an image is being replaced.
    let mut unclear = BTreeSet::new();
    for machine in machines {
        match wanted(store, machine, host) {
            Ok(wanted) => drop(keys.insert(wanted.key)),
            Err(_) => drop(unclear.insert(&machine.name)),
        }
    }
    let wanted = |key: &SnapshotKey, meta: Option<&forrest_images::SnapshotMeta>| {
        keys.contains(key) || meta.is_some_and(|meta| unclear.contains(&meta.machine))
    };
    store.prune_snapshots(wanted).map(drop)
}

fn not_configured(machine: &MachineTypeName) -> String {
    format!("{machine} is not configured any more")
}

fn prepare_build(store: &Store, settings: &Machine, host: &Host) -> Result<Prepared, String> {
    let text = |error: ImageError| error.to_string();
    let Wanted { key, start, template } = wanted(store, settings, host)?;
    let runner = RunnerName::from_random(&settings.name, disks::random()?);
    let dir = store.begin_snapshot(&key, &settings.name, &runner).map_err(text)?;
    let disk = store.fork(&start, &dir, settings.disk).map_err(text)?;
    let seed = disks::Seed { machine: &settings.name, template: &template, start: &start };
    seed.write(store, &dir.cloud_init(), Part::CloudInit, None).map_err(text)?;
    // As large as any run's, and without anything of a run.
    store.write_seed(&dir.job_config(), JOBDATA, &SeedFiles::default()).map_err(text)?;
    let files = |name: &str| dir.path().join(name);
    let boot = Boot::Template { ram: files(snapshots::RAM), state: files(snapshots::STATE) };
    let spec = disks::spec(&dir, settings, host, disk, boot)?;
    Ok(Prepared { key, start, dir, spec })
}
