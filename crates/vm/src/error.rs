//! The one error type of this crate.

use std::io;
use std::path::{Path, PathBuf};

/// Why something about a virtual machine did not work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VmError {
    /// A file or socket operation failed.
    #[error("could not {action} {path}: {source}")]
    Io {
        /// What was attempted, such as "read".
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A file of the run directory is not what Forrest writes there.
    #[error("{path} is not a file that this version of Forrest can use: {reason}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A VM was described that cannot be made.
    #[error("the virtual machine cannot be made as described: {0}")]
    Spec(String),
    /// A program could not be started or did not do its part.
    #[error("could not run {program}: {reason}")]
    Program {
        /// Which program.
        program: PathBuf,
        /// What happened.
        reason: String,
    },
    /// QEMU's monitor broke the protocol or went away.
    #[error("QEMU's monitor failed: {0}")]
    Monitor(String),
    /// QEMU refused a command.
    #[error("QEMU refused {command:?}: {reason}")]
    Refused {
        /// The QMP command.
        command: String,
        /// QEMU's description.
        reason: String,
    },
    /// The guest cannot be kept inside.
    #[error("{0}")]
    NotContained(String),
    /// A peer took too long.
    #[error("{what} did not answer within {seconds} s")]
    Timeout {
        /// Who was asked, and what.
        what: String,
        /// How long was waited.
        seconds: u64,
    },
    /// No shim serves this run directory (any more).
    #[error(
        "no shim answers in {run_dir}: it has ended or was never started; its outcome.json, if there is one, says how"
    )]
    NoShim {
        /// The run directory.
        run_dir: PathBuf,
    },
    /// The shim broke the protocol.
    #[error("the shim in {run_dir} answered something unexpected: {reason}")]
    ShimAnswer {
        /// The run directory.
        run_dir: PathBuf,
        /// What is wrong with the answer.
        reason: String,
    },
    /// The shim did not do what it was asked.
    #[error("the shim in {run_dir} refused: {reason}")]
    ShimRefused {
        /// The run directory.
        run_dir: PathBuf,
        /// Its reason.
        reason: String,
    },
    /// A run directory cannot be used for a new VM.
    #[error("{run_dir} cannot be started: {reason}")]
    NotStartable {
        /// The run directory.
        run_dir: PathBuf,
        /// Why.
        reason: String,
    },
    /// A template did not come about.
    #[error("the snapshot could not be built: {reason} (console output is in {log})")]
    Snapshot {
        /// What went wrong.
        reason: String,
        /// Where the guest's console was written.
        log: PathBuf,
    },
}

impl VmError {
    /// For `map_err`: names the action and the file.
    pub(crate) fn io(
        action: &'static str,
        path: impl AsRef<Path>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::Io { action, path, source }
    }
}
