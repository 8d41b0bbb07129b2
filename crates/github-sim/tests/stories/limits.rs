//! Request budgets and entity tags.

use std::time::Duration;

use github_sim::model::{JobSpec, Settings, Workflow};
use reqwest::Method;

use crate::client::{GitHub, REPO, Start};

fn left(answer: &crate::client::Answer) -> u64 {
    answer.header("x-ratelimit-remaining").parse().expect("a number")
}

#[tokio::test]
async fn an_unchanged_answer_is_free() {
    let github = GitHub::start("an_unchanged_answer_is_free").await;
    let token = github.token().await;
    let path = format!("/repos/{REPO}/actions/runs?status=queued");
    let first = github.get(&token, &path).await;
    first.expect(200);
    let tag = first.header("etag").to_owned();
    let again = |tag: String| {
        let (github, token, path) = (github.clone(), token.clone(), path.clone());
        async move {
            github.try_ask(Method::GET, &path, Some(&token), None, Some(&tag)).await.expect("one")
        }
    };
    let unchanged = again(tag.clone()).await;
    assert_eq!((unchanged.status, unchanged.body.len()), (304, 0));
    assert_eq!(left(&unchanged), left(&first));
    assert_eq!(unchanged.header("etag"), tag);
    let flow = Workflow::push().job(JobSpec::new("a").runs_on(["x"]));
    github.sim.queue_workflow(REPO, flow).expect("queued");
    let changed = again(tag).await;
    changed.expect(200);
    assert_eq!(left(&changed), left(&first) - 1);
}

#[tokio::test]
async fn a_budget_is_used_up_and_comes_back() {
    let settings = Settings { rate_limit: 3, ..Settings::default() };
    let start = Start { settings, ..Start::default() };
    let github = GitHub::start_with("a_budget_is_used_up_and_comes_back", start).await;
    let token = github.token().await;
    let path = format!("/repos/{REPO}/actions/runs");
    for remaining in [2, 1, 0] {
        let answer = github.get(&token, &path).await;
        answer.expect(200);
        assert_eq!(left(&answer), remaining);
    }
    let refused = github.get(&token, &path).await;
    refused.expect(403);
    assert_eq!(left(&refused), 0);
    let reset: u64 = refused.header("x-ratelimit-reset").parse().expect("a number");
    assert!(reset > github.sim.now().secs());
    // Asking for the budget is free.
    let shown = github.get(&token, "/rate_limit").await.expect(200);
    assert_eq!(shown["resources"]["core"]["remaining"], 0);
    // The App itself has another budget.
    github.as_app(Method::GET, "/app").await.expect(200);
    github.sim.advance(Duration::from_secs(3600));
    let token = github.token().await;
    github.get(&token, &path).await.expect(200);
}
