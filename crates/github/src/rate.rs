//! GitHub's rate limits: what its headers say, and when nothing may be sent.
//!
//! Pure: time comes in as an argument. Follows GitHub's "Best practices for using the REST API" and
//! "Rate limits for the REST API".

use std::collections::VecDeque;
use std::time::Duration;

use forrest_core::model::Timestamp;

/// The shortest pause after a secondary limit that names no time of its own.
const PAUSE_MIN: Duration = Duration::from_secs(60);

/// The longest pause; a longer wish is cut to this. GitHub's windows last an hour.
const PAUSE_MAX: Duration = Duration::from_secs(2 * 3600);

/// The pause doubles at most this often: 60 s, 2, 4, 8, 16 min.
const DOUBLINGS_MAX: u32 = 4;

/// The name of the limit that most endpoints count against.
const CORE: &str = "core";

/// The most different limits that are kept apart for one credential.
const RESOURCES_MAX: usize = 8;

/// Which limit a request counts against, as far as it is known beforehand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resource {
    /// The ordinary hourly limit.
    Core,
    /// Registration of runners: on github.com a limit of its own. Which one is learnt from the
    /// first answer.
    Registration,
}

/// What an answer's headers say about limits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RateHeaders {
    /// `Retry-After`.
    pub(crate) retry_after: Option<Duration>,
    /// `x-ratelimit-resource`.
    pub(crate) resource: Option<String>,
    /// `x-ratelimit-limit`.
    pub(crate) limit: Option<u64>,
    /// `x-ratelimit-remaining`.
    pub(crate) remaining: Option<u64>,
    /// How far `x-ratelimit-reset` lies ahead, by GitHub's own clock.
    pub(crate) reset_in: Option<Duration>,
}

/// The state of one limit, for `forrest status` and `forrest doctor`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateLimit {
    /// GitHub's name of the limit, such as `core`.
    pub resource: String,
    /// Requests per window.
    pub limit: Option<u64>,
    /// Requests that are left in this window.
    pub remaining: Option<u64>,
    /// When the window ends, by this host's clock.
    pub reset: Option<Timestamp>,
}

/// The limits of one credential: the App itself or one installation.
#[derive(Debug, Default)]
pub(crate) struct RateLimits {
    known: Vec<RateLimit>,
    registration: Option<String>,
    paused_until: Option<Timestamp>,
    strikes: u32,
}

/// That nothing may be sent, why, and until when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Blocked {
    pub(crate) until: Timestamp,
    pub(crate) cause: String,
}

impl RateLimits {
    /// Whether a request may be sent at `now`.
    pub(crate) fn check(&self, now: Timestamp, resource: Resource) -> Result<(), Blocked> {
        if let Some(until) = self.paused_until
            && now < until
        {
            let cause = "GitHub asked for a pause".to_owned();
            return Err(Blocked { until, cause });
        }
        let name = self.name_of(resource);
        match self.known.iter().find(|limit| limit.resource == name) {
            Some(RateLimit { remaining: Some(0), reset: Some(until), limit, .. })
                if now < *until =>
            {
                Err(Blocked { until: *until, cause: used_up(name, *limit) })
            }
            _ => Ok(()),
        }
    }

    /// Takes in an answer. Returns when to go on if the answer itself is a refusal because of a limit.
    ///
    /// `says_so`: whether the answer's text speaks of a rate limit.
    pub(crate) fn answered(
        &mut self,
        now: Timestamp,
        resource: Resource,
        status: u16,
        says_so: bool,
        headers: &RateHeaders,
    ) -> Option<Blocked> {
        self.learn(now, resource, headers);
        let out = headers.remaining == Some(0);
        let limited =
            status == 429 || status == 403 && (headers.retry_after.is_some() || out || says_so);
        if !limited {
            if (200..400).contains(&status) {
                self.strikes = 0;
            }
            return None;
        }
        if let Some(wait) = headers.retry_after {
            return Some(self.pause(now, wait, "GitHub asked for a pause (Retry-After)"));
        }
        if let (true, Some(wait)) = (out, headers.reset_in) {
            // The window's end is already noted for this limit alone.
            let until = now + bounded(wait);
            return Some(Blocked { until, cause: used_up(self.name_of(resource), headers.limit) });
        }
        let wait = PAUSE_MIN * 2u32.pow(self.strikes.min(DOUBLINGS_MAX));
        self.strikes = self.strikes.saturating_add(1);
        Some(self.pause(now, wait, "GitHub's limit on bursts is hit"))
    }

    /// Every limit that GitHub has told us of.
    pub(crate) fn known(&self) -> &[RateLimit] {
        &self.known
    }

    fn pause(&mut self, now: Timestamp, wait: Duration, cause: &str) -> Blocked {
        let until = now + bounded(wait);
        // A later answer to an earlier request must not shorten a pause.
        let until = self.paused_until.map_or(until, |earlier| earlier.max(until));
        self.paused_until = Some(until);
        Blocked { until, cause: cause.to_owned() }
    }

    fn learn(&mut self, now: Timestamp, resource: Resource, headers: &RateHeaders) {
        if headers.remaining.is_none() {
            return;
        }
        let name = match &headers.resource {
            Some(name) => name.clone(),
            None => self.name_of(resource).to_owned(),
        };
        if resource == Resource::Registration {
            self.registration = Some(name.clone());
        }
        let limit = RateLimit {
            resource: name,
            limit: headers.limit,
            remaining: headers.remaining,
            reset: headers.reset_in.map(|wait| now + bounded(wait)),
        };
        if let Some(known) = self.known.iter_mut().find(|k| k.resource == limit.resource) {
            *known = limit;
        } else if self.known.len() < RESOURCES_MAX {
            self.known.push(limit);
        }
    }

    fn name_of(&self, resource: Resource) -> &str {
        match resource {
            Resource::Core => CORE,
            Resource::Registration => self.registration.as_deref().unwrap_or(CORE),
        }
    }
}

fn used_up(name: &str, limit: Option<u64>) -> String {
    match limit {
        Some(limit) => format!("GitHub's limit {name:?} of {limit} requests is used up"),
        None => format!("GitHub's limit {name:?} is used up"),
    }
}

/// At least a second, so that nobody spins, and never longer than [`PAUSE_MAX`].
fn bounded(wait: Duration) -> Duration {
    wait.clamp(Duration::from_secs(1), PAUSE_MAX)
}

/// Keeps the rate of requests that change something below a limit per minute, without making anybody
/// wait who is below it.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// At most one entry per request of the last minute, so at most the limit.
    sent: VecDeque<Timestamp>,
}

impl Pace {
    const WINDOW: Duration = Duration::from_secs(60);

    /// Counts one request at `now`, unless `per_minute` of them were sent in the last minute; then
    /// says when the next one may go.
    pub(crate) fn take(&mut self, now: Timestamp, per_minute: u32) -> Result<(), Blocked> {
        while let Some(first) = self.sent.front()
            // A clock that went back must not hold anybody up.
            && (now.since(*first) >= Self::WINDOW || *first > now)
        {
            self.sent.pop_front();
        }
        match self.sent.front() {
            Some(first) if self.sent.len() >= per_minute as usize => Err(Blocked {
                until: *first + Self::WINDOW,
                cause: format!("{per_minute} changes a minute is as much as GitHub likes"),
            }),
            _ => {
                self.sent.push_back(now);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000_000);

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn blocked_for(limits: &RateLimits, resource: Resource) -> Option<Duration> {
        limits.check(NOW, resource).err().map(|blocked| blocked.until.since(NOW))
    }

    #[test]
    fn retry_after_comes_first() {
        let mut limits = RateLimits::default();
        let headers = RateHeaders {
            retry_after: Some(secs(7)),
            remaining: Some(0),
            reset_in: Some(secs(900)),
            ..RateHeaders::default()
        };
        let blocked = limits.answered(NOW, Resource::Core, 429, false, &headers);
        assert_eq!(blocked.map(|b| b.until), Some(NOW + secs(7)));
    }

    #[test]
    fn a_used_up_limit_lasts_until_its_reset() {
        let mut limits = RateLimits::default();
        let headers = RateHeaders {
            limit: Some(5000),
            remaining: Some(0),
            reset_in: Some(secs(900)),
            ..RateHeaders::default()
        };
        assert_eq!(limits.answered(NOW, Resource::Core, 200, false, &headers), None);
        assert_eq!(blocked_for(&limits, Resource::Core), Some(secs(900)));
        assert!(limits.check(NOW + secs(900), Resource::Core).is_ok());
        let refused = limits.answered(NOW, Resource::Core, 403, false, &headers);
        assert_eq!(refused.map(|b| b.until), Some(NOW + secs(900)));
    }

    #[test]
    fn bursts_pause_a_minute_at_least_and_double() {
        let mut limits = RateLimits::default();
        let mut pauses = Vec::new();
        let mut now = NOW;
        for _ in 0..7 {
            let blocked = limits
                .answered(now, Resource::Core, 403, true, &RateHeaders::default())
                .expect("a refusal");
            pauses.push(blocked.until.since(now).as_secs());
            now = blocked.until;
        }
        assert_eq!(pauses, [60, 120, 240, 480, 960, 960, 960]);
        assert_eq!(limits.answered(now, Resource::Core, 200, false, &RateHeaders::default()), None);
        let again = limits.answered(now, Resource::Core, 429, false, &RateHeaders::default());
        assert_eq!(again.map(|b| b.until), Some(now + secs(60)), "success starts over");
    }

    #[test]
    fn a_plain_403_is_no_limit() {
        let mut limits = RateLimits::default();
        let headers = RateHeaders { remaining: Some(4000), ..RateHeaders::default() };
        assert_eq!(limits.answered(NOW, Resource::Core, 403, false, &headers), None);
        assert_eq!(blocked_for(&limits, Resource::Core), None);
    }

    #[test]
    fn registrations_have_their_own_limit_where_github_says_so() {
        let mut limits = RateLimits::default();
        let core = RateHeaders {
            remaining: Some(0),
            reset_in: Some(secs(900)),
            resource: Some("core".to_owned()),
            ..RateHeaders::default()
        };
        limits.answered(NOW, Resource::Core, 200, false, &core);
        assert!(blocked_for(&limits, Resource::Registration).is_some(), "not known yet");
        let own = RateHeaders {
            remaining: Some(9),
            resource: Some("actions_runner_registration".to_owned()),
            ..RateHeaders::default()
        };
        limits.answered(NOW, Resource::Registration, 201, false, &own);
        assert_eq!(blocked_for(&limits, Resource::Registration), None);
        assert!(blocked_for(&limits, Resource::Core).is_some());
    }

    #[test]
    fn a_pause_is_never_shortened_nor_endless() {
        let mut limits = RateLimits::default();
        let ask = |seconds| RateHeaders { retry_after: Some(secs(seconds)), ..Default::default() };
        limits.answered(NOW, Resource::Core, 429, false, &ask(1_000_000));
        limits.answered(NOW, Resource::Core, 429, false, &ask(0));
        assert_eq!(blocked_for(&limits, Resource::Core), Some(PAUSE_MAX));
    }

    #[test]
    fn the_pace_lets_bursts_through_and_then_waits() {
        let mut pace = Pace::default();
        for n in 0..3 {
            assert_eq!(pace.take(NOW + secs(n), 3), Ok(()));
        }
        let blocked = pace.take(NOW + secs(10), 3).expect_err("the fourth within a minute");
        assert_eq!(blocked.until, NOW + secs(60));
        assert_eq!(pace.take(NOW + secs(60), 3), Ok(()));
        assert_eq!(pace.take(Timestamp(5), 3), Ok(()), "the clock went back");
        assert!(pace.sent.len() <= 3);
    }
}
