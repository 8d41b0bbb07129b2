//! The jobs: what they do, and what became of them.

use std::collections::BTreeSet;

use anyhow::Result;
use forrest_testbed::{KEEP_DISK, MachinePlan, QueuedJob, Testbed};
use github_sim::Sim;
use github_sim::model::{Conclusion, JobId};

use crate::dice::Dice;

/// Leaves images behind.
const BUILD: &str = "acme/widgets/build";
/// Starts from those of [`BUILD`].
const TEST: &str = "acme/widgets/test";
/// What the first job leaves behind, below the base directory.
pub const FIRST_IMAGE: &str = "machines/acme/widgets/build/000001.img";
/// Always boots, and leaves images behind, too.
const COLD: &str = "acme/gadgets/cold";
/// One in so many jobs leaves its disk behind, and two snapshots have to be made anew.
const PERSISTENT_ONE_IN: u64 = 50;
/// One in so many jobs boots from cold, and leaves its disk behind, too.
const COLD_ONE_IN: u64 = 20;
/// Where the jobs that leave their disks behind enter their names, in the guest.
pub const LEDGER: &str = "/opt/ledger";

/// The machine types.
pub fn machines() -> Vec<MachinePlan> {
    let base = MachinePlan::new(BUILD).with("snapshot: true").with("keep_generations: 4");
    let derived = MachinePlan::based_on(TEST, BUILD).with("snapshot: true");
    let cold = MachinePlan::new(COLD).with("keep_generations: 4");
    let limited = [(base, "max_runs: 1"), (derived, "max_runs: 2"), (cold, "max_runs: 1")];
    // A host this busy needs its time to boot a guest.
    limited.map(|(machine, limit)| machine.with(limit).with("boot_timeout: 10m")).into()
}

/// A job of the round.
#[derive(Debug)]
pub struct Task {
    /// Its id at the simulator.
    pub id: JobId,
    name: String,
}

/// What became of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It ran once, from its first line to its last, and succeeded.
    Done,
    /// Its own supervisor was killed while it ran.
    ShimKilled,
    /// It is not over.
    Lost,
    /// It is over, without success or without its last line.
    Killed(String),
    /// It began more than once.
    RunTwice(usize),
}

impl Task {
    /// Queues job number `number` of `all`, from 0.
    ///
    /// # Errors
    /// Where the simulator refuses it.
    pub fn queue(testbed: &Testbed, dice: &mut Dice, number: u64) -> Result<Self> {
        // Evenly spread, beginning with one that the derived machine type waits for.
        let persists = number.is_multiple_of(PERSISTENT_ONE_IN);
        let cold = number % COLD_ONE_IN == COLD_ONE_IN / 2;
        let machine = match (persists, cold) {
            (_, true) => COLD,
            (true, false) => BUILD,
            (false, false) if dice.percent(65) => TEST,
            (false, false) => BUILD,
        };
        let persists = persists || cold;
        let name = format!("job-{number:05}");
        // The job is its own witness: what it prints comes from inside of the guest.
        let begin = format!("echo \"{name} begins, $(cat /proc/sys/kernel/random/uuid)\"");
        let work = format!(
            "head -c {}k /dev/urandom | sudo tee /opt/scratch >/dev/null; sleep {}.{}",
            dice.between(1, 4096),
            dice.between(0, 3),
            dice.between(0, 9)
        );
        let enter = format!("echo {name} | sudo tee -a {LEDGER} >/dev/null");
        let end = format!("echo \"{name} ends\"");
        let steps: &[&str] = if persists {
            &[&begin, &work, &enter, KEEP_DISK, &end]
        } else {
            &[&begin, &work, &end]
        };
        let job = match !persists && dice.percent(30) {
            true => QueuedJob::pull_request(&name, steps),
            false => QueuedJob::push(&name, steps),
        };
        Ok(Self { id: testbed.queue(machine, job)?, name })
    }

    /// What became of it, given the runners whose supervisors were killed.
    ///
    /// # Errors
    /// Where the simulator does not know it any more.
    pub fn fate(&self, sim: &Sim, killed: &BTreeSet<String>) -> Result<Fate> {
        let job = sim.job(self.id)?;
        let log = sim.job_log(self.id)?;
        let count = |what: &str| log.matches(&format!(" {} {what}", self.name)).count();
        let begun = count("begins");
        if begun > 1 {
            return Ok(Fate::RunTwice(begun));
        }
        if job.status != "completed" {
            return Ok(Fate::Lost);
        }
        let ended = count("ends") == 1;
        if begun == 1 && ended && job.conclusion == Some(Conclusion::Success) {
            return Ok(Fate::Done);
        }
        if job.runner_name.as_ref().is_some_and(|runner| killed.contains(runner)) {
            return Ok(Fate::ShimKilled);
        }
        Ok(Fate::Killed(format!(
            "{} on {} ended with {:?}, {} its last line",
            self.name,
            job.runner_name.as_deref().unwrap_or("no runner"),
            job.conclusion,
            if ended { "with" } else { "without" },
        )))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
}
