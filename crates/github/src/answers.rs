//! GitHub's answers read without a connection, as the client reads them.
//!
//! For whoever wants to know what any bytes do to these parsers: the fuzz targets and tests. The client
//! itself goes through [`crate::GitHub`].

use forrest_core::model::{Job, Labels, Repository};
use reqwest::header::HeaderMap;

use crate::transport::Answer;
use crate::wire::{WireApp, WireDelivery, WireInstallation, WireRun, WireToken};
use crate::{GitHubError, JitRegistration, RegisterError, Runner, WorkflowRunFacts, jobs, runners};

/// The answer to `generate-jitconfig`, asked for these labels.
///
/// # Errors
/// [`RegisterError`]; never with a word of the answer in it, which holds a secret.
pub fn registration(body: &[u8], asked: &Labels) -> Result<JitRegistration, RegisterError> {
    JitRegistration::read("POST generate-jitconfig", body, asked)
}

/// A page of a workflow run's jobs.
///
/// # Errors
/// Where it is none.
pub fn job_page(body: &[u8], repository: &Repository) -> Result<Vec<Job>, GitHubError> {
    jobs::parse_jobs(body, repository).map_err(bad)
}

/// A page of a repository's runners.
///
/// # Errors
/// Where it is none.
pub fn runner_page(body: &[u8], repository: &Repository) -> Result<Vec<Runner>, GitHubError> {
    runners::parse_runners(body, repository).map_err(bad)
}

/// A workflow run.
///
/// # Errors
/// Where it is none.
pub fn workflow_run(body: &[u8], repository: &Repository) -> Result<WorkflowRunFacts, GitHubError> {
    let wire: WireRun = serde_json::from_slice(body).map_err(bad)?;
    Ok(wire.into_facts(repository))
}

/// Every other answer that has a body: how many of these it could be.
pub fn others(body: &[u8], repository: &Repository) -> usize {
    let fits = [
        jobs::parse_runs(body, repository).is_ok(),
        serde_json::from_slice::<WireInstallation>(body).is_ok(),
        serde_json::from_slice::<WireToken>(body).is_ok(),
        serde_json::from_slice::<WireApp>(body).is_ok(),
        serde_json::from_slice::<Vec<WireDelivery>>(body).is_ok(),
    ];
    fits.into_iter().filter(|fits| *fits).count()
}

/// What an answer with these headers and this body says is wrong, in one line of bounded length.
pub fn complaint(status: u16, headers: &HeaderMap, body: &[u8]) -> String {
    let mut answer = Answer::from_headers(status, headers);
    answer.body = body.to_vec();
    answer.message()
}

fn bad(error: serde_json::Error) -> GitHubError {
    let cause = crate::error::foreign(&error.to_string());
    GitHubError::BadAnswer { request: "an answer".to_owned(), cause }
}
