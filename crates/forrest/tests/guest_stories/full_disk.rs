//! The host's disk is full while real guests boot.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use forrest_core::run::FinishedRun;
use forrest_core::snapshots::SnapshotState;
use forrest_daemon::control::Status;
use forrest_testbed::{MachinePlan, Plan, QueuedJob, Testbed};
use github_sim::model::{Conclusion, JobId};

use crate::scene::{GUEST_LIFE, assert_clean, complete_snapshots, plan_on_xfs, snapshot_of, until};

const BUILD: &str = "acme/widgets/build";
/// What is left of the file system: less than half of what a snapshot takes.
const NOT_ENOUGH: u64 = 80 << 20;
/// Room for a few words of the daemon's and the shim's own.
const NEXT_TO_NOTHING: u64 = 2 << 20;
/// What a guest has written to its RAM when its kernel runs, and a good deal less than what it will write.
const BOOTING: u64 = 48 << 20;
/// How long a file system may take to say that it is full.
const ROUNDS_MAX: u32 = 100;

/// Takes all the room on the file system of `path` but this many bytes.
fn fill(path: &Path, left: u64) {
    let file = File::create(path).expect("a new file");
    let mut len = 0;
    for _ in 0..ROUNDS_MAX {
        let free = rustix::fs::fstatvfs(&file).expect("its file system");
        let free = free.f_bavail * free.f_frsize;
        if free <= left {
            return;
        }
        let flags = rustix::fs::FallocateFlags::empty();
        // A file system keeps some for itself.
        let more = (free - left).min(2 << 30);
        if rustix::fs::fallocate(&file, flags, len, more).is_err() {
            return;
        }
        len += more;
    }
    panic!("{} does not get full", path.display());
}

/// Waits until the snapshot is in this state.
async fn reached(testbed: &Testbed, what: &str, wanted: impl Fn(&SnapshotState) -> bool) {
    let reached = |status: &Status| wanted(&snapshot_of(status, BUILD)?.state).then_some(());
    testbed.wait(GUEST_LIFE, what, reached).await.expect("it gets there");
}

/// A testbed with one machine type, whose snapshot is being built.
async fn building(mut plan: Plan) -> Testbed {
    plan.host_lines.push("min_free_disk: 100M".to_owned());
    plan.machines.push(MachinePlan::new(BUILD).with("snapshot: true"));
    let testbed = Testbed::start(plan).await.expect("the testbed starts");
    let building = |state: &SnapshotState| matches!(state, SnapshotState::Building { .. });
    reached(&testbed, "a snapshot that is built", building).await;
    testbed
}

/// What the status says of the snapshot's trouble, as soon as there is any.
async fn trouble(testbed: &Testbed) -> String {
    let why = |status: &Status| snapshot_of(status, BUILD)?.trouble.clone();
    testbed.wait(GUEST_LIFE, "a word about it", why).await.expect("it is told")
}

/// Waits until the job is over, as it should be.
async fn succeeded(testbed: &Testbed, job: JobId) -> FinishedRun {
    let run = testbed.finished(job, GUEST_LIFE).await.expect("the job ends");
    let done = testbed.sim.wait_completed(job, Duration::from_secs(10)).await.expect("it is over");
    assert_eq!(done.conclusion, Some(Conclusion::Success));
    run
}

/// From the beginning of a snapshot's build, when the base image is imported first: none is taken for complete, the
/// status says what is the matter, a job that comes meanwhile waits, and when there is room again, the job is served
/// and the snapshot is built.
#[tokio::test]
async fn a_full_disk_delays_a_snapshot() {
    let Some((plan, xfs)) = plan_on_xfs("full-snapshot") else { return };
    let mut testbed = building(plan).await;
    let unmovable = ["somebody-elses", "more-of-it"].map(|name| xfs.path().join(name));
    fill(&unmovable[0], NOT_ENOUGH);

    let why = trouble(&testbed).await;
    assert!(why.contains("disk full") || why.contains("No space left"), "{why}");
    // What the build had written is gone again.
    fill(&unmovable[1], NOT_ENOUGH);
    let job = testbed.queue(BUILD, QueuedJob::push("patient", &["echo served"])).expect("queued");
    let waits = |status: &Status| {
        let machine = status.view.machines.iter().find(|m| m.name.to_string() == BUILD)?;
        format!("{:?}", machine.waiting).contains("Disk").then_some(())
    };
    testbed.wait(GUEST_LIFE, "a job that waits for room", waits).await.expect("it waits");
    let complete = complete_snapshots(&testbed);
    assert!(complete.is_empty(), "unfinished snapshots are taken for complete: {complete:?}");

    for file in unmovable {
        std::fs::remove_file(file).expect("removed");
    }
    succeeded(&testbed, job).await;
    reached(&testbed, "the snapshot", |state| *state == SnapshotState::Ready).await;
    assert_clean(&testbed).await;
    testbed.stop_daemon().await.expect("it stops");
}

/// Only when the guest of the snapshot already boots: its RAM is a file, which cannot grow any more. The build fails and
/// is told of, a job is served from a cold boot in what the build gave back, and when there is room again, the
/// snapshot is built, and used.
#[tokio::test]
async fn a_disk_that_gets_full_under_a_snapshots_guest_costs_no_job() {
    let Some((plan, xfs)) = plan_on_xfs("full-guest") else { return };
    let mut testbed = building(plan).await;
    let snapshots = testbed.plan().base_dir().join("snapshots");
    until("the boot of the snapshot's guest", GUEST_LIFE, || written_to_ram(&snapshots) >= BOOTING)
        .await;
    let unmovable = xfs.path().join("somebody-elses");
    fill(&unmovable, NEXT_TO_NOTHING);

    let why = trouble(&testbed).await;
    assert!(why.contains("no room for its guest's memory"), "{why}");
    let job = testbed.queue(BUILD, QueuedJob::push("patient", &["echo served"])).expect("queued");
    let run = succeeded(&testbed, job).await;
    assert!(!run.restored, "{run:?}");
    let complete = complete_snapshots(&testbed);
    assert!(complete.is_empty(), "unfinished snapshots are taken for complete: {complete:?}");

    std::fs::remove_file(unmovable).expect("removed");
    reached(&testbed, "the snapshot", |state| *state == SnapshotState::Ready).await;
    let job = testbed.queue(BUILD, QueuedJob::push("quick", &["echo served"])).expect("queued");
    let run = succeeded(&testbed, job).await;
    assert!(run.restored, "{run:?}");
    assert_clean(&testbed).await;
    testbed.stop_daemon().await.expect("it stops");
}

/// How much of the file system the RAM takes of guests that are to become snapshots, in bytes.
fn written_to_ram(snapshots: &Path) -> u64 {
    let builds = std::fs::read_dir(snapshots).into_iter().flatten().flatten();
    let rams = builds.filter_map(|build| std::fs::metadata(build.path().join("ram")).ok());
    rams.map(|ram| ram.blocks() * 512).sum()
}
