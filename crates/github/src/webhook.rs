//! Webhook deliveries: is this from GitHub, and what does it say?
//!
//! No socket here: the daemon's server hands over headers and the raw body, and answers. Nothing of a
//! body is looked at before its signature is found right. Only what Forrest needs is read from it;
//! real bodies have 10 to 25 KB, of which less than 1 KB matters.

use std::borrow::Cow;
use std::fmt;

use forrest_core::model::{Job, JobStatus, Repository};
use hmac::{Hmac, KeyInit, Mac};
use reqwest::header::{self, HeaderMap};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde::de::IgnoredAny;
use sha2::Sha256;

use crate::GitHubError;
use crate::error::foreign;
use crate::wire::{WireJob, WireRepository};

/// The largest body that GitHub sends, in bytes. The server should not read more.
pub const BODY_MAX: usize = 25 << 20;

/// The longest delivery id that is taken; GitHub's are UUIDs of 36 characters.
const GUID_MAX: usize = 64;

/// The headers of a delivery that matter.
#[derive(Debug, Clone, Copy, Default)]
pub struct Headers<'a> {
    /// `X-Hub-Signature-256`.
    pub signature: Option<&'a [u8]>,
    /// `X-GitHub-Event`.
    pub event: Option<&'a str>,
    /// `X-GitHub-Delivery`.
    pub guid: Option<&'a str>,
    /// `Content-Type`.
    pub content_type: Option<&'a str>,
}

impl<'a> From<&'a HeaderMap> for Headers<'a> {
    fn from(map: &'a HeaderMap) -> Self {
        let text = |name: &str| map.get(name).and_then(|value| value.to_str().ok());
        Self {
            signature: map.get("x-hub-signature-256").map(header::HeaderValue::as_bytes),
            event: text("x-github-event"),
            guid: text("x-github-delivery"),
            content_type: text("content-type"),
        }
    }
}

/// A delivery that GitHub signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// GitHub's id of it; the same when it is sent again.
    pub guid: String,
    /// What it says.
    pub event: Event,
}

/// What a delivery says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Something happened to a job.
    WorkflowJob(Box<WorkflowJob>),
    /// GitHub tries the webhook out.
    Ping,
    /// Nothing that Forrest acts on; the event's name.
    Other(String),
}

/// Something happened to a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkflowJob {
    /// What happened, in GitHub's words. For logs: [`WorkflowJob::job`] has what counts.
    pub action: Action,
    /// The job. Its status is the furthest of what the action and the job's own fields say.
    pub job: Job,
    /// The installation that the delivery is for.
    pub installation: Option<u64>,
    /// Whether a deployment is attached: such a job may be waiting for an approval, with deliveries
    /// in any order. Reading it through REST settles it.
    pub deployment: bool,
}

/// The action of a `workflow_job` event. GitHub's list is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The job waits for a runner.
    Queued,
    /// The job waits for an approval.
    Waiting,
    /// A runner has taken the job.
    InProgress,
    /// The job is over.
    Completed,
    /// Something that this version does not know.
    Unknown,
}

/// Why a request to the webhook is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WebhookError {
    /// It is not signed with one of our secrets. Answer 401 and do nothing.
    #[error(
        "{0}: it does not come from GitHub, or github.webhook_secret differs from the secret in the \
         App's settings"
    )]
    Unauthorized(&'static str),
    /// It is signed but makes no sense. Answer 400 and do nothing.
    #[error("it is signed by GitHub but cannot be read: {0}")]
    BadRequest(String),
}

impl WebhookError {
    /// The HTTP status to answer with.
    pub fn status(&self) -> u16 {
        match self {
            Self::Unauthorized(_) => 401,
            Self::BadRequest(_) => 400,
        }
    }
}

/// Checks deliveries against the webhook's secrets.
#[derive(Clone)]
pub struct Verifier {
    /// One per secret, with the key already worked in.
    keyed: Vec<Hmac<Sha256>>,
}

/// Shows nothing of the secrets.
impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").finish_non_exhaustive()
    }
}

impl Verifier {
    /// Takes the secrets: one, or more while one replaces another.
    ///
    /// # Errors
    /// [`GitHubError::Config`] without a secret or with an empty one: nothing unsigned is ever
    /// accepted.
    pub fn new(secrets: &[SecretString]) -> Result<Self, GitHubError> {
        if secrets.is_empty() || secrets.iter().any(|secret| secret.expose_secret().is_empty()) {
            let text = "github.webhook_secret is missing or empty; put the secret from the App's \
                        settings there";
            return Err(GitHubError::Config(text.to_owned()));
        }
        let keyed = secrets
            .iter()
            .map(|secret| Hmac::new_from_slice(secret.expose_secret().as_bytes()))
            .collect::<Result<_, _>>()
            .map_err(|_| GitHubError::Config("github.webhook_secret cannot be used".to_owned()))?;
        Ok(Self { keyed })
    }

    /// Checks the signature of the raw body, then reads it.
    ///
    /// # Errors
    /// [`WebhookError`].
    pub fn verify(&self, headers: &Headers<'_>, body: &[u8]) -> Result<Delivery, WebhookError> {
        self.authenticate(headers.signature, body)?;
        let guid = headers.guid.filter(|guid| is_guid(guid));
        let guid = guid.ok_or_else(|| bad("X-GitHub-Delivery is missing or no delivery id"))?;
        let name = headers.event.ok_or_else(|| bad("X-GitHub-Event is missing"))?;
        let event = match name {
            "workflow_job" => workflow_job(&json(headers.content_type, body)?)?,
            "ping" => {
                read::<IgnoredAny>(&json(headers.content_type, body)?)?;
                Event::Ping
            }
            other => Event::Other(foreign(other)),
        };
        Ok(Delivery { guid: guid.to_owned(), event })
    }

    fn authenticate(&self, signature: Option<&[u8]>, body: &[u8]) -> Result<(), WebhookError> {
        let signature = signature.ok_or(WebhookError::Unauthorized("no X-Hub-Signature-256"))?;
        let mut claimed = [0; 32];
        signature
            .strip_prefix(b"sha256=")
            .and_then(|hex| hex::decode_to_slice(hex, &mut claimed).ok())
            .ok_or(WebhookError::Unauthorized("X-Hub-Signature-256 is malformed"))?;
        let mut right = false;
        for keyed in &self.keyed {
            // `verify_slice` takes the same time wherever the difference is.
            right |= keyed.clone().chain_update(body).verify_slice(&claimed).is_ok();
        }
        if right { Ok(()) } else { Err(WebhookError::Unauthorized("the signature is wrong")) }
    }
}

fn is_guid(text: &str) -> bool {
    (1..=GUID_MAX).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}

fn bad(reason: impl Into<String>) -> WebhookError {
    WebhookError::BadRequest(reason.into())
}

/// The JSON of a body, which is the body itself or its form field `payload`.
fn json<'a>(content_type: Option<&str>, body: &'a [u8]) -> Result<Cow<'a, [u8]>, WebhookError> {
    let kind = content_type.unwrap_or("application/json");
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if kind.eq_ignore_ascii_case("application/json") {
        return Ok(Cow::Borrowed(body));
    }
    if !kind.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
        return Err(bad(format!("content type {:?} is neither JSON nor a form", foreign(kind))));
    }
    let payload = form_urlencoded::parse(body).find(|(name, _)| name == "payload");
    match payload {
        Some((_, Cow::Borrowed(text))) => Ok(Cow::Borrowed(text.as_bytes())),
        Some((_, Cow::Owned(text))) => Ok(Cow::Owned(text.into_bytes())),
        None => Err(bad("the form has no field \"payload\"")),
    }
}

fn read<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, WebhookError> {
    serde_json::from_slice(json).map_err(|error| bad(foreign(&error.to_string())))
}

#[derive(Deserialize)]
struct Payload<'a> {
    #[serde(borrow)]
    action: Option<Cow<'a, str>>,
    workflow_job: Option<WireJob>,
    repository: Option<WireRepository>,
    installation: Option<WireInstallationId>,
    deployment: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct WireInstallationId {
    id: Option<u64>,
}

fn workflow_job(json: &[u8]) -> Result<Event, WebhookError> {
    let payload: Payload<'_> = read(json)?;
    let wire = payload.workflow_job.ok_or_else(|| bad("it has no workflow_job"))?;
    let full_name = payload.repository.and_then(|repository| repository.full_name);
    let full_name = full_name.ok_or_else(|| bad("it does not name the repository"))?;
    let repository: Repository = full_name.parse().map_err(|error| bad(format!("{error}")))?;
    let action = match payload.action.as_deref() {
        Some("queued") => Action::Queued,
        Some("waiting") => Action::Waiting,
        Some("in_progress") => Action::InProgress,
        Some("completed") => Action::Completed,
        _ => Action::Unknown,
    };
    let mut job = wire.into_job(&repository);
    job.status = furthest(action, job.status);
    Ok(Event::WorkflowJob(Box::new(WorkflowJob {
        action,
        job,
        installation: payload.installation.and_then(|installation| installation.id),
        deployment: payload.deployment.is_some(),
    })))
}

/// What a delivery says of a job's status.
///
/// The action is the moment, the field is what the job looked like when the delivery was written,
/// which may be earlier or later. A job never goes back from a runner, so the further one is true.
/// Of queued and waiting the second one counts: `queued` with the status `waiting` is a job behind an
/// approval, which must not get a runner yet.
fn furthest(action: Action, status: JobStatus) -> JobStatus {
    match (action, status) {
        (Action::Completed, _) | (_, JobStatus::Completed) => JobStatus::Completed,
        (Action::InProgress, _) | (_, JobStatus::InProgress) => JobStatus::InProgress,
        (Action::Waiting, _) | (_, JobStatus::Waiting) => JobStatus::Waiting,
        (Action::Queued | Action::Unknown, JobStatus::Queued) => JobStatus::Queued,
        (Action::Queued | Action::Unknown, JobStatus::Unknown) => JobStatus::Unknown,
    }
}

#[cfg(test)]
mod tests;
