//! Src images: the operator's files, and what the store keeps of them below `src/`.
//!
//! | src image | reflink driver | overlay driver |
//! |---|---|---|
//! | raw, same file system | cloned from where it is | *pinned*: a hard link `src/<key>.img` |
//! | raw, elsewhere | *imported*: copied once to `src/<key>.img` | imported |
//! | qcow2 | *converted* once to a raw `src/<key>.img` | converted |
//!
//! The key is made of path, size, modification time, inode and device, so a src image that is replaced
//! gets an entry of its own, and what was built on the old one keeps the old one: a hard link stays when
//! the operator renames a new file over the old name. It does not protect from a change *within* the
//! file: then size or modification time differ from those recorded, and whatever is built on the entry
//! is refused with [`ImageError::SrcChanged`] instead of giving a guest a torn disk. Where a hard link is
//! not allowed (another owner, another file system), the image is imported.
//!
//! Imports are the only full copies that the store ever makes of a src image: once per content, logged,
//! with progress, never on the way of a job when [`Store::prepare_src`] is called as soon as the
//! configuration names the image. An entry that nothing is built on goes when its src image has changed,
//! or is not configured any more ([`Store::sweep_src`]).
//!
//! An entry is valid once its record `src/<key>.json` is there, which is written last and removed first.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use forrest_core::model::{Bytes, ImageRef, StartImage, Timestamp};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::durable::{LockKind, tmp_beside};
use crate::error::{ImageError, IoContext};
use crate::format::{DiskFormat, inspect_src};
use crate::generations::{BackingFile, RECORD_MAX};
use crate::qemu_img::{self, Chain, Progress};
use crate::store::{Driver, Store, read_dir, read_record, to_json};

/// What became of a src image in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SrcKeeping {
    /// Used from where it is.
    Direct,
    /// Kept from going away by a hard link.
    Pinned,
    /// Copied, or converted, once.
    Imported,
}

/// A state of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SrcKey {
    path: PathBuf,
    size: u64,
    /// Seconds since the epoch, and nanoseconds.
    mtime: (i64, i64),
    inode: u64,
    device: u64,
}

/// The content of `src/<key>.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SrcRecord {
    key: SrcKey,
    keeping: SrcKeeping,
}

impl SrcKey {
    fn of(path: &Path) -> Result<Self, ImageError> {
        let metadata = std::fs::metadata(path).context("find the src image", path)?;
        Ok(Self {
            path: std::path::absolute(path).context("find the src image", path)?,
            size: metadata.len(),
            mtime: mtime(&metadata),
            inode: metadata.ino(),
            device: metadata.dev(),
        })
    }

    /// 64 bits of a hash, as hexadecimal digits.
    fn name(&self) -> String {
        let Self { path, size, mtime, inode, device } = self;
        let mut hash = Sha256::new();
        hash.update(path.as_os_str().as_encoded_bytes());
        hash.update([0]);
        hash.update(format!("{size} {} {} {inode} {device}", mtime.0, mtime.1));
        hash.finalize()[..8].iter().map(|b| format!("{b:02x}")).collect()
    }
}

/// Whether a file has the name of an image that is kept here: that of its [`SrcKey`].
fn is_kept_name(path: &Path) -> bool {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return false };
    name.strip_suffix(".img").is_some_and(|key| {
        key.len() == 16 && key.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    })
}

fn mtime(metadata: &std::fs::Metadata) -> (i64, i64) {
    (metadata.mtime(), metadata.mtime_nsec())
}

impl Store {
    /// The src image at this path, after a look at it. Its age is its file's modification time.
    ///
    /// # Errors
    /// [`ImageError::NotAnImage`] with the reason; [`ImageError::Io`], also when there is none.
    pub fn src_image(&self, path: &Path) -> Result<StartImage, ImageError> {
        let file = inspect_src(path)?;
        if !file.bootable {
            tracing::debug!(path = %path.display(), "the src image has no boot signature");
        }
        let text = path.to_str().ok_or_else(|| {
            ImageError::not_an_image(path, "its path is not valid UTF-8; rename it")
        })?;
        let (seconds, nanoseconds) = SrcKey::of(path)?.mtime;
        let ms = seconds.saturating_mul(1000).saturating_add(nanoseconds / 1_000_000);
        Ok(StartImage {
            image: ImageRef::Src { path: text.to_owned() },
            made_at: Timestamp(u64::try_from(ms).unwrap_or(0)),
        })
    }

    /// Whether runs can start from a src image at once: [`Store::prepare_src`] has nothing to do.
    ///
    /// # Errors
    /// [`ImageError::NotAnImage`]; [`ImageError::Io`].
    pub fn src_is_ready(&self, path: &Path) -> Result<bool, ImageError> {
        Ok(self.src_keeping(path, inspect_src(path)?.format)?.is_some())
    }

    /// What became of a src image in the store, where nothing is left to be done.
    fn src_keeping(
        &self,
        path: &Path,
        format: DiskFormat,
    ) -> Result<Option<SrcKeeping>, ImageError> {
        if self.driver() == Driver::Reflink && format == DiskFormat::Raw {
            let base = self.base_dir();
            let here = std::fs::metadata(base).context("find", base)?.dev();
            let file = File::open(path).context("open the src image", path)?;
            // Another device number may still be the same file system (btrfs subvolumes): try it.
            let same = file.metadata().context("find", path)?.dev() == here;
            if same || self.can_clone(&file, path)? {
                return Ok(Some(SrcKeeping::Direct));
            }
        }
        Ok(self.src_record(&SrcKey::of(path)?)?.map(|record| record.keeping))
    }

    /// Does what must be done once before runs can start from a src image, in milliseconds or, where it
    /// must be imported or converted, as long as reading and writing it takes. `progress` hears of the
    /// latter only. Doing it twice is as good as doing it once.
    ///
    /// # Errors
    /// [`ImageError::NotAnImage`]; [`ImageError::NoQemuImg`], [`ImageError::QemuImg`];
    /// [`ImageError::Io`].
    pub fn prepare_src(
        &self,
        path: &Path,
        progress: Progress<'_>,
    ) -> Result<SrcKeeping, ImageError> {
        let src = inspect_src(path)?;
        if let Some(keeping) = self.src_keeping(path, src.format)? {
            return Ok(keeping);
        }
        let _lock = self.files.lock(&self.layout.src_lock(), LockKind::Exclusive)?;
        // Another thread may have done it meanwhile, and the file may be another one by now.
        let key = SrcKey::of(path)?;
        if let Some(record) = self.src_record(&key)? {
            return Ok(record.keeping);
        }
        let image = self.src_entry(&key);
        // Without a record it is what a crash left behind.
        self.files.remove(&image)?;
        let keeping = match src.format {
            DiskFormat::Raw if self.driver() == Driver::Qcow2Overlay => self.pin(path, &image)?,
            _ => None,
        };
        let keeping = match keeping {
            Some(keeping) => keeping,
            None => self.import(path, src.format, &image, progress)?,
        };
        if SrcKey::of(path)? != key {
            self.files.remove(&image)?;
            let why = "it changed while it was taken into the store; try again when it is complete";
            return Err(ImageError::not_an_image(path, why));
        }
        let record_path = image.with_extension("json");
        let json = to_json(&record_path, &SrcRecord { key: key.clone(), keeping })?;
        self.files.replace(&record_path, &json, 0o600)?;
        self.files.sync_dir(&self.layout.src())?;
        self.remove_stale_src(|old| old.path == key.path && *old != key)?;
        Ok(keeping)
    }

    /// Hard-links the image, or answers `None` where that is not possible.
    fn pin(&self, path: &Path, image: &Path) -> Result<Option<SrcKeeping>, ImageError> {
        // The link must be to the file, not to a symbolic link to it.
        let real = std::fs::canonicalize(path).context("find the src image", path)?;
        if let Err(error) = self.files.hard_link(&real, image) {
            tracing::info!(path = %path.display(), "cannot keep the src image by a hard link: {error}");
            return Ok(None);
        }
        // Machine images will rely on it.
        self.files.sync_file(image)?;
        Ok(Some(SrcKeeping::Pinned))
    }

    fn import(
        &self,
        path: &Path,
        format: DiskFormat,
        image: &Path,
        progress: Progress<'_>,
    ) -> Result<SrcKeeping, ImageError> {
        tracing::info!(
            path = %path.display(), to = %image.display(),
            "importing the src image ({}): a full copy, once", format.qemu_name()
        );
        let started = std::time::Instant::now();
        let tmp = tmp_beside(image);
        let operators = BackingFile { path: path.to_owned(), format };
        let from = Chain { image: &operators, below: &[] };
        let to = (tmp.as_path(), DiskFormat::Raw);
        let result = qemu_img::convert(&self.files, "import", &from, to, progress).and_then(|()| {
            self.files.set_mode(&tmp, 0o440)?;
            self.files.sync_file(&tmp)?;
            self.files.rename(&tmp, image)
        });
        if let Err(error) = result {
            self.files.remove(&tmp)?;
            return Err(error);
        }
        let seconds = started.elapsed().as_secs_f64();
        tracing::info!(path = %path.display(), seconds, "imported the src image");
        Ok(SrcKeeping::Imported)
    }

    fn src_entry(&self, key: &SrcKey) -> PathBuf {
        self.layout.src().join(format!("{}.img", key.name()))
    }

    fn src_record(&self, key: &SrcKey) -> Result<Option<SrcRecord>, ImageError> {
        let image = self.src_entry(key);
        let record: Option<SrcRecord> = match read_record(&image.with_extension("json"), RECORD_MAX)
        {
            Err(error @ ImageError::BadRecord { .. }) => {
                tracing::warn!("{error}; the src image is taken into the store again");
                None
            }
            result => result?,
        };
        // 64 bits of a hash tell entries apart well enough; the record makes it certain.
        Ok(record.filter(|record| record.key == *key && image.is_file()))
    }

    /// Where to start from, and the disk's size, after [`Store::prepare_src`].
    pub(crate) fn prepared_src(&self, path: &Path) -> Result<(PathBuf, Bytes), ImageError> {
        let key = SrcKey::of(path)?;
        let image = match self.src_record(&key)? {
            Some(_) => self.src_entry(&key),
            None if self.driver() == Driver::Reflink
                && inspect_src(path)?.format == DiskFormat::Raw =>
            {
                key.path
            }
            None => {
                let why = "it changed while a run was about to start from it; try again";
                return Err(ImageError::not_an_image(path, why));
            }
        };
        let size = crate::run_disk::disk_size(&image, DiskFormat::Raw)?;
        Ok((image, size))
    }

    /// Checks that an entry still has the content that it was recorded with.
    pub(crate) fn check_src_entry(&self, image: &Path) -> Result<(), ImageError> {
        let record = image.with_extension("json");
        let Some(record) = read_record::<SrcRecord>(&record, RECORD_MAX)? else {
            let why = "its record is missing".to_owned();
            return Err(ImageError::BadRecord { path: record, why });
        };
        if record.keeping == SrcKeeping::Imported {
            return Ok(());
        }
        let metadata = std::fs::metadata(image).context("find", image)?;
        if metadata.len() == record.key.size && mtime(&metadata) == record.key.mtime {
            return Ok(());
        }
        Err(ImageError::SrcChanged { path: record.key.path })
    }

    /// Removes the entries that nothing is built on and that no longer stand for one of the configured
    /// src images. Answers the paths of the src images whose entries went.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub fn sweep_src(&self, configured: &[PathBuf]) -> Result<Vec<PathBuf>, ImageError> {
        let Some(_lock) = self.files.try_lock(&self.layout.src_lock())? else {
            // An import is under way; there will be a next time.
            return Ok(Vec::new());
        };
        let keys: Vec<SrcKey> =
            configured.iter().filter_map(|path| SrcKey::of(path).ok()).collect();
        self.remove_stale_src(|old| !keys.contains(old))
    }

    /// Removes the entries that `is_stale` picks and nothing is built on. The caller holds the src lock.
    fn remove_stale_src(
        &self,
        is_stale: impl Fn(&SrcKey) -> bool,
    ) -> Result<Vec<PathBuf>, ImageError> {
        let mut removed = Vec::new();
        let _lock = self.files.lock(&self.layout.removal_lock(), LockKind::Exclusive)?;
        let needed: BTreeSet<PathBuf> = self.needed_files()?;
        for entry in read_dir(&self.layout.src())? {
            if entry.path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let image = entry.path.with_extension("img");
            let Ok(Some(record)) = read_record::<SrcRecord>(&entry.path, RECORD_MAX) else {
                continue;
            };
            if is_stale(&record.key) && !needed.contains(&image) {
                tracing::info!(src = %record.key.path.display(), "removing what was kept of a src image");
                self.files.remove(&entry.path)?;
                self.files.remove(&image)?;
                removed.push(record.key.path);
            }
        }
        Ok(removed)
    }

    /// Removes images without records: imports that were interrupted. What has another name than those is somebody
    /// else's: operators keep their images here, too. The caller holds the src lock.
    pub(crate) fn remove_incomplete_src(&self) -> Result<(), ImageError> {
        for entry in read_dir(&self.layout.src())? {
            if is_kept_name(&entry.path)
                && entry.is_file
                && !entry.path.with_extension("json").exists()
            {
                tracing::info!(path = %entry.path.display(), "removing an incomplete import");
                self.files.remove(&entry.path)?;
            }
        }
        Ok(())
    }
}
