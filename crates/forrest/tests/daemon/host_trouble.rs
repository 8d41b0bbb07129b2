//! The host fails: its disk is full, its base directory is read-only or gone, its configuration is deleted,
//! its QEMU is killed.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use forrest_core::event::EndReason;
use forrest_core::model::{Bytes, Generation};
use forrest_daemon::control::Status;
use forrest_testbed::processes::{self, Process};
use forrest_testbed::{MachinePlan, Testbed, filling_image};
use github_sim::model::Conclusion;
use rustix::fs::FallocateFlags;

use crate::hands::{about_to_keep_its_disk, generations, reached, shut_down, with_a_job};
use crate::scene::{
    BUILD, STEP, booting, clean, empty_plan, end, logged, plan, polled, queue, refusal, testbed,
};

/// A file system in memory, until it is dropped.
struct SmallFs(PathBuf);

impl SmallFs {
    /// `None`, said loudly, where nothing can be mounted.
    fn mount(at: &Path, size: Bytes) -> Option<Self> {
        std::fs::create_dir_all(at).expect("a mount point");
        let options = format!("size={}", size.0);
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "forrest-test"]).arg(at);
        if !mount.status().is_ok_and(|status| status.success()) {
            let missing = "mounting a file system needs root";
            assert!(std::env::var("CI").as_deref() != Ok("true"), "{missing}");
            eprintln!("NOT TESTED: {missing}");
            return None;
        }
        Some(Self(at.to_owned()))
    }

    fn remount(&self, options: &str) {
        let options = format!("remount,{options}");
        let mounted = Command::new("mount").args(["-o", &options]).arg(&self.0).status();
        assert!(mounted.expect("mount runs").success(), "{options} is refused");
    }
}

impl Drop for SmallFs {
    fn drop(&mut self) {
        // Lazily: whoever uses it may be about to let go.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// A file that takes room.
fn ballast(path: &Path, size: Bytes) {
    std::fs::create_dir_all(path.parent().expect("below the base")).expect("a directory");
    let file = File::create(path).expect("a new file");
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, size.0).expect("room for it");
}

/// Takes all the room that is left on the file system of `path`.
fn fill(path: &Path) {
    let mut file = File::create(path).expect("a new file");
    let page = [0xff; 4096];
    while std::io::Write::write_all(&mut file, &page).is_ok() {}
}

/// A guest fills the host's disk: what may go is removed, then the guest is paused, people are told why,
/// and when there is room again, it goes on by itself to its end.
#[tokio::test]
async fn a_full_disk_costs_time_only() {
    let Some(mut plan) = empty_plan("full-disk") else { return };
    let Some(fs) = SmallFs::mount(&plan.base_dir(), Bytes::mib(400)) else { return };
    std::fs::write(&plan.guest_image, filling_image()).expect("an image");
    plan.host_lines.push("min_free_disk: 60M".to_owned());
    let machine =
        MachinePlan::new(BUILD).with("ram: 128M").with("disk: 128M").with("boot_timeout: 5m");
    let testbed = Testbed::start(plan.with(machine)).await.expect("the testbed starts");
    polled(&testbed).await;
    let runs = fs.0.join("runs").join(BUILD).join("forrest-build-0000000000000000");
    let log = runs.join("log.txt");
    ballast(&log, Bytes::mib(40));
    File::create(runs.join("over")).expect("a finished run");
    let unmovable = fs.0.join("somebody-elses");
    ballast(&unmovable, Bytes::mib(290));

    queue(&testbed, BUILD, "fills its disk");
    let paused = |status: &Status| status.view.runs.iter().find_map(|run| run.paused.clone());
    let why = testbed.wait(STEP, "a paused guest", paused).await.expect("it is paused");
    assert!(why.contains("disk is full") && why.contains("goes on by itself"), "{why}");
    logged(&testbed, "removing the logs of finished runs").await;
    logged(&testbed, "Forrest has nothing left that may go").await;
    assert!(!log.exists(), "the log of a finished run is still there");

    testbed.client().drain(true).await.expect("drained");
    std::fs::remove_file(unmovable).expect("removed");
    let ended = |status: &Status| status.view.finished.first().map(|run| run.end);
    let end_reason = testbed.wait(STEP, "the guest's end", ended).await.expect("it goes on");
    assert_eq!(end_reason, EndReason::GuestShutdown);
    end(testbed).await;
}

/// The host's disk is full when a job's disk is to become a machine image: no half of an image is left, it is
/// told and tried again, and as soon as there is room, it becomes one.
#[tokio::test]
async fn a_full_disk_delays_a_promotion() {
    let Some(mut plan) = plan("full-promotion") else { return };
    let Some(fs) = SmallFs::mount(&plan.base_dir(), Bytes::mib(200)) else { return };
    plan.host_lines.push("min_free_disk: 8M".to_owned());
    let Some((testbed, job, runner)) = about_to_keep_its_disk(plan).await else { return };
    shut_down(&testbed, &runner).await;
    reached(&testbed, "promoting").await;
    let unmovable = fs.0.join("somebody-elses");
    fill(&unmovable);
    testbed.sim.clear_faults();
    let told = |status: &Status| {
        let hindrance = status.view.runs.iter().find_map(|run| run.hindrance.as_ref())?;
        (hindrance.contains("could not keep the disk, trying again")
            && hindrance.contains("No space left"))
        .then_some(())
    };
    testbed.wait(STEP, "a word about it", told).await.expect("it is told");
    assert_eq!(generations(&testbed), 0);

    std::fs::remove_file(unmovable).expect("removed");
    let run = testbed.finished(job, STEP).await.expect("the run is settled");
    assert_eq!((run.end, run.result), (EndReason::GuestShutdown, Some(Generation(1))));
    assert_eq!(generations(&testbed), 1);
    end(testbed).await;
}

#[tokio::test]
async fn a_daemon_says_that_its_base_directory_is_read_only() {
    let Some(plan) = plan("read-only") else { return };
    let Some(fs) = SmallFs::mount(&plan.base_dir(), Bytes::mib(64)) else { return };
    let testbed = Testbed::prepare(plan).await.expect("the testbed is prepared");
    fs.remount("ro");
    let said = refusal(&testbed.config());
    for word in ["Read-only file system", &fs.0.display().to_string()] {
        assert!(said.contains(word), "{word:?} is not in {said:?}");
    }
}

/// A base directory that goes away while the daemon runs, as a file system does that is unmounted: no other
/// one is made in its place, and when it is back, waiting jobs are served.
#[tokio::test]
async fn a_base_directory_that_is_gone_is_waited_for() {
    let Some(mut plan) = plan("base-gone") else { return };
    plan.polling_interval = "5s".to_owned();
    let testbed = Testbed::start(plan).await.expect("the testbed starts");
    polled(&testbed).await;
    let (base, away) = (testbed.plan().base_dir(), testbed.plan().dir.join("away"));
    std::fs::rename(&base, &away).expect("moved away");
    queue(&testbed, BUILD, "patient");
    logged(&testbed, "is gone, or empty: is its file system mounted?").await;
    assert!(!base.exists(), "another base directory was made");
    std::fs::rename(&away, &base).expect("moved back");
    booting(&testbed, BUILD).await;
    end(testbed).await;
}

#[tokio::test]
async fn a_configuration_that_is_deleted_stays_in_force() {
    let Some(testbed) = testbed("config-deleted").await else { return };
    let text = std::fs::read(testbed.config()).expect("the configuration");
    std::fs::remove_file(testbed.config()).expect("removed");
    logged(&testbed, "cannot be used; the configuration stays as it was").await;
    queue(&testbed, BUILD, "served all the same");
    booting(&testbed, BUILD).await;
    std::fs::write(testbed.config(), text).expect("written");
    end(testbed).await;
}

/// QEMU is killed, as the kernel does when the host is out of memory: the run is settled with that as its
/// reason, and the job, not yet taken, is served by another one.
#[tokio::test]
async fn a_killed_qemu_costs_one_run_only() {
    let Some(testbed) = testbed("qemu-killed").await else { return };
    queue(&testbed, BUILD, "patient");
    let runner = booting(&testbed, BUILD).await;
    kill_qemu_of(runner.as_str());
    let lost = |status: &Status| {
        let run = status.view.finished.iter().find(|run| run.runner == runner)?;
        Some((run.end, run.detail.clone().unwrap_or_default()))
    };
    let (end_reason, detail) = testbed.wait(STEP, "the end of the run", lost).await.expect("told");
    assert_eq!(end_reason, EndReason::QemuFailed);
    assert!(detail.contains("QEMU") && detail.contains("out of memory"), "{detail}");
    assert_ne!(booting(&testbed, BUILD).await, runner);
    end(testbed).await;
}

/// The same while a job runs: that one is over for GitHub when it has not heard from its runner for some time.
/// Its disk is not kept, people are told what happened, and the next job gets a guest of its own.
#[tokio::test]
async fn a_killed_qemu_costs_its_own_job_only() {
    let Some(mut plan) = plan("qemu-killed-busy") else { return };
    plan.sim.settings.lost_timeout = std::time::Duration::from_secs(2);
    let (testbed, job, runner, hands, _) = with_a_job(plan).await;
    let next = queue(&testbed, BUILD, "next");
    let other = |status: &Status| {
        let mut booting = status.view.runs.iter().filter(|run| run.state == "booting");
        booting.find(|run| run.runner != runner).map(|run| run.runner.clone())
    };
    let other = testbed.wait(STEP, "another guest", other).await.expect("it boots");
    kill_qemu_of(runner.as_str());
    // It was in there.
    drop(hands);
    let run = testbed.finished(job, STEP).await.expect("the run is settled");
    assert_eq!((run.end, run.result), (EndReason::QemuFailed, None));
    let detail = run.detail.unwrap_or_default();
    assert!(detail.contains("out of memory"), "{detail}");
    assert_eq!(generations(&testbed), 0);
    let done = testbed.sim.wait_completed(job, STEP).await.expect("GitHub gives it up");
    assert_ne!(done.conclusion, Some(Conclusion::Success));
    assert_eq!(testbed.sim.job(next).expect("the next job").status, "queued");
    assert_eq!(booting(&testbed, BUILD).await, other);
    end(testbed).await;
}

/// Kills the QEMU whose command line names the runner.
fn kill_qemu_of(runner: &str) {
    let ours = |process: &Process| process.is_qemu() && process.arguments.contains(runner);
    let all = processes::all().expect("processes");
    let found: Vec<u32> = all.filter(ours).map(|process| process.pid).collect();
    assert_eq!(found.len(), 1, "QEMU of {runner}: {found:?}");
    let pid = i32::try_from(found[0]).ok().and_then(rustix::process::Pid::from_raw);
    let pid = pid.expect("a process id");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
}

/// Logs of finished runs do not pile up.
#[tokio::test]
async fn only_so_many_finished_runs_are_kept() {
    let Some(mut plan) = plan("housekeeping") else { return };
    plan.host_lines.push("keep_runs: 2".to_owned());
    let testbed = Testbed::start(plan).await.expect("the testbed starts");
    polled(&testbed).await;
    for number in 1..=4 {
        let job = queue(&testbed, BUILD, "short");
        let runner = booting(&testbed, BUILD).await;
        testbed.client().drain(true).await.expect("drained");
        testbed.sim.cancel(testbed.sim.job(job).expect("it").run_id, true).expect("cancelled");
        testbed.client().stop(&runner).await.expect("stopped");
        clean(&testbed).await;
        testbed.client().drain(false).await.expect("resumed");
        let runs = testbed.plan().base_dir().join("runs").join(BUILD);
        let kept = || std::fs::read_dir(&runs).expect("runs").count();
        let settled = async {
            while kept() != number.min(2) {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        let settled = tokio::time::timeout(STEP, settled).await;
        assert!(settled.is_ok(), "{} runs are kept after {number}", kept());
    }
    end(testbed).await;
}
