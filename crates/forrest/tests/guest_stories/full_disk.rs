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
const NOT_ENOUGH: u64 = 80 << 20;
/// Room for a few words of the daemon's and the shim's own.
const NEXT_TO_NOTHING: u64 = 2 << 20;
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

/// From the beginning of a snapshot's build, when the base image is imported first.
#[tokio::test]
async fn a_full_disk_delays_a_snapshot() {
    delayed("full-snapshot", NOT_ENOUGH, |_| true).await;
}

/// Its guest has begun to boot: it writes to its disk, and to its RAM, which is a file, too.
#[tokio::test]
async fn a_disk_that_gets_full_under_the_guest_delays_its_snapshot() {
    let boots = |testbed: &Testbed| {
        let builds = std::fs::read_dir(testbed.plan().base_dir().join("snapshots"));
        let consoles = builds.expect("a directory").flatten().map(|b| b.path().join("log.txt"));
        let kernel = b"Linux version";
        let boots = |log: Vec<u8>| log.windows(kernel.len()).any(|words| words == kernel);
        consoles.filter_map(|console| std::fs::read(console).ok()).any(boots)
    };
    delayed("full-guest", NEXT_TO_NOTHING, boots).await;
}

/// The disk gets full when a snapshot's build has come so far: none is taken for complete, the status says what is the
/// matter, a job that comes meanwhile waits, and when there is room again, the job is served and the snapshot is
/// built.
async fn delayed(story: &str, left: u64, so_far: impl Fn(&Testbed) -> bool) {
    let Some((mut plan, xfs)) = plan_on_xfs(story) else { return };
    plan.host_lines.push("min_free_disk: 100M".to_owned());
    plan.machines.push(MachinePlan::new(BUILD).with("snapshot: true"));
    let mut testbed = Testbed::start(plan).await.expect("the testbed starts");
    let building = |status: &Status| {
        let state = &snapshot_of(status, BUILD)?.state;
        (matches!(state, SnapshotState::Building { .. }) && so_far(&testbed)).then_some(())
    };
    testbed.wait(GUEST_LIFE, "a snapshot that is built", building).await.expect("it is begun");
    let unmovable = xfs.path().join("somebody-elses");
    fill(&unmovable, left);

    let why = |status: &Status| snapshot_of(status, BUILD)?.trouble.clone();
    let why = testbed.wait(GUEST_LIFE, "a word about it", why).await.expect("it is told");
    assert!(["disk full", "No space left", "no room"].iter().any(|w| why.contains(w)), "{why}");
    let job = testbed.queue(BUILD, QueuedJob::push("patient", &["echo served"])).expect("queued");
    let waits = |status: &Status| {
        let machine = status.view.machines.iter().find(|m| m.name.to_string() == BUILD)?;
        format!("{:?}", machine.waiting).contains("Disk").then_some(())
    };
    testbed.wait(GUEST_LIFE, "a job that waits for room", waits).await.expect("it waits");
    let complete = complete_snapshots(&testbed);
    assert!(complete.is_empty(), "unfinished snapshots are taken for complete: {complete:?}");

    std::fs::remove_file(unmovable).expect("removed");
    testbed.finished(job, GUEST_LIFE).await.expect("the job ends");
    let done = testbed.sim.wait_completed(job, Duration::from_secs(10)).await.expect("it is over");
    assert_eq!(done.conclusion, Some(Conclusion::Success));
    let ready =
        |status: &Status| (snapshot_of(status, BUILD)?.state == SnapshotState::Ready).then_some(());
    testbed.wait(GUEST_LIFE, "the snapshot", ready).await.expect("it is built");
    assert_clean(&testbed).await;
    testbed.stop_daemon().await.expect("it stops");
}
