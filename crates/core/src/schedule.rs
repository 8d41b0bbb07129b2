//! Which queued job gets a run next, and why the others wait.
//!
//! GitHub gives a queued job to any matching runner, so what is decided here is how many runs each
//! machine type gets, not which run gets which job.
//!
//! Order: a job that has waited longer than `max_overtake` goes before everything younger, and
//! nothing is started that would take the room it needs. Among the others the repository that holds
//! the least RAM goes first, then the machine type that needs the most, then the oldest job.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::command::Command;
use crate::core::Core;
use crate::model::{
    Bytes, JobId, MachineType, MachineTypeName, Repository, RunnerName, Timestamp, WorkflowRunId,
};
use crate::policy::Resources;
use crate::run::{DiskDebt, FinishStep, RetireReason, RunState, Settling};
use crate::timers::Timer;

/// How long a runner without a job is kept when others need its room: the news that it has a job may
/// still be on its way.
const SURPLUS_GRACE: Duration = Duration::from_secs(15);

/// Why the jobs of a machine type wait.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "for", rename_all = "snake_case")]
pub enum Waiting {
    /// No new runs are wanted.
    Drained,
    /// Starts failed; there is a pause before the next one.
    Pause {
        /// Until when.
        until: Timestamp,
        /// What went wrong.
        trouble: String,
    },
    /// The machine type's own limit.
    MachineLimit {
        /// The most runs at a time.
        max_runs: u32,
    },
    /// The repository's limit.
    RepositoryLimit {
        /// The most runs at a time.
        max_runs: u32,
    },
    /// The image it starts from is about to appear.
    Base {
        /// The run that makes it.
        runner: RunnerName,
    },
    /// RAM.
    Ram {
        /// How much it needs.
        needed: Bytes,
        /// How much is left.
        free: Bytes,
    },
    /// Virtual CPUs.
    Cpus {
        /// How many it needs.
        needed: u32,
        /// How many are left.
        free: u32,
    },
    /// Disk space.
    Disk {
        /// The most it may need, with the reserve that has to stay free.
        needed: Bytes,
        /// What is left when all runs fill their disks.
        free: Bytes,
    },
    /// An older job that needs more room goes first.
    OlderJob {
        /// Which one.
        job: JobId,
    },
}

impl Waiting {
    /// Whether it ends when others give up RAM, CPUs or disk space.
    pub(crate) fn is_for_room(&self) -> bool {
        match self {
            Self::Ram { .. } | Self::Cpus { .. } | Self::Disk { .. } | Self::OlderJob { .. } => true,
            Self::Drained
            | Self::Pause { .. }
            | Self::MachineLimit { .. }
            | Self::RepositoryLimit { .. }
            | Self::Base { .. } => false,
        }
    }
}

/// A machine type with jobs that no run is there for.
struct Candidate<'a> {
    machine: &'a MachineType,
    /// Those jobs, oldest first.
    jobs: Vec<(Timestamp, JobId)>,
}

/// Room that is left while scheduling.
struct Room {
    ram: Bytes,
    cpus: Option<u32>,
    disk: Option<Bytes>,
    runs: u32,
    disks: u32,
}

impl Room {
    fn refuse(&self, need: Resources, min_free_disk: Bytes) -> Option<Waiting> {
        // A run always fits on an otherwise empty host, whatever the estimates say: else its job
        // could wait for ever.
        if self.runs > 0 {
            if need.ram > self.ram {
                return Some(Waiting::Ram { needed: need.ram, free: self.ram });
            }
            if let Some(free) = self.cpus.filter(|free| need.cpus > *free) {
                return Some(Waiting::Cpus { needed: need.cpus, free });
            }
        }
        let free = self.disk?;
        let needed =
            if self.disks > 0 { need.disk.saturating_add(min_free_disk) } else { min_free_disk };
        (needed > free).then_some(Waiting::Disk { needed, free })
    }

    fn take(&mut self, need: Resources) {
        self.ram = self.ram.saturating_sub(need.ram);
        self.cpus = self.cpus.map(|free| free.saturating_sub(need.cpus));
        self.disk = self.disk.map(|free| free.saturating_sub(need.disk));
        self.runs += 1;
        self.disks += 1;
    }
}

impl Core {
    /// Starts the runs that there are jobs and room for, and says why the other jobs wait.
    pub(crate) fn schedule(&mut self, now: Timestamp, out: &mut Vec<Command>) {
        self.timers.clear(&Timer::Schedule);
        let (chosen, waiting) = self.choose(now);
        self.waiting = waiting;
        for machine in chosen {
            self.start_run(now, &machine, out);
        }
        if self.waiting.values().any(Waiting::is_for_room) {
            self.builds_give_way(out);
        } else if !self.snapshots.is_empty() && !self.draining {
            let (room, min_free_disk) = (self.room(), self.policy.capacity.min_free_disk);
            let fits = |need| room.refuse(need, min_free_disk).is_none();
            self.build_snapshots(now, fits, out);
        }
        self.retire_surplus(now, out);
    }

    fn choose(&mut self, now: Timestamp) -> (Vec<MachineType>, BTreeMap<MachineTypeName, Waiting>) {
        let mut waiting = BTreeMap::new();
        let mut candidates = self.candidates(&mut waiting);
        let mut chosen: Vec<MachineType> = Vec::new();
        if candidates.is_empty() {
            return (chosen, waiting);
        }
        let mut room = self.room();
        let mut held: BTreeMap<Repository, (Bytes, u32)> = BTreeMap::new();
        let mut started: BTreeMap<MachineTypeName, u32> = BTreeMap::new();
        let mut next_overdue = Timestamp::NEVER;
        while let Some(index) = self.first(now, &candidates, &held) {
            let machine = candidates[index].machine;
            let repository = machine.name.repository();
            let (since, job) = candidates[index].jobs[0];
            let need = Resources::from(machine);
            let (ram, runs) = held.get(repository).copied().unwrap_or_default();
            let of_machine = started.get(&machine.name).copied().unwrap_or_default();
            if let Some(limit) = self.limit(machine, of_machine, runs) {
                waiting.insert(machine.name.clone(), limit);
                candidates.swap_remove(index);
                continue;
            }
            let Some(refusal) = room.refuse(need, self.policy.capacity.min_free_disk) else {
                room.take(need);
                held.insert(repository.clone(), (ram.saturating_add(need.ram), runs + 1));
                started.insert(machine.name.clone(), of_machine + 1);
                chosen.push(machine.clone());
                candidates[index].jobs.remove(0);
                if candidates[index].jobs.is_empty() {
                    candidates.swap_remove(index);
                }
                continue;
            };
            waiting.insert(machine.name.clone(), refusal);
            candidates.swap_remove(index);
            let overdue_at = since + self.policy.timing.max_overtake;
            if overdue_at <= now {
                for other in candidates.drain(..) {
                    waiting.insert(other.machine.name.clone(), Waiting::OlderJob { job });
                }
            } else {
                next_overdue = next_overdue.min(overdue_at);
            }
        }
        if next_overdue != Timestamp::NEVER {
            self.timers.set(Timer::Schedule, next_overdue);
        }
        (chosen, waiting)
    }

    /// The machine types whose jobs may get a run if there is room.
    fn candidates(&self, waiting: &mut BTreeMap<MachineTypeName, Waiting>) -> Vec<Candidate<'_>> {
        let mut candidates = Vec::new();
        let mut bases: Option<Bases> = None;
        for (name, jobs) in self.jobs.wanted() {
            let Some(machine) = self.policy.machines.get(name) else { continue };
            let supply = self.runs.of_machine(name).supply as usize;
            if jobs.len() <= supply {
                continue;
            }
            if self.draining {
                waiting.insert(name.clone(), Waiting::Drained);
                continue;
            }
            if let Some(health) = self.health.get(name)
                && let Some(until) = health.paused_until
            {
                let trouble = health.trouble.clone().unwrap_or_default();
                waiting.insert(name.clone(), Waiting::Pause { until, trouble });
                continue;
            }
            let mut jobs: Vec<_> = jobs.iter().skip(supply).copied().collect();
            if let Some(base) = &machine.base_machine {
                let bases = bases.get_or_insert_with(|| Bases::of(self));
                if let Some(runner) = bases.changing.get(base) {
                    waiting.insert(name.clone(), Waiting::Base { runner: runner.clone() });
                    continue;
                }
                let mut blocker = None;
                jobs.retain(|(_, job)| {
                    let runner = bases.busy_for(self, base, *job);
                    blocker = blocker.or(runner);
                    runner.is_none()
                });
                if let Some(runner) = blocker {
                    waiting.insert(name.clone(), Waiting::Base { runner: runner.clone() });
                }
            }
            if !jobs.is_empty() {
                candidates.push(Candidate { machine, jobs });
            }
        }
        candidates
    }

    /// The candidate that is next in order.
    fn first(
        &self,
        now: Timestamp,
        candidates: &[Candidate<'_>],
        held: &BTreeMap<Repository, (Bytes, u32)>,
    ) -> Option<usize> {
        let key = |candidate: &Candidate<'_>| {
            let since = candidate.jobs[0].0;
            if since + self.policy.timing.max_overtake <= now {
                return (0, Bytes(since.0), std::cmp::Reverse(Bytes(0)), since);
            }
            let repository = candidate.machine.name.repository();
            let new = held.get(repository).map_or(Bytes(0), |(ram, _)| *ram);
            let ram = self.runs.of_repository(repository).ram.saturating_add(new);
            (1, ram, std::cmp::Reverse(candidate.machine.ram), since)
        };
        (0..candidates.len()).min_by_key(|index| key(&candidates[*index]))
    }

    fn limit(&self, machine: &MachineType, new: u32, new_of_repository: u32) -> Option<Waiting> {
        let runs = self.runs.of_machine(&machine.name).runs + new;
        if let Some(max_runs) = machine.max_runs.filter(|max| runs >= *max) {
            return Some(Waiting::MachineLimit { max_runs });
        }
        let repository = machine.name.repository();
        let runs = self.runs.of_repository(repository).runs + new_of_repository;
        let max = self.policy.max_runs.get(repository).copied();
        max.filter(|max| runs >= *max).map(|max_runs| Waiting::RepositoryLimit { max_runs })
    }

    fn room(&self) -> Room {
        let held = self.runs.total();
        let builds = self.held_by_builds();
        let capacity = self.policy.capacity;
        let disks = || self.runs.iter().filter(|run| run.holds_disk());
        let disk = self.disk.as_ref().map(|measured| {
            let growth = disks().map(|run| {
                let used = measured.runs.get(&run.runner).copied().unwrap_or_default();
                run.resources.disk.saturating_sub(used)
            });
            measured.free.saturating_sub(growth.sum()).saturating_sub(builds.disk)
        });
        Room {
            ram: capacity.ram.saturating_sub(held.ram).saturating_sub(builds.ram),
            cpus: capacity.cpus.map(|cpus| cpus.saturating_sub(held.cpus + builds.cpus)),
            disk,
            runs: held.runs + u32::from(builds.ram > Bytes(0)),
            disks: u32::try_from(disks().count()).unwrap_or(u32::MAX),
        }
    }

    /// Where jobs wait for room, retires runners that no job is left for.
    fn retire_surplus(&mut self, now: Timestamp, out: &mut Vec<Command>) {
        let for_place = |waiting: &Waiting| {
            waiting.is_for_room()
                || matches!(
                    waiting,
                    Waiting::MachineLimit { .. } | Waiting::RepositoryLimit { .. }
                )
        };
        if !self.waiting.values().any(for_place) {
            return;
        }
        let mut excess: BTreeMap<MachineTypeName, usize> = BTreeMap::new();
        let mut surplus = Vec::new();
        let mut next = Timestamp::NEVER;
        for run in self.runs.iter() {
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
            let supply = self.runs.of_machine(&run.machine).supply as usize;
            let left = excess
                .entry(run.machine.clone())
                .or_insert_with(|| supply.saturating_sub(self.jobs.queued_count(&run.machine)));
            if *left == 0 || !self.polls.synced(run.machine.repository()) {
                continue;
            }
            *left -= 1;
            if since + SURPLUS_GRACE <= now {
                surplus.push(run.runner.clone());
            } else {
                next = next.min(since + SURPLUS_GRACE);
            }
        }
        for runner in surplus {
            self.retire(&runner, RetireReason::Surplus, out);
        }
        if next != Timestamp::NEVER {
            let at = self.timers.get(&Timer::Schedule).map_or(next, |at| at.min(next));
            self.timers.set(Timer::Schedule, at);
        }
    }
}

/// Which machine types' images are about to change.
struct Bases {
    /// By a run that is past its job.
    changing: BTreeMap<MachineTypeName, RunnerName>,
    /// By a run that has a job of a workflow run.
    busy: BTreeMap<(MachineTypeName, WorkflowRunId), RunnerName>,
}

impl Bases {
    fn of(core: &Core) -> Self {
        let based_on: BTreeSet<_> =
            core.policy.machines.values().filter_map(|m| m.base_machine.as_ref()).collect();
        let mut bases = Self { changing: BTreeMap::new(), busy: BTreeMap::new() };
        for run in core.runs.iter().filter(|run| based_on.contains(&run.machine)) {
            match &run.state {
                RunState::Finishing {
                    step: FinishStep::ShuttingDown | FinishStep::PoweringDown,
                    ..
                }
                | RunState::Settling(Settling {
                    disk:
                        DiskDebt::ReadingBack
                        | DiskDebt::AwaitingConclusion
                        | DiskDebt::Promoting { .. },
                    ..
                }) => {
                    bases.changing.insert(run.machine.clone(), run.runner.clone());
                }
                RunState::Busy { job: Some(job), .. } => {
                    if let Some(entry) = core.jobs.get(*job) {
                        let key = (run.machine.clone(), entry.job.workflow_run);
                        bases.busy.insert(key, run.runner.clone());
                    }
                }
                RunState::Busy { job: None, .. }
                | RunState::Preparing { .. }
                | RunState::Starting(_)
                | RunState::Booting(_)
                | RunState::Idle { .. }
                | RunState::Retiring { .. }
                | RunState::Finishing { step: FinishStep::Killing(_), .. }
                | RunState::Settling(Settling {
                    disk:
                        DiskDebt::AwaitingPreparation
                        | DiskDebt::Discarding { .. }
                        | DiskDebt::Settled(_),
                    ..
                }) => {}
            }
        }
        bases
    }

    fn busy_for(&self, core: &Core, base: &MachineTypeName, job: JobId) -> Option<&RunnerName> {
        let workflow_run = core.jobs.get(job)?.job.workflow_run;
        self.busy.get(&(base.clone(), workflow_run))
    }
}
