//! What must hold after every event, checked independently of the code that makes it hold.

use std::collections::BTreeMap;

use crate::core::Core;
use crate::jobs::Phase;
use crate::model::{Bytes, JobId, MachineTypeName, RunnerName};
use crate::run::{DiskDebt, RegistrationDebt, Run, RunState, Settling};
use crate::timers::Timer;

/// Something that must never be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// The sums that scheduling uses are not those of the runs.
    #[error("the sums of the runs are wrong: {0}")]
    Sums(String),
    /// Two live runs have the same job.
    #[error("job {job} is on both {first} and {second}")]
    JobTwice {
        /// Which job.
        job: JobId,
        /// One run.
        first: RunnerName,
        /// The other.
        second: RunnerName,
    },
    /// Something waits, and nothing will ever end its waiting.
    #[error("{what} waits without a deadline")]
    NoDeadline {
        /// What waits.
        what: String,
    },
    /// Nobody says why jobs wait, or somebody says so although none do.
    #[error("{machine} has {queued} jobs and {supply} runners for them, and waits for {waiting}")]
    Waiting {
        /// The machine type.
        machine: String,
        /// Its queued jobs.
        queued: usize,
        /// The runs that they can get.
        supply: usize,
        /// What the core says.
        waiting: String,
    },
    /// Nobody asks GitHub what a run's runner does.
    #[error("the repository of {runner} is not polled")]
    NotPolled {
        /// Whose.
        runner: RunnerName,
    },
    /// A run that is over is still remembered as the one that has a job.
    #[error("job {job} is remembered to be on {runner}, which is over")]
    Gone {
        /// Which job.
        job: JobId,
        /// The run that is not there.
        runner: RunnerName,
    },
    /// A run is taken to have a job of another repository than its own.
    #[error("job {job} of another repository is on {runner}")]
    Foreign {
        /// Which job.
        job: JobId,
        /// The run.
        runner: RunnerName,
    },
    /// The order of the queue is not that of the jobs.
    #[error("the queue of {machine} does not hold exactly its queued jobs")]
    Queue {
        /// Which machine type.
        machine: String,
    },
}

/// Checks everything that must always hold.
///
/// # Errors
/// The first [`Violation`] found.
pub fn check(core: &Core) -> Result<(), Violation> {
    sums(core)?;
    jobs_once(core)?;
    adopted_jobs(core)?;
    own_jobs(core)?;
    deadlines(core)?;
    waiting(core)?;
    queues(core)
}

/// Scheduling leaves out what it takes for unchanged. This is how its mistakes show.
fn waiting(core: &Core) -> Result<(), Violation> {
    for machine in core.policy.machines.keys() {
        let queued = core.jobs.queued_count(machine);
        let supply = core.runs.of_machine(machine).supply as usize;
        let waiting = core.waiting.get(machine);
        if (queued > supply) != waiting.is_some() {
            let (machine, waiting) = (machine.to_string(), format!("{waiting:?}"));
            return Err(Violation::Waiting { machine, queued, supply, waiting });
        }
    }
    Ok(())
}

fn sums(core: &Core) -> Result<(), Violation> {
    let live = || core.runs.iter().filter(|run| run.holds_memory());
    let ram: Bytes = live().map(|run| run.resources.ram).sum();
    let total = core.runs.total();
    if total.ram != ram || total.runs as usize != live().count() {
        return Err(Violation::Sums(format!("{total:?}, but the runs hold {ram}")));
    }
    let disks = || core.runs.iter().filter(|run| run.holds_disk());
    let growth: Bytes = disks().map(|run| run.resources.disk.saturating_sub(run.disk_used)).sum();
    if total.growth != growth || total.disks as usize != disks().count() {
        return Err(Violation::Sums(format!("{total:?}, but the disks can grow by {growth}")));
    }
    for machine in core.policy.machines.keys() {
        let of_machine = || live().filter(|run| &run.machine == machine);
        let supply = of_machine().filter(|run| run.is_supply()).count();
        let held = core.runs.of_machine(machine);
        if held.supply as usize != supply || held.runs as usize != of_machine().count() {
            return Err(Violation::Sums(format!("{machine}: {held:?}")));
        }
    }
    Ok(())
}

fn jobs_once(core: &Core) -> Result<(), Violation> {
    let mut seen: BTreeMap<JobId, &RunnerName> = BTreeMap::new();
    for run in core.runs.iter() {
        if let RunState::Busy { job: Some(job), .. } = &run.state
            && let Some(first) = seen.insert(*job, &run.runner)
        {
            let (first, second) = (first.clone(), run.runner.clone());
            return Err(Violation::JobTwice { job: *job, first, second });
        }
    }
    Ok(())
}

fn deadlines(core: &Core) -> Result<(), Violation> {
    let set = |timer: Timer, what: &str| match core.timers.get(&timer) {
        Some(_) => Ok(()),
        None => Err(Violation::NoDeadline { what: format!("{what} ({timer:?})") }),
    };
    for run in core.runs.iter() {
        let name = || run.runner.clone();
        match &run.state {
            RunState::Starting(_) => set(Timer::Run(name()), "a starting guest")?,
            RunState::Booting(_) => set(Timer::Run(name()), "a booting guest")?,
            RunState::Busy { job: None, .. } => set(Timer::Run(name()), "an unknown job")?,
            RunState::Retiring { .. } => set(Timer::Run(name()), "a retiring runner")?,
            RunState::Idle { .. } => set(Timer::Run(name()), "an idle runner")?,
            RunState::Finishing { .. } => set(Timer::Run(name()), "a guest that is to end")?,
            RunState::Settling(Settling { registration, disk, .. }) => {
                if let RegistrationDebt::Pausing { .. } | RegistrationDebt::Asked { .. } =
                    registration
                {
                    set(Timer::Registration(name()), "a deregistration")?;
                }
                if *disk == DiskDebt::AwaitingConclusion {
                    set(Timer::Disk(name()), "a disk with a token")?;
                }
            }
            RunState::Preparing { .. } | RunState::Busy { job: Some(_), .. } => {}
        }
    }
    for (machine, health) in &core.health {
        if health.paused_until.is_some() {
            set(Timer::Backoff(machine.clone()), "a machine type after failures")?;
        }
    }
    for repository in core.polls.repositories() {
        set(Timer::Poll(repository.clone()), "a repository's poll")?;
    }
    let polled = |run: &Run| core.polls.repositories().any(|r| r == run.machine.repository());
    if let Some(run) = core.runs.iter().find(|run| !polled(run)) {
        return Err(Violation::NotPolled { runner: run.runner.clone() });
    }
    Ok(())
}

/// What earlier daemons knew is forgotten with the run that it is about.
fn adopted_jobs(core: &Core) -> Result<(), Violation> {
    let mut held = core.adopted_jobs.iter();
    match held.find(|(_, runner)| core.runs.get(runner).is_none()) {
        Some((job, runner)) => Err(Violation::Gone { job: *job, runner: runner.clone() }),
        None => Ok(()),
    }
}

/// Others may give their runners the names of this host's.
fn own_jobs(core: &Core) -> Result<(), Violation> {
    for run in core.runs.iter() {
        if let Some(job) = run.job()
            && let Some(entry) = core.jobs.get(job)
            && &entry.job.repository != run.machine.repository()
        {
            return Err(Violation::Foreign { job, runner: run.runner.clone() });
        }
    }
    Ok(())
}

/// The jobs that are not over; there can be thousands of others, and this is done after every event.
fn queues(core: &Core) -> Result<(), Violation> {
    let mut queued: BTreeMap<&MachineTypeName, usize> = BTreeMap::new();
    let mut unfinished = 0;
    for entry in core.jobs.unfinished() {
        unfinished += 1;
        match (entry.phase, &entry.machine, &entry.job.runner) {
            (Phase::Queued, Some(machine), _) => *queued.entry(machine).or_default() += 1,
            (Phase::Running, _, Some(runner)) => {
                let holder = core.jobs.running_on(runner).and_then(|job| core.jobs.get(job));
                if holder.is_none_or(|holder| holder.job.runner.as_ref() != Some(runner)) {
                    return Err(Violation::Queue { machine: format!("running on {runner}") });
                }
            }
            (Phase::Queued, None, _) | (Phase::Running, _, None) | (Phase::Held, ..) => {}
            (Phase::Done, ..) => {
                return Err(Violation::Queue { machine: "jobs that are not over".into() });
            }
        }
    }
    if unfinished != core.jobs.active_count() {
        return Err(Violation::Queue { machine: "jobs that are not over".into() });
    }
    for machine in core.policy.machines.keys() {
        let sound = |job: JobId| core.jobs.get(job).is_some_and(|e| e.phase == Phase::Queued);
        let count = queued.get(machine).copied().unwrap_or_default();
        let mut found = core.jobs.queued(machine);
        if core.jobs.queued_count(machine) != count || !found.all(|(_, job)| sound(job)) {
            return Err(Violation::Queue { machine: machine.to_string() });
        }
    }
    Ok(())
}
