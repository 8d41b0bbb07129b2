use super::*;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;

use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, listen, socket, socketpair};

/// Does something in a thread that can make no other calls than QEMU, of which one socket may listen.
fn as_qemu<T: Send>(does: impl FnOnce(OwnedFd) -> T + Send) -> T {
    let shell = socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            restrict(shell.as_raw_fd()).expect("restricted");
            does(shell)
        });
        thread.join().expect("as expected")
    })
}

fn refused_at_all<T>(result: Result<T, Errno>) -> bool {
    matches!(result, Err(Errno::PERM))
}

fn refused<T>(result: std::io::Result<T>) -> bool {
    refused_at_all(result.map_err(|err| Errno::from_io_error(&err).unwrap_or(Errno::IO)))
}

#[test]
fn sockets_are_those_of_the_internet() {
    let anywhere = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a service");
    let port = anywhere.local_addr().expect("its address").port();
    as_qemu(|_| {
        // What user-mode networking does.
        for family in [AddressFamily::INET, AddressFamily::INET6] {
            for kind in [SocketType::STREAM, SocketType::DGRAM] {
                socket(family, kind, None).expect("a socket of the Internet");
            }
        }
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("connected");
        for family in [
            AddressFamily::UNIX,
            AddressFamily::NETLINK,
            AddressFamily::VSOCK,
            AddressFamily::PACKET,
            // AF_ALG, the kernel's ciphers.
            AddressFamily::from_raw(38),
        ] {
            for kind in [SocketType::STREAM, SocketType::DGRAM, SocketType::RAW] {
                assert!(refused_at_all(socket(family, kind, None)), "{family:?} {kind:?}");
            }
        }
        let flags = SocketFlags::CLOEXEC;
        assert!(refused_at_all(socketpair(AddressFamily::UNIX, SocketType::DGRAM, flags, None)));
    });
}

#[test]
fn nothing_listens_but_the_one_socket() {
    as_qemu(|shell| {
        listen(&shell, 1).expect("it may be listened on");
        let other = socket(AddressFamily::INET6, SocketType::STREAM, None).expect("a socket");
        assert!(refused_at_all(listen(&other, 1)));
        // Its number cannot be given to another.
        let mut number = shell.try_clone().expect("another number for it");
        rustix::io::dup2(&other, &mut number).expect("any other number can");
        let mut its_own = shell;
        assert!(refused_at_all(rustix::io::dup2(&other, &mut its_own)));
        let flags = rustix::io::DupFlags::CLOEXEC;
        assert!(refused_at_all(rustix::io::dup3(&other, &mut its_own, flags)));
        let kept = its_own.as_raw_fd();
        drop(its_own);
        assert!(std::fs::exists(format!("/proc/self/fd/{kept}")).expect("asked"), "closed");
    });
    as_qemu(|_| {
        let here: [SocketAddr; 2] =
            [(Ipv4Addr::UNSPECIFIED, 0).into(), (Ipv6Addr::UNSPECIFIED, 0).into()];
        for address in here {
            assert!(refused(UdpSocket::bind(address)), "{address}");
            assert!(refused(TcpListener::bind(address)), "{address}");
        }
    });
}

#[test]
fn there_is_no_shared_memory_and_no_other_process() {
    as_qemu(|_| {
        assert!(refused_at_all(rustix::fs::memfd_create("memory", MemfdFlags::CLOEXEC)));
        assert!(refused(Command::new("true").spawn()));
        // Threads there are.
        std::thread::spawn(|| {}).join().expect("it ends");
        // Memory of its own.
        drop(vec![1_u8; 64 << 20]);
    });
}

#[test]
fn a_rehearsal_restricts_nobody_else() {
    assert_eq!(rehearse(), Ok(()));
    socket(AddressFamily::UNIX, SocketType::STREAM, None).expect("a socket");
    // Nor is it possible for somebody who may not even set it up, and then it says so.
    let told = std::thread::spawn(|| {
        let call = BTreeMap::from([(libc::SYS_seccomp, Vec::new())]);
        let filter = program(call, libc::ENOSYS).expect("a filter");
        seccompiler::apply_filter(&filter).expect("restricted");
        rehearse().expect_err("refused")
    });
    let told = told.join().expect("as expected");
    assert!(told.contains("no run starts without") && told.contains("not implemented"), "{told}");
}

/// The numbers of the calls are those that the C library has for this architecture; the filter is made
/// for it, and the kernel takes no larger one.
#[test]
fn the_filter_is_one_of_this_machine() {
    let refused = super::refused(7).expect("a filter");
    assert!(refused.len() < 4096, "{}", refused.len());
    let calls: std::collections::BTreeSet<i64> = REFUSED.into_iter().collect();
    assert_eq!(calls.len(), REFUSED.len(), "each is named once");
}
