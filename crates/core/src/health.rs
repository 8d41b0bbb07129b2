//! How well the runs of each machine type start, and what follows from it: pauses after failures, one
//! try at a time until one succeeds, and generations that are taken out of use.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::command::{Command, Level, Note};
use crate::core::{Core, note};
use crate::event::{EndReason, Trouble, VmEnd};
use crate::model::{Generation, ImageRef, MachineTypeName, RunnerName, Timestamp};
use crate::run::{RunState, retry_at};
use crate::timers::Timer;

/// First pause of a machine type after a start that failed; doubles up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_secs(1);
/// Longest pause of a machine type after failed starts, unless GitHub asks for a longer one.
const BACKOFF_MAX: Duration = Duration::from_secs(5 * 60);
/// Guests of one generation that have to stay silent, one after the other, before the generation
/// counts as broken. More than one: a busy host can make a single boot slow.
const BROKEN_AFTER: u32 = 2;
/// How many times as many that takes after one that was taken out of use, while still no guest was ready: the
/// fault may be elsewhere.
const TIMES_AFTER_ANOTHER: u32 = 4;
/// How many times as many that takes on top where the image is another machine type's: the less likely one to be at
/// fault, but nobody else may be there to find out.
const TIMES_FOR_OTHERS: u32 = 3;

/// How a machine type's recent runs started.
#[derive(Debug, Clone, Default)]
pub(crate) struct Health {
    /// Rounds of starts that failed since the last guest that was ready.
    pub(crate) failures: u32,
    /// Rounds of guests that were ready but ended without a job, since the last job.
    pub(crate) fruitless: u32,
    /// No run is started before this time.
    pub(crate) paused_until: Option<Timestamp>,
    /// What went wrong last.
    pub(crate) trouble: Option<String>,
    /// The generation whose guest did not become ready, and how often in a row.
    unready: Option<(ImageRef, u32)>,
    /// Whether a generation was taken out of use since a guest was ready.
    marked: bool,
}

/// A generation of a machine type's image that was taken out of use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakenOut {
    /// Which one.
    pub generation: Generation,
    /// Why.
    pub why: String,
}

impl Health {
    /// Whether runs are started one at a time, because the last ones failed. A guest that ended
    /// without a job may have had one that no report told of yet: two in a row are needed.
    pub(crate) fn is_probing(&self) -> bool {
        self.failures > 0 || self.fruitless > 1
    }
}

impl Core {
    /// A run did not get as far as a guest that is ready.
    pub(crate) fn start_failed(
        &mut self,
        now: Timestamp,
        runner: &RunnerName,
        trouble: &Trouble,
        out: &mut Vec<Command>,
    ) {
        self.pause(now, runner, trouble, |health| &mut health.failures, out);
    }

    /// Starts nothing of this machine type for a while. Runs that fail while it is paused were
    /// started before it and say nothing new.
    fn pause(
        &mut self,
        now: Timestamp,
        runner: &RunnerName,
        trouble: &Trouble,
        counter: impl Fn(&mut Health) -> &mut u32,
        out: &mut Vec<Command>,
    ) {
        let Some(machine) = self.runs.get(runner).map(|run| run.machine.clone()) else { return };
        let health = self.health.entry(machine.clone()).or_default();
        let paused = health.paused_until;
        let count = counter(health);
        let pause = match paused {
            None => {
                let pause = BACKOFF_MIN.saturating_mul(1 << (*count).min(16)).min(BACKOFF_MAX);
                *count = count.saturating_add(1);
                pause
            }
            Some(_) => Duration::ZERO,
        };
        let until = retry_at(now, pause, trouble.not_before).max(paused.unwrap_or_default());
        health.paused_until = Some(until);
        health.trouble = Some(trouble.what.clone());
        self.timers.set(Timer::Backoff(machine), until);
        let seconds = until.since(now).as_secs();
        let text = format!("the run failed, next try in {seconds} s: {}", trouble.what);
        out.push(note(Level::Error, runner, text));
    }

    pub(crate) fn pause_over(&mut self, machine: &MachineTypeName) {
        if let Some(health) = self.health.get_mut(machine) {
            health.paused_until = None;
        }
        self.unscheduled = true;
    }

    /// A guest was ready: starting works.
    pub(crate) fn guest_was_ready(&mut self, runner: &RunnerName) {
        let Some(run) = self.runs.get(runner) else { return };
        let machine = run.machine.clone();
        if let Some(image) = run.image().map(|start| start.image.clone()) {
            self.note_proven(&image);
        }
        let Some(health) = self.health.get_mut(&machine) else { return };
        (health.failures, health.unready, health.marked) = (0, None, false);
        if health.fruitless == 0 {
            self.machine_works(&machine);
        }
        self.unscheduled = true;
    }

    /// Remembers that a guest of this image was ready.
    pub(crate) fn note_proven(&mut self, image: &ImageRef) {
        if let ImageRef::Machine { machine, generation } = image {
            self.proven.insert(machine.clone(), *generation);
        }
    }

    /// A runner had a job: everything works.
    pub(crate) fn job_was_taken(&mut self, runner: &RunnerName) {
        if self.health.is_empty() {
            return;
        }
        let Some(machine) = self.runs.get(runner).map(|run| run.machine.clone()) else { return };
        self.machine_works(&machine);
    }

    pub(crate) fn machine_works(&mut self, machine: &MachineTypeName) {
        if self.health.remove(machine).is_some() {
            self.timers.clear(&Timer::Backoff(machine.clone()));
            self.unscheduled = true;
        }
    }

    /// A virtual machine ended and is not known to have had a job.
    pub(crate) fn ended_without_job(
        &mut self,
        now: Timestamp,
        runner: &RunnerName,
        image: &ImageRef,
        end: &VmEnd,
        out: &mut Vec<Command>,
    ) {
        let Some(run) = self.runs.get(runner) else { return };
        let detail = end.detail.as_ref().map(|d| format!(" ({d})")).unwrap_or_default();
        match &run.state {
            RunState::Starting(_) | RunState::Booting(_) => {
                let what = format!("its guest did not become ready: {}{detail}", end.reason);
                self.start_failed(now, runner, &Trouble::new(what.clone()), out);
                self.suspect(runner, image, end.reason, &what, out);
            }
            RunState::Idle { .. } => {
                let what = format!("its guest ended without a job: {}{detail}", end.reason);
                let trouble = Trouble::new(what);
                self.pause(now, runner, &trouble, |health| &mut health.fruitless, out);
            }
            RunState::Preparing { .. }
            | RunState::Busy { .. }
            | RunState::Retiring { .. }
            | RunState::Finishing { .. }
            | RunState::Settling(_) => {}
        }
    }

    /// The guest ended before it was ready: its image may be at fault. Not one whose guest was ready
    /// once: images do not change.
    fn suspect(
        &mut self,
        runner: &RunnerName,
        image: &ImageRef,
        reason: EndReason,
        what: &str,
        out: &mut Vec<Command>,
    ) {
        let suspicious = match reason {
            EndReason::BootTimeout
            | EndReason::GuestReset
            | EndReason::GuestPanicked
            | EndReason::GuestShutdown => true,
            // Where the host is at fault, the image is not.
            EndReason::Killed
            | EndReason::IoError
            | EndReason::RestoreFailed
            | EndReason::JobTimeout
            | EndReason::QemuFailed
            | EndReason::SupervisorLost
            | EndReason::NeverStarted => false,
        };
        let Some(run) = self.runs.get(runner) else { return };
        let machine = run.machine.clone();
        if suspicious {
            self.guest_was_silent(&machine, image, what, BROKEN_AFTER, out);
        }
    }

    /// A guest of this machine type did not become ready. Its image is taken out of use after
    /// `broken_after` of them in a row; of [`TIMES_AFTER_ANOTHER`] as many after another one, and
    /// [`TIMES_FOR_OTHERS`] as many on top for one that belongs to another machine type. No more than that, however
    /// many went before: jobs wait meanwhile, some ten minutes for each guest.
    pub(crate) fn guest_was_silent(
        &mut self,
        machine: &MachineTypeName,
        image: &ImageRef,
        what: &str,
        broken_after: u32,
        out: &mut Vec<Command>,
    ) {
        let ImageRef::Machine { machine: owner, generation } = image else { return };
        if self.proven.get(owner) == Some(generation) {
            return;
        }
        let health = self.health.entry(machine.clone()).or_default();
        let times = if health.marked { TIMES_AFTER_ANOTHER } else { 1 };
        let others = if machine == owner { 0 } else { TIMES_FOR_OTHERS };
        let broken_after = broken_after * (times + others);
        let count = match &health.unready {
            Some((before, count)) if before == image => count + 1,
            Some(_) | None => 1,
        };
        if count < broken_after {
            health.unready = Some((image.clone(), count));
            return;
        }
        (health.unready, health.marked) = (None, true);
        let why =
            if count > 1 { format!("{count} guests in a row: {what}") } else { what.to_owned() };
        let text = format!("{image} is taken out of use: {why}");
        out.push(Command::Note(Note { level: Level::Error, runner: None, job: None, text }));
        let taken_out = TakenOut { generation: *generation, why: why.clone() };
        self.taken_out.insert(owner.clone(), taken_out);
        out.push(Command::MarkBroken { machine: owner.clone(), generation: *generation, why });
    }
}
