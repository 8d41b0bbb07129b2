//! What GitHub publishes of its API: every example of an answer and of a webhook is understood, and
//! every request that Forrest sends is one that GitHub describes.
//!
//! The data is GitHub's and is not part of the repository: see [`data`].

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::app_key;
use crate::http_server::{Reply, Seen, Server};
use forrest_core::model::{
    JobId, JobStatus, Labels, Repository, RunnerId, RunnerName, WorkflowRunId,
};
use forrest_github::webhook::{Action, Event, Headers, Verifier};
use forrest_github::{Deletion, DeliveryId};
use secrecy::ExposeSecret;
use serde_json::{Value, json};

/// Reads a file of the contract data, by any of its names. `None` where there is none: then the test
/// says so and is left out, except in CI, where it fails.
///
/// The second names are those of the untrimmed files from npm: `@octokit/openapi`,
/// `@octokit/webhooks-examples`.
fn data(names: &[&str]) -> Option<Value> {
    let found = find(names);
    if found.is_none() {
        let text =
            format!("GitHub's contract data is missing: none of {names:?} in {:?}", places());
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{text}");
        eprintln!("SKIPPED, NOTHING IS TESTED: {text}");
    }
    found
}

fn find(names: &[&str]) -> Option<Value> {
    let places = places();
    let mut files = places.iter().flat_map(|place| names.iter().map(move |name| place.join(name)));
    let file = files.find(|file| file.exists())?;
    let text = std::fs::read_to_string(&file).expect("a readable file");
    Some(serde_json::from_str(&text).expect("a file of JSON"))
}

fn places() -> Vec<PathBuf> {
    if let Some(place) = std::env::var_os("FORREST_GITHUB_CONTRACT") {
        return vec![place.into()];
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    vec![root.join("../shared/github-contract"), root.join("target/github-contract")]
}

const OPENAPI: [&str; 2] = ["openapi-api.github.com.trimmed.json", "openapi-api.github.com.json"];
const ALL_WEBHOOKS: &str = "webhooks-examples.api.github.com.json";
const JOB_WEBHOOKS: [&str; 2] = ["webhook-workflow_job.examples.json", ALL_WEBHOOKS];
const OTHER_WEBHOOKS: [&str; 2] =
    ["webhook-ping-installation.examples.api.github.com.json", ALL_WEBHOOKS];

fn hmac_sha256(secret: &str, body: &[u8]) -> String {
    use hmac::{KeyInit, Mac};
    let mac: hmac::Hmac<sha2::Sha256> =
        KeyInit::new_from_slice(secret.as_bytes()).expect("any key will do");
    format!("sha256={}", hex::encode(mac.chain_update(body).finalize().into_bytes()))
}

fn deliver(event: &str, payload: &Value) -> Event {
    let body = payload.to_string();
    let signature = hmac_sha256("secret", body.as_bytes());
    let headers = Headers {
        signature: Some(signature.as_bytes()),
        event: Some(event),
        guid: Some("0b989ba4-242f-11e5-81e1-c7b6966d2516"),
        content_type: Some("application/json"),
    };
    let verifier = Verifier::new(&["secret".into()]).expect("a sound secret");
    verifier.verify(&headers, body.as_bytes()).expect("GitHub's own example").event
}

/// The values that GitHub's documentation of signatures gives to compare with.
#[test]
fn githubs_signature_vector_is_accepted() {
    let verifier = Verifier::new(&["It's a Secret to Everybody".into()]).expect("a sound secret");
    let signature = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
    let headers = Headers {
        signature: Some(signature.as_bytes()),
        event: Some("other"),
        guid: Some("guid"),
        content_type: None,
    };
    assert!(verifier.verify(&headers, b"Hello, World!").is_ok());
    assert!(verifier.verify(&headers, b"Hello, world!").is_err());
}

#[test]
fn every_example_of_a_job_webhook_is_understood() {
    let Some(mut data) = data(&JOB_WEBHOOKS) else { return };
    if let Some(events) = data.as_array() {
        let jobs = events.iter().find(|event| event["name"] == "workflow_job");
        data = jobs.expect("the event is among them").clone();
    }
    let examples = data["examples"].as_array().expect("a list");
    assert!(!examples.is_empty());
    for example in examples {
        let Event::WorkflowJob(event) = deliver("workflow_job", example) else {
            panic!("no job in {example}");
        };
        let wire = &example["workflow_job"];
        assert_ne!(event.action, Action::Unknown);
        assert_ne!(event.job.status, JobStatus::Unknown);
        assert_eq!(Some(event.job.id.0), wire["id"].as_u64());
        assert_eq!(Some(event.job.workflow_run.0), wire["run_id"].as_u64());
        assert_eq!(event.job.head_branch.as_deref(), wire["head_branch"].as_str());
        assert_eq!(event.job.conclusion.is_some(), wire["conclusion"].is_string());
        assert_eq!(event.job.created_at.is_some(), wire["created_at"].is_string());
        assert_eq!(event.installation, example["installation"]["id"].as_u64());
        let labels: Labels =
            wire["labels"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
        assert_eq!(event.job.labels, labels);
        assert_eq!(event.job.repository.to_string(), example["repository"]["full_name"]);
        assert_eq!(event.job.runner, None, "GitHub's own runners are not ours");
    }
}

#[test]
fn every_other_example_of_a_webhook_is_accepted() {
    let Some(data) = data(&OTHER_WEBHOOKS) else { return };
    let mut count = 0;
    for event in data.as_array().expect("a list") {
        let name = event["name"].as_str().expect("a name");
        if name == "workflow_job" {
            continue;
        }
        for example in event["examples"].as_array().expect("a list") {
            let expected = if name == "ping" { Event::Ping } else { Event::Other(name.to_owned()) };
            assert_eq!(deliver(name, example), expected);
            count += 1;
        }
    }
    assert!(count > 10, "only {count} examples");
}

/// An operation of GitHub's description, found by method and path.
fn operation<'a>(openapi: &'a Value, seen: &Seen) -> (&'a str, &'a Value) {
    let matches = |template: &str| {
        let (template, path) = (template.split('/'), seen.path().split('/'));
        template.clone().count() == path.clone().count()
            && template.zip(path).all(|(t, p)| t == p || t.starts_with('{') && !p.is_empty())
    };
    let (template, methods) = openapi["paths"]
        .as_object()
        .expect("paths")
        .iter()
        .filter(|(template, _)| matches(template))
        // `/runners/downloads` also fits `/runners/{runner_id}`: the one with fewer gaps is meant.
        .min_by_key(|(template, _)| template.matches('{').count())
        .unwrap_or_else(|| panic!("GitHub has no {}", seen.target));
    let operation = &methods[seen.method.to_lowercase()];
    assert!(operation.is_object(), "GitHub has no {} {template}", seen.method);
    (template, operation)
}

fn resolve<'a>(openapi: &'a Value, value: &'a Value) -> &'a Value {
    match value["$ref"].as_str() {
        Some(place) => openapi.pointer(&place[1..]).expect("a reference into the description"),
        None => value,
    }
}

/// As [`resolve`], but the trimmed description lacks the examples that it refers to.
fn resolve_or_null<'a>(openapi: &'a Value, value: &'a Value) -> &'a Value {
    match value["$ref"].as_str() {
        Some(place) => openapi.pointer(&place[1..]).unwrap_or(&Value::Null),
        None => value,
    }
}

/// Whether GitHub describes such a request: its operation, query parameters and body.
fn check_request(openapi: &Value, seen: &Seen) {
    let (template, operation) = operation(openapi, seen);
    let parameters: Vec<&Value> = operation["parameters"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|parameter| resolve(openapi, parameter))
        .collect();
    let query = seen.target.split_once('?').map_or("", |(_, query)| query);
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        let known = parameters.iter().find(|p| p["in"] == "query" && p["name"] == *name);
        let schema = &known.unwrap_or_else(|| panic!("{template} has no ?{name}="))["schema"];
        let value = match schema["type"].as_str() {
            Some("integer") => json!(value.parse::<u64>().expect("a number")),
            Some("boolean") => json!(value.parse::<bool>().expect("true or false")),
            _ => json!(value),
        };
        jsonschema::validate(schema, &value).unwrap_or_else(|e| panic!("{template} {name}: {e}"));
    }
    if seen.body.is_empty() {
        assert!(operation["requestBody"]["required"] != true, "{template} needs a body");
        return;
    }
    assert_eq!(seen.headers["content-type"], "application/json");
    let mut schema = operation["requestBody"]["content"]["application/json"]["schema"].clone();
    // GitHub ignores what it does not know; a misspelt field of ours must not pass unseen.
    schema["additionalProperties"] = json!(false);
    schema["components"] = openapi["components"].clone();
    let body: Value = serde_json::from_slice(&seen.body).expect("a body of JSON");
    jsonschema::validate(&schema, &body).unwrap_or_else(|e| panic!("{template}: {e}"));
}

/// GitHub's example of the answer to a request.
fn example(openapi: &Value, examples: &Value, seen: &Seen) -> Reply {
    let (_, operation) = operation(openapi, seen);
    let id = operation["operationId"].as_str().expect("an id");
    let responses = operation["responses"].as_object().expect("responses");
    let (status, response) =
        responses.iter().find(|(status, _)| status.starts_with('2')).expect("a success");
    let content = &resolve(openapi, response)["content"]["application/json"]["examples"];
    let own = content.as_object().and_then(|all| all.values().next());
    let own = own.map(|example| resolve_or_null(openapi, example)["value"].clone());
    let apart = examples[id]["responses"][status]["examples"].as_object();
    let apart = apart.and_then(|all| all.values().next()).cloned();
    let status = status.parse().expect("a number");
    match apart.or(own) {
        Some(body) if !body.is_null() => Reply::json(status, &body),
        _ => Reply::Answer { status, headers: Vec::new(), body: Vec::new() },
    }
}

#[tokio::test]
async fn every_request_is_described_and_every_example_of_an_answer_understood() {
    let Some(openapi) = data(&OPENAPI) else { return };
    // The untrimmed description holds the examples itself.
    let examples = find(&["rest-examples.api.github.com.json"]).unwrap_or_default();
    let described = openapi.clone();
    let server = Server::start(move |seen| example(&openapi, &examples, seen)).await;
    let github = app_key::github(&server.url);
    let repository: Repository = "octo-org/octo-repo".parse().expect("a name");
    let name: RunnerName = "forrest-build-aaaaaaaaaaaaaaaa".parse().expect("a name");

    let app = github.app().await.expect("an App");
    assert_eq!(app.slug.as_deref(), Some("octoapp"));
    assert_eq!(app.missing_events(), ["workflow_job"]);
    assert_eq!(
        github.hook_config().await.expect("a webhook").content_type.as_deref(),
        Some("json")
    );
    let installation = github.installation(&repository).await.expect("an installation");
    assert_eq!((installation.id, installation.suspended), (1, false));
    assert!(installation.missing_permissions().contains(&"administration: write".to_owned()));

    let labels: Labels = ["self-hosted", "x64", "no-gpu"].into_iter().collect();
    let registration =
        github.generate_jit_config(&repository, &name, &labels).await.expect("a registration");
    assert_eq!(registration.runner_id, RunnerId(23));
    assert_eq!(registration.jit_config.expose_secret(), "abc123");
    let runners = github.list_runners(&repository).await.expect("runners");
    assert_eq!(runners.len(), 2);
    assert!(runners[0].online && runners[0].busy && runners[0].forrest_name.is_none());
    assert_eq!(github.find_runner(&repository, &name).await, Ok(None));
    assert_eq!(github.delete_runner(&repository, RunnerId(23)).await, Ok(Deletion::Deleted));

    let jobs = github.active_jobs(&repository).await.expect("jobs");
    assert!(jobs.complete);
    assert_eq!(jobs.jobs.len(), 1);
    assert_eq!(jobs.jobs[0].status, JobStatus::Completed);
    let job = github.job(&repository, JobId(399_444_496)).await.expect("an answer").expect("a job");
    assert_eq!(job.labels, ["self-hosted", "foo", "bar"].into_iter().collect());
    let run = github.workflow_run(&repository, WorkflowRunId(30_433_642)).await;
    let run = run.expect("an answer").expect("a run");
    assert_eq!((run.event.as_deref(), run.from_fork), (Some("push"), false));
    assert_eq!(run.head_repository.expect("a name").to_string(), "octo-org/octo-repo");

    let page = github.deliveries(None).await.expect("deliveries");
    assert!(page.next.is_none() && page.deliveries.len() == 2 && page.deliveries[0].ok);
    let failed = github.failed_delivery_guids(Duration::from_secs(3600)).await.expect("an answer");
    assert!(failed.complete && failed.failed.is_empty());
    github.redeliver(DeliveryId(12_345_678)).await.expect("GitHub accepts");

    for seen in server.seen() {
        check_request(&described, &seen);
        assert_eq!(seen.headers["accept"], "application/vnd.github+json");
        assert_eq!(seen.headers["user-agent"], "forrest-tests");
    }
    assert!(server.seen().len() > 15);
}
