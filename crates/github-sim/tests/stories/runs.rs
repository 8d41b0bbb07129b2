//! Workflow runs and jobs as the API shows them.

use std::time::Duration;

use github_sim::model::{Conclusion, JobSpec, Permissions, Workflow, default_permissions};
use github_sim::{Sim, WorkflowIds};
use reqwest::Method;
use serde_json::Value;

use crate::client::{GitHub, REPO, Start};
use crate::receiver::Receiver;

const LABELS: [&str; 3] = ["self-hosted", "forrest", "build"];

fn job(name: &str) -> JobSpec {
    JobSpec::new(name).runs_on(LABELS).step("echo hello")
}

/// Runs one job with a virtual runner.
async fn run_one(github: &GitHub, token: &str, name: &str, how: Conclusion) {
    let config = github.register(token, name, &LABELS).await;
    let runner = github.sim.connect_runner(&config).expect("connected");
    runner.run_one(how).await.expect("done");
}

fn statuses(sim: &Sim, ids: &WorkflowIds) -> Vec<&'static str> {
    ids.jobs.iter().map(|(_, id)| sim.job(*id).expect("a job").status).collect()
}

#[tokio::test]
async fn a_run_is_listed_by_its_status() {
    let github = GitHub::start("a_run_is_listed_by_its_status").await;
    let token = github.token().await;
    let runs = format!("/repos/{REPO}/actions/runs");
    let flow = Workflow::push().job(job("a")).job(job("b"));
    let ids = github.sim.queue_workflow(REPO, flow).expect("queued");
    let listed = |status: &'static str| {
        let (github, token, runs) = (github.clone(), token.clone(), runs.clone());
        async move {
            let path = format!("{runs}?status={status}&per_page=100");
            github.get(&token, &path).await.expect(200)["total_count"].as_u64()
        }
    };
    assert_eq!((listed("queued").await, listed("in_progress").await), (Some(1), Some(0)));
    run_one(&github, &token, "one", Conclusion::Success).await;
    // A queued job inside a run that is in progress.
    assert_eq!((listed("queued").await, listed("in_progress").await), (Some(0), Some(1)));
    let jobs = github.get(&token, &format!("{runs}/{}/jobs?filter=latest", ids.run)).await;
    let jobs = jobs.expect(200);
    assert_eq!(jobs["jobs"][0]["status"], "completed");
    assert_eq!(jobs["jobs"][1]["status"], "queued");
    assert_eq!(jobs["jobs"][0]["runner_name"], "one");
    assert_eq!(jobs["jobs"][1]["runner_name"], Value::Null);
    run_one(&github, &token, "two", Conclusion::Failure).await;
    assert_eq!((listed("completed").await, listed("failure").await), (Some(1), Some(1)));
    let run = github.get(&token, &format!("{runs}/{}", ids.run)).await.expect(200);
    assert_eq!((&run["status"], &run["conclusion"]), (&"completed".into(), &"failure".into()));
    github.get(&token, &format!("{runs}/1")).await.expect(404);
    github.get(&token, &format!("{runs}/{}/attempts/2/jobs", ids.run)).await.expect(404);
    github.check_requests();
}

#[tokio::test]
async fn lists_come_in_pages_and_by_date() {
    let github = GitHub::start("lists_come_in_pages_and_by_date").await;
    let token = github.token().await;
    for _ in 0..5 {
        let flow = Workflow::push().job(job("a"));
        github.sim.queue_workflow(REPO, flow).expect("queued");
        github.sim.advance(Duration::from_secs(60));
    }
    let mut path = format!("/repos/{REPO}/actions/runs?per_page=2&status=queued");
    let mut seen = Vec::new();
    loop {
        let answer = github.get(&token, &path).await;
        let page = answer.expect(200);
        let runs = page["workflow_runs"].as_array().expect("runs");
        seen.extend(runs.iter().map(|run| run["id"].as_u64().expect("an id")));
        let next = answer
            .header("link")
            .split(", ")
            .find_map(|link| link.strip_suffix("; rel=\"next\""))
            .map(|link| link.trim_matches(['<', '>']).to_owned());
        match next {
            Some(next) => path = next.strip_prefix(&github.sim.url()).expect("ours").to_owned(),
            None => break,
        }
    }
    assert_eq!(seen.len(), 5);
    assert!(seen.is_sorted_by(|a, b| a > b), "latest first: {seen:?}");

    let since = github.sim.now().skewed(-150).iso();
    let path = format!("/repos/{REPO}/actions/runs?created=%3E%3D{since}");
    let recent = github.get(&token, &path).await.expect(200);
    assert_eq!(recent["total_count"], 2);
    let path = format!("/repos/{REPO}/actions/runs?created=soon");
    github.get(&token, &path).await.expect(422);
}

#[tokio::test]
async fn needs_are_waited_for() {
    let mut hooks = Receiver::unix();
    let start = Start { hook: Some(hooks.target.clone()), ..Start::default() };
    let github = GitHub::start_with("needs_are_waited_for", start).await;
    let token = github.token().await;
    let flow =
        Workflow::push().job(job("a")).job(job("b").needs("a")).job(job("c").needs("b").needs("a"));
    let ids = github.sim.queue_workflow(REPO, flow).expect("queued");
    assert_eq!(statuses(&github.sim, &ids), ["queued", "blocked", "blocked"]);
    let path = format!("/repos/{REPO}/actions/runs/{}/jobs", ids.run);
    assert_eq!(github.get(&token, &path).await.expect(200)["total_count"], 1);
    run_one(&github, &token, "one", Conclusion::Success).await;
    assert_eq!(statuses(&github.sim, &ids), ["completed", "queued", "blocked"]);
    run_one(&github, &token, "two", Conclusion::Failure).await;
    assert_eq!(statuses(&github.sim, &ids), ["completed", "completed", "completed"]);
    let skipped = github.sim.job(ids.job("c")).expect("it");
    assert_eq!(skipped.conclusion, Some(Conclusion::Skipped));
    // The trap: no `queued` before, and no labels.
    for _ in 0..6 {
        hooks.next().await;
    }
    let last = hooks.next().await;
    assert_eq!(last.what().0, "completed");
    assert_eq!(last.payload["workflow_job"]["conclusion"], "skipped");
    assert_eq!(last.payload["workflow_job"]["labels"], serde_json::json!([]));
    assert!(hooks.is_empty());
}

#[tokio::test]
async fn a_gated_job_is_queued_twice() {
    let mut hooks = Receiver::tcp().await;
    let start = Start { hook: Some(hooks.target.clone()), ..Start::default() };
    let github = GitHub::start_with("a_gated_job_is_queued_twice", start).await;
    let token = github.token().await;
    let flow =
        Workflow::push().job(job("a").environment("production")).job(job("b").environment("x"));
    let ids = github.sim.queue_workflow(REPO, flow).expect("queued");
    let first = hooks.next().await;
    assert_eq!(first.what(), ("queued".into(), "waiting".into()));
    assert_eq!(first.payload["deployment"]["environment"], "production");
    assert_eq!(hooks.next_what().await, ("waiting".into(), "waiting".into()));
    hooks.next().await;
    hooks.next().await;
    let path = format!("/repos/{REPO}/actions/jobs/{}", ids.job("a"));
    assert_eq!(github.get(&token, &path).await.expect(200)["status"], "waiting");
    github.sim.advance(Duration::from_secs(100));
    github.sim.approve(ids.job("a"), true).expect("approved");
    github.sim.approve(ids.job("b"), false).expect("rejected");
    let again = hooks.next().await;
    assert_eq!(again.what(), ("queued".into(), "queued".into()));
    for time in ["created_at", "started_at"] {
        assert_eq!(again.payload["workflow_job"][time], first.payload["workflow_job"][time]);
    }
    assert_eq!(hooks.next_what().await, ("completed".into(), "completed".into()));
    assert!(github.sim.approve(ids.job("a"), true).is_err());
    assert_eq!(github.get(&token, &path).await.expect(200)["status"], "queued");
}

#[tokio::test]
async fn a_rerun_tells_of_finished_jobs_again() {
    let mut hooks = Receiver::tcp().await;
    let start = Start { hook: Some(hooks.target.clone()), ..Start::default() };
    let github = GitHub::start_with("a_rerun_tells_of_finished_jobs_again", start).await;
    let token = github.token().await;
    let flow = Workflow::push().job(job("good")).job(job("bad"));
    let ids = github.sim.queue_workflow(REPO, flow).expect("queued");
    assert!(github.sim.rerun(ids.run, false).is_err(), "it is not over");
    run_one(&github, &token, "one", Conclusion::Success).await;
    run_one(&github, &token, "two", Conclusion::Failure).await;
    for _ in 0..6 {
        hooks.next().await;
    }
    let again = github.sim.rerun(ids.run, true).expect("run again");
    assert_eq!(again.job("good"), ids.job("good"));
    assert_ne!(again.job("bad"), ids.job("bad"));
    let told = hooks.next().await;
    assert_eq!(told.what().0, "completed");
    assert_eq!(told.payload["workflow_job"]["id"], ids.job("good").0);
    let queued = hooks.next().await;
    assert_eq!(queued.what().0, "queued");
    assert_eq!(queued.payload["workflow_job"]["run_attempt"], 2);
    let base = format!("/repos/{REPO}/actions/runs/{}", ids.run);
    let count = |path: String| {
        let (github, token) = (github.clone(), token.clone());
        async move { github.get(&token, &path).await.expect(200)["total_count"].as_u64() }
    };
    assert_eq!(count(format!("{base}/jobs")).await, Some(2));
    assert_eq!(count(format!("{base}/jobs?filter=all")).await, Some(3));
    assert_eq!(count(format!("{base}/attempts/1/jobs")).await, Some(2));
    assert_eq!(github.get(&token, &base).await.expect(200)["run_attempt"], 2);
    run_one(&github, &token, "three", Conclusion::Success).await;
    github.sim.rerun(ids.run, false).expect("run again");
    assert_eq!(github.get(&token, &base).await.expect(200)["status"], "queued");
}

#[tokio::test]
async fn runs_are_cancelled_through_the_api() {
    let mut permissions: Permissions = default_permissions();
    permissions.insert("actions".into(), "write".into());
    let start = Start { permissions: Some(permissions), ..Start::default() };
    let github = GitHub::start_with("runs_are_cancelled_through_the_api", start).await;
    let token = github.token().await;
    let flow = || Workflow::push().job(job("a"));
    let ids = github.sim.queue_workflow(REPO, flow()).expect("queued");
    let cancel = |run, how: &str| format!("/repos/{REPO}/actions/runs/{run}/{how}");
    let path = cancel(ids.run, "cancel");
    github.ask(Method::POST, &path, Some(&token), None).await.expect(202);
    github.ask(Method::POST, &path, Some(&token), None).await.expect(409);
    let view = github.sim.job(ids.job("a")).expect("it");
    assert_eq!(view.conclusion, Some(Conclusion::Cancelled));

    let ids = github.sim.queue_workflow(REPO, flow()).expect("queued");
    let config = github.register(&token, "r", &LABELS).await;
    let runner = github.sim.connect_runner(&config).expect("connected");
    let given = runner.next_job().await.expect("a job");
    runner.pick_up(&given).expect("picked up");
    let path = cancel(ids.run, "force-cancel");
    github.ask(Method::POST, &path, Some(&token), None).await.expect(202);
    let view = github.sim.job(ids.job("a")).expect("it");
    assert_eq!(view.conclusion, Some(Conclusion::Cancelled));
    assert!(github.sim.runners().is_empty());
    github.check_requests();
}

#[tokio::test]
async fn logs_are_elsewhere() {
    let github = GitHub::start("logs_are_elsewhere").await;
    let token = github.token().await;
    let flow = Workflow::push().job(job("a").secret("TOKEN", "hunter2"));
    let ids = github.sim.queue_workflow(REPO, flow).expect("queued");
    let config = github.register(&token, "r", &LABELS).await;
    let runner = github.sim.connect_runner(&config).expect("connected");
    let given = runner.next_job().await.expect("a job");
    assert_eq!(given.env["TOKEN"], "hunter2");
    runner.pick_up(&given).expect("picked up");
    runner.log(&given, "the secret is hunter2\n");
    runner.complete(&given, Conclusion::Success).expect("done");
    let path = format!("/repos/{REPO}/actions/jobs/{}/logs", ids.job("a"));
    let answer = github.get(&token, &path).await;
    assert_eq!(answer.status, 302);
    let text = github.http.get(answer.header("location")).send().await.expect("a log");
    let text = text.text().await.expect("a text");
    assert!(text.ends_with("Z the secret is ***\n"), "{text}");
}

#[tokio::test]
async fn forks_see_no_secrets() {
    let github = GitHub::start("forks_see_no_secrets").await;
    let token = github.token().await;
    let flow = Workflow::pull_request_from_fork().job(job("a").secret("TOKEN", "hunter2"));
    let ids = github.sim.queue_workflow(REPO, flow).expect("queued");
    let config = github.register(&token, "r", &LABELS).await;
    let runner = github.sim.connect_runner(&config).expect("connected");
    let given = runner.next_job().await.expect("a job");
    assert_eq!(given.env["TOKEN"], "");
    assert_eq!(given.env["GITHUB_REF"], "refs/pull/1/merge");
    let run = github.get(&token, &format!("/repos/{REPO}/actions/runs/{}", ids.run)).await;
    let run = run.expect(200);
    assert_eq!(run["event"], "pull_request");
    assert_eq!(run["head_repository"]["full_name"], "stranger/hello");
    assert_eq!(run["head_repository"]["fork"], true);
}
