//! What happened, for programs and for people.

use std::fmt;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::ground::Driver;

/// Lines of trouble that people are shown.
const TROUBLES_SHOWN: usize = 20;

/// All rounds.
#[derive(Debug, Serialize)]
pub struct Report {
    /// What decided.
    pub seed: u64,
    #[serde(flatten)]
    total: Counts,
    /// The rounds, one per driver.
    rounds: Vec<Round>,
}

/// One round.
#[derive(Debug, Serialize)]
pub struct Round {
    /// How disks were forked.
    pub driver: Driver,
    /// What was counted.
    #[serde(flatten)]
    pub counts: Counts,
}

/// What is counted.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Counts {
    /// Jobs that were queued.
    pub jobs: u64,
    /// Those that are not over.
    pub lost: u64,
    /// Those that did not get to their end, although nobody touched their supervisors.
    pub killed: u64,
    /// Those that began more than once.
    pub run_twice: u64,
    /// Those whose own supervisor was killed while they ran.
    pub shim_killed_jobs: u64,
    /// Daemons that were killed.
    pub daemon_kills: u64,
    /// Daemons that were stopped in order.
    pub daemon_stops: u64,
    /// Daemons that were another file than the one before, as after an upgrade.
    pub daemon_upgrades: u64,
    /// Daemons that did not start at once, and were started again.
    pub failed_starts: u64,
    /// Supervisors that were killed.
    pub shim_kills: u64,
    /// Changes of what is wrong with GitHub.
    pub weather_changes: u64,
    /// Machine images that were looked into.
    pub images_checked: u64,
    /// Those that are damaged.
    pub images_broken: u64,
    /// Runners, runs and disks that are left over.
    pub left_over: u64,
    /// How long it took.
    pub seconds: f64,
    /// What is wrong, in words.
    pub troubles: Vec<String>,
    /// What is worth knowing, and not wrong.
    pub remarks: Vec<String>,
}

impl Counts {
    fn add(&mut self, more: &Self) {
        let Self { jobs, lost, killed, run_twice, shim_killed_jobs, .. } = more;
        self.jobs += jobs;
        self.lost += lost;
        self.killed += killed;
        self.run_twice += run_twice;
        self.shim_killed_jobs += shim_killed_jobs;
        self.daemon_kills += more.daemon_kills;
        self.daemon_stops += more.daemon_stops;
        self.daemon_upgrades += more.daemon_upgrades;
        self.failed_starts += more.failed_starts;
        self.shim_kills += more.shim_kills;
        self.weather_changes += more.weather_changes;
        self.images_checked += more.images_checked;
        self.images_broken += more.images_broken;
        self.left_over += more.left_over;
        self.seconds += more.seconds;
        self.troubles.extend(more.troubles.iter().cloned());
        self.remarks.extend(more.remarks.iter().cloned());
    }
}

impl Report {
    /// Nothing yet.
    pub fn new(seed: u64) -> Self {
        Self { seed, total: Counts::default(), rounds: Vec::new() }
    }

    /// One more round.
    pub fn add(&mut self, round: Round) {
        self.total.add(&round.counts);
        self.rounds.push(round);
    }

    /// Whether every promise was kept.
    pub fn is_good(&self) -> bool {
        let Counts { lost, killed, run_twice, images_broken, left_over, .. } = self.total;
        lost + killed + run_twice + images_broken + left_over == 0 && self.total.jobs > 0
    }

    /// Writes it as JSON.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        std::fs::write(path, text + "\n")
            .with_context(|| format!("could not write {}", path.display()))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = &self.total;
        writeln!(
            f,
            "{} jobs in {:.0} s (seed {}), while {} daemons were killed, {} stopped, {} replaced by \
             another program file, {} supervisors killed, and GitHub's trouble changed {} times:",
            all.jobs,
            all.seconds,
            self.seed,
            all.daemon_kills,
            all.daemon_stops,
            all.daemon_upgrades,
            all.shim_kills,
            all.weather_changes
        )?;
        writeln!(
            f,
            "  {} lost, {} killed, {} run twice; {} lost their own supervisor while they ran",
            all.lost, all.killed, all.run_twice, all.shim_killed_jobs
        )?;
        writeln!(
            f,
            "  {} machine images looked into, {} damaged; {} runners, runs or disks left over",
            all.images_checked, all.images_broken, all.left_over
        )?;
        for trouble in all.troubles.iter().take(TROUBLES_SHOWN) {
            writeln!(f, "  ! {trouble}")?;
        }
        write!(f, "{}", if self.is_good() { "Every promise was kept." } else { "BROKEN PROMISES." })
    }
}
