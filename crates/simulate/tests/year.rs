//! A year of operation: the checker looks every three hours whether anything piles up in the core or on
//! the disk.

use forrest_core::sizes::DONE_JOBS_MAX;
use forrest_simulate::campaign::live;
use forrest_simulate::world::Tracing;

/// A seed whose daemon is never killed: whatever its core remembers, it remembers for a year.
const UNBROKEN: u64 = 10;
/// A seed whose daemon is killed now and then: what is left on the disk is found by another one.
const BROKEN: u64 = 2;

#[test]
fn nothing_piles_up_in_a_year() {
    let year = live(UNBROKEN, 365.0, Tracing::Off);
    assert_eq!(year.failure, None);
    // Long enough for what is kept to be full and to be forgotten.
    assert!(year.tally.jobs as usize > DONE_JOBS_MAX, "{:?}", year.tally);
    assert_eq!(year.tally.crashes, 0, "{:?}", year.tally);
}

#[test]
fn nothing_piles_up_over_many_daemons() {
    let quarter = live(BROKEN, 90.0, Tracing::Off);
    assert_eq!(quarter.failure, None);
    assert!(quarter.tally.crashes > 90, "{:?}", quarter.tally);
}
