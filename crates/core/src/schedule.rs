//! Which queued job gets a run next, and why the others wait.
//!
//! GitHub gives a queued job to any matching runner, so what is decided here is how many runs each
//! machine type gets, not which run gets which job.
//!
//! Order: a job that has waited longer than `max_overtake` goes before everything younger, and
//! nothing is started that would take the room it needs. Among the others the repository that holds
//! the least RAM goes first, then the machine type that needs the most, then the oldest job.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::command::Command;
use crate::core::Core;
use crate::health::Health;
use crate::model::{
    Bytes, JobId, MachineType, MachineTypeName, RunnerName, Timestamp, WorkflowRunId,
};
use crate::policy::{Capacity, Resources};
use crate::run::{DiskDebt, FinishStep, Held, RetireReason, RunState, Settling};
use crate::timers::Timer;

/// How long a runner without a job is kept when others need its room: the news that it has a job may
/// still be on its way.
const SURPLUS_GRACE: Duration = Duration::from_secs(15);

/// Failed runs whose runner GitHub does not let go of yet, before no further one is tried.
const OWING_MAX: u32 = 3;

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
            Self::Ram { .. } | Self::Cpus { .. } | Self::Disk { .. } | Self::OlderJob { .. } => {
                true
            }
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
    /// The first of those jobs, and since when it waits.
    first: (Timestamp, JobId),
    /// The others, oldest first.
    others: Box<dyn Iterator<Item = (Timestamp, JobId)> + 'a>,
    /// What its repository's runs hold, those that were chosen included.
    of_repository: (Bytes, u32),
    /// Runs of the machine type, those that were chosen included.
    of_machine: u32,
    /// How many runs may be started; one at a time after failures.
    starts_left: u32,
}

/// Room that is left while scheduling.
struct Room {
    ram: Bytes,
    cpus: Option<u32>,
    disk: Option<Bytes>,
    runs: u32,
    disks: u32,
}

/// Why there is no room.
struct Refusal {
    waiting: Waiting,
    /// Whether there can ever be enough of it.
    hopeless: bool,
}

impl Room {
    fn refuse(&self, machine: &MachineType, capacity: &Capacity) -> Option<Refusal> {
        let need = Resources::from(machine);
        // A guest that fits always gets its place on an otherwise empty host, whatever QEMU is
        // estimated to need beside it: else its job could wait for ever.
        let waived = self.runs == 0;
        let too_large = machine.ram > capacity.ram;
        if too_large || (need.ram > self.ram && !waived) {
            let waiting = Waiting::Ram { needed: need.ram, free: self.ram };
            return Some(Refusal { waiting, hopeless: too_large });
        }
        if let (Some(free), Some(all)) = (self.cpus, capacity.cpus)
            && need.cpus > free
        {
            let waiting = Waiting::Cpus { needed: need.cpus, free };
            return Some(Refusal { waiting, hopeless: machine.cpus > all });
        }
        let free = self.disk?;
        let reserve = capacity.min_free_disk;
        // The first disk may be larger than what is free: that is the most that it can grow to.
        let needed = if self.disks > 0 { need.disk.saturating_add(reserve) } else { reserve };
        let waiting = Waiting::Disk { needed, free };
        (needed > free).then_some(Refusal { waiting, hopeless: false })
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
            let (room, capacity) = (self.room(), self.policy.capacity);
            let fits = |machine: &MachineType| room.refuse(machine, &capacity).is_none();
            self.build_snapshots(now, fits, out);
        }
        self.retire_surplus(now, out);
    }

    fn choose(&mut self, now: Timestamp) -> (Vec<MachineType>, BTreeMap<MachineTypeName, Waiting>) {
        let mut waiting = BTreeMap::new();
        let mut due = Timestamp::NEVER;
        let mut candidates = self.candidates(now, &mut waiting, &mut due);
        let mut chosen: Vec<MachineType> = Vec::new();
        if candidates.is_empty() {
            drop(candidates);
            self.schedule_again(due);
            return (chosen, waiting);
        }
        let mut room = self.room();
        while let Some(index) = first(now, &candidates, self.policy.timing.max_overtake) {
            let candidate = &candidates[index];
            let machine = candidate.machine;
            let (since, job) = candidate.first;
            if let Some(limit) = self.limit(candidate) {
                waiting.insert(machine.name.clone(), limit);
                candidates.swap_remove(index);
                continue;
            }
            let Some(refusal) = room.refuse(machine, &self.policy.capacity) else {
                room.take(Resources::from(machine));
                chosen.push(machine.clone());
                took(&mut candidates, index);
                continue;
            };
            waiting.insert(machine.name.clone(), refusal.waiting);
            candidates.swap_remove(index);
            let overdue_at = since + self.policy.timing.max_overtake;
            if refusal.hopeless {
                continue;
            }
            if overdue_at <= now {
                for other in candidates.drain(..) {
                    waiting.insert(other.machine.name.clone(), Waiting::OlderJob { job });
                }
            } else {
                due = due.min(overdue_at);
            }
        }
        drop(candidates);
        self.schedule_again(due);
        (chosen, waiting)
    }

    fn schedule_again(&mut self, at: Timestamp) {
        if at != Timestamp::NEVER {
            self.timers.set_at_latest(Timer::Schedule, at);
        }
    }

    /// The machine types whose jobs may get a run if there is room. `due` is moved to the time when
    /// there may be another one.
    fn candidates(
        &self,
        now: Timestamp,
        waiting: &mut BTreeMap<MachineTypeName, Waiting>,
        due: &mut Timestamp,
    ) -> Vec<Candidate<'_>> {
        let mut candidates = Vec::new();
        let mut bases: Option<Bases> = None;
        for (name, jobs) in self.jobs.wanted() {
            let held = self.runs.of_machine(name);
            if jobs.len() <= held.supply as usize {
                continue;
            }
            let Some(machine) = self.policy.machines.get(name) else { continue };
            if self.draining {
                waiting.insert(name.clone(), Waiting::Drained);
                continue;
            }
            // A runner that cannot be registered is better not begun: a daemon that is restarted
            // again and again while GitHub is down would pile them up.
            if let Some(trouble) = self.polls.silence(name.repository()) {
                waiting.insert(name.clone(), Waiting::Pause { until: now, trouble });
                continue;
            }
            let (starts_left, pause) = self.starts_left(now, name, held);
            if starts_left == 0 {
                waiting.extend(pause.map(|pause| (name.clone(), pause)));
                continue;
            }
            let skip = held.supply as usize;
            let mut others: Box<dyn Iterator<Item = (Timestamp, JobId)>> =
                match &machine.base_machine {
                    None => Box::new(jobs.iter().copied().skip(skip)),
                    Some(base) => {
                        let bases = bases.get_or_insert_with(|| Bases::of(self));
                        let overtaken = self.policy.timing.max_overtake;
                        let (free, blocker) = bases.split(self, now, base, jobs, overtaken, due);
                        if let Some(runner) = blocker {
                            waiting.insert(name.clone(), Waiting::Base { runner: runner.clone() });
                        }
                        Box::new(free.into_iter().skip(skip))
                    }
                };
            let Some(first) = others.next() else { continue };
            let repository = self.runs.of_repository(name.repository());
            candidates.push(Candidate {
                machine,
                first,
                others,
                of_repository: (repository.ram, repository.runs),
                of_machine: held.runs,
                starts_left,
            });
        }
        candidates
    }

    /// How many runs of a machine type may be started now, as far as its earlier ones are concerned,
    /// and why not more.
    fn starts_left(
        &self,
        now: Timestamp,
        name: &MachineTypeName,
        held: Held,
    ) -> (u32, Option<Waiting>) {
        let health = self.health.get(name);
        let probing = health.is_some_and(Health::is_probing);
        let until = match health.and_then(|health| health.paused_until) {
            Some(until) => until,
            // One run is tried; and while GitHub does not let go of those that came to nothing, no
            // more.
            None if (probing && held.supply > 0) || held.owing >= OWING_MAX => now,
            None => return (if probing { 1 } else { u32::MAX }, None),
        };
        let trouble = health.and_then(|health| health.trouble.clone());
        let trouble = trouble.unwrap_or_else(|| "GitHub does not let go of earlier runners".into());
        (0, Some(Waiting::Pause { until, trouble }))
    }

    fn limit(&self, candidate: &Candidate<'_>) -> Option<Waiting> {
        let machine = candidate.machine;
        if let Some(max_runs) = machine.max_runs.filter(|max| candidate.of_machine >= *max) {
            return Some(Waiting::MachineLimit { max_runs });
        }
        let max = self.policy.max_runs.get(machine.name.repository()).copied();
        max.filter(|max| candidate.of_repository.1 >= *max)
            .map(|max_runs| Waiting::RepositoryLimit { max_runs })
    }

    fn room(&self) -> Room {
        let held = self.runs.total();
        let builds = self.held_by_builds();
        let capacity = self.policy.capacity;
        let disk =
            self.free_disk.map(|free| free.saturating_sub(held.growth).saturating_sub(builds.disk));
        Room {
            ram: capacity.ram.saturating_sub(held.ram).saturating_sub(builds.ram),
            cpus: capacity.cpus.map(|cpus| cpus.saturating_sub(held.cpus + builds.cpus)),
            disk,
            runs: held.runs + u32::from(builds.ram > Bytes(0)),
            disks: held.disks,
        }
    }

    /// Where jobs wait for room, retires runners that no job is left for.
    fn retire_surplus(&mut self, now: Timestamp, out: &mut Vec<Command>) {
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

/// The candidate that is next in order: jobs that can no longer be overtaken by age; then the
/// repository that holds least, and of its machine types the one that needs most.
fn first(now: Timestamp, candidates: &[Candidate<'_>], max_overtake: Duration) -> Option<usize> {
    let key = |candidate: &Candidate<'_>| {
        let since = candidate.first.0;
        if since + max_overtake <= now {
            (0, Bytes(since.0), Reverse(Bytes(0)), since)
        } else {
            (1, candidate.of_repository.0, Reverse(candidate.machine.ram), since)
        }
    };
    (0..candidates.len()).min_by_key(|index| key(&candidates[*index]))
}

/// The candidate's first job was given a run.
fn took(candidates: &mut Vec<Candidate<'_>>, index: usize) {
    let machine = candidates[index].machine;
    let ram = Resources::from(machine).ram;
    for other in candidates.iter_mut() {
        if other.machine.name.repository() == machine.name.repository() {
            let (held, runs) = other.of_repository;
            other.of_repository = (held.saturating_add(ram), runs + 1);
        }
    }
    let candidate = &mut candidates[index];
    candidate.of_machine += 1;
    candidate.starts_left -= 1;
    match candidate.others.next().filter(|_| candidate.starts_left > 0) {
        Some(next) => candidate.first = next,
        None => {
            candidates.swap_remove(index);
        }
    }
}

/// Which machine types' images are about to change.
struct Bases {
    /// By a run that is past its job.
    changing: BTreeMap<MachineTypeName, RunnerName>,
    /// By a run that has a job of a workflow run.
    busy: BTreeMap<MachineTypeName, BTreeMap<WorkflowRunId, RunnerName>>,
}

impl Bases {
    fn of(core: &Core) -> Self {
        let based_on: BTreeSet<_> =
            core.policy.machines.values().filter_map(|m| m.base_machine.as_ref()).collect();
        let mut bases = Self { changing: BTreeMap::new(), busy: BTreeMap::new() };
        for run in core.runs.iter().filter(|run| based_on.contains(&run.machine)) {
            match &run.state {
                RunState::Finishing {
                    step:
                        FinishStep::ShuttingDown | FinishStep::Fencing { .. } | FinishStep::PoweringDown,
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
                        let busy = bases.busy.entry(run.machine.clone()).or_default();
                        busy.insert(entry.job.workflow_run, run.runner.clone());
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

    /// The jobs that need not wait for their base, oldest first, and the run that the others wait
    /// for. Nobody waits for unrelated runs for longer than jobs can be overtaken: a base that is
    /// always busy would starve whatever is based on it.
    fn split(
        &self,
        core: &Core,
        now: Timestamp,
        base: &MachineTypeName,
        jobs: &BTreeSet<(Timestamp, JobId)>,
        max_overtake: Duration,
        due: &mut Timestamp,
    ) -> (Vec<(Timestamp, JobId)>, Option<&RunnerName>) {
        let changing = self.changing.get(base);
        let mut blocker = None;
        let mut free = Vec::new();
        for (since, id) in jobs {
            let overdue_at = *since + max_overtake;
            let by_change = changing.filter(|_| overdue_at > now);
            if by_change.is_some() {
                *due = (*due).min(overdue_at);
            }
            match by_change.or_else(|| self.busy_for(core, base, *id)) {
                Some(runner) => blocker = blocker.or(Some(runner)),
                None => free.push((*since, *id)),
            }
        }
        (free, blocker)
    }

    fn busy_for(&self, core: &Core, base: &MachineTypeName, job: JobId) -> Option<&RunnerName> {
        let busy = self.busy.get(base)?;
        busy.get(&core.jobs.get(job)?.job.workflow_run)
    }
}
