//! The state machine's face: one event in, the commands that follow out.

use std::collections::{BTreeMap, VecDeque};

use crate::command::{Command, Level, Note};
use crate::event::{Event, Source};
use crate::health::{Health, TakenOut};
use crate::jobs::{Change, Jobs, Phase};
use crate::model::{
    Bytes, Generation, Job, JobId, MachineTypeName, Repository, RunnerName, Timestamp,
};
use crate::policy::Policy;
use crate::polls::Polls;
use crate::random::Random;
use crate::run::{FinishedRun, Runs};
use crate::schedule::Waiting;
use crate::snapshots::Snapshot;
use crate::timers::{Timer, Timers};
use crate::trust::Asked;
use crate::view::View;

/// Finished runs that are remembered for `status`; the oldest are forgotten first.
pub const FINISHED_RUNS_MAX: usize = 200;

/// Everything that Forrest knows and decides.
#[derive(Debug)]
pub struct Core {
    pub(crate) policy: Policy,
    pub(crate) jobs: Jobs,
    pub(crate) runs: Runs,
    /// The jobs of adopted runs that no report told of yet.
    pub(crate) adopted_jobs: BTreeMap<JobId, RunnerName>,
    pub(crate) polls: Polls,
    /// The jobs that GitHub was asked for lately, because reports about them are doubtful.
    pub(crate) asked: Asked,
    pub(crate) timers: Timers,
    pub(crate) health: BTreeMap<MachineTypeName, Health>,
    /// The generation of each machine type's image whose guest was ready last.
    pub(crate) proven: BTreeMap<MachineTypeName, Generation>,
    /// The generation of each machine type's image that was taken out of use last, until there is a newer one.
    pub(crate) taken_out: BTreeMap<MachineTypeName, TakenOut>,
    pub(crate) snapshots: BTreeMap<MachineTypeName, Snapshot>,
    pub(crate) finished: VecDeque<FinishedRun>,
    pub(crate) waiting: BTreeMap<MachineTypeName, Waiting>,
    /// Free disk space, once it was measured.
    pub(crate) free_disk: Option<Bytes>,
    /// When room was last made on the disk.
    pub(crate) reclaimed_at: Option<Timestamp>,
    pub(crate) draining: bool,
    pub(crate) random: Random,
    /// The last time that was handed in.
    pub(crate) clock: Option<Timestamp>,
    /// Whether the last event came much later than the deadline before it.
    pub(crate) leapt: bool,
    /// Whether something changed that scheduling depends on.
    pub(crate) unscheduled: bool,
    /// Machine types whose queue changed.
    pub(crate) requeued: Vec<MachineTypeName>,
}

impl Core {
    /// A core that knows of nothing yet. The seed decides the runners' names.
    pub fn new(policy: Policy, seed: u64) -> Self {
        Self {
            policy,
            jobs: Jobs::default(),
            runs: Runs::default(),
            adopted_jobs: BTreeMap::new(),
            polls: Polls::default(),
            asked: Asked::default(),
            timers: Timers::default(),
            health: BTreeMap::new(),
            proven: BTreeMap::new(),
            taken_out: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            finished: VecDeque::new(),
            waiting: BTreeMap::new(),
            free_disk: None,
            reclaimed_at: None,
            draining: false,
            random: Random::new(seed),
            clock: None,
            leapt: false,
            unscheduled: true,
            requeued: Vec::new(),
        }
    }

    /// Takes in one event; what has to be done about it is added to `out`.
    ///
    /// `now` may jump: see the module `clock`. The daemon hands in what earlier daemons left behind
    /// (`Adopted`) first and `PolicyChanged` then, which starts the polls.
    pub fn handle(&mut self, now: Timestamp, event: Event, out: &mut Vec<Command>) {
        let now = self.clock(now, out);
        self.take_in(now, event, out);
        while let Some(timer) = self.timers.expired(now) {
            self.timer_expired(now, timer, out);
        }
        self.schedule_if_needed(now, out);
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
        self.policy.machine_for(&job.repository, &job.labels).is_some() || self.knows(job)
    }

    /// Whether a job matters although no machine type serves it now.
    fn knows(&self, job: &Job) -> bool {
        self.jobs.get(job.id).is_some()
            || self.adopted_jobs.contains_key(&job.id)
            || job.runner.as_ref().is_some_and(|runner| self.runs.get(runner).is_some())
    }

    fn take_in(&mut self, now: Timestamp, event: Event, out: &mut Vec<Command>) {
        match event {
            Event::PolicyChanged(policy) => self.policy_changed(now, policy, out),
            Event::JobReported { job, source } => self.job_reported(now, job, source, out),
            Event::JobMissing { job, asked_at, .. } => {
                self.job_missing(now, job, Self::asked_at(now, asked_at), out);
            }
            Event::Polled { repository, result, asked_at } => {
                self.polled(now, &repository, result, Self::asked_at(now, asked_at), out);
            }
            Event::DeliveriesRepaired(result) => self.deliveries_repaired(now, result, out),
            Event::HostMeasured { free_disk, run_disks } => {
                self.disk_measured(now, free_disk, out);
                self.runs.disks_measured(&run_disks);
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
                if self.draining != draining {
                    let text = if draining {
                        "the host is drained: no new runs are begun, those that are there go on"
                    } else {
                        "new runs are begun again"
                    };
                    out.push(general_note(Level::Info, text.into()));
                }
                self.draining = draining;
                self.unscheduled = true;
            }
            Event::SnapshotBuildRequested { machine } => self.build_snapshot_again(&machine, out),
            Event::SnapshotRemovalRequested { machine } => self.remove_snapshot(&machine, out),
            Event::Tick => {}
        }
    }

    fn timer_expired(&mut self, now: Timestamp, timer: Timer, out: &mut Vec<Command>) {
        match timer {
            Timer::Run(runner) => self.run_timer(now, &runner, out),
            Timer::Registration(runner) => self.ask_for_deregistration(now, &runner, out),
            Timer::Disk(runner) => self.disk_timer(now, &runner, out),
            Timer::Backoff(machine) => self.pause_over(&machine),
            Timer::Poll(repository) => self.poll_timer(now, &repository, out),
            Timer::Deliveries => self.repair_deliveries(now, out),
            Timer::Snapshots => self.snapshots_timer(now, out),
            Timer::Schedule => self.unscheduled = true,
        }
    }

    fn policy_changed(&mut self, now: Timestamp, policy: Policy, out: &mut Vec<Command>) {
        let old = std::mem::replace(&mut self.policy, policy);
        let policy = &self.policy;
        let forgotten = self.jobs.rematch(|job| {
            policy.machine_for(&job.repository, &job.labels).map(|machine| machine.name.clone())
        });
        if forgotten > 0 {
            let text = format!(
                "{forgotten} waiting jobs are left alone: no machine type serves them any more"
            );
            out.push(general_note(Level::Warn, text));
        }
        // A failure under the old configuration says nothing of the new one.
        for machine in std::mem::take(&mut self.health).into_keys() {
            self.timers.clear(&Timer::Backoff(machine));
        }
        self.proven.retain(|machine, _| self.policy.machines.contains_key(machine));
        self.taken_out.retain(|machine, _| self.policy.machines.contains_key(machine));
        self.polls_follow_policy(now, out);
        self.poll_for_new_machines(now, &old, out);
        self.snapshots_follow_policy(now, out);
        self.unscheduled = true;
    }

    fn job_reported(&mut self, now: Timestamp, job: Job, source: Source, out: &mut Vec<Command>) {
        let job = self.believable(job, out);
        let machine = self.policy.machine_for(&job.repository, &job.labels).map(|m| m.name.clone());
        if machine.is_none() && !self.knows(&job) {
            out.push(Command::Note(Note {
                level: Level::Debug,
                runner: None,
                job: Some(job.id),
                text: format!("a job of {} names no machine type: left alone", job.repository),
            }));
            return;
        }
        let source = match source {
            Source::Asked(at) => Source::Asked(Self::asked_at(now, at)),
            Source::Webhook => Source::Webhook,
        };
        let (id, repository) = (job.id, job.repository.clone());
        let known = self.jobs.get(id);
        self.unscheduled |= known.is_some_and(|known| known.machine != machine);
        self.note_webhook(now, &job, source, out);
        if self.may_be_a_recording(now, &job, source) {
            let why = "a webhook calls the job queued, which is old and was not known";
            return self.ask_for_job(now, id, &repository, why, out);
        }
        match self.jobs.report(now, job, source, machine) {
            Change::None => {}
            Change::Unclear => {
                let why = "reports of the job contradict each other";
                self.ask_for_job(now, id, &repository, why, out);
            }
            Change::Phase { before, after, left } => {
                self.job_changed(now, id, before, after, out);
                if let Some(runner) = left {
                    self.run_lost_job(now, &runner, id, out);
                }
            }
            Change::Full => out.push(Command::Note(Note {
                level: Level::Warn,
                runner: None,
                job: Some(id),
                text: "too many jobs to keep them all in mind: left to a later poll".into(),
            })),
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
        let Some(entry) = self.jobs.get(id) else { return };
        if before == Some(Phase::Queued) || after == Phase::Queued {
            self.requeued.extend(entry.machine.clone());
        }
        let runner = entry.job.runner.clone();
        let adopted =
            self.adopted_jobs.remove(&id).filter(|holder| runner.as_ref() != Some(holder));
        let name = entry.job.name.clone().unwrap_or_else(|| id.to_string());
        let text = match (after, entry.job.conclusion) {
            (Phase::Done, Some(conclusion)) => format!("job {name:?} is over: {conclusion:?}"),
            (Phase::Done, None) => format!("job {name:?} is over"),
            (Phase::Held, _) => format!("job {name:?} is held back by GitHub"),
            (Phase::Queued, _) if before == Some(Phase::Running) => {
                format!("job {name:?} is queued again: its runner did not take it")
            }
            (Phase::Queued, _) => format!("job {name:?} is queued"),
            (Phase::Running, _) if !self.is_ours(runner.as_ref()) => {
                format!("job {name:?} runs on a runner that is not this host's")
            }
            (Phase::Running, _) => format!("job {name:?} runs"),
        };
        out.push(Command::Note(Note {
            level: Level::Info,
            runner: runner.clone(),
            job: Some(id),
            text,
        }));
        // An earlier daemon knew the job to be on another runner.
        if let Some(holder) = adopted {
            self.run_lost_job(now, &holder, id, out);
        }
        let Some(runner) = runner else { return };
        match after {
            Phase::Queued | Phase::Held => {}
            Phase::Running | Phase::Done if self.runs.get(&runner).is_none() => {
                self.finished_run_had_job(&runner, id);
            }
            Phase::Running => self.run_has_job(now, &runner, id, out),
            Phase::Done => self.run_finished_job(now, &runner, id, out),
        }
    }

    /// Whether a runner is, or was not long ago, one of this host's.
    fn is_ours(&self, runner: Option<&RunnerName>) -> bool {
        runner.is_some_and(|runner| {
            self.runs.get(runner).is_some() || self.finished.iter().any(|f| &f.runner == runner)
        })
    }

    /// The news of a short job can come after everything of its run was settled.
    fn finished_run_had_job(&mut self, runner: &RunnerName, id: JobId) {
        let Some(entry) = self.jobs.get(id) else { return };
        let Some(run) = self.finished.iter_mut().rev().find(|run| &run.runner == runner) else {
            return;
        };
        (run.job, run.job_queued) = (Some(entry.job.clone()), Some(entry.queued_at));
        let machine = run.machine.clone();
        self.machine_works(&machine);
    }

    fn job_missing(&mut self, now: Timestamp, id: JobId, asked: Timestamp, out: &mut Vec<Command>) {
        let entry = self.jobs.missing(id, asked);
        if entry.is_none() && self.jobs.get(id).is_some() {
            return;
        }
        if let Some(entry) = &entry {
            self.requeued.extend(entry.machine.clone());
            out.push(Command::Note(Note {
                level: Level::Info,
                runner: entry.job.runner.clone(),
                job: Some(id),
                text: "GitHub does not know the job any more: forgotten".into(),
            }));
        }
        self.adopted_jobs.remove(&id);
        // Its repository or workflow run may be deleted, or GitHub may be wrong: a runner that had
        // it is only let go when GitHub agrees to delete it.
        let had = self.runs.iter().find(|run| run.job() == Some(id));
        if let Some(runner) = had.map(|run| run.runner.clone()) {
            self.run_lost_job(now, &runner, id, out);
        }
    }

    pub(crate) fn repository_of(&self, runner: &RunnerName) -> Option<Repository> {
        Some(self.runs.get(runner)?.machine.repository().clone())
    }
}

/// A note that is about no run and no job.
pub(crate) fn general_note(level: Level, text: String) -> Command {
    Command::Note(Note { level, runner: None, job: None, text })
}

/// A note about a run.
pub(crate) fn note(level: Level, runner: &RunnerName, text: String) -> Command {
    Command::Note(Note { level, runner: Some(runner.clone()), job: None, text })
}
