//! What happens to jobs and runners on GitHub.

use forrest_core::event::{Event, Persist, Source};
use forrest_core::model::{Conclusion, JobId, Repository, RunnerName, WorkflowRunId};

use crate::checker::Broken;
use crate::plan::{HOUR, MINUTE, SECOND};

use super::github::{At, Delivery, TrueJob};
use super::guests::GuestStep;
use super::host::Guest;
use super::{Action, World};

/// GitHub queues a job again that its runner has not taken after this time.
const TAKE_MAX: u64 = MINUTE;

impl World {
    /// A workflow run begins, with one or more jobs.
    pub(super) fn workflow_begins(&mut self) {
        let workflow_run = WorkflowRunId(self.order);
        let jobs = self.random.spread(1, 8);
        let repository = self.random.between(0, self.plan.machines.len() as u64 - 1) as usize;
        let repository = self.plan.machines[repository].name.repository().clone();
        let machines: Vec<usize> = (0..self.plan.machines.len())
            .filter(|index| *self.plan.machines[*index].name.repository() == repository)
            .collect();
        for _ in 0..jobs {
            let machine = *self.random.pick(&machines);
            self.add_job(machine, workflow_run, 1);
        }
    }

    fn add_job(&mut self, machine: usize, workflow_run: WorkflowRunId, attempt: u32) {
        let held = self.strikes(self.plan.faults.gated);
        let outcome =
            if self.random.chance(0.85) { Conclusion::Success } else { Conclusion::Failure };
        let persist = match self.random.between(0, 9) {
            0..=3 => Persist::Valid,
            4 => Persist::WrongToken,
            5 => Persist::Damaged,
            _ => Persist::Absent,
        };
        let id = self.github.add(TrueJob {
            machine,
            workflow_run,
            attempt,
            created: self.github_time(),
            at: if held { At::Held } else { At::Queued },
            given: None,
            ended: None,
            takes: self.random.spread(2 * SECOND, 40 * MINUTE),
            outcome,
            persist,
        });
        self.note(|w| format!("github: job {id} for {} begins", w.plan.machines[machine].name));
        self.webhook(id);
        if held {
            let gate = self.random.spread(SECOND, 3 * HOUR);
            self.after(gate, Action::Approve(id));
        }
        if self.strikes(self.plan.faults.cancelled) {
            let delay = self.random.spread(SECOND, 2 * HOUR);
            self.after(delay, Action::Cancel(id));
        }
        if self.strikes(self.plan.faults.deleted) {
            let delay = self.random.spread(SECOND, HOUR);
            self.after(delay, Action::Delete(id));
        }
        if self.strikes(self.plan.faults.elsewhere) {
            let delay = self.random.spread(SECOND, HOUR);
            self.after(delay, Action::TakeElsewhere(id));
        }
        self.look_for_runners(machine);
    }

    /// GitHub looks for runners soon.
    pub(super) fn look_for_runners(&mut self, machine: usize) {
        let delay = self.random.spread(100, 5 * SECOND);
        self.after(delay, Action::Assign(machine));
    }

    fn at_of(&self, id: JobId) -> Option<&At> {
        self.github.jobs.get(&id).map(|job| &job.at)
    }

    fn move_to(&mut self, id: JobId, at: At) {
        if let Some(job) = self.github.jobs.get_mut(&id) {
            job.at = at;
        }
    }

    pub(super) fn approve(&mut self, id: JobId) {
        if self.at_of(id) == Some(&At::Held) {
            self.note(|_| format!("github: job {id} is approved"));
            self.move_to(id, At::Queued);
            self.webhook(id);
            if let Some(machine) = self.github.jobs.get(&id).map(|job| job.machine) {
                self.look_for_runners(machine);
            }
        }
    }

    pub(super) fn cancel(&mut self, id: JobId) {
        let Some(at) = self.at_of(id).cloned() else { return };
        if matches!(at, At::Done(..)) {
            return;
        }
        self.note(|_| format!("github: job {id} is cancelled ({at:?})"));
        self.end_job(id, Conclusion::Cancelled);
        match at {
            // A runner that had not taken it waits for another one.
            At::Assigned(runner) => {
                let machine = self.github.runners.get(&runner).map(|runner| runner.machine);
                if let Some(machine) = machine {
                    self.look_for_runners(machine);
                }
            }
            At::Running(runner) => self.runner_is_done(&runner, Persist::Absent),
            At::Held | At::Queued | At::Elsewhere(_) | At::Done(..) => {}
        }
    }

    /// GitHub forgets a job that waits, and tells nobody.
    pub(super) fn delete(&mut self, id: JobId) {
        if matches!(self.at_of(id), Some(At::Held | At::Queued)) {
            self.note(|_| format!("github: job {id} is deleted"));
            self.github.jobs.remove(&id);
            self.github.open.remove(&id);
        }
    }

    pub(super) fn take_elsewhere(&mut self, id: JobId) {
        if self.at_of(id) != Some(&At::Queued) {
            return;
        }
        let Some(job) = self.github.jobs.get(&id) else { return };
        let (takes, machine) =
            (job.takes, self.plan.machines[job.machine].name.machine().to_owned());
        let repository = self.plan.machines[job.machine].name.repository().clone();
        let name = format!("forrest-{machine}-elsewhere{:07}", id.0 % 10_000_000);
        let ours = self.random.chance(0.5);
        let namesake = self.namesake(&repository);
        let name = namesake.or_else(|| name.parse().ok().filter(|_| ours));
        self.note(|_| format!("github: job {id} is taken elsewhere, by {name:?}"));
        self.move_to(id, At::Elsewhere(name));
        self.webhook(id);
        self.after(takes, Action::EndElsewhere(id));
    }

    /// The name of a runner of ours that somebody gave to one of another repository.
    fn namesake(&mut self, repository: &Repository) -> Option<RunnerName> {
        if !self.strikes(self.plan.faults.namesake) {
            return None;
        }
        let of = |machine: usize| self.plan.machines[machine].name.repository();
        let others = self.github.runners.iter().filter(|(_, r)| of(r.machine) != repository);
        let others: Vec<RunnerName> = others.map(|(name, _)| name.clone()).collect();
        (!others.is_empty()).then(|| self.random.pick(&others).clone())
    }

    pub(super) fn end_elsewhere(&mut self, id: JobId) {
        if let Some(At::Elsewhere(_)) = self.at_of(id) {
            self.end_job(id, Conclusion::Success);
        }
    }

    /// GitHub gives queued jobs to idle runners.
    pub(super) fn assign(&mut self, machine: usize) {
        let of = |world: &Self, id: &JobId| {
            world
                .github
                .jobs
                .get(id)
                .is_some_and(|job| job.machine == machine && job.at == At::Queued)
        };
        loop {
            let Some(job) = self.github.open.iter().find(|id| of(self, id)).copied() else {
                return;
            };
            let idle: Vec<RunnerName> = self
                .github
                .runners
                .iter()
                .filter(|(_, runner)| {
                    runner.machine == machine && runner.online && runner.job.is_none()
                })
                .map(|(name, _)| name.clone())
                .collect();
            if idle.is_empty() {
                return;
            }
            let runner = self.random.pick(&idle).clone();
            self.note(|_| format!("github: job {job} is given to {runner}"));
            self.move_to(job, At::Assigned(runner.clone()));
            let now = self.now;
            if let Some(entry) = self.github.jobs.get_mut(&job)
                && entry.given.as_ref().is_none_or(|(before, _)| *before != runner)
            {
                entry.given = Some((runner.clone(), now));
            }
            if let Some(entry) = self.github.runners.get_mut(&runner) {
                entry.job = Some(job);
            }
            if self.strikes(self.plan.faults.not_taken) {
                self.after(TAKE_MAX, Action::Requeue(job, runner));
            } else {
                let delay = self.random.spread(200, 3 * SECOND);
                self.after(delay, Action::Take(job, runner));
            }
        }
    }

    pub(super) fn take(&mut self, id: JobId, runner: &RunnerName) {
        if self.at_of(id) != Some(&At::Assigned(runner.clone())) {
            return;
        }
        let online = self.github.runners.get(runner).is_some_and(|runner| runner.online);
        let awake = |guest: &&mut Guest| online && !guest.paused;
        let Some(guest) = self.host.guest(runner).filter(awake).map(|guest| guest.number) else {
            self.after(TAKE_MAX, Action::Requeue(id, runner.clone()));
            return;
        };
        self.note(|_| format!("github: job {id} runs on {runner}"));
        self.move_to(id, At::Running(runner.clone()));
        self.webhook(id);
        if let Some(run) = self.host.runs.get_mut(runner) {
            run.ran = Some(id);
        }
        let takes = self.github.jobs.get(&id).map_or(0, |job| job.takes);
        if self.strikes(self.plan.faults.job_ends_guest) {
            let at = self.random.between(0, takes);
            let step = GuestStep::EndsAnyhow;
            // Some jobs leave their token long before they are over.
            if self.random.chance(0.5)
                && let Some(persist) = self.github.jobs.get(&id).map(|job| job.persist)
                && let Some(run) = self.host.runs.get_mut(runner)
            {
                run.persist = persist;
            }
            self.after(at, Action::Guest(runner.clone(), guest, step));
        }
        self.after(takes, Action::Complete(id, runner.clone(), guest));
    }

    pub(super) fn requeue(&mut self, id: JobId, runner: &RunnerName) {
        if self.at_of(id) != Some(&At::Assigned(runner.clone())) {
            return;
        }
        self.note(|_| format!("github: {runner} did not take job {id}"));
        self.move_to(id, At::Queued);
        let lost_contact = self.random.chance(0.5);
        if let Some(entry) = self.github.runners.get_mut(runner) {
            entry.job = None;
            entry.online &= !lost_contact;
        }
        // GitHub may or may not send a webhook for that.
        if self.random.chance(0.5) {
            self.webhook(id);
        }
        if let Some(machine) = self.github.jobs.get(&id).map(|job| job.machine) {
            self.look_for_runners(machine);
        }
    }

    pub(super) fn complete(&mut self, id: JobId, runner: &RunnerName, guest: u64) {
        let running = self.at_of(id) == Some(&At::Running(runner.clone()));
        if !running || !self.host.lives(runner, guest) {
            return;
        }
        if self.host.guest(runner).is_some_and(|guest| guest.paused) {
            self.after(MINUTE, Action::Complete(id, runner.clone(), guest));
            return;
        }
        let Some(job) = self.github.jobs.get(&id) else { return };
        let (outcome, persist) = (job.outcome, job.persist);
        self.end_job(id, outcome);
        self.runner_is_done(runner, persist);
    }

    /// A runner has had its job: GitHub removes it, and its guest shuts down.
    fn runner_is_done(&mut self, runner: &RunnerName, persist: Persist) {
        let delay = self.random.spread(100, 20 * SECOND);
        self.after(delay, Action::RemoveFinished(runner.clone()));
        if let Some(entry) = self.github.runners.get_mut(runner) {
            entry.online = false;
        }
        if let Some(run) = self.host.runs.get_mut(runner) {
            run.persist = persist;
        }
        self.guest_shuts_down(runner);
    }

    /// A job ends, and GitHub tells.
    fn end_job(&mut self, id: JobId, conclusion: Conclusion) {
        self.github.conclude(self.now, id, conclusion);
        self.note(|_| format!("github: job {id} is over: {conclusion:?}"));
        self.webhook(id);
        let Some(job) = self.github.jobs.get(&id) else { return };
        let (machine, run, attempt) = (job.machine, job.workflow_run, job.attempt);
        if self.strikes(self.plan.faults.rerun) && attempt < 3 {
            // A re-run tells of finished jobs once more.
            self.webhook(id);
            self.add_job(machine, run, attempt + 1);
        }
    }

    /// A runner vanished in the middle of a job; after some minutes GitHub gives up.
    pub(super) fn give_up(&mut self, id: JobId, runner: &RunnerName) {
        if self.at_of(id) == Some(&At::Running(runner.clone())) {
            self.end_job(id, Conclusion::Failure);
            self.after(SECOND, Action::RemoveFinished(runner.clone()));
        }
    }

    pub(super) fn remove_finished(&mut self, runner: &RunnerName) {
        if self.github.job_on(runner).is_none() {
            self.github.runners.remove(runner);
        }
    }

    /// GitHub forgets idle runners; people remove them.
    pub(super) fn remove_idle(&mut self, runner: &RunnerName) {
        let idle = self.github.runners.get(runner).is_some_and(|entry| entry.job.is_none());
        if idle && self.is_stormy() {
            self.note(|_| format!("github: {runner} is removed behind our back"));
            self.github.runners.remove(runner);
            self.runner_is_unknown(runner);
        }
    }

    /// GitHub tells of a job's present state.
    fn webhook(&mut self, id: JobId) {
        let in_progress = self.plan.assigned_is_in_progress;
        let Some(job) = self.github.report(id, &self.plan.machines, in_progress) else { return };
        let copies = 1 + u64::from(self.strikes(self.plan.faults.webhook_doubled));
        for _ in 0..copies {
            if self.strikes(self.plan.faults.webhook_lost) {
                continue;
            }
            let failed = self.strikes(self.plan.faults.webhook_failed);
            self.github.deliveries.push(Delivery { job: job.clone() });
            let place = self.github.deliveries.len() - 1;
            let delay = if self.strikes(self.plan.faults.webhook_late) {
                self.random.spread(SECOND, 5 * HOUR)
            } else {
                self.random.spread(20, 3 * SECOND)
            };
            if failed {
                self.github.undelivered.insert(place);
            } else {
                self.after(delay, Action::Deliver(place));
            }
        }
    }

    pub(super) fn deliver(&mut self, delivery: usize) -> Result<(), Broken> {
        if self.daemon.is_none() {
            self.github.undelivered.insert(delivery);
            return Ok(());
        }
        self.github.undelivered.remove(&delivery);
        let job = self.github.deliveries[delivery].job.clone();
        self.tell(Event::JobReported { job, source: Source::Webhook })
    }

    /// Somebody sends a recorded webhook again.
    pub(super) fn replay(&mut self) {
        let sent = self.github.deliveries.len() as u64;
        if sent > 0 && self.is_stormy() {
            let place = self.random.between(0, sent - 1) as usize;
            self.after(SECOND, Action::Deliver(place));
        }
    }

    /// GitHub sends again what failed.
    pub(super) fn redeliver(&mut self) -> u32 {
        let failed: Vec<usize> = self.github.undelivered.iter().copied().collect();
        for index in &failed {
            let delay = self.random.spread(100, 20 * SECOND);
            self.after(delay, Action::Deliver(*index));
        }
        failed.len() as u32
    }
}
