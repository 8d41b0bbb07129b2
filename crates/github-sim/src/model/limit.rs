//! The hourly request budget of each App and installation.

use std::collections::BTreeMap;
use std::time::Duration;

use super::ids::{AppId, InstallationId};
use super::time::Moment;

const WINDOW: Duration = Duration::from_secs(3600);

/// Whose budget it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Payer {
    App(AppId),
    Installation(InstallationId),
    Anonymous,
}

/// A budget as the headers and `GET /rate_limit` show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Budget {
    pub(crate) limit: u64,
    pub(crate) used: u64,
    /// Seconds since the Unix epoch.
    pub(crate) reset: u64,
}

impl Budget {
    pub(crate) const fn remaining(&self) -> u64 {
        self.limit.saturating_sub(self.used)
    }
}

/// What each payer used in its current hour.
#[derive(Debug, Default)]
pub(crate) struct Limits {
    windows: BTreeMap<Payer, (Moment, u64)>,
}

impl Limits {
    /// The payer's budget, with `cost` taken from it.
    pub(crate) fn charge(&mut self, payer: Payer, limit: u64, cost: u64, now: Moment) -> Budget {
        let window = self.windows.entry(payer).or_insert((now, 0));
        if now.since(window.0) >= WINDOW {
            *window = (now, 0);
        }
        window.1 = window.1.saturating_add(cost);
        Budget { limit, used: window.1.min(limit), reset: window.0.after(WINDOW).secs() }
    }

    /// Whether the payer has nothing left.
    pub(crate) fn is_exhausted(&mut self, payer: Payer, limit: u64, now: Moment) -> bool {
        self.charge(payer, limit, 0, now).remaining() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_lasts_an_hour() {
        let mut limits = Limits::default();
        let start = Moment(1_000_000_000_000);
        for left in (0..3).rev() {
            assert_eq!(limits.charge(Payer::Anonymous, 3, 1, start).remaining(), left);
        }
        assert!(limits.is_exhausted(Payer::Anonymous, 3, start));
        assert!(!limits.is_exhausted(Payer::App(AppId(1)), 3, start));
        let later = start.after(WINDOW);
        assert!(!limits.is_exhausted(Payer::Anonymous, 3, later));
    }
}
