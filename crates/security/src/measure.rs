//! What the host sees of an attack: memory, disk space, processes, answers.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use forrest_testbed::Testbed;
use forrest_testbed::processes::{self, Process, status_line};

/// What was seen, or the most that was seen.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seen {
    /// Memory of the daemon, in bytes.
    pub daemon: u64,
    /// Memory of the largest supervisor, in bytes.
    pub shim: u64,
    /// Space on the host that the largest disk of a run takes, in bytes.
    pub disk: u64,
    /// Space that all other files of the runs take, in bytes.
    pub files: u64,
    /// Processes of the host that belong to the base directory.
    pub processes: usize,
    /// Threads of all of these.
    pub threads: usize,
    /// How long the daemon took to say how it is.
    pub answer: Duration,
}

impl Seen {
    /// The larger of both, each.
    pub fn max(self, other: Self) -> Self {
        Self {
            daemon: self.daemon.max(other.daemon),
            shim: self.shim.max(other.shim),
            disk: self.disk.max(other.disk),
            files: self.files.max(other.files),
            processes: self.processes.max(other.processes),
            threads: self.threads.max(other.threads),
            answer: self.answer.max(other.answer),
        }
    }

    /// Looks now.
    ///
    /// # Errors
    /// Where the daemon is gone or does not answer.
    pub async fn now(testbed: &Testbed) -> Result<Self> {
        let began = Instant::now();
        testbed.client().status().await.context("the daemon does not answer")?;
        let answer = began.elapsed();
        let pid = testbed.daemon.as_ref().and_then(|daemon| daemon.pid());
        let pid = pid.context("the daemon is gone")?;
        let mut seen = Self { daemon: memory(pid), answer, ..Self::default() };
        let base_dir = testbed.plan().base_dir();
        for process in processes::of(&base_dir)? {
            seen.processes += 1;
            let threads = std::fs::read_dir(format!("/proc/{}/task", process.pid));
            seen.threads += threads.map_or(0, Iterator::count);
            if process.is_shim() {
                seen.shim = seen.shim.max(memory(process.pid));
            }
        }
        files(&base_dir.join("runs"), &mut seen);
        Ok(seen)
    }
}

/// What a guest that had broken into its QEMU could do on the host.
#[derive(Debug, Clone)]
pub struct Privileges {
    uid: String,
    capabilities: String,
    no_new_privileges: bool,
    system_calls_filtered: bool,
    core_dumps: bool,
}

impl Privileges {
    /// Those of the first QEMU below a directory; `None` where none runs.
    pub fn of_a_qemu(base_dir: &Path) -> Option<Self> {
        let is_qemu = |process: &Process| {
            let program = std::fs::read_link(format!("/proc/{}/exe", process.pid));
            program.is_ok_and(|program| program.to_string_lossy().contains("qemu-system"))
        };
        let pid = processes::of(base_dir).ok()?.into_iter().find(is_qemu)?.pid;
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
        let cores = limits.lines().find(|line| line.starts_with("Max core file size"))?;
        Some(Self {
            uid: status_line(pid, "Uid")?.split_whitespace().next()?.to_owned(),
            capabilities: status_line(pid, "CapEff")?,
            no_new_privileges: status_line(pid, "NoNewPrivs")? == "1",
            system_calls_filtered: status_line(pid, "Seccomp")? == "2",
            core_dumps: cores.split_whitespace().nth(4) != Some("1"),
        })
    }

    /// Whether there are none to speak of, in words.
    pub fn judge(&self) -> (bool, String) {
        let none = self.capabilities.trim_start_matches('0').is_empty();
        let contained = self.uid != "0"
            && none
            && self.no_new_privileges
            && self.system_calls_filtered
            && !self.core_dumps;
        let yes = |yes: bool| if yes { "yes" } else { "no" };
        let text = format!(
            "user {}, capabilities {}, no new privileges: {}, system calls filtered: {}, core dumps: {}",
            self.uid,
            self.capabilities,
            yes(self.no_new_privileges),
            yes(self.system_calls_filtered),
            yes(self.core_dumps)
        );
        (contained, text)
    }
}

/// Resident memory, in bytes; 0 for a process that is gone.
fn memory(pid: u32) -> u64 {
    let line = status_line(pid, "VmRSS").unwrap_or_default();
    line.trim_end_matches(" kB").parse::<u64>().unwrap_or_default() << 10
}

fn files(dir: &Path, seen: &mut Seen) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let Ok(metadata) = std::fs::symlink_metadata(entry.path()) else { continue };
        if metadata.is_dir() {
            files(&entry.path(), seen);
        } else if entry.file_name() == "disk.img" {
            seen.disk = seen.disk.max(metadata.blocks() * 512);
        } else {
            seen.files += metadata.blocks() * 512;
        }
    }
}

/// All files below a directory with this name.
pub fn named(dir: &Path, name: &str) -> Vec<PathBuf> {
    below(dir).into_iter().filter(|path| path.file_name().is_some_and(|n| n == name)).collect()
}

/// All files below a directory.
pub fn below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(below(&path));
        } else {
            found.push(path);
        }
    }
    found
}

/// For people.
pub fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}
