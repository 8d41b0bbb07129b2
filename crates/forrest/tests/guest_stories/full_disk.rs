//! The host's disk is full while real guests boot.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use forrest_core::snapshots::SnapshotState;
use forrest_daemon::control::Status;
use forrest_testbed::{MachinePlan, QueuedJob, Testbed};
use github_sim::model::Conclusion;

use crate::scene::{GUEST_LIFE, assert_clean, complete_snapshots, plan_on_xfs, snapshot_of};

const BUILD: &str = "acme/widgets/build";
/// What is left of the file system: less than half of what a snapshot takes.
const LEFT: u64 = 80 << 20;
/// How long a file system may take to say that it is full.
const ROUNDS_MAX: u32 = 100;

/// Takes all the room on the file system of `path` but [`LEFT`].
fn fill(path: &Path) {
    let file = File::create(path).expect("a new file");
    let mut len = 0;
    for _ in 0..ROUNDS_MAX {
        let free = rustix::fs::fstatvfs(&file).expect("its file system");
        let free = free.f_bavail * free.f_frsize;
        if free <= LEFT {
            return;
        }
        let flags = rustix::fs::FallocateFlags::empty();
        // A file system keeps some for itself.
        let more = (free - LEFT).min(2 << 30);
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

/// From the beginning of a snapshot's build, when the base image is imported first: none is taken for complete, the
/// status says what is the matter, a job that comes meanwhile waits, and when there is room again, the job is served
/// and the snapshot is built.
#[tokio::test]
async fn a_full_disk_delays_a_snapshot() {
    let Some((mut plan, xfs)) = plan_on_xfs("full-snapshot") else { return };
    plan.host_lines.push("min_free_disk: 100M".to_owned());
    plan.machines.push(MachinePlan::new(BUILD).with("snapshot: true"));
    let mut testbed = Testbed::start(plan).await.expect("the testbed starts");
    let building = |state: &SnapshotState| matches!(state, SnapshotState::Building { .. });
    reached(&testbed, "a snapshot that is built", building).await;
    let unmovable = ["somebody-elses", "more-of-it"].map(|name| xfs.path().join(name));
    fill(&unmovable[0]);

    let why = |status: &Status| snapshot_of(status, BUILD)?.trouble.clone();
    let why = testbed.wait(GUEST_LIFE, "a word about it", why).await.expect("it is told");
    assert!(why.contains("disk full") || why.contains("No space left"), "{why}");
    // What the build had written is gone again.
    fill(&unmovable[1]);
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
    testbed.finished(job, GUEST_LIFE).await.expect("the job ends");
    let done = testbed.sim.wait_completed(job, Duration::from_secs(10)).await.expect("it is over");
    assert_eq!(done.conclusion, Some(Conclusion::Success));
    reached(&testbed, "the snapshot", |state| *state == SnapshotState::Ready).await;
    assert_clean(&testbed).await;
    testbed.stop_daemon().await.expect("it stops");
}
