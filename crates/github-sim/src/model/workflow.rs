//! Workflows, as a test or a demo writes them down, and their runs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::ids::{JobId, RepositoryId, RunId};
use super::time::Moment;
use crate::error::SimError;

/// The most jobs in one workflow, as on GitHub.
pub const MAX_JOBS_PER_WORKFLOW: usize = 256;

/// A workflow and the event that triggers it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workflow {
    /// The workflow's name.
    #[serde(default = "default_name")]
    pub name: String,
    /// The event: `push`, `pull_request`, `schedule`, `workflow_dispatch`, …
    #[serde(default = "default_event")]
    pub event: String,
    /// The branch; for a pull request its head branch.
    #[serde(default = "default_branch")]
    pub branch: String,
    /// The commit; by default one is made up.
    #[serde(default)]
    pub sha: Option<String>,
    /// Whether it is a pull request from a stranger's fork: its jobs get no secrets.
    #[serde(default)]
    pub from_fork: bool,
    /// The jobs.
    pub jobs: Vec<JobSpec>,
}

/// A job, as the workflow describes it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    /// Its name, unique in the workflow.
    pub name: String,
    /// `runs-on`.
    #[serde(default)]
    pub runs_on: Vec<String>,
    /// What it does, in order.
    #[serde(default)]
    pub steps: Vec<StepSpec>,
    /// The jobs of the same workflow that must succeed first.
    #[serde(default)]
    pub needs: Vec<String>,
    /// Environment variables.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Environment variables whose values are secrets: empty in runs from forks, masked in logs.
    #[serde(default)]
    pub secrets: BTreeMap<String, String>,
    /// A protected environment: the job waits for an approval.
    #[serde(default)]
    pub environment: Option<String>,
    /// Whether its `if:` is false: the job is skipped.
    #[serde(default)]
    pub skip: bool,
    /// `timeout-minutes`.
    #[serde(default = "default_timeout")]
    pub timeout_minutes: u64,
}

/// One step of a job: a script for `bash -e`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(from = "StepForm")]
pub struct StepSpec {
    /// Its name; by default `Run` and its first line.
    pub name: String,
    /// The script.
    pub run: String,
    /// Whether it runs after a failure too (`if: always()`).
    pub always: bool,
}

/// A step is a script, or a script with more about it.
#[derive(Deserialize)]
#[serde(untagged)]
enum StepForm {
    Script(String),
    Full {
        #[serde(default)]
        name: Option<String>,
        run: String,
        #[serde(default)]
        always: bool,
    },
}

impl From<StepForm> for StepSpec {
    fn from(form: StepForm) -> Self {
        match form {
            StepForm::Script(run) => Self::from(run.as_str()),
            StepForm::Full { name, run, always } => {
                let step = Self::from(run.as_str());
                Self { name: name.unwrap_or(step.name), always, ..step }
            }
        }
    }
}

impl From<&str> for StepSpec {
    fn from(run: &str) -> Self {
        let first = run.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("nothing");
        let first: String = first.chars().take(60).collect();
        Self { name: format!("Run {first}"), run: run.to_owned(), always: false }
    }
}

fn default_name() -> String {
    "CI".to_owned()
}

fn default_event() -> String {
    "push".to_owned()
}

fn default_branch() -> String {
    "main".to_owned()
}

const fn default_timeout() -> u64 {
    360
}

impl Workflow {
    /// A workflow named `CI` on `main`, triggered by `event`.
    pub fn on(event: &str) -> Self {
        Self {
            name: default_name(),
            event: event.to_owned(),
            branch: default_branch(),
            sha: None,
            from_fork: false,
            jobs: Vec::new(),
        }
    }

    /// A push to `main`.
    pub fn push() -> Self {
        Self::on("push")
    }

    /// A pull request from a stranger's fork.
    pub fn pull_request_from_fork() -> Self {
        Self { from_fork: true, ..Self::on("pull_request").branch("patch-1") }
    }

    /// With this branch.
    #[must_use]
    pub fn branch(mut self, branch: &str) -> Self {
        branch.clone_into(&mut self.branch);
        self
    }

    /// With this commit.
    #[must_use]
    pub fn sha(mut self, sha: &str) -> Self {
        self.sha = Some(sha.to_owned());
        self
    }

    /// With one more job.
    #[must_use]
    pub fn job(mut self, job: JobSpec) -> Self {
        self.jobs.push(job);
        self
    }

    /// Whether its jobs may see secrets.
    pub fn sees_secrets(&self) -> bool {
        !self.from_fork
    }

    /// Checks that names are unique and that `needs` names jobs without going in a circle.
    pub(crate) fn check(&self) -> Result<(), SimError> {
        let wrong = |text: String| Err(SimError::Workflow(text));
        if self.jobs.is_empty() || self.jobs.len() > MAX_JOBS_PER_WORKFLOW {
            return wrong(format!("it has {} jobs, not 1 to 256", self.jobs.len()));
        }
        let mut names = BTreeSet::new();
        for job in &self.jobs {
            if job.name.is_empty() {
                return wrong("a job has no name".to_owned());
            }
            if let Some(name) = job.env.keys().chain(job.secrets.keys()).find(|n| !is_variable(n)) {
                return wrong(format!("{name:?} of {:?} cannot be a variable", job.name));
            }
            if !names.insert(&job.name) {
                return wrong(format!("two jobs are named {:?}", job.name));
            }
        }
        if let Some((job, need)) = self
            .jobs
            .iter()
            .flat_map(|job| job.needs.iter().map(move |need| (job, need)))
            .find(|(_, need)| !names.contains(need))
        {
            return wrong(format!("{:?} needs {need:?}, which is no job of it", job.name));
        }
        let mut ordered = BTreeSet::new();
        while ordered.len() < self.jobs.len() {
            let before = ordered.len();
            for job in &self.jobs {
                if job.needs.iter().all(|need| ordered.contains(need)) {
                    ordered.insert(&job.name);
                }
            }
            if ordered.len() == before {
                return wrong("its needs go in a circle".to_owned());
            }
        }
        Ok(())
    }
}

/// Whether a shell could have a variable of this name.
fn is_variable(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|first| first == b'_' || first.is_ascii_alphabetic())
        && bytes.all(|b| b == b'_' || b.is_ascii_alphanumeric())
}

impl JobSpec {
    /// A job without labels and steps.
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), timeout_minutes: default_timeout(), ..Self::default() }
    }

    /// With these labels in `runs-on`.
    #[must_use]
    pub fn runs_on<'l>(mut self, labels: impl IntoIterator<Item = &'l str>) -> Self {
        self.runs_on = labels.into_iter().map(str::to_owned).collect();
        self
    }

    /// With one more step.
    #[must_use]
    pub fn step(mut self, script: &str) -> Self {
        self.steps.push(script.into());
        self
    }

    /// After this job of the same workflow.
    #[must_use]
    pub fn needs(mut self, job: &str) -> Self {
        self.needs.push(job.to_owned());
        self
    }

    /// With this secret as an environment variable.
    #[must_use]
    pub fn secret(mut self, name: &str, value: &str) -> Self {
        self.secrets.insert(name.to_owned(), value.to_owned());
        self
    }

    /// With this environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Behind an approval for this environment.
    #[must_use]
    pub fn environment(mut self, environment: &str) -> Self {
        self.environment = Some(environment.to_owned());
        self
    }

    /// Skipped.
    #[must_use]
    pub fn skipped(mut self) -> Self {
        self.skip = true;
        self
    }
}

/// A run of a workflow.
#[derive(Debug, Clone)]
pub struct WorkflowRun {
    /// Its id, the same for all attempts.
    pub id: RunId,
    /// Its number in the repository.
    pub number: u64,
    /// The repository.
    pub repository: RepositoryId,
    /// The stranger's copy that a pull request comes from.
    pub head_repository: Option<RepositoryId>,
    /// What runs.
    pub workflow: Arc<Workflow>,
    /// The commit.
    pub sha: String,
    /// When it was triggered.
    pub created_at: Moment,
    /// When the latest attempt began.
    pub attempt_started_at: Moment,
    /// When anything changed last.
    pub updated_at: Moment,
    /// The jobs of each attempt, first to latest.
    pub attempts: Vec<Vec<JobId>>,
}

impl WorkflowRun {
    /// The latest attempt, from 1.
    pub fn attempt(&self) -> u32 {
        u32::try_from(self.attempts.len()).unwrap_or(u32::MAX)
    }

    /// The jobs of the latest attempt.
    pub fn jobs(&self) -> &[JobId] {
        self.attempts.last().map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workflows_must_hang_together() {
        let sound = Workflow::push().job(JobSpec::new("b").needs("a")).job(JobSpec::new("a"));
        assert!(sound.check().is_ok());
        let wrong = [
            Workflow::push(),
            Workflow::push().job(JobSpec::new("")),
            Workflow::push().job(JobSpec::new("a")).job(JobSpec::new("a")),
            Workflow::push().job(JobSpec::new("a").needs("z")),
            Workflow::push().job(JobSpec::new("a").env("x; rm", "")),
            Workflow::push().job(JobSpec::new("a").needs("b")).job(JobSpec::new("b").needs("a")),
        ];
        for workflow in wrong {
            assert!(workflow.check().is_err(), "{workflow:?} was taken for sound");
        }
    }

    #[test]
    fn steps_are_scripts_or_more() {
        let job: JobSpec = serde_json::from_str(
            r#"{"name": "a", "steps": ["echo 1\necho 2", {"run": "echo", "name": "n", "always": true}]}"#,
        )
        .expect("sound");
        assert_eq!(job.steps[0].name, "Run echo 1");
        assert_eq!((job.steps[1].name.as_str(), job.steps[1].always), ("n", true));
        assert_eq!(job.timeout_minutes, 360);
        assert!(serde_json::from_str::<JobSpec>(r#"{"name": "a", "stepz": []}"#).is_err());
    }
}
