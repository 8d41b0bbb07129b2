//! The supervisor of one VM: the process behind the hidden verb `forrest shim RUN_DIR`.
//!
//! It is the parent of one QEMU, as conmon and containerd-shim are for containers. VMs so outlive the
//! daemon, their end is on record even when nobody was there to see it, and a hung QEMU blocks nobody.
//!
//! - `machine`: what to do when what happens; pure.
//! - `supervise`: the loop around it, and all of its I/O.
//! - `handover`: what QEMU is handed open: its files and sockets.
//! - `limits`: the resources that QEMU may take.
//! - `overgrowth`: whether QEMU's files become longer than a guest can make them.
//! - `process`: QEMU's process, what it gives up, and its bond to the shim.
//! - `containment`: the user that QEMU runs as, and the egress filter.
//! - `migrate`: saving and loading templates.
//! - `settle`: waiting until a guest has nothing to do.
//! - `control`: the socket.
//! - `guest_port`: the guest's messages.
//! - `journal`: the file `shim.log`.
//!
//! The binary has to hand `argv[1] == `[`VERB`] to [`main`] before it does anything else: no threads,
//! no logging, no runtime, for the shim lives as long as its VM and has to stay small.

mod containment;
mod control;
pub mod guest_port;
mod handover;
mod journal;
mod limits;
pub mod machine;
mod migrate;
mod overgrowth;
mod process;
mod settle;
mod supervise;

use std::ffi::OsString;
use std::fs::Permissions;
use std::io::Write;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use forrest_core::model::Timestamp;
use rustix::fs::Mode;

use crate::run_dir::lock_for_shim;
use crate::{RunSpec, VmError};

pub use journal::LOG_LEN_MAX;
pub(crate) use journal::open as open_log;

/// The hidden verb of the `forrest` binary that leads here.
pub const VERB: &str = "shim";
/// What the shim prints when it can be connected to.
pub(crate) const READY_LINE: &str = "ready";
/// What the shim prints before the reason when it gives up.
pub(crate) const ERROR_PREFIX: &str = "error: ";

/// The exit status where the outcome could not be recorded, or there is none.
const EXIT_NO_OUTCOME: u8 = 1;
/// The exit status for wrong arguments.
const EXIT_USAGE: u8 = 64;
/// The exit status where QEMU could not be executed, as shells use it.
const EXIT_NOT_EXECUTED: u8 = 127;

/// The verb `shim` with what follows it: `RUN_DIR`.
///
/// Returns when the VM has ended and its outcome is recorded: with 0, whatever the outcome.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let mut args = args.peekable();
    match args.next() {
        Some(flag) if flag == process::EXEC_FLAG => {
            eprintln!("{}", process::exec_qemu(args));
            ExitCode::from(EXIT_NOT_EXECUTED)
        }
        Some(run_dir) if args.peek().is_none() => match run(Path::new(&run_dir)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(err) => {
                // To whoever started the shim and still listens, and to `shim.log` or the journal.
                let _ = writeln!(std::io::stdout(), "{ERROR_PREFIX}{err}");
                eprintln!("{err}");
                ExitCode::from(EXIT_NO_OUTCOME)
            }
        },
        Some(_) | None => {
            eprintln!("usage: forrest {VERB} RUN_DIR");
            ExitCode::from(EXIT_USAGE)
        }
    }
}

fn run(run_dir: &Path) -> Result<(), VmError> {
    // Fails where the shim is started as the leader of a group, which serves as well.
    let _ = rustix::process::setsid();
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
    crate::dumps::forbid().map_err(VmError::io("forbid core dumps of the shim of", run_dir))?;
    std::env::set_current_dir(run_dir).map_err(VmError::io("enter", run_dir))?;
    let here = Path::new(".");
    let lock = lock_for_shim(here)?;
    let spec = RunSpec::read(here)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(VmError::io("start a runtime in", run_dir))?;
    runtime.block_on(supervise::supervise(here, &spec, lock))
}

/// Tells whoever started the shim that it can be connected to: by a line on the standard output, and
/// by systemd's protocol (`sd_notify(3)`) where that is spoken.
fn announce() {
    let _ = writeln!(std::io::stdout(), "{READY_LINE}");
    let Some(address) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let Ok(socket) = UnixDatagram::unbound() else { return };
    let address = match address.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&address),
    };
    if let Ok(address) = address {
        let _ = socket.send_to_addr(b"READY=1", &address);
    }
}

/// Mode 0600. The shim's umask has kept others out from the beginning.
fn make_private(path: &Path) -> std::io::Result<()> {
    std::fs::set_permissions(path, Permissions::from_mode(0o600))
}

/// Now, by the host's clock.
pub(crate) fn wall_clock() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
