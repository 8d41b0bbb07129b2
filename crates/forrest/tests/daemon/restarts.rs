//! The daemon is killed in each state of a run, and another program file takes over, as after an upgrade.
//! What the runner does is done by the simulator here: the guests never do anything.

use std::path::{Path, PathBuf};
use std::process::Command;

use forrest_core::event::EndReason;
use forrest_core::model::{Generation, RunnerName};
use forrest_daemon::control::Status;
use forrest_testbed::{PERSISTENCE_TOKEN, Testbed, obedient_image};
use forrest_vm::client::ShimClient;
use github_sim::model::{ApiEffect, ApiFault, Conclusion, When};
use github_sim::runner::VirtualRunner;

use crate::scene::{BUILD, STEP, booting, end, plan, polled, queue, testbed};

/// Kills the daemon, and starts another one from a copy of the program.
async fn upgrade(testbed: &mut Testbed) {
    testbed.daemon.take().expect("a daemon").kill().await.expect("killed");
    let newer = testbed.plan().dir.join("forrest-newer");
    std::fs::copy(&testbed.plan().forrest, &newer).expect("copied");
    testbed.start_daemon_from(&newer).await.expect("the newer one starts");
}

/// Waits until a run is in this state.
async fn reached(testbed: &Testbed, state: &str) -> RunnerName {
    let found = |status: &Status| {
        let run = status.view.runs.iter().find(|run| run.state == state)?;
        Some(run.runner.clone())
    };
    testbed.wait(STEP, &format!("a run that is {state}"), found).await.expect("it gets there")
}

fn run_dir(testbed: &Testbed, runner: &RunnerName) -> PathBuf {
    testbed.plan().base_dir().join("runs").join(BUILD).join(runner.as_str())
}

/// The runner of a guest that does nothing, connected in its place.
fn runner_of(testbed: &Testbed, runner: &RunnerName) -> VirtualRunner {
    let disk = std::fs::read(run_dir(testbed, runner).join("job-config.img")).expect("a disk");
    // The only long piece of Base64 on it.
    let is_text = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/=".contains(byte);
    let pieces = disk.split(|byte| !is_text(byte));
    let jit_config = pieces.max_by_key(|piece| piece.len()).expect("a piece");
    let jit_config = std::str::from_utf8(jit_config).expect("ASCII");
    testbed.sim.connect_runner(jit_config).expect("GitHub knows the runner")
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
    if Command::new("mcopy").arg("-V").output().is_err() {
        let missing = "mtools are missing: `make setup` installs them";
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{missing}");
        eprintln!("NOT TESTED: {missing}");
        return;
    }
    std::fs::write(&plan.guest_image, obedient_image()).expect("an image");
    let mut testbed = Testbed::start(plan).await.expect("the testbed starts");
    polled(&testbed).await;
    let job = queue(&testbed, BUILD, "keeps its disk");
    let runner = booting(&testbed, BUILD).await;
    let hands = runner_of(&testbed, &runner);
    let assignment = hands.next_job().await.expect("the job");
    hands.pick_up(&assignment).expect("picked up");
    let dir = run_dir(&testbed, &runner);
    leave_token(&testbed.plan().dir, &dir.join("job-config.img"));
    hands.complete(&assignment, Conclusion::Success).expect("completed");
    reached(&testbed, "finishing").await;

    // GitHub does not say what started the job: the disk waits for it.
    let ask = "actions/get-workflow-run";
    testbed.sim.api_fault(ApiFault::new(ask, ApiEffect::Hang, When::Always));
    let mut shim = ShimClient::connect(&dir).await.expect("a supervisor");
    shim.power_down().await.expect("the button is pressed");
    reached(&testbed, "promoting").await;
    testbed.daemon.take().expect("a daemon").kill().await.expect("killed");
    testbed.sim.clear_faults();
    testbed.start_daemon().await.expect("it starts again");

    let run = testbed.finished(job, STEP).await.expect("the run is settled");
    assert_eq!((run.end, run.result), (EndReason::GuestShutdown, Some(Generation(1))));
    upgrade(&mut testbed).await;
    let images = testbed.plan().base_dir().join("machines").join(BUILD);
    let count = std::fs::read_dir(images)
        .expect("images")
        .flatten()
        .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "img"));
    assert_eq!(count.count(), 1);
    end(testbed).await;
}

/// Writes the persistence token onto a job-config disk, as a job does.
fn leave_token(dir: &Path, disk: &Path) {
    let token = dir.join("token");
    std::fs::write(&token, PERSISTENCE_TOKEN).expect("written");
    let copied = Command::new("mcopy").arg("-oi").arg(disk).arg(&token).arg("::persist").status();
    assert!(copied.expect("mcopy runs").success(), "the token cannot be written");
}
