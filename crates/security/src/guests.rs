//! Attacks from inside guests: a job each, whose steps are root's, in a virtual machine of its own.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use base64::Engine;
use forrest_core::event::EndReason;
use forrest_core::run::FinishedRun;
use forrest_core::snapshots::SnapshotState;
use forrest_daemon::control::Status;
use forrest_testbed::{QueuedJob, Testbed};
use github_sim::model::JobId;

use crate::measure::{Privileges, Seen, mib};
use crate::report::Report;

/// The machine type of most attacks.
pub const VICTIM: &str = "acme/widgets/victim";
/// One whose jobs are stopped after a while.
pub const SHORT: &str = "acme/widgets/short";
/// The most that a run may take of the host's disk, as its machine type says.
pub const DISK: &str = "2560M";
const DISK_LEN: u64 = 2560 << 20;
/// How long a job of [`SHORT`] may take.
pub const SHORT_TIMEOUT: &str = "90s";

/// How long any attack may take, the guest's start included, emulated on a busy host.
const ATTACK_TIMEOUT: Duration = Duration::from_secs(15 * 60);
/// After this long without a report of its runner, GitHub gives a job up.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(16 * 60);
/// How long templates may take to be made.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(6 * 60);
/// Pause between two looks at an attack.
const LOOK_PAUSE: Duration = Duration::from_millis(500);

/// What an attack may cost the daemon and a supervisor, each, in bytes.
const MEMORY_GROWTH_MAX: u64 = 64 << 20;
/// What a run may write to the host beside its disk: console log, seed disks, records.
const FILES_MAX: u64 = 24 << 20;
/// How long the daemon may take to say how it is, on a busy host.
const ANSWER_MAX: Duration = Duration::from_secs(15);
/// Processes and threads that a guest's supervisor and QEMU may come to.
const THREADS_MAX: usize = 64;

/// What came of an attack.
#[derive(Debug)]
pub struct Fought {
    /// What the job printed.
    pub log: String,
    /// The end of its run.
    pub run: FinishedRun,
    before: Seen,
    peak: Seen,
    privileges: Option<Privileges>,
}

impl Fought {
    /// What the host's side saw, and whether it is within bounds.
    pub fn bounds(&self) -> (bool, String) {
        let (before, peak) = (self.before, self.peak);
        let grown = peak.daemon.saturating_sub(before.daemon);
        let contained = grown < MEMORY_GROWTH_MAX
            && peak.shim < MEMORY_GROWTH_MAX
            && peak.files.saturating_sub(before.files) < FILES_MAX
            // A file system's own tables come on top.
            && peak.disk <= DISK_LEN + DISK_LEN / 50
            && peak.threads <= THREADS_MAX
            && peak.answer < ANSWER_MAX;
        let text = format!(
            "daemon +{}, supervisor {}, files +{}, disk {}, {} threads, answers within {} ms",
            mib(grown),
            mib(peak.shim),
            mib(peak.files.saturating_sub(before.files)),
            mib(peak.disk),
            peak.threads,
            peak.answer.as_millis()
        );
        (contained, text)
    }

    /// The value that the attack printed as `DID NAME=VALUE`.
    pub fn did(&self, name: &str) -> Option<&str> {
        let prefix = format!("DID {name}=");
        let lines = self.log.lines().filter_map(|line| line.split_once(&prefix));
        lines.map(|(_, value)| value.trim()).next_back()
    }
}

/// A job's step that runs a Python script as root.
pub fn step(script: &str) -> String {
    let encoded = base64::engine::general_purpose::STANDARD.encode(script);
    format!("echo {encoded} | base64 -d >/tmp/attack.py; sudo python3 -u /tmp/attack.py 2>&1")
}

/// Runs an attack as root in a guest of its own, to the end of its run.
///
/// # Errors
/// Where the daemon goes away, or the run does not end.
pub async fn fight(testbed: &Testbed, machine: &str, name: &str, script: &str) -> Result<Fought> {
    eprintln!("A guest attacks: {name} ...");
    let before = Seen::now(testbed).await?;
    let job = testbed.queue(machine, QueuedJob::pull_request(name, &[&step(script)]))?;
    let (began, mut peak, mut given_up) = (Instant::now(), before, false);
    let mut privileges = None;
    loop {
        let status = testbed.client().status().await.context("the daemon does not answer")?;
        if let Some(run) = of_job(&status, job) {
            let log = testbed.sim.job_log(job).unwrap_or_default();
            return Ok(Fought { log, run, before, peak, privileges });
        }
        // A guest that is gone without a word: GitHub waits for its runner, this one's clock can be
        // put forward.
        let gone =
            status.view.runs.iter().any(|run| {
                run.job.is_some_and(|id| id.0 == job.0) && run.times.vm_exited.is_some()
            });
        if gone && !given_up && !testbed.sim.job(job)?.status.contains("completed") {
            given_up = true;
            testbed.sim.advance(GIVEN_UP_AFTER);
        }
        peak = peak.max(Seen::now(testbed).await?);
        privileges = privileges.or_else(|| Privileges::of_a_qemu(&testbed.plan().base_dir()));
        if began.elapsed() > ATTACK_TIMEOUT {
            bail!("its run did not end; the job printed:\n{}", testbed.sim.job_log(job)?);
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

fn of_job(status: &Status, job: JobId) -> Option<FinishedRun> {
    let of_job = |run: &&FinishedRun| run.job.as_ref().is_some_and(|found| found.id.0 == job.0);
    status.view.finished.iter().find(of_job).cloned()
}

/// Waits until guests can be restored instead of booted; without that, attacks only take longer.
///
/// # Errors
/// Where the daemon goes away.
pub async fn wait_for_snapshots(testbed: &Testbed) -> Result<()> {
    eprintln!("Guests are booted once ...");
    let settled = |status: &Status| {
        let snapshots = || status.view.machines.iter().filter_map(|one| one.snapshot.as_ref());
        let ready = snapshots().all(|one| one.state == SnapshotState::Ready || one.failures > 0);
        ready.then_some(())
    };
    if testbed.wait(SNAPSHOT_TIMEOUT, "the snapshots", settled).await.is_err() {
        eprintln!("    no snapshots: every guest boots");
    }
    Ok(())
}

/// An attack, what it prints of itself, and what has to be true of its end beside the bounds.
struct Flood {
    name: &'static str,
    machine: &'static str,
    script: &'static str,
    /// The fact that it prints, and its unit.
    did: (&'static str, &'static str),
    end: EndReason,
}

const FLOODS: &[Flood] = &[
    Flood {
        name: "flood of the console",
        machine: VICTIM,
        script: include_str!("attacks/console.py"),
        did: ("console", "bytes written"),
        end: EndReason::GuestShutdown,
    },
    Flood {
        name: "flood of the virtio-serial port",
        machine: VICTIM,
        script: include_str!("attacks/port.py"),
        did: ("port", "bytes written"),
        end: EndReason::GuestShutdown,
    },
    Flood {
        name: "flood of the job-config disk",
        machine: VICTIM,
        script: include_str!("attacks/job_disk.py"),
        did: ("job-disk", "bytes written"),
        end: EndReason::GuestShutdown,
    },
    Flood {
        name: "flood of the network",
        machine: VICTIM,
        script: include_str!("attacks/network.py"),
        did: ("network", "packets and connections"),
        end: EndReason::GuestShutdown,
    },
    Flood {
        name: "a full disk",
        machine: VICTIM,
        script: include_str!("attacks/disk.py"),
        did: ("disk", "bytes written"),
        end: EndReason::GuestShutdown,
    },
    Flood {
        name: "forks without end",
        machine: SHORT,
        script: include_str!("attacks/forks.py"),
        did: ("forks", "processes, and then without end"),
        end: EndReason::JobTimeout,
    },
];

/// Floods of everything that a guest has.
///
/// # Errors
/// Where the daemon goes away: nothing more can be tried then.
pub async fn floods(report: &mut Report, testbed: &Testbed) -> Result<()> {
    for (index, flood) in FLOODS.iter().enumerate() {
        let fought = fight(testbed, flood.machine, flood.name, flood.script).await;
        if let (0, Ok(fought)) = (index, &fought) {
            let privileges = fought.privileges.as_ref().map(Privileges::judge);
            report.add_result(
                "a QEMU that a guest has taken over: its rights",
                privileges.context("no QEMU was seen"),
            );
        }
        let judged = fought.map(|fought| judge(flood, &fought));
        report.add_result(flood.name, judged);
        Seen::now(testbed).await.context("after this attack")?;
    }
    Ok(())
}

fn judge(flood: &Flood, fought: &Fought) -> (bool, String) {
    let (bounded, seen) = fought.bounds();
    let (name, unit) = flood.did;
    let tried = fought.did(name).and_then(|did| did.parse::<u64>().ok()).unwrap_or_default();
    let ended = fought.run.end == flood.end;
    let mut text = format!("{tried} {unit}: {seen}");
    if !ended {
        text.push_str(&format!("; its run ended with {}, not {}", fought.run.end, flood.end));
    }
    if tried == 0 {
        text.push_str("; it was not really tried: ");
        text.extend(fought.log.lines().rev().take(3));
    }
    (bounded && ended && tried > 0 && fought.run.result.is_none(), text)
}

/// File systems that no honest guest would leave on its job-config disk, from the fuzzer's corpus.
const HOSTILE_DISKS: &[&str] =
    &["fat12-loop", "fat12-beyond", "fat12-long-file", "fat12-directory", "fat32"];

/// A guest each leaves one behind; the daemon reads it back.
///
/// # Errors
/// Where the daemon goes away, or the corpus cannot be read.
pub async fn hostile_disks(
    report: &mut Report,
    testbed: &Testbed,
    root: &std::path::Path,
) -> Result<()> {
    for disk in HOSTILE_DISKS {
        let path = root.join("crates/fuzz/corpus/fat").join(disk);
        let input =
            std::fs::read(&path).with_context(|| format!("could not read {}", path.display()))?;
        // The first two bytes are the fuzzer's length of the disk.
        let image = input.get(2..).unwrap_or_default();
        let image = base64::engine::general_purpose::STANDARD.encode(image);
        let script = include_str!("attacks/hostile_disk.py").replace("@IMAGE@", &image);
        let name = format!("hostile file system: {disk}");
        let fought = fight(testbed, VICTIM, &name, &script).await;
        let judged = fought.map(|fought| {
            let (bounded, seen) = fought.bounds();
            let written = fought.did("hostile-disk").is_some();
            let kept = fought.run.result.is_some();
            let mut text = format!("read back, nothing was kept: {seen}");
            if !written {
                text = format!("it was not written: {}", fought.log);
            }
            (bounded && written && !kept, text)
        });
        report.add_result(&name, judged);
        Seen::now(testbed).await.context("after this attack")?;
    }
    Ok(())
}
