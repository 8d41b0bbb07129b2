//! What a QEMU that its guest has taken over can still do of the host: a script in its place tries it.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;

use forrest_core::model::UidRange;
use forrest_vm::EndReason;

use super::{Run, boot_sector, fixture};

/// In Debian and everywhere else; one in somebody's home could not even be started by a QEMU.
const PYTHON: &str = "/usr/bin/python3";

/// Tries what it can and tells what of it was possible. Isolated from what is in `/etc`, which it cannot read.
const SCRIPT: &str = r##"#!/usr/bin/python3 -IS
import ctypes, mmap, os, platform, socket, sys

beside = os.path.dirname(os.path.dirname(os.path.abspath(sys.argv[0])))
call = ctypes.CDLL(None, use_errno=True).syscall
possible = []

def attempt(name, does):
    try:
        does()
        possible.append(name)
    except PermissionError:
        pass
    except Exception as error:
        possible.append(f"{name} fails otherwise: {error!r}")

def raw(number, *arguments):
    if call(number, *arguments) == -1:
        raise OSError(ctypes.get_errno(), "refused")

def ask_service():
    socket.socket(socket.AF_UNIX).connect(beside + "/service")

def tell_service():
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    pair[0].sendto(b"x", beside + "/datagrams")

def listen():
    socket.socket().listen(1)

def start_program():
    if os.fork() == 0:
        os._exit(0)

for path in ["/etc/resolv.conf", "/etc/passwd", "/proc/self/net/tcp", "/proc/self/mounts"]:
    attempt("read " + path, lambda: open(path).read())
for path in ["/etc", "/proc/self"]:
    attempt("list " + path, lambda: os.listdir(path))
attempt("a socket of the Internet", socket.socket)
attempt("ask a service at a name", ask_service)
attempt("send to a service at a name", tell_service)
attempt("listen", listen)
attempt("take a port", lambda: socket.socket(type=socket.SOCK_DGRAM).bind(("", 0)))
attempt("memory of its own", lambda: mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
attempt("shared memory", lambda: mmap.mmap(-1, 4096))
attempt("a file in memory", lambda: os.memfd_create("x"))
attempt("start a program", start_program)
if platform.machine() == "x86_64":
    attempt("ask by way of x32", lambda: raw(0x40000000 | 41, socket.AF_UNIX, socket.SOCK_STREAM, 0))
    attempt("io_uring", lambda: raw(425, 8, ctypes.create_string_buffer(120)))
print("possible:", "; ".join(possible), file=sys.stderr)
"##;

#[tokio::test]
async fn a_qemu_that_is_taken_over_finds_a_wall() {
    if !rustix::process::geteuid().is_root() || !Path::new(PYTHON).exists() {
        return fixture::skip("it takes root and Python");
    }
    let place = tempfile::tempdir().expect("a directory");
    let program = place.path().join("bin/qemu");
    std::fs::create_dir(place.path().join("bin")).expect("a directory");
    std::fs::write(&program, SCRIPT).expect("a program");
    let service = UnixListener::bind(place.path().join("service")).expect("a service");
    let datagrams = UnixDatagram::bind(place.path().join("datagrams")).expect("another");
    // Nothing of this is what keeps it out.
    for open in ["", "bin", "bin/qemu", "service", "datagrams"] {
        let open = place.path().join(open);
        std::fs::set_permissions(open, Permissions::from_mode(0o777)).expect("opened");
    }
    let users: UidRange = "1800000200-1800000209".parse().expect("a range");
    let mut run = Run::of_boot_sector(program, &boot_sector::halt());
    run.spec.confinement.uids = Some(users);
    run.start().await;
    let said = run.outcome().await.stderr.concat();
    assert_eq!(
        said.trim(),
        "possible: read /etc/resolv.conf; a socket of the Internet; memory of its own"
    );
    drop((service, datagrams));
}

/// Makes each of its files longer than it is, and says nothing else.
const GROWS: &str = r##"#!/usr/bin/python3 -IS
import os, stat, time

for file in range(3, 64):
    try:
        found = os.fstat(file)
        if stat.S_ISREG(found.st_mode):
            os.ftruncate(file, found.st_size + 1)
    except OSError:
        pass
time.sleep(600)
"##;

#[tokio::test]
async fn a_qemu_whose_files_grow_beyond_what_a_guest_can_write_is_ended() {
    if !Path::new(PYTHON).exists() {
        return fixture::skip("it takes Python");
    }
    let place = tempfile::tempdir().expect("a directory");
    std::fs::set_permissions(place.path(), Permissions::from_mode(0o755)).expect("opened");
    let program = place.path().join("qemu");
    std::fs::write(&program, GROWS).expect("a program");
    std::fs::set_permissions(&program, Permissions::from_mode(0o755)).expect("executable");
    let mut run = Run::of_boot_sector(program, &boot_sector::halt());
    run.start().await;
    let outcome = run.outcome().await;
    assert_eq!(outcome.reason, EndReason::QemuFailed);
    assert!(outcome.detail.contains("which no guest can"), "{outcome:?}");
    assert!(outcome.detail.contains("job-config.img"), "{outcome:?}");
}
