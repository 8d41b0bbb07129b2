//! No memory image of a process that holds secrets.

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// Keeps the kernel from writing this process's memory to a core dump when it crashes, and other
/// processes of the same user from looking into it. Not inherited through `exec`.
///
/// The limit alone would not do: programs that the kernel pipes dumps to, such as systemd-coredump, get
/// them whatever the limit (core(5)).
///
/// # Errors
/// What the kernel says.
pub fn forbid() -> std::io::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}
