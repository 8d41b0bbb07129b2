//! An App's webhook and its deliveries.

use hyper::StatusCode;
use serde_json::{Value, json};

use super::call::{Answer, Call};
use super::page::Page;
use super::reply::Reply;
use super::shape;
use crate::model::{App, Delivery, DeliveryId, HookContent, World};

pub(super) fn config(world: &World, call: &Call<'_>) -> Answer {
    let app = find_app(world, call)?;
    let hook = app.hook.as_ref().ok_or_else(Reply::not_found)?;
    let mut shape = json!({
        "url": hook.target.to_string(),
        "content_type": match hook.content {
            HookContent::Json => "json",
            HookContent::Form => "form",
        },
        "insecure_ssl": "0",
    });
    if hook.secret.is_some() {
        shape["secret"] = json!("********");
    }
    Ok(Reply::ok(shape))
}

fn find_app<'w>(world: &'w World, call: &Call<'_>) -> Result<&'w App, Reply> {
    world.apps.get(&call.principal.app()?).ok_or_else(Reply::not_found)
}

pub(super) fn deliveries(world: &World, call: &Call<'_>) -> Answer {
    let app = find_app(world, call)?;
    let cursor = match call.request.query("cursor") {
        None => None,
        Some(text) => Some(read_cursor(text).ok_or_else(|| {
            Reply::error(StatusCode::BAD_REQUEST, "The cursor is not one of ours")
        })?),
    };
    let wanted: fn(&Delivery) -> bool = match call.request.query("status") {
        None => |_| true,
        Some("success") => Delivery::is_ok,
        Some("failure") => |delivery| !delivery.is_ok(),
        Some(_) => {
            return Err(Reply::invalid_field("Hook", "status", "must be success or failure"));
        }
    };
    let per_page = Page::of(call.request).per_page();
    let mut found: Vec<&Delivery> = world
        .deliveries
        .before(app.id, cursor)
        .filter(|delivery| wanted(delivery))
        .take(per_page + 1)
        .collect();
    let more = found.len() > per_page;
    found.truncate(per_page);
    let shapes = found.iter().map(|delivery| shape::delivery_item(delivery)).collect();
    let reply = Reply::ok(Value::Array(shapes));
    Ok(match found.last().filter(|_| more) {
        Some(last) => {
            let next = call.request.address_with(&[("cursor", &format!("v1_{}", last.id))]);
            reply.header("link", format!("<{next}>; rel=\"next\""))
        }
        None => reply,
    })
}

fn read_cursor(text: &str) -> Option<DeliveryId> {
    text.strip_prefix("v1_")?.parse().ok().map(DeliveryId)
}

pub(super) fn delivery(world: &World, call: &Call<'_>, id: u64) -> Answer {
    let app = find_app(world, call)?;
    let there = world.deliveries.get(DeliveryId(id)).filter(|there| there.app == app.id);
    Ok(Reply::ok(shape::delivery(app, there.ok_or_else(Reply::not_found)?)))
}

/// Accepts a redelivery; who makes it is told in [`Call::redeliver`].
pub(super) fn redeliver(world: &World, call: &mut Call<'_>, id: u64) -> Answer {
    let app = find_app(world, call)?;
    let there = world
        .deliveries
        .get(DeliveryId(id))
        .filter(|there| there.app == app.id)
        .ok_or_else(Reply::not_found)?;
    call.redeliver = Some(there.id);
    Ok(Reply::json(StatusCode::ACCEPTED, json!({})))
}
