//! Receives webhooks as Forrest would: checks the signature and the headers, and the body against the
//! contract.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use github_sim::contract;
use github_sim::model::HookTarget;
use github_sim::webhooks::sign;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc;

use crate::client::SECRET;

/// A webhook that arrived.
#[derive(Debug)]
pub struct Arrived {
    pub event: String,
    pub guid: String,
    pub payload: Value,
}

impl Arrived {
    /// `action` and the job's `status`.
    pub fn what(&self) -> (String, String) {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (text(&self.payload["action"]), text(&self.payload["workflow_job"]["status"]))
    }
}

/// Where webhooks arrive.
#[derive(Debug)]
pub struct Receiver {
    arrived: mpsc::UnboundedReceiver<Arrived>,
    pub target: HookTarget,
    answer: Arc<AtomicU16>,
    _socket: Option<tempfile::TempDir>,
}

impl Receiver {
    pub async fn tcp() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (receiver, post) = Self::new(
            HookTarget::Tcp { authority: address.to_string(), path: "/hook".into() },
            None,
        );
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                post.clone().serve(stream);
            }
        });
        receiver
    }

    pub fn unix() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let socket: PathBuf = directory.path().join("webhook.sock");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let (receiver, post) =
            Self::new(HookTarget::Unix { socket, path: "/hook".into() }, Some(directory));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                post.clone().serve(stream);
            }
        });
        receiver
    }

    fn new(target: HookTarget, socket: Option<tempfile::TempDir>) -> (Self, Post) {
        let (sender, arrived) = mpsc::unbounded_channel();
        let answer = Arc::new(AtomicU16::new(200));
        let post = Post { sender, answer: Arc::clone(&answer) };
        (Self { arrived, target, answer, _socket: socket }, post)
    }

    /// Answers with this status from now on.
    pub fn answer_with(&self, status: u16) {
        self.answer.store(status, Ordering::SeqCst);
    }

    /// The next webhook.
    pub async fn next(&mut self) -> Arrived {
        let next = tokio::time::timeout(Duration::from_secs(20), self.arrived.recv());
        next.await.expect("a webhook in time").expect("a webhook")
    }

    /// Action and status of the next webhook.
    pub async fn next_what(&mut self) -> (String, String) {
        self.next().await.what()
    }

    /// Whether nothing has arrived that was not taken.
    pub fn is_empty(&mut self) -> bool {
        self.arrived.try_recv().is_err()
    }
}

#[derive(Clone)]
struct Post {
    sender: mpsc::UnboundedSender<Arrived>,
    answer: Arc<AtomicU16>,
}

impl Post {
    fn serve<S>(self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let post = self.clone();
                async move { post.take(request).await }
            });
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }

    async fn take(
        self,
        request: hyper::Request<Incoming>,
    ) -> Result<hyper::Response<Full<Bytes>>, hyper::Error> {
        let headers = request.headers().clone();
        assert_eq!(request.uri().path(), "/hook");
        let body = request.into_body().collect().await?.to_bytes();
        let header = |name: &str| {
            headers.get(name).unwrap_or_else(|| panic!("no {name}")).to_str().expect("a text")
        };
        assert_eq!(header("x-hub-signature-256"), sign(SECRET, &body));
        assert!(header("user-agent").starts_with("GitHub-Hookshot/"));
        assert_eq!(header("x-github-hook-installation-target-type"), "integration");
        let text = match header("content-type") {
            "application/json" => body.to_vec(),
            "application/x-www-form-urlencoded" => {
                let url = format!("http://x/?{}", String::from_utf8_lossy(&body));
                let url = reqwest::Url::parse(&url).expect("a form");
                let (name, value) = url.query_pairs().next().expect("a field");
                assert_eq!(name, "payload");
                value.into_owned().into_bytes()
            }
            other => panic!("content type {other}"),
        };
        let payload: Value = serde_json::from_slice(&text).expect("a JSON payload");
        let event = header("x-github-event").to_owned();
        if let Some(contract) = contract::for_test("webhooks") {
            contract.check_webhook(&event, &payload).unwrap_or_else(|error| panic!("{error}"));
        }
        let guid = header("x-github-delivery").to_owned();
        let _ = self.sender.send(Arrived { event, guid, payload });
        let mut response = hyper::Response::new(Full::new(Bytes::from_static(b"thanks")));
        *response.status_mut() =
            hyper::StatusCode::from_u16(self.answer.load(Ordering::SeqCst)).expect("a status");
        Ok(response)
    }
}
