//! Jobs are served as soon as they can be.

use forrest_core::Core;
use forrest_core::jobs::Phase;
use forrest_core::model::MachineTypeName;
use forrest_core::view::Waiting;

use crate::plan::MINUTE;
use crate::world::World;

use super::Broken;
use super::capacity::Disks;
use super::fairness::ready;

/// How often in a row, once a minute, a machine type may be found waiting for nothing: what the host
/// knows, the daemon hears a little later.
const IDLE_MAX: u32 = 5;

impl World {
    /// Whether a job waits although there is room for a run and nothing speaks against one.
    pub(super) fn judge_idleness(&mut self, core: &Core) -> Result<(), Broken> {
        for place in 0..self.plan.machines.len() {
            let idle = self.waits_for_nothing(core, place);
            let minutes = &mut self.checker.idle[place];
            *minutes = if idle { *minutes + 1 } else { 0 };
            if *minutes > IDLE_MAX {
                let machine = &self.plan.machines[place].name;
                let view = core.view(self.wall()).machines.into_iter().find(|m| m.name == *machine);
                let says = view.and_then(|view| view.waiting);
                return Err(Broken(format!(
                    "jobs for {machine} wait although there is room; the core says: {says:?}"
                )));
            }
        }
        Ok(())
    }

    fn waits_for_nothing(&self, core: &Core, place: usize) -> bool {
        let machine = &self.plan.machines[place].name;
        if !core.policy().machines.contains_key(machine) {
            return false;
        }
        // Runs that a queued job can still get, by what they are called.
        let supply = core.runs().iter().filter(|run| run.machine == *machine);
        let coming = ["preparing", "starting", "booting", "idle"];
        let supply = supply.filter(|run| coming.contains(&run.state_name())).count();
        let Some((since, _)) = ready(core, machine).nth(supply) else { return false };
        // Cheapest first: a view is made of everything, and most machine types wait for nothing or not for long.
        since.0 + 5 * MINUTE <= self.wall().0
            && self.judge_limits(machine).is_ok()
            && self.judge_capacity(place, "a run", Disks::NotToldGone).is_ok()
            && !self.is_reserved(core, machine)
            && !self.is_excused(core, machine)
    }

    /// Whether the room is kept for an older job of another machine type.
    fn is_reserved(&self, core: &Core, machine: &MachineTypeName) -> bool {
        let mut machines = core.view(self.wall()).machines.into_iter();
        machines.any(|view| {
            view.name == *machine && matches!(view.waiting, Some(Waiting::OlderJob { .. }))
        })
    }

    /// What only an old webhook calls queued begins no run: it may be a recording of a job that is over.
    pub(super) fn judge_belief(&mut self, core: &Core) -> Result<(), Broken> {
        match self.checker.doubtful.take() {
            Some(job) if core.jobs().get(job).is_some() => {
                Err(Broken(format!("job {job} is believed to be queued by an old webhook alone")))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// A job that the daemon took for over stays over. One that no machine type served when it ended is
    /// not remembered.
    pub(super) fn judge_end(&mut self, core: &Core) -> Result<(), Broken> {
        let Some(job) = self.checker.told.take() else { return Ok(()) };
        match core.jobs().get(job).map(|entry| entry.phase) {
            Some(Phase::Done) => {
                self.checker.ended.insert(job);
                Ok(())
            }
            Some(phase) if self.checker.ended.contains(&job) => {
                Err(Broken(format!("job {job} is over, but counts as {phase:?}")))
            }
            Some(_) | None => Ok(()),
        }
    }
}
