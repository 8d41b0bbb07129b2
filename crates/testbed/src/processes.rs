//! The host's processes: whose they are, and what can be told of them.

use std::io;
use std::path::Path;

/// A process of the host, as it was when it was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Its words, each with a zero byte behind it; empty for one that has ended and was not waited for.
    pub arguments: String,
}

impl Process {
    fn of(pid: u32) -> Option<Self> {
        let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        Some(Self { pid, arguments: String::from_utf8_lossy(&arguments).into_owned() })
    }

    /// Its words.
    pub fn words(&self) -> impl Iterator<Item = &str> {
        self.arguments.split('\0')
    }

    /// Whether it is a supervisor.
    pub fn is_shim(&self) -> bool {
        self.arguments.contains("\0shim\0")
    }

    /// Whether it is a virtual machine.
    pub fn is_qemu(&self) -> bool {
        self.arguments.contains("qemu-system") && !self.is_shim()
    }

    /// Whether it works in this directory, or its parent does: a QEMU has no path of it, only open files.
    fn works_in(&self, dir: &Path) -> bool {
        let text = dir.to_string_lossy();
        let cwd = std::fs::read_link(format!("/proc/{}/cwd", self.pid)).unwrap_or_default();
        let parent = || Self::of(status_line(self.pid, "PPid")?.parse().ok()?);
        self.arguments.contains(&*text)
            || cwd.starts_with(dir)
            || parent().is_some_and(|parent| parent.arguments.contains(&*text))
    }
}

/// All of them. One that ends meanwhile is left out.
///
/// # Errors
/// Where there is no list of processes.
pub fn all() -> io::Result<impl Iterator<Item = Process>> {
    let entries = std::fs::read_dir("/proc")?.flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Ok(pids.filter_map(Process::of))
}

/// Those that work in a directory, and their children.
///
/// # Errors
/// As [`all`].
pub fn of(dir: &Path) -> io::Result<Vec<Process>> {
    Ok(all()?.filter(|process| process.works_in(dir)).collect())
}

/// A line of a process's `status`, see `proc_pid_status(5)`; `None` for one that is gone.
pub fn status_line(pid: u32, name: &str) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.trim().to_owned())
}
