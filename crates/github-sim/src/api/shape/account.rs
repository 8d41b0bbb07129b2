//! Users and organisations.

use serde_json::{Value, json};

use super::node_id;
use crate::model::{Account, AccountKind, Settings};

/// A user or an organisation in the role of one.
pub(crate) fn user(settings: &Settings, account: &Account) -> Value {
    let (login, id) = (&account.login, account.id.0);
    let api = format!("{}/users/{login}", settings.api_url);
    let html = &settings.html_url;
    let kind = match account.kind {
        AccountKind::User => "User",
        AccountKind::Organization => "Organization",
    };
    json!({
        "login": login,
        "id": id,
        "node_id": node_id(kind, id),
        "avatar_url": format!("{html}/avatars/u/{id}"),
        "gravatar_id": "",
        "url": api,
        "html_url": format!("{html}/{login}"),
        "followers_url": format!("{api}/followers"),
        "following_url": format!("{api}/following{{/other_user}}"),
        "gists_url": format!("{api}/gists{{/gist_id}}"),
        "starred_url": format!("{api}/starred{{/owner}}{{/repo}}"),
        "subscriptions_url": format!("{api}/subscriptions"),
        "organizations_url": format!("{api}/orgs"),
        "repos_url": format!("{api}/repos"),
        "events_url": format!("{api}/events{{/privacy}}"),
        "received_events_url": format!("{api}/received_events"),
        "type": kind,
        "site_admin": false,
    })
}

/// An organisation in webhooks.
pub(crate) fn organization(settings: &Settings, account: &Account) -> Value {
    let (login, id) = (&account.login, account.id.0);
    let api = format!("{}/orgs/{login}", settings.api_url);
    json!({
        "login": login,
        "id": id,
        "node_id": node_id("Organization", id),
        "url": api,
        "repos_url": format!("{api}/repos"),
        "events_url": format!("{api}/events"),
        "hooks_url": format!("{api}/hooks"),
        "issues_url": format!("{api}/issues"),
        "members_url": format!("{api}/members{{/member}}"),
        "public_members_url": format!("{api}/public_members{{/member}}"),
        "avatar_url": format!("{}/avatars/u/{id}", settings.html_url),
        "description": null,
    })
}
