//! Every change that this crate makes to a file system goes through [`Files`], one system call (or
//! one short, indivisible group of them) per method.
//!
//! Reading is done where it is needed; nothing else in the crate may create, write, rename, link,
//! synchronise or remove. That gives tests one place to observe each change before it happens and to
//! stop the world there: a [`Hook`] that refuses the nth operation and all after it is a crash
//! between two system calls, one that records them is the input of a power loss model.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FlockOperation, OFlags};

use crate::error::{ImageError, IoContext};

/// Start of the names of files that are not finished yet. What bears such a name and is not being
/// written under a lock is debris.
pub const TMP_PREFIX: &str = ".forrest-tmp.";

/// One change to the file system, about to happen.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are the paths concerned")]
pub enum FileOp<'a> {
    /// A directory is made.
    MakeDir { path: &'a Path },
    /// An empty file is made, where none was.
    Create { path: &'a Path },
    /// Bytes are written to a file.
    Write { path: &'a Path },
    /// A file's content is forced to the disk.
    SyncFile { path: &'a Path },
    /// A directory's entries are forced to the disk.
    SyncDir { path: &'a Path },
    /// A file is renamed, replacing what had that name.
    Rename { from: &'a Path, to: &'a Path },
    /// A second name for a file.
    HardLink { from: &'a Path, to: &'a Path },
    /// A symbolic link is made.
    Symlink { target: &'a Path, path: &'a Path },
    /// A file's permissions change.
    SetMode { path: &'a Path, mode: u32 },
    /// A file becomes a copy-on-write clone of another one.
    Clone { from: &'a Path, to: &'a Path },
    /// A file's length changes.
    Resize { path: &'a Path, len: u64 },
    /// A file or link is removed.
    Remove { path: &'a Path },
    /// A directory is removed with everything in it.
    RemoveTree { path: &'a Path },
    /// An external program writes a file.
    Convert { from: &'a Path, to: &'a Path },
}

/// Sees each change before it happens and may refuse it.
pub type Hook = Arc<dyn Fn(&FileOp<'_>) -> io::Result<()> + Send + Sync>;

/// The file system, for writing.
#[derive(Clone, Default)]
pub struct Files {
    hook: Option<Hook>,
}

impl std::fmt::Debug for Files {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Files").field("hook", &self.hook.is_some()).finish()
    }
}

/// An advisory lock on a file, given back on drop (or by the kernel when the process dies).
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Files {
    /// Changes files after asking the hook.
    pub fn with_hook(hook: Hook) -> Self {
        Self { hook: Some(hook) }
    }

    fn ask(&self, op: &FileOp<'_>) -> io::Result<()> {
        self.hook.as_ref().map_or(Ok(()), |hook| hook(op))
    }

    /// Asks the hook on behalf of a program that is about to write `to`.
    pub(crate) fn announce_convert(&self, from: &Path, to: &Path) -> Result<(), ImageError> {
        self.ask(&FileOp::Convert { from, to }).context("write", to)
    }

    /// Makes the directory and those above it. Those that exist are left as they are; those that are
    /// made are durable in their parents.
    pub(crate) fn make_dirs(&self, path: &Path, mode: u32) -> Result<(), ImageError> {
        if path.is_dir() {
            return Ok(());
        }
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            self.make_dirs(parent, mode)?;
        }
        let make = || {
            self.ask(&FileOp::MakeDir { path })?;
            std::fs::DirBuilder::new().mode(mode).create(path)
        };
        match make() {
            // Somebody else was faster.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
            result => result.context("create the directory", path)?,
        }
        match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => self.sync_dir(parent),
            _ => Ok(()),
        }
    }

    /// Makes one directory that must not exist yet.
    pub(crate) fn make_dir(&self, path: &Path, mode: u32) -> Result<(), ImageError> {
        let make = || {
            self.ask(&FileOp::MakeDir { path })?;
            std::fs::DirBuilder::new().mode(mode).create(path)
        };
        make().context("create the directory", path)
    }

    /// Makes an empty file where there is none, open for reading and writing.
    pub(crate) fn create(&self, path: &Path, mode: u32) -> Result<File, ImageError> {
        let create = || {
            self.ask(&FileOp::Create { path })?;
            OpenOptions::new().read(true).write(true).create_new(true).mode(mode).open(path)
        };
        create().context("create", path)
    }

    /// Writes at an offset. `path` is for the message.
    pub(crate) fn write_at(
        &self,
        file: &File,
        path: &Path,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), ImageError> {
        let write = || {
            self.ask(&FileOp::Write { path })?;
            std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
        };
        write().context("write", path)
    }

    /// Sets a file's length; what is added reads as zeros and takes no space.
    pub(crate) fn resize(&self, file: &File, path: &Path, len: u64) -> Result<(), ImageError> {
        let resize = || {
            self.ask(&FileOp::Resize { path, len })?;
            file.set_len(len)
        };
        resize().context("resize", path)
    }

    /// Makes `to` share all of the blocks of `from`, in time that does not depend on their number of
    /// bytes. The bare error is the caller's to judge.
    pub(crate) fn clone_file(
        &self,
        from: &File,
        from_path: &Path,
        to: &File,
        to_path: &Path,
    ) -> io::Result<()> {
        self.ask(&FileOp::Clone { from: from_path, to: to_path })?;
        rustix::fs::ioctl_ficlone(to, from).map_err(Into::into)
    }

    /// Forces a file's content and length to the disk.
    pub(crate) fn sync_file(&self, path: &Path) -> Result<(), ImageError> {
        let sync = || {
            self.ask(&FileOp::SyncFile { path })?;
            File::open(path)?.sync_all()
        };
        sync().context("write to the disk", path)
    }

    /// Forces a directory's entries to the disk.
    pub(crate) fn sync_dir(&self, path: &Path) -> Result<(), ImageError> {
        let sync = || {
            self.ask(&FileOp::SyncDir { path })?;
            File::open(path)?.sync_all()
        };
        sync().context("write to the disk", path)
    }

    /// Renames, replacing what has that name. Not durable before both directories are synchronised.
    pub(crate) fn rename(&self, from: &Path, to: &Path) -> Result<(), ImageError> {
        let rename = || {
            self.ask(&FileOp::Rename { from, to })?;
            std::fs::rename(from, to)
        };
        rename().context("rename", from)
    }

    /// Gives a file a second name. The bare error is the caller's to judge.
    pub(crate) fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.ask(&FileOp::HardLink { from, to })?;
        std::fs::hard_link(from, to)
    }

    /// Changes a file's permissions.
    pub(crate) fn set_mode(&self, path: &Path, mode: u32) -> Result<(), ImageError> {
        let set = || {
            self.ask(&FileOp::SetMode { path, mode })?;
            std::fs::set_permissions(path, Permissions::from_mode(mode))
        };
        set().context("change the mode of", path)
    }

    /// Removes a file or a link. One that is not there is as good as removed: `false`.
    pub(crate) fn remove(&self, path: &Path) -> Result<bool, ImageError> {
        let remove = || {
            self.ask(&FileOp::Remove { path })?;
            std::fs::remove_file(path)
        };
        gone(remove()).context("remove", path)
    }

    /// Removes a directory with everything in it, following no links. One that is not there is as good
    /// as removed: `false`.
    pub(crate) fn remove_tree(&self, path: &Path) -> Result<bool, ImageError> {
        let remove = || {
            self.ask(&FileOp::RemoveTree { path })?;
            std::fs::remove_dir_all(path)
        };
        gone(remove()).context("remove", path)
    }

    /// Replaces a small file so that a reader, even one after a power loss, finds the old or the new
    /// content and never a mixture. Not durable before [`Files::sync_dir`] of its directory.
    pub(crate) fn replace(&self, path: &Path, content: &[u8], mode: u32) -> Result<(), ImageError> {
        let tmp = self.write_tmp(path, content, mode)?;
        self.sync_file(&tmp)?;
        self.rename(&tmp, path)
    }

    /// Like [`Files::replace`], but without forcing anything to the disk: for records that a power
    /// loss makes worthless anyway.
    pub(crate) fn replace_volatile(
        &self,
        path: &Path,
        content: &[u8],
        mode: u32,
    ) -> Result<(), ImageError> {
        let tmp = self.write_tmp(path, content, mode)?;
        self.rename(&tmp, path)
    }

    fn write_tmp(&self, path: &Path, content: &[u8], mode: u32) -> Result<PathBuf, ImageError> {
        let tmp = tmp_beside(path);
        let mut file = self.create(&tmp, mode)?;
        let mut write = || {
            self.ask(&FileOp::Write { path: &tmp })?;
            file.write_all(content)
        };
        write().context("write", &tmp)?;
        Ok(tmp)
    }

    /// Points a symbolic link somewhere else in one step. Not durable before [`Files::sync_dir`] of its
    /// directory.
    pub(crate) fn switch_symlink(&self, path: &Path, target: &Path) -> Result<(), ImageError> {
        let tmp = tmp_beside(path);
        let link = || {
            self.ask(&FileOp::Symlink { target, path: &tmp })?;
            std::os::unix::fs::symlink(target, &tmp)
        };
        link().context("create the link", &tmp)?;
        self.rename(&tmp, path)
    }

    /// Takes the lock, waiting for whoever has it. It keeps threads of one process apart as well as
    /// processes.
    pub(crate) fn lock(&self, path: &Path, kind: LockKind) -> Result<Lock, ImageError> {
        let operation = match kind {
            LockKind::Shared => FlockOperation::LockShared,
            LockKind::Exclusive => FlockOperation::LockExclusive,
        };
        self.flock(path, operation)
    }

    /// Takes the lock for itself, or answers `None` where somebody has it.
    pub(crate) fn try_lock(&self, path: &Path) -> Result<Option<Lock>, ImageError> {
        match self.flock(path, FlockOperation::NonBlockingLockExclusive) {
            Ok(lock) => Ok(Some(lock)),
            Err(error) if error.io_kind() == Some(io::ErrorKind::WouldBlock) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn flock(&self, path: &Path, operation: FlockOperation) -> Result<Lock, ImageError> {
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(OFlags::NOFOLLOW.bits() as i32)
            .open(path)
            .context("open the lock", path)?;
        loop {
            match rustix::fs::flock(&file, operation) {
                Err(rustix::io::Errno::INTR) => {}
                result => {
                    result.context("lock", path)?;
                    return Ok(Lock { _file: file });
                }
            }
        }
    }
}

/// How a lock is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LockKind {
    /// Together with other readers.
    Shared,
    /// Alone.
    Exclusive,
}

/// A name for an unfinished file in the same directory, used by nobody else.
pub(crate) fn tmp_beside(path: &Path) -> PathBuf {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    // A process id comes back after a restart; whoever meets debris of that name removes it first
    // (`Store::open`), and `create` refuses to take over what is left.
    path.with_file_name(format!("{TMP_PREFIX}{}.{count}", std::process::id()))
}

fn gone(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
