//! No memory image of a process that holds secrets.

use std::io;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// The most that a core dump may have, in bytes. A limit of 0 is for files only: programs that the kernel pipes
/// dumps to, such as systemd-coredump, get them all the same. This one ends both (`fs/coredump.c` of Linux: it is
/// how the kernel marks such a program, whose own crash must not begin another one).
const LIMIT: u64 = 1;

/// Bounds the core dumps of this process, and of what it executes, for good.
///
/// # Errors
/// What the kernel says.
pub(crate) fn bound() -> io::Result<()> {
    let limit = |most| Rlimit { current: Some(most), maximum: Some(most) };
    // Where the host allows none at all, raising that takes a privilege.
    Ok(setrlimit(Resource::Core, limit(LIMIT)).or_else(|_| setrlimit(Resource::Core, limit(0)))?)
}

/// Keeps the kernel from writing this process's memory to a core dump when it crashes, and other
/// processes of the same user from looking into it. The latter is not inherited through `exec`.
///
/// # Errors
/// What the kernel says.
pub fn forbid() -> io::Result<()> {
    bound()?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};

    use rustix::process::{Pid, Signal, kill_process, prlimit};

    use super::*;

    /// Whether a process with this limit leaves a core dump when it crashes.
    fn dumps(limit: Option<u64>) -> bool {
        let dir = tempfile::tempdir().expect("a directory");
        let mut child = Command::new("cat")
            .current_dir(&dir)
            .stdin(Stdio::piped())
            .spawn()
            .expect("a process that waits");
        let pid = Pid::from_child(&child);
        let limit = Rlimit { current: limit, maximum: limit };
        prlimit(Some(pid), Resource::Core, limit).expect("a limit");
        kill_process(pid, Signal::SEGV).expect("a crash");
        let status = child.wait().expect("its end");
        assert_eq!(status.signal(), Some(Signal::SEGV.as_raw()));
        status.core_dumped()
    }

    #[test]
    fn a_process_that_crashes_leaves_no_dump() {
        if !dumps(None) {
            let why = "this host's kernel writes no core dumps at all";
            assert!(std::env::var_os("CI").is_none(), "{why}");
            return eprintln!("NOT TESTED: {why}");
        }
        assert!(!dumps(Some(LIMIT)));
    }
}
