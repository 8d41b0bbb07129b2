//! Room goes to the repository that holds less of it, and to nobody who has no job for it.
//!
//! Precisely: when a run of machine type A is begun for a job that may still be overtaken, there is no
//! machine type B of another repository that holds less RAM, with a queued job that no runner is on its
//! way for and that would have fitted in A's place, unless B is excused as in
//! [`fairness`](super::fairness).

use std::collections::BTreeMap;

use forrest_core::model::{Bytes, MachineTypeName, Repository, RunnerName, Timestamp};
use forrest_core::{Command, Core, Policy};

use crate::world::World;

use super::Broken;
use super::fairness::{ready, unserved};

/// The runs that were begun by one event, in order.
fn begun(commands: &[Command]) -> impl Iterator<Item = (&RunnerName, &MachineTypeName)> {
    commands.iter().filter_map(|command| match command {
        Command::Prepare { runner, machine, .. } => Some((runner, machine)),
        _ => None,
    })
}

impl World {
    /// Runs were begun: whether there are jobs for them that need not wait for their base.
    pub(super) fn judge_demand(&self, core: &Core, commands: &[Command]) -> Result<(), Broken> {
        for (_, machine) in begun(commands) {
            let supply = core.runs().iter().filter(|run| run.machine == *machine);
            let supply = supply.filter(|run| run.is_supply()).count();
            let queued = ready(core, machine).count();
            if supply > queued {
                return Err(Broken(format!(
                    "a run of {machine} is begun, which makes {supply} for {queued} jobs"
                )));
            }
        }
        Ok(())
    }

    /// Runs were begun: whether no other repository had more right to their room.
    pub(super) fn judge_shares(&self, core: &Core, commands: &[Command]) -> Result<(), Broken> {
        let waiting: Vec<&MachineTypeName> = core
            .policy()
            .machines
            .keys()
            .filter(|machine| unserved(core, machine).is_some())
            .filter(|machine| begun(commands).all(|(_, begun)| begun != *machine))
            .collect();
        if waiting.is_empty() {
            return Ok(());
        }
        let mut held: BTreeMap<&Repository, Bytes> = BTreeMap::new();
        let new: Vec<&RunnerName> = begun(commands).map(|(runner, _)| runner).collect();
        let old = |run: &&forrest_core::run::Run| run.holds_memory() && !new.contains(&&run.runner);
        for run in core.runs().iter().filter(old) {
            let sum = held.entry(run.machine.repository()).or_default();
            *sum = sum.saturating_add(run.resources.ram);
        }
        for (runner, machine) in begun(commands) {
            let Some(run) = core.runs().get(runner) else { continue };
            let of = |repository| held.get(repository).copied().unwrap_or_default();
            let mine = of(machine.repository());
            for other in &waiting {
                let theirs = of(other.repository());
                if theirs < mine
                    && !is_overdue(core, machine, self.wall())
                    && fits_in_place(core.policy(), other, machine)
                    && !self.is_excused(core, other)
                {
                    return Err(Broken(format!(
                        "a run of {machine} is begun although jobs for {other} wait, whose \
                         repository holds {theirs} and not {mine}"
                    )));
                }
            }
            let sum = held.entry(machine.repository()).or_default();
            *sum = sum.saturating_add(run.resources.ram);
        }
        Ok(())
    }
}

/// Whether a job of this machine type may not be overtaken any more.
fn is_overdue(core: &Core, machine: &MachineTypeName, now: Timestamp) -> bool {
    let max_overtake = core.policy().timing.max_overtake;
    core.jobs().queued(machine).next().is_some_and(|(since, _)| since + max_overtake <= now)
}

/// Whether a guest of one machine type needs no more than one of another.
fn fits_in_place(policy: &Policy, one: &MachineTypeName, other: &MachineTypeName) -> bool {
    let (Some(one), Some(other)) = (policy.machines.get(one), policy.machines.get(other)) else {
        return false;
    };
    one.ram <= other.ram && one.cpus <= other.cpus && one.disk <= other.disk
}
