//! One round: jobs are queued, daemons and supervisors die, GitHub has its moods; then it gets quiet, and
//! every job has to come to its end.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use forrest_testbed::{Plan, Testbed};
use github_sim::SimConfig;
use github_sim::model::Settings;
use indicatif::ProgressBar;

use crate::dice::Dice;
use crate::ground::Ground;
use crate::images;
use crate::jobs::{self, Fate, Task, machines};
use crate::report::{Counts, Round};
use crate::victims::{Shim, end_all};
use crate::weather;

/// How often something may happen.
const TICK: Duration = Duration::from_millis(200);
/// Jobs that are queued or run at a time: more than there may be guests.
const AT_ONCE: usize = 8;
/// The same while a snapshot is made: each of them boots from cold, and they take each other's time.
const AT_ONCE_COLD: usize = 2;
/// Jobs that have to be over before there are more than those: the first leaves the image that most start from,
/// and its snapshots are made next.
const JOBS_BEFORE_MORE: usize = 3;
/// Room for all guests that `max_runs` allows (`jobs::machines`), and for one that a snapshot is taken of. With
/// less, such a one gives way to the waiting jobs for as long as there are any, and all of them boot from cold.
const RAM: &str = "4G";
/// How long a round may take for each of its jobs, and besides. What is not over then is lost.
const LIMIT_PER_JOB: Duration = Duration::from_secs(60);
const LIMIT_BESIDES: Duration = Duration::from_secs(20 * 60);
/// When GitHub gives up a runner that it does not hear from; a quarter of an hour in reality.
const LOST_RUNNER: Duration = Duration::from_secs(60);
/// How often a daemon is started before it is given up, and the pause in between.
const STARTS_MAX: u32 = 5;
const RESTART_PAUSE: Duration = Duration::from_secs(2);
/// How many in a hundred supervisors' deaths and daemons' times do not spare a snapshot that is being made.
const NO_MERCY_PERCENT: u64 = 10;
/// How long what is left may take after the last job.
const REST: Duration = Duration::from_secs(5 * 60);

/// Plays a round of `jobs` jobs.
///
/// # Errors
/// Where something does not work that should not break: the simulator, the file system, a daemon that
/// does not start again.
pub async fn play(
    root: &Path,
    ground: &Ground,
    forrest: &Path,
    jobs: u64,
    dice: Dice,
    bar: &ProgressBar,
) -> Result<Round> {
    let started = Instant::now();
    let mut plan = Plan::new(root, &ground.dir, forrest);
    plan.ram = RAM.to_owned();
    plan.polling_interval = "15s".to_owned();
    plan.machines = machines();
    let settings = Settings { lost_timeout: LOST_RUNNER, ..Settings::default() };
    plan.sim = SimConfig { webhook_concurrency: 4, settings, ..SimConfig::default() };
    let deadline = started + LIMIT_BESIDES + LIMIT_PER_JOB.saturating_mul(u32::try_from(jobs)?);
    let testbed = Testbed::start(plan).await?;
    let mut havoc = Havoc {
        testbed,
        programs: [forrest.to_owned(), upgraded(forrest, &ground.dir)?],
        dice,
        counts: Counts { jobs, ..Counts::default() },
        killed: BTreeSet::new(),
        tasks: Vec::new(),
        weather: "fine",
        due: Due::never(),
        begun: false,
        merciful: true,
    };
    let played = havoc.play(jobs, deadline, bar).await;
    let settled = havoc.settle().await;
    // Whatever went wrong, nothing of it stays behind.
    if let Some(daemon) = havoc.testbed.daemon.take() {
        daemon.stop().await?;
    }
    end_all(&ground.dir)?;
    played?;
    settled?;
    let found = images::check(&ground.base(), &ground.dir)?;
    let Havoc { mut counts, .. } = havoc;
    counts.images_checked = found.checked;
    counts.images_broken = found.broken.len() as u64;
    counts.troubles.extend(found.broken);
    counts.seconds = started.elapsed().as_secs_f64();
    Ok(Round { driver: ground.driver, counts })
}

/// The same program in another file, as an upgrade would bring it.
fn upgraded(forrest: &Path, dir: &Path) -> Result<PathBuf> {
    let path = dir.join("forrest-upgraded");
    std::fs::copy(forrest, &path).context("could not copy the program")?;
    Ok(path)
}

/// When something happens next.
struct Due {
    daemon: Instant,
    shim: Instant,
    /// Jobs that have to be over before a supervisor is killed again. Boots that are killed faster than a busy
    /// host finishes them prove nothing: no job would ever get through.
    shim_after: usize,
    weather: Instant,
}

impl Due {
    /// Nothing before there is the first image: the derived machine type starts from it.
    fn never() -> Self {
        let never = Instant::now() + Duration::from_secs(365 * 24 * 3600);
        Self { daemon: never, shim: never, shim_after: 0, weather: never }
    }
}

struct Havoc {
    testbed: Testbed,
    programs: [PathBuf; 2],
    dice: Dice,
    counts: Counts,
    /// Runners whose supervisors were killed.
    killed: BTreeSet<String>,
    tasks: Vec<Task>,
    weather: &'static str,
    due: Due,
    /// Whether things go wrong by now.
    begun: bool,
    /// Whether this daemon lives on while it makes a snapshot.
    merciful: bool,
}

impl Havoc {
    async fn play(&mut self, count: u64, deadline: Instant, bar: &ProgressBar) -> Result<()> {
        let before = bar.position();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let queued = self.tasks.len();
            let open = self.open()?;
            let over = queued - open;
            bar.set_position(before + over as u64);
            bar.set_message(format!(
                "jobs; {} daemons and {} supervisors killed; {}",
                self.counts.daemon_kills, self.counts.shim_kills, self.weather
            ));
            if (over as u64 == count) || Instant::now() > deadline {
                return Ok(());
            }
            let cold = over < JOBS_BEFORE_MORE || self.makes_a_snapshot();
            let at_once = if cold { AT_ONCE_COLD } else { AT_ONCE };
            if (queued as u64) < count && open < at_once && (self.begun || queued == 0) {
                let task = Task::queue(&self.testbed, &mut self.dice, queued as u64)?;
                self.tasks.push(task);
            }
            if !self.begun {
                // Without the first job's image, jobs of the derived machine type would wait for ever.
                if self.testbed.plan().base_dir().join(jobs::FIRST_IMAGE).exists() {
                    self.begin();
                }
                continue;
            }
            // The last ones are to come to their end in peace: faults that go on prove nothing.
            if queued as u64 == count && open <= AT_ONCE / 2 {
                self.calm().await?;
            } else {
                self.strike(over).await?;
            }
        }
    }

    /// Jobs that are not over.
    fn open(&self) -> Result<usize> {
        let mut open = 0;
        for task in &self.tasks {
            open += usize::from(self.testbed.sim.job(task.id)?.status != "completed");
        }
        Ok(open)
    }

    fn begin(&mut self) {
        self.begun = true;
        let now = Instant::now();
        self.due = Due {
            daemon: now + self.dice.pause(1_000, 15_000),
            shim: now + self.dice.pause(5_000, 30_000),
            shim_after: 0,
            weather: now,
        };
    }

    async fn strike(&mut self, over: usize) -> Result<()> {
        let now = Instant::now();
        if now >= self.due.weather {
            self.weather = weather::change(&self.testbed.sim, &mut self.dice);
            self.counts.weather_changes += 1;
            self.due.weather = now + self.dice.pause(10_000, 40_000);
        }
        if now >= self.due.shim && over >= self.due.shim_after && self.kill_a_shim() {
            self.due.shim = now + self.dice.pause(3_000, 60_000);
            self.due.shim_after = over + 1;
        }
        if now >= self.due.daemon {
            if self.spares_a_snapshot() {
                self.due.daemon = now + self.dice.pause(2_000, 10_000);
            } else {
                self.end_or_start_the_daemon().await?;
            }
        }
        Ok(())
    }

    /// A daemon that starts begins an unfinished snapshot anew. Without mercy none would ever be ready, and
    /// every guest would boot from cold.
    fn spares_a_snapshot(&self) -> bool {
        self.merciful && self.testbed.daemon.is_some() && self.makes_a_snapshot()
    }

    fn makes_a_snapshot(&self) -> bool {
        let shims = Shim::all(&self.testbed.plan().base_dir());
        shims.iter().any(|shim| !shim.is_of_run())
    }

    /// Kills one, where there is one.
    fn kill_a_shim(&mut self) -> bool {
        let mut shims = Shim::all(&self.testbed.plan().base_dir());
        if !self.dice.percent(NO_MERCY_PERCENT) {
            shims.retain(Shim::is_of_run);
        }
        let Some(shim) = self.dice.pick(&shims) else { return false };
        let killed = shim.kill();
        if killed {
            self.killed.insert(shim.name());
        }
        self.counts.shim_kills += u64::from(killed);
        killed
    }

    async fn end_or_start_the_daemon(&mut self) -> Result<()> {
        match self.testbed.daemon.take() {
            Some(daemon) if self.dice.percent(20) => {
                daemon.stop().await?;
                self.counts.daemon_stops += 1;
            }
            Some(daemon) => {
                daemon.kill().await?;
                self.counts.daemon_kills += 1;
            }
            None => self.start_the_daemon().await?,
        }
        // Down for up to a few seconds. Up for an instant, or for long enough to have a snapshot made.
        let pause = match self.testbed.daemon {
            Some(_) if self.dice.percent(40) => self.dice.pause(100, 5_000),
            Some(_) if self.dice.percent(60) => self.dice.pause(5_000, 25_000),
            Some(_) => self.dice.pause(25_000, 90_000),
            None => self.dice.pause(0, 4_000),
        };
        self.due.daemon = Instant::now() + pause;
        Ok(())
    }

    async fn start_the_daemon(&mut self) -> Result<()> {
        self.merciful = !self.dice.percent(NO_MERCY_PERCENT);
        let upgrade = self.dice.percent(30);
        if upgrade {
            self.programs.swap(0, 1);
            self.counts.daemon_upgrades += 1;
        }
        // As `Restart=always` of the systemd unit does: a start may fail, say because QEMU does not answer in
        // time on a host that is this busy.
        for _ in 1..STARTS_MAX {
            match self.testbed.start_daemon_from(&self.programs[0]).await {
                Ok(()) => return Ok(()),
                Err(error) => {
                    self.counts.failed_starts += 1;
                    let last = format!("{error:#}");
                    let last = last.lines().last().unwrap_or_default().to_owned();
                    self.counts.remarks.push(format!("a daemon did not start: {last}"));
                }
            }
            tokio::time::sleep(RESTART_PAUSE).await;
        }
        self.testbed.start_daemon_from(&self.programs[0]).await
    }

    async fn calm(&mut self) -> Result<()> {
        self.testbed.sim.clear_faults();
        self.weather = "quiet";
        if self.testbed.daemon.is_none() {
            self.start_the_daemon().await?;
        }
        Ok(())
    }

    /// Looks what became of the jobs, and whether anything is left of them.
    async fn settle(&mut self) -> Result<()> {
        self.calm().await?;
        for task in &self.tasks {
            let counts = &mut self.counts;
            match task.fate(&self.testbed.sim, &self.killed)? {
                Fate::Done => {}
                Fate::ShimKilled => counts.shim_killed_jobs += 1,
                Fate::Lost => {
                    counts.lost += 1;
                    counts.troubles.push(format!("{} is not over", task.name()));
                }
                Fate::Killed(how) => {
                    counts.killed += 1;
                    counts.troubles.push(how);
                }
                Fate::RunTwice(times) => {
                    counts.run_twice += 1;
                    counts.troubles.push(format!("{} began {times} times", task.name()));
                }
            }
        }
        let idle =
            |status: &forrest_daemon::control::Status| status.view.runs.is_empty().then_some(());
        if let Err(error) = self.testbed.wait(REST, "the end of all runs", idle).await {
            self.counts.troubles.push(format!("{error:#}"));
            self.counts.left_over += 1;
        }
        for runner in self.testbed.sim.runners() {
            self.counts.left_over += 1;
            self.counts.troubles.push(format!("the runner {} is left over", runner.name));
        }
        let mut disks = Vec::new();
        find_images(&self.testbed.plan().base_dir().join("runs"), &mut disks);
        for disk in disks {
            self.counts.left_over += 1;
            self.counts.troubles.push(format!("{} is left over", disk.display()));
        }
        Ok(())
    }
}

fn find_images(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            find_images(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "img") {
            found.push(path);
        }
    }
}
