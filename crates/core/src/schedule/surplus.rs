//! Runners that no job is left for make room for others.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::command::Command;
use crate::core::Core;
use crate::model::{MachineTypeName, Timestamp};
use crate::run::{RetireReason, RunState};

use super::Waiting;

/// How long a runner without a job is kept when others need its room: the news that it has a job may
/// still be on its way.
const SURPLUS_GRACE: Duration = Duration::from_secs(15);

impl Core {
    /// Where jobs wait for room, retires runners that no job is left for.
    pub(super) fn retire_surplus(&mut self, now: Timestamp, out: &mut Vec<Command>) {
        let for_place = |waiting: &Waiting| {
            waiting.is_for_room()
                || matches!(waiting, Waiting::MachineLimit { .. } | Waiting::RepositoryLimit { .. })
        };
        if !self.waiting.values().any(for_place) {
            return;
        }
        let mut excess: BTreeMap<&MachineTypeName, usize> = BTreeMap::new();
        for (machine, held) in self.runs.machines() {
            let more = (held.supply as usize).saturating_sub(self.jobs.queued_count(machine));
            if more > 0 && self.polls.synced(machine.repository()) {
                excess.insert(machine, more);
            }
        }
        if excess.is_empty() {
            return;
        }
        let mut surplus = Vec::new();
        let mut next = Timestamp::NEVER;
        for run in self.runs.iter() {
            let Some(left) = excess.get_mut(&run.machine).filter(|left| **left > 0) else {
                continue;
            };
            let since = match &run.state {
                RunState::Idle { since, .. } => *since,
                RunState::Booting(_) => run.times.vm_started.unwrap_or(run.times.created),
                RunState::Preparing { .. }
                | RunState::Starting(_)
                | RunState::Busy { .. }
                | RunState::Retiring { .. }
                | RunState::Finishing { .. }
                | RunState::Settling(_) => continue,
            };
            *left -= 1;
            if since + SURPLUS_GRACE <= now {
                surplus.push(run.runner.clone());
            } else {
                next = next.min(since + SURPLUS_GRACE);
            }
        }
        for runner in surplus {
            self.retire(now, &runner, RetireReason::Surplus, out);
        }
        self.schedule_again(next);
    }
}
