//! What happens to a run's files.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use forrest_config::{Destination, Machine};
use forrest_core::RunEvent;
use forrest_core::event::{Persist, Trouble};
use forrest_core::model::{Bytes, ImageRef, Job, MachineTypeName, StartImage};
use forrest_images::persistence::persistence_token_matches;
use forrest_images::readback::{self, ReadBack};
use forrest_images::seed::{JOBDATA, SeedFiles};
use forrest_images::template::{Part, Replacements, RunValues, Template};
use forrest_images::{DiskFormat, ImageError, Origin, RunDir, RunDisk, Store};
use forrest_vm::JobFiles;
use forrest_vm::spec::{
    Boot, Confinement, Disk, DiskFormat as VmDiskFormat, EgressFilter, FORMAT, GuestUuid, Layer,
    Network, RunSpec, SharedDir,
};
use secrecy::SecretString;

use super::housekeeping::KeptImages;
use super::machines::{self, Ending};
use super::{Executors, Host, RunContext, blocking, images, snapshots};
use crate::clock::now;
use crate::record::RunRecord;

/// Whether the run still has a disk to be settled.
pub(crate) fn disk_exists(run_dir: &Path) -> bool {
    run_dir.join("disk.img").exists() || run_dir.join("job-config.img").exists()
}

/// The room that a file takes; zero where there is none.
pub(super) fn allocated(path: &Path) -> Bytes {
    std::fs::metadata(path).map_or(Bytes(0), |found| Bytes(found.blocks().saturating_mul(512)))
}

impl Executors {
    /// Forks the run's disk and writes its `CIDATA` disk. A guest that starts from a snapshot is restored
    /// already, while its runner is being registered.
    pub(crate) async fn prepare(self, run: Arc<RunContext>, restore: bool) {
        self.images_settled().await;
        let prepared = match self.begin(&run).await {
            Ok(()) => {
                self.import_for(&run).await;
                let run = Arc::clone(&run);
                let _permit = self.disk_work.acquire().await;
                let (store, host) = (self.store.clone(), Arc::clone(&self.host));
                blocking(move || prepare(&store, &run, &host, restore)).await
            }
            Err(what) => Err(what),
        };
        if let Ok((_, Start::Restored)) = prepared {
            self.restore(&run).await;
        }
        let missed = restore && matches!(prepared, Ok((_, Start::Cold)));
        let image = prepared.map(|(image, _)| image).map_err(Trouble::new);
        self.answer(&run, RunEvent::Prepared(image)).await;
        if missed {
            // The image has changed, or the snapshot is gone: a new one is not to wait for the next look.
            let settings = self.with_snapshot(&run.machine);
            self.check_snapshot(run.machine.clone(), settings).await;
        }
    }

    /// Makes the run's directory with its record, once. Nothing is asked of GitHub before that: whatever
    /// happens to this daemon, the next one finds the run's name and removes its runner.
    pub(super) async fn begin(&self, run: &Arc<RunContext>) -> Result<(), String> {
        let made = run.begun.get_or_init(|| async {
            if settings(run)?.network.filter {
                self.host.containment.filter().await?;
            }
            let (store, host, run) = (self.store.clone(), Arc::clone(&self.host), Arc::clone(run));
            blocking(move || {
                shared_dirs(settings(&run)?, &host)?;
                begin(&store, &run)
            })
            .await
        });
        made.await.clone()
    }

    /// Looks for the persistence token on the job-config disk.
    pub(crate) async fn read_back(self, run: Arc<RunContext>) {
        let found = {
            let run = Arc::clone(&run);
            blocking(move || read_back(&run)).await
        };
        self.answer(&run, RunEvent::ReadBack(found)).await;
    }

    /// Makes the run's disk the machine type's next image.
    pub(crate) async fn promote(self, run: Arc<RunContext>, job: Option<Box<Job>>) {
        let answer = match self.cause(&run, job.as_deref()).await {
            Ok(event) => {
                let origin = origin(job.as_deref(), event);
                let dir = run.dir.clone();
                let promoted = self.on_disk_among(&self.promotions, move |store| {
                    let generation = match store.promote(&dir, &origin, now(), &mut |_| {}) {
                        Ok(generation) => generation,
                        // No later try would end in another way.
                        Err(
                            error @ (ImageError::HostRestarted { .. }
                            | ImageError::DiskChanged { .. }),
                        ) => {
                            return Ok(RunEvent::PromotionRefused(error.to_string()));
                        }
                        Err(error) => return Err(error),
                    };
                    // The seed disks go, the JIT configuration with them.
                    store.discard(&dir)?;
                    Ok(RunEvent::Promoted(Ok(generation)))
                });
                promoted.await.unwrap_or_else(|trouble| RunEvent::Promoted(Err(trouble)))
            }
            Err(answer) => answer,
        };
        let promoted = matches!(answer, RunEvent::Promoted(Ok(_)));
        self.answer(&run, answer).await;
        if let (true, Some(settings)) = (promoted, &run.settings) {
            self.remove_old_images(KeptImages::of(settings)).await;
        }
    }

    /// What started the job, where its disk may become a machine image; otherwise the answer to give.
    async fn cause(&self, run: &RunContext, job: Option<&Job>) -> Result<Option<String>, RunEvent> {
        let refused = |why: &str| Err(RunEvent::PromotionRefused(why.to_owned()));
        let Some(settings) = &run.settings else {
            return refused("its machine type is not configured any more");
        };
        let Some(left_by) = job else {
            return refused("which job left it behind is not known");
        };
        // The core sees to that; but whose `persist_from` would be asked for otherwise?
        let own = run.machine.repository();
        if !own.is_same_as(&left_by.repository) {
            return refused(&format!("its job is one of {}, not of {own}", left_by.repository));
        }
        let Some(facts) = self.workflow_run(run, job).await else {
            let what = "what started the job is not known, so `persist_from` cannot be kept";
            return Err(RunEvent::Promoted(Err(Trouble::new(what))));
        };
        let event = facts.event.clone().unwrap_or_default();
        if settings.persist_from.allows(&event, facts.from_fork) {
            return Ok(facts.event);
        }
        let from = if facts.from_fork { " from a fork" } else { "" };
        refused(&format!("`persist_from` does not list its event, {event:?}{from}"))
    }

    /// Removes the run's disks, after the virtual machine that was restored for a runner which never came.
    pub(crate) async fn discard(self, run: Arc<RunContext>) {
        // A runner that GitHub does not let go of keeps its run, but nobody else's turn.
        run.end_turn();
        let discarded = match machines::end(run.dir.path(), Ending::IfUnused).await {
            Ok(()) => {
                let run = Arc::clone(&run);
                self.on_disk(move |store| store.discard(&run.dir)).await
            }
            Err(what) => Err(Trouble::new(what)),
        };
        self.answer(&run, RunEvent::Discarded(discarded)).await;
    }
}

/// The settings of a run that is about to start; a run whose machine type is gone never gets there.
fn settings(run: &RunContext) -> Result<&Machine, String> {
    run.settings.as_deref().ok_or_else(|| format!("{} is not configured any more", run.machine))
}

fn begin(store: &Store, run: &RunContext) -> Result<(), String> {
    let settings = settings(run)?;
    store.create_run_dir(&run.runner, &run.machine).map_err(|error| error.to_string())?;
    let record = RunRecord {
        runner: run.runner.clone(),
        machine: run.machine.clone(),
        ram: settings.ram,
        cpus: settings.cpus,
        disk: settings.disk,
        created_at: now(),
        image: None,
        runner_id: None,
        job: None,
    };
    write_record(run, &record)
}

fn write_record(run: &RunContext, record: &RunRecord) -> Result<(), String> {
    record.write(run.dir.path()).map_err(|error| format!("could not write its record: {error}"))
}

/// How a prepared run is to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    Cold,
    Restored,
}

fn prepare(
    store: &Store,
    run: &RunContext,
    host: &Host,
    restore: bool,
) -> Result<(StartImage, Start), String> {
    let settings = settings(run)?;
    let text = |error: ImageError| error.to_string();
    let mut record = RunRecord::read(run.dir.path()).ok_or("the run's record cannot be read")?;
    let write = |record: &RunRecord| write_record(run, record);
    let start = images::start_image(store, settings)?;
    let template = template(settings).map_err(text)?;
    if restore && let Some(snapshot) = snapshots::fitting(store, settings, host, &start, &template)
    {
        match store.fork_from_snapshot(&snapshot, &run.dir) {
            Ok(_) => {
                record.image = Some(start.clone());
                write(&record)?;
                // What is to be on it comes with the registration.
                store
                    .write_seed(&run.dir.job_config(), JOBDATA, &SeedFiles::default())
                    .map_err(text)?;
                run_spec(store, run, host)?
                    .write(run.dir.path())
                    .map_err(|error| error.to_string())?;
                return Ok((start, Start::Restored));
            }
            Err(error) => {
                tracing::warn!(runner = %run.runner, %error, "starting cold: its snapshot fails");
            }
        }
    }
    store.fork(&start, &run.dir, settings.disk).map_err(text)?;
    record.image = Some(start.clone());
    write(&record)?;
    for unknown in template.unknown_patterns() {
        tracing::warn!(machine = %run.machine, "{unknown} is replaced by nothing: no such parameter");
    }
    if template.run_values_in_cloud_init().is_empty() {
        let seed = Seed { machine: &run.machine, template: &template, start: &start };
        seed.write(store, &run.dir.cloud_init(), Part::CloudInit, None).map_err(text)?;
    }
    Ok((start, Start::Cold))
}

pub(super) fn template(settings: &Machine) -> Result<Template, ImageError> {
    let template = &settings.setup_template;
    Template::load(template.path.resolve(), &template.parameters)
}

/// What seed disks are made of.
pub(super) struct Seed<'a> {
    pub(super) machine: &'a MachineTypeName,
    pub(super) template: &'a Template,
    pub(super) start: &'a StartImage,
}

impl Seed<'_> {
    /// Writes one of the two disks.
    pub(super) fn write(
        &self,
        store: &Store,
        path: &Path,
        part: Part,
        run: Option<RunValues<'_>>,
    ) -> Result<(), ImageError> {
        store.write_seed(path, part.label(), &self.files(part, run)?)
    }

    fn files(&self, part: Part, run: Option<RunValues<'_>>) -> Result<SeedFiles, ImageError> {
        let instance_id = instance_id(self.template, self.start);
        let replacements = Replacements { machine: self.machine, instance_id: &instance_id, run };
        self.template.render(part, &replacements)
    }
}

/// What cloud-init tells one set-up from another by: it changes with the template and with the image.
pub(super) fn instance_id(template: &Template, start: &StartImage) -> String {
    let hash = template.content_hash();
    let hash = hash.get(..16).unwrap_or(&hash);
    match &start.image {
        ImageRef::Src { .. } => format!("forrest-{hash}-src-{}", start.made_at.0),
        ImageRef::Machine { generation, .. } => {
            format!("forrest-{hash}-{generation}-{}", start.made_at.0)
        }
    }
}

/// Writes the disk with the JIT configuration, in place where a restored guest has it already. Returns what
/// the guest may be told of it.
pub(super) fn write_job_config(
    store: &Store,
    run: &RunContext,
    jit_config: &SecretString,
) -> Result<JobFiles, String> {
    let settings = settings(run)?;
    let text = |error: ImageError| error.to_string();
    let template = template(settings).map_err(text)?;
    let start = RunRecord::read(run.dir.path()).and_then(|record| record.image);
    let start = start.ok_or("the run's record cannot be read")?;
    let seed = Seed { machine: &run.machine, template: &template, start: &start };
    let values = Some(RunValues { runner: &run.runner, jit_config });
    if !template.run_values_in_cloud_init().is_empty() {
        seed.write(store, &run.dir.cloud_init(), Part::CloudInit, values).map_err(text)?;
    }
    let files = seed.files(Part::JobConfig, values).map_err(text)?;
    let path = run.dir.job_config();
    let written = match run.is_restored() {
        true => store.fill_seed(&path, JOBDATA, &files),
        false => store.write_seed(&path, JOBDATA, &files),
    };
    written.map_err(text)?;
    Ok(JobFiles::new(files.iter()))
}

/// The virtual machine's description for its supervisor.
pub(super) fn run_spec(store: &Store, run: &RunContext, host: &Host) -> Result<RunSpec, String> {
    let settings = settings(run)?;
    let disk = store.run_disk(&run.dir).map_err(|error| error.to_string())?;
    let disk = disk.ok_or("the run's disk is gone")?;
    let boot = match &disk.snapshot {
        Some(snapshot) => Boot::Restored { ram: snapshot.ram(), state: snapshot.state() },
        None => Boot::Cold,
    };
    spec(&run.dir, settings, host, disk, boot)
}

/// Random bytes.
pub(super) fn random() -> Result<[u8; 16], String> {
    let mut random = [0; 16];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut random))
        .map_err(|error| format!("no random numbers: {error}"))?;
    Ok(random)
}

/// The description of a virtual machine in this directory.
pub(super) fn spec(
    dir: &RunDir,
    settings: &Machine,
    host: &Host,
    disk: RunDisk,
    boot: Boot,
) -> Result<RunSpec, String> {
    let boot_timeout_ms = u64::try_from(settings.boot_timeout.as_millis()).unwrap_or(u64::MAX);
    Ok(RunSpec {
        format: FORMAT,
        runner: dir.runner().clone(),
        machine: dir.machine().clone(),
        uuid: GuestUuid::from_random(random()?),
        qemu: host.qemu.clone(),
        accel: host.accel,
        cpus: settings.cpus,
        ram: settings.ram,
        disk: Disk {
            path: disk.path,
            format: vm_format(disk.format),
            backing: disk
                .backing
                .into_iter()
                .map(|below| Layer { path: below.path, format: vm_format(below.format) })
                .collect(),
            virtual_size: Some(disk.virtual_size),
        },
        cloud_init: dir.cloud_init(),
        job_config: dir.job_config(),
        shared: shared_dirs(settings, host)?,
        boot,
        boot_timeout_ms,
        network: Network {
            isolated: false,
            filter: settings.network.filter.then(|| EgressFilter {
                allow: settings.network.allow.iter().map(destination).collect(),
            }),
        },
        confinement: Confinement { uids: host.containment.uids(), ..Confinement::default() },
        record: serde_json::Value::Null,
    })
}

/// Looked at again for each run: what was harmless when the configuration was checked may have become a
/// link to elsewhere.
fn shared_dirs(settings: &Machine, host: &Host) -> Result<Vec<SharedDir>, String> {
    let shared = settings.shared.iter().map(|shared| {
        let path = shared.resolve(&host.never_shared).map_err(|error| error.to_string())?;
        Ok(SharedDir { path, tag: shared.tag.clone(), writable: shared.writable })
    });
    shared.collect()
}

fn vm_format(format: DiskFormat) -> VmDiskFormat {
    match format {
        DiskFormat::Raw => VmDiskFormat::Raw,
        DiskFormat::Qcow2 => VmDiskFormat::Qcow2,
    }
}

fn destination(allowed: &Destination) -> forrest_confine::Destination {
    let (address, prefix, port) = (allowed.address(), allowed.prefix(), allowed.port());
    forrest_confine::Destination { address, prefix, port }
}

fn read_back(run: &RunContext) -> Result<Persist, Trouble> {
    let Some(token) = &run.token else { return Ok(Persist::Absent) };
    let found = match readback::read_file(
        &run.dir.job_config(),
        readback::PERSIST,
        readback::PERSIST_MAX,
    ) {
        Ok(ReadBack::Content(content)) if persistence_token_matches(token, &content) => {
            Persist::Valid
        }
        Ok(ReadBack::Content(_)) => Persist::WrongToken,
        Ok(ReadBack::Absent) => Persist::Absent,
        Ok(ReadBack::Damaged(why)) => {
            tracing::warn!(runner = %run.runner, "the job-config disk: {why}");
            Persist::Damaged
        }
        // The guest is not to blame.
        Err(error) => return Err(Trouble::new(error.to_string())),
    };
    Ok(found)
}

fn origin(job: Option<&Job>, event: Option<String>) -> Origin {
    let Some(job) = job else { return Origin { event, ..Origin::default() } };
    Origin {
        job: Some(job.id),
        job_name: job.name.clone(),
        workflow_run: Some(job.workflow_run),
        run_attempt: Some(job.run_attempt),
        repository: Some(job.repository.clone()),
        head_branch: job.head_branch.clone(),
        head_sha: job.head_sha.clone(),
        event,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use forrest_config::{BUILT_IN_PARAMETERS, CPUS_MAX, SHARED_MAX};
    use forrest_images::template::BUILT_IN;
    use forrest_vm::spec;

    /// The configuration knows neither machines nor templates, and says the same.
    #[test]
    fn a_sound_configuration_is_refused_by_no_machine_and_no_template() {
        assert_eq!((CPUS_MAX, SHARED_MAX), (spec::CPUS_MAX, spec::SHARED_MAX));
        assert_eq!(BTreeSet::from(BUILT_IN_PARAMETERS), BTreeSet::from(BUILT_IN));
    }
}
