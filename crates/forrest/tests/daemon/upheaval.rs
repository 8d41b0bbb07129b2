//! Daemons that die, webhooks that never come.

use forrest_daemon::control::Status;
use forrest_testbed::Testbed;
use github_sim::model::{WebhookEffect, WebhookFault, When};

use crate::scene::{BUILD, STEP, booting, end, plan, queue, testbed};

#[tokio::test]
async fn a_killed_daemons_run_is_taken_over() {
    let Some(mut testbed) = testbed("killed").await else { return };
    queue(&testbed, BUILD, "patient");
    let runner = booting(&testbed, BUILD).await;
    testbed.daemon.take().expect("a daemon").kill().await.expect("killed");
    testbed.start_daemon().await.expect("it starts again");
    assert_eq!(booting(&testbed, BUILD).await, runner);
    assert_eq!(testbed.client().status().await.expect("a status").view.runs.len(), 1);
    assert_eq!(testbed.sim.runners().len(), 1);
    end(testbed).await;
}

/// Killed as soon as GitHub knows the runner, whatever else was done by then: the next daemon serves
/// the job and leaves no other runner behind, for the run's name was on disk before GitHub heard it.
#[tokio::test]
async fn a_daemon_killed_right_after_a_registration_leaves_no_runner_behind() {
    let Some(mut testbed) = testbed("killed-early").await else { return };
    queue(&testbed, BUILD, "patient");
    let known = testbed.sim.wait_for_runners(|runners| !runners.is_empty());
    tokio::time::timeout(STEP, known).await.expect("a registration");
    testbed.daemon.take().expect("a daemon").kill().await.expect("killed");
    testbed.start_daemon().await.expect("it starts again");
    let runner = booting(&testbed, BUILD).await;
    let alone = testbed
        .sim
        .wait_for_runners(|runners| runners.len() == 1 && runners[0].name == runner.as_str());
    tokio::time::timeout(STEP, alone).await.expect("no other runner is left");
    end(testbed).await;
}

#[tokio::test]
async fn a_job_is_found_by_polling_when_no_webhook_comes() {
    let Some(mut plan) = plan("polling") else { return };
    plan.polling_interval = "5s".to_owned();
    let testbed = Testbed::start(plan).await.expect("the testbed starts");
    crate::scene::polled(&testbed).await;
    testbed.sim.webhook_fault(WebhookFault::new("*", WebhookEffect::Forget, When::Always));
    queue(&testbed, BUILD, "unheard of");
    booting(&testbed, BUILD).await;
    end(testbed).await;
}

#[tokio::test]
async fn webhooks_twice_and_out_of_order_make_one_run() {
    let Some(testbed) = testbed("double").await else { return };
    testbed.sim.webhook_fault(WebhookFault::new("*", WebhookEffect::Double, When::Always));
    queue(&testbed, BUILD, "told twice");
    booting(&testbed, BUILD).await;
    let one = |status: &Status| (status.view.runs.len() == 1).then_some(());
    testbed.wait(STEP, "one run", one).await.expect("one run");
    assert_eq!(testbed.client().status().await.expect("a status").view.jobs.len(), 1);
    end(testbed).await;
}
