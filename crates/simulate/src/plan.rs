//! What a seed stands for: machine types, workload, and which faults happen how often.
//!
//! Each kind of fault is present in about half of all days only. Days without it make sure that
//! other faults are not hidden behind it.

use std::collections::BTreeMap;
use std::time::Duration;

use forrest_core::model::{Bytes, MachineType, MachineTypeName};
use forrest_core::{Capacity, Policy, Timing};

use crate::random::Random;

/// A second, in the simulation's unit of time.
pub const SECOND: u64 = 1_000;
/// A minute.
pub const MINUTE: u64 = 60 * SECOND;
/// An hour.
pub const HOUR: u64 = 60 * MINUTE;
/// A day.
pub const DAY: u64 = 24 * HOUR;

/// A seed's day.
#[derive(Debug, Clone)]
pub struct Plan {
    /// How long the faults go on, in milliseconds.
    pub length: u64,
    /// The configuration that the day begins and ends with.
    pub policy: Policy,
    /// Every machine type; jobs name them by their place here.
    pub machines: Vec<MachineType>,
    /// The host's disk space for runs and images.
    pub disk: Bytes,
    /// Workflow runs that arrive during the day.
    pub workflows: u32,
    /// How often the daemon measures the disk, in milliseconds.
    pub measure_every: u64,
    /// How far the host's clock is off from the beginning, in milliseconds.
    pub clock_off: i64,
    /// Whether GitHub calls a job that is assigned and not taken yet "in progress".
    pub assigned_is_in_progress: bool,
    /// What goes wrong.
    pub faults: Faults,
}

/// How often what goes wrong: shares from 0 to 1 of the occasions, or numbers per day.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// Webhooks that GitHub never sends.
    pub webhook_lost: f64,
    /// Webhooks whose delivery fails; GitHub keeps those for redelivery.
    pub webhook_failed: f64,
    /// Webhooks that are sent twice.
    pub webhook_doubled: f64,
    /// Webhooks that come minutes or hours late, and so out of order.
    pub webhook_late: f64,
    /// Windows per day in which GitHub's API is down, slow, limits requests (all of them, or those that
    /// change something), or refuses the token of one owner.
    pub api_windows: u64,
    /// Requests that fail at other times.
    pub api_failed: f64,
    /// Requests that take effect and whose answer is lost.
    pub api_answer_lost: f64,
    /// Requests that take effect only after they were given up.
    pub api_late: f64,
    /// Lists that miss a runner.
    pub list_incomplete: f64,
    /// Idle runners that GitHub forgets or that somebody removes.
    pub runner_removed: f64,
    /// Assigned jobs that their runner does not take.
    pub not_taken: f64,
    /// Jobs that are cancelled.
    pub cancelled: f64,
    /// Jobs that another host's runner takes.
    pub elsewhere: f64,
    /// Of those, jobs whose runner has the name of one of this host's runners for another repository.
    pub namesake: f64,
    /// Webhooks that somebody has recorded and sends again, per day.
    pub replayed: u64,
    /// Jobs that wait for an approval.
    pub gated: f64,
    /// Jobs that are deleted, with their workflow run, while they wait.
    pub deleted: f64,
    /// Jobs that are run again afterwards.
    pub rerun: f64,
    /// Guests that never become ready.
    pub boot_silent: f64,
    /// Guests that panic, reboot or power off while they boot.
    pub boot_ends: f64,
    /// Virtual machines that cannot be started.
    pub start_failed: f64,
    /// Promoted images whose guests never become ready.
    pub image_broken: f64,
    /// Guests that hang when they shut down.
    pub hangs: f64,
    /// Of those, guests that do not hear their power button.
    pub deaf: f64,
    /// Guests that panic, reboot or power off in the middle of a job.
    pub job_ends_guest: f64,
    /// QEMU processes killed per day.
    pub qemu_killed: u64,
    /// Supervisors killed per day.
    pub shim_killed: u64,
    /// Daemons killed per day, at any time.
    pub crashes: u64,
    /// Daemons killed between two commands.
    pub crash_between: f64,
    /// Windows per day in which the disk is full.
    pub disk_full: u64,
    /// Windows per day in which nothing on the disk can be read or written.
    pub disk_broken: u64,
    /// Disk operations that fail at other times.
    pub disk_failed: f64,
    /// Runs that cannot be restored from the snapshot that fits them.
    pub restore_failed: f64,
    /// Builds of snapshots that never come to an end by themselves.
    pub build_hangs: f64,
    /// Disks with the right token that the configuration does not let become an image.
    pub refused: f64,
    /// Guests that complain without end.
    pub complains: f64,
    /// Jumps of the clock per day.
    pub clock_jumps: u64,
    /// Changes of the configuration per day.
    pub changes: u64,
    /// Interventions of the operator per day.
    pub operator: u64,
}

fn machine_type(name: MachineTypeName, random: &mut Random) -> MachineType {
    let labels = ["self-hosted", "forrest", name.machine(), "linux", "x64"].into_iter().collect();
    MachineType {
        name,
        labels,
        base_machine: None,
        ram: Bytes::gib(*random.pick(&[1, 2, 2, 4, 8])),
        cpus: *random.pick(&[1, 2, 4]),
        disk: Bytes::gib(*random.pick(&[10, 20, 40])),
        max_runs: random.chance(0.2).then(|| random.between(1, 4) as u32),
        boot_timeout: Duration::from_secs(*random.pick(&[60, 120, 300])),
        idle_timeout: Duration::from_secs(5 * 60),
        job_timeout: random.chance(0.2).then(|| Duration::from_secs(random.between(600, 3600))),
        snapshot: random.chance(0.3),
    }
}

/// Half of all clocks are right.
fn clock_skew(random: &mut Random) -> i64 {
    let by = random.spread(100, 12 * HOUR) as i64;
    *random.pick(&[0, 0, by, -by])
}

impl Plan {
    /// The day that this seed stands for. `days` scales its length. Weeks and years are thinner than
    /// days: what they show is what piles up.
    pub fn of(seed: u64, days: f64) -> Self {
        let mut random = Random::new(seed);
        let random = &mut random;
        let is_long = days > 5.0;
        let mut machines: Vec<MachineType> = Vec::new();
        for repository in 0..random.between(1, 3) {
            for machine in 0..random.between(1, 3) {
                let name = format!("o{repository}/r{repository}/m{machine}");
                let name = name.parse().unwrap_or_else(|_| unreachable!("a sound name"));
                machines.push(machine_type(name, random));
            }
        }
        for index in 1..machines.len() {
            if random.chance(0.3) {
                let base = machines[index - 1].name.clone();
                machines[index].base_machine = Some(base);
            }
        }
        let largest = machines.iter().map(|machine| machine.ram).max().unwrap_or_default();
        let ram = largest.max(Bytes::gib(*random.pick(&[4, 8, 16, 32])));
        let cpus = random.chance(0.3).then(|| random.between(4, 24) as u32);
        let capacity = Capacity { ram, cpus, min_free_disk: Bytes::gib(random.between(1, 20)) };
        let repositories = machines.iter().map(|machine| machine.name.repository().clone());
        let limited: Vec<_> = repositories.filter(|_| random.chance(0.2)).collect();
        let policy = Policy {
            capacity,
            machines: machines
                .iter()
                .map(|m| (m.name.clone(), m.clone()))
                .collect::<BTreeMap<_, _>>(),
            max_runs: limited.into_iter().map(|r| (r, random.between(1, 4) as u32)).collect(),
            timing: Timing {
                polling_interval: Duration::from_secs(if is_long { 60 * 60 } else { 15 * 60 }),
                ..Timing::default()
            },
        };
        let workflows = if is_long { random.spread(12, 16) } else { random.spread(8, 60) };
        Self {
            length: (DAY as f64 * days) as u64,
            disk: Bytes::gib(random.spread(100, 2000)),
            workflows: (workflows as f64 * days).max(1.0) as u32,
            measure_every: if is_long { 30 * MINUTE } else { MINUTE },
            clock_off: clock_skew(random),
            assigned_is_in_progress: random.chance(0.5),
            faults: if is_long { Faults::draw(random).thinned() } else { Faults::draw(random) },
            policy,
            machines,
        }
    }
}

impl Faults {
    /// The same with few webhooks missing: each one has GitHub asked every 30 seconds for an hour, which
    /// shows nothing new in a year and takes most of its time.
    fn thinned(self) -> Self {
        let few = |share: f64| share / 50.0;
        Self {
            webhook_lost: few(self.webhook_lost),
            webhook_failed: few(self.webhook_failed),
            webhook_late: few(self.webhook_late),
            ..self
        }
    }

    fn draw(random: &mut Random) -> Self {
        let share = |random: &mut Random, most: f64| {
            if random.chance(0.5) { most * random.between(1, 100) as f64 / 100.0 } else { 0.0 }
        };
        let number = |random: &mut Random, most: u64| {
            if random.chance(0.5) { random.spread(1, most) } else { 0 }
        };
        let most_lost = if random.chance(0.2) { 1.0 } else { 0.3 };
        Self {
            webhook_lost: share(random, most_lost),
            webhook_failed: share(random, 0.3),
            webhook_doubled: share(random, 0.3),
            webhook_late: share(random, 0.3),
            api_windows: number(random, 8),
            api_failed: share(random, 0.2),
            api_answer_lost: share(random, 0.1),
            api_late: share(random, 0.02),
            list_incomplete: share(random, 0.2),
            runner_removed: share(random, 0.1),
            not_taken: share(random, 0.1),
            cancelled: share(random, 0.2),
            elsewhere: share(random, 0.2),
            gated: share(random, 0.2),
            deleted: share(random, 0.05),
            rerun: share(random, 0.1),
            boot_silent: share(random, 0.2),
            boot_ends: share(random, 0.2),
            start_failed: share(random, 0.2),
            image_broken: share(random, 0.1),
            hangs: share(random, 0.2),
            deaf: share(random, 0.5),
            job_ends_guest: share(random, 0.1),
            qemu_killed: number(random, 8),
            shim_killed: number(random, 8),
            crashes: number(random, 12),
            crash_between: share(random, 0.02),
            disk_full: number(random, 3),
            disk_broken: number(random, 2),
            disk_failed: share(random, 0.05),
            restore_failed: share(random, 0.3),
            build_hangs: share(random, 0.2),
            refused: share(random, 0.1),
            complains: share(random, 0.1),
            clock_jumps: number(random, 6),
            changes: number(random, 8),
            operator: number(random, 8),
            namesake: share(random, 0.5),
            replayed: number(random, 100),
        }
    }
}
