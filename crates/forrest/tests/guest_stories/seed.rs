//! The diagram: src, machine, run.

use forrest_core::event::EndReason;
use forrest_core::model::{Generation, ImageRef};
use forrest_testbed::{KEEP_DISK, MachinePlan, QueuedJob, Testbed};

use crate::scene::{GUEST_LIFE, assert_clean, plan};

const BUILD: &str = "acme/widgets/build";
const TEST: &str = "acme/widgets/test";

/// A job of the main branch leaves its disk behind; a pull request uses it and cannot change it;
/// another machine type starts from it.
#[tokio::test]
async fn images_evolve_as_in_the_diagram() {
    let Some(plan) = plan("diagram") else { return };
    let plan = plan.with(MachinePlan::new(BUILD)).with(MachinePlan::based_on(TEST, BUILD));
    let testbed = Testbed::start(plan).await.expect("the testbed starts");

    let install = ["echo left by a | sudo tee /opt/left", KEEP_DISK];
    let a = testbed.queue(BUILD, QueuedJob::push("a", &install)).expect("queued");
    let a = testbed.finished(a, GUEST_LIFE).await.expect("job a ends");
    assert!(matches!(a.start_image.map(|start| start.image), Some(ImageRef::Src { .. })));
    assert_eq!((a.end, a.result), (EndReason::GuestShutdown, Some(Generation(1))));

    let change = ["cat /opt/left && echo changed | sudo tee /opt/left", KEEP_DISK];
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
}
