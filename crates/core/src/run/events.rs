//! What happens to a run, handed to whoever deals with it.

use crate::command::{Command, Level};
use crate::core::{Core, note};
use crate::event::{EndReason, RunEvent, VmEnd};
use crate::model::{RunnerName, Timestamp};

impl Core {
    /// Takes in what happened to a run. Events for runs that are gone, or that do not fit the state
    /// any more, are stale and dropped.
    pub(crate) fn run_event(
        &mut self,
        now: Timestamp,
        runner: &RunnerName,
        event: RunEvent,
        out: &mut Vec<Command>,
    ) {
        if self.runs.get(runner).is_none() {
            return;
        }
        match event {
            RunEvent::Prepared(result) => self.prepared(now, runner, result, out),
            RunEvent::Registered(result) => self.registered(now, runner, result, out),
            RunEvent::Deregistered(result) => self.deregistered(now, runner, result, out),
            RunEvent::VmStarted { restored } => self.vm_started(now, runner, restored),
            RunEvent::StartFailed(trouble) => {
                let end =
                    VmEnd { reason: EndReason::QemuFailed, detail: Some(trouble.what), at: now };
                self.vm_exited(now, runner, end, out);
            }
            RunEvent::GuestReady => self.guest_ready(now, runner),
            RunEvent::RunnerStarted => {
                self.runs.change(runner, |run| *run.times.runner_online.get_or_insert(now));
            }
            RunEvent::GuestError(text) => self.guest_complains(runner, &text, out),
            RunEvent::Paused(why) => {
                out.push(note(Level::Error, runner, format!("the guest is paused: {why}")));
                self.runs.change(runner, |run| run.paused = Some(why));
            }
            RunEvent::Resumed => {
                out.push(note(Level::Info, runner, "the guest goes on".into()));
                self.runs.change(runner, |run| run.paused = None);
            }
            RunEvent::VmExited(end) => self.vm_exited(now, runner, end, out),
            RunEvent::ReadBack(result) => self.read_back(now, runner, result, out),
            RunEvent::Promoted(result) => self.promoted(now, runner, result, out),
            RunEvent::PromotionRefused(why) => self.promotion_refused(runner, &why, out),
            RunEvent::Discarded(result) => self.discarded(now, runner, result, out),
        }
    }
}
