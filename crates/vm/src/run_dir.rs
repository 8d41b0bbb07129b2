//! The files of a run and what they say about it.
//!
//! A shim holds a lock on `shim.lock` for its whole life and leaves a mark in it, so that anybody can
//! tell without asking it:
//!
//! ```text
//!                     outcome.json   no outcome.json
//! lock held           Live           Live
//! mark, not held      Over           Lost (the shim was killed; its QEMU died with it)
//! no mark             Over           NeverStarted
//! ```
//!
//! Directory paths may be longer than the 107 bytes that a Unix socket's address can hold, so sockets
//! are reached through the open directory.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::{Outcome, VmError};

/// The names of the files in a run directory.
pub mod files {
    /// What the VM is made of; see [`crate::spec::RunSpec`].
    pub const SPEC: &str = "run.json";
    /// How the VM ended; see [`crate::outcome::Outcome`].
    pub const OUTCOME: &str = "outcome.json";
    /// The guest's disk, by convention.
    pub const DISK: &str = "disk.img";
    /// The `CIDATA` image, by convention.
    pub const CLOUD_INIT: &str = "cloud-init.img";
    /// The `JOBDATA` image, by convention.
    pub const JOB_CONFIG: &str = "job-config.img";
    /// The beginning of the console's output; see [`crate::console`].
    pub const CONSOLE: &str = "log.txt";
    /// The newest console output, once [`CONSOLE`] is full.
    pub const CONSOLE_TAIL: &str = "log.tail.txt";
    /// The console output just before [`CONSOLE_TAIL`].
    pub const CONSOLE_TAIL_OLD: &str = "log.tail.old.txt";
    /// The guest's root shell; served by QEMU.
    pub const SHELL_SOCK: &str = "shell.sock";
    /// The shim's socket; see [`crate::protocol`].
    pub const CONTROL_SOCK: &str = "control.sock";
    /// Held by the shim while it lives.
    pub const LOCK: &str = "shim.lock";
    /// What the shim and QEMU had to say, at most [`crate::shim::LOG_LEN_MAX`] bytes.
    pub const SHIM_LOG: &str = "shim.log";
}

/// The largest outcome that is read, in bytes.
const OUTCOME_LEN_MAX: u64 = 256 << 10;
const MARK_STARTED: &[u8] = b"started\n";
const MARK_CLAIMED: &[u8] = b"claimed\n";

/// What has become of a run directory.
#[derive(Debug, Clone, PartialEq)]
pub enum RunDirState {
    /// No shim ever worked here. One may be about to: [`claim`] settles that.
    NeverStarted,
    /// A shim works here.
    Live,
    /// The VM is gone and its end is on record.
    Over(Box<Outcome>),
    /// The shim was killed, or the host went down, before the end could be recorded. The VM is gone.
    Lost,
}

/// Tells what has become of a run directory.
///
/// # Errors
/// [`VmError::Io`] where files cannot be read, [`VmError::Malformed`] for an outcome that makes no
/// sense.
pub fn classify(run_dir: &Path) -> Result<RunDirState, VmError> {
    let path = run_dir.join(files::LOCK);
    let mark = match File::open(&path) {
        Ok(mut lock) => match flock(&lock, FlockOperation::NonBlockingLockShared) {
            Ok(()) => read_mark(&mut lock).map_err(VmError::io("read", &path))?,
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(RunDirState::Live),
            Err(err) => return Err(VmError::io("lock", &path)(err.into())),
        },
        Err(err) if err.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(err) => return Err(VmError::io("open", &path)(err)),
    };
    if run_dir.join(files::OUTCOME).exists() {
        return Ok(RunDirState::Over(Box::new(read_outcome(run_dir)?)));
    }
    Ok(if mark == MARK_STARTED { RunDirState::Lost } else { RunDirState::NeverStarted })
}

/// Reads the recorded end of a run.
///
/// # Errors
/// [`VmError::Io`] where there is none or it cannot be read, [`VmError::Malformed`] where it makes no
/// sense.
pub fn read_outcome(run_dir: &Path) -> Result<Outcome, VmError> {
    read_json(run_dir, files::OUTCOME, OUTCOME_LEN_MAX)
}

/// Makes sure that no shim will start here any more, so that the directory can be taken apart.
/// Returns false where one already did: then [`classify`] says what became of it.
///
/// # Errors
/// [`VmError::Io`] where the lock file cannot be used.
pub fn claim(run_dir: &Path) -> Result<bool, VmError> {
    Ok(take_lock(run_dir, MARK_CLAIMED)?.is_ok())
}

/// The shim's lock. Dropping it gives the directory up for dead.
#[derive(Debug)]
pub(crate) struct ShimLock {
    _held: File,
}

/// Takes the lock for a new shim. A directory serves one shim in its life: the disk of a second one
/// would not be what the daemon believes it to be.
pub(crate) fn lock_for_shim(run_dir: &Path) -> Result<ShimLock, VmError> {
    let refuse = |reason: String| VmError::NotStartable { run_dir: run_dir.to_owned(), reason };
    if run_dir.join(files::OUTCOME).exists() {
        return Err(refuse("its VM has already ended".to_owned()));
    }
    take_lock(run_dir, MARK_STARTED)?.map(|held| ShimLock { _held: held }).map_err(refuse)
}

/// Takes the lock and leaves a mark, or says why that is not possible.
fn take_lock(run_dir: &Path, mark: &[u8]) -> Result<Result<File, String>, VmError> {
    let path = run_dir.join(files::LOCK);
    let mut lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(VmError::io("create", &path))?;
    if !try_lock(&lock).map_err(VmError::io("lock", &path))? {
        return Ok(Err("a shim already works here".to_owned()));
    }
    let earlier = read_mark(&mut lock).map_err(VmError::io("read", &path))?;
    if !earlier.is_empty() {
        let text = String::from_utf8_lossy(&earlier).trim().to_owned();
        return Ok(if mark == MARK_CLAIMED && earlier == MARK_CLAIMED {
            Ok(lock)
        } else {
            Err(format!("{} says that it was {text} before", files::LOCK))
        });
    }
    lock.write_all(mark).map_err(VmError::io("write", &path))?;
    Ok(Ok(lock))
}

/// Whoever classifies the directory holds the lock for an instant, so a refusal is tried again.
fn try_lock(lock: &File) -> io::Result<bool> {
    const TRIES: u32 = 50;
    const PAUSE: std::time::Duration = std::time::Duration::from_millis(2);
    for _ in 0..TRIES {
        match flock(lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(true),
            Err(rustix::io::Errno::WOULDBLOCK) => std::thread::sleep(PAUSE),
            Err(err) => return Err(err.into()),
        }
    }
    Ok(false)
}

fn read_mark(lock: &mut File) -> io::Result<Vec<u8>> {
    let mut mark = Vec::new();
    lock.take(16).read_to_end(&mut mark)?;
    Ok(mark)
}

/// Connects to a socket in the run directory ([`files::SHELL_SOCK`], [`files::CONTROL_SOCK`]).
///
/// # Errors
/// [`VmError::Io`], of kind `NotFound` or `ConnectionRefused` where nobody listens.
pub async fn connect(run_dir: &Path, name: &'static str) -> Result<UnixStream, VmError> {
    let dir = File::open(run_dir).map_err(VmError::io("open", run_dir))?;
    let address = PathBuf::from(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()));
    UnixStream::connect(address).await.map_err(VmError::io("connect to", run_dir.join(name)))
}

/// What a written file must survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// The end of any process.
    Process,
    /// A power loss.
    PowerLoss,
}

/// Writes a file (mode 0600) so that readers see all of it or the earlier one.
pub(crate) fn write_whole(
    dir: &Path,
    name: &str,
    content: &[u8],
    durability: Durability,
) -> Result<(), VmError> {
    let path = dir.join(name);
    let half = dir.join(format!(".{name}.new"));
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&half)
        .map_err(VmError::io("create", &half))?;
    file.write_all(content).map_err(VmError::io("write", &half))?;
    if durability == Durability::PowerLoss {
        file.sync_all().map_err(VmError::io("sync", &half))?;
    }
    std::fs::rename(&half, &path).map_err(VmError::io("rename", &half))?;
    if durability == Durability::PowerLoss {
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(VmError::io("sync", dir))?;
    }
    Ok(())
}

/// Reads a JSON file of bounded size.
pub(crate) fn read_json<T: DeserializeOwned>(
    dir: &Path,
    name: &str,
    len_max: u64,
) -> Result<T, VmError> {
    let path = dir.join(name);
    let malformed = |reason: String| VmError::Malformed { path: path.clone(), reason };
    let file = File::open(&path).map_err(VmError::io("open", &path))?;
    let mut json = Vec::new();
    file.take(len_max + 1).read_to_end(&mut json).map_err(VmError::io("read", &path))?;
    if json.len() as u64 > len_max {
        return Err(malformed(format!("it has more than {len_max} bytes")));
    }
    serde_json::from_slice(&json).map_err(|err| malformed(err.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir() -> tempfile::TempDir {
        tempfile::tempdir().expect("a directory")
    }

    #[test]
    fn a_lock_tells_live_from_lost() {
        let dir = dir();
        assert_eq!(classify(dir.path()).expect("classify"), RunDirState::NeverStarted);
        let lock = lock_for_shim(dir.path()).expect("lock");
        assert_eq!(classify(dir.path()).expect("classify"), RunDirState::Live);
        assert!(!claim(dir.path()).expect("claim"), "claimed under a live shim");
        drop(lock);
        assert_eq!(classify(dir.path()).expect("classify"), RunDirState::Lost);
        assert!(lock_for_shim(dir.path()).is_err(), "a second shim used the same directory");
        assert!(!claim(dir.path()).expect("claim"), "claimed after a shim's life");
    }

    #[test]
    fn a_claimed_directory_never_starts() {
        let dir = dir();
        assert!(claim(dir.path()).expect("claim"));
        assert!(claim(dir.path()).expect("claim again"));
        let error = lock_for_shim(dir.path()).expect_err("should refuse").to_string();
        assert!(error.contains("claimed"), "{error}");
        assert_eq!(classify(dir.path()).expect("classify"), RunDirState::NeverStarted);
    }

    #[test]
    fn half_written_files_are_never_seen_and_sizes_are_bounded() {
        let dir = dir();
        write_whole(dir.path(), "x.json", b"[1]", Durability::PowerLoss).expect("write");
        write_whole(dir.path(), "x.json", b"[2,3]", Durability::Process).expect("write");
        let numbers: Vec<u8> = read_json(dir.path(), "x.json", 5).expect("read");
        assert_eq!(numbers, [2, 3]);
        assert!(read_json::<Vec<u8>>(dir.path(), "x.json", 4).is_err());
        assert_eq!(std::fs::read_dir(dir.path()).expect("list").count(), 1);
    }
}
