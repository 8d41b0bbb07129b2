//! The processes that are killed: supervisors of virtual machines, and at the end whatever is left.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use forrest_testbed::processes::{self, Process};
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
        let processes = processes::all().into_iter().flatten();
        let mut all: Vec<_> = processes.filter_map(|process| Self::of(&process, &base)).collect();
        // The dice decide among them, not the order of process ids.
        all.sort_by(|a, b| a.run_dir.cmp(&b.run_dir));
        all
    }

    fn of(process: &Process, base: &Path) -> Option<Self> {
        let mut words = process.words().skip_while(|word| *word != "shim");
        let run_dir = PathBuf::from(words.nth(1)?);
        // QEMU's wrapper for an instant, and none of ours, have other words there.
        (run_dir.starts_with(base) && run_dir.is_absolute())
            .then_some(Self { pid: pid_of(process)?, run_dir })
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
        let left: Vec<_> = processes::all()?.filter(|process| is_of(process, &dir)).collect();
        if left.is_empty() {
            return Ok(());
        }
        ensure!(
            Instant::now() < until,
            "the processes {:?} do not end: look at them with `ps`",
            left.iter().map(|process| process.pid).collect::<Vec<_>>()
        );
        for pid in left.iter().filter_map(pid_of) {
            // It may be gone already.
            let _ = kill_process(pid, Signal::KILL);
        }
        std::thread::sleep(LOOK_PAUSE);
    }
}

/// Whether it is a `forrest run` or a `forrest shim` of this directory.
fn is_of(process: &Process, dir: &Path) -> bool {
    process.words().take(3).any(|word| word == "run" || word == "shim")
        && process.words().any(|word| Path::new(word).starts_with(dir))
}

fn pid_of(process: &Process) -> Option<Pid> {
    Pid::from_raw(process.pid.try_into().ok()?)
}
