//! Snapshots of booted guests: one directory each, below `snapshots/`.
//!
//! ```text
//! <key>.new/      being built: a run directory like any other, until the guest is saved
//!    │  finish_snapshot: rename        │ keep_failed_snapshot
//!    ▼                                 ▼
//! <key>/          disk.img, ram,     <key>.failed/   the logs of the last build that failed
//!    │            state, meta.json,
//!    │            cloud-init.img
//!    │  drop_snapshot: meta.json goes
//!    ▼
//! <key>/          found by nobody any more, but runs may be built on its disk
//!    │  prune_snapshots, once nothing is
//!    ▼
//! gone
//! ```
//!
//! A snapshot is there when its `meta.json` is. A second one of the same key, built while runs still need
//! the dropped first one, is in `<key>.1/`, and so on.
//!
//! Nothing here survives a power loss for certain, and need not: the record holds the host's boot id, and
//! whoever makes the key puts it in there, too. What a run leaves behind must therefore not be built on a
//! snapshot when it becomes a generation: promotion takes it off ([`crate::promote`]).
//!
//! The key is a hash of everything that the saved guest depends on; what that is, is for the caller to
//! say.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use forrest_core::model::{Bytes, MachineTypeName, RunnerName, StartImage, Timestamp};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::durable::LockKind;
use crate::error::{ImageError, IoContext};
use crate::generations::{BackingFile, RECORD_MAX};
use crate::layout::{CLOUD_INIT, DISK, DISK_RECORD, JOB_CONFIG};
use crate::run_disk::{DiskRecord, RunDisk, Source, disk_size};
use crate::runs::RunDir;
use crate::store::{Driver, PRIVATE_DIR_MODE, Store, read_dir, read_record, to_json};

/// The guest's RAM, in a snapshot's directory.
pub const RAM: &str = "ram";
/// The state of the guest's devices, in a snapshot's directory.
pub const STATE: &str = "state";

const META: &str = "meta.json";
const NEW: &str = ".new";
const FAILED: &str = ".failed";
const FILE_MODE: u32 = 0o600;
/// Directories that one key can have: all but one are dropped snapshots that runs still need.
const PER_KEY_MAX: u32 = 1000;

/// Names a snapshot by what its guest depends on: a SHA-256 in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SnapshotKey(String);

impl SnapshotKey {
    const LEN: usize = 64;

    /// The key for these facts, written down in any way that differs when they do.
    pub fn of(facts: &[u8]) -> Self {
        Self(Sha256::digest(facts).iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SnapshotKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for SnapshotKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let hexadecimal = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if text.len() == Self::LEN && text.bytes().all(hexadecimal) {
            return Ok(Self(text.to_owned()));
        }
        Err(format!("{text:?} is not the key of a snapshot"))
    }
}

impl TryFrom<String> for SnapshotKey {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<SnapshotKey> for String {
    fn from(key: SnapshotKey) -> Self {
        key.0
    }
}

/// A snapshot's files.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SnapshotDir(PathBuf);

impl SnapshotDir {
    /// The directory.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Its name below `snapshots/`.
    pub(crate) fn name(&self) -> Option<String> {
        self.0.file_name()?.to_str().map(str::to_owned)
    }

    /// The disk as it was when the guest was saved. Nobody writes to it.
    pub fn disk(&self) -> PathBuf {
        self.0.join(DISK)
    }

    /// The guest's RAM. Runs map it privately: it must never change, but may be removed.
    pub fn ram(&self) -> PathBuf {
        self.0.join(RAM)
    }

    /// The state of the guest's devices.
    pub fn state(&self) -> PathBuf {
        self.0.join(STATE)
    }

    /// The seed disk that the guest booted with.
    pub fn cloud_init(&self) -> PathBuf {
        self.0.join(CLOUD_INIT)
    }
}

/// What a snapshot is of: the content of `meta.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotMeta {
    /// Its key.
    pub key: SnapshotKey,
    /// The machine type that it was built for.
    pub machine: MachineTypeName,
    /// The image that its guest booted from.
    pub image: StartImage,
    /// When the guest was saved.
    pub built_at: Timestamp,
    /// During which boot of the host it was built: it is of no use in another one.
    pub boot_id: String,
}

/// A snapshot that runs can start from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its files.
    pub dir: SnapshotDir,
    /// What it is of.
    pub meta: SnapshotMeta,
    /// The room that its files take; what its disk shares with the image is not counted twice by the
    /// overlay driver, but is with reflinks.
    pub allocated: Bytes,
}

/// What a directory below `snapshots/` is, by its name.
enum Entry {
    Building,
    Failed(SnapshotKey),
    Built(SnapshotKey),
}

fn entry_of(name: &str) -> Option<Entry> {
    let (key, rest) = name.split_at_checked(SnapshotKey::LEN)?;
    let key: SnapshotKey = key.parse().ok()?;
    let serial = |rest: &str| rest.strip_prefix('.').is_some_and(|n| n.parse::<u32>().is_ok());
    match rest {
        "" => Some(Entry::Built(key)),
        NEW => Some(Entry::Building),
        FAILED => Some(Entry::Failed(key)),
        rest if serial(rest) => Some(Entry::Built(key)),
        _ => None,
    }
}

impl Store {
    fn snapshot_path(&self, key: &SnapshotKey, suffix: &str) -> PathBuf {
        self.layout.snapshots().join(format!("{key}{suffix}"))
    }

    /// Makes the directory in which a snapshot is built, to be used like a run's: [`Store::fork`] makes
    /// its disk there. What an earlier build of the same key left is removed; it is for the caller to
    /// know that no virtual machine runs there ([`Store::snapshot_build_dir`]).
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub fn begin_snapshot(
        &self,
        key: &SnapshotKey,
        machine: &MachineTypeName,
        runner: &RunnerName,
    ) -> Result<RunDir, ImageError> {
        let path = self.snapshot_build_dir(key);
        self.files.remove_tree(&path)?;
        self.files.make_dir(&path, PRIVATE_DIR_MODE)?;
        Ok(RunDir::at(runner.clone(), machine.clone(), path))
    }

    /// Where a snapshot of this key is built. Looks at no file.
    pub fn snapshot_build_dir(&self, key: &SnapshotKey) -> PathBuf {
        self.snapshot_path(key, NEW)
    }

    /// The directories of all builds, of which those that nobody works on are debris. They are not
    /// removed when the store is opened: another process may be building.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub fn snapshot_builds(&self) -> Result<Vec<PathBuf>, ImageError> {
        let entries = read_dir(&self.layout.snapshots())?.into_iter();
        let building =
            entries.filter(|e| matches!(e.name.to_str().and_then(entry_of), Some(Entry::Building)));
        Ok(building.map(|entry| entry.path).collect())
    }

    /// Removes the directory of a build that is over or was given up.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub fn remove_snapshot_build(&self, path: &Path) -> Result<(), ImageError> {
        self.files.remove_tree(path).map(drop)
    }

    /// Keeps the logs of a build that failed, and nothing else of it, until the next one of the same
    /// key fails or the key is not wanted any more. Answers where they are.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub fn keep_failed_snapshot(
        &self,
        key: &SnapshotKey,
        build: &RunDir,
    ) -> Result<PathBuf, ImageError> {
        self.discard(build)?;
        for name in [RAM, STATE] {
            self.files.remove(&build.path().join(name))?;
        }
        let failed = self.snapshot_path(key, FAILED);
        self.files.remove_tree(&failed)?;
        self.files.rename(build.path(), &failed)?;
        Ok(failed)
    }

    /// Makes a snapshot of a build whose guest was saved as [`RAM`] and [`STATE`]. An earlier one of the
    /// same key is dropped. Nothing is forced to the disk, but for the disk image on a file system with
    /// reflinks: there the first clone would have to wait for that.
    ///
    /// # Errors
    /// [`ImageError::SnapshotIncomplete`] where a file is missing; [`ImageError::DiskChanged`];
    /// [`ImageError::Io`].
    pub fn finish_snapshot(
        &self,
        build: &RunDir,
        key: &SnapshotKey,
        image: StartImage,
        now: Timestamp,
    ) -> Result<Snapshot, ImageError> {
        let dir = build.path();
        for name in [DISK, DISK_RECORD, RAM, STATE, CLOUD_INIT] {
            if !dir.join(name).is_file() {
                return Err(ImageError::SnapshotIncomplete { dir: dir.to_owned(), name });
            }
        }
        let record_path = dir.join(DISK_RECORD);
        let record: Option<DiskRecord> = read_record(&record_path, RECORD_MAX)?;
        let incomplete =
            || ImageError::SnapshotIncomplete { dir: dir.to_owned(), name: DISK_RECORD };
        self.check_disk(build, &record.ok_or_else(incomplete)?)?;
        self.files.remove(&dir.join(JOB_CONFIG))?;
        for name in [RAM, STATE] {
            self.files.set_mode(&dir.join(name), FILE_MODE)?;
        }
        if self.driver() == Driver::Reflink {
            self.files.sync_file(&dir.join(DISK))?;
        }
        let meta = SnapshotMeta {
            key: key.clone(),
            machine: build.machine().clone(),
            image,
            built_at: now,
            boot_id: self.boot_id.clone(),
        };
        let path = dir.join(META);
        self.files.replace_volatile(&path, &to_json(&path, &meta)?, FILE_MODE)?;
        self.drop_snapshot(key)?;
        let free = (0..PER_KEY_MAX)
            .map(|n| self.snapshot_path(key, &if n == 0 { String::new() } else { format!(".{n}") }))
            .find(|path| path.symlink_metadata().is_err());
        let place = free.unwrap_or_else(|| self.snapshot_path(key, ""));
        self.files.rename(dir, &place)?;
        tracing::info!(machine = %meta.machine, %key, "a snapshot is complete");
        Ok(snapshot_at(place, meta))
    }

    /// The snapshot of this key, if there is one that can be used.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub fn find_snapshot(&self, key: &SnapshotKey) -> Result<Option<Snapshot>, ImageError> {
        let found = self.snapshots_of(key)?.into_iter().map(|dir| self.read_snapshot(dir));
        found.collect::<Result<Vec<_>, _>>().map(|found| found.into_iter().flatten().next())
    }

    /// All snapshots that can be used.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub fn list_snapshots(&self) -> Result<Vec<Snapshot>, ImageError> {
        let dirs = self.built_snapshots()?.into_iter();
        let found = dirs.map(|(_, dir)| self.read_snapshot(dir));
        found.collect::<Result<Vec<_>, _>>().map(|found| found.into_iter().flatten().collect())
    }

    /// Makes sure that no run starts from this snapshot any more. Runs that did go on.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub fn drop_snapshot(&self, key: &SnapshotKey) -> Result<(), ImageError> {
        for dir in self.snapshots_of(key)? {
            self.files.remove(&dir.join(META))?;
        }
        Ok(())
    }

    /// Removes snapshots that are not wanted or were dropped, unless a run is built on them, and logs of
    /// failed builds. Answers how many directories went. Those that stay are as many as are wanted, and
    /// at most one for each run.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub fn prune_snapshots(
        &self,
        wanted: impl Fn(&SnapshotKey, Option<&SnapshotMeta>) -> bool,
    ) -> Result<usize, ImageError> {
        let _removal = self.files.lock(&self.layout.removal_lock(), LockKind::Exclusive)?;
        let mut removed = 0;
        let mut in_use = None;
        for (key, dir) in self.built_snapshots()? {
            let snapshot = self.read_snapshot(dir.clone())?;
            if snapshot.is_some_and(|snapshot| wanted(&key, Some(&snapshot.meta))) {
                continue;
            }
            // From now on nobody finds it.
            self.files.remove(&dir.join(META))?;
            if in_use.is_none() {
                in_use = Some(self.snapshots_in_use()?);
            }
            if in_use.as_ref().is_some_and(|in_use| in_use.contains(&dir)) {
                continue;
            }
            self.files.remove_tree(&dir)?;
            tracing::info!(%key, "removed a snapshot that nobody wants");
            removed += 1;
        }
        for entry in read_dir(&self.layout.snapshots())? {
            if let Some(Entry::Failed(key)) = entry.name.to_str().and_then(entry_of)
                && !wanted(&key, None)
            {
                self.files.remove_tree(&entry.path)?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Makes a run's disk, and its `CIDATA` disk, from a snapshot's. The run's directory must exist. Takes
    /// milliseconds, whatever the size.
    ///
    /// # Errors
    /// [`ImageError::SnapshotGone`] where it was dropped since it was found; otherwise as
    /// [`Store::fork`].
    pub fn fork_from_snapshot(
        &self,
        snapshot: &Snapshot,
        run: &RunDir,
    ) -> Result<RunDisk, ImageError> {
        self.check_no_disk(run)?;
        let _lock = self.files.lock(&self.layout.removal_lock(), LockKind::Shared)?;
        let dir = &snapshot.dir;
        if !dir.path().join(META).is_file() {
            return Err(ImageError::SnapshotGone { dir: dir.path().to_owned() });
        }
        let disk = dir.disk();
        let record: Option<DiskRecord> = read_record(&dir.path().join(DISK_RECORD), RECORD_MAX)?;
        let gone = || ImageError::SnapshotGone { dir: dir.path().to_owned() };
        let record = record.ok_or_else(gone)?;
        let source = Source {
            size: disk_size(&disk, record.format)?,
            chain: self.chain_below(&disk, record.backing.as_ref())?,
            format: record.format,
            path: disk,
        };
        let start = StartImage { image: record.parent, made_at: record.parent_made_at };
        let size = source.size;
        let made = self.make_disk(&start, source, run.path(), size, Some(dir)).and_then(|disk| {
            let cloud_init = dir.cloud_init();
            self.files.hard_link(&cloud_init, &run.cloud_init()).context("link", &cloud_init)?;
            Ok(disk)
        });
        if made.is_err() {
            self.remove_failed(run.path());
        }
        made
    }

    /// What the snapshot's disk is built on, where this file is a snapshot's disk.
    pub(crate) fn below_snapshot(
        &self,
        backing: &BackingFile,
    ) -> Result<Option<Option<BackingFile>>, ImageError> {
        let Some(dir) = backing.path.parent() else { return Ok(None) };
        if dir.parent() != Some(self.layout.snapshots().as_path()) {
            return Ok(None);
        }
        let record: Option<DiskRecord> = read_record(&dir.join(DISK_RECORD), RECORD_MAX)?;
        let gone = ImageError::SnapshotGone { dir: dir.to_owned() };
        record.map(|record| Some(record.backing)).ok_or(gone)
    }

    /// The directories of snapshots, dropped or not.
    fn built_snapshots(&self) -> Result<Vec<(SnapshotKey, PathBuf)>, ImageError> {
        let entries = read_dir(&self.layout.snapshots())?.into_iter().filter(|e| e.is_dir);
        let built = entries.filter_map(|entry| match entry.name.to_str().and_then(entry_of) {
            Some(Entry::Built(key)) => Some((key, entry.path)),
            Some(Entry::Building | Entry::Failed(_)) | None => None,
        });
        Ok(built.collect())
    }

    fn snapshots_of(&self, key: &SnapshotKey) -> Result<Vec<PathBuf>, ImageError> {
        let built = self.built_snapshots()?.into_iter();
        Ok(built.filter(|(found, _)| found == key).map(|(_, dir)| dir).collect())
    }

    fn read_snapshot(&self, dir: PathBuf) -> Result<Option<Snapshot>, ImageError> {
        match read_record::<SnapshotMeta>(&dir.join(META), RECORD_MAX) {
            Ok(Some(meta)) if meta.boot_id == self.boot_id => Ok(Some(snapshot_at(dir, meta))),
            Ok(_) => Ok(None),
            Err(ImageError::BadRecord { path, why }) => {
                tracing::warn!(path = %path.display(), "not a snapshot that can be used: {why}");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The directories of snapshots that runs started from, or that anything is built on.
    fn snapshots_in_use(&self) -> Result<BTreeSet<PathBuf>, ImageError> {
        let snapshots = self.layout.snapshots();
        let mut in_use: BTreeSet<PathBuf> = self
            .needed_files()?
            .iter()
            .filter_map(|file| file.parent())
            .filter(|dir| dir.parent() == Some(snapshots.as_path()))
            .map(Path::to_owned)
            .collect();
        for run in self.list_run_dirs()? {
            let record = read_record::<DiskRecord>(&run.path().join(DISK_RECORD), RECORD_MAX);
            if let (true, Ok(Some(record))) = (run.disk().exists(), record) {
                in_use.extend(record.snapshot.map(|name| snapshots.join(name)));
            }
        }
        Ok(in_use)
    }

    /// The snapshot's directory of this name.
    pub(crate) fn snapshot_named(&self, name: &str) -> Option<SnapshotDir> {
        matches!(entry_of(name), Some(Entry::Built(_)))
            .then(|| SnapshotDir(self.layout.snapshots().join(name)))
    }
}

fn snapshot_at(dir: PathBuf, meta: SnapshotMeta) -> Snapshot {
    let allocated = |name: &str| {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(dir.join(name)).map_or(0, |found| found.blocks().saturating_mul(512))
    };
    let allocated = [DISK, RAM, STATE, CLOUD_INIT].map(allocated).into_iter().sum();
    Snapshot { dir: SnapshotDir(dir), meta, allocated: Bytes(allocated) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_told_apart_by_their_names() {
        let key = SnapshotKey::of(b"facts");
        assert_ne!(key, SnapshotKey::of(b"other facts"));
        assert_eq!(key.to_string().parse(), Ok(key.clone()));
        let built =
            |name: String| matches!(entry_of(&name), Some(Entry::Built(found)) if found == key);
        assert!(built(format!("{key}")) && built(format!("{key}.12")));
        assert!(matches!(entry_of(&format!("{key}.new")), Some(Entry::Building)));
        assert!(matches!(entry_of(&format!("{key}.failed")), Some(Entry::Failed(_))));
        for name in ["", "x", &format!("{key}.x"), &format!("{key}x"), &"g".repeat(64)] {
            assert!(entry_of(name).is_none(), "{name}");
        }
    }
}
