//! Faults: what goes wrong on purpose, decided by a seed.

use serde::{Deserialize, Serialize};

use super::random::Random;

/// How often a fault strikes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// Every time.
    Always,
    /// The next so many times.
    Next(u32),
    /// With this probability, 0 to 1, each time.
    Probability(f64),
}

impl When {
    /// Whether it strikes now; counts it.
    fn strikes(&mut self, random: &mut Random) -> bool {
        match self {
            Self::Always => true,
            Self::Next(0) => false,
            Self::Next(left) => {
                *left -= 1;
                true
            }
            Self::Probability(p) => random.happens(*p),
        }
    }

    const fn is_over(&self) -> bool {
        matches!(self, Self::Next(0))
    }
}

/// What goes wrong with a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "effect", rename_all = "snake_case")]
pub enum ApiEffect {
    /// This status instead of an answer; nothing happens.
    Status {
        /// The status, 400 to 599.
        status: u16,
    },
    /// No answer, ever; nothing happens.
    Hang,
    /// Everything as usual, but late.
    Slow {
        /// By how many milliseconds.
        ms: u64,
    },
    /// The request takes effect and the connection breaks before the answer.
    LoseResponse,
    /// The request takes effect and the answer is cut off in the middle of its JSON.
    MalformedJson,
    /// 403 with `x-ratelimit-remaining: 0`.
    PrimaryLimit {
        /// Until the limit is lifted, in seconds.
        reset_s: u64,
    },
    /// 403 with the text of the secondary limits.
    SecondaryLimit {
        /// The `Retry-After` header, in seconds.
        retry_after_s: Option<u64>,
    },
    /// 401 as for a token that is not valid (any more).
    RefuseToken,
}

/// A fault of the API.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ApiFault {
    /// Which operation, by GitHub's operation id (`actions/delete-self-hosted-runner-from-repo`);
    /// `*` for all.
    pub operation: String,
    /// What happens.
    #[serde(flatten)]
    pub effect: ApiEffect,
    /// How often.
    pub when: When,
}

/// What goes wrong with a webhook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "effect", rename_all = "snake_case")]
pub enum WebhookEffect {
    /// The attempt fails; the delivery log says so, and a redelivery is possible.
    Drop,
    /// It is never attempted and never logged.
    Forget,
    /// It comes late.
    Delay {
        /// By at least so many milliseconds.
        min_ms: u64,
        /// By at most so many.
        max_ms: u64,
    },
    /// It comes twice, with the same delivery id.
    Double,
    /// It comes after the next one (or after a second, when there is no next one).
    Reorder,
}

/// A fault of webhooks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WebhookFault {
    /// Which action of `workflow_job` (`queued`, `completed`, …), or event (`ping`); `*` for all.
    #[serde(default = "every")]
    pub action: String,
    /// What happens.
    #[serde(flatten)]
    pub effect: WebhookEffect,
    /// How often.
    pub when: When,
}

fn every() -> String {
    "*".to_owned()
}

impl ApiFault {
    /// A fault of one operation, or of all (`*`).
    pub fn new(operation: &str, effect: ApiEffect, when: When) -> Self {
        Self { operation: operation.to_owned(), effect, when }
    }
}

impl WebhookFault {
    /// A fault of webhooks with this action, or of all (`*`).
    pub fn new(action: &str, effect: WebhookEffect, when: When) -> Self {
        Self { action: action.to_owned(), effect, when }
    }
}

/// The faults in force. The first one that fits and strikes decides.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// Of the API.
    pub api: Vec<ApiFault>,
    /// Of webhooks.
    pub webhooks: Vec<WebhookFault>,
    /// How far the API's clock is ahead, in seconds (negative: behind). Shows in `Date`, decides on
    /// the App's tokens.
    pub clock_skew_s: i64,
}

/// The most faults of a kind in force; more are ignored.
pub const MAX_FAULTS: usize = 1_000;

impl Faults {
    /// Adds those of `more`; its clock replaces this one's where it is not zero.
    pub fn add(&mut self, more: Self) {
        self.api.extend(more.api);
        self.webhooks.extend(more.webhooks);
        self.api.truncate(MAX_FAULTS);
        self.webhooks.truncate(MAX_FAULTS);
        if more.clock_skew_s != 0 {
            self.clock_skew_s = more.clock_skew_s;
        }
    }

    pub(crate) fn for_request(
        &mut self,
        operation: &str,
        random: &mut Random,
    ) -> Option<ApiEffect> {
        let struck = self
            .api
            .iter_mut()
            .filter(|fault| fault.operation == "*" || fault.operation == operation)
            .find_map(|fault| fault.when.strikes(random).then(|| fault.effect.clone()));
        self.api.retain(|fault| !fault.when.is_over());
        struck
    }

    pub(crate) fn for_webhook(
        &mut self,
        event: &str,
        action: Option<&str>,
        random: &mut Random,
    ) -> Option<WebhookEffect> {
        let struck = self
            .webhooks
            .iter_mut()
            .filter(|fault| {
                fault.action == "*" || fault.action == event || Some(&*fault.action) == action
            })
            .find_map(|fault| fault.when.strikes(random).then(|| fault.effect.clone()));
        self.webhooks.retain(|fault| !fault.when.is_over());
        struck
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counted_fault_ends() {
        let mut faults = Faults::default();
        faults.api.push(ApiFault::new("x", ApiEffect::Hang, When::Next(2)));
        let random = &mut Random::new(0);
        assert_eq!(faults.for_request("y", random), None);
        assert_eq!(faults.for_request("x", random), Some(ApiEffect::Hang));
        assert_eq!(faults.for_request("x", random), Some(ApiEffect::Hang));
        assert_eq!(faults.for_request("x", random), None);
        assert!(faults.api.is_empty());
    }

    #[test]
    fn faults_read_as_documented() {
        let faults: Faults = serde_json::from_str(
            r#"{"api": [{"operation": "*", "effect": "slow", "ms": 5, "when": "always"}],
                "webhooks": [{"effect": "drop", "when": {"next": 1}},
                             {"action": "queued", "effect": "delay", "min_ms": 1, "max_ms": 2,
                              "when": {"probability": 0.5}}]}"#,
        )
        .expect("sound");
        assert_eq!(faults.api[0].effect, ApiEffect::Slow { ms: 5 });
        assert_eq!(faults.webhooks[0].action, "*");
    }
}
