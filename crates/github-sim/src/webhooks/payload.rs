//! The bodies of webhooks.

use serde_json::{Value, json};

use crate::api::shape;
use crate::model::{AccountKind, Announcement, App, InstallationId, JobAction, World};

/// A `workflow_job` event for one installation.
pub(crate) fn workflow_job(
    world: &World,
    news: &Announcement,
    installation: InstallationId,
) -> Option<Value> {
    let repo = world.repositories.get(&news.job.repository)?;
    let owner = world.accounts.get(&repo.owner.to_lowercase())?;
    let mut payload = json!({
        "action": news.action.as_str(),
        "workflow_job": shape::job(world, &news.job),
        "repository": shape::repository(world, repo),
        "sender": shape::user(&world.settings, owner),
        "installation": {
            "id": installation.0,
            "node_id": format!("MDIzOkludGVncmF0aW9uSW5zdGFsbGF0aW9u{installation}"),
        },
    });
    if owner.kind == AccountKind::Organization {
        payload["organization"] = shape::organization(&world.settings, owner);
    }
    let gated = matches!(news.action, JobAction::Queued | JobAction::Waiting);
    if gated && news.job.is_gated() {
        payload["deployment"] = shape::deployment(world, &news.job, owner);
    }
    Some(payload)
}

/// A `ping` event: what GitHub sends when the webhook is made.
pub(crate) fn ping(world: &World, app: &App) -> Value {
    let hook = app.hook.as_ref();
    let id = app.id.0 + 400_000_000;
    let created = app.created_at.iso();
    json!({
        "zen": "Anything added dilutes everything else.",
        "hook_id": id,
        "hook": {
            "type": "App",
            "id": id,
            "name": "web",
            "active": true,
            "events": ["workflow_job"],
            "config": {
                "content_type": "json",
                "insecure_ssl": "0",
                "url": hook.map(|hook| hook.target.to_string()),
            },
            "updated_at": created,
            "created_at": created,
            "app_id": app.id.0,
            "deliveries_url": format!("{}/app/hook/deliveries", world.settings.api_url),
        },
    })
}
