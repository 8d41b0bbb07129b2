//! The task that sends webhooks, one after the other unless it is told otherwise.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;

use super::client::Client;
use super::sign::sign;
use super::{Dispatch, Hold};
use crate::api::{percent_encode, shape};
use crate::model::{App, Delivery, DeliveryId, HookContent, Outcome, What};
use crate::shared::Shared;

/// How long a delivery that is to come after the next one waits for it.
const REORDER_PATIENCE: Duration = Duration::from_secs(1);

/// Sends what comes, at most `concurrency` at a time.
pub(crate) async fn run(
    shared: Arc<Shared>,
    mut queue: mpsc::Receiver<Dispatch>,
    concurrency: usize,
) {
    let office = Office {
        shared,
        client: Client::default(),
        permits: Arc::new(Semaphore::new(concurrency.max(1))),
    };
    let mut held: Option<(DeliveryId, Instant)> = None;
    loop {
        let patience = async {
            match held {
                Some((_, until)) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        let next = tokio::select! {
            next = queue.recv() => match next {
                Some(next) => Some(next),
                None => return,
            },
            () = patience => None,
        };
        match next.map(|next| (next.delivery, next.hold)) {
            Some((delivery, Hold::For(time))) => office.send_after(delivery, time),
            Some((delivery, Hold::UntilNext)) if held.is_none() => {
                held = Some((delivery, Instant::now() + REORDER_PATIENCE));
            }
            Some((delivery, Hold::No | Hold::UntilNext)) => {
                office.send(delivery).await;
                if let Some((late, _)) = held.take() {
                    office.send(late).await;
                }
            }
            None => {
                if let Some((late, _)) = held.take() {
                    office.send(late).await;
                }
            }
        }
    }
}

/// What sending takes.
#[derive(Clone)]
struct Office {
    shared: Arc<Shared>,
    client: Client,
    permits: Arc<Semaphore>,
}

impl Office {
    /// Sends when it is its turn; does not wait for the answer.
    async fn send(&self, delivery: DeliveryId) {
        let Ok(permit) = Arc::clone(&self.permits).acquire_owned().await else { return };
        let office = self.clone();
        tokio::spawn(async move {
            office.attempt(delivery).await;
            drop(permit);
        });
    }

    fn send_after(&self, delivery: DeliveryId, time: Duration) {
        let office = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(time).await;
            office.send(delivery).await;
        });
    }

    async fn attempt(&self, id: DeliveryId) {
        let prepared = self.shared.with(|world, now| {
            let delivery = world.deliveries.get(id)?;
            let app = world.apps.get(&delivery.app)?;
            let target = app.hook.as_ref()?.target.clone();
            Some((target, packed(app, delivery), world.settings.webhook_timeout, now))
        });
        let Some((target, (headers, body), timeout, began)) = prepared else { return };
        let outcome = self.client.post(&target, &headers, body, timeout).await;
        if let Outcome::Failed { reason, .. } = &outcome {
            tracing::warn!(%target, reason, "a webhook was not delivered");
        }
        self.shared.with(|world, now| {
            world.deliveries.settle(id, outcome, began, now);
            if let Some(delivery) = world.deliveries.get(id) {
                let what = What::WebhookDelivered {
                    delivery: id,
                    event: delivery.event.clone(),
                    action: delivery.action.clone(),
                    status: delivery.status_code(),
                };
                world.note(now, what);
            }
        });
    }
}

/// The headers, signature included, and the body of a delivery.
pub(super) fn packed(app: &App, delivery: &Delivery) -> (Vec<(&'static str, String)>, Bytes) {
    let mut headers = shape::request_headers(app, delivery);
    let Some(hook) = &app.hook else { return (headers, delivery.payload.clone()) };
    let body = match hook.content {
        HookContent::Json => delivery.payload.clone(),
        HookContent::Form => {
            let text = String::from_utf8_lossy(&delivery.payload);
            Bytes::from(format!("payload={}", percent_encode(&text)))
        }
    };
    if let Some(secret) = &hook.secret {
        headers.push(("X-Hub-Signature-256", sign(secret, &body)));
    }
    (headers, body)
}
