//! The processes that are killed: supervisors of virtual machines.

use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};

/// A supervisor.
#[derive(Debug, Clone)]
pub struct Shim {
    pid: Pid,
    run_dir: PathBuf,
}

impl Shim {
    /// The supervisors whose run directories are below `base`.
    pub fn all(base: &Path) -> Vec<Self> {
        let base = base.canonicalize().unwrap_or_else(|_| base.to_owned());
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let mut all: Vec<_> = pids.filter_map(|pid| Self::of(pid, &base)).collect();
        // The dice decide among them, not the order of process ids.
        all.sort_by(|a, b| a.run_dir.cmp(&b.run_dir));
        all
    }

    fn of(pid: i32, base: &Path) -> Option<Self> {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let words: Vec<_> = line.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
        let at = words.iter().position(|word| word == "shim")?;
        let run_dir = PathBuf::from(words.get(at + 1)?.as_ref());
        // QEMU's wrapper for an instant, and none of ours, have other words there.
        (run_dir.starts_with(base) && run_dir.is_absolute())
            .then_some(Self { pid: Pid::from_raw(pid)?, run_dir })
    }

    /// The last part of its run directory: a runner's name, or a snapshot's.
    pub fn name(&self) -> String {
        self.run_dir.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Whether it supervises a job's virtual machine, not one that a snapshot is taken of.
    pub fn is_of_run(&self) -> bool {
        self.run_dir.components().any(|part| part.as_os_str() == "runs")
    }

    /// Kills it with SIGKILL: its virtual machine goes with it. `false` where it was gone already.
    pub fn kill(&self) -> bool {
        kill_process(self.pid, Signal::KILL).is_ok()
    }
}
