//! The diagram: src, machine, run.

use forrest_core::event::EndReason;
use forrest_core::model::{Generation, ImageRef};
use forrest_testbed::{KEEP_DISK, MachinePlan, PERSISTENCE_TOKEN, QueuedJob, Testbed};

use crate::scene::{
    GUEST_LIFE, assert_clean, assert_no_secret_is_left, assert_secrets_of_a_run, plan,
};

const BUILD: &str = "acme/widgets/build";
const TEST: &str = "acme/widgets/test";

/// A job of the main branch leaves its disk behind; a pull request uses it and cannot change it, even with
/// the token;
/// another machine type starts from it.
#[tokio::test]
async fn images_evolve_as_in_the_diagram() {
    let Some(plan) = plan("diagram") else { return };
    let plan = plan.with(MachinePlan::new(BUILD)).with(MachinePlan::based_on(TEST, BUILD));
    let testbed = Testbed::start(plan).await.expect("the testbed starts");

    let install = ["echo left by a | sudo tee /opt/left", KEEP_DISK];
    let a = testbed.queue(BUILD, QueuedJob::push("a", &install)).expect("queued");
    let booting = |status: &forrest_daemon::control::Status| {
        status.view.runs.iter().any(|run| run.times.vm_started.is_some()).then_some(())
    };
    testbed.wait(GUEST_LIFE, "a booting guest", booting).await.expect("it boots");
    assert_secrets_of_a_run(&testbed);
    let a = testbed.finished(a, GUEST_LIFE).await.expect("job a ends");
    assert!(matches!(a.start_image.map(|start| start.image), Some(ImageRef::Src { .. })));
    assert_eq!((a.end, a.result), (EndReason::GuestShutdown, Some(Generation(1))));

    let lineage = testbed.plan().base_dir().join("machines").join(BUILD).join("000001.json");
    let lineage = std::fs::read(&lineage).expect("who caused the generation is on record");
    let lineage: serde_json::Value = serde_json::from_slice(&lineage).expect("JSON");
    let origin = |field: &str| lineage["origin"][field].as_str().unwrap_or_default().to_owned();
    assert_eq!(
        [origin("repository"), origin("event"), origin("head_branch"), origin("job_name")],
        ["acme/widgets", "push", "main", "a"]
    );
    assert_eq!(origin("head_sha").len(), 40, "{lineage}");
    assert!(lineage["origin"]["workflow_run"].is_u64() && lineage["origin"]["job"].is_u64());

    // Somebody from a fork who has got hold of the token.
    let steal = format!("printf '%s' {PERSISTENCE_TOKEN} > /home/runner/config/persist");
    let change = ["cat /opt/left && echo changed | sudo tee /opt/left", &steal];
    let b = testbed.queue(BUILD, QueuedJob::pull_request("b", &change)).expect("queued");
    let c = testbed.queue(TEST, QueuedJob::push("c", &["cat /opt/left"])).expect("queued");
    let first = ImageRef::Machine {
        machine: BUILD.parse().expect("a machine type"),
        generation: Generation(1),
    };
    for job in [b, c] {
        let run = testbed.finished(job, GUEST_LIFE).await.expect("the job ends");
        assert_eq!(run.start_image.map(|start| start.image).as_ref(), Some(&first));
        assert_eq!(run.result, None, "the disk of {job} was kept");
        let log = testbed.sim.job_log(job).expect("a log");
        assert!(log.contains("left by a"), "job {job} did not find what a left:\n{log}");
    }
    assert_clean(&testbed).await;
    assert_no_secret_is_left(&testbed).await;
}
