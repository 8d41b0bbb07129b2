//! GitHub's clock and ours: points in time as GitHub writes them, and how far the two are apart.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use forrest_core::model::Timestamp;

/// Below this difference the two clocks count as equal: `Date` has whole seconds and the way to
/// GitHub takes time too.
pub(crate) const SKEW_TOLERATED: Duration = Duration::from_secs(30);

/// This host's time.
pub(crate) fn now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}

/// Reads an RFC 3339 time with any offset; `None` for what is none or lies before 1970.
pub(crate) fn rfc3339(text: &str) -> Option<Timestamp> {
    let time: jiff::Timestamp = text.parse().ok()?;
    u64::try_from(time.as_millisecond()).ok().map(Timestamp)
}

/// Reads a `Date` header (IMF-fixdate).
pub(crate) fn http_date(text: &str) -> Option<Timestamp> {
    let time = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    u64::try_from(time.as_millisecond()).ok().map(Timestamp)
}

/// How far GitHub's clock is ahead of ours.
///
/// Two values: what was last seen, and what signing uses. The second one follows only after GitHub
/// refused a signature, so that a proxy with a wrong `Date` cannot break what works.
#[derive(Debug, Default)]
pub(crate) struct Skew {
    seen_ms: AtomicI64,
    used_ms: AtomicI64,
}

impl Skew {
    /// Notes GitHub's time at `now`.
    pub(crate) fn saw(&self, now: Timestamp, github: Timestamp) {
        self.seen_ms.store(difference_ms(github, now), Ordering::Relaxed);
    }

    /// GitHub's time as far as we know it.
    pub(crate) fn github_now(&self) -> Timestamp {
        shift(now(), self.seen_ms.load(Ordering::Relaxed))
    }

    /// The time that signatures are made with, given this host's time.
    pub(crate) fn signing_time(&self, now: Timestamp) -> Timestamp {
        shift(now, self.used_ms.load(Ordering::Relaxed))
    }

    /// After a refused signature: signs with GitHub's time from now on, if it differs from what was
    /// used. Returns whether it does, which makes a second attempt worthwhile.
    pub(crate) fn correct(&self) -> bool {
        let seen = self.seen_ms.load(Ordering::Relaxed);
        let used = self.used_ms.swap(seen, Ordering::Relaxed);
        u128::from(seen.abs_diff(used)) > SKEW_TOLERATED.as_millis()
    }

    /// How many whole seconds GitHub's clock is ahead of this host's, as last seen.
    pub(crate) fn seconds(&self) -> i64 {
        self.seen_ms.load(Ordering::Relaxed) / 1000
    }
}

fn difference_ms(a: Timestamp, b: Timestamp) -> i64 {
    let size = i64::try_from(a.0.abs_diff(b.0)).unwrap_or(i64::MAX);
    if a >= b { size } else { -size }
}

fn shift(time: Timestamp, by_ms: i64) -> Timestamp {
    Timestamp(time.0.saturating_add_signed(by_ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_github_writes_them() {
        assert_eq!(rfc3339("2020-01-22T12:13:35.123-08:00"), Some(Timestamp(1_579_724_015_123)));
        assert_eq!(rfc3339("2016-07-11T22:14:10Z"), Some(Timestamp(1_468_275_250_000)));
        assert_eq!(http_date("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Timestamp(1_445_412_480_000)));
        assert_eq!(rfc3339("yesterday"), None);
        assert_eq!(http_date("Thu, 01 Jan 2026 00:00:00 GMT"), rfc3339("2026-01-01T00:00:00Z"));
        assert_eq!(http_date("yesterday"), None);
    }

    #[test]
    fn a_wrong_clock_is_corrected_once() {
        let skew = Skew::default();
        let now = Timestamp(1_000_000_000);
        skew.saw(now, Timestamp(1_000_600_000));
        assert_eq!(skew.signing_time(now), now, "signing follows only a refusal");
        assert!(skew.correct());
        assert_eq!(skew.signing_time(now), Timestamp(1_000_600_000));
        assert!(!skew.correct(), "a second refusal has another reason");
    }

    #[test]
    fn a_second_of_difference_is_no_reason_to_try_again() {
        let skew = Skew::default();
        skew.saw(Timestamp(5_000), Timestamp(4_000));
        assert!(!skew.correct());
    }
}
