//! What can go wrong when the simulator is started or told to do something.

use std::path::PathBuf;

use crate::model::{InstallationId, JobId, RunId, RunnerId};

/// An error of the simulator itself, as opposed to an error that it answers over HTTP on purpose.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SimError {
    /// The address cannot be listened on.
    #[error("failed to listen on {address}: {source}; is another simulator running there?")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// A file cannot be read or written.
    #[error("failed to use {path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The App's key cannot be used.
    #[error("the App's private key cannot be used: {0}")]
    Key(&'static str),
    /// A webhook address is not understood.
    #[error("{0:?} is not a webhook address: write http://HOST:PORT/PATH or unix:SOCKET[:/PATH]")]
    WebhookAddress(String),
    /// An address of the simulator itself is not understood.
    #[error("{0:?} is not an address for runners: write http://HOST:PORT")]
    RunnerAddress(String),
    /// No such repository.
    #[error("there is no repository {0:?}: add it first")]
    UnknownRepository(String),
    /// No such installation.
    #[error("there is no installation {0}")]
    UnknownInstallation(InstallationId),
    /// No such workflow run.
    #[error("there is no workflow run {0}")]
    UnknownRun(RunId),
    /// No such job.
    #[error("there is no job {0}")]
    UnknownJob(JobId),
    /// No such runner.
    #[error("there is no runner {0}")]
    UnknownRunner(RunnerId),
    /// A workflow that does not hang together.
    #[error("the workflow cannot run: {0}")]
    Workflow(String),
    /// The operation does not fit the job's state.
    #[error("job {job} is {status}, so it cannot be {wanted}")]
    JobState {
        /// Which job.
        job: JobId,
        /// Its status.
        status: &'static str,
        /// What was asked for.
        wanted: &'static str,
    },
    /// The operation does not fit the workflow run's state.
    #[error("workflow run {run} is {status}, so it cannot be {wanted}")]
    RunState {
        /// Which workflow run.
        run: RunId,
        /// Its status.
        status: &'static str,
        /// What was asked for.
        wanted: &'static str,
    },
    /// A runner that holds a job is not removed.
    #[error("runner {0} holds a job: GitHub removes no busy runner")]
    RunnerBusy(RunnerId),
    /// The JIT config is not one of this simulator's, or its runner is gone.
    #[error("the JIT config is not of a runner that is registered here")]
    JitConfig,
    /// Somebody else is connected as this runner.
    #[error("runner {0} has a connection already")]
    RunnerConnected(RunnerId),
    /// The runner's registration or session ended.
    #[error("runner {0} is no longer registered or was replaced")]
    RunnerGone(RunnerId),
    /// Something that was waited for did not happen.
    #[error("job {job} was {status} for {waited_s} s and did not become what was waited for")]
    Timeout {
        /// Which job.
        job: JobId,
        /// Its last status.
        status: &'static str,
        /// How long was waited, in seconds.
        waited_s: u64,
    },
    /// The log of changes overflowed while somebody waited.
    #[error("the simulator was stopped")]
    Stopped,
}
