//! The shim's socket: takes connections, reads requests, writes answers and events. Decides nothing.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, broadcast, mpsc, oneshot};
use tokio::time::timeout;

use crate::lines::{BoundedLines, Line};
use crate::protocol::{Answer, CLIENTS_MAX, REQUEST_LEN_MAX, Request, ShimEvent, VmState};

/// How long a client may take to accept an answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// Requests that may wait for the supervisor.
pub(crate) const CALLS_MAX: usize = 16;
const READ_BUFFER_LEN: usize = 512;

/// A request on its way to the supervisor, with the way back.
pub(crate) enum Call {
    Do(Request, oneshot::Sender<Result<(), String>>),
    Status(oneshot::Sender<Box<VmState>>),
    Watch(oneshot::Sender<(Box<VmState>, broadcast::Receiver<ShimEvent>)>),
}

/// Counts clients, and tells when the last one is gone.
#[derive(Debug, Clone)]
pub(crate) struct Clients(Arc<Semaphore>);

impl Clients {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Semaphore::new(CLIENTS_MAX)))
    }

    /// Waits until nobody is connected any more.
    pub(crate) async fn gone(&self) {
        // The semaphore is never closed, so this only waits.
        let _ = self.0.acquire_many(CLIENTS_MAX as u32).await;
    }
}

/// Takes connections until the supervisor is gone.
pub(crate) async fn serve(listener: UnixListener, clients: Clients, calls: mpsc::Sender<Call>) {
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(_) => {
                    // Out of file descriptors or memory: whoever holds them has to let go first.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            () = calls.closed() => return,
        };
        // Beyond the bound, the connection is closed at once.
        let Ok(place) = Arc::clone(&clients.0).try_acquire_owned() else { continue };
        let calls = calls.clone();
        tokio::spawn(async move {
            // Whatever goes wrong with a client ends that client only.
            let _ = client(stream, calls).await;
            drop(place);
        });
    }
}

/// Serves one connection until it ends; `None` when either side is gone.
async fn client(stream: UnixStream, calls: mpsc::Sender<Call>) -> Option<()> {
    let (read, mut write) = stream.into_split();
    let mut lines = BoundedLines::new(read, REQUEST_LEN_MAX, READ_BUFFER_LEN);
    loop {
        let line = tokio::select! {
            line = lines.next() => line.ok()??,
            () = calls.closed() => return None,
        };
        let request = match line {
            Line::Text(line) => serde_json::from_slice(&line).map_err(|err| err.to_string()),
            Line::TooLong => Err(format!("a request has at most {REQUEST_LEN_MAX} bytes")),
        };
        let answer = match request {
            Err(reason) => Answer::Refused { reason },
            Ok(Request::Watch) => {
                let (reply, state) = oneshot::channel();
                calls.send(Call::Watch(reply)).await.ok()?;
                let (state, events) = state.await.ok()?;
                drop(calls);
                send(&mut write, &Answer::State { state }).await?;
                return watch(lines, write, events).await;
            }
            Ok(Request::Status) => {
                let (reply, state) = oneshot::channel();
                calls.send(Call::Status(reply)).await.ok()?;
                Answer::State { state: state.await.ok()? }
            }
            Ok(request) => {
                let (reply, done) = oneshot::channel();
                calls.send(Call::Do(request, reply)).await.ok()?;
                match done.await.ok()? {
                    Ok(()) => Answer::Done,
                    Err(reason) => Answer::Refused { reason },
                }
            }
        };
        send(&mut write, &answer).await?;
    }
}

/// Sends events until the last one, or until the client hangs up, says anything more, or is too slow.
async fn watch<R: tokio::io::AsyncRead + Unpin>(
    mut lines: BoundedLines<R>,
    mut write: OwnedWriteHalf,
    mut events: broadcast::Receiver<ShimEvent>,
) -> Option<()> {
    loop {
        let event = tokio::select! {
            event = events.recv() => event.ok()?,
            _ = lines.next() => return None,
        };
        send(&mut write, &Answer::Event { event }).await?;
    }
}

async fn send(write: &mut OwnedWriteHalf, answer: &Answer) -> Option<()> {
    let mut line = serde_json::to_vec(answer).ok()?;
    line.push(b'\n');
    timeout(WRITE_TIMEOUT, write.write_all(&line)).await.ok()?.ok()
}
