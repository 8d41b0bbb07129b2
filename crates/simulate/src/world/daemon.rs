//! The daemon: the real core, and what carries its commands out. Everything here is lost in a crash.

use std::collections::BTreeMap;

use forrest_core::event::{AdoptedRun, AdoptedVm, Event, RunEvent};
use forrest_core::model::{Bytes, RunnerName, Timestamp};
use forrest_core::{Command, Core, check};

use crate::checker::Broken;
use crate::plan::{MINUTE, SECOND};

use super::disks::Work;
use super::faults::Fault;
use super::host::{Disk, Vm, told_end};
use super::requests::Ask;
use super::{Action, World};

/// Deadlines that may be met at one point in time before it counts as running in circles.
const TICKS_AT_ONCE_MAX: u32 = 200;

/// A running daemon.
pub(crate) struct Daemon {
    pub core: Core,
    out: Vec<Command>,
    /// The timer that is set: its number, and when it is due.
    timer: Option<(u64, u64)>,
    timers: u64,
    last_tick: (u64, u32),
}

impl World {
    /// Starts a daemon over what is there.
    pub(super) fn start_daemon(&mut self) -> Result<(), Broken> {
        self.epoch += 1;
        let core = Core::new(self.policy.clone(), self.random.next());
        self.daemon =
            Some(Daemon { core, out: Vec::new(), timer: None, timers: 0, last_tick: (0, 0) });
        self.note(|w| format!("daemon {} starts", w.epoch));
        self.checker_on_restart();
        let names: Vec<RunnerName> = self.host.runs.keys().cloned().collect();
        for name in names {
            if let Some(adopted) = self.adopted(&name) {
                self.tell(Event::Adopted(Box::new(adopted)))?;
            }
            if self.host.guest(&name).is_some_and(|guest| guest.paused) {
                self.tell_of(&name, RunEvent::Paused("no space left on device".into()))?;
            }
        }
        // Builds of snapshots end with the daemon.
        for snapshot in &mut self.host.snapshots {
            snapshot.building = None;
        }
        self.measure()?;
        let policy = self.policy.clone();
        self.tell(Event::PolicyChanged(policy))?;
        if self.weather.draining {
            self.tell(Event::DrainRequested(true))?;
        }
        Ok(())
    }

    fn adopted(&self, name: &RunnerName) -> Option<AdoptedRun> {
        let run = self.host.runs.get(name)?;
        let machine = &self.plan.machines[run.machine];
        let vm = match (&run.vm, run.disk) {
            (Vm::Live(guest), _) => AdoptedVm::Live {
                runner_id: run.runner_id?,
                image: run.image.clone()?,
                restored: guest.restored,
                ready: guest.ready,
            },
            (Vm::None, Disk::None | Disk::Forked) => AdoptedVm::NotStarted,
            (Vm::Ended(end), Disk::Forked) => AdoptedVm::Ended {
                end: told_end(end, self.wall()),
                runner_id: run.runner_id,
                image: run.image.clone(),
            },
            (Vm::None | Vm::Ended(_), Disk::None | Disk::Promoted(_) | Disk::Removed) => {
                AdoptedVm::DiskSettled
            }
        };
        Some(AdoptedRun {
            runner: name.clone(),
            machine: machine.name.clone(),
            ram: machine.ram,
            cpus: machine.cpus,
            disk: machine.disk,
            created_at: run.created,
            vm,
            job: run.job,
        })
    }

    /// The daemon is gone, from one moment to the next.
    pub(super) fn crash(&mut self) {
        if self.daemon.take().is_none() {
            return;
        }
        self.epoch += 1;
        self.tally.crashes += 1;
        self.note(|_| "the daemon is killed".into());
        let down = self.random.spread(SECOND, 40 * MINUTE);
        self.after(down, Action::Fault(Fault::Restart));
    }

    /// The daemon hears something about a run, if it is there.
    pub(super) fn tell_of(&mut self, runner: &RunnerName, event: RunEvent) -> Result<(), Broken> {
        self.tell(Event::Run { runner: runner.clone(), event })
    }

    /// The daemon hears something, if it is there.
    pub(super) fn tell(&mut self, event: Event) -> Result<(), Broken> {
        let now = self.wall();
        let Some(mut daemon) = self.daemon.take() else { return Ok(()) };
        self.tally.events += 1;
        self.note(|_| format!("  > {}", told(&event)));
        self.checker_on_event(&event);
        daemon.out.clear();
        daemon.core.handle(now, event, &mut daemon.out);
        check::check(&daemon.core).map_err(|violation| Broken(violation.to_string()))?;
        let commands = std::mem::take(&mut daemon.out);
        let judged = self.checker_on_commands(&daemon.core, &commands);
        self.daemon = Some(daemon);
        for command in &commands {
            self.note(|_| format!("  < {command:?}"));
        }
        judged?;
        for command in commands {
            if matches!(command, Command::Note(_)) {
                continue;
            }
            self.tally.commands += 1;
            if self.strikes(self.plan.faults.crash_between) {
                self.crash();
                return Ok(());
            }
            self.carry_out(command);
        }
        self.set_timer();
        Ok(())
    }

    /// Sets the daemon's timer to the core's next deadline.
    fn set_timer(&mut self) {
        let wall = self.wall();
        let now = self.now;
        let Some(daemon) = &mut self.daemon else { return };
        let Some(deadline) = daemon.core.next_deadline() else { return };
        let at = now + deadline.0.saturating_sub(wall.0).min(u64::MAX / 4);
        if daemon.timer.is_some_and(|(_, due)| due == at) {
            return;
        }
        daemon.timers += 1;
        let number = daemon.timers;
        daemon.timer = Some((number, at));
        self.at(at, Action::Tick(self.epoch, number));
    }

    pub(super) fn tick(&mut self, number: u64) -> Result<(), Broken> {
        let now = self.now;
        let Some(daemon) = &mut self.daemon else { return Ok(()) };
        if daemon.timer.is_none_or(|(set, _)| set != number) {
            return Ok(());
        }
        daemon.timer = None;
        let (at, count) = daemon.last_tick;
        daemon.last_tick = if at == now { (now, count + 1) } else { (now, 1) };
        if daemon.last_tick.1 > TICKS_AT_ONCE_MAX {
            return Err(Broken("the core runs in circles: its deadlines never end".into()));
        }
        self.tell(Event::Tick)
    }

    pub(super) fn measure(&mut self) -> Result<(), Broken> {
        self.after(self.plan.measure_every, Action::Measure(self.epoch));
        self.checker_on_minute()?;
        let free_disk = self.host.free(self.plan.disk);
        let used = |(name, run): (&RunnerName, &super::host::RunDir)| {
            (run.disk == Disk::Forked).then(|| (name.clone(), run.used))
        };
        let run_disks: BTreeMap<RunnerName, Bytes> =
            self.host.runs.iter().filter_map(used).collect();
        self.tell(Event::HostMeasured { free_disk, run_disks })
    }

    fn carry_out(&mut self, command: Command) {
        match command {
            Command::Prepare { runner, machine, .. } => {
                let machine = self.place(&machine);
                self.later(SECOND, |done| Work::Fork(runner, machine, done));
            }
            Command::Register { runner, machine } => {
                let machine = self.place(&machine);
                self.send(Ask::Register(runner, machine));
            }
            Command::Deregister { runner, id, .. } => self.send(Ask::Deregister(runner, id)),
            Command::RemoveOrphan { runner, .. } => self.send(Ask::RemoveOrphan(runner)),
            Command::Poll { repository, known } => self.send(Ask::Poll(repository, known)),
            Command::FetchJob { repository, job } => self.send(Ask::Job(repository, job)),
            Command::RepairDeliveries => self.send(Ask::Redeliver),
            Command::StartVm { runner, id } => {
                self.later(3 * SECOND, |done| Work::Start(runner, id, done));
            }
            Command::SetJobDeadline { runner, at } => {
                // In the order in which they were given, and before what is recorded after them. How much time is left is
                // said now, whatever becomes of the clock.
                let left = (at != Timestamp::NEVER).then(|| at.0.saturating_sub(self.wall().0));
                let at = left.map(|left| self.now + left);
                self.after(50, Action::Work(self.epoch, Work::Deadline(runner, at)));
            }
            Command::PowerDown { runner } => self.later(200, |_| Work::PowerDown(runner)),
            Command::Kill { runner, .. } => self.later(200, |_| Work::Kill(runner)),
            Command::ReadBack { runner, .. } => self.later(500, |_| Work::Read(runner)),
            Command::Promote { runner, machine, .. } => {
                let machine = self.place(&machine);
                self.later(30 * SECOND, |done| Work::Promote(runner, machine, done));
            }
            Command::Discard { runner, .. } => {
                self.later(SECOND, |done| Work::Discard(runner, done));
            }
            Command::Forget { runner, .. } => self.later(50, |_| Work::Forget(runner)),
            Command::RecordJob { runner, job } => {
                self.after(60, Action::Work(self.epoch, Work::Record(runner, job)));
            }
            Command::MarkBroken { machine, generation, .. } => {
                let machine = self.place(&machine);
                self.later(100, |_| Work::MarkBroken(machine, generation));
            }
            Command::CheckSnapshot { machine } => {
                let machine = self.place(&machine);
                self.later(100, |_| Work::CheckSnapshot(machine));
            }
            Command::BuildSnapshot { machine } => {
                let machine = self.place(&machine);
                self.later(100, |_| Work::BuildSnapshot(machine));
            }
            Command::CancelSnapshot { machine } => {
                let machine = self.place(&machine);
                self.later(100, |_| Work::CancelSnapshot(machine));
            }
            Command::DropSnapshot { machine } => {
                let machine = self.place(&machine);
                self.later(100, |_| Work::DropSnapshot(machine));
            }
            // What may go is not part of the simulated disk.
            Command::Reclaim { .. } | Command::Note(_) => {}
        }
    }
}

/// An event in short: the long ones fill a trace.
fn told(event: &Event) -> String {
    match event {
        Event::JobReported { job, source } => format!(
            "job {} is {:?} {:?} on {:?} ({source:?})",
            job.id, job.status, job.conclusion, job.runner
        ),
        Event::PolicyChanged(_) => "PolicyChanged".into(),
        other => format!("{other:?}"),
    }
}
