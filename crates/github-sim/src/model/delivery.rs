//! The log of webhook deliveries, one entry per attempt.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::ids::{AppId, DeliveryId, InstallationId, RepositoryId};
use super::time::Moment;

/// How many attempts the log keeps. GitHub keeps them for three days.
pub const MAX_DELIVERIES: usize = 5_000;
/// How much of a receiver's answer is kept, in bytes.
pub const MAX_ANSWER_BYTES: usize = 8 << 10;

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It has not.
    Pending,
    /// The receiver answered.
    Answered { status: u16, headers: Vec<(String, String)>, body: String },
    /// There was no answer. `status` is what GitHub notes in its place.
    Failed { status: u16, reason: &'static str },
}

/// One attempt to deliver a webhook.
#[derive(Debug, Clone)]
pub(crate) struct Delivery {
    pub(crate) id: DeliveryId,
    /// The same for every attempt.
    pub(crate) guid: String,
    pub(crate) app: AppId,
    pub(crate) event: String,
    pub(crate) action: Option<String>,
    pub(crate) installation: Option<InstallationId>,
    pub(crate) repository: Option<RepositoryId>,
    pub(crate) payload: Bytes,
    pub(crate) redelivery: bool,
    pub(crate) delivered_at: Moment,
    /// How long the attempt took, in seconds.
    pub(crate) duration_s: f64,
    pub(crate) outcome: Outcome,
}

impl Delivery {
    /// The API's `status_code`.
    pub(crate) const fn status_code(&self) -> u16 {
        match &self.outcome {
            Outcome::Pending => 0,
            Outcome::Answered { status, .. } | Outcome::Failed { status, .. } => *status,
        }
    }

    /// Whether the receiver took it.
    pub(crate) const fn is_ok(&self) -> bool {
        matches!(self.outcome, Outcome::Answered { status, .. } if status >= 200 && status < 300)
    }

    /// The API's `status`.
    pub(crate) fn status(&self) -> String {
        match &self.outcome {
            Outcome::Pending => "pending".to_owned(),
            Outcome::Answered { .. } if self.is_ok() => "OK".to_owned(),
            Outcome::Answered { status, .. } => format!("Invalid HTTP Response: {status}"),
            Outcome::Failed { reason, .. } => (*reason).to_owned(),
        }
    }
}

/// The latest attempts.
#[derive(Debug, Default)]
pub(crate) struct DeliveryLog {
    entries: BTreeMap<DeliveryId, Delivery>,
}

impl DeliveryLog {
    pub(crate) fn add(&mut self, delivery: Delivery) {
        if self.entries.len() >= MAX_DELIVERIES {
            self.entries.pop_first();
        }
        self.entries.insert(delivery.id, delivery);
    }

    pub(crate) fn get(&self, id: DeliveryId) -> Option<&Delivery> {
        self.entries.get(&id)
    }

    /// Notes how an attempt ended.
    pub(crate) fn settle(&mut self, id: DeliveryId, outcome: Outcome, began: Moment, now: Moment) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.outcome = outcome;
            entry.delivered_at = began;
            entry.duration_s = now.since(began).as_secs_f64();
        }
    }

    /// The settled attempts of an App, latest first, those before `cursor` only.
    pub(crate) fn before(
        &self,
        app: AppId,
        cursor: Option<DeliveryId>,
    ) -> impl Iterator<Item = &Delivery> {
        let end = cursor.unwrap_or(DeliveryId(u64::MAX));
        self.entries
            .range(..end)
            .rev()
            .map(|(_, entry)| entry)
            .filter(move |entry| entry.app == app && entry.outcome != Outcome::Pending)
    }
}
