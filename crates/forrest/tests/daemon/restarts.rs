//! The daemon is killed in each state of a run, and another program file takes over, as after an upgrade.
//! What the runner does is done by the simulator here: the guests never do anything.

use std::time::Duration;

use forrest_core::event::EndReason;
use forrest_core::model::Generation;
use forrest_testbed::Testbed;
use forrest_vm::run_dir::{RunDirState, classify, files};
use forrest_vm::{ShimClient, spawn_shim};
use github_sim::model::{ApiEffect, ApiFault, Conclusion, JobId, When};
use rustix::process::{Pid, Signal, kill_process};

use crate::hands::{about_to_keep_its_disk, generations, reached, runner_of, shut_down};
use crate::scene::{
    BUILD, STEP, booting, end, logged, plan, polled, queue, run_dir, testbed, until,
};

/// Pause between two looks at a supervisor's state.
const LOOK: Duration = Duration::from_millis(100);

/// Kills the daemon, and starts another one from a copy of the program.
async fn upgrade(testbed: &mut Testbed) {
    testbed.daemon.take().expect("a daemon").kill().await.expect("killed");
    let newer = testbed.plan().dir.join("forrest-newer");
    std::fs::copy(&testbed.plan().forrest, &newer).expect("copied");
    testbed.start_daemon_from(&newer).await.expect("the newer one starts");
}

/// Killed before GitHub answered: the job is served, and no runner but that is left.
#[tokio::test]
async fn while_it_prepares() {
    let Some(mut testbed) = testbed("restart-preparing").await else { return };
    let register = "actions/generate-runner-jitconfig-for-repo";
    testbed.sim.api_fault(ApiFault::new(register, ApiEffect::Hang, When::Always));
    queue(&testbed, BUILD, "patient");
    reached(&testbed, "preparing").await;
    testbed.daemon.take().expect("a daemon").kill().await.expect("killed");
    testbed.sim.clear_faults();
    testbed.start_daemon().await.expect("it starts again");
    let runner = booting(&testbed, BUILD).await;
    let alone = testbed
        .sim
        .wait_for_runners(|runners| runners.len() == 1 && runners[0].name == runner.as_str());
    tokio::time::timeout(STEP, alone).await.expect("no other runner is left");
    end(testbed).await;
}

/// Killed after it has started a supervisor, and before it has handed over the job configuration: the next
/// daemon hands it over.
#[tokio::test]
async fn before_the_job_configuration_is_handed_over() {
    let Some(mut testbed) = testbed("restart-handing-over").await else { return };
    queue(&testbed, BUILD, "patient");
    let runner = booting(&testbed, BUILD).await;
    testbed.daemon.take().expect("a daemon").kill().await.expect("killed");
    let dir = run_dir(&testbed, &runner);
    let mut shim = ShimClient::connect(&dir).await.expect("a supervisor");
    shim.kill("the story begins anew").await.expect("ended");
    until("its end", || matches!(classify(&dir), Ok(RunDirState::Over(_)))).await;
    // What a supervisor finds that was just started.
    let given = [files::SPEC, files::DISK, files::CLOUD_INIT, files::JOB_CONFIG];
    for entry in std::fs::read_dir(&dir).expect("the run's directory").flatten() {
        let name = entry.file_name();
        if !given.iter().any(|given| name == *given) && !name.to_string_lossy().ends_with(".json")
            || name == files::OUTCOME
        {
            std::fs::remove_file(entry.path()).expect("removed");
        }
    }
    spawn_shim(&testbed.plan().forrest, &dir).await.expect("a supervisor starts");
    let mut shim = ShimClient::connect(&dir).await.expect("a supervisor");
    let state = shim.status().await.expect("its state");
    assert_eq!(state.times.job_config_attached_at, None);
    let (_, mut events) = shim.watch().await.expect("its events");
    testbed.start_daemon().await.expect("it starts again");
    let go = async {
        let mut shim = ShimClient::connect(&dir).await.expect("a supervisor");
        while shim.status().await.expect("its state").times.job_config_attached_at.is_none() {
            // Whatever happens: then it is looked at again.
            let _ = tokio::time::timeout(LOOK, events.next()).await;
        }
    };
    tokio::time::timeout(STEP, go).await.expect("it is handed over");
    end(testbed).await;
}

/// Killed while a job runs: the same guest goes on, the job ends as if nothing had happened.
#[tokio::test]
async fn while_a_job_runs() {
    let Some(mut testbed) = testbed("restart-busy").await else { return };
    let job = queue(&testbed, BUILD, "long");
    let runner = booting(&testbed, BUILD).await;
    let hands = runner_of(&testbed, &runner);
    let assignment = hands.next_job().await.expect("the job");
    hands.pick_up(&assignment).expect("picked up");
    assert_eq!(reached(&testbed, "busy").await, runner);
    upgrade(&mut testbed).await;
    assert_eq!(reached(&testbed, "busy").await, runner);
    hands.complete(&assignment, Conclusion::Success).expect("completed");
    assert_eq!(reached(&testbed, "finishing").await, runner);
    let job = testbed.sim.job(job).expect("the job");
    assert_eq!(
        (job.conclusion, job.runner_name.as_deref()),
        (Some(Conclusion::Success), Some(runner.as_str()))
    );
    end(testbed).await;
}

/// Killed while a runner that is too many is being removed: it is removed, and then its guest is.
#[tokio::test]
async fn while_a_runner_is_removed() {
    let Some(mut plan) = plan("restart-removing") else { return };
    plan.machines.iter_mut().for_each(|machine| machine.lines.push("idle_timeout: 1s".to_owned()));
    let mut testbed = Testbed::start(plan).await.expect("the testbed starts");
    polled(&testbed).await;
    let delete = "actions/delete-self-hosted-runner-from-repo";
    testbed.sim.api_fault(ApiFault::new(delete, ApiEffect::Hang, When::Always));
    queue(&testbed, BUILD, "stopped");
    let runner = booting(&testbed, BUILD).await;
    testbed.client().drain(true).await.expect("drained");
    testbed.client().stop(&runner).await.expect("stopped");
    reached(&testbed, "deregistering").await;
    upgrade(&mut testbed).await;
    testbed.client().drain(true).await.expect("drained");
    testbed.sim.clear_faults();
    let gone = testbed
        .sim
        .wait_for_runners(|runners| runners.iter().all(|one| one.name != runner.as_str()));
    tokio::time::timeout(STEP, gone).await.expect("the runner is removed");
    end(testbed).await;
}

/// Killed while a disk becomes a machine image: it becomes one, once.
#[tokio::test]
async fn while_a_disk_is_promoted() {
    let Some(plan) = plan("restart-promoting") else { return };
    let Some((mut testbed, job, runner)) = about_to_keep_its_disk(plan).await else { return };
    shut_down(&testbed, &runner).await;
    reached(&testbed, "promoting").await;
    testbed.daemon.take().expect("a daemon").kill().await.expect("killed");
    becomes_an_image_once(testbed, job).await;
}

/// Killed while a disk is read back: it has heard of the guest's end, and gets no further. The next one reads
/// the disk, and it becomes a machine image once.
#[tokio::test]
async fn while_a_disk_is_read_back() {
    let Some(plan) = plan("restart-reading-back") else { return };
    let Some((mut testbed, job, runner)) = about_to_keep_its_disk(plan).await else { return };
    let daemon = testbed.daemon.take().expect("a daemon");
    let pid = daemon.pid().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
    // Nothing is done from here on.
    kill_process(pid.expect("a process id"), Signal::STOP).expect("stopped");
    shut_down(&testbed, &runner).await;
    let outcome = run_dir(&testbed, &runner).join("outcome.json");
    until("the guest's end", || outcome.exists()).await;
    daemon.kill().await.expect("killed");
    becomes_an_image_once(testbed, job).await;
}

/// Another daemon finds the disk of the job's run, and the one after that nothing to do.
async fn becomes_an_image_once(mut testbed: Testbed, job: JobId) {
    testbed.sim.clear_faults();
    testbed.start_daemon().await.expect("it starts again");

    let run = testbed.finished(job, STEP).await.expect("the run is settled");
    assert_eq!((run.end, run.result), (EndReason::GuestShutdown, Some(Generation(1))));
    upgrade(&mut testbed).await;
    assert_eq!(generations(&testbed), 1);
    end(testbed).await;
}

/// The host restarts while a disk is about to become a machine image: what it lacks nobody knows, so it is
/// removed at once, and said why. Later tries would end in the same way.
#[tokio::test]
async fn a_disk_from_before_a_restart_of_the_host_is_given_up_at_once() {
    let Some(plan) = plan("restart-host") else { return };
    let Some((mut testbed, job, runner)) = about_to_keep_its_disk(plan).await else { return };
    shut_down(&testbed, &runner).await;
    reached(&testbed, "promoting").await;
    testbed.daemon.take().expect("a daemon").kill().await.expect("killed");
    let record = run_dir(&testbed, &runner).join("disk.json");
    let text = std::fs::read_to_string(&record).expect("the disk's record");
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("this boot's id");
    assert!(text.contains(boot.trim()), "{text}");
    let earlier = text.replace(boot.trim(), "5eed5eed-0000-4000-8000-000000000000");
    std::fs::write(&record, earlier).expect("written");
    testbed.sim.clear_faults();
    testbed.start_daemon().await.expect("it starts again");

    let run = testbed.finished(job, STEP).await.expect("the run is settled");
    assert_eq!((run.end, run.result), (EndReason::GuestShutdown, None));
    logged(&testbed, "the host was restarted after the run").await;
    assert_eq!(generations(&testbed), 0);
    end(testbed).await;
}
