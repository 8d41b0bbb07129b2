//! Guests that do not do what they should.

use std::io::Write;
use std::time::Duration;

use forrest_core::event::EndReason;
use forrest_testbed::{MachinePlan, QueuedJob, Testbed};

use crate::scene::{GUEST_LIFE, assert_clean, debian, plan};

const BUILD: &str = "acme/widgets/build";

/// An image whose boot sector hangs: the run ends with its reason, nothing is left of it, and the job
/// still gets its runner once the image is mended.
#[tokio::test]
async fn a_guest_that_never_boots_is_given_up_and_its_job_is_served_again() {
    let Some(mut plan) = plan("never-boots") else { return };
    let good = plan.guest_image.clone();
    let image = plan.dir.join("image.raw");
    std::fs::create_dir_all(&plan.dir).expect("a directory");
    std::fs::write(&image, forrest_testbed::hanging_image()).expect("an image");
    plan.guest_image.clone_from(&image);
    let machine = MachinePlan::new(BUILD).with("boot_timeout: 5s");
    let mut testbed = Testbed::start(plan.with(machine)).await.expect("the testbed starts");

    let job = testbed.queue(BUILD, QueuedJob::push("patient", &["echo at last"])).expect("queued");
    let given_up = |status: &forrest_daemon::control::Status| {
        let run = status.view.finished.first()?;
        Some((run.end, run.result))
    };
    let end =
        testbed.wait(GUEST_LIFE, "the end of the first run", given_up).await.expect("it ends");
    assert_eq!(end, (EndReason::BootTimeout, None));
    let trouble =
        testbed.client().status().await.expect("a status").view.machines[0].trouble.clone();
    assert!(trouble.is_some_and(|text| text.contains("did not become ready")));

    // A new image in place of the old one, and time to boot it.
    let config = std::fs::read_to_string(testbed.config()).expect("the configuration");
    let config = config
        .replace(&*image.to_string_lossy(), &good.to_string_lossy())
        .replace("boot_timeout: 5s", "boot_timeout: 5m");
    std::fs::File::create(testbed.config())
        .and_then(|mut file| file.write_all(config.as_bytes()))
        .expect("a new configuration");

    let done = testbed.sim.wait_completed(job, GUEST_LIFE).await.expect("the job runs");
    assert_eq!(done.status, "completed");
    assert!(testbed.sim.job_log(job).expect("a log").contains("at last"));
    assert_clean(&testbed).await;
    testbed.stop_daemon().await.expect("it stops");
}

/// A job that reboots its guest: the run ends, the disk is not kept although the token was left.
#[tokio::test]
async fn a_guest_that_reboots_is_not_kept() {
    let Some(testbed) = debian("reboots", &[BUILD]).await else { return };
    let reboot = [forrest_testbed::KEEP_DISK, "echo b | sudo tee /proc/sysrq-trigger; sleep 60"];
    let job = testbed.queue(BUILD, QueuedJob::push("reboots", &reboot)).expect("queued");
    let reset = |status: &forrest_daemon::control::Status| {
        let run = status.view.runs.iter().find(|run| run.job.is_some_and(|id| id.0 == job.0));
        let gone = status.view.finished.iter().any(|run| run.end == EndReason::GuestReset);
        (gone || run.is_some_and(|run| run.times.vm_exited.is_some())).then_some(())
    };
    testbed.wait(GUEST_LIFE, "the reset", reset).await.expect("the guest resets");
    // GitHub gives the lost runner up after 15 minutes; this one's clock can be put forward.
    testbed.sim.advance(Duration::from_secs(16 * 60));
    let run = testbed.finished(job, GUEST_LIFE).await.expect("the run is settled");
    assert_eq!((run.end, run.result), (EndReason::GuestReset, None));
    assert_clean(&testbed).await;
}
