//! The QEMU process: how it is started so that it cannot outlive its shim, nor do what it need not.
//!
//! The shim starts itself once more, as `forrest shim --exec-qemu …`; that process gives up what QEMU
//! must not have, asks the kernel to be killed when its parent dies, and becomes QEMU:
//!
//! 1. it offers itself to a kernel that is out of memory ([`super::limits`]);
//! 2. a template's RAM becomes readable for QEMU's group. QEMU opens it with a plain `open`, which asks
//!    for the file's permissions even if the file is handed over open. Nobody of that group can reach
//!    the file by its name, for the directories above it are Forrest's alone;
//! 3. no capability is left in the bounding set;
//! 4. it becomes the VM's user, in the VMs' group and no other, but for the group of `/dev/kvm`;
//! 5. no capabilities, no new privileges;
//! 6. bounds of what it may take ([`super::limits`]); no files but what every QEMU needs
//!    ([`forrest_confine::files`]), its template's RAM, and shared directories;
//! 7. the bond to the shim;
//! 8. no system calls but those that QEMU needs ([`forrest_confine::calls`]).

use std::ffi::OsString;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};

use forrest_confine::files::{self, Reach};
use forrest_confine::{Claim, calls};
use rustix::fs::{Mode, fchmod, fchown};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
use rustix::thread::{
    CapabilitySet, CapabilitySets, Gid, Uid, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities,
};
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tokio::process::{Child, ChildStderr, Command};

use super::handover::{Handover, fd_link};
use super::limits::Limits;
use crate::VmError;
use crate::argv::qemu_args;
use crate::outcome::QemuExit;
use crate::spec::{Accel, Boot, RunSpec};

/// Becomes QEMU; see [`exec_qemu`].
pub(crate) const EXEC_FLAG: &str = "--exec-qemu";

/// A started QEMU and the shim's ends of its sockets.
pub(crate) struct Qemu {
    pub(crate) child: Child,
    pub(crate) stderr: Option<ChildStderr>,
    pub(crate) monitor: UnixStream,
    pub(crate) console: UnixStream,
    pub(crate) guest: UnixStream,
}

/// How the process is to become QEMU.
#[derive(Debug, Serialize, Deserialize)]
struct Launch {
    /// The shim.
    parent: u32,
    /// Whom to become.
    user: Option<User>,
    /// A template's RAM, and the permissions that QEMU needs of it.
    ram: Option<(RawFd, u32)>,
    /// The shell's socket, on which QEMU listens.
    shell: RawFd,
    /// Shared directories, and whether they are written to.
    shared: Vec<(RawFd, bool)>,
    limits: Limits,
    /// Whether the kernel is to leave huge pages alone.
    small_pages: bool,
    qemu: PathBuf,
}

#[derive(Debug, Serialize, Deserialize)]
struct User {
    uid: u32,
    gid: u32,
    /// Further groups.
    groups: Vec<u32>,
}

/// Starts QEMU, stopped. It runs as the claimed user; the claim itself stays with the shim.
pub(crate) fn start(spec: &RunSpec, claim: Option<&Claim>) -> Result<Qemu, VmError> {
    let failed =
        |err: io::Error| VmError::Program { program: spec.qemu.clone(), reason: err.to_string() };
    let handover = Handover::open(spec)?;
    let ram_mode = match spec.boot {
        Boot::Cold => None,
        Boot::Template { .. } => Some(0o660),
        Boot::Restored { .. } => Some(0o640),
    };
    let launch = Launch {
        parent: std::process::id(),
        user: claim.map(|claim| user(spec, claim)),
        ram: handover.wiring.ram.zip(ram_mode),
        shell: handover.wiring.shell,
        shared: handover
            .wiring
            .shared
            .iter()
            .zip(&spec.shared)
            .map(|(fd, dir)| (*fd, dir.writable))
            .collect(),
        limits: Limits::of(spec),
        // The RAM of a restored guest is a file's, which has none. What else there is takes 4 MiB more with them, and
        // many guests that are restored at once take longer.
        small_pages: matches!(spec.boot, Boot::Restored { .. }),
        qemu: spec.qemu.clone(),
    };
    let launch = serde_json::to_string(&launch).map_err(|err| failed(err.into()))?;
    // This very program, even when its file has been replaced by a newer version meanwhile.
    let mut command = Command::new("/proc/self/exe");
    command
        .arg(super::VERB)
        .arg(EXEC_FLAG)
        .arg(launch)
        .args(qemu_args(spec, &handover.wiring))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    handover.for_child().map_err(failed)?;
    let spawned = command.spawn().map_err(failed);
    let (monitor, console, guest) = handover.taken();
    let mut child = spawned?;
    let stderr = child.stderr.take();
    Ok(Qemu { child, stderr, monitor, console, guest })
}

fn user(spec: &RunSpec, claim: &Claim) -> User {
    let gid = spec.confinement.uids.map_or(claim.uid(), |range| range.group());
    let kvm = match spec.accel {
        Accel::Kvm => std::fs::metadata("/dev/kvm").map(|device| device.gid()).ok(),
        Accel::Tcg => None,
    };
    // Root's group opens more than this device.
    User { uid: claim.uid(), gid, groups: kvm.into_iter().filter(|gid| *gid != 0).collect() }
}

/// How a process ended, in the words of the outcome.
pub(crate) fn exit_of(status: ExitStatus) -> QemuExit {
    match (status.code(), status.signal()) {
        (Some(code), _) => QemuExit::Status(code),
        (None, Some(signal)) => QemuExit::Signal(signal),
        (None, None) => QemuExit::NotStarted,
    }
}

/// Becomes QEMU: `LAUNCH ARGUMENTS…`. Returns only the reason why not.
pub(crate) fn exec_qemu(mut args: impl Iterator<Item = OsString>) -> String {
    let launch = args.next().unwrap_or_default();
    let launch: Launch = match serde_json::from_slice(launch.as_encoded_bytes()) {
        Ok(launch) => launch,
        Err(err) => return format!("could not read how to become QEMU: {err}"),
    };
    match confine(&launch) {
        Err(reason) => reason,
        Ok(()) => {
            let path = std::env::var_os("PATH").unwrap_or_default();
            let error = std::process::Command::new(&launch.qemu)
                .args(args)
                .env_clear()
                .env("PATH", path)
                // QEMU's threads share one pool of memory: with one for each, as is the C library's default, a guest
                // takes 3 MiB more, and none of them allocates often.
                .env("MALLOC_ARENA_MAX", "1")
                .exec();
            format!("could not execute {}: {error}", launch.qemu.display())
        }
    }
}

fn failed(what: &'static str) -> impl Fn(Errno) -> String {
    move |err| format!("could not {what}: {err}")
}

fn confine(launch: &Launch) -> Result<(), String> {
    // QEMU needs no directory of Forrest's, and could not even look at this one.
    rustix::process::chdir("/").map_err(failed("leave the run's directory"))?;
    launch.limits.offer();
    if let Some(user) = &launch.user {
        if let Some((fd, mode)) = launch.ram {
            share_ram(fd, mode, user.gid).map_err(failed("let QEMU read the template's RAM"))?;
        }
        empty_bounding_set();
        become_user(user)?;
    } else {
        empty_bounding_set();
    }
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    clear_ambient_capability_set().map_err(failed("renounce capabilities"))?;
    set_capabilities(None, sets).map_err(failed("renounce capabilities"))?;
    rustix::thread::set_no_new_privs(true).map_err(failed("renounce privileges"))?;
    launch.limits.apply(launch.user.is_some())?;
    if launch.small_pages {
        // Where the kernel cannot, nothing is lost but some memory.
        let _ = rustix::thread::disable_transparent_huge_pages(true);
    }
    files::restrict(&reach(launch)).map_err(|err| format!("could not restrict files: {err}"))?;
    // After the change of user, which would undo it. The parent may have died just before.
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(failed("bind to the shim"))?;
    let parent = i32::try_from(launch.parent).ok();
    if getppid().map(Pid::as_raw_nonzero).map(|pid| pid.get()) != parent {
        return Err("the shim is gone already".to_owned());
    }
    calls::restrict(launch.shell)
        .map_err(|err| format!("could not restrict system calls (seccomp): {err}"))
}

fn reach(launch: &Launch) -> Reach {
    let path = |fd: RawFd| PathBuf::from(fd_link(fd));
    Reach {
        program: launch.qemu.clone(),
        file: launch.ram.map(|(fd, mode)| (path(fd), mode & 0o020 != 0)),
        directories: launch.shared.iter().map(|(fd, writable)| (path(*fd), *writable)).collect(),
    }
}

/// The owner of a file may give it to a group that the owner is in, which this process is for a moment.
fn share_ram(fd: RawFd, mode: u32, gid: u32) -> Result<(), Errno> {
    let gid = Gid::from_raw(gid);
    rustix::thread::set_thread_groups(&[gid])?;
    let file = std::fs::File::open(fd_link(fd))
        .map_err(|err| Errno::from_io_error(&err).unwrap_or(Errno::IO))?;
    fchown(&file, None, Some(gid))?;
    fchmod(&file, Mode::from_raw_mode(mode))
}

/// What no process of the VM can ever get back. Without new privileges this is a second lock on the same
/// door, so it is left open where the privilege to lock it is missing.
fn empty_bounding_set() {
    for bit in 0..64 {
        if remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << bit)).is_err() {
            return;
        }
    }
}

fn become_user(user: &User) -> Result<(), String> {
    let groups: Vec<Gid> = user.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    rustix::thread::set_thread_groups(&groups).map_err(failed("leave all groups"))?;
    rustix::thread::set_thread_gid(Gid::from_raw(user.gid)).map_err(failed("change the group"))?;
    rustix::thread::set_thread_uid(Uid::from_raw(user.uid)).map_err(failed("change the user"))
}
