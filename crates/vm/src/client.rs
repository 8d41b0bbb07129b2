//! The daemon's side: starting shims, asking them, watching them.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use forrest_core::model::Timestamp;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::Command;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::lines::{BoundedLines, Line};
use crate::protocol::{ANSWER_LEN_MAX, Answer, Request, ShimEvent, VmState};
use crate::run_dir::{self, files};
use crate::shim::{ERROR_PREFIX, READY_LINE, VERB};
use crate::{JobFiles, VmError, shim};

/// How long a shim may take until it can be connected to.
pub const SPAWN_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a shim may take for an answer. It never waits for QEMU before it answers.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const READ_BUFFER_LEN: usize = 4 << 10;

/// A shim that was just started.
#[derive(Debug)]
pub struct SpawnedShim {
    /// Its process id.
    pub pid: u32,
    /// Ends with the shim. Dropping it leaves the shim alone.
    pub exited: JoinHandle<std::io::Result<ExitStatus>>,
}

/// The command that runs a shim, for whoever starts it in another way than [`spawn_shim`] (as a systemd
/// service, say, of `Type=notify`: the shim tells when it can be connected to).
pub fn shim_command(forrest: &Path, run_dir: &Path) -> Vec<OsString> {
    vec![forrest.into(), VERB.into(), run_dir.into()]
}

/// Starts a shim in a session of its own and waits until it can be connected to. It outlives its
/// starter. `run.json` and the disks must be in place.
///
/// `forrest` is the binary that leads to [`shim::main`]; the shim inherits nothing of the environment
/// but `PATH`.
///
/// # Errors
/// [`VmError::Program`] where the binary cannot be executed or gives up, with its reason;
/// [`VmError::Timeout`] after [`SPAWN_TIMEOUT`].
pub async fn spawn_shim(forrest: &Path, run_dir: &Path) -> Result<SpawnedShim, VmError> {
    let failed = |reason: String| VmError::Program { program: forrest.to_owned(), reason };
    let log_path = run_dir.join(files::SHIM_LOG);
    let log = shim::open_log(&log_path).map_err(VmError::io("open", log_path))?;
    let mut command = Command::new(forrest);
    command
        .args(&shim_command(forrest, run_dir)[1..])
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log);
    let mut child = command.spawn().map_err(|err| failed(err.to_string()))?;
    let pid = child.id().unwrap_or_default();
    let stdout = child.stdout.take();
    // Also when this future is dropped, the child is waited for and leaves no zombie.
    let exited = tokio::spawn(async move { child.wait().await });
    let Some(stdout) = stdout else { return Err(failed("it has no output".to_owned())) };
    let mut lines = BoundedLines::new(stdout, ANSWER_LEN_MAX, 256);
    let line = timeout(SPAWN_TIMEOUT, lines.next()).await.map_err(|_| VmError::Timeout {
        what: format!("the shim for {}", run_dir.display()),
        seconds: SPAWN_TIMEOUT.as_secs(),
    })?;
    match line {
        Ok(Some(Line::Text(line))) if line == READY_LINE.as_bytes() => {
            Ok(SpawnedShim { pid, exited })
        }
        Ok(Some(Line::Text(line))) => {
            let line = String::from_utf8_lossy(&line);
            let reason = line.strip_prefix(ERROR_PREFIX).unwrap_or(&line);
            Err(failed(reason.to_owned()))
        }
        Ok(Some(Line::TooLong) | None) | Err(_) => {
            let log = run_dir.join(files::SHIM_LOG);
            Err(failed(format!("the shim ended at once; see {}", log.display())))
        }
    }
}

/// A connection to a live shim.
#[derive(Debug)]
pub struct ShimClient {
    run_dir: PathBuf,
    lines: BoundedLines<OwnedReadHalf>,
    write: OwnedWriteHalf,
}

impl ShimClient {
    /// Connects to the shim of a run.
    ///
    /// # Errors
    /// [`VmError::NoShim`] where none listens, [`VmError::Io`] otherwise.
    pub async fn connect(run_dir: &Path) -> Result<Self, VmError> {
        let stream = match run_dir::connect(run_dir, files::CONTROL_SOCK).await {
            Ok(stream) => stream,
            Err(VmError::Io { source, .. })
                if matches!(source.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) =>
            {
                return Err(VmError::NoShim { run_dir: run_dir.to_owned() });
            }
            Err(err) => return Err(err),
        };
        let (read, write) = stream.into_split();
        let lines = BoundedLines::new(read, ANSWER_LEN_MAX, READ_BUFFER_LEN);
        Ok(Self { run_dir: run_dir.to_owned(), lines, write })
    }

    /// The VM's state.
    ///
    /// # Errors
    /// As all requests: [`VmError::NoShim`] where the shim is gone, [`VmError::ShimRefused`] with its
    /// reason, [`VmError::ShimAnswer`] for nonsense, [`VmError::Timeout`] after [`ANSWER_TIMEOUT`].
    pub async fn status(&mut self) -> Result<VmState, VmError> {
        self.state(Request::Status).await
    }

    /// Says that the job config disk has its content; see [`Request::AttachJobConfig`].
    ///
    /// # Errors
    /// See [`ShimClient::status`].
    pub async fn attach_job_config(&mut self, files: JobFiles) -> Result<(), VmError> {
        self.done(Request::AttachJobConfig { files }).await
    }

    /// Ends a VM that was never given a job config; `why` goes on record. Refused where it was given one:
    /// it may have a job.
    ///
    /// # Errors
    /// See [`ShimClient::status`].
    pub async fn give_up(&mut self, why: &str) -> Result<(), VmError> {
        self.done(Request::GiveUp { why: why.to_owned() }).await
    }

    /// Presses the guest's power button.
    ///
    /// # Errors
    /// See [`ShimClient::status`].
    pub async fn power_down(&mut self) -> Result<(), VmError> {
        self.done(Request::PowerDown).await
    }

    /// Ends the VM at once; `why` goes on record.
    ///
    /// # Errors
    /// See [`ShimClient::status`].
    pub async fn kill(&mut self, why: &str) -> Result<(), VmError> {
        self.done(Request::Kill { why: why.to_owned() }).await
    }

    /// Has the shim end the VM at a time, also when the daemon is gone by then; `None` takes that back.
    ///
    /// # Errors
    /// See [`ShimClient::status`].
    pub async fn job_deadline(&mut self, at: Option<Timestamp>) -> Result<(), VmError> {
        self.done(Request::JobDeadline { at }).await
    }

    /// Lets a VM go on that was paused because its disk could not be written.
    ///
    /// # Errors
    /// See [`ShimClient::status`].
    pub async fn resume(&mut self) -> Result<(), VmError> {
        self.done(Request::Resume).await
    }

    /// The VM's state, and everything that happens from there on.
    ///
    /// # Errors
    /// See [`ShimClient::status`].
    pub async fn watch(mut self) -> Result<(VmState, Watch), VmError> {
        let state = self.state(Request::Watch).await?;
        Ok((state, Watch { client: self, over: false }))
    }

    async fn state(&mut self, request: Request) -> Result<VmState, VmError> {
        match self.ask(request).await? {
            Answer::State { state } => Ok(*state),
            answer @ (Answer::Done | Answer::Refused { .. } | Answer::Event { .. }) => {
                Err(self.unexpected(answer))
            }
        }
    }

    async fn done(&mut self, request: Request) -> Result<(), VmError> {
        match self.ask(request).await? {
            Answer::Done => Ok(()),
            answer @ (Answer::State { .. } | Answer::Refused { .. } | Answer::Event { .. }) => {
                Err(self.unexpected(answer))
            }
        }
    }

    async fn ask(&mut self, request: Request) -> Result<Answer, VmError> {
        let mut line = serde_json::to_vec(&request).map_err(|err| VmError::ShimAnswer {
            run_dir: self.run_dir.clone(),
            reason: format!("the request has no JSON form: {err}"),
        })?;
        line.push(b'\n');
        let exchange = async {
            self.write.write_all(&line).await.map_err(|_| self.gone())?;
            self.answer().await?.ok_or_else(|| self.gone())
        };
        timeout(ANSWER_TIMEOUT, exchange).await.unwrap_or_else(|_| {
            Err(VmError::Timeout {
                what: format!("the shim in {}", self.run_dir.display()),
                seconds: ANSWER_TIMEOUT.as_secs(),
            })
        })
    }

    /// The next answer; `None` when the shim is gone.
    async fn answer(&mut self) -> Result<Option<Answer>, VmError> {
        let nonsense =
            |reason: String| VmError::ShimAnswer { run_dir: self.run_dir.clone(), reason };
        match self.lines.next().await {
            Ok(Some(Line::Text(line))) => {
                serde_json::from_slice(&line).map(Some).map_err(|err| nonsense(err.to_string()))
            }
            Ok(Some(Line::TooLong)) => Err(nonsense("it is too long".to_owned())),
            Ok(None) | Err(_) => Ok(None),
        }
    }

    fn gone(&self) -> VmError {
        VmError::NoShim { run_dir: self.run_dir.clone() }
    }

    fn unexpected(&self, answer: Answer) -> VmError {
        let run_dir = self.run_dir.clone();
        match answer {
            Answer::Refused { reason } => VmError::ShimRefused { run_dir, reason },
            Answer::Done | Answer::State { .. } | Answer::Event { .. } => {
                VmError::ShimAnswer { run_dir, reason: "it answered another question".to_owned() }
            }
        }
    }
}

/// The events of one VM.
#[derive(Debug)]
pub struct Watch {
    client: ShimClient,
    over: bool,
}

impl Watch {
    /// The next event; `None` after [`crate::protocol::Happened::Exited`]. Dropping the future loses
    /// nothing.
    ///
    /// # Errors
    /// [`VmError::NoShim`] where the shim ended without that event, or cut this watcher off for being
    /// slow: [`run_dir::classify`] tells which, and a new connection has all that was missed in its
    /// state. [`VmError::ShimAnswer`] for nonsense.
    pub async fn next(&mut self) -> Result<Option<ShimEvent>, VmError> {
        if self.over {
            return Ok(None);
        }
        match self.client.answer().await? {
            Some(Answer::Event { event }) => {
                self.over = matches!(event.event, crate::protocol::Happened::Exited { .. });
                Ok(Some(event))
            }
            Some(answer) => Err(self.client.unexpected(answer)),
            None => Err(self.client.gone()),
        }
    }
}
