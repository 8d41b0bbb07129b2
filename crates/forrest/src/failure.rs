//! How a command fails: in words on standard error, and by its exit status.

use std::fmt;
use std::process::ExitCode;

use forrest_daemon::control::ControlError;

/// Exit statuses; documented in `forrest --help`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Done; nothing wrong was found.
    Ok = 0,
    /// Something failed, or problems were found.
    Failed = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// No daemon answers.
    NotRunning = 3,
    /// There is no such run, machine or image, or the name fits several.
    NotFound = 4,
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        Self::from(status as u8)
    }
}

/// Why a command did not do its work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The exit status.
    pub status: Status,
    /// What failed, why, and what to do about it; may have several lines.
    pub message: String,
}

impl Failure {
    /// Something did not work.
    pub fn failed(message: impl Into<String>) -> Self {
        Self { status: Status::Failed, message: message.into() }
    }

    /// The command line makes no sense.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { status: Status::Usage, message: message.into() }
    }

    /// What was named is not there, or is not one thing.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self { status: Status::NotFound, message: message.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<ControlError> for Failure {
    fn from(error: ControlError) -> Self {
        let status = match &error {
            ControlError::NotRunning { .. } => Status::NotRunning,
            _ => Status::Failed,
        };
        Self { status, message: error.to_string() }
    }
}
