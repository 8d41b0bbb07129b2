//! Webhooks: what is sent, signed, to whom, and what goes wrong with it on purpose.

mod client;
mod payload;
mod sender;
mod sign;

use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;

pub use sign::sign;

pub(crate) use sender::run;

use crate::api::text;
use crate::error::SimError;
use crate::model::{
    Announcement, AppId, Delivery, DeliveryId, InstallationId, Moment, Outcome, RepositoryId,
    WebhookEffect, What, World,
};

/// When a delivery is to be attempted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hold {
    /// Right away, in turn.
    No,
    /// After this time, whatever comes meanwhile.
    For(Duration),
    /// After the next one.
    UntilNext,
}

/// A delivery to attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Dispatch {
    pub(crate) delivery: DeliveryId,
    pub(crate) hold: Hold,
}

/// An event for one App, before faults.
struct Letter {
    app: AppId,
    event: &'static str,
    action: Option<String>,
    installation: Option<InstallationId>,
    repository: Option<RepositoryId>,
    payload: Value,
}

/// Makes deliveries of what is to be announced.
pub(crate) fn post(world: &mut World, news: Vec<Announcement>, now: Moment) -> Vec<Dispatch> {
    let mut dispatches = Vec::new();
    for news in news {
        for (app, installation) in world.listeners(news.job.repository) {
            if world.apps.get(&app).is_none_or(|app| app.hook.is_none()) {
                continue;
            }
            let Some(payload) = payload::workflow_job(world, &news, installation) else { continue };
            let letter = Letter {
                app,
                event: "workflow_job",
                action: Some(news.action.as_str().to_owned()),
                installation: Some(installation),
                repository: Some(news.job.repository),
                payload,
            };
            dispatches.extend(send(world, letter, now));
        }
    }
    dispatches
}

/// Makes the delivery of a `ping` for each App that has a webhook.
pub(crate) fn ping(world: &mut World, now: Moment) -> Vec<Dispatch> {
    let letters: Vec<Letter> = world
        .apps
        .values()
        .filter(|app| app.hook.is_some())
        .map(|app| Letter {
            app: app.id,
            event: "ping",
            action: None,
            installation: None,
            repository: None,
            payload: payload::ping(world, app),
        })
        .collect();
    letters.into_iter().flat_map(|letter| send(world, letter, now)).collect()
}

fn send(world: &mut World, letter: Letter, now: Moment) -> Vec<Dispatch> {
    let id = world.ids.delivery();
    let delivery = Delivery {
        id,
        guid: world.random.uuid(),
        app: letter.app,
        event: letter.event.to_owned(),
        action: letter.action,
        installation: letter.installation,
        repository: letter.repository,
        payload: Bytes::from(text(&letter.payload)),
        redelivery: false,
        delivered_at: now,
        duration_s: 0.0,
        outcome: Outcome::Pending,
    };
    with_faults(world, delivery, now)
}

/// Attempts a delivery again, under the same delivery id.
pub(crate) fn redeliver(world: &mut World, id: DeliveryId, now: Moment) -> Vec<Dispatch> {
    let Some(there) = world.deliveries.get(id).cloned() else { return Vec::new() };
    let again = Delivery {
        id: world.ids.delivery(),
        redelivery: true,
        delivered_at: now,
        duration_s: 0.0,
        outcome: Outcome::Pending,
        ..there
    };
    with_faults(world, again, now)
}

/// Enters a delivery into the log and says when to attempt it, unless a fault decides otherwise.
fn with_faults(world: &mut World, delivery: Delivery, now: Moment) -> Vec<Dispatch> {
    let World { faults, random, .. } = world;
    let (event, action) = (delivery.event.clone(), delivery.action.clone());
    let effect = faults.for_webhook(&event, action.as_deref(), random);
    let id = delivery.id;
    let hold = match effect {
        None | Some(WebhookEffect::Double) => Hold::No,
        Some(WebhookEffect::Delay { min_ms, max_ms }) => {
            Hold::For(Duration::from_millis(random.between(min_ms, max_ms)))
        }
        Some(WebhookEffect::Reorder) => Hold::UntilNext,
        Some(WebhookEffect::Forget) => {
            world.note(now, What::WebhookLost { event, action });
            return Vec::new();
        }
        Some(WebhookEffect::Drop) => {
            world.deliveries.add(delivery);
            give_up(world, id, now);
            world.note(now, What::WebhookLost { event, action });
            return Vec::new();
        }
    };
    let twin = (effect == Some(WebhookEffect::Double))
        .then(|| Delivery { id: world.ids.delivery(), ..delivery.clone() });
    world.deliveries.add(delivery);
    let mut dispatches = vec![Dispatch { delivery: id, hold }];
    if let Some(twin) = twin {
        dispatches.push(Dispatch { delivery: twin.id, hold: Hold::No });
        world.deliveries.add(twin);
    }
    dispatches
}

/// Notes a delivery as failed.
pub(crate) fn give_up(world: &mut World, id: DeliveryId, now: Moment) {
    let outcome = Outcome::Failed { status: 502, reason: "failed to connect to host" };
    world.deliveries.settle(id, outcome, now, now);
}

/// The signed payload of a `workflow_job` event of a job as it is now, for load generators: headers
/// and body of a delivery that is in no log.
pub(crate) fn sample(
    world: &mut World,
    job: crate::model::JobId,
    action: crate::model::JobAction,
    now: Moment,
) -> Result<(Vec<(String, String)>, Bytes), SimError> {
    let there = world.jobs.get(&job).ok_or(SimError::UnknownJob(job))?.clone();
    let repository = there.repository;
    let unknown = || SimError::UnknownRepository(repository.to_string());
    let (app, installation) = *world.listeners(repository).first().ok_or_else(unknown)?;
    let news = Announcement { action, job: there };
    let payload = payload::workflow_job(world, &news, installation).ok_or_else(unknown)?;
    let body = Bytes::from(text(&payload));
    let delivery = Delivery {
        id: world.ids.delivery(),
        guid: world.random.uuid(),
        app,
        event: "workflow_job".to_owned(),
        action: Some(action.as_str().to_owned()),
        installation: Some(installation),
        repository: Some(repository),
        payload: body.clone(),
        redelivery: false,
        delivered_at: now,
        duration_s: 0.0,
        outcome: Outcome::Pending,
    };
    let app = world.apps.get(&app).ok_or_else(unknown)?;
    let (headers, body) = sender::packed(app, &delivery);
    let headers = headers.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    Ok((headers, body))
}
