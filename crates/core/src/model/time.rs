//! Points in time, handed in from outside.

use std::ops::Add;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A point in time: milliseconds since the Unix epoch, UTC.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// The end of time: a deadline that never comes.
    pub const NEVER: Self = Self(u64::MAX);

    /// How long `earlier` lies back; zero when it lies ahead (clocks jump).
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// As long ago as this; the beginning of time where that lies further back.
    pub fn before(self, duration: Duration) -> Self {
        let ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self(self.0.saturating_sub(ms))
    }

    /// Seconds since the Unix epoch, with fractions.
    pub fn as_secs_f64(self) -> f64 {
        // Exact for the next 285,000 years.
        self.0 as f64 / 1000.0
    }
}

/// Saturates at [`Timestamp::NEVER`].
impl Add<Duration> for Timestamp {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        let ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_neither_overflows_nor_goes_below_its_beginning() {
        let at = Timestamp(90_500);
        assert_eq!(at.as_secs_f64(), 90.5);
        assert_eq!(at.before(Duration::from_secs(90)), Timestamp(500));
        assert_eq!(at.before(Duration::from_secs(91)), Timestamp(0));
        assert_eq!(at + Duration::MAX, Timestamp::NEVER);
        assert_eq!(at.since(Timestamp(90_000)), Duration::from_millis(500));
        assert_eq!(at.since(Timestamp::NEVER), Duration::ZERO);
    }
}
