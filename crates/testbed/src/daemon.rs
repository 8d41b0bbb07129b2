//! The daemon as a process.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

/// How long the daemon may take to answer for the first time.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How long it may take to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(40);
/// Pause between two looks whether it answers.
const LOOK_PAUSE: Duration = Duration::from_millis(10);

/// A running daemon. Dropping it kills it; its virtual machines go on.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
}

impl Daemon {
    /// Starts it and waits until it answers. Its log is appended to `log`.
    ///
    /// # Errors
    /// Where it ends or does not answer in time, with the end of its log.
    pub(crate) async fn start(
        forrest: &Path,
        config: &Path,
        base_dir: &Path,
        log: &Path,
    ) -> Result<Self> {
        let file = std::fs::File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("could not open {}", log.display()))?;
        let child = Command::new(forrest)
            .args(["run", "--config"])
            .arg(config)
            .env("FORREST_LOG", std::env::var("FORREST_LOG").unwrap_or_else(|_| "debug".into()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("could not start {}", forrest.display()))?;
        let mut daemon = Self { child };
        let client = forrest_daemon::control::Client::new(base_dir);
        let answers = async {
            loop {
                if client
                    .status()
                    .await
                    .is_ok_and(|status| Some(status.daemon.pid) == daemon.child.id())
                {
                    return Ok(());
                }
                if let Some(status) = daemon.child.try_wait()? {
                    bail!("the daemon ended at once ({status}):\n{}", tail(log));
                }
                tokio::time::sleep(LOOK_PAUSE).await;
            }
        };
        match tokio::time::timeout(START_TIMEOUT, answers).await {
            Ok(result) => result?,
            Err(_) => bail!("the daemon did not answer in time:\n{}", tail(log)),
        }
        Ok(daemon)
    }

    /// Its process id.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Stops it in order, and waits until it has.
    ///
    /// # Errors
    /// Where it does not stop in time, or not with success.
    pub async fn stop(mut self) -> Result<()> {
        self.signal(Signal::TERM)?;
        let status = tokio::time::timeout(STOP_TIMEOUT, self.child.wait())
            .await
            .context("the daemon did not stop in time")??;
        if !status.success() {
            bail!("the daemon stopped with {status}");
        }
        Ok(())
    }

    /// Kills it as a crash would, and waits until it is gone.
    ///
    /// # Errors
    /// What the operating system says.
    pub async fn kill(mut self) -> Result<()> {
        self.child.kill().await.context("could not kill the daemon")
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        let pid = pid.context("the daemon is gone already")?;
        kill_process(pid, signal).context("could not signal the daemon")
    }
}

/// The end of a log, for an error.
pub(crate) fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}
