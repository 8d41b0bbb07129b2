//! Hosts that no webhook reaches, and webhooks that do not.

use std::time::Duration;

use forrest_core::model::Timestamp;
use forrest_daemon::control::Status;
use forrest_testbed::Testbed;
use github_sim::model::{WebhookEffect, WebhookFault, When};

use crate::scene::{BUILD, STEP, booting, end, forget_webhooks, plan, polled, queue};

/// The polling interval of these stories.
const INTERVAL: Duration = Duration::from_secs(5);
/// What a busy host may take besides.
const SLACK: Duration = Duration::from_secs(20);
/// Requests of one poll of a repository where nothing happens: its runs in five states, its runners.
const REQUESTS_PER_POLL: usize = 6;

async fn polling(story: &str) -> Option<Testbed> {
    let mut plan = plan(story)?;
    plan.polling_interval = format!("{}s", INTERVAL.as_secs());
    let testbed = Testbed::start(plan).await.expect("the testbed starts");
    polled(&testbed).await;
    Some(testbed)
}

/// Waits for so many polls.
async fn polls(testbed: &Testbed, count: usize) {
    let mut seen: Vec<Option<Timestamp>> = Vec::new();
    let counted = |status: &Status| {
        let at = status.view.repositories.first().and_then(|repository| repository.polled_at);
        if !seen.contains(&at) {
            seen.push(at);
        }
        // The first one is an old one.
        (seen.len() > count).then_some(())
    };
    testbed.wait(STEP, "some polls", counted).await.expect("it polls");
}

/// What `docs/github.md` says of a host without a public address: a job waits for the interval at most,
/// and where nothing happens, nothing counts against GitHub's limits but the look for lost webhooks.
#[tokio::test]
async fn polling_alone_is_cheap_and_serves_a_job_within_the_interval() {
    let Some(testbed) = polling("polling-alone").await else { return };
    forget_webhooks(&testbed);
    polls(&testbed, 1).await;
    testbed.sim.clear_requests();
    polls(&testbed, 3).await;
    let asked = testbed.sim.requests();
    let of_app = |operation: Option<&str>| operation.is_some_and(|name| name.starts_with("apps/"));
    let (app, repository): (Vec<_>, Vec<_>) = asked.iter().partition(|r| of_app(r.operation));
    let counted: Vec<_> = repository.iter().filter(|r| r.status != Some(304)).collect();
    assert!(counted.is_empty(), "not free: {counted:?}");
    // The fourth may have begun.
    let range = 3 * REQUESTS_PER_POLL..=4 * REQUESTS_PER_POLL;
    assert!(range.contains(&repository.len()), "{} requests in 3 polls", repository.len());
    assert!(app.len() <= 5, "{} looks for lost webhooks in 3 polls", app.len());

    testbed.sim.clear_requests();
    let job = queue(&testbed, BUILD, "unheard of");
    let runner = booting(&testbed, BUILD).await;
    let registered = testbed.sim.runners().into_iter().find(|found| found.name == runner.as_str());
    let registered = registered.expect("a runner").registered_at;
    let queued = testbed.sim.job(job).expect("the job").times.queued.expect("a time");
    let waited = registered.since(queued);
    println!("registered {waited:?} after the job was queued, polling every {INTERVAL:?}");
    assert!(waited <= INTERVAL + SLACK, "{waited:?}");
    let counted = testbed.sim.requests().into_iter().filter(|r| r.status != Some(304)).count();
    println!("{counted} requests counted until the guest booted");
    end(testbed).await;
}

/// A webhook that did not arrive is asked for again, and the log says so.
#[tokio::test]
async fn a_delivery_that_failed_is_asked_for_again() {
    let Some(testbed) = polling("redelivery").await else { return };
    testbed.sim.webhook_fault(WebhookFault::new("queued", WebhookEffect::Drop, When::Next(1)));
    queue(&testbed, BUILD, "late");
    booting(&testbed, BUILD).await;
    crate::scene::logged(&testbed, "1 webhooks had not arrived; GitHub sends them again").await;
    let redelivered = testbed.sim.requests().into_iter().any(|request| {
        request.operation == Some("apps/redeliver-webhook-delivery") && request.status == Some(202)
    });
    assert!(redelivered, "nothing was asked for again");
    // The job that it tells of is known already: it makes no second run.
    assert_eq!(testbed.client().status().await.expect("a status").view.runs.len(), 1);
    end(testbed).await;
}
