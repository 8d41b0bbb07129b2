//! A run's disk becomes the next generation of its machine type.
//!
//! The guest ran with flushes ignored, so this is the one place where durability is made. The order of
//! steps is such that a crash, or a power loss, between any two of them leaves the old generation or the
//! new one, never a torn one, and such that the files alone say which:
//!
//! ```text
//!   disk in the run's directory, generation 6 current
//!      │ 1  disk: made read-only, fsync
//!      │ 2  000007.json: written aside, fsync, rename; fsync of the directory
//!      │      crash here: a lineage without an image. Recovery removes it. OLD
//!      │ 3  disk renamed to 000007.img; fsync of both directories
//!   ═══╪══════ point of no return: image and lineage exist, 7 > high_water ═══════════════════════
//!      │      crash here: recovery does steps 4 and 5. NEW, even before recovery
//!      │ 4  <machine>.img -> <machine>/000007.img: made aside, rename; fsync of the directory
//!      │      crash here: recovery does step 5. NEW
//!      │ 5  state.json: high_water = 7, likewise written aside
//!      ▼
//!   generation 7 current
//! ```
//!
//! The lineage comes before the image because a generation without one is worthless (its format must not
//! be guessed), while a lineage without an image harms nobody. The high-water mark comes last because
//! "above the mark" is what tells a promotion that was interrupted from a generation that somebody rolled
//! back from: rolling back moves the link only, and leaves the mark.
//!
//! Asking for the same promotion again, after an error or a crash, completes it and answers the same
//! generation: a run is promoted at most once, by its name in the lineage.
//!
//! Before all of that, and again right before step 1, the disk is compared with the records: what a QEMU that
//! was taken over wrote to its header must not decide which files are read ([`crate::disk_check`]).
//!
//! A disk that is built on a snapshot's disk is taken off it first, with `qemu-img rebase`, onto what the
//! snapshot's disk is built on: a snapshot is never forced to the disk, and goes when its key does. Only
//! what the snapshot's guest wrote while it booted is read for that. Where it is interrupted, the disk
//! reads the same as before, and the next try completes it.
//!
//! A plain file in place of the link (the layout of earlier Forrests) becomes a generation in the same
//! steps when the store is opened.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use forrest_core::model::{Bytes, Generation, Timestamp};

use crate::chain::MAX_BACKING_DEPTH;
use crate::durable::LockKind;
use crate::error::{ImageError, IoContext};
use crate::format::DiskFormat;
use crate::generations::{BackingFile, Generations, Lineage, Origin, RECORD_MAX};
use crate::layout::{DISK_RECORD, FLAT_DISK, MachinePaths};
use crate::qemu_img::{self, Chain, Progress};
use crate::run_disk::DiskRecord;
use crate::runs::RunDir;
use crate::store::{Store, read_record, to_json};

/// Generations never change; QEMU and the store only read them.
const GENERATION_MODE: u32 = 0o440;
const RECORD_MODE: u32 = 0o640;
const DIR_MODE: u32 = 0o750;

impl Store {
    /// Makes the run's disk the next generation of its machine type, and that the current one.
    ///
    /// To be called after QEMU has exited, when the guest shut itself down and the token was right. Takes
    /// as long as writing out the disk's unwritten blocks; but where the disk is built on more than
    /// [`MAX_BACKING_DEPTH`] files, as long as reading and writing all of its data, of which `progress`
    /// then hears; and where the run was restored by the overlay driver, as long as copying what the
    /// snapshot's guest wrote. Calling it again completes what was interrupted.
    ///
    /// # Errors
    /// [`ImageError::NoDisk`]; [`ImageError::HostRestarted`], [`ImageError::DiskChanged`], for which no
    /// later try ends in another way; [`ImageError::NoNumberLeft`];
    /// [`ImageError::BadRecord`]; [`ImageError::Io`], a full disk among others. The run's disk is then
    /// still in its directory, unless the promotion got past its point of no return.
    pub fn promote(
        &self,
        run: &RunDir,
        origin: &Origin,
        now: Timestamp,
        progress: Progress<'_>,
    ) -> Result<Generation, ImageError> {
        let paths = self.layout.machine(run.machine())?;
        if let Some(generation) = self.promoted_before(&paths, run)? {
            return Ok(generation);
        }
        let record_path = run.path().join(DISK_RECORD);
        let record: Option<DiskRecord> = read_record(&record_path, RECORD_MAX)?;
        let Some(mut record) = record.filter(|_| run.disk().is_file()) else {
            let (runner, dir) = (run.runner().clone(), run.path().to_owned());
            return Err(ImageError::NoDisk { runner, dir });
        };
        if record.boot_id != self.boot_id {
            return Err(ImageError::HostRestarted { runner: run.runner().clone() });
        }
        self.catch_up(run, &mut record)?;
        // Before `qemu-img` opens it.
        self.check_disk(run, &record)?;
        self.take_off_snapshot(run, &mut record, &mut *progress)?;
        let depth = self.chain_below(&run.disk(), record.backing.as_ref())?.len();
        if depth > MAX_BACKING_DEPTH {
            self.flatten(run, &mut record, progress)?;
        }
        // Long, so outside of the lock; repeated in it after the change of mode, which is quick then.
        self.files.sync_file(&run.disk())?;

        self.files.make_dirs(&paths.dir, DIR_MODE)?;
        let _lock = self.files.lock(&self.layout.store_lock(), LockKind::Exclusive)?;
        let mut generations = self.recover(&paths)?;
        if let Some(generation) = generations.of_runner(run.runner()) {
            return Ok(generation);
        }
        // Of what becomes an image, also where `qemu-img` had no part in it.
        self.check_disk(run, &record)?;
        let lineage = Lineage {
            generation: generations.next(&paths.machine)?,
            format: record.format,
            promoted_at: now,
            parent: Some(record.parent),
            backing: record.backing,
            runner: Some(run.runner().clone()),
            origin: origin.clone(),
            virtual_size: record.virtual_size,
            allocated_size: allocated_size(&run.disk())?,
        };
        self.commit(&paths, &mut generations, &run.disk(), &lineage)?;
        let (machine, generation) = (&paths.machine, lineage.generation);
        tracing::info!(%machine, %generation, runner = %run.runner(), "promoted");
        Ok(generation)
    }

    /// The generation that an earlier, perhaps interrupted, promotion of this run made.
    fn promoted_before(
        &self,
        paths: &MachinePaths,
        run: &RunDir,
    ) -> Result<Option<Generation>, ImageError> {
        if Generations::read(paths)?.of_runner(run.runner()).is_none() {
            return Ok(None);
        }
        let _lock = self.files.lock(&self.layout.store_lock(), LockKind::Exclusive)?;
        Ok(self.recover(paths)?.of_runner(run.runner()))
    }

    /// Steps 1 to 5 of the module's description. The caller holds the store's lock and has recovered.
    fn commit(
        &self,
        paths: &MachinePaths,
        generations: &mut Generations,
        disk: &Path,
        lineage: &Lineage,
    ) -> Result<(), ImageError> {
        let generation = lineage.generation;
        self.files.set_mode(disk, GENERATION_MODE)?;
        self.files.sync_file(disk)?;

        let lineage_path = paths.lineage(generation);
        let json = to_json(&lineage_path, lineage)?;
        self.files.replace(&lineage_path, &json, RECORD_MODE)?;
        self.files.sync_dir(&paths.dir)?;

        self.files.rename(disk, &paths.image(generation))?;
        self.files.sync_dir(&paths.dir)?;
        if let Some(parent) = disk.parent() {
            self.files.sync_dir(parent)?;
        }
        generations.images.insert(generation, Some(lineage.clone()));
        self.settle(paths, generations)
    }

    /// Makes link and high-water mark agree with the images: steps 4 and 5.
    pub(crate) fn settle(
        &self,
        paths: &MachinePaths,
        generations: &mut Generations,
    ) -> Result<(), ImageError> {
        let current = generations.current();
        if current != generations.link {
            self.point_link(paths, generations, current)?;
        }
        let sound = generations.images.iter().filter(|(_, lineage)| lineage.is_some());
        let highest = sound.map(|(n, _)| n.0).max().unwrap_or(0);
        if highest > generations.state.high_water {
            generations.state.high_water = highest;
            self.write_state(paths, generations)?;
        }
        Ok(())
    }

    pub(crate) fn point_link(
        &self,
        paths: &MachinePaths,
        generations: &mut Generations,
        to: Option<Generation>,
    ) -> Result<(), ImageError> {
        match to {
            Some(generation) => {
                self.files.switch_symlink(&paths.link, &paths.link_target(generation))?;
            }
            None => {
                self.files.remove(&paths.link)?;
            }
        }
        self.files.sync_dir(&paths.repository)?;
        generations.link = to;
        Ok(())
    }

    pub(crate) fn write_state(
        &self,
        paths: &MachinePaths,
        generations: &Generations,
    ) -> Result<(), ImageError> {
        let path = paths.state();
        self.files.replace(&path, &to_json(&path, &generations.state)?, RECORD_MODE)?;
        self.files.sync_dir(&paths.dir)
    }

    /// Brings one machine type's files into a state that needs no interpretation. The caller holds the
    /// store's lock.
    pub(crate) fn recover(&self, paths: &MachinePaths) -> Result<Generations, ImageError> {
        let mut generations = Generations::read(paths)?;
        for orphan in std::mem::take(&mut generations.orphans) {
            tracing::info!(machine = %paths.machine, generation = %orphan, "removing a lineage without an image");
            self.files.remove(&paths.lineage(orphan))?;
        }
        if generations.plain_file {
            self.adopt(paths, &mut generations)?;
        }
        self.settle(paths, &mut generations)?;
        Ok(generations)
    }

    /// Makes a generation of a plain file that sits where the link belongs.
    fn adopt(&self, paths: &MachinePaths, generations: &mut Generations) -> Result<(), ImageError> {
        let metadata = std::fs::metadata(&paths.link).context("find", &paths.link)?;
        let ms = metadata.mtime().saturating_mul(1000);
        let lineage = Lineage {
            generation: generations.next(&paths.machine)?,
            // Earlier Forrests knew raw images only, and a guest has written to it since.
            format: DiskFormat::Raw,
            promoted_at: Timestamp(u64::try_from(ms).unwrap_or(0)),
            parent: None,
            backing: None,
            runner: None,
            origin: Origin::default(),
            virtual_size: Bytes(metadata.len()),
            allocated_size: allocated_size(&paths.link)?,
        };
        let (machine, generation) = (&paths.machine, lineage.generation);
        tracing::info!(%machine, %generation, "taking over a machine image of the earlier layout");
        self.files.make_dirs(&paths.dir, DIR_MODE)?;
        self.commit(paths, generations, &paths.link, &lineage)
    }

    /// Makes the record say what an earlier promotion, which was interrupted, did to the disk: between
    /// its last step and the record, the overlay stands alone or on what the snapshot's disk is built on. A
    /// header that says so without that is believed, too: such a disk reads no file that it could not
    /// read before.
    fn catch_up(&self, run: &RunDir, record: &mut DiskRecord) -> Result<(), ImageError> {
        let Some(recorded) = &record.backing else { return Ok(()) };
        let Some(named) = self.named_backing(run)? else { return Ok(()) };
        if named.as_ref() == Some(&recorded.path) {
            return Ok(());
        }
        let Some(named) = named else { return self.write_backing(run, record, None) };
        match self.below_snapshot(recorded)?.flatten() {
            Some(below) if below.path == named => self.write_backing(run, record, Some(below)),
            Some(_) | None => Ok(()),
        }
    }

    /// Puts an overlay of a snapshot's disk onto what that is an overlay of.
    fn take_off_snapshot(
        &self,
        run: &RunDir,
        record: &mut DiskRecord,
        progress: Progress<'_>,
    ) -> Result<(), ImageError> {
        let Some(snapshot) = &record.backing else { return Ok(()) };
        let Some(below) = self.below_snapshot(snapshot)? else { return Ok(()) };
        let Some(below) = below else {
            // A clone that was made by the other driver.
            return self.flatten(run, record, progress);
        };
        let image = BackingFile { path: run.disk(), format: record.format };
        let chain = self.chain_below(&image.path, record.backing.as_ref())?;
        let disk = Chain { image: &image, below: &chain };
        qemu_img::rebase(&self.files, &disk, &below, progress)?;
        self.write_backing(run, record, Some(below))
    }

    /// Replaces the run's overlay by one file that stands alone.
    fn flatten(
        &self,
        run: &RunDir,
        record: &mut DiskRecord,
        progress: Progress<'_>,
    ) -> Result<(), ImageError> {
        let flat = run.path().join(FLAT_DISK);
        self.files.remove(&flat)?;
        tracing::info!(
            runner = %run.runner(),
            "the disk is built on too many files, or on one that goes: writing it out as one"
        );
        let image = BackingFile { path: run.disk(), format: record.format };
        let chain = self.chain_below(&image.path, record.backing.as_ref())?;
        let from = Chain { image: &image, below: &chain };
        let to = (flat.as_path(), DiskFormat::Qcow2);
        if let Err(error) = qemu_img::convert(&self.files, "flatten", &from, to, progress) {
            self.files.remove(&flat)?;
            return Err(error);
        }
        self.files.set_mode(&flat, 0o600)?;
        self.files.sync_file(&flat)?;
        // Between the two, the record names more files than the disk needs, which is safe.
        self.files.rename(&flat, &run.disk())?;
        self.write_backing(run, record, None)
    }

    /// Records what the run's overlay is built on from now on.
    fn write_backing(
        &self,
        run: &RunDir,
        record: &mut DiskRecord,
        backing: Option<BackingFile>,
    ) -> Result<(), ImageError> {
        record.backing = backing;
        let path = run.path().join(DISK_RECORD);
        self.files.replace_volatile(&path, &to_json(&path, record)?, 0o600)
    }
}

fn allocated_size(path: &Path) -> Result<Bytes, ImageError> {
    let metadata = std::fs::metadata(path).context("measure", path)?;
    Ok(Bytes(metadata.blocks().saturating_mul(512)))
}
