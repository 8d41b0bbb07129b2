//! What happens in guests, and to them.

use forrest_core::event::{EndReason, Event, RunEvent, VmEnd};
use forrest_core::model::{Bytes, ImageRef, RunnerName};

use crate::checker::Broken;
use crate::plan::{MINUTE, SECOND};

use super::github::At;
use super::host::{Guest, Vm};
use super::{Action, World};

/// A step in a guest's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GuestStep {
    /// It is up.
    Ready,
    /// Its runner starts.
    RunnerStarts,
    /// Its runner reaches GitHub.
    Online,
    /// It ends, whatever it was doing.
    Ends(EndReason),
    /// It ends for a reason that is drawn then.
    EndsAnyhow,
    /// It shuts down.
    ShutsDown,
    /// The supervisor finds that it is not up in time.
    BootTimeout,
    /// The supervisor finds that its job takes too long.
    JobTimeout,
}

impl GuestStep {
    /// Whether it is the guest that does it, not the host.
    fn is_the_guests(self) -> bool {
        match self {
            Self::Ready
            | Self::RunnerStarts
            | Self::Online
            | Self::EndsAnyhow
            | Self::ShutsDown => true,
            Self::Ends(_) | Self::BootTimeout | Self::JobTimeout => false,
        }
    }
}

impl World {
    /// A virtual machine starts; `None` when it cannot.
    pub(super) fn start_guest(&mut self, runner: &RunnerName) -> bool {
        let Some(run) = self.host.runs.get(runner) else { return false };
        let (machine, image) = (run.machine, run.image.clone());
        let boot_timeout = self.plan.machines[machine].boot_timeout.as_millis() as u64;
        let restored = self.restores(runner);
        let broken = image.is_some_and(|start| self.is_broken(&start.image));
        let number = self.host.number();
        let hangs = self.strikes(self.plan.faults.hangs);
        let deaf = hangs && self.random.chance(self.plan.faults.deaf);
        let guest = Guest {
            number,
            restored,
            ready: false,
            job_deadline: None,
            hung: hangs,
            deaf,
            paused: false,
        };
        if let Some(run) = self.host.runs.get_mut(runner) {
            run.vm = Vm::Live(guest);
        }
        self.tally.guests += 1;
        self.note(|_| format!("host: the guest of {runner} starts (restored: {restored})"));
        self.guest_later(runner, number, boot_timeout, GuestStep::BootTimeout);
        if broken || self.strikes(self.plan.faults.boot_silent) {
            return restored;
        }
        if self.strikes(self.plan.faults.boot_ends) {
            let delay = self.random.spread(SECOND, 40 * SECOND);
            self.guest_later(runner, number, delay, GuestStep::EndsAnyhow);
            return restored;
        }
        let delay = if restored {
            self.random.spread(200, 2 * SECOND)
        } else {
            self.random.spread(10 * SECOND, 50 * SECOND)
        };
        self.guest_later(runner, number, delay, GuestStep::Ready);
        restored
    }

    /// Whether a run's guest is restored from a snapshot: one fits the image that it starts from.
    pub(super) fn restores(&self, runner: &RunnerName) -> bool {
        let Some(run) = self.host.runs.get(runner) else { return false };
        let Some(image) = &run.image else { return false };
        self.plan.machines[run.machine].snapshot
            && self.host.snapshots[run.machine].of.as_ref() == Some(&image.image)
    }

    /// Whether guests of this image never become ready.
    pub(super) fn is_broken(&self, image: &ImageRef) -> bool {
        let ImageRef::Machine { machine, generation } = image else { return false };
        let images = &self.host.images[self.place(machine)];
        images.generations.get(generation).is_some_and(|image| image.broken)
    }

    fn guest_later(&mut self, runner: &RunnerName, number: u64, delay: u64, step: GuestStep) {
        self.after(delay, Action::Guest(runner.clone(), number, step));
    }

    pub(super) fn guest_step(
        &mut self,
        runner: &RunnerName,
        number: u64,
        step: GuestStep,
    ) -> Result<(), Broken> {
        let Some(guest) = self.host.guest(runner).filter(|guest| guest.number == number) else {
            return Ok(());
        };
        if guest.paused && step.is_the_guests() {
            self.guest_later(runner, number, MINUTE, step);
            return Ok(());
        }
        match step {
            GuestStep::Ready => {
                guest.ready = true;
                self.note(|_| format!("host: the guest of {runner} is ready"));
                self.guest_later(runner, number, 100, GuestStep::RunnerStarts);
                return self.tell_of(runner, RunEvent::GuestReady);
            }
            GuestStep::RunnerStarts => {
                let delay = self.random.spread(200, 5 * SECOND);
                self.guest_later(runner, number, delay, GuestStep::Online);
                self.tell_of(runner, RunEvent::RunnerStarted)?;
                return self.guest_complains(runner);
            }
            GuestStep::Online => self.runner_connects(runner),
            GuestStep::Ends(reason) => self.guest_ends(runner, reason),
            GuestStep::EndsAnyhow => {
                let reasons = [
                    EndReason::GuestPanicked,
                    EndReason::GuestReset,
                    EndReason::GuestShutdown,
                    EndReason::IoError,
                ];
                let reason = *self.random.pick(&reasons);
                self.guest_ends(runner, reason);
            }
            GuestStep::ShutsDown => {
                let reasons = [
                    EndReason::GuestPanicked,
                    EndReason::GuestReset,
                    EndReason::IoError,
                    EndReason::QemuFailed,
                ];
                let fails = self.strikes(0.05);
                let reason = *self.random.pick(&reasons);
                self.guest_ends(runner, if fails { reason } else { EndReason::GuestShutdown });
            }
            GuestStep::BootTimeout => {
                if !guest.ready {
                    self.guest_ends(runner, EndReason::BootTimeout);
                }
            }
            GuestStep::JobTimeout => {
                if guest.job_deadline.is_some_and(|(at, _)| at <= self.now) {
                    self.checker_on_deadline(runner)?;
                    self.guest_ends(runner, EndReason::JobTimeout);
                }
            }
        }
        Ok(())
    }

    /// Some guests complain without end.
    fn guest_complains(&mut self, runner: &RunnerName) -> Result<(), Broken> {
        if self.strikes(self.plan.faults.complains) {
            for _ in 0..self.random.spread(1, 200) {
                self.tell_of(runner, RunEvent::GuestError("the disk is odd".into()))?;
            }
        }
        Ok(())
    }

    fn runner_connects(&mut self, runner: &RunnerName) {
        let Some(entry) = self.github.runners.get_mut(runner) else {
            self.runner_is_unknown(runner);
            return;
        };
        entry.online = true;
        let machine = entry.machine;
        self.note(|_| format!("github: {runner} is online"));
        self.look_for_runners(machine);
        if self.strikes(self.plan.faults.runner_removed) {
            let delay = self.random.spread(SECOND, 20 * MINUTE);
            self.after(delay, Action::RemoveIdle(runner.clone()));
        }
    }

    /// GitHub does not know the runner: it goes on listening, or gives up.
    pub(super) fn runner_is_unknown(&mut self, runner: &RunnerName) {
        let gives_up = self.random.chance(0.5);
        let online = self.host.guest(runner).filter(|guest| guest.ready).map(|guest| guest.number);
        if let Some(number) = online.filter(|_| gives_up) {
            let delay = self.random.spread(SECOND, MINUTE);
            self.guest_later(runner, number, delay, GuestStep::ShutsDown);
        }
    }

    /// A job is over: its guest shuts down, or hangs.
    pub(super) fn guest_shuts_down(&mut self, runner: &RunnerName) {
        let delay = self.random.spread(SECOND, 2 * MINUTE);
        let grown = Bytes::mib(self.random.spread(10, 4000));
        let Some(run) = self.host.runs.get_mut(runner) else { return };
        run.used = run.used.saturating_add(grown).min(self.plan.machines[run.machine].disk);
        if let Vm::Live(Guest { number, hung: false, .. }) = run.vm {
            self.guest_later(runner, number, delay, GuestStep::ShutsDown);
        }
    }

    /// The power button of a guest is pressed.
    pub(super) fn press_power(&mut self, runner: &RunnerName) {
        let delay = self.random.spread(SECOND, 20 * SECOND);
        if let Some(guest) = self.host.guest(runner).filter(|guest| guest.ready && !guest.deaf) {
            let number = guest.number;
            self.guest_later(runner, number, delay, GuestStep::Ends(EndReason::GuestShutdown));
        }
    }

    /// A virtual machine ends. Its supervisor writes that down and tells the daemon, if one is there.
    pub(super) fn guest_ends(&mut self, runner: &RunnerName, reason: EndReason) {
        self.note(|_| format!("host: the guest of {runner} ends: {reason}"));
        let end = VmEnd { reason, detail: None, at: self.wall() };
        let Some(run) = self.host.runs.get_mut(runner) else { return };
        let recorded = reason != EndReason::SupervisorLost;
        run.vm = Vm::Ended(recorded.then(|| end.clone()));
        self.runner_vanishes(runner);
        let delay = self.random.spread(1, SECOND);
        let event = Event::Run { runner: runner.clone(), event: RunEvent::VmExited(end) };
        self.after(delay, Action::Tell(self.epoch, Box::new(event)));
    }

    /// A runner's guest is gone. GitHub notices after a while.
    fn runner_vanishes(&mut self, runner: &RunnerName) {
        let Some(entry) = self.github.runners.get_mut(runner) else { return };
        entry.online = false;
        let Some(job) = entry.job else { return };
        match self.github.jobs.get(&job).map(|job| &job.at) {
            Some(At::Assigned(_)) => {
                self.after(MINUTE, Action::Requeue(job, runner.clone()));
            }
            Some(At::Running(_)) => {
                let delay = self.random.between(MINUTE, 15 * MINUTE);
                self.after(delay, Action::GiveUp(job, runner.clone()));
            }
            Some(At::Held | At::Queued | At::Elsewhere(_) | At::Done(..)) | None => {}
        }
    }
}
