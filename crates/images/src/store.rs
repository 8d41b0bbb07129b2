//! The store itself: opening it, what the file system can do, how much room there is.

use std::io;
use std::path::{Path, PathBuf};

use forrest_core::model::Bytes;
use rustix::io::Errno;

use crate::durable::{Files, Hook, LockKind, TMP_PREFIX, tmp_beside};
use crate::error::{ImageError, IoContext};
use crate::layout::Layout;

/// For everybody in the store's group, such as a reverse proxy that looks for `webhook.sock`.
const DIR_MODE: u32 = 0o750;
/// For what holds guests' data.
pub(crate) const PRIVATE_DIR_MODE: u32 = 0o700;

/// How a run's disk is made from an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Driver {
    /// The file system shares blocks between files (XFS, btrfs, bcachefs): disks are raw files.
    Reflink,
    /// It does not (ext4): disks are qcow2 overlays on immutable images.
    Qcow2Overlay,
}

impl std::fmt::Display for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Reflink => "reflink copies",
            Self::Qcow2Overlay => "qcow2 overlays (the file system has no reflinks)",
        })
    }
}

/// Room in the file system of the base directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// All of it.
    pub total: Bytes,
    /// What an unprivileged process may still use.
    pub free: Bytes,
}

/// Deviations from the ordinary, for tests and measurements.
#[derive(Clone, Default)]
pub struct StoreOptions {
    /// Uses this driver instead of the one that the probe finds.
    pub driver: Option<Driver>,
    /// Sees every change of the file system before it happens.
    pub hook: Option<Hook>,
    /// Takes this for the host's boot id.
    pub boot_id: Option<String>,
}

/// The image store below one base directory.
///
/// All methods block on the file system; call them from threads that may. They can be called from
/// several threads, and from several processes with a store on the same directory.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) files: Files,
    pub(crate) layout: Layout,
    pub(crate) boot_id: String,
    driver: Driver,
}

impl Store {
    /// Opens the store, making its directories where they are missing.
    ///
    /// Probes whether the file system can share blocks, removes what an earlier crash left unfinished
    /// and completes promotions that got past their point of no return ([`crate::promote`]).
    ///
    /// # Errors
    /// [`ImageError::Io`] when the base directory cannot be used.
    pub fn open(base_dir: &Path) -> Result<Self, ImageError> {
        Self::open_with(base_dir, StoreOptions::default())
    }

    /// [`Store::open`] with deviations.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_with(base_dir: &Path, options: StoreOptions) -> Result<Self, ImageError> {
        let files = options.hook.map_or_else(Files::default, Files::with_hook);
        files.make_dirs(base_dir, DIR_MODE)?;
        // Overlays name their backing files by absolute path.
        let base = std::fs::canonicalize(base_dir).context("find the directory", base_dir)?;
        let layout = Layout::new(base);
        for dir in [layout.machines(), layout.runs(), layout.src()] {
            files.make_dirs(&dir, DIR_MODE)?;
        }
        files.make_dirs(&layout.snapshots(), PRIVATE_DIR_MODE)?;
        let boot_id = match options.boot_id {
            Some(id) => id,
            None => read_boot_id()?,
        };
        let mut store = Self { files, layout, boot_id, driver: Driver::Qcow2Overlay };
        store.clean_up()?;
        store.driver = match options.driver {
            Some(driver) => driver,
            None => store.probe()?,
        };
        tracing::info!(base_dir = %store.layout.base().display(), "disks are {}", store.driver);
        Ok(store)
    }

    /// The base directory, absolute and without links.
    pub fn base_dir(&self) -> &Path {
        self.layout.base()
    }

    /// How disks are made here.
    pub const fn driver(&self) -> Driver {
        self.driver
    }

    /// Where the snapshots of booted guests are kept, one directory each.
    ///
    /// A directory there that holds a disk with its record (see [`Store::fork`]) keeps the images alive
    /// that the disk is built on.
    pub fn snapshots_dir(&self) -> PathBuf {
        self.layout.snapshots()
    }

    /// How much room there is.
    ///
    /// # Errors
    /// [`ImageError::Io`] when the base directory is gone.
    pub fn space(&self) -> Result<Space, ImageError> {
        let stat = rustix::fs::statvfs(self.layout.base())
            .context("measure the free space of", self.layout.base())?;
        let bytes = |blocks: u64| Bytes(blocks.saturating_mul(stat.f_frsize));
        Ok(Space { total: bytes(stat.f_blocks), free: bytes(stat.f_bavail) })
    }

    /// Clones a block for real: what a file system is called, or which flags it has, proves little.
    fn probe(&self) -> Result<Driver, ImageError> {
        let one = tmp_beside(&self.layout.src().join("probe"));
        let two = tmp_beside(&self.layout.src().join("probe"));
        let result = self.probe_with(&one, &two);
        self.files.remove(&one)?;
        self.files.remove(&two)?;
        result
    }

    fn probe_with(&self, one: &Path, two: &Path) -> Result<Driver, ImageError> {
        let from = self.files.create(one, 0o600)?;
        self.files.write_at(&from, one, 0, &[b'x'; 4096])?;
        let to = self.files.create(two, 0o600)?;
        match self.files.clone_file(&from, one, &to, two) {
            Ok(()) => Ok(Driver::Reflink),
            Err(error) if cannot_clone(&error) => Ok(Driver::Qcow2Overlay),
            Err(error) => Err(error).context("clone", one),
        }
    }

    fn clean_up(&self) -> Result<(), ImageError> {
        let base = self.layout.base();
        let _lock = self.files.lock(&self.layout.store_lock(), LockKind::Exclusive)?;
        self.remove_debris(base)?;
        for machine in self.machines()? {
            let paths = self.layout.machine(&machine)?;
            self.remove_debris(&paths.repository)?;
            self.remove_debris(&paths.dir)?;
            self.recover(&paths)?;
        }
        // Another process may be importing right now; then its unfinished files are not debris.
        if let Some(_lock) = self.files.try_lock(&self.layout.src_lock())? {
            self.remove_debris(&self.layout.src())?;
            self.remove_incomplete_src()?;
        }
        Ok(())
    }

    /// Removes unfinished files (never directories) from one directory. The caller holds the lock under
    /// which they are written.
    fn remove_debris(&self, dir: &Path) -> Result<(), ImageError> {
        for entry in read_dir(dir)? {
            if entry.name.to_str().is_some_and(|name| name.starts_with(TMP_PREFIX)) && !entry.is_dir
            {
                tracing::info!(path = %entry.path.display(), "removing an unfinished file");
                self.files.remove(&entry.path)?;
            }
        }
        Ok(())
    }
}

/// Whether the answer to a clone means that this file system, or this pair of them, cannot do it.
pub(crate) fn cannot_clone(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY | Errno::NOSYS)
    )
}

fn read_boot_id() -> Result<String, ImageError> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    Ok(std::fs::read_to_string(path).context("read", path)?.trim().to_owned())
}

/// One entry of a directory; links are not followed.
pub(crate) struct DirEntry {
    pub(crate) name: std::ffi::OsString,
    pub(crate) path: PathBuf,
    pub(crate) is_dir: bool,
    pub(crate) is_file: bool,
}

/// The entries of a directory in the order of their names; none where there is no directory.
pub(crate) fn read_dir(dir: &Path) -> Result<Vec<DirEntry>, ImageError> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound) => return Ok(Vec::new()),
        Err(error) => return Err(error).context("list", dir),
    };
    let mut list = Vec::new();
    for entry in entries {
        let entry = entry.context("list", dir)?;
        // Gone since it was listed.
        let Ok(kind) = entry.file_type() else { continue };
        list.push(DirEntry {
            name: entry.file_name(),
            path: entry.path(),
            is_dir: kind.is_dir(),
            is_file: kind.is_file(),
        });
    }
    list.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(list)
}

/// Reads a JSON record of at most `max` bytes; `None` where there is none.
pub(crate) fn read_record<T: serde::de::DeserializeOwned>(
    path: &Path,
    max: u64,
) -> Result<Option<T>, ImageError> {
    use std::io::Read;
    let bad = |why: String| ImageError::BadRecord { path: path.to_owned(), why };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).context("open", path),
    };
    let mut text = Vec::new();
    file.take(max + 1).read_to_end(&mut text).context("read", path)?;
    if text.len() as u64 > max {
        return Err(bad(format!("it is longer than {max} bytes")));
    }
    serde_json::from_slice(&text).map(Some).map_err(|error| bad(error.to_string()))
}

/// The bytes of a JSON record.
pub(crate) fn to_json<T: serde::Serialize>(path: &Path, record: &T) -> Result<Vec<u8>, ImageError> {
    let mut text = serde_json::to_vec_pretty(record)
        .map_err(|error| ImageError::BadRecord { path: path.to_owned(), why: error.to_string() })?;
    text.push(b'\n');
    Ok(text)
}
