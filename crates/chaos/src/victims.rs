//! The processes that are killed: supervisors of virtual machines, and at the end whatever is left.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// How long killed processes may take to be gone; QEMU gives back a gigabyte.
const GONE_MAX: Duration = Duration::from_secs(20);
/// Pause between two looks whether they are.
const LOOK_PAUSE: Duration = Duration::from_millis(50);

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
        let mut all: Vec<_> = pids().filter_map(|pid| Self::of(pid, &base)).collect();
        // The dice decide among them, not the order of process ids.
        all.sort_by(|a, b| a.run_dir.cmp(&b.run_dir));
        all
    }

    fn of(pid: i32, base: &Path) -> Option<Self> {
        let words = words(pid)?;
        let at = words.iter().position(|word| word == "shim")?;
        let run_dir = PathBuf::from(words.get(at + 1)?);
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

/// Ends every daemon and every supervisor below `dir`, and waits until they are gone.
///
/// # Errors
/// Where one of them cannot be killed, or is not gone in time.
pub fn end_all(dir: &Path) -> Result<()> {
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let until = Instant::now() + GONE_MAX;
    loop {
        // Daemons and supervisors at once: what a daemon has just begun is found at the next look.
        let left: Vec<_> = pids().filter(|pid| is_of(*pid, &dir)).collect();
        if left.is_empty() {
            return Ok(());
        }
        ensure!(
            Instant::now() < until,
            "the processes {left:?} do not end: look at them with `ps`"
        );
        for pid in left.into_iter().filter_map(Pid::from_raw) {
            // It may be gone already.
            let _ = kill_process(pid, Signal::KILL);
        }
        std::thread::sleep(LOOK_PAUSE);
    }
}

/// Whether it is a `forrest run` or a `forrest shim` of this directory. One that has ended and was not
/// waited for has no words.
fn is_of(pid: i32, dir: &Path) -> bool {
    let Some(words) = words(pid) else { return false };
    let verb = words.iter().take(3).any(|word| word == "run" || word == "shim");
    verb && words.iter().any(|word| Path::new(word).starts_with(dir))
}

fn pids() -> impl Iterator<Item = i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The words of its command line.
fn words(pid: i32) -> Option<Vec<String>> {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    Some(line.split(|byte| *byte == 0).map(|w| String::from_utf8_lossy(w).into_owned()).collect())
}
