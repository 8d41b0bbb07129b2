//! Runners: registering, finding and removing them.

use forrest_core::model::{Label, Labels, Repository, RunnerId, RunnerName};
use reqwest::Method;
use secrecy::SecretString;
use serde::Serialize;

use crate::client::{Call, GitHub};
use crate::permissions;
use crate::rate::Resource;
use crate::transport::Effect;
use crate::wire::{Runner, WireJit, WireRunners};
use crate::{GitHubError, RegisterError};

/// The most pages of 100 runners that are read; GitHub allows 10,000 runners.
const PAGES_MAX: usize = 100;

/// The longest JIT config that is taken, in bytes; real ones have about 5,000.
const JIT_CONFIG_MAX: usize = 64 << 10;

/// Repositories have no runner groups of their own: only the default one.
const REPOSITORY_RUNNER_GROUP: u32 = 1;

/// A registered runner with what it needs to connect.
#[derive(Debug)]
pub struct JitRegistration {
    /// GitHub's id of it.
    pub runner_id: RunnerId,
    /// The labels that GitHub gave it: at least those that were asked for.
    pub labels: Labels,
    /// What the runner starts with; lets its holder act as this runner.
    pub jit_config: SecretString,
}

/// What became of a runner that was to be deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deletion {
    /// GitHub has deleted it: it can get no job any more.
    Deleted,
    /// GitHub does not know it, and would say so if it did: it can get no job any more.
    AlreadyGone,
    /// It has a job, so it stays.
    Busy,
}

#[derive(Serialize)]
struct JitRequest<'a> {
    name: &'a str,
    runner_group_id: u32,
    labels: Vec<&'a str>,
    work_folder: &'a str,
}

impl GitHub {
    /// Registers a runner for one job. Sends one request, and never a second one.
    ///
    /// # Errors
    /// [`RegisterError`]; after [`RegisterError::Unknown`] and [`RegisterError::LabelsMissing`] the
    /// runner has to be looked up and deleted.
    pub async fn generate_jit_config(
        &self,
        repository: &Repository,
        name: &RunnerName,
        labels: &Labels,
    ) -> Result<JitRegistration, RegisterError> {
        let request = JitRequest {
            name: name.as_str(),
            runner_group_id: REPOSITORY_RUNNER_GROUP,
            labels: labels.iter().map(Label::as_str).collect(),
            work_folder: "_work",
        };
        let call = Call {
            method: Method::POST,
            effect: Effect::Once,
            resource: Resource::Registration,
            paced: true,
            body: Some(Call::body(&request)?),
            ..Call::get(format!("/repos/{repository}/actions/runners/generate-jitconfig"))
        };
        let (answer, missing) = self.call(repository, &call).await?;
        let hint = || {
            permissions::hint(Some(repository), &missing, answer.accepted_permissions.as_deref())
        };
        match answer.status {
            200..300 => JitRegistration::read(&call.name(), &answer.body, labels),
            409 => {
                Err(RegisterError::NameTaken { request: call.name(), message: answer.message() })
            }
            403 | 404 => Err(RegisterError::NoAccess {
                request: call.name(),
                message: answer.message(),
                hint: hint(),
            }),
            _ => {
                let hint = "GitHub's words say what it does not like".to_owned();
                Err(refused(self, &call, answer, hint).into())
            }
        }
    }

    /// Looks a runner up by its exact name.
    ///
    /// # Errors
    /// As every request; a runner that does not exist is `None`.
    pub async fn find_runner(
        &self,
        repository: &Repository,
        name: &RunnerName,
    ) -> Result<Option<Runner>, GitHubError> {
        let path = format!("/repos/{repository}/actions/runners?name={name}&per_page=100");
        let call = Call::get(path);
        let (answer, missing) = self.call(repository, &call).await?;
        let hint =
            permissions::hint(Some(repository), &missing, answer.accepted_permissions.as_deref());
        let answer = self.expect_success(&call, answer, Some(hint))?;
        let wire: WireRunners = call.parse(&answer.body)?;
        let named = |runner: &Runner| runner.name == name.as_str();
        match wire.runners.into_iter().map(Runner::from).find(named) {
            Some(runner) => Ok(Some(runner)),
            // An Enterprise Server that does not know the filter lists all runners.
            None if answer.next.is_some() => {
                Ok(self.list_runners(repository).await?.into_iter().find(named))
            }
            None => Ok(None),
        }
    }

    /// Deletes a runner unless it is busy. Repeating it is safe.
    ///
    /// # Errors
    /// As every request. After any error the runner may or may not exist.
    pub async fn delete_runner(
        &self,
        repository: &Repository,
        id: RunnerId,
    ) -> Result<Deletion, GitHubError> {
        let call = Call {
            method: Method::DELETE,
            effect: Effect::Repeatable,
            paced: true,
            ..Call::get(format!("/repos/{repository}/actions/runners/{id}"))
        };
        let (answer, missing) = self.call(repository, &call).await?;
        match answer.status {
            200..300 => Ok(Deletion::Deleted),
            422 => Ok(Deletion::Busy),
            404 => {
                // GitHub says the same when the App may not see the runner. Only where the list can
                // be read is the runner known to be gone.
                let path = format!("/repos/{repository}/actions/runners?per_page=1");
                let list = Call::get(path);
                let (proof, missing) = self.call(repository, &list).await?;
                let hint = permissions::hint(Some(repository), &missing, None);
                self.expect_success(&list, proof, Some(hint))?;
                Ok(Deletion::AlreadyGone)
            }
            _ => {
                let accepted = answer.accepted_permissions.clone();
                let hint = permissions::hint(Some(repository), &missing, accepted.as_deref());
                Err(refused(self, &call, answer, hint))
            }
        }
    }

    /// All runners of a repository. Costs nothing when nothing has changed.
    ///
    /// # Errors
    /// As every request; [`GitHubError::BadAnswer`] rather than a list with parts missing.
    pub async fn list_runners(&self, repository: &Repository) -> Result<Vec<Runner>, GitHubError> {
        let path = format!("/repos/{repository}/actions/runners?per_page=100");
        let (pages, complete) =
            self.pages(repository, path.clone(), PAGES_MAX, parse_runners).await?;
        if !complete {
            return Err(Call::get(path).bad(&format!("it has more than {PAGES_MAX} pages")));
        }
        // The list may move while it is read: a runner can then be on two pages.
        let mut runners: Vec<Runner> = pages.iter().flat_map(|page| page.iter().cloned()).collect();
        runners.sort_by_key(|runner| runner.id);
        runners.dedup_by_key(|runner| runner.id);
        Ok(runners)
    }
}

pub(crate) fn parse_runners(body: &[u8], _: &Repository) -> Result<Vec<Runner>, serde_json::Error> {
    let wire: WireRunners = serde_json::from_slice(body)?;
    Ok(wire.runners.into_iter().map(Runner::from).collect())
}

impl JitRegistration {
    /// Reads the answer to `request` (method and path, for errors), which asked for these labels.
    ///
    /// # Errors
    /// [`RegisterError`], with no word of the answer in it.
    pub(crate) fn read(request: &str, body: &[u8], asked: &Labels) -> Result<Self, RegisterError> {
        let request = request.to_owned();
        let bad = |cause: &str| GitHubError::BadAnswer {
            request: request.clone(),
            cause: cause.to_owned(),
        };
        // No words of the parser: they could quote the JIT config.
        let wire: WireJit = serde_json::from_slice(body)
            .map_err(|_| bad("it holds no runner with a JIT config"))?;
        if wire.encoded_jit_config.is_empty() || wire.encoded_jit_config.len() > JIT_CONFIG_MAX {
            return Err(bad("its JIT config is empty or too long").into());
        }
        let jit_config = SecretString::from(wire.encoded_jit_config);
        let runner = Runner::from(wire.runner);
        let missing: Vec<Label> =
            asked.iter().filter(|label| !runner.labels.contains(label)).cloned().collect();
        if !missing.is_empty() {
            return Err(RegisterError::LabelsMissing { request, runner_id: runner.id, missing });
        }
        Ok(Self { runner_id: runner.id, labels: runner.labels, jit_config })
    }
}

fn refused(
    github: &GitHub,
    call: &Call,
    answer: crate::transport::Answer,
    hint: String,
) -> GitHubError {
    match github.expect_success(call, answer, Some(hint)) {
        Err(error) => error,
        Ok(answer) => call.bad(&format!("status {} is not expected here", answer.status)),
    }
}
