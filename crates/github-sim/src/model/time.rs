//! Points in time, handed in from outside, and their spellings in GitHub's API.

use std::time::Duration;

use serde::{Serialize, Serializer};

/// A point in time: microseconds since the Unix epoch, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Moment(pub u64);

impl Moment {
    /// Seconds since the Unix epoch, with fractions.
    pub fn as_secs_f64(self) -> f64 {
        // Exact to the microsecond until the year 2255.
        self.0 as f64 / 1e6
    }

    /// Whole seconds since the Unix epoch.
    pub const fn secs(self) -> u64 {
        self.0 / 1_000_000
    }

    /// How long `earlier` lies back; zero when it lies ahead.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }

    /// The moment `duration` later; saturates.
    pub fn after(self, duration: Duration) -> Self {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(micros))
    }

    /// This moment on a clock that goes wrong by `seconds`.
    pub const fn skewed(self, seconds: i64) -> Self {
        Self(self.0.saturating_add_signed(seconds.saturating_mul(1_000_000)))
    }

    /// As the API writes it: `2026-11-24T02:07:00Z`.
    pub fn iso(self) -> String {
        self.format("%Y-%m-%dT%H:%M:%SZ")
    }

    /// As job logs write it: `2026-11-24T02:07:00.123456Z`.
    pub(crate) fn iso_micros(self) -> String {
        format!("{}.{:06}Z", self.format("%Y-%m-%dT%H:%M:%S"), self.0 % 1_000_000)
    }

    /// As HTTP's `Date` header writes it.
    pub fn http_date(self) -> String {
        self.format("%a, %d %b %Y %H:%M:%S GMT")
    }

    fn format(self, format: &str) -> String {
        let micros = i64::try_from(self.0).unwrap_or(i64::MAX);
        jiff::Timestamp::from_microsecond(micros)
            .map_or_else(|_| "9999-12-31T23:59:59Z".to_owned(), |t| t.strftime(format).to_string())
    }

    /// Reads `2026-11-24T02:07:00Z` (any offset) or a bare date, which is its midnight, UTC.
    pub fn parse(text: &str) -> Option<Self> {
        let stamp = text.parse::<jiff::Timestamp>().ok().or_else(|| {
            format!("{text}T00:00:00Z").parse::<jiff::Timestamp>().ok().filter(|_| text.len() == 10)
        })?;
        u64::try_from(stamp.as_microsecond()).ok().map(Self)
    }
}

/// Serialised as seconds since the Unix epoch, with fractions.
impl Serialize for Moment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spellings_agree() {
        let moment = Moment(1_700_000_000_123_456);
        assert_eq!(moment.iso(), "2023-11-14T22:13:20Z");
        assert_eq!(moment.iso_micros(), "2023-11-14T22:13:20.123456Z");
        assert_eq!(moment.http_date(), "Tue, 14 Nov 2023 22:13:20 GMT");
        assert_eq!(Moment::parse("2023-11-14T22:13:20Z"), Some(Moment(1_700_000_000_000_000)));
        assert_eq!(Moment::parse("2023-11-14T23:13:20+01:00"), Moment::parse(&moment.iso()));
        assert_eq!(
            Moment::parse("2023-11-14").map(Moment::iso).as_deref(),
            Some("2023-11-14T00:00:00Z")
        );
        assert_eq!(Moment::parse("yesterday"), None);
        assert_eq!(moment.skewed(-60).since(moment), Duration::ZERO);
        assert_eq!(moment.since(moment.skewed(-60)), Duration::from_secs(60));
    }
}
