//! Going back to earlier generations, marking them broken, and removing those that nobody needs.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};

use forrest_core::model::{Generation, ImageRef, MachineTypeName, Timestamp};

use crate::durable::LockKind;
use crate::error::ImageError;
use crate::generations::{BrokenMark, Generations, RECORD_MAX};
use crate::layout::{DISK, DISK_RECORD};
use crate::qcow2;
use crate::run_disk::DiskRecord;
use crate::store::{Store, read_dir, read_record};

/// The longest reason that is kept with a mark, in characters.
const WHY_MAX: usize = 1000;

/// What [`Store::prune`] did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pruned {
    /// The generations that were removed.
    pub removed: Vec<Generation>,
    /// Those beyond the wanted number that stay because a run or another image needs them.
    pub needed: Vec<Generation>,
}

impl Store {
    /// Makes another generation current: `to`, or the next sound one below the current one. Generations
    /// above it stay, and can be gone back to. Answers the generation that is current now.
    ///
    /// # Errors
    /// [`ImageError::NothingToRollBackTo`]; [`ImageError::NoSuchGeneration`],
    /// [`ImageError::GenerationBroken`] for a `to` that cannot be used; [`ImageError::Io`].
    pub fn roll_back(
        &self,
        machine: &MachineTypeName,
        to: Option<Generation>,
    ) -> Result<Generation, ImageError> {
        let paths = self.layout.machine(machine)?;
        let _lock = self.files.lock(&self.layout.store_lock(), LockKind::Exclusive)?;
        let mut generations = self.recover(&paths)?;
        let target = match to {
            None => generations
                .previous()
                .ok_or_else(|| ImageError::NothingToRollBackTo { machine: machine.clone() })?,
            Some(to) if generations.is_sound(to) => to,
            Some(generation) => return Err(unusable(&generations, machine, generation)),
        };
        self.point_link(&paths, &mut generations, Some(target))?;
        tracing::info!(%machine, generation = %target, "rolled back");
        Ok(target)
    }

    /// Marks a generation broken: it is never started from again, and when it was current, the next
    /// lower sound one is. Answers what is current now; `None` when runs start from the base again.
    ///
    /// # Errors
    /// [`ImageError::NoSuchGeneration`]; [`ImageError::Io`].
    pub fn mark_broken(
        &self,
        machine: &MachineTypeName,
        generation: Generation,
        why: &str,
        now: Timestamp,
    ) -> Result<Option<Generation>, ImageError> {
        let paths = self.layout.machine(machine)?;
        let _lock = self.files.lock(&self.layout.store_lock(), LockKind::Exclusive)?;
        let mut generations = self.recover(&paths)?;
        if !generations.images.contains_key(&generation) {
            return Err(unusable(&generations, machine, generation));
        }
        let mark = BrokenMark { why: why.chars().take(WHY_MAX).collect(), at: now };
        generations.state.broken.entry(generation).or_insert(mark);
        // The mark first: with it, the link no longer decides.
        self.write_state(&paths, &generations)?;
        self.settle(&paths, &mut generations)?;
        tracing::warn!(%machine, %generation, "marked broken: {why}");
        Ok(generations.current())
    }

    /// Removes old generations, so that the newest `keep` (at least one) remain. The current one always
    /// stays, and so does any that a run, a snapshot or another image is built on or started from; files
    /// without lineage are not touched.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub fn prune(&self, machine: &MachineTypeName, keep: usize) -> Result<Pruned, ImageError> {
        self.prune_old(machine, keep, Timestamp::default())
    }

    /// As [`Store::prune`]; those go, too, that were replaced by a later generation before `replaced_before`.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub fn prune_old(
        &self,
        machine: &MachineTypeName,
        keep: usize,
        replaced_before: Timestamp,
    ) -> Result<Pruned, ImageError> {
        let paths = self.layout.machine(machine)?;
        let _removal = self.files.lock(&self.layout.removal_lock(), LockKind::Exclusive)?;
        let _lock = self.files.lock(&self.layout.store_lock(), LockKind::Exclusive)?;
        let mut generations = self.recover(&paths)?;
        let current = generations.current();
        let known = generations
            .images
            .iter()
            .filter_map(|(n, lineage)| lineage.as_ref().map(|lineage| (*n, lineage.promoted_at)));
        let mut surplus = Vec::new();
        let mut replaced_at = Timestamp::NEVER;
        for (index, (generation, promoted_at)) in known.rev().enumerate() {
            let goes = index >= keep.max(1) || replaced_at < replaced_before;
            if goes && Some(generation) != current {
                surplus.push(generation);
            }
            replaced_at = promoted_at;
        }
        let mut pruned = Pruned::default();
        // From new to old: with an overlay goes the need for what it was built on.
        for generation in surplus {
            let image = paths.image(generation);
            if self.needed_files()?.contains(&image) {
                pruned.needed.push(generation);
                continue;
            }
            self.files.remove(&image)?;
            self.files.sync_dir(&paths.dir)?;
            self.files.remove(&paths.lineage(generation))?;
            generations.images.remove(&generation);
            tracing::info!(%machine, %generation, "removed an old generation");
            pruned.removed.push(generation);
        }
        let marks = generations.state.broken.len();
        generations.state.broken.retain(|n, _| generations.images.contains_key(n));
        if generations.state.broken.len() != marks {
            self.write_state(&paths, &generations)?;
        }
        Ok(pruned)
    }

    /// Every file that an image, a run or a snapshot is built on, and the images that runs and snapshots
    /// started from.
    pub(crate) fn needed_files(&self) -> Result<BTreeSet<PathBuf>, ImageError> {
        let mut needed = BTreeSet::new();
        for machine in self.machines()? {
            let paths = self.layout.machine(&machine)?;
            for (generation, lineage) in Generations::read(&paths)?.images {
                match lineage {
                    Some(lineage) => needed.extend(lineage.backing.map(|backing| backing.path)),
                    None => needed.extend(backing_by_header(&paths.image(generation))),
                }
            }
        }
        let runs = self.list_run_dirs()?;
        let snapshots = read_dir(&self.layout.snapshots())?;
        let run_dirs = runs.iter().map(|run| run.path().to_owned());
        for dir in run_dirs.chain(snapshots.into_iter().map(|entry| entry.path)) {
            self.needed_by_disk(&dir, &mut needed)?;
        }
        Ok(needed)
    }

    fn needed_by_disk(&self, dir: &Path, needed: &mut BTreeSet<PathBuf>) -> Result<(), ImageError> {
        let disk = dir.join(DISK);
        // A record without its disk is of a run that is about to be forked, or was promoted; the former
        // holds the removal lock.
        if !disk.exists() {
            return Ok(());
        }
        match read_record::<DiskRecord>(&dir.join(DISK_RECORD), RECORD_MAX) {
            Ok(Some(record)) => {
                needed.extend(record.backing.map(|backing| backing.path));
                if let ImageRef::Machine { machine, generation } = &record.parent {
                    needed.insert(self.layout.machine(machine)?.image(*generation));
                }
            }
            Ok(None) | Err(ImageError::BadRecord { .. }) => needed.extend(backing_by_header(&disk)),
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// What a file without a record would need if it were an overlay. Good enough to keep a file, never to
/// open one.
fn backing_by_header(image: &Path) -> Option<PathBuf> {
    qcow2::read_header(&File::open(image).ok()?).ok()?.ok()?.backing
}

fn unusable(
    generations: &Generations,
    machine: &MachineTypeName,
    generation: Generation,
) -> ImageError {
    let machine = machine.clone();
    match generations.state.broken.get(&generation) {
        Some(mark) => ImageError::GenerationBroken { machine, generation, why: mark.why.clone() },
        None => ImageError::NoSuchGeneration { machine, generation },
    }
}
