//! A few hundred days, as part of every test run. Longer campaigns: `make simulate SEEDS=n`.

use forrest_simulate::campaign::{Campaign, live};
use forrest_simulate::world::Tracing;

/// Seeds that every test run lives through.
const SEEDS: u64 = 300;

#[test]
fn every_promise_is_kept() {
    let campaign = Campaign { first_seed: 1, seeds: SEEDS, days: 1.0, threads: 2 };
    let summary = campaign.run(|_| {});
    assert_eq!(summary.failures, []);
    assert_eq!(summary.seeds, SEEDS);
    // The days are not empty.
    assert!(summary.jobs > SEEDS * 10 && summary.guests > SEEDS * 10, "{summary:?}");
    assert!(summary.promotions > SEEDS && summary.crashes > SEEDS, "{summary:?}");
}

#[test]
fn a_seed_lives_the_same_day_again() {
    for seed in 1..20 {
        assert_eq!(live(seed, 0.5, Tracing::Off), live(seed, 0.5, Tracing::Off));
    }
}

#[test]
fn telling_the_story_does_not_change_it() {
    for seed in 1..10 {
        let quiet = live(seed, 0.5, Tracing::Off);
        let told = live(seed, 0.5, Tracing::Tail);
        assert_eq!(quiet.tally, told.tally);
    }
}
