//! What happens by itself when enough time has passed.
//!
//! A timer is armed when a state is entered and looked at again when it is due: it acts only if what
//! it was armed for still holds, so nothing needs to be disarmed but the long ones, for the sake of
//! memory.

use super::assign::unassign_due;
use super::event::What;
use super::ids::{JobId, RunnerId};
use super::job::{Conclusion, JobState};
use super::runner::{RemovalReason, RunnerState};
use super::time::Moment;
use super::world::World;

/// What a timer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// The runner that was given the job must have picked it up.
    Pickup(JobId),
    /// Some runner must have picked the job up.
    Queue(JobId),
    /// The job has run for as long as it may.
    JobLimit(JobId),
    /// The runner must have stopped the cancelled job.
    Cancel(JobId),
    /// The job's runner must have come back.
    Lost(JobId),
    /// The runner must have connected.
    Unconnected(RunnerId),
    /// The runner must have got a job.
    Idle(RunnerId),
}

impl World {
    pub(crate) fn arm(&mut self, at: Moment, timer: Timer) {
        self.timers.insert((at, timer));
    }

    pub(crate) fn disarm(&mut self, at: Moment, timer: Timer) {
        self.timers.remove(&(at, timer));
    }

    /// When [`World::tick`] has something to do next.
    pub(crate) fn next_deadline(&self) -> Option<Moment> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Does what is due.
    pub(crate) fn tick(&mut self, now: Moment) {
        while let Some((at, timer)) = self.timers.first().copied().filter(|(at, _)| *at <= now) {
            self.timers.remove(&(at, timer));
            match timer {
                Timer::Pickup(job) => self.pickup_due(job, now),
                Timer::Queue(job) => self.queue_due(job, now),
                Timer::JobLimit(job) => self.cancel_in_progress(job, now),
                Timer::Cancel(job) => self.cancel_due(job, now),
                Timer::Lost(job) => self.lost_due(job, now),
                Timer::Unconnected(runner) => self.unconnected_due(runner, now),
                Timer::Idle(runner) => self.idle_due(runner, now),
            }
        }
    }

    fn pickup_due(&mut self, job: JobId, now: Moment) {
        let Some(JobState::Assigned { runner, since, .. }) = self.state_of(job) else {
            return;
        };
        if now.since(since) >= self.settings.pickup_timeout {
            unassign_due(self, job, runner, now);
        }
    }

    fn queue_due(&mut self, job: JobId, now: Moment) {
        if let Some(JobState::Queued { deadline }) = self.state_of(job)
            && deadline <= now
        {
            self.complete(job, Conclusion::Failure, now);
        }
    }

    fn cancel_due(&mut self, job: JobId, now: Moment) {
        if let Some(JobState::InProgress { runner, cancelling: Some(since), .. }) =
            self.state_of(job)
            && now.since(since) >= self.settings.cancel_timeout
        {
            self.complete(job, Conclusion::Cancelled, now);
            self.remove_runner(runner, RemovalReason::JobDone, now);
        }
    }

    fn lost_due(&mut self, job: JobId, now: Moment) {
        if let Some(JobState::InProgress { runner, lost: Some(since), cancelling }) =
            self.state_of(job)
            && now.since(since) >= self.settings.lost_timeout
        {
            let conclusion =
                if cancelling.is_some() { Conclusion::Cancelled } else { Conclusion::Failure };
            self.complete(job, conclusion, now);
            self.remove_runner(runner, RemovalReason::Lost, now);
        }
    }

    fn unconnected_due(&mut self, runner: RunnerId, now: Moment) {
        if let Some(RunnerState::Offline { since }) = self.runners.get(&runner).map(|r| r.state)
            && now.since(since) >= self.settings.unconnected_timeout
        {
            self.remove_runner(runner, RemovalReason::Unconnected, now);
        }
    }

    fn idle_due(&mut self, runner: RunnerId, now: Moment) {
        if let Some(RunnerState::Idle { since }) = self.runners.get(&runner).map(|r| r.state)
            && self.settings.idle_timeout.is_some_and(|limit| now.since(since) >= limit)
        {
            self.remove_runner(runner, RemovalReason::Idle, now);
        }
    }

    pub(crate) fn note(&mut self, now: Moment, what: What) {
        self.timeline.push(now, what);
    }

    pub(crate) fn state_of(&self, job: JobId) -> Option<JobState> {
        self.jobs.get(&job).map(|job| job.state)
    }
}
