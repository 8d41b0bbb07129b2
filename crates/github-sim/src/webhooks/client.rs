//! The HTTP client that webhooks are sent with: plain HTTP/1.1 over TCP or a unix socket, connections
//! kept open.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::model::{HookTarget, MAX_ANSWER_BYTES, Outcome};

/// How many open connections are kept for later.
const MAX_KEPT: usize = 64;

type Sender = SendRequest<Full<Bytes>>;

/// Sends webhooks.
#[derive(Debug, Clone, Default)]
pub(crate) struct Client {
    kept: Arc<Mutex<Vec<(HookTarget, Sender)>>>,
}

/// Why there is no answer.
enum Failure {
    Connect,
    Broken,
}

impl Client {
    /// Sends one webhook and waits for the answer for at most `timeout`.
    pub(crate) async fn post(
        &self,
        target: &HookTarget,
        headers: &[(&'static str, String)],
        body: Bytes,
        timeout: Duration,
    ) -> Outcome {
        match tokio::time::timeout(timeout, self.exchange(target, headers, body)).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(Failure::Connect)) => {
                Outcome::Failed { status: 502, reason: "failed to connect to host" }
            }
            Ok(Err(Failure::Broken)) => {
                Outcome::Failed { status: 502, reason: "connection closed without an answer" }
            }
            Err(_) => Outcome::Failed { status: 504, reason: "timed out" },
        }
    }

    async fn exchange(
        &self,
        target: &HookTarget,
        headers: &[(&'static str, String)],
        body: Bytes,
    ) -> Result<Outcome, Failure> {
        // A kept connection may just have been closed by the other side: then the request never got
        // through, and a new connection is tried.
        while let Some(mut sender) = self.kept_for(target) {
            if sender.ready().await.is_err() {
                continue;
            }
            match sender.send_request(request(target, headers, body.clone())).await {
                Ok(response) => return self.outcome(target, sender, response).await,
                Err(error) if error.is_canceled() || error.is_closed() => {}
                Err(_) => return Err(Failure::Broken),
            }
        }
        let mut sender = connect(target).await?;
        let response = sender
            .send_request(request(target, headers, body))
            .await
            .map_err(|_| Failure::Broken)?;
        self.outcome(target, sender, response).await
    }

    async fn outcome(
        &self,
        target: &HookTarget,
        sender: Sender,
        response: Response<hyper::body::Incoming>,
    ) -> Result<Outcome, Failure> {
        let status = response.status().as_u16();
        let headers = response
            .headers()
            .iter()
            .map(|(name, value)| {
                (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())
            })
            .collect();
        let answer = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
        let body = match answer {
            Ok(answer) => {
                self.keep(target, sender);
                String::from_utf8_lossy(&answer.to_bytes()).into_owned()
            }
            Err(_) => "(too long to keep, or broken off)".to_owned(),
        };
        Ok(Outcome::Answered { status, headers, body })
    }

    fn kept_for(&self, target: &HookTarget) -> Option<Sender> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(_, sender)| !sender.is_closed());
        let index = kept.iter().position(|(there, _)| there == target)?;
        Some(kept.swap_remove(index).1)
    }

    fn keep(&self, target: &HookTarget, sender: Sender) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < MAX_KEPT {
            kept.push((target.clone(), sender));
        }
    }
}

fn request(
    target: &HookTarget,
    headers: &[(&'static str, String)],
    body: Bytes,
) -> Request<Full<Bytes>> {
    let (host, path) = match target {
        HookTarget::Tcp { authority, path } => (authority.as_str(), path),
        HookTarget::Unix { path, .. } => ("localhost", path),
    };
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = hyper::Method::POST;
    *request.uri_mut() = path.parse().unwrap_or_else(|_| hyper::Uri::from_static("/"));
    let all = headers.iter().map(|(n, v)| (*n, v.as_str())).chain([("Host", host)]);
    for (name, value) in all {
        let name = hyper::header::HeaderName::from_bytes(name.as_bytes());
        let value = hyper::header::HeaderValue::from_str(value);
        if let (Ok(name), Ok(value)) = (name, value) {
            request.headers_mut().insert(name, value);
        }
    }
    request
}

async fn connect(target: &HookTarget) -> Result<Sender, Failure> {
    match target {
        HookTarget::Tcp { authority, .. } => {
            let stream = TcpStream::connect(authority).await.map_err(|_| Failure::Connect)?;
            // Small requests must not wait for acknowledgements.
            let _ = stream.set_nodelay(true);
            shake_hands(stream).await
        }
        HookTarget::Unix { socket, .. } => {
            shake_hands(UnixStream::connect(socket).await.map_err(|_| Failure::Connect)?).await
        }
    }
}

async fn shake_hands<S>(stream: S) -> Result<Sender, Failure>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) =
        handshake(TokioIo::new(stream)).await.map_err(|_| Failure::Connect)?;
    // Ends by itself when the sender is dropped or the other side closes.
    tokio::spawn(connection);
    Ok(sender)
}
