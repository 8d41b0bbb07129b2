//! The webhook endpoint: verify, put into the inbox, answer.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use forrest_core::Event;
use forrest_core::event::Source;
use forrest_github::webhook::{self, Headers, Verifier};
use http_body_util::BodyExt;
use tokio::sync::{Semaphore, mpsc, watch};

use crate::driver::{Inbox, Message};

/// The bytes of a body that every connection may hold whatever the others do. Webhooks about jobs have
/// 10 to 25 KB, so that no flood of large bodies keeps one of them from being read.
const BODY_LEN_SURE: usize = 64 << 10;
/// What goes beyond that, in bytes over all connections; whoever has more to send waits.
const BODIES_LEN_MAX: usize = 32 << 20;
/// Lines about refused requests that are logged at once, before [`REFUSALS_PER_MIN`] counts.
const REFUSALS_BURST: u32 = 20;
/// Lines about refused requests that are logged in the long run, a minute. Anybody can cause one.
const REFUSALS_PER_MIN: u32 = 10;
/// Time for a body to arrive, waiting for memory included. GitHub gives up after 10 s.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// What the endpoint works with.
#[derive(Debug, Clone)]
pub(crate) struct Webhooks {
    inbox: Inbox,
    /// The secret in force; it may change with the configuration.
    verifier: watch::Receiver<Arc<Verifier>>,
    memory: Arc<Semaphore>,
    refusals: Arc<Mutex<Refusals>>,
}

impl Webhooks {
    /// An endpoint that puts what it accepts into this inbox.
    pub(crate) fn new(inbox: Inbox, verifier: watch::Receiver<Arc<Verifier>>) -> Self {
        let memory = Arc::new(Semaphore::new(BODIES_LEN_MAX));
        let refusals = Arc::new(Mutex::new(Refusals::new(Instant::now())));
        Self { inbox, verifier, memory, refusals }
    }
}

/// Every path is the endpoint: which one GitHub is given is the reverse proxy's business.
pub(crate) fn router(webhooks: Webhooks) -> Router {
    Router::new().fallback(receive).with_state(webhooks)
}

async fn receive(State(webhooks): State<Webhooks>, request: Request) -> Response {
    if request.method() != Method::POST {
        let hint = "this is Forrest's webhook endpoint: GitHub sends POST requests here\n";
        return (StatusCode::METHOD_NOT_ALLOWED, [(header::ALLOW, "POST")], hint).into_response();
    }
    let (head, body) = request.into_parts();
    let answer = match tokio::time::timeout(BODY_TIMEOUT, webhooks.body(&head.headers, body)).await
    {
        Ok(Ok(body)) => webhooks.accept(&head.headers, &body),
        Ok(Err(refusal)) => refusal,
        Err(_) => Reply::new(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time"),
    };
    if answer.status.is_success() {
        tracing::debug!(status = answer.status.as_u16(), "webhook: {}", answer.text);
    } else {
        webhooks.log_refusal(&answer);
    }
    let mut response = (answer.status, format!("{}\n", answer.text)).into_response();
    if answer.status.is_client_error() {
        // Whoever is no GitHub has to queue for its next place.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Which refusals are worth a line in the log.
#[derive(Debug)]
struct Refusals {
    /// Lines that may still be written.
    budget: f64,
    at: Instant,
    /// Refusals without a line since the last line.
    unsaid: u64,
}

impl Refusals {
    fn new(now: Instant) -> Self {
        Self { budget: f64::from(REFUSALS_BURST), at: now, unsaid: 0 }
    }

    /// Counts a refusal. With a number it is to be logged: so many before it were not.
    fn count(&mut self, now: Instant) -> Option<u64> {
        let earned = now.saturating_duration_since(self.at).as_secs_f64() / 60.0;
        let earned = earned * f64::from(REFUSALS_PER_MIN);
        self.budget = (self.budget + earned).min(f64::from(REFUSALS_BURST));
        self.at = now;
        if self.budget < 1.0 {
            self.unsaid = self.unsaid.saturating_add(1);
            return None;
        }
        self.budget -= 1.0;
        Some(std::mem::take(&mut self.unsaid))
    }
}

/// An answer in words.
struct Reply {
    status: StatusCode,
    text: String,
}

impl Reply {
    fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into() }
    }
}

impl Webhooks {
    /// Reads a body within the bounds of memory.
    async fn body(&self, headers: &HeaderMap, mut body: Body) -> Result<Bytes, Reply> {
        let too_large = || {
            let text = format!("the body is larger than {} bytes", webhook::BODY_MAX);
            Reply::new(StatusCode::PAYLOAD_TOO_LARGE, text)
        };
        let announced = headers
            .get(header::CONTENT_LENGTH)
            .and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
        if announced.is_some_and(|announced| announced > webhook::BODY_MAX) {
            return Err(too_large());
        }
        // Taken once the body turns out to be large, and all at once: of two that each had a half,
        // neither would ever be read.
        let mut memory = None;
        let limit = announced.unwrap_or(webhook::BODY_MAX);
        let mut read = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| {
                Reply::new(StatusCode::BAD_REQUEST, format!("the body broke off: {error}"))
            })?;
            let Ok(data) = frame.into_data() else { continue };
            let len = read.len() + data.len();
            if len > limit {
                return Err(too_large());
            }
            if len > BODY_LEN_SURE && memory.is_none() {
                let place =
                    self.memory.acquire_many(u32::try_from(limit).unwrap_or(u32::MAX)).await;
                let stopping = |_| Reply::new(StatusCode::SERVICE_UNAVAILABLE, "stopping");
                memory = Some(place.map_err(stopping)?);
            }
            read.extend_from_slice(&data);
        }
        Ok(read.freeze())
    }

    fn log_refusal(&self, answer: &Reply) {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        match refusals.count(Instant::now()) {
            Some(0) => {
                tracing::warn!(status = answer.status.as_u16(), "webhook refused: {}", answer.text);
            }
            Some(unsaid) => tracing::warn!(
                status = answer.status.as_u16(),
                "webhook refused, and {unsaid} more since the last such line: {}",
                answer.text
            ),
            None => {}
        }
    }

    fn accept(&self, headers: &HeaderMap, body: &Bytes) -> Reply {
        let verifier = Arc::clone(&self.verifier.borrow());
        let delivery = match verifier.verify(&Headers::from(headers), body) {
            Ok(delivery) => delivery,
            Err(error) => {
                let status =
                    StatusCode::from_u16(error.status()).unwrap_or(StatusCode::BAD_REQUEST);
                return Reply::new(status, error.to_string());
            }
        };
        match delivery.event {
            webhook::Event::WorkflowJob(event) => {
                let event = Event::JobReported { job: event.job, source: Source::Webhook };
                match self.inbox.try_send(Message::Event(event)) {
                    Ok(()) => Reply::new(StatusCode::ACCEPTED, "taken"),
                    Err(mpsc::error::TrySendError::Full(_)) => {
                        Reply::new(StatusCode::SERVICE_UNAVAILABLE, "too busy: send it again")
                    }
                    Err(mpsc::error::TrySendError::Closed(_)) => {
                        Reply::new(StatusCode::SERVICE_UNAVAILABLE, "stopping: send it again")
                    }
                }
            }
            webhook::Event::Ping => Reply::new(StatusCode::OK, "pong"),
            webhook::Event::Other(name) => {
                Reply::new(StatusCode::OK, format!("{name} events are of no use here"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_refusals_is_a_few_lines() {
        let began = Instant::now();
        let mut refusals = Refusals::new(began);
        let mut lines = 0;
        let mut told = 0;
        for second in 0..600 {
            for _ in 0..100 {
                if let Some(unsaid) = refusals.count(began + Duration::from_secs(second)) {
                    lines += 1;
                    told += unsaid + 1;
                }
            }
        }
        assert!((100..=REFUSALS_BURST + 10 * REFUSALS_PER_MIN).contains(&lines), "{lines} lines");
        assert_eq!(told + refusals.unsaid, 60_000);
    }
}
