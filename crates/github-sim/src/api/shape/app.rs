//! Apps and installations.

use serde_json::{Value, json};

use super::{node_id, user};
use crate::model::{AccountKind, App, Installation, Selection, World};

/// The events that an App asks for.
const EVENTS: [&str; 1] = ["workflow_job"];

/// An App.
pub(crate) fn app(world: &World, app: &App) -> Value {
    // The account that registered the App: the first one that it is installed on.
    let owner = world
        .installations
        .values()
        .find(|installation| installation.app == app.id)
        .and_then(|installation| world.accounts.get(&installation.account))
        .or_else(|| world.accounts.values().next());
    let created = app.created_at.iso();
    json!({
        "id": app.id.0,
        "slug": app.slug,
        "client_id": app.client_id,
        "node_id": node_id("Integration", app.id.0),
        "owner": owner.map(|account| user(&world.settings, account)),
        "name": app.slug,
        "description": null,
        "external_url": world.settings.html_url,
        "html_url": format!("{}/apps/{}", world.settings.html_url, app.slug),
        "created_at": created,
        "updated_at": created,
        "permissions": app.permissions,
        "events": EVENTS,
        "installations_count":
            world.installations.values().filter(|there| there.app == app.id).count(),
    })
}

/// An installation of an App.
pub(crate) fn installation(world: &World, app: &App, installation: &Installation) -> Value {
    let (api, html) = (&world.settings.api_url, &world.settings.html_url);
    let id = installation.id;
    let account = world.accounts.get(&installation.account);
    let created = installation.created_at.iso();
    json!({
        "id": id.0,
        "account": account.map(|account| user(&world.settings, account)),
        "repository_selection": selection(&installation.selection),
        "access_tokens_url": format!("{api}/app/installations/{id}/access_tokens"),
        "repositories_url": format!("{api}/installation/repositories"),
        "html_url": format!("{html}/settings/installations/{id}"),
        "app_id": app.id.0,
        "client_id": app.client_id,
        "app_slug": app.slug,
        "target_id": account.map(|account| account.id.0),
        "target_type": match account.map(|account| account.kind) {
            Some(AccountKind::Organization) => "Organization",
            Some(AccountKind::User) | None => "User",
        },
        "permissions": app.permissions,
        "events": EVENTS,
        "created_at": created,
        "updated_at": created,
        "single_file_name": null,
        "has_multiple_single_files": false,
        "single_file_paths": [],
        "suspended_by": installation
            .suspended_at
            .and(account)
            .map(|account| user(&world.settings, account)),
        "suspended_at": installation.suspended_at.map(|at| at.iso()),
    })
}

pub(crate) const fn selection(selection: &Selection) -> &'static str {
    match selection {
        Selection::All => "all",
        Selection::Selected(_) => "selected",
    }
}
