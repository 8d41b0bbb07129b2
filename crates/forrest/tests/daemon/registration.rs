//! GitHub refuses to register a runner, or its answer is lost.

use forrest_daemon::control::Status;
use github_sim::model::{ApiEffect, ApiFault, When};

use crate::scene::{BUILD, STEP, booting, end, queue, testbed};

const REGISTER: &str = "actions/generate-runner-jitconfig-for-repo";

/// The next registration fails in this way: `status` says so, the job is served afterwards, and there
/// is no runner but that of the run.
async fn served_after(story: &str, effect: ApiEffect, words: &[&str]) {
    let Some(testbed) = testbed(story).await else { return };
    testbed.sim.api_fault(ApiFault::new(REGISTER, effect, When::Next(1)));
    queue(&testbed, BUILD, "patient");
    let paused = |status: &Status| {
        let machine = status.view.machines.first()?;
        machine.trouble.clone().filter(|_| machine.failures > 0)
    };
    let said = testbed.wait(STEP, "a failed start", paused).await.expect("it is told");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in {said:?}");
    }
    let runner = booting(&testbed, BUILD).await;
    let alone = testbed.sim.wait_for_runners(|runners| {
        runners.len() == 1 && runners.iter().all(|one| one.name == runner.as_str())
    });
    tokio::time::timeout(STEP, alone).await.expect("no other runner is left");
    end(testbed).await;
}

#[tokio::test]
async fn refused() {
    served_after(
        "refused",
        ApiEffect::Status { status: 403 },
        &["may not register runners", "administration: write"],
    )
    .await;
}

#[tokio::test]
async fn failed() {
    served_after("failed", ApiEffect::Status { status: 502 }, &["502"]).await;
}

#[tokio::test]
async fn limited() {
    let effect = ApiEffect::SecondaryLimit { retry_after_s: Some(2) };
    // How many seconds are left depends on when the words are made; the client's own tests count them.
    served_after("limited", effect, &["asked for a pause", "Retry-After"]).await;
}

#[tokio::test]
async fn done_but_the_answer_was_lost() {
    served_after("lost", ApiEffect::LoseResponse, &[]).await;
}

#[tokio::test]
async fn done_but_the_answer_was_cut_off() {
    served_after("cut-off", ApiEffect::MalformedJson, &[]).await;
}
