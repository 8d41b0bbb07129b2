//! The life of one VM as a state machine: what happens goes in, what to do comes out. No I/O, no clock.
//!
//! ```text
//!                                     ┌── template only: ready ──▶ Saving ──┐
//! BringingUp ── the CPUs run ──▶ Running ──────────────────────────────────▶│
//!      │                              │ guest's end, request, deadline,     ▼
//!      └──── failure, deadline ───────┴─ signal, failure ───────────────▶ Ending ── QEMU is gone ──▶ Over
//! ```
//!
//! - *BringingUp*: QEMU starts, the monitor is taken over, a template's state is loaded.
//! - *Running*: the guest's CPUs run, or are paused because the disk cannot be written.
//! - *Saving*: the template is written.
//! - *Ending*: why the VM ends is settled and does not change any more, except that a disk that was not
//!   closed in order turns a good end into a failure. QEMU is told to quit, and killed if it does not.
//! - *Over*: QEMU is gone, the outcome is out.

use std::time::Duration;

use forrest_core::model::Timestamp;
use forrest_core::model::foreign_text::harmless;

use super::guest_port::GuestLine;
use crate::outcome::{EndReason, FORMAT, GUEST_ERRORS_MAX, QemuExit, VmTimes};
use crate::protocol::{Happened, Pause, PauseReason, Request, ShimEvent, VmState, WHY_LEN_MAX};
use crate::qmp::QmpEvent;
use crate::spec::{BootKind, RunSpec};
use crate::{JobFiles, Outcome};

/// How long QEMU may take to close a disk that may be kept.
pub const QUIT_GRACE_DISK_KEPT: Duration = Duration::from_secs(60);
/// How long QEMU may take to quit where the disk is of no use any more.
pub const QUIT_GRACE: Duration = Duration::from_secs(3);
/// How long restoring a guest may take; a cold boot is the alternative.
pub const RESTORE_LIMIT: Duration = Duration::from_secs(30);
/// How long saving a template may take.
pub const SAVE_LIMIT: Duration = Duration::from_secs(120);
/// How often a VM that is paused by a full disk looks for space.
pub const SPACE_CHECK_EVERY: Duration = Duration::from_secs(5);
/// How long a VM stays paused; GitHub gives up on its runner much sooner.
pub const PAUSE_LIMIT: Duration = Duration::from_secs(3600);
/// How often `go` is sent to a guest that says `ready` again and again.
pub const GO_MAX: u32 = 8;

/// How often a guest is told the time.
pub const TIMES_MAX: u32 = 64;
/// How often a guest is told what its job configuration is.
pub const FILES_MAX: u32 = 4;
/// How long a restored guest waits for its job config: it is restored before its runner is registered, and
/// whoever registers it may die over that.
pub const ATTACH_LIMIT: Duration = Duration::from_secs(600);

/// The time, twice: what goes on record, and what deadlines are measured by (since the shim's start;
/// it does not jump).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now {
    pub(crate) wall: Timestamp,
    pub(crate) elapsed: Duration,
}

/// What happened.
#[derive(Debug)]
pub(crate) enum Input {
    QemuStarted {
        pid: Option<u32>,
    },
    /// The guest's CPUs run.
    BroughtUp,
    BringUpFailed(String),
    /// The guest cannot be kept inside (any more).
    NotContained(String),
    Event(QmpEvent),
    MonitorClosed,
    /// The answer to [`Action::QueryRunState`].
    RunState(String),
    Guest(GuestLine),
    /// The end of [`Action::Save`].
    Saved(Result<(), String>),
    /// The answer to [`Action::CheckSpace`].
    Space {
        enough: bool,
    },
    /// The shim itself was told to end.
    Signalled,
    /// [`Machine::next_deadline`] has come.
    Tick,
    QemuExited {
        exit: QemuExit,
        stderr: Vec<String>,
    },
}

/// What to do.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Action {
    SendGo,
    SendTime,
    /// The machine's [`Machine::files`].
    SendFiles,
    PressPowerButton,
    Continue,
    QueryRunState,
    CheckSpace,
    Save,
    Quit,
    KillQemu,
    Emit(ShimEvent),
    /// The last action.
    Finish(Box<Outcome>),
}

#[derive(Debug)]
enum Phase {
    BringingUp,
    Running,
    Saving { since: Duration },
    Ending(Ending),
    Over,
}

#[derive(Debug)]
struct Ending {
    reason: EndReason,
    requested: bool,
    detail: String,
    kill_at: Duration,
    /// Whether QEMU was killed from here, since it did not quit.
    killed: bool,
}

#[derive(Debug, Clone, Copy)]
struct Paused {
    since: Duration,
    reason: PauseReason,
    next_check: Duration,
}

/// The life of one VM.
#[derive(Debug)]
pub(crate) struct Machine {
    phase: Phase,
    state: VmState,
    boot_deadline: Duration,
    attach_deadline: Option<Duration>,
    job_deadline: Option<Duration>,
    paused: Option<Paused>,
    files: JobFiles,
    gos_sent: u32,
    times_sent: u32,
    files_sent: u32,
    actions: Vec<Action>,
}

impl Machine {
    pub(crate) fn new(spec: &RunSpec, now: Now) -> Self {
        Self {
            phase: Phase::BringingUp,
            state: VmState {
                runner: spec.runner.clone(),
                boot: spec.boot.kind(),
                qemu_pid: None,
                times: VmTimes { shim_started_at: now.wall, ..VmTimes::default() },
                paused: None,
                job_deadline: None,
                runner_exit_code: None,
                guest_errors: Vec::new(),
                guest_lines_dropped: 0,
                outcome: None,
            },
            boot_deadline: now.elapsed.saturating_add(match spec.boot.kind() {
                BootKind::Cold | BootKind::Template => spec.boot_timeout(),
                BootKind::Restored => spec.boot_timeout().min(RESTORE_LIMIT),
            }),
            attach_deadline: match spec.boot.kind() {
                BootKind::Cold | BootKind::Template => None,
                BootKind::Restored => Some(now.elapsed.saturating_add(ATTACH_LIMIT)),
            },
            job_deadline: None,
            paused: None,
            files: JobFiles::default(),
            gos_sent: 0,
            times_sent: 0,
            files_sent: 0,
            actions: Vec::new(),
        }
    }

    pub(crate) fn state(&self) -> &VmState {
        &self.state
    }

    /// What the guest is told of its job configuration.
    pub(crate) fn files(&self) -> &JobFiles {
        &self.files
    }

    /// When [`Input::Tick`] is due, if nothing happens before.
    pub(crate) fn next_deadline(&self) -> Option<Duration> {
        match &self.phase {
            Phase::BringingUp => Some(self.boot_deadline),
            Phase::Running => {
                let boot = self.state.times.ready_at.is_none().then_some(self.boot_deadline);
                let pause = self.paused.map(|paused| match paused.reason {
                    PauseReason::NoSpace => paused.next_check.min(paused.since + PAUSE_LIMIT),
                    PauseReason::IoError => paused.since + PAUSE_LIMIT,
                });
                [boot, pause, self.attach_deadline, self.job_deadline].into_iter().flatten().min()
            }
            Phase::Saving { since } => Some(*since + SAVE_LIMIT),
            Phase::Ending(ending) => Some(ending.kill_at),
            Phase::Over => None,
        }
    }

    /// Takes what happened; returns what to do, in order.
    pub(crate) fn handle(&mut self, now: Now, input: Input) -> Vec<Action> {
        match input {
            Input::QemuStarted { pid } => {
                self.state.times.qemu_started_at = Some(now.wall);
                self.state.qemu_pid = pid;
            }
            Input::BroughtUp => self.brought_up(now),
            Input::BringUpFailed(reason) => self.bring_up_failed(now, reason),
            Input::NotContained(reason) => self.end(now, EndReason::QemuFailed, false, &reason),
            Input::Event(event) => self.event(now, event),
            Input::MonitorClosed => self.monitor_closed(now),
            Input::RunState(state) => self.run_state(now, &state),
            Input::Guest(line) => self.guest(now, line),
            Input::Saved(result) => self.saved(now, result),
            Input::Space { enough } => {
                if enough && self.paused.is_some() && matches!(self.phase, Phase::Running) {
                    self.actions.push(Action::Continue);
                }
            }
            Input::Signalled => {
                self.end(now, EndReason::Killed, true, "the shim was told to stop (signal)");
            }
            Input::Tick => self.tick(now),
            Input::QemuExited { exit, stderr } => self.qemu_exited(now, exit, stderr),
        }
        std::mem::take(&mut self.actions)
    }

    /// Takes a request other than `status` and `watch`; returns what to do, or why it is refused.
    pub(crate) fn request(&mut self, now: Now, request: Request) -> Result<Vec<Action>, String> {
        if let Phase::Ending(_) | Phase::Over = self.phase {
            return match request {
                Request::Kill { .. } | Request::GiveUp { .. } => Ok(Vec::new()),
                Request::Status
                | Request::Watch
                | Request::AttachJobConfig { .. }
                | Request::PowerDown
                | Request::JobDeadline { .. }
                | Request::Resume => Err("the VM is ending".to_owned()),
            };
        }
        match request {
            Request::Status | Request::Watch => {}
            Request::AttachJobConfig { files } => self.attach_job_config(now, files)?,
            Request::GiveUp { why } => {
                if self.state.times.job_config_attached_at.is_some() {
                    return Err("it has its job configuration: it may have a job".to_owned());
                }
                let why = harmless(&why, WHY_LEN_MAX);
                self.end(now, EndReason::Killed, true, &why);
            }
            Request::PowerDown => {
                self.state.times.power_down_requested_at.get_or_insert(now.wall);
                self.actions.push(Action::PressPowerButton);
            }
            Request::Kill { why } => {
                let why = harmless(&why, WHY_LEN_MAX);
                self.end(now, EndReason::Killed, true, &why);
            }
            Request::JobDeadline { at } => {
                self.state.job_deadline = at;
                self.job_deadline = at.map(|at| now.elapsed.saturating_add(at.since(now.wall)));
            }
            Request::Resume => {
                if self.paused.is_none() {
                    return Err("the VM is not paused".to_owned());
                }
                self.actions.push(Action::Continue);
            }
        }
        Ok(std::mem::take(&mut self.actions))
    }

    fn attach_job_config(&mut self, now: Now, files: JobFiles) -> Result<(), String> {
        if self.state.boot == BootKind::Template {
            return Err("a template never sees a job".to_owned());
        }
        self.files = files;
        self.attach_deadline = None;
        self.state.times.job_config_attached_at.get_or_insert(now.wall);
        self.go_if_due(now);
        Ok(())
    }

    fn brought_up(&mut self, now: Now) {
        if !matches!(self.phase, Phase::BringingUp) {
            return;
        }
        self.phase = Phase::Running;
        self.state.times.vm_started_at = Some(now.wall);
        self.emit(now, Happened::VmStarted);
        if self.state.boot == BootKind::Restored {
            self.guest_ready(now);
        }
    }

    fn bring_up_failed(&mut self, now: Now, reason: String) {
        if matches!(self.phase, Phase::BringingUp) {
            self.end(now, self.failure_reason(), false, &reason);
        }
    }

    /// What a failure of QEMU is called at this point.
    fn failure_reason(&self) -> EndReason {
        match (&self.phase, self.state.boot) {
            (Phase::BringingUp, BootKind::Restored) => EndReason::RestoreFailed,
            _ => EndReason::QemuFailed,
        }
    }

    fn event(&mut self, now: Now, event: QmpEvent) {
        match event {
            QmpEvent::Shutdown { reason } => self.shutdown(now, &reason),
            QmpEvent::GuestPanicked => {
                self.end(now, EndReason::GuestPanicked, false, "the guest's kernel panicked");
            }
            QmpEvent::Stop => {
                if matches!(self.phase, Phase::Running) && self.paused.is_none() {
                    self.actions.push(Action::QueryRunState);
                }
            }
            QmpEvent::Resume => {
                if self.paused.take().is_some() {
                    self.state.paused = None;
                    self.emit(now, Happened::Resumed);
                }
            }
            QmpEvent::BlockIoError { device: _, stopped, nospace } => {
                if stopped {
                    let reason = if nospace { PauseReason::NoSpace } else { PauseReason::IoError };
                    self.pause(now, reason);
                }
            }
            // Whoever saves or loads a template waits for these itself.
            QmpEvent::Migration { .. } => {}
        }
    }

    /// Names as in QEMU's `ShutdownCause`.
    fn shutdown(&mut self, now: Now, cause: &str) {
        let (reason, detail) = match cause {
            "guest-shutdown" => {
                (EndReason::GuestShutdown, "the guest powered itself off".to_owned())
            }
            "guest-reset" | "subsystem-reset" => {
                (EndReason::GuestReset, "the guest rebooted".to_owned())
            }
            "guest-panic" => (EndReason::GuestPanicked, "the guest's kernel panicked".to_owned()),
            "host-error" => (EndReason::QemuFailed, "QEMU gave up (host-error)".to_owned()),
            other => (
                EndReason::Killed,
                format!("QEMU was ended from outside ({})", harmless(other, WHY_LEN_MAX)),
            ),
        };
        let requested = self.state.times.power_down_requested_at.is_some();
        self.end(now, reason, requested, &detail);
    }

    fn pause(&mut self, now: Now, reason: PauseReason) {
        if self.paused.is_some() || !matches!(self.phase, Phase::Running) {
            return;
        }
        let next_check = now.elapsed + SPACE_CHECK_EVERY;
        self.paused = Some(Paused { since: now.elapsed, reason, next_check });
        self.state.paused = Some(Pause { reason, since: now.wall });
        self.emit(now, Happened::Paused { reason });
    }

    fn run_state(&mut self, now: Now, state: &str) {
        match state {
            "internal-error" => {
                let detail = "a CPU of the guest reached a state that cannot be executed";
                self.end(now, EndReason::QemuFailed, false, detail);
            }
            "io-error" => self.pause(now, PauseReason::IoError),
            // Ended by an event of its own, or running again.
            _ => {}
        }
    }

    fn monitor_closed(&mut self, now: Now) {
        self.end(now, self.failure_reason(), false, "QEMU's monitor closed unexpectedly");
    }

    fn guest(&mut self, now: Now, line: GuestLine) {
        if matches!(self.phase, Phase::BringingUp) {
            // The guest talks, so it runs; the answer that says so is still on its way.
            self.brought_up(now);
        }
        let times = &mut self.state.times;
        match line {
            GuestLine::Ready if self.state.boot != BootKind::Restored => self.guest_ready(now),
            GuestLine::Ready => self.go_if_due(now),
            GuestLine::TimeWanted if self.times_sent < TIMES_MAX => {
                self.times_sent += 1;
                self.actions.push(Action::SendTime);
            }
            GuestLine::FilesWanted if self.files_sent < FILES_MAX => {
                self.files_sent += 1;
                self.actions.push(Action::SendFiles);
            }
            GuestLine::RunnerStarted if times.runner_started_at.is_none() => {
                times.runner_started_at = Some(now.wall);
                self.emit(now, Happened::RunnerStarted);
            }
            GuestLine::RunnerExited { code } if times.runner_exited_at.is_none() => {
                times.runner_exited_at = Some(now.wall);
                self.state.runner_exit_code = code;
                self.emit(now, Happened::RunnerExited { code });
            }
            GuestLine::Error { text } if self.state.guest_errors.len() < GUEST_ERRORS_MAX => {
                self.state.guest_errors.push(text.clone());
                self.emit(now, Happened::GuestError { text });
            }
            GuestLine::TimeWanted
            | GuestLine::FilesWanted
            | GuestLine::RunnerStarted
            | GuestLine::RunnerExited { .. }
            | GuestLine::Error { .. }
            | GuestLine::Nonsense => {
                let dropped = &mut self.state.guest_lines_dropped;
                *dropped = dropped.saturating_add(1);
            }
        }
    }

    fn guest_ready(&mut self, now: Now) {
        if self.state.times.ready_at.is_none() {
            self.state.times.ready_at = Some(now.wall);
            self.emit(now, Happened::GuestReady);
            if self.state.boot == BootKind::Template && matches!(self.phase, Phase::Running) {
                self.phase = Phase::Saving { since: now.elapsed };
                self.actions.push(Action::Save);
            }
        }
        self.go_if_due(now);
    }

    /// Once the guest is ready and the job config in place; again when the guest says `ready` again,
    /// for then it has started over and missed it.
    fn go_if_due(&mut self, now: Now) {
        let times = &mut self.state.times;
        let due = matches!(self.phase, Phase::Running)
            && times.ready_at.is_some()
            && times.job_config_attached_at.is_some()
            && self.gos_sent < GO_MAX;
        if !due {
            return;
        }
        self.gos_sent += 1;
        self.actions.push(Action::SendGo);
        if times.go_sent_at.is_none() {
            times.go_sent_at = Some(now.wall);
            self.emit(now, Happened::GoSent);
        }
    }

    fn saved(&mut self, now: Now, result: Result<(), String>) {
        if !matches!(self.phase, Phase::Saving { .. }) {
            return;
        }
        match result {
            Ok(()) => self.end(now, EndReason::TemplateSaved, false, "the template is saved"),
            Err(reason) => self.end(now, EndReason::QemuFailed, false, &reason),
        }
    }

    fn tick(&mut self, now: Now) {
        let due = |at: Duration| at <= now.elapsed;
        match &self.phase {
            Phase::BringingUp if due(self.boot_deadline) => self.boot_timed_out(now),
            Phase::Running => self.tick_running(now),
            Phase::Saving { since } if due(*since + SAVE_LIMIT) => {
                let detail = format!("saving took more than {} s", SAVE_LIMIT.as_secs());
                self.end(now, EndReason::QemuFailed, false, &detail);
            }
            Phase::Ending(ending) if due(ending.kill_at) => self.kill_qemu(now),
            Phase::BringingUp | Phase::Saving { .. } | Phase::Ending(_) | Phase::Over => {}
        }
    }

    fn tick_running(&mut self, now: Now) {
        let due = |at: Duration| at <= now.elapsed;
        if self.state.times.ready_at.is_none() && due(self.boot_deadline) {
            self.boot_timed_out(now);
        } else if self.attach_deadline.is_some_and(due) {
            let detail = format!("no job configuration came within {} s", ATTACH_LIMIT.as_secs());
            self.end(now, EndReason::Killed, false, &detail);
        } else if self.job_deadline.is_some_and(due) {
            self.end(now, EndReason::JobTimeout, false, "the job took longer than it may");
        } else if let Some(paused) = &mut self.paused {
            if due(paused.since + PAUSE_LIMIT) {
                let detail = format!("paused for more than {} s", PAUSE_LIMIT.as_secs());
                self.end(now, EndReason::IoError, false, &detail);
            } else if paused.reason == PauseReason::NoSpace && due(paused.next_check) {
                paused.next_check = now.elapsed + SPACE_CHECK_EVERY;
                self.actions.push(Action::CheckSpace);
            }
        }
    }

    fn boot_timed_out(&mut self, now: Now) {
        let (reason, detail) = match self.state.boot {
            BootKind::Restored => (EndReason::RestoreFailed, "it was not restored in time"),
            BootKind::Cold | BootKind::Template => {
                (EndReason::BootTimeout, "the guest did not say that it is ready in time")
            }
        };
        self.end(now, reason, false, detail);
    }

    /// QEMU was asked to quit and did not.
    fn kill_qemu(&mut self, now: Now) {
        if let Phase::Ending(ending) = &mut self.phase {
            // Again and again: a process in an uninterruptible wait dies when that ends.
            ending.kill_at = now.elapsed + QUIT_GRACE;
            ending.killed = true;
            self.actions.push(Action::KillQemu);
        }
    }

    /// Settles why the VM ends; the first reason counts.
    fn end(&mut self, now: Now, reason: EndReason, requested: bool, detail: &str) {
        if let Phase::Ending(_) | Phase::Over = self.phase {
            return;
        }
        let (reason, detail) = match (self.paused, reason) {
            (Some(paused), EndReason::Killed | EndReason::BootTimeout | EndReason::JobTimeout) => {
                let cause = match paused.reason {
                    PauseReason::NoSpace => "the host's disk was full",
                    PauseReason::IoError => "the disk could not be written",
                };
                (EndReason::IoError, format!("paused because {cause}, then: {detail}"))
            }
            _ => (reason, detail.to_owned()),
        };
        let grace = match reason {
            EndReason::GuestShutdown | EndReason::TemplateSaved => QUIT_GRACE_DISK_KEPT,
            EndReason::GuestReset
            | EndReason::GuestPanicked
            | EndReason::Killed
            | EndReason::IoError
            | EndReason::BootTimeout
            | EndReason::JobTimeout
            | EndReason::QemuFailed
            | EndReason::RestoreFailed
            | EndReason::Unknown => QUIT_GRACE,
        };
        let kill_at = now.elapsed + grace;
        self.state.times.ending_at = Some(now.wall);
        self.phase = Phase::Ending(Ending { reason, requested, detail, kill_at, killed: false });
        self.actions.push(Action::Quit);
    }

    fn qemu_exited(&mut self, now: Now, exit: QemuExit, stderr: Vec<String>) {
        if let Phase::Over = self.phase {
            return;
        }
        self.end(now, self.failure_reason(), false, "QEMU exited unexpectedly");
        let Phase::Ending(ending) = std::mem::replace(&mut self.phase, Phase::Over) else { return };
        self.actions.retain(|action| *action != Action::Quit);
        let wants_clean =
            matches!(ending.reason, EndReason::GuestShutdown | EndReason::TemplateSaved);
        let (reason, detail) = if wants_clean && !exit.is_clean() {
            let detail = format!("{}, but QEMU did not close the disk in order", ending.detail);
            (EndReason::QemuFailed, detail)
        } else if let (EndReason::QemuFailed, false, Some(why)) =
            (ending.reason, ending.killed, exit.signal_from_outside())
        {
            (ending.reason, format!("{}: {why}", ending.detail))
        } else {
            (ending.reason, ending.detail)
        };
        let state = &mut self.state;
        state.qemu_pid = None;
        state.times.ended_at = Some(now.wall);
        let outcome = Box::new(Outcome {
            format: FORMAT,
            runner: state.runner.clone(),
            boot: state.boot,
            reason,
            requested: ending.requested,
            detail,
            qemu_exit: exit,
            stderr,
            times: state.times,
            runner_exit_code: state.runner_exit_code,
            guest_errors: state.guest_errors.clone(),
            guest_lines_dropped: state.guest_lines_dropped,
        });
        state.outcome = Some(outcome.clone());
        self.actions.push(Action::Finish(outcome));
    }

    fn emit(&mut self, now: Now, event: Happened) {
        self.actions.push(Action::Emit(ShimEvent { at: now.wall, event }));
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
