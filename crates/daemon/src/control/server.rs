//! The daemon's side of the control socket.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use forrest_core::model::{MachineTypeName, RunnerName};
use forrest_core::{Event, View};
use forrest_images::Store;
use tokio::sync::{oneshot, watch};

use super::{DaemonStatus, SnapshotFiles, Status};
use crate::driver::{Inbox, Message};

/// Shortest time between two lines of `GET /watch`.
const WATCH_PAUSE: Duration = Duration::from_millis(20);

#[derive(Debug, Clone)]
struct Control {
    inbox: Inbox,
    changes: watch::Receiver<()>,
    daemon: Arc<DaemonStatus>,
    store: Store,
}

/// What the control socket offers.
pub(crate) fn router(
    inbox: Inbox,
    changes: watch::Receiver<()>,
    daemon: DaemonStatus,
    store: Store,
) -> Router {
    Router::new()
        .route("/status", get(status))
        .route("/watch", get(watch_status))
        .route("/runs/{runner}/stop", post(stop))
        .route("/drain", post(|state| drain(state, true)))
        .route("/resume", post(|state| drain(state, false)))
        .route("/snapshots", get(snapshots))
        .route("/snapshots/{owner}/{repository}/{machine}/build", post(build_snapshot))
        .route("/snapshots/{owner}/{repository}/{machine}/remove", post(remove_snapshot))
        .with_state(Control { inbox, changes, daemon: Arc::new(daemon), store })
}

impl Control {
    async fn view(&self) -> Result<View, Response> {
        let stopping =
            || (StatusCode::SERVICE_UNAVAILABLE, "the daemon is stopping").into_response();
        let (answer, view) = oneshot::channel();
        self.inbox.send(Message::View(answer)).await.map_err(|_| stopping())?;
        view.await.map_err(|_| stopping())
    }

    async fn tell(&self, event: Event) -> Response {
        match self.inbox.send(Message::Event(event)).await {
            Ok(()) => StatusCode::ACCEPTED.into_response(),
            Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the daemon is stopping").into_response(),
        }
    }
}

async fn status(State(control): State<Control>) -> Response {
    match control.view().await {
        Ok(view) => {
            let daemon = DaemonStatus::clone(&control.daemon);
            Json(Status { daemon, view }).into_response()
        }
        Err(response) => response,
    }
}

/// A line now and after each change, until the client has had enough.
async fn watch_status(State(control): State<Control>) -> Response {
    let lines = futures::stream::unfold((control, true), |(mut control, first)| async move {
        if !first {
            tokio::time::sleep(WATCH_PAUSE).await;
            control.changes.changed().await.ok()?;
        }
        let view = control.view().await.ok()?;
        let status = Status { daemon: DaemonStatus::clone(&control.daemon), view };
        let mut line = serde_json::to_vec(&status).ok()?;
        line.push(b'\n');
        Some((Ok::<_, Infallible>(line), (control, false)))
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

async fn stop(State(control): State<Control>, Path(runner): Path<String>) -> Response {
    let Ok(runner) = runner.parse::<RunnerName>() else {
        return (StatusCode::NOT_FOUND, "that is no runner's name").into_response();
    };
    match control.view().await {
        Ok(view) if view.runs.iter().any(|run| run.runner == runner) => {
            control.tell(Event::StopRequested { runner }).await
        }
        Ok(_) => (StatusCode::NOT_FOUND, "there is no such run").into_response(),
        Err(response) => response,
    }
}

async fn drain(State(control): State<Control>, draining: bool) -> Response {
    control.tell(Event::DrainRequested(draining)).await
}

/// What is on the disk.
async fn snapshots(State(control): State<Control>) -> Response {
    let listed = tokio::task::spawn_blocking(move || control.store.list_snapshots()).await;
    let failed = |why: String| (StatusCode::INTERNAL_SERVER_ERROR, why).into_response();
    match listed {
        Ok(Ok(found)) => {
            let files = found.into_iter().map(|snapshot| SnapshotFiles {
                machine: snapshot.meta.machine,
                key: snapshot.meta.key.to_string(),
                image: snapshot.meta.image.image,
                built_at: snapshot.meta.built_at,
                size: snapshot.allocated,
            });
            Json(files.collect::<Vec<_>>()).into_response()
        }
        Ok(Err(error)) => failed(error.to_string()),
        Err(error) => failed(error.to_string()),
    }
}

type MachineParts = Path<(String, String, String)>;

async fn build_snapshot(control: State<Control>, machine: MachineParts) -> Response {
    of_snapshot(control, machine, |machine| Event::SnapshotBuildRequested { machine }).await
}

async fn remove_snapshot(control: State<Control>, machine: MachineParts) -> Response {
    of_snapshot(control, machine, |machine| Event::SnapshotRemovalRequested { machine }).await
}

async fn of_snapshot(
    State(control): State<Control>,
    Path((owner, repository, machine)): MachineParts,
    event: impl FnOnce(MachineTypeName) -> Event,
) -> Response {
    let Ok(machine) = format!("{owner}/{repository}/{machine}").parse::<MachineTypeName>() else {
        return (StatusCode::NOT_FOUND, "that is no machine type's name").into_response();
    };
    match control.view().await {
        Ok(view) if view.machines.iter().any(|m| m.name == machine && m.snapshot.is_some()) => {
            control.tell(event(machine)).await
        }
        Ok(_) => {
            let why = format!("{machine} is not configured with `snapshot: true`");
            (StatusCode::NOT_FOUND, why).into_response()
        }
        Err(response) => response,
    }
}
