//! The QEMU process: how it is started so that it cannot outlive its shim.
//!
//! The shim starts itself once more, as `forrest shim --exec-qemu …`; that process gives up what QEMU
//! must not have, asks the kernel to be killed when its parent dies, and becomes QEMU.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{ExitStatus, Stdio};

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{
    Pid, Resource, Rlimit, Signal, getppid, set_parent_process_death_signal, setrlimit,
};
use rustix::thread::{Gid, Uid};
use tokio::net::UnixStream;
use tokio::process::{Child, ChildStderr, Command};

use crate::VmError;
use crate::argv::{Wiring, qemu_args};
use crate::outcome::QemuExit;
use crate::spec::RunSpec;

/// Becomes QEMU; see [`exec_qemu`].
pub(crate) const EXEC_FLAG: &str = "--exec-qemu";
/// Stands for "the user that the shim runs as".
const SAME_USER: &str = "-";

/// A started QEMU and the shim's ends of its sockets.
pub(crate) struct Qemu {
    pub(crate) child: Child,
    pub(crate) stderr: Option<ChildStderr>,
    pub(crate) monitor: UnixStream,
    pub(crate) console: UnixStream,
    pub(crate) guest: UnixStream,
}

/// Starts QEMU in the working directory, stopped.
pub(crate) fn start(spec: &RunSpec) -> Result<Qemu, VmError> {
    let failed =
        |err: io::Error| VmError::Program { program: spec.qemu.clone(), reason: err.to_string() };
    let (monitor, qemu_monitor) = inheritable_pair().map_err(failed)?;
    let (console, qemu_console) = inheritable_pair().map_err(failed)?;
    let (guest, qemu_guest) = inheritable_pair().map_err(failed)?;
    let wiring = Wiring {
        qmp: qemu_monitor.as_raw_fd(),
        console: qemu_console.as_raw_fd(),
        guest: qemu_guest.as_raw_fd(),
    };
    // This very program, even when its file has been replaced by a newer version meanwhile.
    let mut command = Command::new("/proc/self/exe");
    command.arg(super::VERB).arg(EXEC_FLAG).arg(std::process::id().to_string());
    match spec.confinement.run_as {
        Some(user) => command.arg(user.uid.to_string()).arg(user.gid.to_string()),
        None => command.arg(SAME_USER).arg(SAME_USER),
    };
    command
        .arg(&spec.qemu)
        .args(qemu_args(spec, wiring))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().map_err(failed)?;
    let stderr = child.stderr.take();
    Ok(Qemu { child, stderr, monitor, console, guest })
}

/// The shim's end and QEMU's end, of which the latter survives `exec`.
fn inheritable_pair() -> io::Result<(UnixStream, StdUnixStream)> {
    let (ours, theirs) = StdUnixStream::pair()?;
    ours.set_nonblocking(true)?;
    fcntl_setfd(&theirs, FdFlags::empty())?;
    Ok((UnixStream::from_std(ours)?, theirs))
}

/// How a process ended, in the words of the outcome.
pub(crate) fn exit_of(status: ExitStatus) -> QemuExit {
    match (status.code(), status.signal()) {
        (Some(code), _) => QemuExit::Status(code),
        (None, Some(signal)) => QemuExit::Signal(signal),
        (None, None) => QemuExit::NotStarted,
    }
}

/// Becomes QEMU: `PARENT UID GID QEMU ARGUMENTS…`. Returns only the reason why not.
pub(crate) fn exec_qemu(mut args: impl Iterator<Item = OsString>) -> String {
    let mut next = || args.next().unwrap_or_default();
    let (parent, uid, gid, qemu) = (next(), next(), next(), next());
    match confine(&parent, &uid, &gid) {
        Err(reason) => reason,
        Ok(()) => {
            let path = std::env::var_os("PATH").unwrap_or_default();
            let error =
                std::process::Command::new(&qemu).args(args).env_clear().env("PATH", path).exec();
            format!("could not execute {}: {error}", qemu.display())
        }
    }
}

fn confine(parent: &OsStr, uid: &OsStr, gid: &OsStr) -> Result<(), String> {
    let number = |text: &OsStr| -> Result<u32, String> {
        let number = text.to_str().and_then(|text| text.parse().ok());
        number.ok_or_else(|| format!("{} is not a number", text.display()))
    };
    let failed =
        |what: &'static str| move |err: rustix::io::Errno| format!("could not {what}: {err}");
    if uid != SAME_USER {
        let (uid, gid) = (Uid::from_raw(number(uid)?), Gid::from_raw(number(gid)?));
        rustix::thread::set_thread_groups(&[]).map_err(failed("leave all groups"))?;
        rustix::thread::set_thread_gid(gid).map_err(failed("change the group"))?;
        rustix::thread::set_thread_uid(uid).map_err(failed("change the user"))?;
    }
    rustix::thread::set_no_new_privs(true).map_err(failed("renounce privileges"))?;
    let no_core = Rlimit { current: Some(0), maximum: Some(0) };
    setrlimit(Resource::Core, no_core).map_err(failed("forbid core dumps"))?;
    // After the change of user, which would undo it. The parent may have died just before.
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(failed("bind to the shim"))?;
    if getppid().map(Pid::as_raw_nonzero).map(|pid| pid.get())
        != i32::try_from(number(parent)?).ok()
    {
        return Err("the shim is gone already".to_owned());
    }
    Ok(())
}
