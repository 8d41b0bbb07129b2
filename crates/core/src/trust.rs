//! What of a report is believed, and what GitHub is asked for first.
//!
//! A webhook is signed, but it may be a recording: an old one can come again at any time. And anybody who
//! administers a repository can give a runner there any name, also that of one of this host's runners.

use std::collections::VecDeque;
use std::time::Duration;

use crate::command::{Command, Level, Note};
use crate::core::Core;
use crate::event::Source;
use crate::jobs::Phase;
use crate::model::{Job, JobId, JobStatus, Repository, RunnerName, Timestamp};

/// Age from which a webhook about a queued job that is not known is not believed: the job may be over
/// for long. GitHub sends its webhooks within seconds; a late one costs a question, and so does each
/// one where the host's clock is that far ahead.
pub const WEBHOOK_OLD: Duration = Duration::from_secs(5 * 60);
/// A job that reports raise doubts about is asked for once in this time; then the polls have to tell.
pub const ASKED_FOR: Duration = Duration::from_secs(60);
/// Jobs that are asked for in that time because of such doubts, at most. A flood of recorded webhooks
/// must not use up what GitHub answers in an hour (5,000 requests).
pub const ASKED_MAX: usize = 50;

/// The jobs that GitHub was asked for lately, because reports about them are doubtful.
#[derive(Debug, Default)]
pub(crate) struct Asked(VecDeque<(Timestamp, JobId)>);

impl Asked {
    /// Whether the job may be asked for now; counts it as asked for, then.
    fn may_ask(&mut self, now: Timestamp, job: JobId) -> bool {
        while self.0.front().is_some_and(|(at, _)| *at + ASKED_FOR <= now) {
            self.0.pop_front();
        }
        if self.0.len() >= ASKED_MAX || self.0.iter().any(|(_, asked)| *asked == job) {
            return false;
        }
        self.0.push_back((now, job));
        true
    }

    /// Moves all points in time back, after the clock was.
    pub(crate) fn clock_moved_back(&mut self, change: impl Fn(Timestamp) -> Timestamp) {
        for (at, _) in &mut self.0 {
            *at = change(*at);
        }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

impl Core {
    /// A report without what is not to be believed: a runner of this host has jobs of its own run's
    /// repository only. A job's repository is called what it is known as; it may have another name by
    /// now, and GitHub may spell it otherwise.
    pub(crate) fn believable(&self, mut job: Job, out: &mut Vec<Command>) -> Job {
        let known = self.jobs.get(job.id);
        if let Some(entry) = known {
            job.repository = entry.job.repository.clone();
        }
        let Some(repository) = job.runner.as_ref().and_then(|runner| self.belongs_to(runner))
        else {
            return job;
        };
        if repository.is_same_as(&job.repository) {
            job.repository = repository.clone();
            return job;
        }
        if known.map(|entry| entry.phase) != Some(Phase::from(job.status)) {
            let text = format!(
                "a job of {} is reported to have this runner, which is one of {repository}: not \
                 believed, as somebody may have given its name to a runner there",
                job.repository
            );
            let (runner, id) = (job.runner.clone(), Some(job.id));
            out.push(Command::Note(Note { level: Level::Warn, runner, job: id, text }));
        }
        job.runner = None;
        job
    }

    /// The repository of a run that is there, or was not long ago.
    fn belongs_to(&self, runner: &RunnerName) -> Option<&Repository> {
        let machine = match self.runs.get(runner) {
            Some(run) => &run.machine,
            None => &self.finished.iter().rev().find(|run| &run.runner == runner)?.machine,
        };
        Some(machine.repository())
    }

    /// Whether a webhook may be an old one that was sent again: it would begin a run for a job that is
    /// over.
    pub(crate) fn may_be_a_recording(&self, now: Timestamp, job: &Job, source: Source) -> bool {
        source == Source::Webhook
            && job.status == JobStatus::Queued
            && self.jobs.get(job.id).is_none()
            && job.created_at.is_some_and(|at| now.since(at) > WEBHOOK_OLD)
    }

    /// Asks GitHub for a job that reports raise doubts about, and has a poll tell of it where that was done lately or
    /// is not answered.
    pub(crate) fn ask_for_job(
        &mut self,
        now: Timestamp,
        job: JobId,
        repository: &Repository,
        why: &str,
        out: &mut Vec<Command>,
    ) {
        self.poll_within_a_minute(now, repository);
        if !self.asked.may_ask(now, job) {
            return;
        }
        let text = format!("{why}: asking GitHub");
        out.push(Command::Note(Note { level: Level::Debug, runner: None, job: Some(job), text }));
        out.push(Command::FetchJob { repository: repository.clone(), job });
    }
}
