//! The client against a stateful GitHub: what happens to runners, jobs and deliveries, told as
//! stories. Every request of every story is checked against GitHub's own description of its API.

use std::time::Duration;

use forrest_core::model::{
    Conclusion, JobId, JobStatus, Labels, Repository, RunnerId, RunnerName, WorkflowRunId,
};
use forrest_github::webhook::{Event, Headers, Verifier};
use forrest_github::{Deletion, GitHub, GitHubConfig, GitHubError, RegisterError};
use github_sim::model::{
    ApiEffect, ApiFault, Hook, HookContent, JobSpec, Settings, WebhookEffect, WebhookFault, When,
    Workflow,
};
use github_sim::{AppHandle, AppSpec, Sim, SimConfig, WorkflowIds};
use secrecy::ExposeSecret;

use crate::http_server::{Reply, Server};

const JIT: &str = "actions/generate-runner-jitconfig-for-repo";
const DELETE: &str = "actions/delete-self-hosted-runner-from-repo";
const RUNNERS: &str = "actions/list-self-hosted-runners-for-repo";
const TOKEN: &str = "apps/create-installation-access-token";
const LABELS: [&str; 3] = ["self-hosted", "forrest", "build"];
const PATIENCE: Duration = Duration::from_secs(30);

struct Stage {
    sim: Sim,
    app: AppHandle,
    github: GitHub,
    repository: Repository,
}

impl Stage {
    async fn set() -> Self {
        Self::with(Settings::default(), "").await
    }

    /// `prefix`: what follows the host in `github.api_url`.
    async fn with(settings: Settings, prefix: &str) -> Self {
        let sim = Sim::start(SimConfig { settings, ..SimConfig::default() }).await.expect("a port");
        sim.add_repository("octo", "repo");
        let app = sim.add_app(AppSpec::default()).expect("a key");
        let github = GitHub::new(GitHubConfig {
            api_url: format!("{}{prefix}", sim.url()),
            app_id: app.id.to_string(),
            key_pem: app.private_key_pem.clone().into(),
            user_agent: "forrest-tests".to_owned(),
            changes_per_minute: 1000,
        });
        let github = github.expect("a sound configuration");
        Self { sim, app, github, repository: "octo/repo".parse().expect("a name") }
    }

    fn queue(&self, workflow: Workflow) -> WorkflowIds {
        let job = JobSpec::new("build").runs_on(LABELS).step("true");
        self.sim.queue_workflow("octo/repo", workflow.job(job)).expect("a sound workflow")
    }

    async fn register(&self, n: u64) -> Result<forrest_github::JitRegistration, RegisterError> {
        self.github.generate_jit_config(&self.repository, &name(n), &labels()).await
    }

    async fn status(&self, id: u64) -> Option<JobStatus> {
        let jobs = self.github.active_jobs(&self.repository).await.expect("jobs");
        assert!(jobs.complete);
        jobs.jobs.iter().find(|job| job.id == JobId(id)).map(|job| job.status)
    }

    fn fault(&self, operation: &str, effect: ApiEffect) {
        self.sim.api_fault(ApiFault::new(operation, effect, When::Next(1)));
    }

    fn count(&self, operation: &str) -> usize {
        self.sim.requests().iter().filter(|request| request.operation == Some(operation)).count()
    }

    /// The end of every story: each request was one that GitHub describes.
    fn check_contract(&self) {
        let Some(contract) = github_sim::contract::for_test("requests") else { return };
        let requests = self.sim.requests();
        assert!(!requests.is_empty());
        for request in requests {
            contract.check_request(&request).expect("a request that GitHub describes");
        }
    }
}

fn name(n: u64) -> RunnerName {
    format!("forrest-build-{n:0>16}").parse().expect("a name")
}

fn labels() -> Labels {
    LABELS.into_iter().collect()
}

#[tokio::test]
async fn a_runner_serves_one_job_and_is_gone() {
    let stage = Stage::set().await;
    let ids = stage.queue(Workflow::push());
    let job = ids.job("build");
    assert_eq!(stage.status(job.0).await, Some(JobStatus::Queued));

    let registration = stage.register(1).await.expect("a registration");
    assert!(labels().is_subset(&registration.labels));
    let found = stage.github.find_runner(&stage.repository, &name(1)).await.expect("an answer");
    let found = found.expect("a runner");
    assert_eq!((found.id, found.online, found.busy), (registration.runner_id, false, false));
    assert_eq!(found.forrest_name, Some(name(1)));

    let runner =
        stage.sim.connect_runner(registration.jit_config.expose_secret()).expect("a runner");
    let assignment = runner.next_job().await.expect("a job");
    runner.pick_up(&assignment).expect("it is ours");
    assert_eq!(stage.status(job.0).await, Some(JobStatus::InProgress));
    let read = stage.github.job(&stage.repository, JobId(job.0)).await.expect("an answer");
    assert_eq!(read.expect("a job").runner, Some(name(1)));
    let deletion = stage.github.delete_runner(&stage.repository, registration.runner_id).await;
    assert_eq!(deletion, Ok(Deletion::Busy));

    runner.complete(&assignment, github_sim::model::Conclusion::Failure).expect("it is ours");
    stage.sim.wait_completed(job, PATIENCE).await.expect("it ends");
    let read = stage.github.job(&stage.repository, JobId(job.0)).await.expect("an answer");
    let read = read.expect("a job");
    assert_eq!((read.status, read.conclusion), (JobStatus::Completed, Some(Conclusion::Failure)));
    let deletion = stage.github.delete_runner(&stage.repository, registration.runner_id).await;
    assert_eq!(deletion, Ok(Deletion::AlreadyGone));
    assert_eq!(stage.github.find_runner(&stage.repository, &name(1)).await, Ok(None));
    stage.check_contract();
}

#[tokio::test]
async fn polling_costs_nothing_while_nothing_happens_and_misses_nothing() {
    let stage = Stage::set().await;
    let job = stage.queue(Workflow::push()).job("build");
    assert_eq!(stage.status(job.0).await, Some(JobStatus::Queued));
    let spent = || {
        let limits = stage.github.rate_limits();
        let limit = limits.iter().find(|(installation, _)| installation.is_some());
        limit.and_then(|(_, limit)| limit.remaining).expect("GitHub says it")
    };
    let (before, sent) = (spent(), stage.sim.requests().len());
    for _ in 0..5 {
        assert_eq!(stage.status(job.0).await, Some(JobStatus::Queued));
        stage.github.list_runners(&stage.repository).await.expect("runners");
    }
    let sent = stage.sim.requests().split_off(sent);
    let (free, paid): (Vec<_>, Vec<_>) = sent.iter().partition(|r| r.status == Some(304));
    let paid: Vec<_> = paid.iter().map(|r| (r.operation, r.status)).collect();
    assert_eq!(paid, [(Some(RUNNERS), Some(200))], "only what was asked for the first time");
    assert_eq!(free.len(), 5 * 7 - 1);
    assert_eq!(spent(), before - 1);

    let registration = stage.register(1).await.expect("a registration");
    let runner =
        stage.sim.connect_runner(registration.jit_config.expose_secret()).expect("a runner");
    let assignment = runner.next_job().await.expect("a job");
    runner.pick_up(&assignment).expect("it is ours");
    assert_eq!(stage.status(job.0).await, Some(JobStatus::InProgress));
    let runners = stage.github.list_runners(&stage.repository).await.expect("runners");
    assert!(runners[0].busy && runners[0].online);
    stage.check_contract();
}

#[tokio::test]
async fn long_lists_are_read_to_their_end() {
    for prefix in ["", "/api/v3", "/api/v3/"] {
        let stage = Stage::with(Settings::default(), prefix).await;
        for n in 0..205 {
            stage.queue(Workflow::push());
            if n < 120 {
                stage.register(n).await.expect("a registration");
            }
        }
        let jobs = stage.github.active_jobs(&stage.repository).await.expect("jobs");
        assert_eq!((jobs.jobs.len(), jobs.complete), (205, true));
        let runners = stage.github.list_runners(&stage.repository).await.expect("runners");
        assert_eq!(runners.len(), 120);
        assert!(stage.sim.requests().iter().all(|request| request.operation.is_some()));
        let name = name(119);
        let found = stage.github.find_runner(&stage.repository, &name).await.expect("an answer");
        assert!(found.is_some_and(|runner| runner.forrest_name == Some(name)));
    }
}

#[tokio::test]
async fn a_wrong_clock_on_either_side_is_corrected() {
    for skew in [-3600, -120, 120, 700, 86_400] {
        let stage = Stage::set().await;
        stage.sim.set_faults(|faults| faults.clock_skew_s = skew);
        assert_eq!(stage.register(1).await.map(|_| ()), Ok(()), "{skew} s");
        assert!(
            (stage.github.clock_ahead_s() - skew).abs() <= 2,
            "{}",
            stage.github.clock_ahead_s()
        );
        stage.sim.set_faults(|faults| faults.clock_skew_s = 0);
        let app = stage.github.app().await.expect("corrected back");
        assert_eq!(app.id, Some(stage.app.id.0));
        assert_eq!((app.missing_permissions(), app.missing_events()), (Vec::new(), Vec::new()));
        assert_eq!(stage.count(JIT), 1);
        stage.check_contract();
    }
}

#[tokio::test]
async fn a_clock_that_is_right_is_not_blamed_for_a_wrong_key() {
    let stage = Stage::set().await;
    let mut config = crate::app_key::config(&stage.sim.url());
    config.app_id = stage.app.id.to_string();
    let github = GitHub::new(config).expect("a sound configuration");
    let error = github.app().await.expect_err("another App's key");
    assert!(matches!(error, GitHubError::Auth { status: 401, .. }), "{error:?}");
    assert!(error.to_string().contains("belong to the same App"), "{error}");
    assert_eq!(stage.sim.requests().len(), 1);
}

#[tokio::test]
async fn tokens_that_end_early_or_are_not_known_yet_are_no_trouble() {
    let lag = Settings { token_lag: Duration::from_millis(200), ..Settings::default() };
    let stage = Stage::with(lag, "").await;
    assert_eq!(stage.github.list_runners(&stage.repository).await, Ok(Vec::new()));
    assert_eq!((stage.count(TOKEN), stage.count(RUNNERS)), (1, 2));

    let stage = Stage::set().await;
    assert_eq!(stage.github.list_runners(&stage.repository).await, Ok(Vec::new()));
    stage.sim.expire_tokens();
    assert_eq!(stage.github.list_runners(&stage.repository).await, Ok(Vec::new()));
    assert_eq!(stage.count(TOKEN), 2);
    stage.check_contract();

    let long = Settings { token_length: 520, ..Settings::default() };
    let stage = Stage::with(long, "").await;
    assert_eq!(stage.github.list_runners(&stage.repository).await, Ok(Vec::new()));
}

#[tokio::test]
async fn limits_are_kept_to_the_second_and_without_asking() {
    let primary = ApiEffect::PrimaryLimit { reset_s: 300 };
    let asked = ApiEffect::SecondaryLimit { retry_after_s: Some(90) };
    let silent = ApiEffect::SecondaryLimit { retry_after_s: None };
    for (effect, seconds) in [(primary, 300), (asked, 90), (silent, 60)] {
        let stage = Stage::set().await;
        // The clocks differ: GitHub's times must not be read by this host's.
        stage.sim.set_faults(|faults| faults.clock_skew_s = 5000);
        stage.fault(JIT, effect);
        let error = stage.register(1).await.map(|_| ()).expect_err("a limit");
        let RegisterError::GitHub(GitHubError::RateLimited { wait, .. }) = error else {
            panic!("{error:?}");
        };
        assert!(wait.as_secs().abs_diff(seconds) <= 2, "{wait:?} instead of {seconds} s");
        let sent = stage.sim.requests().len();
        assert!(stage.register(1).await.is_err());
        assert!(stage.github.active_jobs(&stage.repository).await.is_err());
        assert_eq!(stage.sim.requests().len(), sent);
        stage.check_contract();
    }
}

#[tokio::test]
async fn a_used_up_budget_is_noticed_before_github_says_no() {
    let stage = Stage::with(Settings { rate_limit: 3, ..Settings::default() }, "").await;
    for _ in 0..3 {
        assert_eq!(stage.github.find_runner(&stage.repository, &name(1)).await, Ok(None));
    }
    let error = stage.github.find_runner(&stage.repository, &name(1)).await.expect_err("used up");
    assert!(error.until().is_some(), "{error:?}");
    assert!(error.to_string().contains("limit \"core\" of 3 requests is used up"), "{error}");
    assert!(stage.sim.requests().iter().all(|request| request.status != Some(403)));
}

#[tokio::test]
async fn a_registration_whose_answer_is_lost_is_found_and_removed() {
    for effect in [ApiEffect::LoseResponse, ApiEffect::MalformedJson] {
        let stage = Stage::set().await;
        stage.fault(JIT, effect);
        let lost = stage.register(1).await.map(|_| ());
        assert!(matches!(lost, Err(RegisterError::Unknown { .. })), "{lost:?}");
        assert_eq!(stage.count(JIT), 1, "the POST was repeated");
        let again = stage.register(1).await.map(|_| ());
        assert!(matches!(again, Err(RegisterError::NameTaken { .. })), "{again:?}");
        let found = stage.github.find_runner(&stage.repository, &name(1)).await.expect("an answer");
        let id = found.expect("it exists").id;
        assert_eq!(stage.github.delete_runner(&stage.repository, id).await, Ok(Deletion::Deleted));
        assert!(stage.register(1).await.is_ok());
        stage.check_contract();
    }
}

#[tokio::test]
async fn a_deletion_whose_answer_is_lost_can_be_repeated() {
    let stage = Stage::set().await;
    let id = stage.register(1).await.expect("a registration").runner_id;
    stage.fault(DELETE, ApiEffect::LoseResponse);
    let lost = stage.github.delete_runner(&stage.repository, id).await;
    assert!(matches!(lost, Err(GitHubError::Transient { .. })), "{lost:?}");
    assert_eq!(stage.github.delete_runner(&stage.repository, id).await, Ok(Deletion::AlreadyGone));
    let never = RunnerId(999_999);
    assert_eq!(
        stage.github.delete_runner(&stage.repository, never).await,
        Ok(Deletion::AlreadyGone)
    );
    stage.check_contract();
}

#[tokio::test]
async fn trouble_at_github_is_passing() {
    let stage = Stage::set().await;
    for status in [500, 502, 503, 504] {
        stage.fault("*", ApiEffect::Status { status });
        let error = stage.github.active_jobs(&stage.repository).await.expect_err("trouble");
        assert!(matches!(error, GitHubError::Transient { .. }) && error.is_passing(), "{error:?}");
        assert_eq!(
            stage.github.active_jobs(&stage.repository).await.map(|a| a.jobs),
            Ok(Vec::new())
        );
    }
    stage.fault(TOKEN, ApiEffect::LoseResponse);
    stage.sim.expire_tokens();
    let missing = stage.github.job(&stage.repository, JobId(1)).await.expect_err("no token");
    assert!(missing.is_passing(), "{missing:?}");
    assert_eq!(stage.github.job(&stage.repository, JobId(1)).await, Ok(None));
    let run = stage.github.workflow_run(&stage.repository, WorkflowRunId(1)).await;
    assert_eq!(run, Ok(None));
}

#[tokio::test]
async fn a_job_behind_an_approval_waits() {
    let stage = Stage::set().await;
    let job = JobSpec::new("deploy").runs_on(LABELS).step("true").environment("production");
    let ids = stage.sim.queue_workflow("octo/repo", Workflow::push().job(job)).expect("sound");
    let job = ids.job("deploy");
    assert_eq!(stage.status(job.0).await, Some(JobStatus::Waiting));
    stage.sim.approve(job, true).expect("it waits for that");
    assert_eq!(stage.status(job.0).await, Some(JobStatus::Queued));
    stage.check_contract();
}

#[tokio::test]
async fn where_a_workflow_run_comes_from_is_known() {
    let stage = Stage::set().await;
    let push = stage.queue(Workflow::push()).run;
    let fork = stage.queue(Workflow::pull_request_from_fork()).run;
    let facts = |run: u64| stage.github.workflow_run(&stage.repository, WorkflowRunId(run));
    let push = facts(push.0).await.expect("an answer").expect("a run");
    assert_eq!((push.event.as_deref(), push.from_fork), (Some("push"), false));
    assert_eq!(push.head_repository.as_ref(), Some(&stage.repository));
    let fork = facts(fork.0).await.expect("an answer").expect("a run");
    assert_eq!((fork.event.as_deref(), fork.from_fork), (Some("pull_request"), true));
    stage.check_contract();
}

#[tokio::test]
async fn a_suspended_installation_is_said_plainly_and_recovers() {
    let stage = Stage::set().await;
    assert!(stage.register(1).await.is_ok());
    let installation = stage.sim.installation(stage.app.id, "octo/repo").expect("it is installed");
    stage.sim.suspend(installation, true).expect("it exists");
    let error = stage.register(2).await.map(|_| ()).expect_err("suspended");
    assert!(error.to_string().contains("suspended"), "{error}");
    let there = stage.github.installation(&stage.repository).await.expect("an answer");
    assert!(there.suspended);
    stage.sim.suspend(installation, false).expect("it exists");
    assert!(stage.register(2).await.is_ok());
    let elsewhere: Repository = "octo/other".parse().expect("a name");
    let error = stage.github.list_runners(&elsewhere).await.expect_err("no such repository");
    assert!(error.to_string().contains("install the App on octo/other"), "{error}");
}

#[tokio::test]
async fn deliveries_that_failed_are_found_and_repeated_and_verified() {
    for content in [HookContent::Json, HookContent::Form] {
        let stage = Stage::set().await;
        let receiver = Server::start(|_| Reply::json(202, &serde_json::json!({}))).await;
        let target = format!("{}/webhook", receiver.url).parse().expect("an address");
        let secret = Some("a secret".to_owned());
        stage.sim.set_hook(stage.app.id, Some(Hook { target, secret, content }));
        stage.sim.webhook_fault(WebhookFault::new("queued", WebhookEffect::Drop, When::Next(1)));
        stage.queue(Workflow::push());
        let second = stage.queue(Workflow::push()).job("build");

        let window = Duration::from_secs(3600);
        let failed = loop {
            let failed = stage.github.failed_delivery_guids(window).await.expect("deliveries");
            let all = stage.github.deliveries(None).await.expect("deliveries").deliveries;
            if all.iter().filter(|delivery| delivery.event == "workflow_job").count() == 2 {
                break failed.failed;
            }
            tokio::task::yield_now().await;
        };
        assert_eq!(failed.len(), 1);
        assert_eq!((failed[0].action.as_deref(), failed[0].attempts), (Some("queued"), 1));
        stage.github.redeliver(failed[0].newest).await.expect("GitHub accepts");
        while !stage
            .github
            .failed_delivery_guids(window)
            .await
            .expect("deliveries")
            .failed
            .is_empty()
        {
            tokio::task::yield_now().await;
        }

        let verifier = Verifier::new(&["a secret".into()]).expect("a sound secret");
        let mut guids = Vec::new();
        for seen in receiver.seen() {
            let headers = Headers {
                signature: seen.headers.get("x-hub-signature-256").map(String::as_bytes),
                event: seen.headers.get("x-github-event").map(String::as_str),
                guid: seen.headers.get("x-github-delivery").map(String::as_str),
                content_type: seen.headers.get("content-type").map(String::as_str),
            };
            let delivery = verifier.verify(&headers, &seen.body).expect("GitHub signed it");
            let Event::WorkflowJob(event) = delivery.event else { continue };
            assert_eq!((event.job.status, event.job.labels), (JobStatus::Queued, labels()));
            guids.push((delivery.guid, event.job.id));
        }
        assert_eq!(guids.len(), 2);
        assert_eq!(guids[0].1, JobId(second.0), "the first one was lost");
        assert_eq!(guids[1].0, failed[0].guid);
        stage.check_contract();
    }
}
