//! Nobody overtakes a job that waits for longer than jobs may be overtaken.
//!
//! Precisely: after each event that begins a run of machine type A, there is no machine type B with a
//! queued job that no runner is on its way for, that has waited for `max_overtake`, and that is older
//! than the job that A's new run is for — unless B cannot be served for a reason other than room:
//! nothing is to be started at all, its own or its repository's limit is reached, its last runs
//! failed (then one of them is tried at a time), GitHub has not answered for it yet, its base is about
//! to change, or its guest is larger than the host.

use forrest_core::model::{JobId, MachineTypeName, Timestamp};
use forrest_core::view::Waiting;
use forrest_core::{Command, Core};

use crate::plan::{HOUR, MINUTE};
use crate::world::World;

use super::Broken;

/// How long failed runs can keep a machine type from being tried again, at most.
const PAUSE_MAX: u64 = 2 * HOUR + 10 * MINUTE;

impl World {
    /// Runs were begun.
    pub(super) fn judge_fairness(&self, core: &Core, commands: &[Command]) -> Result<(), Broken> {
        let begun = commands.iter().filter_map(|command| match command {
            Command::Prepare { machine, .. } => Some(machine),
            _ => None,
        });
        let now = self.wall();
        for machine in core.policy().machines.keys() {
            let Some((since, job)) = unserved(core, machine) else { continue };
            if since + core.policy().timing.max_overtake > now {
                continue;
            }
            for other in begun.clone().filter(|other| *other != machine) {
                let served = core.runs().of_machine(other).supply.max(1) as usize - 1;
                let Some((younger, _)) = core.jobs().queued(other).nth(served) else { continue };
                // After failures one run is tried at a time.
                let tried = begun.clone().any(|begun| begun == machine);
                if younger > since && !tried && !self.is_excused(core, machine) {
                    return Err(Broken(format!(
                        "a run of {other} is begun although job {job} for {machine} waits for longer"
                    )));
                }
            }
        }
        Ok(())
    }

    pub(super) fn is_excused(&self, core: &Core, machine: &MachineTypeName) -> bool {
        let view = core.view(self.wall());
        let policy = core.policy();
        let Some(settings) = policy.machines.get(machine) else { return true };
        let Some(state) = view.machines.iter().find(|m| m.name == *machine) else { return true };
        let place = self.place(machine);
        let claims = self.checker.claims.values();
        // The one that is tried after failures is on its way, however long ago they were.
        let tried = self.checker.unproven[place]
            && claims.filter(|claim| claim.machine == place).any(|claim| claim.memory);
        let failed = tried
            || self.checker.trouble[place]
                .is_some_and(|at| self.now.saturating_sub(at) < PAUSE_MAX);
        let live = |of: &dyn Fn(&MachineTypeName) -> bool| {
            core.runs().iter().filter(|run| run.holds_memory() && of(&run.machine)).count()
        };
        match &state.waiting {
            Some(Waiting::Drained) => view.draining,
            Some(Waiting::Pause { .. }) | None => {
                failed || !self.checker.answered.contains(machine.repository())
            }
            Some(Waiting::MachineLimit { max_runs }) => {
                live(&|other| other == machine) >= *max_runs as usize
            }
            Some(Waiting::RepositoryLimit { max_runs }) => {
                live(&|other| other.repository() == machine.repository()) >= *max_runs as usize
            }
            Some(Waiting::Base { .. }) => settings.base_machine.is_some(),
            Some(Waiting::Ram { .. }) => settings.ram > policy.capacity.ram,
            Some(Waiting::Cpus { .. }) => {
                policy.capacity.cpus.is_some_and(|all| settings.cpus > all)
            }
            Some(Waiting::Disk { .. } | Waiting::OlderJob { .. }) => false,
        }
    }
}

/// The oldest queued job that no runner is on its way for, and that need not wait for its base.
pub(super) fn unserved(core: &Core, machine: &MachineTypeName) -> Option<(Timestamp, JobId)> {
    let supply = core.runs().of_machine(machine).supply as usize;
    ready(core, machine).nth(supply)
}

/// The queued jobs that do not wait for a job of their own workflow run to leave the image that they
/// start from, oldest first.
pub(super) fn ready<'a>(
    core: &'a Core,
    machine: &'a MachineTypeName,
) -> impl Iterator<Item = (Timestamp, JobId)> + 'a {
    let base =
        core.policy().machines.get(machine).and_then(|machine| machine.base_machine.as_ref());
    let workflow_of = |job: JobId| Some(core.jobs().get(job)?.job.workflow_run);
    let busy: Vec<_> = core
        .runs()
        .iter()
        .filter(|run| Some(&run.machine) == base && run.state_name() == "busy")
        .filter_map(|run| workflow_of(run.job()?))
        .collect();
    let waits = move |job: JobId| workflow_of(job).is_some_and(|workflow| busy.contains(&workflow));
    core.jobs().queued(machine).filter(move |(_, job)| !waits(*job))
}
