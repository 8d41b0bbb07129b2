//! The webhook endpoint: verify, put into the inbox, answer.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use forrest_core::Event;
use forrest_core::event::Source;
use forrest_github::webhook::{self, Headers, Verifier};
use http_body_util::BodyExt;
use tokio::sync::{Semaphore, mpsc, watch};

use crate::driver::{Inbox, Message};

/// Bytes of bodies in memory at a time, over all connections; further requests wait.
const BODIES_LEN_MAX: usize = 32 << 20;
/// Time for a body to arrive, waiting for memory included. GitHub gives up after 10 s.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// What the endpoint works with.
#[derive(Debug, Clone)]
pub(crate) struct Webhooks {
    inbox: Inbox,
    /// The secret in force; it may change with the configuration.
    verifier: watch::Receiver<Arc<Verifier>>,
    memory: Arc<Semaphore>,
}

impl Webhooks {
    /// An endpoint that puts what it accepts into this inbox.
    pub(crate) fn new(inbox: Inbox, verifier: watch::Receiver<Arc<Verifier>>) -> Self {
        Self { inbox, verifier, memory: Arc::new(Semaphore::new(BODIES_LEN_MAX)) }
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
        tracing::warn!(status = answer.status.as_u16(), "webhook refused: {}", answer.text);
    }
    (answer.status, format!("{}\n", answer.text)).into_response()
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
        let limit = announced.unwrap_or(webhook::BODY_MAX);
        if limit > webhook::BODY_MAX {
            return Err(too_large());
        }
        let memory = self.memory.acquire_many(u32::try_from(limit).unwrap_or(u32::MAX)).await;
        let _memory =
            memory.map_err(|_| Reply::new(StatusCode::SERVICE_UNAVAILABLE, "stopping"))?;
        let mut read = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| {
                Reply::new(StatusCode::BAD_REQUEST, format!("the body broke off: {error}"))
            })?;
            let Ok(data) = frame.into_data() else { continue };
            if read.len() + data.len() > limit {
                return Err(too_large());
            }
            read.extend_from_slice(&data);
        }
        Ok(read.freeze())
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
