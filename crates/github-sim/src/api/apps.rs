//! Apps, installations, tokens, the request budget.

use hyper::StatusCode;
use serde_json::{Value, json};

use super::auth::Principal;
use super::call::{Answer, Call};
use super::page::Page;
use super::reply::Reply;
use super::route::Slug;
use super::shape;
use crate::model::{
    AccountKind, AppId, Installation, InstallationId, Permissions, Selection, World, grants,
};

pub(super) fn app(world: &World, call: &Call<'_>) -> Answer {
    let id = call.principal.app()?;
    let app = world.apps.get(&id).ok_or_else(Reply::not_found)?;
    Ok(Reply::ok(shape::app(world, app)))
}

pub(super) fn installations(world: &World, call: &Call<'_>) -> Answer {
    let id = call.principal.app()?;
    let app = world.apps.get(&id).ok_or_else(Reply::not_found)?;
    let all: Vec<&Installation> = world.installations.values().filter(|i| i.app == id).collect();
    let page = Page::of(call.request);
    let shapes = page.cut(&all).iter().map(|i| shape::installation(world, app, i)).collect();
    Ok(call.linked(page, all.len(), Reply::ok(Value::Array(shapes))))
}

pub(super) fn installation(world: &World, call: &Call<'_>, id: u64) -> Answer {
    let app = call.principal.app()?;
    show(world, app, |there| there.id.0 == id)
}

pub(super) fn repository_installation(world: &World, call: &Call<'_>, slug: &Slug) -> Answer {
    let app = call.principal.app()?;
    let id = world.repository_named(&slug.0).map_err(|_| Reply::not_found())?;
    let repo = world.repositories.get(&id).ok_or_else(Reply::not_found)?;
    let owner = repo.owner.to_lowercase();
    show(world, app, |there| there.account == owner && there.selection.covers(id))
}

pub(super) fn account_installation(
    world: &World,
    call: &Call<'_>,
    login: &str,
    kind: AccountKind,
) -> Answer {
    let app = call.principal.app()?;
    let account = login.to_lowercase();
    if world.accounts.get(&account).is_none_or(|there| there.kind != kind) {
        return Err(Reply::not_found());
    }
    show(world, app, |there| there.account == account)
}

fn show(world: &World, app: AppId, wanted: impl Fn(&Installation) -> bool) -> Answer {
    let app = world.apps.get(&app).ok_or_else(Reply::not_found)?;
    let there = world
        .installations
        .values()
        .find(|there| there.app == app.id && wanted(there))
        .ok_or_else(Reply::not_found)?;
    Ok(Reply::ok(shape::installation(world, app, there)))
}

pub(super) fn create_token(world: &mut World, call: &Call<'_>, id: u64) -> Answer {
    let app = call.principal.app()?;
    let installation = world
        .installations
        .get(&InstallationId(id))
        .filter(|there| there.app == app)
        .cloned()
        .ok_or_else(Reply::not_found)?;
    if installation.suspended_at.is_some() {
        return Err(Reply::forbidden("This installation has been suspended"));
    }
    let body = call.request.object().ok_or_else(bad_json)?;
    let selection = narrowed_selection(world, &installation, &body)?;
    let held = world.apps.get(&app).ok_or_else(Reply::not_found)?.permissions.clone();
    let permissions = narrowed_permissions(held, &body)?;
    let (token, expires_at) =
        world.add_token(installation.id, selection.clone(), permissions.clone(), call.api_now);
    let mut shape = json!({
        "token": token,
        "expires_at": expires_at.iso(),
        "permissions": permissions,
        "repository_selection": match (&selection, &installation.selection) {
            (Selection::All, Selection::All) => "all",
            _ => "selected",
        },
    });
    if matches!(selection, Selection::Selected(_)) {
        let repositories: Vec<Value> = world
            .covered(&installation, &selection)
            .map(|repo| shape::repository(world, repo))
            .collect();
        shape["repositories"] = Value::Array(repositories);
    }
    Ok(Reply::json(StatusCode::CREATED, shape))
}

fn bad_json() -> Reply {
    Reply::error(StatusCode::BAD_REQUEST, "Problems parsing JSON")
}

/// What of the installation's repositories the token is for.
fn narrowed_selection(
    world: &World,
    installation: &Installation,
    body: &serde_json::Map<String, Value>,
) -> Result<Selection, Reply> {
    let wrong = |message: &str| Reply::invalid_field("Integration", "repositories", message);
    let mut chosen = std::collections::BTreeSet::new();
    let covered: Vec<_> = world.covered(installation, &Selection::All).collect();
    for name in list(body, "repositories").map_err(|()| wrong("must be a list"))? {
        let name = name.as_str().ok_or_else(|| wrong("must be names"))?;
        // GitHub wants the name without its owner.
        let repo = covered.iter().find(|repo| repo.name.eq_ignore_ascii_case(name));
        chosen.insert(repo.ok_or_else(no_access)?.id);
    }
    for id in list(body, "repository_ids").map_err(|()| wrong("must be a list"))? {
        let id = id.as_u64().ok_or_else(|| wrong("must be ids"))?;
        let repo = covered.iter().find(|repo| repo.id.0 == id);
        chosen.insert(repo.ok_or_else(no_access)?.id);
    }
    Ok(if chosen.is_empty() { Selection::All } else { Selection::Selected(chosen) })
}

fn no_access() -> Reply {
    Reply::invalid_field(
        "Integration",
        "repositories",
        "There is at least one repository that does not exist or is not accessible to the parent \
         installation.",
    )
}

fn list<'b>(body: &'b serde_json::Map<String, Value>, field: &str) -> Result<&'b [Value], ()> {
    match body.get(field) {
        None | Some(Value::Null) => Ok(&[]),
        Some(Value::Array(list)) => Ok(list),
        Some(_) => Err(()),
    }
}

fn narrowed_permissions(
    held: Permissions,
    body: &serde_json::Map<String, Value>,
) -> Result<Permissions, Reply> {
    let refused = || {
        Reply::invalid_field(
            "Integration",
            "permissions",
            "The permissions requested are not granted to this installation.",
        )
    };
    let wanted = match body.get("permissions") {
        None | Some(Value::Null) => return Ok(held),
        Some(Value::Object(wanted)) => wanted,
        Some(_) => return Err(refused()),
    };
    let mut narrowed = Permissions::new();
    for (name, access) in wanted {
        let access = access.as_str().ok_or_else(refused)?;
        if !grants(&held, name, access) {
            return Err(refused());
        }
        narrowed.insert(name.clone(), access.to_owned());
    }
    // Every token may read what a repository is.
    narrowed.entry("metadata".to_owned()).or_insert_with(|| "read".to_owned());
    Ok(narrowed)
}

pub(super) fn revoke_token(world: &mut World, call: &Call<'_>) -> Answer {
    match &call.principal {
        Principal::Installation { token, .. } => {
            world.tokens.remove(token);
            Ok(Reply::empty(StatusCode::NO_CONTENT))
        }
        Principal::Anonymous | Principal::App(_) => Err(Reply::unauthorized("Bad credentials")),
    }
}

pub(super) fn repositories(world: &World, call: &Call<'_>) -> Answer {
    let Principal::Installation { id, selection, .. } = &call.principal else {
        return Err(Reply::unauthorized("Bad credentials"));
    };
    let installation = world.installations.get(id).ok_or_else(Reply::not_found)?;
    let all: Vec<_> = world.covered(installation, selection).collect();
    let page = Page::of(call.request);
    let shapes: Vec<Value> =
        page.cut(&all).iter().map(|repo| shape::repository(world, repo)).collect();
    let reply = Reply::ok(json!({
        "total_count": all.len(),
        "repository_selection": match selection {
            Selection::All => "all",
            Selection::Selected(_) => "selected",
        },
        "repositories": shapes,
    }));
    Ok(call.linked(page, all.len(), reply))
}

pub(super) fn rate_limit(world: &mut World, call: &Call<'_>) -> Answer {
    let limit = world.settings.rate_limit;
    let budget = world.limits.charge(call.principal.payer(), limit, 0, call.now);
    let core = json!({
        "limit": budget.limit,
        "used": budget.used,
        "remaining": budget.remaining(),
        "reset": budget.reset,
    });
    let search = json!({"limit": 30, "used": 0, "remaining": 30, "reset": budget.reset});
    Ok(Reply::ok(json!({"resources": {"core": core, "search": search}, "rate": core})))
}
