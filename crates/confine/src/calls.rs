//! Which system calls a process may still make (seccomp, `seccomp(2)`).
//!
//! QEMU filters its own ([`-sandbox`](https://www.qemu.org/docs/master/system/security.html)), but knows
//! nothing of what Forrest has it do. This filter is in place before QEMU's first instruction and refuses
//! what no QEMU of Forrest's needs, with an error and not with the process's end, for QEMU tries some of
//! it and does without:
//!
//! - sockets but those of IPv4 and IPv6, which the egress filter sees. So the services of the host that
//!   listen at a name in the file system cannot be asked, and the kernel's rarer protocols neither;
//! - ports: no address is chosen, and nothing listens but the shell's socket, which is handed over. Its
//!   number stands for it, so that number can be given to nothing else;
//! - memory that counts as nobody's own, and that no limit bounds (see `crates/vm/src/shim/limits.rs`);
//! - other processes: starting, observing or changing them;
//! - ways around this filter (`io_uring` opens sockets, too), and parts of the kernel that take attacks
//!   and serve a QEMU nothing.
//!
//! What is not refused is up to QEMU's own filter, and to the user that it runs as.

use std::collections::BTreeMap;
use std::os::fd::RawFd;

use seccompiler::SeccompCmpOp::{Eq, MaskedEq, Ne};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule,
};

/// Refused whatever the arguments are.
const REFUSED: [i64; 59] = [
    // Sockets without a peer, which can be connected to names as well, and addresses of one's own.
    libc::SYS_socketpair,
    libc::SYS_bind,
    // The number of the listening socket stays that socket's.
    libc::SYS_close_range,
    // Memory that is shared, and messages that are kept for others.
    libc::SYS_memfd_create,
    libc::SYS_memfd_secret,
    libc::SYS_shmget,
    libc::SYS_semget,
    libc::SYS_msgget,
    libc::SYS_mq_open,
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_perf_event_open,
    // Ways around this filter.
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    // Other views of the host.
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_chroot,
    libc::SYS_pivot_root,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_mount_setattr,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_open_by_handle_at,
    libc::SYS_fanotify_init,
    // The kernel itself.
    libc::SYS_bpf,
    libc::SYS_userfaultfd,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_syslog,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_vhangup,
];

/// The same, where the architecture has them.
#[cfg(target_arch = "x86_64")]
const REFUSED_HERE: [i64; 2] = [libc::SYS_fork, libc::SYS_vfork];
#[cfg(not(target_arch = "x86_64"))]
const REFUSED_HERE: [i64; 0] = [];

/// By what x86's system calls are told from those of its variant with short pointers (x32), where the
/// kernel has that: the same calls under other numbers.
#[cfg(target_arch = "x86_64")]
const VARIANT: Option<i64> = Some(0x4000_0000);
#[cfg(not(target_arch = "x86_64"))]
const VARIANT: Option<i64> = None;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Restricts the calling thread, and with it the program that it becomes and all of its threads, for good.
///
/// `listening`: the one socket that may be listened on.
///
/// # Errors
/// What the kernel says. It knows such filters since Linux 3.17.
pub fn restrict(listening: RawFd) -> Result<(), String> {
    let told = |err: seccompiler::Error| match err {
        seccompiler::Error::Prctl(err) | seccompiler::Error::Seccomp(err) => err.to_string(),
        err => err.to_string(),
    };
    let refused = refused(listening).map_err(|err| err.to_string())?;
    let absent = absent().map_err(|err| err.to_string())?;
    // The later one sees a call first, and the stricter answer counts.
    seccompiler::apply_filter(&absent).map_err(told)?;
    seccompiler::apply_filter(&refused).map_err(told)
}

/// Tries whether that is possible, in a thread that ends with it.
///
/// # Errors
/// Why not, with what it means.
pub fn rehearse() -> Result<(), String> {
    let tried = std::thread::Builder::new().spawn(|| restrict(RawFd::MAX));
    let tried = tried.map_err(|err| err.to_string()).and_then(|thread| {
        thread.join().unwrap_or_else(|_| Err("the attempt ended in a panic".to_owned()))
    });
    tried.map_err(|why| {
        format!(
            "QEMU's system calls cannot be filtered (seccomp), and no run starts without: {why}"
        )
    })
}

/// What is refused, as if it took a privilege (`EPERM`).
fn refused(listening: RawFd) -> Result<BpfProgram, BackendError> {
    let mut rules: Rules =
        REFUSED.iter().chain(&REFUSED_HERE).map(|call| (*call, Vec::new())).collect();
    let listening = u64::from(listening.unsigned_abs());
    let v4 = u64::from(libc::AF_INET.unsigned_abs());
    let v6 = u64::from(libc::AF_INET6.unsigned_abs());
    rules.insert(libc::SYS_socket, vec![when(&[(0, Ne, v4), (0, Ne, v6)])?]);
    rules.insert(libc::SYS_listen, vec![when(&[(0, Ne, listening)])?]);
    rules.insert(libc::SYS_close, vec![when(&[(0, Eq, listening)])?]);
    rules.insert(libc::SYS_dup3, vec![when(&[(1, Eq, listening)])?]);
    #[cfg(target_arch = "x86_64")]
    rules.insert(libc::SYS_dup2, vec![when(&[(1, Eq, listening)])?]);
    // Threads only.
    let thread = u64::from(libc::CLONE_THREAD.unsigned_abs());
    rules.insert(libc::SYS_clone, vec![when(&[(0, MaskedEq(thread), 0)])?]);
    // Shared, and nobody's file.
    let shared = u64::from((libc::MAP_SHARED | libc::MAP_ANONYMOUS).unsigned_abs());
    rules.insert(libc::SYS_mmap, vec![when(&[(3, MaskedEq(shared), shared)])?]);
    program(rules, libc::EPERM)
}

/// What is not there at all (`ENOSYS`): its arguments are in memory, where a filter cannot look. The C
/// library does the same by `clone` then.
fn absent() -> Result<BpfProgram, BackendError> {
    program(BTreeMap::from([(libc::SYS_clone3, Vec::new())]), libc::ENOSYS)
}

fn program(mut rules: Rules, error: i32) -> Result<BpfProgram, BackendError> {
    if let Some(variant) = VARIANT {
        let too: Rules = rules.iter().map(|(call, rule)| (call | variant, rule.clone())).collect();
        rules.extend(too);
    }
    let refusal = SeccompAction::Errno(error.unsigned_abs());
    let here = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, SeccompAction::Allow, refusal, here)?.try_into()
}

/// Where all of these hold of an argument's lower half: flags, and numbers that the kernel takes for 32 bits.
fn when(all: &[(u8, SeccompCmpOp, u64)]) -> Result<SeccompRule, BackendError> {
    let conditions = all.iter().map(|(argument, compared, value)| {
        SeccompCondition::new(*argument, SeccompCmpArgLen::Dword, compared.clone(), *value)
    });
    SeccompRule::new(conditions.collect::<Result<_, _>>()?)
}

#[cfg(test)]
#[path = "calls_tests.rs"]
mod tests;
