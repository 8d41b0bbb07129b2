//! The jobs that GitHub told of, and what is known of each.
//!
//! Reports come late, doubled and out of order. A webhook can only move a job forward (queued, in
//! progress, completed); an answer that GitHub gave when asked is the truth of the moment it was
//! asked for, and can move a job back (a runner that was assigned a job and did not take it).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::event::Source;
use crate::model::{Job, JobId, JobStatus, MachineTypeName, Repository, RunnerName, Timestamp};

/// Finished jobs that are remembered, so that late reports do not bring them back. The oldest are
/// forgotten first.
pub const DONE_JOBS_MAX: usize = 10_000;

/// One job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobEntry {
    /// What GitHub said last.
    pub job: Job,
    /// Where it stands.
    pub phase: Phase,
    /// The machine type that serves it under the present configuration.
    pub machine: Option<MachineTypeName>,
    /// When it was first seen queued.
    pub queued_at: Timestamp,
    /// When the last report that changed it came.
    pub reported_at: Timestamp,
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Held back by an approval or a concurrency group, or in a status that is not known.
    Held,
    /// Waits for a runner.
    Queued,
    /// Has a runner.
    Running,
    /// Over.
    Done,
}

impl From<JobStatus> for Phase {
    fn from(status: JobStatus) -> Self {
        match status {
            JobStatus::Waiting | JobStatus::Unknown => Self::Held,
            JobStatus::Queued => Self::Queued,
            JobStatus::InProgress => Self::Running,
            JobStatus::Completed => Self::Done,
        }
    }
}

/// What a report changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    None,
    /// The job's phase.
    Phase {
        /// Where it stood before; `None` for a new job.
        before: Option<Phase>,
        /// Where it stands.
        after: Phase,
    },
    /// Webhooks contradict each other: GitHub has to be asked.
    Unclear,
}

/// All jobs, with the queued ones in order of their age.
#[derive(Debug, Clone, Default)]
pub struct Jobs {
    by_id: BTreeMap<JobId, JobEntry>,
    queued: BTreeMap<MachineTypeName, BTreeSet<(Timestamp, JobId)>>,
    done: BTreeSet<(Timestamp, JobId)>,
}

impl Jobs {
    /// One job.
    pub fn get(&self, id: JobId) -> Option<&JobEntry> {
        self.by_id.get(&id)
    }

    /// All jobs in the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = &JobEntry> {
        self.by_id.values()
    }

    /// The machine type's queued jobs, oldest first.
    pub fn queued(&self, machine: &MachineTypeName) -> impl Iterator<Item = (Timestamp, JobId)> {
        self.queued.get(machine).into_iter().flatten().copied()
    }

    /// How many jobs of the machine type are queued.
    pub fn queued_count(&self, machine: &MachineTypeName) -> usize {
        self.queued.get(machine).map_or(0, BTreeSet::len)
    }

    /// The machine types that have queued jobs.
    pub fn wanted(
        &self,
    ) -> impl Iterator<Item = (&MachineTypeName, &BTreeSet<(Timestamp, JobId)>)> {
        self.queued.iter().filter(|(_, jobs)| !jobs.is_empty())
    }

    /// The repository's jobs that are not over, to be asked for.
    pub fn active(&self, repository: &Repository) -> Vec<JobId> {
        self.by_id
            .values()
            .filter(|entry| entry.phase != Phase::Done && &entry.job.repository == repository)
            .map(|entry| entry.job.id)
            .collect()
    }

    /// The running job that a runner has.
    pub fn running_on(&self, runner: &RunnerName) -> Option<JobId> {
        self.by_id
            .values()
            .find(|e| e.phase == Phase::Running && e.job.runner.as_ref() == Some(runner))
            .map(|entry| entry.job.id)
    }

    /// Takes in a report. `machine` is the machine type that serves the job.
    pub fn report(
        &mut self,
        now: Timestamp,
        job: Job,
        source: Source,
        machine: Option<MachineTypeName>,
    ) -> Change {
        let after = Phase::from(job.status);
        let Some(entry) = self.by_id.get(&job.id) else {
            let entry = JobEntry { job, phase: after, machine, queued_at: now, reported_at: now };
            self.index(&entry);
            self.by_id.insert(entry.job.id, entry);
            self.forget_oldest();
            return Change::Phase { before: None, after };
        };
        let before = entry.phase;
        match source {
            // An answer older than what is known already says nothing new.
            Source::Asked(at) if at < entry.reported_at && after < before => return Change::None,
            Source::Asked(_) => {}
            Source::Webhook => {
                let gates = |phase| matches!(phase, Phase::Held | Phase::Queued);
                if before != after && gates(before) && gates(after) {
                    return Change::Unclear;
                }
                if after < before {
                    return Change::None;
                }
            }
        }
        // A job that is over stays over: a re-run has a new id.
        if before == Phase::Done {
            return Change::None;
        }
        let mut entry = self.take(job.id).unwrap_or_else(|| unreachable!("it was there above"));
        let changed = entry.phase != after || entry.job.runner != job.runner;
        entry.phase = after;
        entry.job = merged(entry.job, job);
        entry.machine = machine;
        if changed {
            entry.reported_at = now;
        }
        self.index(&entry);
        self.by_id.insert(entry.job.id, entry);
        self.forget_oldest();
        if changed { Change::Phase { before: Some(before), after } } else { Change::None }
    }

    /// Forgets a job that GitHub does not know, unless a report came after GitHub was asked.
    pub fn missing(&mut self, id: JobId, asked_at: Timestamp) -> Option<JobEntry> {
        let entry = self.by_id.get(&id)?;
        if entry.phase == Phase::Done || entry.reported_at > asked_at {
            None
        } else {
            self.take(id)
        }
    }

    /// Finds every job's machine type anew, after a change of the configuration.
    pub fn rematch(&mut self, matching: impl Fn(&Job) -> Option<MachineTypeName>) {
        self.queued.clear();
        self.done.clear();
        let mut by_id = std::mem::take(&mut self.by_id);
        for entry in by_id.values_mut() {
            entry.machine = matching(&entry.job);
            self.index(entry);
        }
        self.by_id = by_id;
    }

    fn index(&mut self, entry: &JobEntry) {
        match (entry.phase, &entry.machine) {
            (Phase::Queued, Some(machine)) => {
                let key = (entry.queued_at, entry.job.id);
                self.queued.entry(machine.clone()).or_default().insert(key);
            }
            (Phase::Done, _) => {
                self.done.insert((entry.reported_at, entry.job.id));
            }
            (Phase::Queued | Phase::Held | Phase::Running, _) => {}
        }
    }

    fn take(&mut self, id: JobId) -> Option<JobEntry> {
        let entry = self.by_id.remove(&id)?;
        if let Some(queued) = entry.machine.as_ref().and_then(|m| self.queued.get_mut(m)) {
            queued.remove(&(entry.queued_at, id));
        }
        self.done.remove(&(entry.reported_at, id));
        Some(entry)
    }

    fn forget_oldest(&mut self) {
        while self.done.len() > DONE_JOBS_MAX {
            if let Some((_, id)) = self.done.pop_first() {
                self.by_id.remove(&id);
            }
        }
    }
}

/// The newer report, with what it leaves out filled in from the older one.
fn merged(old: Job, new: Job) -> Job {
    Job {
        conclusion: new.conclusion.or(old.conclusion),
        // A job that is queued again has no runner any more.
        runner: new.runner.or(old.runner.filter(|_| new.status != JobStatus::Queued)),
        name: new.name.or(old.name),
        workflow_name: new.workflow_name.or(old.workflow_name),
        head_branch: new.head_branch.or(old.head_branch),
        head_sha: new.head_sha.or(old.head_sha),
        created_at: new.created_at.or(old.created_at),
        labels: if new.labels.is_empty() { old.labels } else { new.labels },
        ..new
    }
}
