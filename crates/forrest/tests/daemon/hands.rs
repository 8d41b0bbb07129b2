//! What a guest and its runner do, done in their place: the guests of these stories never do anything.

use std::path::Path;
use std::process::Command;

use forrest_core::model::RunnerName;
use forrest_daemon::control::Status;
use forrest_testbed::{OBEYS, PERSISTENCE_TOKEN, Plan, Testbed, obedient_image};
use forrest_vm::client::ShimClient;
use github_sim::model::{ApiEffect, ApiFault, Assignment, Conclusion, JobId, When};
use github_sim::runner::VirtualRunner;

use crate::scene::{BUILD, STEP, booting, polled, queue, run_dir, until};

/// Waits until a run is in this state.
pub async fn reached(testbed: &Testbed, state: &str) -> RunnerName {
    let found = |status: &Status| {
        let run = status.view.runs.iter().find(|run| run.state == state)?;
        Some(run.runner.clone())
    };
    testbed.wait(STEP, &format!("a run that is {state}"), found).await.expect("it gets there")
}

/// The runner of a guest that does nothing, connected in its place.
pub fn runner_of(testbed: &Testbed, runner: &RunnerName) -> VirtualRunner {
    let disk = std::fs::read(run_dir(testbed, runner).join("job-config.img")).expect("a disk");
    // The only long piece of Base64 on it.
    let is_text = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/=".contains(byte);
    let pieces = disk.split(|byte| !is_text(byte));
    let jit_config = pieces.max_by_key(|piece| piece.len()).expect("a piece");
    let jit_config = std::str::from_utf8(jit_config).expect("ASCII");
    testbed.sim.connect_runner(jit_config).expect("GitHub knows the runner")
}

/// A story whose job runs. The runner is gone when it is dropped.
pub async fn with_a_job(plan: Plan) -> (Testbed, JobId, RunnerName, VirtualRunner, Assignment) {
    std::fs::write(&plan.guest_image, obedient_image()).expect("an image");
    let testbed = Testbed::start(plan).await.expect("the testbed starts");
    polled(&testbed).await;
    let job = queue(&testbed, BUILD, "its own");
    let runner = booting(&testbed, BUILD).await;
    let hands = runner_of(&testbed, &runner);
    let assignment = hands.next_job().await.expect("the job");
    hands.pick_up(&assignment).expect("picked up");
    (testbed, job, runner, hands, assignment)
}

/// A story whose job has ended with success and left the token: its guest waits for the power button. GitHub
/// does not say what started the job, so that the disk waits for that before it becomes an image.
pub async fn about_to_keep_its_disk(plan: Plan) -> Option<(Testbed, JobId, RunnerName)> {
    if Command::new("mcopy").arg("-V").output().is_err() {
        let missing = "mtools are missing: `make setup` installs them";
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{missing}");
        eprintln!("NOT TESTED: {missing}");
        return None;
    }
    let (testbed, job, runner, hands, assignment) = with_a_job(plan).await;
    leave_token(&testbed.plan().dir, &run_dir(&testbed, &runner).join("job-config.img"));
    hands.complete(&assignment, Conclusion::Success).expect("completed");
    reached(&testbed, "finishing").await;
    let ask = "actions/get-workflow-run";
    testbed.sim.api_fault(ApiFault::new(ask, ApiEffect::Hang, When::Always));
    Some((testbed, job, runner))
}

/// The guest of [`about_to_keep_its_disk`] shuts itself down.
pub async fn shut_down(testbed: &Testbed, runner: &RunnerName) {
    // A button that is pressed while the firmware still runs is not minded by anybody.
    let console = run_dir(testbed, runner).join("log.txt");
    let is_up = || std::fs::read_to_string(&console).is_ok_and(|text| text.contains(OBEYS));
    until("the guest's coming up", is_up).await;
    let mut shim = ShimClient::connect(&run_dir(testbed, runner)).await.expect("a supervisor");
    shim.power_down().await.expect("the button is pressed");
}

/// The files of [`BUILD`]'s generations.
pub fn generations(testbed: &Testbed) -> usize {
    let images = testbed.plan().base_dir().join("machines").join(BUILD);
    let entries = std::fs::read_dir(images).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "img"))
        .count()
}

/// Writes the persistence token onto a job-config disk, as a job does.
pub fn leave_token(dir: &Path, disk: &Path) {
    let token = dir.join("token");
    std::fs::write(&token, PERSISTENCE_TOKEN).expect("written");
    let copied = Command::new("mcopy").arg("-oi").arg(disk).arg(&token).arg("::persist").status();
    assert!(copied.expect("mcopy runs").success(), "the token cannot be written");
}
