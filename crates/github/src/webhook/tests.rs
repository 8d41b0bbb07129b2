//! Deliveries, right and wrong.

use forrest_core::model::{Conclusion, JobId};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const SECRET: &str = "It's a Secret to Everybody";

fn verifier() -> Verifier {
    Verifier::new(&[SECRET.into()]).expect("a sound secret")
}

fn sign(secret: &str, body: &[u8]) -> String {
    let mac: Hmac<Sha256> = Hmac::new_from_slice(secret.as_bytes()).expect("any key will do");
    format!("sha256={}", hex::encode(mac.chain_update(body).finalize().into_bytes()))
}

fn headers<'a>(signature: &'a str, event: &'a str) -> Headers<'a> {
    Headers {
        signature: Some(signature.as_bytes()),
        event: Some(event),
        guid: Some("0b989ba4-242f-11e5-81e1-c7b6966d2516"),
        content_type: Some("application/json"),
    }
}

fn deliver(event: &str, body: &[u8]) -> Result<Delivery, WebhookError> {
    verifier().verify(&headers(&sign(SECRET, body), event), body)
}

fn job_of(payload: &Value) -> WorkflowJob {
    let body = payload.to_string();
    match deliver("workflow_job", body.as_bytes()).expect("a sound delivery").event {
        Event::WorkflowJob(job) => *job,
        other => panic!("{other:?} instead of a job"),
    }
}

fn payload(action: &str, status: &str) -> Value {
    json!({
        "action": action,
        "workflow_job": {
            "id": 42, "run_id": 7, "run_attempt": 2, "status": status,
            "labels": ["self-hosted", "Forrest", "build"],
            "runner_name": "forrest-build-aaaaaaaaaaaaaaaa",
            "steps": [{"name": "x", "number": 1}],
        },
        "repository": {"full_name": "octo/repo", "owner": {"login": "octo"}},
        "installation": {"id": 5, "node_id": "x"},
    })
}

#[test]
fn a_job_is_read() {
    let event = job_of(&payload("queued", "queued"));
    assert_eq!(event.job.id, JobId(42));
    assert_eq!(event.job.repository.to_string(), "octo/repo");
    assert_eq!(event.job.run_attempt, 2);
    assert_eq!(event.job.labels, ["forrest", "self-hosted", "build"].into_iter().collect());
    assert_eq!(event.job.status, JobStatus::Queued);
    assert!(event.job.runner.is_some());
    assert_eq!(event.installation, Some(5));
    assert!(!event.deployment);
}

#[test]
fn queued_behind_an_approval_is_waiting() {
    let mut payload = payload("queued", "waiting");
    payload["deployment"] = json!({"id": 1});
    let event = job_of(&payload);
    assert_eq!((event.action, event.job.status), (Action::Queued, JobStatus::Waiting));
    assert!(event.deployment);
}

#[test]
fn what_github_may_add_is_unknown_and_no_error() {
    let event = job_of(&payload("teleported", "floating"));
    assert_eq!((event.action, event.job.status), (Action::Unknown, JobStatus::Unknown));
    let mut skipped = payload("completed", "completed");
    skipped["workflow_job"]["conclusion"] = json!("evaporated");
    skipped["workflow_job"]["labels"] = json!([]);
    let event = job_of(&skipped);
    assert_eq!(event.job.conclusion, Some(Conclusion::Other));
    assert!(event.job.labels.is_empty());
    assert_eq!(
        deliver("push", b"not even JSON").expect("signed").event,
        Event::Other("push".to_owned())
    );
}

#[test]
fn the_furthest_status_counts() {
    let status = |action, status| job_of(&payload(action, status)).job.status;
    assert_eq!(status("completed", "in_progress"), JobStatus::Completed);
    assert_eq!(status("in_progress", "queued"), JobStatus::InProgress);
    assert_eq!(status("queued", "in_progress"), JobStatus::InProgress);
    assert_eq!(status("waiting", "queued"), JobStatus::Waiting);
    assert_eq!(status("queued", "pending"), JobStatus::Unknown);
}

#[test]
fn without_the_right_signature_nothing_is_looked_at() {
    let body = payload("queued", "queued").to_string();
    let good = sign(SECRET, body.as_bytes());
    let other = sign("another secret", body.as_bytes());
    let truncated = &good[..good.len() - 2];
    let sha1 = good.replace("sha256", "sha1");
    for wrong in [other.as_str(), truncated, &sha1, "", "sha256=", "sha256=zz"] {
        let error = verifier().verify(&headers(wrong, "workflow_job"), body.as_bytes());
        assert!(matches!(error, Err(WebhookError::Unauthorized(_))), "{wrong:?}: {error:?}");
    }
    let unsigned = Headers { signature: None, ..headers("", "workflow_job") };
    let error = verifier().verify(&unsigned, b"{").expect_err("unsigned");
    assert_eq!(error.status(), 401, "before anything else is wrong with it");
    let mut tampered = body.into_bytes();
    tampered[10] ^= 1;
    let error =
        verifier().verify(&headers(&good, "workflow_job"), &tampered).expect_err("tampered");
    assert_eq!(error.status(), 401);
}

#[test]
fn any_of_several_secrets_will_do_but_never_none() {
    let body = payload("queued", "queued").to_string();
    let both = Verifier::new(&["new".into(), SECRET.into()]).expect("sound secrets");
    for secret in ["new", SECRET] {
        let signature = sign(secret, body.as_bytes());
        assert!(both.verify(&headers(&signature, "workflow_job"), body.as_bytes()).is_ok());
    }
    assert!(Verifier::new(&[]).is_err());
    assert!(Verifier::new(&["x".into(), "".into()]).is_err());
    assert!(!format!("{both:?}").contains("Secret"));
}

#[test]
fn forms_are_read_too() {
    let json = payload("queued", "queued").to_string();
    let form: String = form_urlencoded::Serializer::new(String::new())
        .append_pair("other", "1")
        .append_pair("payload", &json)
        .finish();
    let signature = sign(SECRET, form.as_bytes());
    let mut headers = headers(&signature, "workflow_job");
    headers.content_type = Some("application/x-www-form-urlencoded; charset=utf-8");
    let delivery = verifier().verify(&headers, form.as_bytes()).expect("a sound form");
    assert!(matches!(delivery.event, Event::WorkflowJob(_)));
    let signature = sign(SECRET, b"other=1");
    headers.signature = Some(signature.as_bytes());
    let error = verifier().verify(&headers, b"other=1").expect_err("no payload");
    assert!(error.to_string().contains("payload"), "{error}");
}

#[test]
fn what_cannot_be_read_is_a_bad_request_with_a_reason() {
    let whole = payload("queued", "queued").to_string();
    for (body, reason) in [
        (&whole.as_bytes()[..whole.len() / 2], "EOF"),
        (b"".as_slice(), "EOF"),
        (b"hello", "expected"),
        (b"[]", "invalid"),
        (b"{}", "no workflow_job"),
        (b"{\"workflow_job\":{\"id\":\"x\"}}", "invalid type"),
        (b"{\"workflow_job\":{\"id\":1,\"run_id\":2}}", "repository"),
        (b"\xff\xfe", "expected"),
        (
            b"{\"workflow_job\":{\"id\":1,\"run_id\":2},\"repository\":{\"full_name\":\"../..\"}}",
            "usable name",
        ),
    ] {
        let error = deliver("workflow_job", body).expect_err(reason);
        assert_eq!(error.status(), 400);
        assert!(error.to_string().contains(reason), "{error} has no {reason}");
    }
    assert_eq!(deliver("ping", b"{").expect_err("truncated").status(), 400);
    let signature = sign(SECRET, b"{}");
    let good = headers(&signature, "workflow_job");
    for wrong in [
        Headers { guid: None, ..good },
        Headers { guid: Some("a\x1b[31m"), ..good },
        Headers { event: None, ..good },
        Headers { content_type: Some("text/plain"), ..good },
    ] {
        assert_eq!(verifier().verify(&wrong, b"{}").expect_err("incomplete").status(), 400);
    }
}

/// Every path to a field of a JSON value.
fn paths(value: &Value, at: &str, into: &mut Vec<String>) {
    if let Value::Object(fields) = value {
        for (name, field) in fields {
            let path = format!("{at}/{name}");
            paths(field, &path, into);
            into.push(path);
        }
    }
}

proptest! {
    #[test]
    fn any_field_but_the_identifying_ones_may_be_null_or_absent(seed: u64, absent: bool) {
        let mut payload = payload("in_progress", "in_progress");
        let mut all = Vec::new();
        paths(&payload, "", &mut all);
        let essential =
            ["/workflow_job", "/workflow_job/id", "/workflow_job/run_id", "/repository", "/repository/full_name"];
        for (n, path) in all.iter().enumerate().filter(|(_, p)| !essential.contains(&p.as_str())) {
            if seed >> (n % 64) & 1 == 0 {
                continue;
            }
            let (parent, name) = path.rsplit_once('/').expect("a path");
            let Some(Value::Object(parent)) = payload.pointer_mut(parent) else { continue };
            if absent { parent.remove(name); } else { parent.insert(name.to_owned(), Value::Null); }
        }
        prop_assert_eq!(job_of(&payload).job.id, JobId(42));
    }

    #[test]
    fn no_signed_body_brings_the_reader_down(body: Vec<u8>, event in "workflow_job|ping|[a-z]{0,9}", form: bool) {
        let signature = sign(SECRET, &body);
        let mut headers = headers(&signature, &event);
        if form {
            headers.content_type = Some("application/x-www-form-urlencoded");
        }
        let _ = verifier().verify(&headers, &body);
    }

    #[test]
    fn no_cut_of_a_real_body_brings_the_reader_down(at in 0usize..400) {
        let body = payload("queued", "queued").to_string();
        let cut = &body.as_bytes()[..at.min(body.len())];
        prop_assert_eq!(deliver("workflow_job", cut).is_ok(), cut.len() == body.len());
    }
}
