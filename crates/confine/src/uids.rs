//! The users that QEMUs run as: one for each live VM of this host.
//!
//! They are numbers without names, homes or files. Who has one is known to the kernel alone: a claim is
//! an abstract Unix socket named after the user, which no second process can bind. QEMU inherits it, so
//! the user is free again when the last process of the VM is gone, whatever ended it; there is no file
//! to be left behind, and daemons with different base directories share one range.
//!
//! The first user's number is also the group of all VMs ([`UidRange::group`]).

use std::os::fd::OwnedFd;

use forrest_core::model::UidRange;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, socket_with};

use crate::ConfineError;

/// A user that nobody else's VM can have while this, or a process that inherited it, exists.
#[derive(Debug)]
pub struct Claim {
    uid: u32,
    socket: OwnedFd,
}

impl Claim {
    /// Takes the first user of the range that is free.
    ///
    /// # Errors
    /// [`ConfineError::NoUidLeft`]; [`ConfineError::Claim`] where the kernel has no sockets left.
    pub fn any(range: UidRange) -> Result<Self, ConfineError> {
        for uid in range.iter() {
            if let Some(claim) = Self::of(uid)? {
                return Ok(claim);
            }
        }
        Err(ConfineError::NoUidLeft(range))
    }

    /// Takes this user; `None` where it is taken.
    ///
    /// # Errors
    /// [`ConfineError::Claim`].
    pub fn of(uid: u32) -> Result<Option<Self>, ConfineError> {
        let failed = |err: Errno| ConfineError::Claim { uid, source: err.into() };
        let name = SocketAddrUnix::new_abstract_name(format!("forrest/vm-user/{uid}").as_bytes());
        // A stream socket that nobody listens on: nothing can be sent to it.
        let socket =
            socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .map_err(failed)?;
        match bind(&socket, &name.map_err(failed)?) {
            Ok(()) => Ok(Some(Self { uid, socket })),
            Err(Errno::ADDRINUSE) => Ok(None),
            Err(err) => Err(failed(err)),
        }
    }

    /// The user.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// What QEMU has to inherit so that the user stays taken until it is gone, too.
    pub fn socket(&self) -> &OwnedFd {
        &self.socket
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_taken_once_and_free_when_its_claim_is_gone() {
        // Nobody else's tests use these.
        let range: UidRange = "1800000000-1800000001".parse().expect("a range");
        let first = Claim::any(range).expect("a user");
        let second = Claim::any(range).expect("another user");
        assert_eq!((first.uid(), second.uid()), (1_800_000_000, 1_800_000_001));
        assert!(matches!(Claim::any(range), Err(ConfineError::NoUidLeft(_))));
        // As QEMU does it: what was inherited counts.
        let inherited = first.socket().try_clone().expect("a copy");
        drop(first);
        assert!(Claim::of(1_800_000_000).expect("asked").is_none());
        drop(inherited);
        assert!(Claim::of(1_800_000_000).expect("asked").is_some());
    }
}
