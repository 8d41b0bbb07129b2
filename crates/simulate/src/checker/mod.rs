//! The promises, judged from outside.
//!
//! The checker sees every event and command and knows the world's truth. It computes everything
//! itself; of the core it only reads what the core says of itself (queues, waiting reasons), never
//! how it decides. The promises:
//!
//! 1. `capacity`: RAM, virtual CPUs and disk space are never promised twice. One run may always
//!    start on an otherwise empty host, if the guest itself fits. No more runs of a machine type or a
//!    repository are begun than its `max_runs`, nor more than there are jobs for that need not wait
//!    for another job of their workflow run, and none while the host is drained.
//! 2. `stops`: no guest is powered down or killed whose runner GitHub has given a job, unless the
//!    operator or the job's time limit says so; and none that is putting its finished job away.
//! 3. `settlement`: a run is forgotten only when its guest and its runner are gone and its disk was
//!    promoted or removed, once; nothing is done for it afterwards. Only a valid token and a guest that shut down by itself make an
//!    image, never a job that is known to have failed; and no such image is thrown away. Generations
//!    only grow.
//! 4. `requests`: GitHub is not asked more often than it allows, nor without measure.
//! 5. `fairness`: nobody overtakes a job that waits for longer than jobs may be overtaken. `shares`:
//!    before that, no repository gets room that another one could use and holds less of.
//! 6. `idleness`: no job waits for minutes while there is room for a run of its machine type and nothing
//!    speaks against one. A job that is over stays over, whatever late webhooks say.
//! 7. `growth`: nothing is kept for longer than it is needed, in the core or on the disk.
//! 8. Rest (in [`world`](crate::world)): once the faults stop, every job is served within a bound and
//!    nothing is left over.

mod capacity;
mod eyes;
mod fairness;
mod growth;
mod idleness;
mod requests;
mod settlement;
mod shares;
mod stops;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use forrest_core::model::{
    Bytes, Conclusion, Generation, JobId, MachineType, Repository, RunnerName,
};

use crate::plan::Plan;

/// A broken promise: which one, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken(pub String);

/// What the checker remembers.
#[derive(Debug)]
pub struct Checker {
    machines: Vec<MachineType>,
    /// What was promised to runs and not given back yet.
    claims: BTreeMap<RunnerName, Claim>,
    /// Snapshots that are being built.
    builds: BTreeSet<usize>,
    /// What the daemon was told of the disk.
    measured: Option<(Bytes, BTreeMap<RunnerName, Bytes>)>,
    /// Runs that the operator ended.
    by_operator: BTreeSet<RunnerName>,
    /// Runners that GitHub registered after the request was given up.
    late: BTreeSet<RunnerName>,
    /// The job that the present daemon was told of last.
    told: Option<JobId>,
    /// Jobs that the present daemon takes for over.
    ended: BTreeSet<JobId>,
    /// For how many minutes jobs of each machine type have waited although there was room.
    idle: Vec<u32>,
    /// How jobs ended, as the present daemon was told.
    concluded: BTreeMap<JobId, Conclusion>,
    /// Runs whose token was found to be valid by the present daemon.
    valid: BTreeSet<RunnerName>,
    /// Job-config disks that could not be read, and how often.
    unread: BTreeMap<RunnerName, u32>,
    /// Promotions that failed, by run.
    failed_promotions: BTreeMap<RunnerName, u32>,
    /// Runs whose disk the configuration does not let become an image.
    refused: BTreeSet<RunnerName>,
    /// Whether the daemon was told to begin nothing.
    draining: bool,
    /// Runs that the present daemon has forgotten.
    forgotten: BTreeSet<RunnerName>,
    /// Runs whose guest was started.
    started: BTreeSet<RunnerName>,
    /// What became of disks.
    promoted: BTreeMap<RunnerName, Generation>,
    /// The highest generation of each machine type.
    highest: Vec<Generation>,
    /// When each repository was polled last, and until when GitHub does not want to be.
    polls: BTreeMap<Repository, (Option<u64>, u64)>,
    /// Repositories that GitHub has answered for, to the present daemon.
    answered: BTreeSet<Repository>,
    /// When the present daemon first heard of each job.
    heard: BTreeMap<JobId, u64>,
    /// The job that each runner has, as the present daemon was told, and since when it was.
    running: BTreeMap<RunnerName, (JobId, u64)>,
    /// A job that the present daemon heard of last and first, by a webhook that is older than it may be.
    doubtful: Option<JobId>,
    /// When requests were sent.
    sent: VecDeque<u64>,
    /// When something last went wrong with a machine type's runs, as the present daemon was told.
    trouble: Vec<Option<u64>>,
    /// Machine types of which no run is known to have had a job since then.
    unproven: Vec<bool>,
    /// When the clock jumped last.
    jumped: u64,
    remembered: Option<Broken>,
}

/// What was promised to a run.
#[derive(Debug, Clone, Copy)]
struct Claim {
    machine: usize,
    /// Whether RAM and CPUs are still promised.
    memory: bool,
    /// Whether disk space is.
    disk: bool,
    /// Whether its guest was to be started.
    start: bool,
}

impl Checker {
    /// A checker for this plan.
    pub fn new(plan: &Plan) -> Self {
        let machines = plan.machines.clone();
        Self {
            claims: BTreeMap::new(),
            builds: BTreeSet::new(),
            measured: None,
            by_operator: BTreeSet::new(),
            late: BTreeSet::new(),
            told: None,
            ended: BTreeSet::new(),
            idle: vec![0; machines.len()],
            concluded: BTreeMap::new(),
            valid: BTreeSet::new(),
            unread: BTreeMap::new(),
            failed_promotions: BTreeMap::new(),
            refused: BTreeSet::new(),
            draining: false,
            forgotten: BTreeSet::new(),
            started: BTreeSet::new(),
            promoted: BTreeMap::new(),
            highest: vec![Generation(0); machines.len()],
            polls: BTreeMap::new(),
            answered: BTreeSet::new(),
            heard: BTreeMap::new(),
            running: BTreeMap::new(),
            doubtful: None,
            sent: VecDeque::new(),
            trouble: vec![None; machines.len()],
            unproven: vec![false; machines.len()],
            jumped: 0,
            remembered: None,
            machines,
        }
    }

    /// A promise that was broken where nobody could say so.
    pub fn remember(&mut self, broken: Broken) {
        self.remembered.get_or_insert(broken);
    }

    /// A registration was given up that will take place all the same.
    pub fn late_registration(&mut self, runner: &RunnerName) {
        self.late.insert(runner.clone());
    }

    /// Whether the present daemon has forgotten a run.
    pub fn has_forgotten(&self, runner: &RunnerName) -> bool {
        self.forgotten.contains(runner)
    }

    /// A run came to nothing: without a guest, it needs no RAM.
    fn given_up(&mut self, runner: &RunnerName) {
        if let Some(claim) = self.claims.get_mut(runner).filter(|claim| !claim.start) {
            claim.memory = false;
        }
    }

    /// The host's clock jumped.
    pub fn clock_jumped(&mut self, now: u64) {
        self.jumped = now;
    }

    /// Everything is at rest: whether everything is as it should be.
    ///
    /// # Errors
    /// What is not.
    pub fn at_rest(&self, world: &crate::world::World) -> Result<(), Broken> {
        if let Some(broken) = &self.remembered {
            return Err(broken.clone());
        }
        let over = |job: &crate::world::github::TrueJob| {
            matches!(job.at, crate::world::github::At::Done(..))
        };
        match world.github.jobs.iter().find(|(_, job)| !over(job)) {
            Some((id, job)) => Err(Broken(format!("at rest, but job {id} is {:?}", job.at))),
            None => Ok(()),
        }
    }
}
