//! The core's deadlines, each with what happens when it passes.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{MachineTypeName, Repository, RunnerName, Timestamp};

/// A deadline. Setting it again replaces it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timer {
    /// The run has been long enough in its state: an idle runner is retired, a guest that does not
    /// shut down is fenced, powered down, then killed, an answer that does not come is asked for
    /// again.
    Run(RunnerName),
    /// Another try to remove the runner from GitHub.
    Registration(RunnerName),
    /// Another try to promote or remove the run's disk, or the end of waiting for the job's
    /// conclusion.
    Disk(RunnerName),
    /// The machine type's pause after failures is over.
    Backoff(MachineTypeName),
    /// The next backup poll of a repository, or the end of waiting for the answer to one.
    Poll(Repository),
    /// The next look for webhooks that never arrived.
    Deliveries,
    /// The next look whether snapshots still fit.
    Snapshots,
    /// Somebody's waiting time is over: a job can no longer be overtaken or wait for its base, a
    /// surplus runner may be retired.
    Schedule,
}

/// All deadlines, ordered by time.
#[derive(Debug, Clone, Default)]
pub struct Timers {
    by_time: BTreeSet<(Timestamp, Timer)>,
    by_timer: BTreeMap<Timer, Timestamp>,
}

impl Timers {
    /// Sets or moves a deadline.
    pub fn set(&mut self, timer: Timer, at: Timestamp) {
        self.clear(&timer);
        self.by_time.insert((at, timer.clone()));
        self.by_timer.insert(timer, at);
    }

    /// Removes a deadline, if it is set.
    pub fn clear(&mut self, timer: &Timer) {
        if let Some((timer, at)) = self.by_timer.remove_entry(timer) {
            self.by_time.remove(&(at, timer));
        }
    }

    /// Sets a deadline, unless it is set for an earlier time.
    pub fn set_at_latest(&mut self, timer: Timer, at: Timestamp) {
        if self.get(&timer).is_none_or(|present| present > at) {
            self.set(timer, at);
        }
    }

    /// Moves all deadlines.
    pub fn shift(&mut self, change: impl Fn(Timestamp) -> Timestamp) {
        for at in self.by_timer.values_mut() {
            *at = change(*at);
        }
        self.by_time = self.by_timer.iter().map(|(timer, at)| (*at, timer.clone())).collect();
    }

    /// Takes the earliest deadline that is not after `now`.
    pub fn expired(&mut self, now: Timestamp) -> Option<Timer> {
        if self.by_time.first()?.0 > now {
            return None;
        }
        let (_, timer) = self.by_time.pop_first()?;
        self.by_timer.remove(&timer);
        Some(timer)
    }

    /// How many deadlines are set.
    pub(crate) fn len(&self) -> usize {
        self.by_time.len()
    }

    /// The earliest deadline.
    pub fn next(&self) -> Option<Timestamp> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// When a deadline is set for.
    pub fn get(&self, timer: &Timer) -> Option<Timestamp> {
        self.by_timer.get(timer).copied()
    }
}
