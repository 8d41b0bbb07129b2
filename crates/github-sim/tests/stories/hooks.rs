//! Webhooks, their log, and redelivery.

use std::time::Duration;

use github_sim::RepositorySpec;
use github_sim::model::{
    HookTarget, JobAction, JobSpec, Settings, WebhookEffect, WebhookFault, When, Workflow,
};
use github_sim::webhooks::sign;
use reqwest::Method;

use crate::client::{GitHub, REPO, SECRET, Start};
use crate::receiver::Receiver;

fn job(name: &str) -> Workflow {
    Workflow::push().job(JobSpec::new(name).runs_on(["x"]))
}

async fn with_hook(test: &str, hooks: &Receiver) -> GitHub {
    GitHub::start_with(test, Start { hook: Some(hooks.target.clone()), ..Start::default() }).await
}

/// Waits until the log holds so many attempts; returns it, latest first.
async fn logged(github: &GitHub, count: usize) -> Vec<serde_json::Value> {
    let mut events = github.sim.events();
    loop {
        let log = github.as_app(Method::GET, "/app/hook/deliveries?per_page=100").await.expect(200);
        let log = log.as_array().expect("a list").clone();
        if log.len() >= count {
            return log;
        }
        let next = tokio::time::timeout(Duration::from_secs(20), events.recv());
        next.await.expect("an event in time").expect("an event");
    }
}

#[tokio::test]
async fn an_unanswered_delivery_is_made_again() {
    let mut hooks = Receiver::tcp().await;
    let github = with_hook("an_unanswered_delivery_is_made_again", &hooks).await;
    let config = github.as_app(Method::GET, "/app/hook/config").await.expect(200);
    assert_eq!(config["url"], hooks.target.to_string());
    hooks.answer_with(500);
    github.sim.queue_workflow(REPO, job("a")).expect("queued");
    let first = hooks.next().await;
    let log = logged(&github, 1).await;
    assert_eq!((&log[0]["status_code"], &log[0]["redelivery"]), (&500.into(), &false.into()));
    let id = log[0]["id"].as_u64().expect("an id");
    let path = format!("/app/hook/deliveries/{id}");
    let full = github.as_app(Method::GET, &path).await.expect(200);
    assert_eq!(full["request"]["payload"], first.payload);
    assert_eq!(full["response"]["payload"], "thanks");

    hooks.answer_with(202);
    github.as_app(Method::POST, &format!("{path}/attempts")).await.expect(202);
    let second = hooks.next().await;
    assert_eq!((second.guid, &second.payload), (first.guid, &first.payload));
    let log = logged(&github, 2).await;
    assert_eq!((&log[0]["status"], &log[0]["redelivery"]), (&"OK".into(), &true.into()));
    assert_eq!(log[0]["guid"], log[1]["guid"]);
    let failed = github.as_app(Method::GET, "/app/hook/deliveries?status=failure").await;
    assert_eq!(failed.expect(200).as_array().map(Vec::len), Some(1));
    github.as_app(Method::GET, "/app/hook/deliveries/1").await.expect(404);
    github.as_app(Method::GET, "/app/hook/deliveries?cursor=x").await.expect(400);
    github.check_requests();
}

#[tokio::test]
async fn the_log_is_read_with_a_cursor() {
    let mut hooks = Receiver::unix();
    let github = with_hook("the_log_is_read_with_a_cursor", &hooks).await;
    for i in 0..5 {
        github.sim.queue_workflow(REPO, job(&i.to_string())).expect("queued");
        hooks.next().await;
    }
    let all: Vec<_> = logged(&github, 5).await.iter().map(|entry| entry["id"].clone()).collect();
    let mut path = "/app/hook/deliveries?per_page=2".to_owned();
    let mut seen = Vec::new();
    loop {
        let answer = github.as_app(Method::GET, &path).await;
        let page = answer.expect(200);
        seen.extend(page.as_array().expect("a list").iter().map(|entry| entry["id"].clone()));
        let Some(next) = answer.header("link").strip_suffix("; rel=\"next\"") else { break };
        let next = next.trim_matches(['<', '>']);
        path = next.strip_prefix(&github.sim.url()).expect("ours").to_owned();
    }
    assert_eq!(seen, all);
}

#[tokio::test]
async fn an_organisation_and_a_ping_have_their_form() {
    let mut hooks = Receiver::tcp().await;
    let github = GitHub::start_with(
        "an_organisation_and_a_ping_have_their_form",
        Start { hook: Some(hooks.target.clone()), form: true, ..Start::default() },
    )
    .await;
    github.sim.ping();
    let ping = hooks.next().await;
    assert_eq!(ping.event, "ping");
    let repo = github.sim.add_repository_as(&RepositorySpec {
        owner: "orga".into(),
        name: "tool".into(),
        organization: true,
        private: true,
    });
    github.sim.queue_workflow(&repo, job("a")).expect("queued");
    let event = hooks.next().await;
    assert_eq!(event.payload["organization"]["login"], "orga");
    assert_eq!(event.payload["repository"]["private"], true);
}

#[tokio::test]
async fn nobody_there_is_logged() {
    let directory = tempfile::tempdir().expect("a directory");
    let target = HookTarget::Unix { socket: directory.path().join("none"), path: "/".into() };
    let start = Start { hook: Some(target), ..Start::default() };
    let github = GitHub::start_with("nobody_there_is_logged", start).await;
    github.sim.queue_workflow(REPO, job("a")).expect("queued");
    let log = logged(&github, 1).await;
    assert_eq!(log[0]["status"], "failed to connect to host");
}

#[tokio::test]
async fn a_silent_receiver_times_out() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let authority = listener.local_addr().expect("an address").to_string();
    let settings = Settings { webhook_timeout: Duration::from_millis(200), ..Settings::default() };
    let hook = Some(HookTarget::Tcp { authority, path: "/".into() });
    let start = Start { settings, hook, ..Start::default() };
    let github = GitHub::start_with("a_silent_receiver_times_out", start).await;
    github.sim.queue_workflow(REPO, job("a")).expect("queued");
    let log = logged(&github, 1).await;
    assert_eq!((&log[0]["status"], &log[0]["status_code"]), (&"timed out".into(), &504.into()));
}

#[tokio::test]
async fn webhooks_are_dropped_doubled_delayed_and_reordered() {
    let mut hooks = Receiver::tcp().await;
    let github = with_hook("webhooks_are_dropped_doubled_delayed_and_reordered", &hooks).await;
    let name = |arrived: &crate::receiver::Arrived| {
        arrived.payload["workflow_job"]["name"].as_str().expect("a name").to_owned()
    };
    let strike = |effect| {
        github.sim.webhook_fault(WebhookFault::new("queued", effect, When::Next(1)));
    };
    let queue = |name: &str| {
        github.sim.queue_workflow(REPO, job(name)).expect("queued");
    };

    strike(WebhookEffect::Drop);
    queue("dropped");
    let log = logged(&github, 1).await;
    assert_ne!(log[0]["status"], "OK");
    strike(WebhookEffect::Forget);
    queue("forgotten");
    queue("next");
    assert_eq!(name(&hooks.next().await), "next");

    strike(WebhookEffect::Double);
    queue("doubled");
    let (a, b) = (hooks.next().await, hooks.next().await);
    assert_eq!((name(&a), &a.guid, a.payload), ("doubled".into(), &b.guid, b.payload));

    strike(WebhookEffect::Reorder);
    queue("first");
    queue("second");
    assert_eq!((name(&hooks.next().await), name(&hooks.next().await)), {
        ("second".into(), "first".into())
    });

    strike(WebhookEffect::Delay { min_ms: 300, max_ms: 300 });
    let before = github.sim.now();
    queue("late");
    queue("early");
    assert_eq!(name(&hooks.next().await), "early");
    assert_eq!(name(&hooks.next().await), "late");
    assert!(github.sim.now().since(before) >= Duration::from_millis(300));

    strike(WebhookEffect::Reorder);
    queue("alone");
    assert_eq!(name(&hooks.next().await), "alone", "it is not held back for ever");
    // The dropped one can be had, the forgotten one cannot.
    let log = logged(&github, 8).await;
    let dropped = log.last().expect("the first")["id"].clone();
    github
        .as_app(Method::POST, &format!("/app/hook/deliveries/{dropped}/attempts"))
        .await
        .expect(202);
    assert_eq!(name(&hooks.next().await), "dropped");
    assert!(github.sim.faults().webhooks.is_empty());
}

#[tokio::test]
async fn a_sample_is_signed() {
    let hooks = Receiver::tcp().await;
    let github = with_hook("a_sample_is_signed", &hooks).await;
    let ids = github.sim.queue_workflow(REPO, job("a")).expect("queued");
    let (headers, body) =
        github.sim.sample_webhook(ids.job("a"), JobAction::Queued).expect("a sample");
    let signature = headers.iter().find(|(name, _)| name == "X-Hub-Signature-256");
    assert_eq!(signature.map(|(_, value)| value.as_str()), Some(&*sign(SECRET, &body)));
}

/// The values that GitHub's documentation of signatures gives to compare with.
#[test]
fn signatures_are_githubs() {
    let signature = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
    assert_eq!(sign("It's a Secret to Everybody", b"Hello, World!"), signature);
}
