//! Many seeds, one after the other, on a few threads.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::world::{Failure, Tally, Tracing, World};

/// Threads that a campaign uses at most: others work on the same machine.
pub const THREADS_MAX: usize = 2;
/// Failures after which a campaign gives up.
pub const FAILURES_MAX: usize = 10;

/// Which seeds to live through.
#[derive(Debug, Clone, Copy)]
pub struct Campaign {
    /// The first one.
    pub first_seed: u64,
    /// How many.
    pub seeds: u64,
    /// How long each one's faults go on, in days.
    pub days: f64,
    /// Threads, at most [`THREADS_MAX`].
    pub threads: usize,
}

/// How one seed's day went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// What happened in numbers.
    pub tally: Tally,
    /// The promise that was broken, if one was.
    pub failure: Option<Failure>,
}

/// How a campaign went.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Summary {
    /// Seeds that were lived through.
    pub seeds: u64,
    /// The first one.
    pub first_seed: u64,
    /// Seeds whose day broke a promise, with which one, in order.
    pub failures: Vec<(u64, String)>,
    /// Seconds that it took.
    pub seconds: f64,
    /// Seeds a second.
    pub seeds_per_s: f64,
    /// Events that the core took in.
    pub events: u64,
    /// Commands that it gave.
    pub commands: u64,
    /// Jobs that were served.
    pub jobs: u64,
    /// Virtual machines that were started.
    pub guests: u64,
    /// Images that were promoted.
    pub promotions: u64,
    /// Daemons that were killed.
    pub crashes: u64,
    /// The longest time from the end of the faults until all jobs were served, beside the jobs' own,
    /// in seconds.
    pub served_s_max: u64,
    /// The longest time from the end of the faults to rest, in seconds.
    pub rest_s_max: u64,
}

/// Lives through one seed.
pub fn live(seed: u64, days: f64, tracing: Tracing) -> Outcome {
    let (tally, result) = World::new(seed, days, tracing).live();
    Outcome { seed, tally, failure: result.err() }
}

impl Campaign {
    /// Lives through all seeds, or until [`FAILURES_MAX`] of them failed. `progress` is called with
    /// the number of seeds that are done.
    pub fn run(&self, mut progress: impl FnMut(u64)) -> Summary {
        let began = Instant::now();
        let next = AtomicU64::new(0);
        let failed = AtomicU64::new(0);
        let (sender, outcomes) = mpsc::channel();
        let mut summary = Summary { first_seed: self.first_seed, ..Summary::default() };
        std::thread::scope(|scope| {
            for _ in 0..self.threads.clamp(1, THREADS_MAX) {
                let (sender, next, failed) = (sender.clone(), &next, &failed);
                scope.spawn(move || {
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        let enough = failed.load(Ordering::Relaxed) >= FAILURES_MAX as u64;
                        if index >= self.seeds || enough {
                            return;
                        }
                        let outcome = live(self.first_seed + index, self.days, Tracing::Off);
                        if outcome.failure.is_some() {
                            failed.fetch_add(1, Ordering::Relaxed);
                        }
                        if sender.send(outcome).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(sender);
            for outcome in outcomes {
                summary.add(outcome);
                progress(summary.seeds);
            }
        });
        summary.finish(began.elapsed());
        summary
    }
}

impl Summary {
    fn add(&mut self, outcome: Outcome) {
        let Outcome { seed, tally, failure } = outcome;
        self.seeds += 1;
        self.events += tally.events;
        self.commands += tally.commands;
        self.jobs += tally.jobs;
        self.guests += tally.guests;
        self.promotions += tally.promotions;
        self.crashes += tally.crashes;
        self.served_s_max = self.served_s_max.max(tally.served / 1000);
        self.rest_s_max = self.rest_s_max.max(tally.rest / 1000);
        self.failures.extend(failure.map(|failure| (seed, failure.what)));
    }

    fn finish(&mut self, took: Duration) {
        self.failures.sort();
        self.seconds = took.as_secs_f64();
        self.seeds_per_s = self.seeds as f64 / self.seconds.max(1e-9);
    }
}
