//! Sockets and HTTP: accepts connections, reads requests, sends answers, and does to them what faults
//! ask for. What the answers are is decided elsewhere.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::api::{self, Body, JSON, Reply, Request, Treatment};
use crate::control;
use crate::runner::{Session, secret_of};
use crate::shared::Shared;

/// The most connections at a time; more wait to be accepted.
pub const MAX_CONNECTIONS: usize = 4_096;
/// The largest request, in bytes.
pub const MAX_BODY_BYTES: usize = 4 << 20;
/// How long a hanging answer keeps its connection.
const MAX_HANG: Duration = Duration::from_secs(600);
/// How long a client may take to send its request's head.
const HEADER_PATIENCE: Duration = Duration::from_secs(30);

/// Where runners connect.
const SESSION_PATH: &str = "/_sim/runner/v1/session";

type HttpResponse = Response<Full<Bytes>>;

/// The connection breaks without an answer.
#[derive(Debug, thiserror::Error)]
#[error("broken off on purpose")]
struct BrokenOff;

/// Accepts connections for ever.
pub(crate) async fn serve(shared: Arc<Shared>, listener: TcpListener) {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    connection(shared, stream).await;
                    drop(permit);
                });
            }
            Err(error) => {
                // Out of file descriptors, usually: others will be closed.
                tracing::warn!(%error, "failed to accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn connection(shared: Arc<Shared>, stream: TcpStream) {
    // Small answers must not wait for acknowledgements.
    let _ = stream.set_nodelay(true);
    let house = Arc::clone(&shared);
    let socket = stream.as_fd().try_clone_to_owned().ok().map(Arc::new);
    let service = service_fn(move |request| respond(Arc::clone(&shared), socket.clone(), request));
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_PATIENCE)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    tokio::select! {
        served = serving => {
            if let Err(error) = served {
                tracing::debug!(%error, "a connection ended");
            }
        }
        () = house.closing() => {}
    }
}

async fn respond(
    shared: Arc<Shared>,
    socket: Option<Arc<OwnedFd>>,
    request: hyper::Request<Incoming>,
) -> Result<HttpResponse, BrokenOff> {
    if request.uri().path() == SESSION_PATH {
        return Ok(http(session(&shared, socket, request)));
    }
    let (parts, body) = request.into_parts();
    let body = match Limited::new(body, MAX_BODY_BYTES).collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => {
            return Ok(http(Reply::error(StatusCode::PAYLOAD_TOO_LARGE, "The body is too large")));
        }
    };
    let request = Request::new(parts.method, &parts.uri, parts.headers, body);
    if request.path == "/_sim" || request.path.starts_with("/_sim/") {
        return Ok(http(control::answer(&shared, &request).await));
    }
    api_answer(&shared, &request).await
}

/// Turns a runner's request into a session.
fn session(
    shared: &Arc<Shared>,
    socket: Option<Arc<OwnedFd>>,
    mut request: hyper::Request<Incoming>,
) -> Reply {
    let upgrade = request.headers().get("upgrade").is_some_and(|name| name == "sim-runner");
    let config = request
        .headers()
        .get("authorization")
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "));
    let (true, Some(config)) = (upgrade, config) else {
        return Reply::error(StatusCode::BAD_REQUEST, "This is for the stand-in runner");
    };
    let session = match secret_of(config).and_then(|secret| Session::open(shared, &secret)) {
        Ok(session) => session,
        Err(crate::SimError::RunnerConnected(_)) => {
            return Reply::error(StatusCode::CONFLICT, "A session for this runner already exists");
        }
        Err(_) => return Reply::unauthorized("There is no such runner"),
    };
    let upgraded = hyper::upgrade::on(&mut request);
    let house = Arc::clone(shared);
    tokio::spawn(async move {
        let serving = async {
            match upgraded.await {
                Ok(stream) => {
                    if let Err(error) = session.serve(TokioIo::new(stream), socket).await {
                        tracing::debug!(%error, "a runner's connection broke");
                    }
                }
                Err(error) => tracing::debug!(%error, "a runner left before it was connected"),
            }
        };
        tokio::select! {
            () = serving => {}
            () = house.closing() => {}
        }
    });
    Reply::empty(StatusCode::SWITCHING_PROTOCOLS)
        .header("connection", "Upgrade")
        .header("upgrade", "sim-runner")
}

/// Answers a request of the API, with what faults do to it.
async fn api_answer(shared: &Shared, request: &Request) -> Result<HttpResponse, BrokenOff> {
    let operation = api::route(&request.method, &request.path);
    let (fault, at) = shared.with(|world, now| (api::strike(world, operation.as_ref()), now));
    let number = shared.record(request.record(at, operation.as_ref().map(api::Operation::id)));
    if let Some(delay) = api::delay(fault.as_ref()) {
        tokio::time::sleep(delay).await;
    }
    let treated = shared.with(|world, now| {
        let treated = api::answer(world, request, operation.as_ref(), fault.as_ref(), now);
        if let Some(delivery) = treated.redeliver {
            for dispatch in crate::webhooks::redeliver(world, delivery, now) {
                shared.enqueue(world, dispatch, now);
            }
        }
        (treated, world.settings.record_responses)
    });
    let (treated, keep) = treated;
    match treated.treatment {
        Treatment::Send | Treatment::Maim => {
            let mut reply = treated.reply;
            if treated.treatment == Treatment::Maim {
                reply = maimed(reply);
            }
            let kept = keep.then(|| String::from_utf8_lossy(&reply.bytes()).into_owned());
            shared.record_answer(number, reply.status.as_u16(), kept);
            Ok(http(reply))
        }
        Treatment::Hang => {
            tokio::time::sleep(MAX_HANG).await;
            Err(BrokenOff)
        }
        Treatment::Break => Err(BrokenOff),
    }
}

/// The answer with the second half of its body missing.
fn maimed(mut reply: Reply) -> Reply {
    let bytes = reply.bytes();
    reply.body = Body::Raw { content_type: JSON, bytes: bytes.slice(..bytes.len() / 2) };
    reply
}

/// The answer as HTTP.
fn http(reply: Reply) -> HttpResponse {
    let content_type = match reply.body {
        Body::Empty => None,
        Body::Json(_) => Some(JSON),
        Body::Raw { content_type, .. } => Some(content_type),
    };
    let mut response = Response::new(Full::new(reply.bytes()));
    *response.status_mut() = reply.status;
    if let Some(content_type) = content_type {
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    }
    for (name, value) in reply.headers {
        if let Ok(value) = HeaderValue::from_str(&value) {
            response.headers_mut().insert(HeaderName::from_static(name), value);
        }
    }
    response
}
