//! Runners through the API.

use github_sim::model::{JobSpec, Workflow};
use reqwest::Method;
use serde_json::json;

use crate::client::{GitHub, REPO, jit_path, registration};

#[tokio::test]
async fn a_runner_is_registered_found_and_deleted() {
    let github = GitHub::start("a_runner_is_registered_found_and_deleted").await;
    let token = github.token().await;
    let labels = ["self-hosted", "forrest", "build"];
    let body = registration("forrest-build-0123456789abcdef", &labels);
    let made = github.ask(Method::POST, &jit_path(), Some(&token), Some(&body)).await.expect(201);
    assert_eq!(made["runner"]["status"], "offline");
    let named: Vec<_> = made["runner"]["labels"].as_array().expect("labels").clone();
    assert_eq!(named.iter().map(|label| &label["name"]).collect::<Vec<_>>(), labels);
    github.ask(Method::POST, &jit_path(), Some(&token), Some(&body)).await.expect(409);

    let runners = format!("/repos/{REPO}/actions/runners");
    let path = format!("{runners}?name=forrest-build-0123456789abcdef");
    let found = github.get(&token, &path).await.expect(200);
    assert_eq!(found["total_count"], 1);
    let id = found["runners"][0]["id"].as_u64().expect("an id");
    assert_eq!(
        github.get(&token, &format!("{runners}?name=x")).await.expect(200)["total_count"],
        0
    );
    assert_eq!(
        github.get(&token, &format!("{runners}/{id}/labels")).await.expect(200)["total_count"],
        3
    );
    let config = made["encoded_jit_config"].as_str().expect("a config");
    let runner = github.sim.connect_runner(config).expect("connected");
    let one = github.get(&token, &format!("{runners}/{id}")).await.expect(200);
    assert_eq!((&one["status"], &one["busy"]), (&"online".into(), &false.into()));
    let path = format!("{runners}/{id}");
    github.ask(Method::DELETE, &path, Some(&token), None).await.expect(204);
    github.ask(Method::DELETE, &path, Some(&token), None).await.expect(404);
    assert!(runner.next_job().await.is_err(), "it is told");
    github.check_requests();
}

#[tokio::test]
async fn a_busy_runner_is_not_deleted() {
    let github = GitHub::start("a_busy_runner_is_not_deleted").await;
    let token = github.token().await;
    let config = github.register(&token, "r", &["x"]).await;
    let runner = github.sim.connect_runner(&config).expect("connected");
    let flow = Workflow::push().job(JobSpec::new("a").runs_on(["x"]));
    github.sim.queue_workflow(REPO, flow).expect("queued");
    let path = format!("/repos/{REPO}/actions/runners/{}", runner.id());
    // Given, not yet picked up; then running.
    github.ask(Method::DELETE, &path, Some(&token), None).await.expect(422);
    let given = runner.next_job().await.expect("a job");
    runner.pick_up(&given).expect("picked up");
    let shown = github.get(&token, &path).await.expect(200);
    assert_eq!(shown["busy"], true);
    github.ask(Method::DELETE, &path, Some(&token), None).await.expect(422);
    assert!(github.sim.remove_runner(runner.id()).is_err());
}

#[tokio::test]
async fn a_wrong_registration_is_refused() {
    let github = GitHub::start("a_wrong_registration_is_refused").await;
    let token = github.token().await;
    let many: Vec<String> = (0..101).map(|i| format!("l{i}")).collect();
    for body in [
        json!({}),
        json!({"name": "", "runner_group_id": 1, "labels": ["x"]}),
        json!({"name": "r", "runner_group_id": 1, "labels": []}),
        json!({"name": "r", "runner_group_id": 1, "labels": many}),
        json!({"name": "r", "labels": ["x"]}),
        json!({"name": "r".repeat(65), "runner_group_id": 1, "labels": ["x"]}),
    ] {
        github.ask(Method::POST, &jit_path(), Some(&token), Some(&body)).await.expect(422);
    }
    let body = json!({"name": "r", "runner_group_id": 2, "labels": ["x"]});
    github.ask(Method::POST, &jit_path(), Some(&token), Some(&body)).await.expect(404);
    assert!(github.sim.runners().is_empty());
}

#[tokio::test]
async fn runner_downloads_name_the_stand_in() {
    let github = GitHub::start("runner_downloads_name_the_stand_in").await;
    let token = github.token().await;
    let path = format!("/repos/{REPO}/actions/runners/downloads");
    let all = github.get(&token, &path).await.expect(200);
    let x64 = &all[0];
    assert_eq!((&x64["os"], &x64["architecture"]), (&"linux".into(), &"x64".into()));
    let url = x64["download_url"].as_str().expect("an address");
    let file = github.http.get(url).send().await.expect("a file").bytes().await.expect("bytes");
    assert_eq!(x64["sha256_checksum"], github_sim::runner::runner_tarball().sha256);
    assert_eq!(file, github_sim::runner::runner_tarball().bytes);
}
