//! Webhook deliveries that did not arrive, and asking for them again.

use std::collections::BTreeMap;
use std::time::Duration;

use forrest_core::model::Timestamp;
use reqwest::{Method, Url};

use crate::client::{Call, GitHub, Target};
use crate::transport::Effect;
use crate::wire::WireDelivery;
use crate::{GitHubError, clock};

/// The most pages of 100 deliveries that one search reads.
const PAGES_MAX: usize = 50;

/// How long GitHub lets a delivery be repeated.
pub const REDELIVERY_WINDOW: Duration = Duration::from_secs(3 * 24 * 3600);

/// GitHub's id of one attempt at a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeliveryId(pub u64);

/// One attempt at a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookDelivery {
    /// The attempt's id.
    pub id: DeliveryId,
    /// The delivery's id, the same for all its attempts: `X-GitHub-Delivery`.
    pub guid: String,
    /// The event's name, such as `workflow_job`.
    pub event: String,
    /// The event's action, such as `queued`.
    pub action: Option<String>,
    /// When it was sent, by GitHub's clock.
    pub delivered_at: Option<Timestamp>,
    /// Whether somebody asked for it.
    pub redelivery: bool,
    /// Whether it was received.
    pub ok: bool,
}

/// Where to go on reading; opaque.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveryCursor(Url);

/// Some deliveries, the newest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveryPage {
    /// The attempts.
    pub deliveries: Vec<HookDelivery>,
    /// Where older ones are, if there are any.
    pub next: Option<DeliveryCursor>,
}

/// A delivery of which no attempt was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedDelivery {
    /// The delivery's id.
    pub guid: String,
    /// The newest attempt: the one to repeat.
    pub newest: DeliveryId,
    /// The event's name.
    pub event: String,
    /// The event's action.
    pub action: Option<String>,
    /// How often GitHub has tried.
    pub attempts: u32,
}

/// Which deliveries have failed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FailedDeliveries {
    /// One entry per delivery, the oldest first.
    pub failed: Vec<FailedDelivery>,
    /// Whether the whole window was read.
    pub complete: bool,
}

impl GitHub {
    /// Reads one page of the App's deliveries, the newest first; or the page that `cursor` names.
    ///
    /// # Errors
    /// As every request.
    pub async fn deliveries(
        &self,
        cursor: Option<&DeliveryCursor>,
    ) -> Result<DeliveryPage, GitHubError> {
        let target = match cursor {
            Some(DeliveryCursor(url)) => Target::Url(url.clone()),
            None => Target::Path("/app/hook/deliveries?per_page=100".to_owned()),
        };
        let call = Call { target, ..Call::get(String::new()) };
        let answer = self.call_as_app(&call).await?;
        let hint = "check that the App has a webhook (App settings, \"Webhook\")".to_owned();
        let answer = self.expect_success(&call, answer, Some(hint))?;
        let next = match &answer.next {
            Some(text) => Some(self.same_origin(text).map(DeliveryCursor).ok_or_else(|| {
                call.bad("its next page is at another address than github.api_url")
            })?),
            None => None,
        };
        let wire: Vec<WireDelivery> = call.parse(&answer.body)?;
        Ok(DeliveryPage { deliveries: wire.into_iter().map(HookDelivery::from).collect(), next })
    }

    /// Finds the `workflow_job` deliveries of the last `window` of which no attempt was received.
    ///
    /// # Errors
    /// As every request.
    pub async fn failed_delivery_guids(
        &self,
        window: Duration,
    ) -> Result<FailedDeliveries, GitHubError> {
        let mut seen = Vec::new();
        let mut cursor = None;
        for _ in 0..PAGES_MAX {
            let page = self.deliveries(cursor.as_ref()).await?;
            let window_ms = u64::try_from(window.as_millis()).unwrap_or(u64::MAX);
            let start = Timestamp(self.github_now().0.saturating_sub(window_ms));
            let too_old =
                |delivery: &HookDelivery| delivery.delivered_at.is_some_and(|at| at < start);
            let reached = page.deliveries.iter().any(too_old);
            seen.extend(page.deliveries.into_iter().filter(|delivery| !too_old(delivery)));
            match page.next {
                Some(next) if !reached => cursor = Some(next),
                _ => {
                    return Ok(FailedDeliveries { failed: without_success(&seen), complete: true });
                }
            }
        }
        Ok(FailedDeliveries { failed: without_success(&seen), complete: false })
    }

    /// Asks GitHub to deliver once more. The delivery arrives later, with the same guid.
    ///
    /// # Errors
    /// As every request; [`GitHubError::LostResponse`] where it is unknown whether GitHub heard.
    pub async fn redeliver(&self, id: DeliveryId) -> Result<(), GitHubError> {
        let call = Call {
            method: Method::POST,
            effect: Effect::Once,
            paced: true,
            ..Call::get(format!("/app/hook/deliveries/{}/attempts", id.0))
        };
        let answer = self.call_as_app(&call).await?;
        let hint = "GitHub repeats deliveries of the last three days only".to_owned();
        self.expect_success(&call, answer, Some(hint)).map(drop)
    }
}

impl From<WireDelivery> for HookDelivery {
    fn from(wire: WireDelivery) -> Self {
        let ok = match wire.status_code {
            // An answer that is no success can still carry the text "OK" only by mistake.
            Some(code) if code != 0 => (200..300).contains(&code),
            _ => wire.status.is_some_and(|status| status.eq_ignore_ascii_case("ok")),
        };
        Self {
            id: DeliveryId(wire.id),
            guid: wire.guid.unwrap_or_default(),
            event: wire.event.unwrap_or_default(),
            action: wire.action,
            delivered_at: wire.delivered_at.as_deref().and_then(clock::rfc3339),
            redelivery: wire.redelivery.unwrap_or(false),
            ok,
        }
    }
}

/// Groups attempts (any order) by delivery and keeps the `workflow_job` ones that never succeeded.
fn without_success(attempts: &[HookDelivery]) -> Vec<FailedDelivery> {
    let mut by_guid: BTreeMap<&str, (bool, FailedDelivery)> = BTreeMap::new();
    for attempt in attempts {
        if attempt.event != "workflow_job" || attempt.guid.is_empty() {
            continue;
        }
        let (ok, group) = by_guid.entry(&attempt.guid).or_insert_with(|| {
            let failed = FailedDelivery {
                guid: attempt.guid.clone(),
                newest: attempt.id,
                event: attempt.event.clone(),
                action: attempt.action.clone(),
                attempts: 0,
            };
            (false, failed)
        });
        *ok |= attempt.ok;
        group.newest = group.newest.max(attempt.id);
        group.attempts = group.attempts.saturating_add(1);
    }
    let mut failed: Vec<_> =
        by_guid.into_values().filter(|(ok, _)| !ok).map(|(_, failed)| failed).collect();
    failed.sort_by_key(|failed| failed.newest);
    failed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(id: u64, guid: &str, status: &str, code: i64) -> HookDelivery {
        WireDelivery {
            id,
            guid: Some(guid.to_owned()),
            delivered_at: None,
            redelivery: None,
            status: Some(status.to_owned()),
            status_code: Some(code),
            event: Some("workflow_job".to_owned()),
            action: Some("queued".to_owned()),
        }
        .into()
    }

    #[test]
    fn only_deliveries_without_any_success_count_as_failed() {
        let mut ping = attempt(9, "d", "failed to connect to host", 0);
        ping.event = "ping".to_owned();
        let failed = without_success(&[
            attempt(8, "b", "timed out", 0),
            attempt(7, "a", "OK", 200),
            ping,
            attempt(6, "c", "Bad Gateway", 502),
            attempt(5, "b", "OK", 500),
            attempt(4, "a", "Service Unavailable", 503),
        ]);
        let short: Vec<_> =
            failed.iter().map(|f| (f.guid.as_str(), f.newest.0, f.attempts)).collect();
        assert_eq!(short, [("c", 6, 1), ("b", 8, 2)]);
    }
}
