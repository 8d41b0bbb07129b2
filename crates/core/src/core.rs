//! The state machine's face: one event in, the commands that follow out.

use std::collections::{BTreeMap, VecDeque};

use crate::command::{Command, KillReason, Level, Note};
use crate::event::{Event, Source};
use crate::jobs::{Change, Jobs, Phase};
use crate::model::{
    Bytes, ImageRef, Job, JobId, MachineTypeName, Repository, RunnerId, RunnerName, Timestamp,
};
use crate::policy::Policy;
use crate::polls::Polls;
use crate::random::Random;
use crate::run::{FinishStep, FinishedRun, RetireReason, RunState, Runs};
use crate::schedule::Waiting;
use crate::snapshots::Snapshot;
use crate::timers::{Timer, Timers};
use crate::view::View;

/// Finished runs that are remembered for `status`; the oldest are forgotten first.
pub const FINISHED_RUNS_MAX: usize = 200;

/// Everything that Forrest knows and decides.
#[derive(Debug)]
pub struct Core {
    pub(crate) policy: Policy,
    pub(crate) jobs: Jobs,
    pub(crate) runs: Runs,
    pub(crate) polls: Polls,
    pub(crate) timers: Timers,
    pub(crate) health: BTreeMap<MachineTypeName, Health>,
    pub(crate) snapshots: BTreeMap<MachineTypeName, Snapshot>,
    pub(crate) finished: VecDeque<FinishedRun>,
    pub(crate) waiting: BTreeMap<MachineTypeName, Waiting>,
    pub(crate) disk: Option<DiskSpace>,
    pub(crate) draining: bool,
    pub(crate) random: Random,
    /// Whether something changed that scheduling depends on.
    pub(crate) unscheduled: bool,
}

/// What was last measured of the host's disk.
#[derive(Debug, Clone, Default)]
pub(crate) struct DiskSpace {
    pub(crate) free: Bytes,
    pub(crate) runs: BTreeMap<RunnerName, Bytes>,
}

/// How a machine type's recent runs started.
#[derive(Debug, Clone, Default)]
pub(crate) struct Health {
    /// Starts that failed since the last one that did not.
    pub(crate) failures: u32,
    /// No run is started before this time.
    pub(crate) paused_until: Option<Timestamp>,
    /// What went wrong last.
    pub(crate) trouble: Option<String>,
    /// The generation whose guest did not become ready, and how often in a row.
    pub(crate) unready: Option<(ImageRef, u32)>,
}

impl Core {
    /// A core that knows of nothing yet. The seed decides the runners' names.
    pub fn new(policy: Policy, seed: u64) -> Self {
        Self {
            policy,
            jobs: Jobs::default(),
            runs: Runs::default(),
            polls: Polls::default(),
            timers: Timers::default(),
            health: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            finished: VecDeque::new(),
            waiting: BTreeMap::new(),
            disk: None,
            draining: false,
            random: Random::new(seed),
            unscheduled: true,
        }
    }

    /// Takes in one event; what has to be done about it is added to `out`.
    pub fn handle(&mut self, now: Timestamp, event: Event, out: &mut Vec<Command>) {
        self.take_in(now, event, out);
        while let Some(timer) = self.timers.expired(now) {
            self.timer_expired(now, timer, out);
        }
        if self.unscheduled {
            self.unscheduled = false;
            self.schedule(now, out);
        }
    }

    /// When [`Event::Tick`] is due, if nothing else happens before.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        self.timers.next()
    }

    /// All that people may want to know.
    pub fn view(&self, now: Timestamp) -> View {
        View::of(self, now)
    }

    /// The policy in force.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The runs, for checks and simulations.
    pub fn runs(&self) -> &Runs {
        &self.runs
    }

    /// The jobs, for checks and simulations.
    pub fn jobs(&self) -> &Jobs {
        &self.jobs
    }

    /// The machine type that serves such a job, if one does. The daemon drops reports of all other
    /// jobs before they are queued.
    pub fn serves(&self, job: &Job) -> bool {
        self.policy.machine_for(&job.repository, &job.labels).is_some()
            || self.jobs.get(job.id).is_some()
            || job.runner.as_ref().is_some_and(|runner| self.runs.get(runner).is_some())
    }

    fn take_in(&mut self, now: Timestamp, event: Event, out: &mut Vec<Command>) {
        match event {
            Event::PolicyChanged(policy) => self.policy_changed(now, policy, out),
            Event::JobReported { job, source } => self.job_reported(now, job, source, out),
            Event::JobMissing { job, asked_at, .. } => self.job_missing(now, job, asked_at, out),
            Event::Polled { repository, result, asked_at } => {
                self.polled(now, &repository, result, asked_at, out);
            }
            Event::DeliveriesRepaired(result) => self.deliveries_repaired(now, result, out),
            Event::HostMeasured { free_disk, run_disks } => {
                self.disk = Some(DiskSpace { free: free_disk, runs: run_disks });
                self.unscheduled |= !self.waiting.is_empty();
            }
            Event::SnapshotChecked { machine, fits } => self.snapshot_checked(&machine, fits),
            Event::SnapshotBuilt { machine, result } => {
                self.snapshot_built(now, &machine, result, out);
            }
            Event::Adopted(run) => self.adopt(now, *run, out),
            Event::Run { runner, event } => self.run_event(now, &runner, event, out),
            Event::StopRequested { runner } => self.stop_requested(now, &runner, out),
            Event::DrainRequested(draining) => {
                self.draining = draining;
                self.unscheduled = true;
            }
            Event::Tick => {}
        }
    }

    fn timer_expired(&mut self, now: Timestamp, timer: Timer, out: &mut Vec<Command>) {
        match timer {
            Timer::Run(runner) => self.run_timer(now, &runner, out),
            Timer::Registration(runner) => self.ask_for_deregistration(&runner, out),
            Timer::Disk(runner) => self.disk_timer(now, &runner, out),
            Timer::Backoff(machine) => {
                if let Some(health) = self.health.get_mut(&machine) {
                    health.paused_until = None;
                }
                self.unscheduled = true;
            }
            Timer::Poll(repository) => self.poll(now, &repository, out),
            Timer::Deliveries => self.repair_deliveries(now, out),
            Timer::Snapshots => self.snapshots_timer(now, out),
            Timer::Schedule => self.unscheduled = true,
        }
    }

    fn policy_changed(&mut self, now: Timestamp, policy: Policy, out: &mut Vec<Command>) {
        self.policy = policy;
        let policy = &self.policy;
        self.jobs.rematch(|job| {
            policy.machine_for(&job.repository, &job.labels).map(|machine| machine.name.clone())
        });
        // A failure under the old configuration says nothing of the new one.
        for machine in std::mem::take(&mut self.health).into_keys() {
            self.timers.clear(&Timer::Backoff(machine));
        }
        self.polls_follow_policy(now, out);
        self.snapshots_follow_policy(now, out);
        self.unscheduled = true;
    }

    fn job_reported(&mut self, now: Timestamp, job: Job, source: Source, out: &mut Vec<Command>) {
        if !self.serves(&job) {
            out.push(Command::Note(Note {
                level: Level::Debug,
                runner: None,
                job: Some(job.id),
                text: format!("a job of {} names no machine type: left alone", job.repository),
            }));
            return;
        }
        let machine = self.policy.machine_for(&job.repository, &job.labels).map(|m| m.name.clone());
        let (id, repository) = (job.id, job.repository.clone());
        self.note_webhook(now, &job, source);
        match self.jobs.report(now, job, source, machine) {
            Change::None => {}
            Change::Unclear => out.push(Command::FetchJob { repository, job: id }),
            Change::Phase { before, after } => self.job_changed(now, id, before, after, out),
        }
    }

    fn job_changed(
        &mut self,
        now: Timestamp,
        id: JobId,
        before: Option<Phase>,
        after: Phase,
        out: &mut Vec<Command>,
    ) {
        self.unscheduled = true;
        let Some(entry) = self.jobs.get(id) else { return };
        let runner = entry.job.runner.clone();
        let name = entry.job.name.clone().unwrap_or_else(|| id.to_string());
        let text = match (after, entry.job.conclusion) {
            (Phase::Done, Some(conclusion)) => format!("job {name:?} is over: {conclusion:?}"),
            (Phase::Done, None) => format!("job {name:?} is over"),
            (Phase::Held, _) => format!("job {name:?} is held back by GitHub"),
            (Phase::Queued, _) if before == Some(Phase::Running) => {
                format!("job {name:?} is queued again: its runner did not take it")
            }
            (Phase::Queued, _) => format!("job {name:?} is queued"),
            (Phase::Running, _) => format!("job {name:?} runs"),
        };
        out.push(Command::Note(Note {
            level: Level::Info,
            runner: runner.clone(),
            job: Some(id),
            text,
        }));
        let Some(runner) = runner else { return };
        match after {
            Phase::Running => self.run_has_job(now, &runner, id, out),
            Phase::Done => self.run_finished_job(now, &runner, id, out),
            Phase::Queued | Phase::Held => {}
        }
    }

    fn job_missing(&mut self, now: Timestamp, id: JobId, asked: Timestamp, out: &mut Vec<Command>) {
        let Some(entry) = self.jobs.missing(id, asked) else { return };
        self.unscheduled = true;
        out.push(Command::Note(Note {
            level: Level::Info,
            runner: entry.job.runner.clone(),
            job: Some(id),
            text: "GitHub does not know the job any more: forgotten".into(),
        }));
        // Its repository or workflow run was deleted; a runner that had it is as good as done.
        if let (Phase::Running, Some(runner)) = (entry.phase, &entry.job.runner) {
            self.run_finished_job(now, runner, id, out);
        }
    }

    fn stop_requested(&mut self, now: Timestamp, runner: &RunnerName, out: &mut Vec<Command>) {
        let stopped = self.runs.change(runner, |run| match &run.state {
            RunState::Starting(vm)
            | RunState::Booting(vm)
            | RunState::Idle { vm, .. }
            | RunState::Busy { vm, .. }
            | RunState::Retiring { vm, .. }
            | RunState::Finishing { vm, .. } => {
                run.state = RunState::Finishing {
                    vm: vm.clone(),
                    job: run.job(),
                    step: FinishStep::Killing(KillReason::Operator),
                };
                true
            }
            RunState::Preparing { .. } | RunState::Settling(_) => false,
        });
        if stopped == Some(true) {
            let text = "the operator ends this run".into();
            out.push(note(Level::Warn, runner, text));
            self.run_timer(now, runner, out);
            self.unscheduled = true;
        }
    }

    /// Retires a runner that waits for a job: GitHub is asked to delete it first.
    pub(crate) fn retire(
        &mut self,
        runner: &RunnerName,
        why: RetireReason,
        out: &mut Vec<Command>,
    ) {
        let id = self.runs.change(runner, |run| match &run.state {
            RunState::Booting(vm) | RunState::Idle { vm, .. } => {
                let id = vm.runner_id;
                run.state = RunState::Retiring { vm: vm.clone(), why, failures: 0 };
                Some(id)
            }
            RunState::Preparing { .. }
            | RunState::Starting(_)
            | RunState::Busy { .. }
            | RunState::Retiring { .. }
            | RunState::Finishing { .. }
            | RunState::Settling(_) => None,
        });
        if let Some(Some(id)) = id {
            self.timers.clear(&Timer::Run(runner.clone()));
            let text = match why {
                RetireReason::Surplus => "no job is left for this runner: retiring it",
                RetireReason::Forgotten => "GitHub has forgotten this runner: replacing it",
                RetireReason::IdleTimeout => "the runner waited too long for a job: retiring it",
            };
            out.push(note(Level::Info, runner, text.into()));
            out.extend(self.deregistration(runner, Some(id)));
        }
    }

    pub(crate) fn deregistration(
        &self,
        runner: &RunnerName,
        id: Option<RunnerId>,
    ) -> Option<Command> {
        let repository = self.runs.get(runner)?.machine.repository().clone();
        Some(Command::Deregister { runner: runner.clone(), repository, id })
    }

    pub(crate) fn repository_of(&self, runner: &RunnerName) -> Option<Repository> {
        Some(self.runs.get(runner)?.machine.repository().clone())
    }
}

/// A note about a run.
pub(crate) fn note(level: Level, runner: &RunnerName, text: String) -> Command {
    Command::Note(Note { level, runner: Some(runner.clone()), job: None, text })
}
