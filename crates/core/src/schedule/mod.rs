//! Which queued job gets a run next, and why the others wait.
//!
//! GitHub gives a queued job to any matching runner, so what is decided here is how many runs each
//! machine type gets, not which run gets which job.
//!
//! Order: a job that has waited longer than `max_overtake` goes before everything younger, and
//! nothing is started that would take the room it needs. Among the others the repository that holds
//! the least RAM goes first, then the machine type that needs the most, then the oldest job.

mod bases;
mod room;
mod surplus;
mod waiting;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use crate::command::Command;
use crate::core::Core;
use crate::health::Health;
use crate::model::{Bytes, JobId, MachineType, MachineTypeName, Timestamp};
use crate::policy::Resources;
use crate::run::Held;
use crate::timers::Timer;

use bases::Base;
pub use waiting::Waiting;

/// Failed runs whose runner GitHub does not let go of yet, before no further one is tried.
const OWING_MAX: u32 = 3;

/// Jobs, and since when they wait.
type Others<'a> = Box<dyn Iterator<Item = (Timestamp, JobId)> + 'a>;

/// A machine type with jobs that no run is there for.
struct Candidate<'a> {
    machine: &'a MachineType,
    /// The first of those jobs, and since when it waits.
    first: (Timestamp, JobId),
    /// How many of those jobs there are, those that have to wait for a base included.
    left: usize,
    /// The others, oldest first.
    others: Others<'a>,
    /// Whether those that have to wait for a base are left out.
    base_is_known: bool,
    /// What its repository's runs hold, those that were chosen included.
    of_repository: (Bytes, u32),
    /// Runs of the machine type, those that were chosen included.
    of_machine: u32,
    /// After failures one run is started at a time: why the others wait.
    only_one: Option<Waiting>,
}

impl Core {
    /// Does what the last event and the passed deadlines call for.
    ///
    /// Most of them change nothing here: a job that joins a queue that waits anyway, or leaves it for
    /// a runner that was counted for it.
    pub(crate) fn schedule_if_needed(&mut self, now: Timestamp, out: &mut Vec<Command>) {
        let changes = self.runs.take_changes();
        let mut needed = std::mem::take(&mut self.unscheduled);
        needed |= changes.freed && (!self.waiting.is_empty() || !self.snapshots.is_empty());
        let for_disk = |waiting: &Waiting| matches!(waiting, Waiting::Disk { .. });
        needed |= changes.freed_disk
            && self.free_disk.is_some()
            && (!self.snapshots.is_empty() || self.waiting.values().any(for_disk));
        for machine in changes.images {
            needed = needed || self.is_waited_for(&machine);
        }
        for machine in changes.supply.into_iter().chain(std::mem::take(&mut self.requeued)) {
            needed = needed || self.is_out_of_date(&machine);
        }
        if needed {
            self.schedule(now, out);
            self.runs.take_changes();
            self.unscheduled = false;
        }
    }

    /// Whether jobs wait for an image of this machine type.
    fn is_waited_for(&self, base: &MachineTypeName) -> bool {
        let waits = |(name, waiting): (&MachineTypeName, &Waiting)| {
            matches!(waiting, Waiting::Base { .. })
                && self.policy.machines.get(name).and_then(|m| m.base_machine.as_ref())
                    == Some(base)
        };
        self.waiting.iter().any(waits)
    }

    /// Whether the machine type's supply or queue is another than that which was decided on.
    fn is_out_of_date(&self, machine: &MachineTypeName) -> bool {
        let queued = self.jobs.queued_count(machine);
        let supply = self.runs.of_machine(machine).supply as usize;
        let wanting = queued > supply && self.policy.machines.contains_key(machine);
        let waiting = self.waiting.get(machine);
        // Not all of its jobs need wait for the base.
        let uneven = matches!(waiting, Some(Waiting::Base { .. }));
        // Somebody may get what this one waited for, or the room of a runner that it does not need.
        let spare = queued < supply && !self.waiting.is_empty();
        wanting != waiting.is_some() || uneven || spare
    }

    /// Starts the runs that there are jobs and room for, and says why the other jobs wait.
    fn schedule(&mut self, now: Timestamp, out: &mut Vec<Command>) {
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
        let mut room = self.room();
        let mut candidates = self.candidates(now, &mut waiting);
        let mut chosen: Vec<MachineType> = Vec::new();
        let max_overtake = self.policy.timing.max_overtake;
        in_order(now, &mut candidates, max_overtake);
        while let Some(candidate) = candidates.pop() {
            let machine = candidate.machine;
            let (since, job) = candidate.first;
            if let Some(limit) = self.limit(&candidate) {
                waiting.insert(machine.name.clone(), limit);
                continue;
            }
            let refusal = room.refuse(machine, &self.policy.capacity);
            let overdue_at = since + max_overtake;
            // What its base does only matters once it may get a run, or keep others from one.
            if !candidate.base_is_known && (refusal.is_none() || overdue_at <= now) {
                candidates.extend(self.look_at_base(now, candidate, &mut waiting, &mut due));
                in_order(now, &mut candidates, max_overtake);
                continue;
            }
            let Some(refusal) = refusal else {
                room.take(Resources::from(machine));
                chosen.push(machine.clone());
                served(candidate, &mut candidates, &mut waiting);
                in_order(now, &mut candidates, max_overtake);
                continue;
            };
            waiting.insert(machine.name.clone(), refusal.waiting);
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

    /// The machine types whose jobs may get a run if there is room.
    fn candidates(
        &self,
        now: Timestamp,
        waiting: &mut BTreeMap<MachineTypeName, Waiting>,
    ) -> Vec<Candidate<'_>> {
        let mut candidates = Vec::new();
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
            let only_one = match self.pause_after_failures(now, name, held) {
                Pause::None => None,
                Pause::AllButOne(waiting) => Some(waiting),
                Pause::All(pause) => {
                    waiting.insert(name.clone(), pause);
                    continue;
                }
            };
            let skip = held.supply as usize;
            let mut others: Others<'_> = Box::new(jobs.iter().copied().skip(skip));
            let Some(first) = others.next() else { continue };
            let repository = self.runs.of_repository(name.repository());
            candidates.push(Candidate {
                machine,
                first,
                left: jobs.len() - skip,
                others,
                base_is_known: machine.base_machine.is_none(),
                of_repository: (repository.ram, repository.runs),
                of_machine: held.runs,
                only_one,
            });
        }
        candidates
    }

    /// Leaves out the candidate's jobs that have to wait for its base. `due` is moved to the time when
    /// one of them has waited enough.
    fn look_at_base<'a>(
        &'a self,
        now: Timestamp,
        mut candidate: Candidate<'a>,
        waiting: &mut BTreeMap<MachineTypeName, Waiting>,
        due: &mut Timestamp,
    ) -> Option<Candidate<'a>> {
        candidate.base_is_known = true;
        let base = Base::of(self, candidate.machine.base_machine.as_ref()?);
        let Some(runner) = base.a_run() else { return Some(candidate) };
        let name = &candidate.machine.name;
        // Where it is something else that they wait for in the end, that takes its place.
        waiting.insert(name.clone(), Waiting::Base { runner: runner.clone() });
        let max_overtake = self.policy.timing.max_overtake;
        let young = self.jobs.queued(name).find(|(since, _)| *since + max_overtake > now);
        if let Some((since, _)) = young {
            *due = (*due).min(since + max_overtake);
        }
        let free = move |(since, job): &(Timestamp, JobId)| {
            !base.keeps(self, *job, *since + max_overtake <= now)
        };
        let skip = self.runs.of_machine(name).supply as usize;
        candidate.others = Box::new(self.jobs.queued(name).filter(free).skip(skip));
        candidate.first = candidate.others.next()?;
        Some(candidate)
    }

    fn pause_after_failures(&self, now: Timestamp, name: &MachineTypeName, held: Held) -> Pause {
        let health = self.health.get(name);
        let probing = health.is_some_and(Health::is_probing);
        let waiting = |until: Timestamp| {
            let trouble = health.and_then(|health| health.trouble.clone());
            let owing = || "GitHub does not let go of earlier runners".into();
            Waiting::Pause { until, trouble: trouble.unwrap_or_else(owing) }
        };
        match health.and_then(|health| health.paused_until) {
            Some(until) => Pause::All(waiting(until)),
            // While GitHub does not let go of those that came to nothing, no more are begun.
            None if (probing && held.supply > 0) || held.owing >= OWING_MAX => {
                Pause::All(waiting(now))
            }
            None if probing => Pause::AllButOne(waiting(now)),
            None => Pause::None,
        }
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
}

/// What failures of a machine type's runs mean for the next ones.
enum Pause {
    /// Nothing.
    None,
    /// One is tried.
    AllButOne(Waiting),
    /// None is begun.
    All(Waiting),
}

/// Sorts the candidates, the next one last: jobs that can no longer be overtaken by age; then the
/// repository that holds least, and of its machine types the one that needs most.
fn in_order(now: Timestamp, candidates: &mut [Candidate<'_>], max_overtake: Duration) {
    let key = |candidate: &Candidate<'_>| {
        let since = candidate.first.0;
        if since + max_overtake <= now {
            (0, Bytes(since.0), Reverse(Bytes(0)), candidate.first)
        } else {
            (1, candidate.of_repository.0, Reverse(candidate.machine.ram), candidate.first)
        }
    };
    candidates.sort_unstable_by_key(|candidate| Reverse(key(candidate)));
}

/// The candidate's first job was given a run; its next one is a candidate again.
fn served<'a>(
    mut candidate: Candidate<'a>,
    others: &mut Vec<Candidate<'a>>,
    waiting: &mut BTreeMap<MachineTypeName, Waiting>,
) {
    let machine = candidate.machine;
    candidate.of_machine += 1;
    candidate.left -= 1;
    if candidate.left == 0 {
        waiting.remove(&machine.name);
    } else if let Some(next) = candidate.others.next() {
        candidate.first = next;
        match candidate.only_one.take() {
            Some(pause) => drop(waiting.insert(machine.name.clone(), pause)),
            None => others.push(candidate),
        }
    }
    let ram = Resources::from(machine).ram;
    for other in others {
        if other.machine.name.repository() == machine.name.repository() {
            let (held, runs) = other.of_repository;
            other.of_repository = (held.saturating_add(ram), runs + 1);
        }
    }
}
