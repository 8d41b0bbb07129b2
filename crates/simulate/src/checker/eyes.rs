//! What the checker sees: the world tells it here.

use std::time::Duration;

use forrest_core::event::{Event, Persist, RegisterTrouble, RunEvent, Source};
use forrest_core::model::{Generation, JobStatus, RunnerId, RunnerName};
use forrest_core::{Command, Core};

use crate::world::World;
use crate::world::host::{Disk, Vm};

use super::capacity::Disks;
use super::{Broken, Claim};

/// Age from which a webhook about a queued job must not be believed by a daemon that does not know the job.
const WEBHOOK_OLD: Duration = Duration::from_secs(5 * 60);

impl World {
    /// A daemon starts: it knows nothing but what is there.
    pub(crate) fn checker_on_restart(&mut self) {
        let checker = &mut self.checker;
        checker.claims = self
            .host
            .runs
            .iter()
            .map(|(name, run)| {
                let memory = matches!(run.vm, Vm::Live(_));
                let disk = matches!(run.disk, Disk::Forked | Disk::None);
                (name.clone(), Claim { machine: run.machine, memory, disk, start: true })
            })
            .collect();
        checker.builds.clear();
        checker.measured = None;
        checker.concluded.clear();
        checker.valid.clear();
        checker.unread.clear();
        checker.failed_promotions.clear();
        checker.polls.clear();
        checker.answered.clear();
        checker.heard.clear();
        checker.running.clear();
        checker.draining = false;
        checker.forgotten.clear();
        checker.idle.fill(0);
        checker.told = None;
        checker.ended.clear();
        checker.refused.clear();
        checker.trouble.fill(None);
        checker.unproven.fill(false);
    }

    /// The core takes in an event.
    pub(crate) fn checker_on_event(&mut self, event: &Event) {
        let (now, wall) = (self.now, self.wall());
        let checker = &mut self.checker;
        match event {
            Event::JobReported { job, source } => {
                let old = job.created_at.is_some_and(|at| wall.since(at) > WEBHOOK_OLD);
                let queued = job.status == JobStatus::Queued && *source == Source::Webhook;
                if queued && old && !checker.heard.contains_key(&job.id) {
                    checker.doubtful = Some(job.id);
                    return;
                }
                if let Some(conclusion) = job.conclusion {
                    checker.concluded.insert(job.id, conclusion);
                }
                let runner = job.runner.as_ref().filter(|_| job.status == JobStatus::InProgress);
                checker.running.retain(|holder, (id, _)| *id != job.id || runner == Some(holder));
                if let Some(runner) = runner
                    && checker.running.get(runner).is_none_or(|(id, _)| *id != job.id)
                {
                    checker.running.insert(runner.clone(), (job.id, now));
                }
                checker.told = Some(job.id);
                checker.heard.entry(job.id).or_insert(now);
                let claim = job.runner.as_ref().and_then(|runner| checker.claims.get(runner));
                let proven = claim.map(|claim| claim.machine);
                // Another repository's runner may have the same name.
                let own =
                    |place: &usize| checker.machines[*place].name.repository() == &job.repository;
                if let Some(place) = proven.filter(own) {
                    checker.unproven[place] = false;
                }
            }
            Event::HostMeasured { free_disk, run_disks } => {
                checker.measured = Some((*free_disk, run_disks.clone()));
            }
            Event::StopRequested { runner } => {
                checker.by_operator.insert(runner.clone());
                checker.given_up(runner);
            }
            Event::DrainRequested(draining) => checker.draining = *draining,
            Event::SnapshotBuilt { machine, .. } => {
                let built = checker.machines.iter().position(|m| m.name == *machine);
                built.map(|index| checker.builds.remove(&index));
            }
            Event::Polled { repository, result: Err(trouble), .. } => {
                let pause = trouble.not_before.map_or(0, |at| at.0.saturating_sub(wall.0));
                let entry = checker.polls.entry(repository.clone()).or_default();
                entry.1 = now + pause.min(2 * crate::plan::HOUR);
            }
            // One that left the configuration is asked for as long as it has runs. Should it come back when it has none
            // any more, GitHub has to answer anew.
            Event::Polled { repository, result: Ok(_), .. }
                if self.policy.repositories().contains(repository) =>
            {
                checker.answered.insert(repository.clone());
            }
            Event::PolicyChanged(policy) => {
                let configured = policy.repositories();
                checker.answered.retain(|repository| configured.contains(repository));
            }
            Event::Run { runner, event } => self.checker_on_run_event(runner, event),
            _ => {}
        }
    }

    /// The core hears of one of its runs.
    fn checker_on_run_event(&mut self, runner: &RunnerName, event: &RunEvent) {
        let machine = self.checker.claims.get(runner).map(|claim| claim.machine);
        let failed = match event {
            RunEvent::Prepared(Err(_))
            | RunEvent::StartFailed(_)
            | RunEvent::VmExited(_)
            | RunEvent::Deregistered(Err(_))
            | RunEvent::Registered(Err(
                RegisterTrouble::Refused(_) | RegisterTrouble::Unknown(_),
            )) => true,
            RunEvent::ReadBack(Ok(persist)) => {
                self.checker.unread.remove(runner);
                if *persist == Persist::Valid {
                    self.checker.valid.insert(runner.clone());
                }
                false
            }
            RunEvent::ReadBack(Err(_)) => {
                *self.checker.unread.entry(runner.clone()).or_default() += 1;
                false
            }
            RunEvent::PromotionRefused(_) => {
                self.checker.refused.insert(runner.clone());
                false
            }
            // Also where there never was a disk to remove: the host knows nothing of such a run.
            RunEvent::Discarded(Ok(())) | RunEvent::Promoted(Ok(_)) => {
                if let Some(claim) = self.checker.claims.get_mut(runner) {
                    claim.disk = false;
                }
                false
            }
            RunEvent::Promoted(Err(_)) => {
                *self.checker.failed_promotions.entry(runner.clone()).or_default() += 1;
                false
            }
            _ => false,
        };
        if let Some(machine) = machine.filter(|_| failed) {
            self.checker.trouble[machine] = Some(self.now);
            self.checker.unproven[machine] = true;
            self.checker.given_up(runner);
        }
    }

    /// The core gave commands.
    pub(crate) fn checker_on_commands(
        &mut self,
        core: &Core,
        commands: &[Command],
    ) -> Result<(), Broken> {
        if let Some(broken) = self.checker.remembered.take() {
            return Err(broken);
        }
        self.judge_end(core)?;
        self.judge_belief(core)?;
        for command in commands {
            self.judge_request(command)?;
            self.judge_memory(command)?;
            match command {
                Command::Prepare { runner, machine, .. } => {
                    self.judge_limits(machine)?;
                    let machine = self.place(machine);
                    self.judge_capacity(machine, &format!("run {runner}"), Disks::There)?;
                    let claim = Claim { machine, memory: true, disk: true, start: false };
                    self.checker.claims.insert(runner.clone(), claim);
                }
                Command::BuildSnapshot { machine } => {
                    let machine = self.place(machine);
                    self.judge_capacity(machine, "a snapshot", Disks::There)?;
                    self.checker.builds.insert(machine);
                }
                Command::StartVm { runner, .. } => {
                    let claim = self.checker.claims.get_mut(runner).filter(|claim| claim.memory);
                    let Some(claim) = claim else {
                        return Err(Broken(format!("{runner} is to be started without RAM")));
                    };
                    claim.start = true;
                }
                Command::PowerDown { runner } => {
                    self.judge_stop(runner, "is to be powered down")?
                }
                Command::Kill { runner, .. } => self.judge_stop(runner, "is to be killed")?,
                Command::Promote { runner, .. } => self.judge_promotion(runner)?,
                Command::Discard { runner, .. } => self.judge_removal(runner)?,
                Command::Forget { runner, .. } => {
                    self.judge_settlement(runner)?;
                    self.checker.claims.remove(runner);
                    self.checker.by_operator.remove(runner);
                    self.checker.forgotten.insert(runner.clone());
                }
                _ => {}
            }
        }
        if commands.iter().any(|command| matches!(command, Command::Prepare { .. })) {
            self.judge_demand(core, commands)?;
            self.judge_shares(core, commands)?;
            self.judge_fairness(core, commands)?;
        }
        Ok(())
    }

    /// A minute or so has passed.
    pub(crate) fn checker_on_minute(&mut self) -> Result<(), Broken> {
        let Some(daemon) = self.daemon.take() else { return Ok(()) };
        let judged = self.judge_idleness(&daemon.core);
        let judged = judged.and_then(|()| self.judge_limits_that_never_come(&daemon.core));
        self.daemon = Some(daemon);
        judged
    }

    /// Some hours have passed.
    pub(crate) fn checker_on_audit(&mut self) -> Result<(), Broken> {
        self.judge_growth()
    }

    /// A guest is about to be stopped.
    pub(crate) fn checker_on_stop(&mut self, runner: &RunnerName, how: &str) -> Result<(), Broken> {
        self.judge_stop(runner, how)?;
        if how.contains("killed") { self.judge_kill(runner) } else { Ok(()) }
    }

    /// The supervisor is about to end a guest whose job takes too long.
    pub(crate) fn checker_on_deadline(&mut self, runner: &RunnerName) -> Result<(), Broken> {
        self.judge_deadline(runner)
    }

    /// A guest is about to be started.
    pub(crate) fn checker_on_start(
        &mut self,
        runner: &RunnerName,
        id: RunnerId,
    ) -> Result<(), Broken> {
        let Some(run) = self.host.runs.get(runner) else {
            return Err(Broken(format!("{runner} is started without a directory")));
        };
        if run.disk != Disk::Forked || !matches!(run.vm, Vm::None) {
            return Err(Broken(format!(
                "{runner} is started with {:?} and {:?}",
                run.disk, run.vm
            )));
        }
        if let Some(entry) = self.github.runners.get(runner)
            && entry.id != id
        {
            return Err(Broken(format!("{runner} is started with another runner's id {id}")));
        }
        if !self.checker.started.insert(runner.clone()) {
            return Err(Broken(format!("{runner} is started twice")));
        }
        Ok(())
    }

    /// Old generations were removed.
    pub(crate) fn checker_on_pruned(&mut self, machine: usize) -> Result<(), Broken> {
        self.judge_generations(machine)
    }

    /// A disk became a generation.
    pub(crate) fn checker_on_promoted(
        &mut self,
        runner: &RunnerName,
        machine: usize,
        generation: Generation,
    ) -> Result<(), Broken> {
        if let Some(before) = self.checker.promoted.insert(runner.clone(), generation) {
            return Err(Broken(format!("{runner} became generation {before} and {generation}")));
        }
        if generation <= self.checker.highest[machine] {
            return Err(Broken(format!("generation {generation} is not the next one")));
        }
        self.checker.highest[machine] = generation;
        Ok(())
    }
}
