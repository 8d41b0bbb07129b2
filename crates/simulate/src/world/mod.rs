//! One simulated day: what is due happens, in order of time, until every promise is kept or broken.
//!
//! The parts: [`github`] and [`host`] hold the truth, `jobs` and `guests` move it, `daemon` runs the
//! real core and `requests` and `disks` carry out what it wants, `faults` breaks things.

mod daemon;
mod disks;
mod faults;
pub mod github;
mod guests;
pub mod host;
mod jobs;
mod requests;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use forrest_core::model::{JobId, MachineTypeName, RunnerName, Timestamp};
use forrest_core::{Event, Policy};

use crate::checker::{Broken, Checker};
use crate::plan::{HOUR, MINUTE, Plan};
use crate::random::Random;

use daemon::Daemon;
use faults::{Fault, Weather};
use github::GitHub;
use guests::GuestStep;
use host::Host;
use requests::Request;

/// The host's clock at the beginning of the day, in milliseconds since the Unix epoch.
const MORNING: i64 = 1_800_000_000_000;
/// How long after the end of the faults the last job is served, beside the work that is left: GitHub
/// may have said not to be asked for two hours, and an approval may take three. Each image that does not boot takes
/// its own time, one after the other: 14 guests at most, of ten minutes each with the pauses between them.
pub const SERVED_MAX: u64 = 4 * HOUR;
/// How long the world may take to come to rest once the faults stop, beside the work that is left.
pub const REST_MAX: u64 = 8 * HOUR;
/// How often the checker looks whether anything piles up.
const AUDIT_EVERY: u64 = 3 * HOUR;
/// Lines of a trace that are kept for the report of a broken promise.
const TRACE_TAIL: usize = 400;

/// Something that is due.
#[derive(Debug)]
pub(crate) enum Action {
    /// A workflow run begins.
    Workflow,
    /// A job passes its gate.
    Approve(JobId),
    /// Somebody cancels a job.
    Cancel(JobId),
    /// Somebody deletes a job that waits.
    Delete(JobId),
    /// Another host's runner takes a job.
    TakeElsewhere(JobId),
    /// A job ends on another host.
    EndElsewhere(JobId),
    /// GitHub looks for runners for a machine type's jobs.
    Assign(usize),
    /// A runner takes the job that it was given.
    Take(JobId, RunnerName),
    /// GitHub queues a job again that its runner did not take.
    Requeue(JobId, RunnerName),
    /// A job ends in its guest.
    Complete(JobId, RunnerName, u64),
    /// GitHub gives up on a job whose runner vanished.
    GiveUp(JobId, RunnerName),
    /// GitHub removes the runner of a finished job.
    RemoveFinished(RunnerName),
    /// GitHub or somebody removes an idle runner.
    RemoveIdle(RunnerName),
    /// A webhook arrives.
    Deliver(usize),
    /// Something happens in a guest.
    Guest(RunnerName, u64, GuestStep),
    /// A snapshot is built, or not.
    SnapshotBuilt(usize, u64),
    /// A request reaches GitHub. Some do although the daemon that sent them is gone.
    Request(Request),
    /// A daemon's work on the disk or with a supervisor. It ends with the daemon.
    Work(u32, disks::Work),
    /// A daemon hears something.
    Tell(u32, Box<Event>),
    /// A daemon's timer.
    Tick(u32, u64),
    /// A daemon measures the disk.
    Measure(u32),
    /// The checker looks whether anything piles up.
    Audit,
    /// Something breaks, or is mended.
    Fault(Fault),
    /// The faults stop.
    Calm,
}

struct Due {
    at: u64,
    order: u64,
    /// Boxed: what is due is moved about a lot.
    action: Box<Action>,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// What a day was like.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Events that the core took in.
    pub events: u64,
    /// Commands that it gave, notes left out.
    pub commands: u64,
    /// Jobs that GitHub had.
    pub jobs: u64,
    /// Virtual machines that were started.
    pub guests: u64,
    /// Images that were promoted.
    pub promotions: u64,
    /// Daemons that were killed.
    pub crashes: u64,
    /// Milliseconds from the end of the faults until no job is open any more, less the time that the
    /// jobs themselves take one after the other.
    pub served: u64,
    /// Milliseconds from the end of the faults to rest.
    pub rest: u64,
}

/// The world of one seed.
pub struct World {
    pub(crate) plan: Plan,
    pub(crate) random: Random,
    /// Milliseconds since the day began, as they really pass.
    pub(crate) now: u64,
    /// How far the host's clock is off.
    pub(crate) clock_off: i64,
    queue: BinaryHeap<Reverse<Due>>,
    order: u64,
    pub(crate) github: GitHub,
    pub(crate) host: Host,
    pub(crate) weather: Weather,
    /// The configuration in force.
    pub(crate) policy: Policy,
    pub(crate) daemon: Option<Daemon>,
    /// Which daemon it is; answers to earlier ones are lost.
    pub(crate) epoch: u32,
    pub(crate) checker: Checker,
    /// When the faults stopped.
    pub(crate) calm: Option<u64>,
    /// When an image that does not boot was last taken out of use.
    pub(crate) cleared: u64,
    places: BTreeMap<MachineTypeName, usize>,
    pub(crate) tally: Tally,
    trace: Option<Trace>,
}

/// The story of a day, as text.
#[derive(Debug, Default)]
struct Trace {
    print: bool,
    tail: std::collections::VecDeque<String>,
}

/// A promise that was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Which promise, and how.
    pub what: String,
    /// When, in milliseconds since the day began.
    pub at: u64,
    /// What happened before, where it was traced.
    pub tail: Vec<String>,
}

/// Whether and how the story of a day is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tracing {
    /// Not at all: quickest.
    Off,
    /// The end of the story is kept for a failure.
    Tail,
    /// Every line is printed.
    Print,
}

impl World {
    /// The world of a seed, at the beginning of its day.
    pub fn new(seed: u64, days: f64, tracing: Tracing) -> Self {
        let plan = Plan::of(seed, days);
        let places = plan.machines.iter().enumerate().map(|(i, m)| (m.name.clone(), i)).collect();
        let trace = match tracing {
            Tracing::Off => None,
            Tracing::Tail => Some(Trace::default()),
            Tracing::Print => Some(Trace { print: true, ..Trace::default() }),
        };
        let mut world = Self {
            random: Random::new(seed ^ 0x5eed),
            now: 0,
            clock_off: plan.clock_off,
            queue: BinaryHeap::new(),
            order: 0,
            github: GitHub::default(),
            host: Host::new(plan.machines.len()),
            weather: Weather::default(),
            policy: plan.policy.clone(),
            daemon: None,
            epoch: 0,
            checker: Checker::new(&plan),
            calm: None,
            cleared: 0,
            places,
            tally: Tally::default(),
            trace,
            plan,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        for _ in 0..self.plan.workflows {
            let at = self.random.between(0, self.plan.length - 1);
            self.at(at, Action::Workflow);
        }
        self.draw_faults();
        self.at(self.plan.length, Action::Calm);
        self.at(AUDIT_EVERY, Action::Audit);
        if let Err(broken) = self.start_daemon() {
            self.checker.remember(broken);
        }
    }

    /// Lives the day.
    ///
    /// # Errors
    /// The first promise that was broken.
    pub fn live(mut self) -> (Tally, Result<(), Failure>) {
        let result = self.live_on();
        self.tally.jobs = self.github.jobs.len() as u64;
        let failure = result.err().map(|Broken(what)| Failure {
            what,
            at: self.now,
            tail: self.trace.take().map(|trace| trace.tail.into()).unwrap_or_default(),
        });
        (self.tally, failure.map_or(Ok(()), Err))
    }

    fn live_on(&mut self) -> Result<(), Broken> {
        let mut work_left = None;
        let mut served = false;
        while let Some(Reverse(due)) = self.queue.pop() {
            self.now = self.now.max(due.at);
            self.act(*due.action)?;
            if let Some(calm) = self.calm {
                let left = *work_left.get_or_insert_with(|| self.work_left());
                let since = calm.max(self.cleared) + left;
                if !served && self.github.open.is_empty() {
                    served = true;
                    self.tally.served = (self.now - calm).saturating_sub(left);
                }
                if !served && self.now > since + SERVED_MAX {
                    return Err(Broken(self.unrest("jobs are not served")));
                }
                if self.is_at_rest() {
                    self.tally.rest = self.now - calm;
                    return self.checker.at_rest(self);
                }
                if self.now > since + REST_MAX {
                    return Err(Broken(self.unrest("no rest")));
                }
            }
        }
        Err(Broken("nothing is due any more".into()))
    }

    fn act(&mut self, action: Action) -> Result<(), Broken> {
        match action {
            Action::Workflow => self.workflow_begins(),
            Action::Approve(job) => self.approve(job),
            Action::Cancel(job) => self.cancel(job),
            Action::Delete(job) => self.delete(job),
            Action::TakeElsewhere(job) => self.take_elsewhere(job),
            Action::EndElsewhere(job) => self.end_elsewhere(job),
            Action::Assign(machine) => self.assign(machine),
            Action::Take(job, runner) => self.take(job, &runner),
            Action::Requeue(job, runner) => self.requeue(job, &runner),
            Action::Complete(job, runner, guest) => self.complete(job, &runner, guest),
            Action::GiveUp(job, runner) => self.give_up(job, &runner),
            Action::RemoveFinished(runner) => self.remove_finished(&runner),
            Action::RemoveIdle(runner) => self.remove_idle(&runner),
            Action::Deliver(delivery) => return self.deliver(delivery),
            Action::Guest(runner, guest, step) => return self.guest_step(&runner, guest, step),
            Action::SnapshotBuilt(machine, build) => return self.build_ends(machine, build),
            Action::Request(request) => return self.reach_github(request),
            Action::Work(epoch, work) if epoch == self.epoch => return self.work(work),
            Action::Tell(epoch, event) if epoch == self.epoch => return self.tell(*event),
            Action::Tick(epoch, number) if epoch == self.epoch => return self.tick(number),
            Action::Measure(epoch) if epoch == self.epoch => return self.measure(),
            Action::Work(..) | Action::Tell(..) | Action::Tick(..) | Action::Measure(_) => {}
            Action::Audit => {
                self.after(AUDIT_EVERY, Action::Audit);
                return self.checker_on_audit();
            }
            Action::Fault(fault) => return self.strike(fault),
            Action::Calm => return self.calm_down(),
        }
        Ok(())
    }

    /// Has something happen at a time.
    pub(crate) fn at(&mut self, at: u64, action: Action) {
        self.order += 1;
        let action = Box::new(action);
        self.queue.push(Reverse(Due { at, order: self.order, action }));
    }

    /// Has something happen later.
    pub(crate) fn after(&mut self, delay: u64, action: Action) {
        self.at(self.now + delay, action);
    }

    /// The host's clock.
    pub(crate) fn wall(&self) -> Timestamp {
        Timestamp(u64::try_from(MORNING + self.clock_off + self.now as i64).unwrap_or(0))
    }

    /// GitHub's clock, which is right.
    pub(crate) fn github_time(&self) -> Timestamp {
        Timestamp(MORNING as u64 + self.now)
    }

    /// A machine type's place in the plan.
    pub(crate) fn place(&self, machine: &MachineTypeName) -> usize {
        self.places[machine]
    }

    /// Whether faults still happen.
    pub(crate) fn is_stormy(&self) -> bool {
        self.calm.is_none()
    }

    /// Whether a fault with this share strikes now.
    pub(crate) fn strikes(&mut self, share: f64) -> bool {
        self.is_stormy() && self.random.chance(share)
    }

    fn is_at_rest(&self) -> bool {
        self.github.open.is_empty()
            && self.host.runs.is_empty()
            && self.github.runners.is_empty()
            && self.daemon.as_ref().is_some_and(|daemon| {
                daemon.core.runs().is_empty() && daemon.core.jobs().active_count() == 0
            })
    }

    /// Time that the open jobs take if only one can run at a time.
    fn work_left(&self) -> u64 {
        let each = |id| self.github.jobs.get(id).map_or(0, |job| job.takes + 5 * MINUTE);
        self.github.open.iter().map(each).sum()
    }

    fn unrest(&self, what: &str) -> String {
        let core = self.daemon.as_ref().map(|daemon| &daemon.core);
        let runs = core.map(|core| {
            core.runs().iter().map(|r| format!("{} {:?}", r.runner, r.state)).collect::<Vec<_>>()
        });
        let waiting = core.map(|core| {
            let view = core.view(self.wall());
            let waiting = view.machines.into_iter().filter(|m| m.queued > 0 || m.waiting.is_some());
            waiting.map(|m| format!("{}: {:?}", m.name, m.waiting)).collect::<Vec<_>>()
        });
        let jobs: Vec<_> = self
            .github
            .open
            .iter()
            .map(|id| (id, self.github.jobs.get(id).map(|job| &job.at)))
            .collect();
        format!(
            "{what} long after the faults stopped: open jobs {jobs:?}; runs {runs:#?}; \
             directories {:?}; runners {:?}; waiting {waiting:?}",
            self.host.runs.keys().map(RunnerName::as_str).collect::<Vec<_>>(),
            self.github.runners.keys().map(RunnerName::as_str).collect::<Vec<_>>(),
        )
    }

    /// Adds a line to the story, where somebody listens.
    pub(crate) fn note(&mut self, line: impl FnOnce(&Self) -> String) {
        if self.trace.is_none() {
            return;
        }
        let (h, m, s, ms) =
            (self.now / HOUR, self.now / MINUTE % 60, self.now / 1000 % 60, self.now % 1000);
        let line = format!("{h:02}:{m:02}:{s:02}.{ms:03} {}", line(self));
        let Some(trace) = &mut self.trace else { return };
        if trace.print {
            println!("{line}");
        }
        if trace.tail.len() == TRACE_TAIL {
            trace.tail.pop_front();
        }
        trace.tail.push_back(line);
    }
}
