//! What breaks on its own, and when it is mended.

use std::time::Duration;

use forrest_core::event::{EndReason, Event, RunEvent};
use forrest_core::model::{Bytes, RunnerName};

use crate::checker::Broken;
use crate::plan::{DAY, HOUR, MINUTE, SECOND};

use super::host::Vm;
use super::{Action, World};

/// What is broken at the moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Weather {
    pub api_down: bool,
    pub api_slow: bool,
    /// Until when GitHub limits requests.
    pub api_limited: Option<u64>,
    /// Until when GitHub limits requests that change something.
    pub api_secondary: Option<u64>,
    /// The machine type whose owner's token is refused.
    pub token_refused: Option<usize>,
    pub disk_full: bool,
    pub disk_broken: bool,
    pub draining: bool,
}

/// Something breaks, or is mended.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    Crash,
    Restart,
    KillQemu,
    KillShim,
    Api(Api),
    DiskFull,
    DiskBroken,
    DiskWell,
    ClockJump,
    Change,
    ChangeBack,
    Operator,
    DrainEnds,
    Replay,
}

/// GitHub's own trouble.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Api {
    Down,
    Slow,
    Limited,
    /// As above, for requests that change something.
    Secondary,
    TokenRefused,
    Well,
}

impl World {
    /// Draws when what breaks.
    pub(super) fn draw_faults(&mut self) {
        let share = self.plan.length as f64 / DAY as f64;
        let faults = self.plan.faults.clone();
        let api =
            [Api::Down, Api::Slow, Api::Limited, Api::Secondary, Api::TokenRefused].map(Fault::Api);
        self.scatter(faults.crashes, share, &[Fault::Crash]);
        self.scatter(faults.qemu_killed, share, &[Fault::KillQemu]);
        self.scatter(faults.shim_killed, share, &[Fault::KillShim]);
        self.scatter(faults.api_windows, share, &api);
        self.scatter(faults.disk_full, share, &[Fault::DiskFull]);
        self.scatter(faults.disk_broken, share, &[Fault::DiskBroken]);
        self.scatter(faults.clock_jumps, share, &[Fault::ClockJump]);
        self.scatter(faults.changes, share, &[Fault::Change]);
        self.scatter(faults.operator, share, &[Fault::Operator]);
        self.scatter(faults.replayed, share, &[Fault::Replay]);
    }

    fn scatter(&mut self, per_day: u64, share: f64, kinds: &[Fault]) {
        for _ in 0..(per_day as f64 * share).ceil() as u64 {
            let at = self.random.between(0, self.plan.length - 1);
            let fault = *self.random.pick(kinds);
            self.at(at, Action::Fault(fault));
        }
    }

    pub(super) fn strike(&mut self, fault: Fault) -> Result<(), Broken> {
        self.note(|_| format!("fault: {fault:?}"));
        match fault {
            Fault::Crash => self.crash(),
            Fault::Restart => {
                if self.daemon.is_none() {
                    return self.start_daemon();
                }
            }
            Fault::KillQemu => self.kill_some_guest(EndReason::QemuFailed),
            Fault::KillShim => self.kill_some_guest(EndReason::SupervisorLost),
            Fault::Api(trouble) => self.api_changes(trouble),
            Fault::DiskFull => {
                self.weather.disk_full = true;
                let free = self.host.free(self.plan.disk);
                self.host.taken = self.host.taken.saturating_add(free);
                let lasts = self.random.spread(10 * SECOND, 2 * HOUR);
                self.after(lasts, Action::Fault(Fault::DiskWell));
                return self.pause_guests();
            }
            Fault::DiskBroken => {
                self.weather.disk_broken = true;
                let lasts = self.random.spread(10 * SECOND, HOUR);
                self.after(lasts, Action::Fault(Fault::DiskWell));
            }
            Fault::DiskWell => {
                (self.weather.disk_full, self.weather.disk_broken) = (false, false);
                self.host.taken = Bytes(0);
                return self.resume_guests();
            }
            Fault::ClockJump => self.jump_clock(),
            Fault::Change => return self.change_policy(),
            Fault::ChangeBack => {
                self.policy = self.plan.policy.clone();
                return self.policy_changed();
            }
            Fault::Operator => return self.operator_acts(),
            Fault::Replay => self.replay(),
            Fault::DrainEnds => {
                self.weather.draining = false;
                return self.tell(Event::DrainRequested(false));
            }
        }
        Ok(())
    }

    /// GitHub's own trouble.
    fn api_changes(&mut self, trouble: Api) {
        let lasts = match trouble {
            Api::Down => {
                self.weather.api_down = true;
                self.random.spread(10 * SECOND, 5 * HOUR)
            }
            Api::Slow => {
                self.weather.api_slow = true;
                self.random.spread(MINUTE, HOUR)
            }
            Api::Limited => {
                let lasts = self.random.spread(10 * SECOND, HOUR);
                self.weather.api_limited = Some(self.now + lasts);
                lasts
            }
            Api::Secondary => {
                let lasts = self.random.spread(10 * SECOND, HOUR);
                self.weather.api_secondary = Some(self.now + lasts);
                lasts
            }
            Api::TokenRefused => {
                let machines = self.plan.machines.len() as u64;
                self.weather.token_refused = Some(self.random.between(0, machines - 1) as usize);
                self.random.spread(MINUTE, 3 * HOUR)
            }
            Api::Well => {
                (self.weather.api_down, self.weather.api_slow) = (false, false);
                (self.weather.api_limited, self.weather.api_secondary) = (None, None);
                self.weather.token_refused = None;
                return;
            }
        };
        self.after(lasts, Action::Fault(Fault::Api(Api::Well)));
    }

    fn live_guests(&self) -> Vec<RunnerName> {
        let live = |(name, run): (&RunnerName, &super::host::RunDir)| {
            matches!(run.vm, Vm::Live(_)).then(|| name.clone())
        };
        self.host.runs.iter().filter_map(live).collect()
    }

    fn kill_some_guest(&mut self, how: EndReason) {
        let guests = self.live_guests();
        if self.is_stormy() && !guests.is_empty() {
            let runner = self.random.pick(&guests).clone();
            self.guest_ends(&runner, how);
        }
    }

    fn pause_guests(&mut self) -> Result<(), Broken> {
        for runner in self.live_guests() {
            if self.random.chance(0.5) {
                self.set_paused(&runner, true);
                self.tell_of(&runner, RunEvent::Paused("no space left on device".into()))?;
            }
        }
        Ok(())
    }

    fn resume_guests(&mut self) -> Result<(), Broken> {
        for runner in self.live_guests() {
            self.set_paused(&runner, false);
            self.tell_of(&runner, RunEvent::Resumed)?;
        }
        Ok(())
    }

    /// A paused guest does nothing until it goes on.
    fn set_paused(&mut self, runner: &RunnerName, paused: bool) {
        if let Some(guest) = self.host.guest(runner) {
            guest.paused = paused;
        }
    }

    fn jump_clock(&mut self) {
        if !self.is_stormy() {
            return;
        }
        let by = self.random.spread(100, 48 * HOUR) as i64;
        self.clock_off += if self.random.chance(0.5) { by } else { -by };
        self.checker.clock_jumped(self.now);
    }

    fn policy_changed(&mut self) -> Result<(), Broken> {
        let policy = self.policy.clone();
        self.tell(Event::PolicyChanged(policy))
    }

    fn change_policy(&mut self) -> Result<(), Broken> {
        if !self.is_stormy() {
            return Ok(());
        }
        let names: Vec<_> = self.policy.machines.keys().cloned().collect();
        match self.random.between(0, 6) {
            0 if !names.is_empty() => {
                let gone = self.random.pick(&names).clone();
                self.policy.machines.remove(&gone);
            }
            1 => {
                let ram = self.plan.policy.capacity.ram.0;
                self.policy.capacity.ram = Bytes(self.random.between(ram / 2, ram * 2));
            }
            2 => {
                self.policy.max_runs.clear();
                if let Some(name) = names.first() {
                    let most = self.random.between(0, 3) as u32;
                    self.policy.max_runs.insert(name.repository().clone(), most);
                }
            }
            3 if !names.is_empty() => {
                let name = self.random.pick(&names).clone();
                if let Some(machine) = self.policy.machines.get_mut(&name) {
                    machine.snapshot = !machine.snapshot;
                }
            }
            4 if !names.is_empty() => {
                let name = self.random.pick(&names).clone();
                if let Some(machine) = self.policy.machines.get_mut(&name) {
                    machine.max_runs = Some(self.random.between(1, 3) as u32);
                    machine.boot_timeout = Duration::from_secs(self.random.between(10, 600));
                    machine.idle_timeout = Duration::from_secs(self.random.between(10, 900));
                }
            }
            5 => {
                let timing = &mut self.policy.timing;
                timing.max_overtake = Duration::from_secs(self.random.between(0, 3600));
                timing.polling_interval = Duration::from_secs(self.random.between(5, 3600));
            }
            // The file was written anew with what was in it.
            _ => {}
        }
        let lasts = self.random.spread(MINUTE, 3 * HOUR);
        self.after(lasts, Action::Fault(Fault::ChangeBack));
        self.policy_changed()
    }

    fn operator_acts(&mut self) -> Result<(), Broken> {
        if !self.is_stormy() || self.daemon.is_none() {
            return Ok(());
        }
        if self.random.chance(0.3) {
            self.weather.draining = true;
            let lasts = self.random.spread(MINUTE, HOUR);
            self.after(lasts, Action::Fault(Fault::DrainEnds));
            return self.tell(Event::DrainRequested(true));
        }
        let runs: Vec<RunnerName> = self.host.runs.keys().cloned().collect();
        if runs.is_empty() {
            return Ok(());
        }
        let runner = self.random.pick(&runs).clone();
        self.tell(Event::StopRequested { runner })
    }

    /// The faults stop: everything is mended, and what is broken for good stays that way.
    pub(super) fn calm_down(&mut self) -> Result<(), Broken> {
        self.note(|_| "the faults stop".into());
        self.calm = Some(self.now);
        self.weather = Weather::default();
        self.host.taken = Bytes(0);
        self.policy = self.plan.policy.clone();
        for runner in self.live_guests() {
            self.set_paused(&runner, false);
        }
        if self.daemon.is_none() {
            return self.start_daemon();
        }
        // First of all: what is begun from here on is judged by it.
        self.policy_changed()?;
        self.tell(Event::DrainRequested(false))?;
        self.resume_guests()
    }
}
