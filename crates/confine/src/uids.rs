//! The users that QEMUs run as: one for each live VM of this host.
//!
//! They are numbers without names, homes or files. Who has one is known to the kernel alone: a claim is
//! a lock (`flock(2)`) on a file named after the user, in [`DIRECTORY`], which nobody but Forrest can
//! enter. The supervisor holds it and nobody inherits it, so the user is free again when the supervisor
//! is gone, whatever ended it. The files stay, empty, as many as the range has users. All daemons of a
//! host share the directory, whatever their base directories.
//!
//! A user who still has a process is not given away either, lock or no lock: the QEMU of a supervisor
//! that was just killed, or that of a supervisor from before these locks, which knew its user by another
//! sign. That holds for a dead process that nobody has waited for, too.
//!
//! Not the name of a socket: anybody can take an abstract one, and then no VM would start.
//!
//! The first user's number is also the group of all VMs ([`UidRange::group`]).

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use forrest_core::model::UidRange;
use rustix::fs::{FileType, FlockOperation, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::process::Uid;

use crate::ConfineError;

/// Where the claims of all of this host's VMs are, in the directory that only root can write to and that
/// is empty after a boot.
pub const DIRECTORY: &str = "/run/forrest-vm-users";

/// A user that nobody else's VM can have while this exists.
#[derive(Debug)]
pub struct Claim {
    uid: u32,
    /// What holds the lock. Not inherited by other programs.
    _locked: OwnedFd,
}

impl Claim {
    /// Takes the first user of the range that is free.
    ///
    /// # Errors
    /// [`ConfineError::NoUidLeft`], [`ConfineError::UidDirectory`]; [`ConfineError::Claim`] where the kernel
    /// refuses the lock.
    pub fn any(range: UidRange) -> Result<Self, ConfineError> {
        Directory::open(Path::new(DIRECTORY))?.any(range)
    }

    /// Takes this user; `None` where it is taken.
    ///
    /// # Errors
    /// [`ConfineError::UidDirectory`], [`ConfineError::Claim`].
    pub fn of(uid: u32) -> Result<Option<Self>, ConfineError> {
        Directory::open(Path::new(DIRECTORY))?.claim(uid)
    }

    /// The user.
    pub fn uid(&self) -> u32 {
        self.uid
    }
}

/// Makes the directory of the claims where it is missing, and looks whether it can be relied upon.
///
/// # Errors
/// [`ConfineError::UidDirectory`].
pub fn prepare() -> Result<(), ConfineError> {
    Directory::open(Path::new(DIRECTORY)).map(drop)
}

/// The open directory of the claims, which nobody but Forrest can enter.
struct Directory(OwnedFd);

impl Directory {
    fn open(path: &Path) -> Result<Self, ConfineError> {
        let failed = |reason: String| ConfineError::UidDirectory { path: path.to_owned(), reason };
        match rustix::fs::mkdir(path, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(err) => {
                return Err(failed(format!(
                    "it cannot be made: {}; the unit in contrib/systemd has it made, and so can root \
                     (install -d -m 700 -o USER {})",
                    io::Error::from(err),
                    path.display()
                )));
            }
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::open(path, flags, Mode::empty())
            .and_then(|opened| Ok((rustix::fs::fstat(&opened)?, opened)));
        let (found, opened) = opened.map_err(|err| failed(io::Error::from(err).to_string()))?;
        let above = path.parent().and_then(|above| rustix::fs::stat(above).ok());
        check(&found, above.as_ref(), rustix::process::geteuid()).map_err(failed)?;
        Ok(Self(opened))
    }

    fn any(&self, range: UidRange) -> Result<Claim, ConfineError> {
        for uid in range.iter() {
            if let Some(claim) = self.claim(uid)? {
                return Ok(claim);
            }
        }
        Err(ConfineError::NoUidLeft(range))
    }

    fn claim(&self, uid: u32) -> Result<Option<Claim>, ConfineError> {
        let failed = |err: Errno| ConfineError::Claim { uid, source: err.into() };
        let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let readable = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::ROTH;
        let file = match rustix::fs::openat(&self.0, uid.to_string(), flags, readable) {
            Ok(file) => file,
            // Root's, of this very moment: not readable yet.
            Err(Errno::ACCESS) => return Ok(None),
            Err(err) => return Err(failed(err)),
        };
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(err) => return Err(failed(err)),
        }
        // The supervisor's umask is strict. Root's files are to serve Forrest's user, who has the
        // directory, as well; only the owner can say so, and whoever else is here can read it already.
        let _ = rustix::fs::fchmod(&file, readable);
        Ok((!has_processes(uid).map_err(failed)?).then_some(Claim { uid, _locked: file }))
    }
}

/// Whether a directory of the claims, in the directory `above`, is one that only `user` can enter.
fn check(found: &Stat, above: Option<&Stat>, user: Uid) -> Result<(), String> {
    if FileType::from_raw_mode(found.st_mode) != FileType::Directory {
        return Err("it is no directory: remove it".to_owned());
    }
    // Only root can have made it for somebody: the user of Forrest's service, who needs it as well.
    let roots_gift = user.is_root() && above.is_some_and(|dir| dir.st_uid == 0 && private(dir));
    if found.st_uid != user.as_raw() && !roots_gift {
        return Err(format!(
            "it belongs to the user {}, and Forrest is the user {}: all of a host's Forrests have to \
             be one user's, or root's",
            found.st_uid,
            user.as_raw()
        ));
    }
    let mode = found.st_mode & 0o7777;
    if mode & 0o077 != 0 {
        return Err(format!("its mode is {mode:o}, and others can enter it: make that 700"));
    }
    Ok(())
}

/// Whether only its owner can make something in this directory.
fn private(dir: &Stat) -> bool {
    dir.st_mode & 0o022 == 0
}

/// Whether a process of this user exists, be it a dead one that its parent has not waited for yet.
fn has_processes(uid: u32) -> Result<bool, Errno> {
    // How readily they get a processor does not matter; that there is an answer does.
    match rustix::process::getpriority_user(Uid::from_raw(uid)) {
        Ok(_) => Ok(true),
        Err(Errno::SRCH) => Ok(false),
        Err(err) => Err(err),
    }
}

#[cfg(test)]
#[path = "uids_tests.rs"]
mod tests;
