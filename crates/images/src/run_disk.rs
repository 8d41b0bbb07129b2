//! Making a run's disk from the image that it starts from.
//!
//! | image | driver | the run's disk |
//! |---|---|---|
//! | raw | reflink | a clone that shares all blocks, then grown by a hole |
//! | raw | overlay | an empty qcow2 overlay of the wanted size |
//! | qcow2 (a generation made by the overlay driver) | either | an empty qcow2 overlay of the wanted size |
//!
//! A run that is restored from a snapshot starts from the snapshot's disk instead, in the same ways.
//!
//! Src images in qcow2 format are converted to raw once ([`crate::src_cache`]), so that every disk below
//! a reflink store is a raw file: nothing has to be decompressed or looked up while a job runs. All
//! three ways take milliseconds, whatever the size; what a clone's time does depend on is the number of
//! pieces that the image is in (on XFS some 10 µs each). None of them synchronises: a power loss ends the run
//! anyway, and the record holds the host's boot id so that what was written before one is not promoted
//! after it.

use std::fs::File;
use std::path::{Path, PathBuf};

use forrest_core::model::{Bytes, ImageRef, StartImage, Timestamp};
use serde::{Deserialize, Serialize};

use crate::durable::LockKind;
use crate::error::{ImageError, IoContext};
use crate::format::DiskFormat;
use crate::generations::{BackingFile, Generations, RECORD_MAX};
use crate::layout::{DISK, DISK_RECORD};
use crate::qcow2::{self, MAX_DISK};
use crate::runs::RunDir;
use crate::snapshots::SnapshotDir;
use crate::store::{Driver, Store, cannot_clone, read_record, to_json};

const DISK_MODE: u32 = 0o600;
const SECTOR: u64 = 512;

/// A run's disk, ready for QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunDisk {
    /// The file.
    pub path: PathBuf,
    /// Its format. Hand it to QEMU: it must not guess (see [`DiskFormat`]).
    pub format: DiskFormat,
    /// The disk's size as the guest sees it.
    pub virtual_size: Bytes,
    /// The files that QEMU must be able to read besides, the nearest first. Empty for a raw disk.
    pub backing: Vec<BackingFile>,
    /// The image that it started from.
    pub parent: StartImage,
    /// The snapshot that it goes with: the guest has to be restored, not booted.
    pub snapshot: Option<SnapshotDir>,
}

/// The content of `disk.json`, beside each disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DiskRecord {
    pub(crate) format: DiskFormat,
    pub(crate) virtual_size: Bytes,
    pub(crate) parent: ImageRef,
    pub(crate) parent_made_at: Timestamp,
    #[serde(default)]
    pub(crate) backing: Option<BackingFile>,
    /// During which boot of the host the disk is written.
    pub(crate) boot_id: String,
    /// The name of the snapshot's directory, where the run is restored from one.
    #[serde(default)]
    pub(crate) snapshot: Option<String>,
}

/// An image, found and measured.
pub(crate) struct Source {
    pub(crate) path: PathBuf,
    pub(crate) format: DiskFormat,
    pub(crate) size: Bytes,
    pub(crate) chain: Vec<BackingFile>,
}

impl Store {
    /// Makes the run's disk from an image and grows it to `disk_size`, rounded up to whole sectors. The
    /// run's directory must exist.
    ///
    /// Takes milliseconds; but where a src image must be imported first and [`Store::prepare_src`] has
    /// not done so, as long as reading and writing it takes.
    ///
    /// # Errors
    /// [`ImageError::DiskTooSmall`], [`ImageError::DiskTooLarge`]; [`ImageError::DiskExists`];
    /// [`ImageError::NoSuchGeneration`], [`ImageError::GenerationBroken`] where the generation has gone
    /// since it was chosen; [`ImageError::NotAnImage`], [`ImageError::SrcChanged`],
    /// [`ImageError::BrokenChain`] where the image is unusable; [`ImageError::Io`].
    pub fn fork(
        &self,
        start: &StartImage,
        run: &RunDir,
        disk_size: Bytes,
    ) -> Result<RunDisk, ImageError> {
        if disk_size > MAX_DISK {
            return Err(ImageError::DiskTooLarge { disk_size, max: MAX_DISK });
        }
        let size = Bytes(disk_size.0.next_multiple_of(SECTOR));
        self.check_no_disk(run)?;
        if let ImageRef::Src { path } = &start.image {
            self.prepare_src(Path::new(path), &mut |_| {})?;
        }
        // Nothing that the disk is built on may be removed before its record says so.
        let _lock = self.files.lock(&self.layout.removal_lock(), LockKind::Shared)?;
        let source = self.source(&start.image)?;
        if size < source.size {
            return Err(ImageError::DiskTooSmall {
                image: start.image.to_string(),
                image_size: source.size,
                disk_size,
            });
        }
        let result = self.make_disk(start, source, run.path(), size, None);
        if result.is_err() {
            self.remove_failed(run.path());
        }
        result
    }

    pub(crate) fn check_no_disk(&self, run: &RunDir) -> Result<(), ImageError> {
        if run.disk().symlink_metadata().is_ok() {
            let (runner, dir) = (run.runner().clone(), run.path().to_owned());
            return Err(ImageError::DiskExists { runner, dir });
        }
        Ok(())
    }

    /// The disk of a run, by its record; `None` where the run has none.
    ///
    /// # Errors
    /// [`ImageError::BadRecord`]; [`ImageError::BrokenChain`], [`ImageError::SrcChanged`] where what it is
    /// built on is no longer what it was; [`ImageError::Io`].
    pub fn run_disk(&self, run: &RunDir) -> Result<Option<RunDisk>, ImageError> {
        let path = run.disk();
        let record: Option<DiskRecord> = read_record(&run.path().join(DISK_RECORD), RECORD_MAX)?;
        let Some(record) = record.filter(|_| path.is_file()) else { return Ok(None) };
        let backing = self.chain_below(&path, record.backing.as_ref())?;
        let parent = StartImage { image: record.parent, made_at: record.parent_made_at };
        let snapshot = record.snapshot.as_deref().and_then(|name| self.snapshot_named(name));
        let DiskRecord { format, virtual_size, .. } = record;
        Ok(Some(RunDisk { path, format, virtual_size, backing, parent, snapshot }))
    }

    pub(crate) fn make_disk(
        &self,
        start: &StartImage,
        source: Source,
        dir: &Path,
        size: Bytes,
        snapshot: Option<&SnapshotDir>,
    ) -> Result<RunDisk, ImageError> {
        let cloned = source.format == DiskFormat::Raw && self.driver() == Driver::Reflink;
        let format = if cloned { DiskFormat::Raw } else { DiskFormat::Qcow2 };
        let below = BackingFile { path: source.path.clone(), format: source.format };
        let backing = (!cloned).then_some(below);
        let record = DiskRecord {
            format,
            virtual_size: size,
            parent: start.image.clone(),
            parent_made_at: start.made_at,
            backing: backing.clone(),
            boot_id: self.boot_id.clone(),
            snapshot: snapshot.and_then(|snapshot| snapshot.name()),
        };
        let record_path = dir.join(DISK_RECORD);
        let json = to_json(&record_path, &record)?;
        self.files.replace_volatile(&record_path, &json, DISK_MODE)?;

        let path = dir.join(DISK);
        let disk = self.files.create(&path, DISK_MODE)?;
        match &backing {
            None => {
                let from = File::open(&source.path).context("open", &source.path)?;
                self.files
                    .clone_file(&from, &source.path, &disk, &path)
                    .context("clone", &source.path)?;
                self.files.resize(&disk, &path, size.0)?;
            }
            Some(below) => {
                qcow2::write_overlay(&self.files, &disk, &path, size, &below.path, below.format)?;
            }
        }
        let backing = backing.into_iter().chain(source.chain).collect();
        let (parent, snapshot) = (start.clone(), snapshot.cloned());
        Ok(RunDisk { path, format, virtual_size: size, backing, parent, snapshot })
    }

    /// Best effort: the error that led here matters more, and the run's directory goes as a whole.
    pub(crate) fn remove_failed(&self, dir: &Path) {
        for name in [DISK, DISK_RECORD] {
            if let Err(error) = self.files.remove(&dir.join(name)) {
                tracing::warn!("after a fork that failed: {error}");
            }
        }
    }

    fn source(&self, image: &ImageRef) -> Result<Source, ImageError> {
        let (machine, generation) = match image {
            ImageRef::Src { path } => {
                let (path, size) = self.prepared_src(Path::new(path))?;
                return Ok(Source { path, format: DiskFormat::Raw, size, chain: Vec::new() });
            }
            ImageRef::Machine { machine, generation } => (machine, *generation),
        };
        let paths = self.layout.machine(machine)?;
        let generations = Generations::read(&paths)?;
        if let Some(mark) = generations.state.broken.get(&generation) {
            let (machine, why) = (machine.clone(), mark.why.clone());
            return Err(ImageError::GenerationBroken { machine, generation, why });
        }
        let Some(Some(lineage)) = generations.images.get(&generation) else {
            return Err(ImageError::NoSuchGeneration { machine: machine.clone(), generation });
        };
        let path = paths.image(generation);
        let chain = self.chain_below(&path, lineage.backing.as_ref())?;
        let size = disk_size(&path, lineage.format)?;
        Ok(Source { path, format: lineage.format, size, chain })
    }

    /// Whether a file's blocks can be shared with a file of the store.
    pub(crate) fn can_clone(&self, from: &File, from_path: &Path) -> Result<bool, ImageError> {
        let to_path = crate::durable::tmp_beside(&self.layout.src().join("probe"));
        let to = self.files.create(&to_path, DISK_MODE)?;
        let result = self.files.clone_file(from, from_path, &to, &to_path);
        self.files.remove(&to_path)?;
        match result {
            Ok(()) => Ok(true),
            Err(error) if cannot_clone(&error) => Ok(false),
            Err(error) => Err(error).context("clone", from_path),
        }
    }
}

/// A disk's size as a guest sees it, by its file.
pub(crate) fn disk_size(path: &Path, format: DiskFormat) -> Result<Bytes, ImageError> {
    let file = File::open(path).context("open", path)?;
    match format {
        DiskFormat::Raw => Ok(Bytes(file.metadata().context("measure", path)?.len())),
        DiskFormat::Qcow2 => qcow2::read_header(&file)
            .context("read", path)?
            .map(|header| header.virtual_size)
            .map_err(|why| ImageError::not_an_image(path, why)),
    }
}
