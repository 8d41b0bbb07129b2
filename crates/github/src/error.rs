//! What can go wrong between Forrest and GitHub, said so that a person can act on it.
//!
//! No variant carries a secret: tokens, keys and JIT configs never get near these types.

use forrest_core::model::{Label, RunnerId, Timestamp};

/// Why a request to GitHub did not give what was asked for.
///
/// `request` is always the method and the path, without secrets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GitHubError {
    /// The client cannot be built from its configuration.
    #[error("cannot talk to GitHub: {0}")]
    Config(String),
    /// GitHub could not be reached, was too slow, or answered with a 5xx; trying later may help.
    ///
    /// Also stands for a `DELETE` whose answer was lost: repeating it is safe.
    #[error("{request} failed for now: {cause}; it is worth trying again later")]
    Transient {
        /// Method and path.
        request: String,
        /// What happened.
        cause: String,
    },
    /// GitHub's limit is used up. Nothing is sent before `until`.
    #[error(
        "{request} has to wait: {cause}; nothing more is sent for {} s",
        .wait.as_secs()
    )]
    RateLimited {
        /// Method and path.
        request: String,
        /// Which limit it is.
        cause: String,
        /// When requests are sent again, by this host's clock.
        until: Timestamp,
        /// The same as a span, counted from when the error was made.
        wait: std::time::Duration,
    },
    /// GitHub does not accept who we are, or an installation is suspended.
    #[error(
        "{request}: GitHub does not accept the App's credentials ({status}: {message}); {hint}"
    )]
    Auth {
        /// Method and path.
        request: String,
        /// The HTTP status.
        status: u16,
        /// GitHub's words.
        message: String,
        /// What to do about it.
        hint: String,
    },
    /// There is no such thing, or the App may not see it; GitHub does not tell the two apart.
    #[error("{request}: not found ({message}); {hint}")]
    NotFound {
        /// Method and path.
        request: String,
        /// GitHub's words.
        message: String,
        /// What to do about it.
        hint: String,
    },
    /// GitHub understood the request and said no.
    #[error("{request}: GitHub refused with status {status} ({message}); {hint}")]
    Refused {
        /// Method and path.
        request: String,
        /// The HTTP status.
        status: u16,
        /// GitHub's words.
        message: String,
        /// What to do about it.
        hint: String,
    },
    /// The request may or may not have had its effect. It was not repeated; look before acting.
    #[error("{request} went out, but whether it had an effect is unknown: {cause}")]
    LostResponse {
        /// Method and path.
        request: String,
        /// What happened.
        cause: String,
    },
    /// GitHub's answer is not what its API description says, or exceeds a bound.
    #[error("{request}: GitHub's answer makes no sense here: {cause}")]
    BadAnswer {
        /// Method and path.
        request: String,
        /// What is wrong with it.
        cause: String,
    },
}

impl GitHubError {
    /// Whether the same request may succeed later without anybody changing anything.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Transient { .. } | Self::RateLimited { .. })
    }

    /// When it makes sense to ask again, where GitHub said so.
    pub fn until(&self) -> Option<Timestamp> {
        match self {
            Self::RateLimited { until, .. } => Some(*until),
            _ => None,
        }
    }
}

/// Why there is no registration of a runner.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// A runner of that name exists (409), perhaps from an earlier attempt whose answer was lost:
    /// look it up, delete it, take a new name.
    #[error("{request}: a runner of this name exists already ({message})")]
    NameTaken {
        /// Method and path.
        request: String,
        /// GitHub's words.
        message: String,
    },
    /// The App may not register runners for the repository (403 or 404).
    #[error("{request}: the App may not register runners here ({message}); {hint}")]
    NoAccess {
        /// Method and path.
        request: String,
        /// GitHub's words.
        message: String,
        /// What to do about it.
        hint: String,
    },
    /// The answer was lost: the runner may exist. Look it up by name and delete it.
    #[error("{request} went out, but whether the runner exists is unknown: {cause}")]
    Unknown {
        /// Method and path.
        request: String,
        /// What happened.
        cause: String,
    },
    /// GitHub registered the runner without labels that were asked for. It exists and has to be
    /// deleted.
    #[error("{request}: GitHub registered runner {runner_id} without the labels {}", list(.missing))]
    LabelsMissing {
        /// Method and path.
        request: String,
        /// The runner to delete.
        runner_id: RunnerId,
        /// What is missing.
        missing: Vec<Label>,
    },
    /// Anything else; the runner does not exist.
    #[error(transparent)]
    GitHub(GitHubError),
}

impl From<GitHubError> for RegisterError {
    fn from(error: GitHubError) -> Self {
        match error {
            GitHubError::LostResponse { request, cause }
            | GitHubError::BadAnswer { request, cause } => Self::Unknown { request, cause },
            other => Self::GitHub(other),
        }
    }
}

fn list(labels: &[Label]) -> String {
    labels.iter().map(Label::as_str).collect::<Vec<_>>().join(", ")
}

/// The most characters of GitHub's own words that an error repeats.
const MESSAGE_CHARS_MAX: usize = 300;

/// Makes foreign text fit for a log line: one line, bounded, no control characters.
pub(crate) fn foreign(text: &str) -> String {
    let mut line: String = text
        .chars()
        .take(MESSAGE_CHARS_MAX)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if text.chars().nth(MESSAGE_CHARS_MAX).is_some() {
        line.push('…');
    }
    line
}
