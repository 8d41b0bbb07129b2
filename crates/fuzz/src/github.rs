//! What comes from GitHub, or says that it does.

use std::sync::LazyLock;

use forrest_core::model::{Label, Labels, MachineTypeName, Repository, RunnerName};
use forrest_github::answers;
use forrest_github::webhook::{Event, Headers, Verifier, WebhookError};
use hmac::{Hmac, KeyInit, Mac};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;

use crate::Cut;

const SECRET: &str = "the webhook's secret";

static VERIFIER: LazyLock<Verifier> = LazyLock::new(|| {
    Verifier::new(&[SecretString::from(SECRET)]).expect("a secret that is not empty")
});

static REPOSITORY: LazyLock<Repository> =
    LazyLock::new(|| "acme/widgets".parse().expect("a repository"));

fn right_signature(body: &[u8]) -> String {
    let keyed = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).expect("any key will do");
    let code = keyed.chain_update(body).finalize().into_bytes();
    format!("sha256={}", hex::encode(code))
}

/// `BYTE EVENT \0 GUID \0 CONTENT-TYPE \0 BODY`; an even byte signs the body.
pub(crate) fn webhook(data: &[u8]) {
    let mut cut = Cut::new(data);
    let signed = cut.byte().is_multiple_of(2);
    let named = ["x-github-event", "x-github-delivery", "content-type"];
    let mut headers = HeaderMap::new();
    for name in named {
        let value = cut.field();
        if let (Ok(value), false) = (HeaderValue::from_bytes(value), value.is_empty()) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    let body = cut.rest();
    let signature = if signed { right_signature(body) } else { "sha256=00".repeat(9) };
    headers.insert("x-hub-signature-256", signature.parse().expect("plain text"));
    match VERIFIER.verify(&Headers::from(&headers), body) {
        Ok(delivery) => {
            assert!(signed, "taken without a signature");
            assert!((1..=64).contains(&delivery.guid.len()));
            match delivery.event {
                Event::WorkflowJob(event) => assert!(event.job.run_attempt > 0),
                Event::Ping => {}
                Event::Other(name) => in_one_line(&name),
            }
        }
        Err(error @ WebhookError::Unauthorized(_)) => {
            assert!(!signed, "{error}");
            assert_eq!(error.status(), 401);
        }
        Err(error @ WebhookError::BadRequest(_)) => {
            assert!(signed, "read before its signature was checked: {error}");
            assert_eq!(error.status(), 400);
            in_one_line(&error.to_string());
        }
    }
}

/// Text of others in a message: one line, not too long.
fn in_one_line(text: &str) {
    assert!(!text.chars().any(char::is_control), "{text:?}");
    assert!(text.chars().count() < 1000, "{} characters", text.chars().count());
}

/// `SIGNATURE \0 BODY`: only the one right signature is taken.
pub(crate) fn signature(data: &[u8]) {
    let mut cut = Cut::new(data);
    let claimed = cut.field();
    let body = cut.rest();
    let headers = Headers {
        signature: Some(claimed),
        event: Some("never_heard_of"),
        guid: Some("0b989ba4-242f-11e5-81e1-c7b6966d2516"),
        content_type: None,
    };
    let right = right_signature(body);
    let is_right = std::str::from_utf8(claimed)
        .ok()
        .and_then(|claimed| claimed.strip_prefix("sha256="))
        .is_some_and(|digits| right[7..].eq_ignore_ascii_case(digits));
    assert_eq!(VERIFIER.verify(&headers, body).is_ok(), is_right);
    // And the right one is, so that the test could fail.
    let headers = Headers { signature: Some(right.as_bytes()), ..headers };
    assert!(VERIFIER.verify(&headers, body).is_ok());
}

/// A body. Errors must not repeat what may be a secret.
pub(crate) fn registration(data: &[u8]) {
    let asked: Labels =
        ["self-hosted", "forrest", "build"].map(str::to_owned).into_iter().collect();
    match answers::registration(data, &asked) {
        Ok(registration) => {
            let secret = registration.jit_config.expose_secret();
            assert!((1..=64 << 10).contains(&secret.len()));
            assert!(asked.iter().all(|label| registration.labels.contains(label)));
            let shown = format!("{registration:?}");
            assert!(secret.len() < 12 || !shown.contains(secret), "the JIT config is shown");
        }
        Err(error) => in_one_line(&error.to_string()),
    }
}

/// `BYTE HEADERS \0 BODY`, a header a line.
pub(crate) fn answers(data: &[u8]) {
    let mut cut = Cut::new(data);
    let status = 200 + u16::from(cut.byte());
    let mut headers = HeaderMap::new();
    for line in cut.field().split(|byte| *byte == b'\n').take(32) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(name), HeaderValue::from_bytes(value))
        {
            headers.append(name, value);
        }
    }
    let body = cut.rest();
    in_one_line(&answers::complaint(status, &headers, body));
    if let Ok(jobs) = answers::job_page(body, &REPOSITORY) {
        assert!(jobs.iter().all(|job| job.repository == *REPOSITORY && job.run_attempt > 0));
    }
    if let Ok(runners) = answers::runner_page(body, &REPOSITORY) {
        for runner in runners {
            let ours = runner.forrest_name.is_none_or(|name| name.as_str() == runner.name);
            assert!(ours, "{:?} is taken for another runner", runner.name);
        }
    }
    if let Ok(facts) = answers::workflow_run(body, &REPOSITORY) {
        assert!(facts.from_fork || facts.head_repository.is_some());
    }
    answers::others(body, &REPOSITORY);
}

/// A name. What is taken for one is written as it was read.
pub(crate) fn names(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(repository) = text.parse::<Repository>() {
        assert_eq!(repository.to_string(), text);
        stays_below(&repository.to_string(), 2);
    }
    if let Ok(machine) = text.parse::<MachineTypeName>() {
        assert_eq!(machine.to_string(), text);
        stays_below(&machine.to_string(), 3);
    }
    if let Ok(runner) = text.parse::<RunnerName>() {
        assert_eq!(runner.as_str(), text);
        stays_below(runner.as_str(), 1);
    }
    let label = Label::from(text.to_owned());
    assert_eq!(label, Label::from(text.to_owned()));
}

/// A path made of the name has this many parts and leads nowhere else.
fn stays_below(name: &str, parts: usize) {
    let mut found = 0;
    for part in std::path::Path::new(name).components() {
        assert!(matches!(part, std::path::Component::Normal(_)), "{name:?}");
        found += 1;
    }
    assert_eq!(found, parts, "{name:?}");
    assert!(!name.contains('\0') && name.len() <= 512, "{name:?}");
}
