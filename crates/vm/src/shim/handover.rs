//! What QEMU is handed open: its files and sockets.
//!
//! QEMU runs as a user who may not enter any of Forrest's directories, so images, snapshots and the run's
//! own files keep their owners and modes, whoever's VM uses them, and there is nothing to be given back
//! when it is gone. One kind of file has to be readable for QEMU's group besides, see
//! [`crate::shim::process`]: a template's RAM.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream as StdUnixStream};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::{FdFlags, fcntl_setfd};
use tokio::net::UnixStream;

use crate::VmError;
use crate::argv::{Wiring, ram_bytes};
use crate::run_dir::files;
use crate::spec::{Boot, RunSpec, SharedDir};

/// Files and sockets for QEMU, and the shim's ends of the latter.
pub(crate) struct Handover {
    pub(crate) wiring: Wiring,
    pub(crate) monitor: UnixStream,
    pub(crate) console: UnixStream,
    pub(crate) guest: UnixStream,
    /// What the wiring's numbers stand for; closed on `exec` until [`Handover::for_child`].
    owned: Vec<OwnedFd>,
}

impl Handover {
    /// Opens everything. Relative paths are taken from the working directory, the run's.
    pub(crate) fn open(spec: &RunSpec) -> Result<Self, VmError> {
        let mut owned = Vec::new();
        let mut keep = |fd: OwnedFd| {
            let number = fd.as_raw_fd();
            owned.push(fd);
            number
        };
        let sockets = |err| VmError::io("make sockets in", ".")(err);
        let (monitor, qmp) = pair().map_err(sockets)?;
        let (console, their_console) = pair().map_err(sockets)?;
        let (guest, their_guest) = pair().map_err(sockets)?;
        let (ram, state) = match &spec.boot {
            Boot::Cold => (None, None),
            Boot::Template { ram, state } => {
                let file = create(ram)?;
                file.set_len(ram_bytes(spec)).map_err(VmError::io("size", ram))?;
                (Some(keep(file.into())), Some(keep(create_to_write(state)?.into())))
            }
            Boot::Restored { ram, state } => {
                (Some(keep(read(ram)?.into())), Some(keep(read(state)?.into())))
            }
        };
        let backing = spec.disk.backing.iter().map(|layer| read(&layer.path));
        let backing = backing.map(|file| Ok(keep(file?.into()))).collect::<Result<_, VmError>>()?;
        let shared = spec.shared.iter().map(shared_dir);
        let shared = shared.map(|dir| Ok(keep(dir?))).collect::<Result<_, VmError>>()?;
        let wiring = Wiring {
            qmp: keep(qmp.into()),
            console: keep(their_console.into()),
            guest: keep(their_guest.into()),
            shell: keep(shell_socket()?.into()),
            disk: keep(read_write(&spec.disk.path)?.into()),
            backing,
            cloud_init: keep(read(&spec.cloud_init)?.into()),
            job_config: keep(read_write(&spec.job_config)?.into()),
            ram,
            state,
            shared,
        };
        Ok(Self { wiring, monitor, console, guest, owned })
    }

    /// Lets the next child inherit all of it. The child has to be started before anything else is
    /// awaited, and [`Handover::taken`] called then: other children get nothing.
    pub(crate) fn for_child(&self) -> io::Result<()> {
        for fd in &self.owned {
            fcntl_setfd(fd, FdFlags::empty())?;
        }
        Ok(())
    }

    /// The child has its copies: the shim keeps its own ends only.
    pub(crate) fn taken(self) -> (UnixStream, UnixStream, UnixStream) {
        (self.monitor, self.console, self.guest)
    }
}

/// The shim's end and QEMU's end.
fn pair() -> io::Result<(UnixStream, StdUnixStream)> {
    let (ours, theirs) = StdUnixStream::pair()?;
    ours.set_nonblocking(true)?;
    Ok((UnixStream::from_std(ours)?, theirs))
}

/// Listens where people attach to the guest's root shell; QEMU accepts.
fn shell_socket() -> Result<UnixListener, VmError> {
    let path = Path::new(files::SHELL_SOCK);
    let listener = UnixListener::bind(path).map_err(VmError::io("listen on", path))?;
    super::make_private(path).map_err(VmError::io("protect", path))?;
    Ok(listener)
}

fn read(path: &Path) -> Result<File, VmError> {
    File::open(path).map_err(VmError::io("open", path))
}

fn read_write(path: &Path) -> Result<File, VmError> {
    let file = OpenOptions::new().read(true).write(true).open(path);
    file.map_err(VmError::io("open for writing", path))
}

fn create(path: &Path) -> Result<File, VmError> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path);
    file.map_err(VmError::io("create", path))
}

fn create_to_write(path: &Path) -> Result<File, VmError> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    file.map_err(VmError::io("create", path))
}

/// The directory of this name itself, not one that a link leads to: the daemon has looked where links
/// lead, and somebody may have put another one there since.
fn shared_dir(dir: &SharedDir) -> Result<OwnedFd, VmError> {
    let failed = |err: io::Error| VmError::io("share", &dir.path)(err);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened =
        rustix::fs::open(&dir.path, flags, Mode::empty()).map_err(|err| failed(err.into()))?;
    let there = std::fs::read_link(fd_link(opened.as_raw_fd())).map_err(failed)?;
    if there != dir.path {
        let what = format!("it leads to {}", there.display());
        return Err(failed(io::Error::other(what)));
    }
    Ok(opened)
}

/// The name by which the calling process can open what it has open.
pub(super) fn fd_link(fd: RawFd) -> String {
    format!("/proc/self/fd/{fd}")
}
