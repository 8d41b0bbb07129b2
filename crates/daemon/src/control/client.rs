//! The command line's side of the control socket.

use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use super::{SnapshotFiles, Status, socket};
use forrest_core::model::{MachineTypeName, RunnerName};

/// The longest answer that is read, in bytes.
const ANSWER_LEN_MAX: usize = 64 << 20;
/// How long the daemon may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why the daemon did not answer as hoped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// Nobody listens.
    #[error(
        "no daemon answers on {}: {source}; start one with `forrest run --config FILE`, \
         or name the configuration of the one that runs", path.display()
    )]
    NotRunning {
        /// The socket.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// It did not answer in time.
    #[error("the daemon on {} did not answer in {} s; its log may say why", path.display(), TIMEOUT.as_secs())]
    Timeout {
        /// The socket.
        path: PathBuf,
    },
    /// It said no.
    #[error("the daemon refused: {message}")]
    Refused {
        /// The HTTP status.
        status: StatusCode,
        /// Its words.
        message: String,
    },
    /// Its answer makes no sense: another version?
    #[error(
        "the daemon's answer makes no sense ({cause}); is it of another version than this command?"
    )]
    BadAnswer {
        /// What is wrong with it.
        cause: String,
    },
}

/// A way to the daemon.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// A way to the daemon that serves this base directory.
    pub fn new(base_dir: &Path) -> Self {
        Self { socket: socket(base_dir) }
    }

    /// What it knows and does.
    ///
    /// # Errors
    /// [`ControlError`] where it does not answer, or not as this version expects.
    pub async fn status(&self) -> Result<Status, ControlError> {
        let body = self.request(Method::GET, "/status").await?;
        serde_json::from_slice(&body).map_err(|error| bad(&error))
    }

    /// Ends a run, whatever it does.
    ///
    /// # Errors
    /// [`ControlError`]; [`ControlError::Refused`] where there is no such run.
    pub async fn stop(&self, runner: &RunnerName) -> Result<(), ControlError> {
        self.request(Method::POST, &format!("/runs/{runner}/stop")).await.map(drop)
    }

    /// Holds new runs back (`true`), or lets them start again.
    ///
    /// # Errors
    /// [`ControlError`] where the daemon does not answer.
    pub async fn drain(&self, draining: bool) -> Result<(), ControlError> {
        let path = if draining { "/drain" } else { "/resume" };
        self.request(Method::POST, path).await.map(drop)
    }

    /// The snapshots that are there.
    ///
    /// # Errors
    /// [`ControlError`] where the daemon does not answer.
    pub async fn snapshots(&self) -> Result<Vec<SnapshotFiles>, ControlError> {
        let body = self.request(Method::GET, "/snapshots").await?;
        serde_json::from_slice(&body).map_err(|error| bad(&error))
    }

    /// Has a machine type's snapshot built, again where there is one.
    ///
    /// # Errors
    /// [`ControlError`]; [`ControlError::Refused`] where it is to have none.
    pub async fn build_snapshot(&self, machine: &MachineTypeName) -> Result<(), ControlError> {
        self.request(Method::POST, &format!("/snapshots/{machine}/build")).await.map(drop)
    }

    /// Has a machine type's snapshot removed. Runs that were restored from it go on.
    ///
    /// # Errors
    /// [`ControlError`]; [`ControlError::Refused`] where it is to have none.
    pub async fn remove_snapshot(&self, machine: &MachineTypeName) -> Result<(), ControlError> {
        self.request(Method::POST, &format!("/snapshots/{machine}/remove")).await.map(drop)
    }

    /// Everything now, and again after each change.
    ///
    /// # Errors
    /// [`ControlError`] where the daemon does not answer.
    pub async fn watch(&self) -> Result<Watch, ControlError> {
        let opened = tokio::time::timeout(TIMEOUT, self.send(Method::GET, "/watch")).await;
        let (response, connection) =
            opened.map_err(|_| ControlError::Timeout { path: self.socket.clone() })??;
        Ok(Watch { body: response.into_body(), read: Vec::new(), _connection: connection })
    }

    async fn request(&self, method: Method, path: &str) -> Result<Bytes, ControlError> {
        match tokio::time::timeout(TIMEOUT, self.exchange(method, path)).await {
            Ok(result) => result,
            Err(_) => Err(ControlError::Timeout { path: self.socket.clone() }),
        }
    }

    async fn exchange(&self, method: Method, path: &str) -> Result<Bytes, ControlError> {
        let (response, _connection) = self.send(method, path).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_LEN_MAX).collect().await;
        let body = body.map_err(|error| bad(&error))?.to_bytes();
        if status.is_success() {
            Ok(body)
        } else {
            let message = String::from_utf8_lossy(&body).into_owned();
            Err(ControlError::Refused { status, message })
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
    ) -> Result<(Response<Incoming>, Connection), ControlError> {
        let stream = self
            .connect()
            .await
            .map_err(|source| ControlError::NotRunning { path: self.socket.clone(), source })?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| bad(&error))?;
        let connection = Connection(tokio::spawn(async move {
            // What goes wrong here shows in the answer.
            let _ = connection.await;
        }));
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "forrest")
            .body(Empty::<Bytes>::new())
            .map_err(|error| bad(&error))?;
        let response = sender.send_request(request).await.map_err(|error| bad(&error))?;
        Ok((response, connection))
    }

    /// Connects through the directory: a socket's path may be longer than the kernel takes.
    async fn connect(&self) -> io::Result<UnixStream> {
        let dir = self.socket.parent().ok_or(io::ErrorKind::InvalidInput)?;
        let name = self.socket.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let dir = std::fs::File::open(dir)?;
        let path = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name);
        UnixStream::connect(path).await
    }
}

fn bad(cause: &dyn std::fmt::Display) -> ControlError {
    ControlError::BadAnswer { cause: cause.to_string() }
}

/// Closes its connection when it is dropped.
#[derive(Debug)]
struct Connection(tokio::task::JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Everything, again after each change.
#[derive(Debug)]
pub struct Watch {
    body: Incoming,
    read: Vec<u8>,
    _connection: Connection,
}

impl Watch {
    /// The next state; `None` when the daemon is gone. Changes in quick succession are one.
    ///
    /// # Errors
    /// [`ControlError::BadAnswer`] for something that is no state.
    pub async fn next(&mut self) -> Result<Option<Status>, ControlError> {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                return serde_json::from_slice(&line).map(Some).map_err(|error| bad(&error));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    let data = frame.into_data().unwrap_or_default();
                    if self.read.len() + data.len() > ANSWER_LEN_MAX {
                        return Err(bad(&"a line without end"));
                    }
                    self.read.extend_from_slice(&data);
                }
                Some(Err(_)) | None => return Ok(None),
            }
        }
    }
}
