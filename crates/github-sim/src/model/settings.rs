//! How this GitHub behaves: time limits, addresses, sizes. Fixed when the simulator starts.

use std::time::Duration;

/// GitHub's behaviour that tests and demos may want different. The defaults are GitHub's own where
/// those are known.
#[derive(Debug, Clone)]
pub struct Settings {
    /// A job that was given to a runner is queued again when the runner has not picked it up for
    /// this long. GitHub: 60 s.
    pub pickup_timeout: Duration,
    /// A job that nobody picked up for this long fails. GitHub: 24 h.
    pub queue_timeout: Duration,
    /// A job whose runner lost its connection fails after this long; the runner stays busy until
    /// then. GitHub: up to 15 min.
    pub lost_timeout: Duration,
    /// A cancelled job whose runner does not react is over after this long. GitHub: 5 min.
    pub cancel_timeout: Duration,
    /// A just-in-time runner without a connection is removed after this long. GitHub: a day.
    pub unconnected_timeout: Duration,
    /// A just-in-time runner that waited this long for a job is removed; `None`: never.
    pub idle_timeout: Option<Duration>,
    /// Whether a runner that is removed while it waits is told so. Real ones often are not and go
    /// on "listening".
    pub tell_removed_runners: bool,
    /// How long installation tokens live. GitHub: 1 h.
    pub token_lifetime: Duration,
    /// How long installation tokens are, in characters: 40 or, lately, about 520.
    pub token_length: usize,
    /// For how long a new token is refused (replication lag). Default: not at all.
    pub token_lag: Duration,
    /// Requests per hour and installation. GitHub: 5,000.
    pub rate_limit: u64,
    /// After how long the receiver of a webhook counts as dead. GitHub: 10 s.
    pub webhook_timeout: Duration,
    /// The base of API addresses in answers and payloads, without a slash at the end. Set by
    /// [`Sim::start`](crate::Sim::start) where it is empty.
    pub api_url: String,
    /// The base of the addresses that people visit. Set like `api_url`.
    pub html_url: String,
    /// Where runners connect to, without a slash at the end: differs from `api_url` when they sit in
    /// a VM. Set like `api_url`. Must be `http://HOST:PORT`; port 0 stands for the simulator's own.
    pub runner_url: String,
    /// Whether the request log keeps the answers too.
    pub record_responses: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            pickup_timeout: Duration::from_secs(60),
            queue_timeout: Duration::from_secs(24 * 3600),
            lost_timeout: Duration::from_secs(15 * 60),
            cancel_timeout: Duration::from_secs(5 * 60),
            unconnected_timeout: Duration::from_secs(24 * 3600),
            idle_timeout: None,
            tell_removed_runners: true,
            token_lifetime: Duration::from_secs(3600),
            token_length: 40,
            token_lag: Duration::ZERO,
            rate_limit: 5_000,
            webhook_timeout: Duration::from_secs(10),
            api_url: String::new(),
            html_url: String::new(),
            runner_url: String::new(),
            record_responses: false,
        }
    }
}
