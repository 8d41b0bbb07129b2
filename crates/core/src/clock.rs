//! What the core does when the host's clock jumps.
//!
//! Set back: every point in time that the core keeps moves back with it, so that pauses and ages
//! stay as long as they were. Set forward, or the whole host was asleep: nobody was awake in that
//! time, so no deadline counts it. A guest that was given ten minutes to shut down gets them.

use std::time::Duration;

use crate::command::{Command, Level};
use crate::core::{Core, general_note};
use crate::model::Timestamp;
use crate::run::RunState;
use crate::snapshots::SnapshotState;

/// Steps back that are smaller than this are taken for the clock standing still.
const STEP_BACK_MIN: Duration = Duration::from_secs(1);
/// A deadline that is handled later than this was slept through.
const LEAP_MIN: Duration = Duration::from_secs(60);

impl Core {
    /// Takes notice of the time; the result is what counts as now.
    pub(crate) fn clock(&mut self, now: Timestamp, out: &mut Vec<Command>) -> Timestamp {
        let Some(last) = self.clock else {
            self.clock = Some(now);
            return now;
        };
        let back = last.since(now);
        if back > Duration::ZERO && back < STEP_BACK_MIN {
            return last;
        }
        self.clock = Some(now);
        if back > Duration::ZERO {
            let text = format!(
                "the host's clock was set back by {} s: every pause stays as long as it was",
                back.as_secs()
            );
            out.push(general_note(Level::Warn, text));
            self.clock_moved_back(now, back);
        } else if let Some(next) = self.timers.next() {
            let late = now.since(next);
            let leapt = late > LEAP_MIN;
            if leapt {
                // A host that is late again and again still has to get on: the second time the
                // nearest deadline is met.
                let slept = if self.leapt { late } else { now.since(last) };
                let text = format!(
                    "a deadline was met {} s late: the clock was set forward or the host was \
                     asleep; that time counts for no deadline",
                    late.as_secs()
                );
                out.push(general_note(Level::Warn, text));
                self.timers.shift(|at| at + slept);
            }
            self.leapt = leapt;
        }
        now
    }

    fn clock_moved_back(&mut self, now: Timestamp, by: Duration) {
        let earlier = |at: Timestamp| {
            if at == Timestamp::NEVER {
                return at;
            }
            Timestamp(at.0.saturating_sub(u64::try_from(by.as_millis()).unwrap_or(u64::MAX)))
        };
        self.timers.shift(earlier);
        self.jobs.clock_moved_back(earlier);
        self.polls.clock_moved_back(earlier);
        self.asked.clock_moved_back(earlier);
        for snapshot in self.snapshots.values_mut() {
            snapshot.not_before = earlier(snapshot.not_before);
            if let SnapshotState::Building { since, .. } = &mut snapshot.state {
                *since = earlier(*since);
            }
        }
        self.reclaimed_at = self.reclaimed_at.map(earlier);
        for health in self.health.values_mut() {
            health.paused_until = health.paused_until.map(earlier);
        }
        let names: Vec<_> = self.runs.iter().map(|run| run.runner.clone()).collect();
        for name in names {
            self.runs.change(&name, |run| match &mut run.state {
                RunState::Idle { since, .. } | RunState::Busy { since, .. } => {
                    *since = earlier(*since).min(now);
                }
                RunState::Settling(settling) => settling.since = earlier(settling.since).min(now),
                RunState::Preparing { .. }
                | RunState::Starting(_)
                | RunState::Booting(_)
                | RunState::Retiring { .. }
                | RunState::Finishing { .. } => {}
            });
        }
    }

    /// When GitHub was asked, as far as the present clock can tell: an answer from before the clock
    /// was set back counts as old.
    pub(crate) fn asked_at(now: Timestamp, asked_at: Timestamp) -> Timestamp {
        if asked_at > now { Timestamp(0) } else { asked_at }
    }
}
