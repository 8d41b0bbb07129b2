//! The jobs that GitHub told of, and what is known of each.
//!
//! Reports come late, doubled and out of order. A webhook can only move a job forward (queued, in
//! progress, completed); an answer that GitHub gave when asked is the truth of the moment it was
//! asked for, and can move a job back (a runner that was assigned a job and did not take it). Where
//! a webhook and an answer contradict each other and neither is known to be newer, GitHub is asked
//! again. A job that is over stays over: a re-run has a new id.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::event::Source;
use crate::model::{
    Conclusion, Job, JobId, JobStatus, MachineTypeName, Repository, RunnerName, Timestamp,
};

/// Finished jobs that are remembered, so that late reports do not bring them back. The oldest are
/// forgotten first.
pub const DONE_JOBS_MAX: usize = 10_000;
/// Jobs that are not over and are kept in mind. Further ones are left to a later poll.
pub const ACTIVE_JOBS_MAX: usize = 50_000;

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
    /// When GitHub was asked for the last answer that counted; zero before the first one.
    pub asked_at: Timestamp,
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
    /// The job's phase, or the runner that has it.
    Phase {
        /// Where it stood before; `None` for a new job.
        before: Option<Phase>,
        /// Where it stands.
        after: Phase,
        /// The runner that had it and has it no more.
        left: Option<RunnerName>,
    },
    /// Reports contradict each other: GitHub has to be asked.
    Unclear,
    /// There is no room for another job.
    Full,
}

/// All jobs, with the queued ones in order of their age.
#[derive(Debug, Clone, Default)]
pub struct Jobs {
    by_id: BTreeMap<JobId, JobEntry>,
    queued: BTreeMap<MachineTypeName, BTreeSet<(Timestamp, JobId)>>,
    active: BTreeMap<Repository, BTreeSet<JobId>>,
    running: BTreeMap<RunnerName, BTreeSet<(Timestamp, JobId)>>,
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
        self.queued.iter()
    }

    /// The repository's jobs that are not over, in the order of their ids.
    pub fn active(&self, repository: &Repository) -> impl Iterator<Item = &JobEntry> {
        let ids = self.active.get(repository).into_iter().flatten();
        ids.filter_map(|id| self.by_id.get(id))
    }

    /// All jobs that are not over.
    pub fn unfinished(&self) -> impl Iterator<Item = &JobEntry> {
        self.active.values().flatten().filter_map(|id| self.by_id.get(id))
    }

    /// How many jobs are not over.
    pub fn active_count(&self) -> usize {
        self.by_id.len() - self.done.len()
    }

    /// The running job that a runner has; the one reported last, should there be several.
    pub fn running_on(&self, runner: &RunnerName) -> Option<JobId> {
        self.running.get(runner)?.last().map(|(_, id)| *id)
    }

    /// The last job that a runner has had and that is over, those left out that were cancelled, perhaps
    /// before it took them.
    pub(crate) fn finished_on(&self, runner: &RunnerName) -> Option<JobId> {
        let had = |entry: &&JobEntry| {
            entry.job.runner.as_ref() == Some(runner)
                && entry.job.conclusion != Some(Conclusion::Cancelled)
        };
        let done = self.done.iter().rev().filter_map(|(_, id)| self.by_id.get(id));
        done.into_iter().find(had).map(|entry| entry.job.id)
    }

    /// Takes in a report. `machine` is the machine type that serves the job.
    pub fn report(
        &mut self,
        now: Timestamp,
        job: Job,
        source: Source,
        machine: Option<MachineTypeName>,
    ) -> Change {
        let asked_at = match source {
            Source::Asked(at) => at,
            Source::Webhook => Timestamp(0),
        };
        let after = Phase::from(job.status);
        let Some(entry) = self.by_id.get_mut(&job.id) else {
            if after != Phase::Done && self.active_count() >= ACTIVE_JOBS_MAX {
                return Change::Full;
            }
            let (queued_at, reported_at) = (now, now);
            let entry = JobEntry { job, phase: after, machine, queued_at, reported_at, asked_at };
            self.put(entry);
            self.forget_oldest();
            return Change::Phase { before: None, after, left: None };
        };
        let before = entry.phase;
        match weigh(entry, &job, source) {
            Weight::Stale => return Change::None,
            Weight::Unclear => return Change::Unclear,
            Weight::Counts => {}
        }
        entry.asked_at = entry.asked_at.max(asked_at);
        let had = entry.job.runner.clone().filter(|_| before == Phase::Running);
        let Some(mut entry) = self.take(job.id) else { return Change::None };
        entry.job = merged(entry.job, job, source);
        let changed = before != after || (after == Phase::Running && entry.job.runner != had);
        let left = had.filter(|had| entry.job.runner.as_ref() != Some(had));
        entry.phase = after;
        entry.machine = machine;
        if changed {
            entry.reported_at = now;
        }
        self.put(entry);
        self.forget_oldest();
        if changed { Change::Phase { before: Some(before), after, left } } else { Change::None }
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

    /// Finds every job's machine type anew, after a change of the configuration. Jobs that no
    /// machine type serves any more are forgotten, unless they run; the result is how many.
    pub fn rematch(&mut self, matching: impl Fn(&Job) -> Option<MachineTypeName>) -> usize {
        let all = std::mem::take(self);
        let mut forgotten = 0;
        for mut entry in all.by_id.into_values() {
            entry.machine = matching(&entry.job);
            match entry.phase {
                Phase::Held | Phase::Queued if entry.machine.is_none() => forgotten += 1,
                Phase::Held | Phase::Queued | Phase::Running | Phase::Done => self.put(entry),
            }
        }
        forgotten
    }

    /// Forgets the repository's jobs that are not over.
    pub(crate) fn forget(&mut self, repository: &Repository) {
        let ids: Vec<_> = self.active.get(repository).into_iter().flatten().copied().collect();
        for id in ids {
            self.take(id);
        }
    }

    /// Moves all points in time back, after the clock was.
    pub(crate) fn clock_moved_back(&mut self, change: impl Fn(Timestamp) -> Timestamp) {
        let all = std::mem::take(self);
        for mut entry in all.by_id.into_values() {
            entry.queued_at = change(entry.queued_at);
            entry.reported_at = change(entry.reported_at);
            entry.asked_at = change(entry.asked_at);
            self.put(entry);
        }
    }

    fn put(&mut self, entry: JobEntry) {
        let id = entry.job.id;
        if entry.phase != Phase::Done {
            match self.active.get_mut(&entry.job.repository) {
                Some(active) => {
                    active.insert(id);
                }
                None => {
                    self.active.insert(entry.job.repository.clone(), BTreeSet::from([id]));
                }
            }
        }
        match entry.phase {
            Phase::Queued => {
                if let Some(machine) = &entry.machine {
                    let key = (entry.queued_at, id);
                    match self.queued.get_mut(machine) {
                        Some(queued) => {
                            queued.insert(key);
                        }
                        None => {
                            self.queued.insert(machine.clone(), BTreeSet::from([key]));
                        }
                    }
                }
            }
            Phase::Running => {
                if let Some(runner) = &entry.job.runner {
                    let key = (entry.reported_at, id);
                    self.running.entry(runner.clone()).or_default().insert(key);
                }
            }
            Phase::Done => {
                self.done.insert((entry.reported_at, id));
            }
            Phase::Held => {}
        }
        self.by_id.insert(id, entry);
    }

    fn take(&mut self, id: JobId) -> Option<JobEntry> {
        let entry = self.by_id.remove(&id)?;
        if let Some(active) = self.active.get_mut(&entry.job.repository) {
            active.remove(&id);
            if active.is_empty() {
                self.active.remove(&entry.job.repository);
            }
        }
        if let Some(machine) = &entry.machine
            && let Some(queued) = self.queued.get_mut(machine)
        {
            queued.remove(&(entry.queued_at, id));
            if queued.is_empty() {
                self.queued.remove(machine);
            }
        }
        if let Some(runner) = &entry.job.runner
            && let Some(running) = self.running.get_mut(runner)
        {
            running.remove(&(entry.reported_at, id));
            if running.is_empty() {
                self.running.remove(runner);
            }
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

/// What a report is worth beside what is known.
enum Weight {
    Counts,
    Stale,
    Unclear,
}

fn weigh(entry: &JobEntry, job: &Job, source: Source) -> Weight {
    let (before, after) = (entry.phase, Phase::from(job.status));
    if before == Phase::Done {
        return Weight::Stale;
    }
    if after == Phase::Done {
        return Weight::Counts;
    }
    let moved = before == Phase::Running
        && after == Phase::Running
        && job.runner.is_some()
        && entry.job.runner.is_some()
        && job.runner != entry.job.runner;
    match source {
        Source::Asked(at) if at < entry.asked_at => Weight::Stale,
        // A webhook came when or after GitHub was asked: either may be the newer news.
        Source::Asked(at) if at <= entry.reported_at && (after < before || moved) => {
            Weight::Unclear
        }
        Source::Asked(_) => Weight::Counts,
        Source::Webhook => {
            let gates = |phase| matches!(phase, Phase::Held | Phase::Queued);
            if moved || (before != after && gates(before) && gates(after)) {
                Weight::Unclear
            } else if after < before {
                Weight::Stale
            } else {
                Weight::Counts
            }
        }
    }
}

/// The newer report, with what it leaves out filled in from the older one.
fn merged(old: Job, new: Job, source: Source) -> Job {
    // A job that waits has no runner any more. One that runs by GitHub's own answer, on a runner
    // whose name is not one of Forrest's, is somebody else's.
    let keeps_runner = match new.status {
        JobStatus::Queued | JobStatus::Waiting | JobStatus::Unknown => false,
        JobStatus::InProgress => source == Source::Webhook,
        JobStatus::Completed => true,
    };
    Job {
        conclusion: new.conclusion.or(old.conclusion),
        runner: new.runner.or(old.runner.filter(|_| keeps_runner)),
        name: new.name.or(old.name),
        workflow_name: new.workflow_name.or(old.workflow_name),
        head_branch: new.head_branch.or(old.head_branch),
        head_sha: new.head_sha.or(old.head_sha),
        created_at: new.created_at.or(old.created_at),
        labels: if new.labels.is_empty() { old.labels } else { new.labels },
        ..new
    }
}
