//! Webhook deliveries.

use serde_json::{Map, Value, json};

use crate::model::{App, Delivery, HookContent, Outcome};

/// A delivery in the list.
pub(crate) fn delivery_item(delivery: &Delivery) -> Value {
    json!({
        "id": delivery.id.0,
        "guid": delivery.guid,
        "delivered_at": delivery.delivered_at.iso(),
        "redelivery": delivery.redelivery,
        // GitHub gives hundredths of seconds.
        "duration": (delivery.duration_s * 100.0).round() / 100.0,
        "status": delivery.status(),
        "status_code": delivery.status_code(),
        "event": delivery.event,
        "action": delivery.action,
        "installation_id": delivery.installation.map(|id| id.0),
        "repository_id": delivery.repository.map(|id| id.0),
        "throttled_at": null,
    })
}

/// A delivery with what was sent and answered.
pub(crate) fn delivery(app: &App, delivery: &Delivery) -> Value {
    let mut shape = delivery_item(delivery);
    let sent: Map<String, Value> = request_headers(app, delivery)
        .into_iter()
        .map(|(name, value)| (name.to_owned(), Value::String(value)))
        .collect();
    let (headers, body) = match &delivery.outcome {
        Outcome::Answered { headers, body, .. } => (
            headers.iter().map(|(n, v)| (n.clone(), Value::String(v.clone()))).collect(),
            Value::String(body.clone()),
        ),
        Outcome::Pending | Outcome::Failed { .. } => (Map::new(), Value::Null),
    };
    let payload: Value = serde_json::from_slice(&delivery.payload).unwrap_or(Value::Null);
    shape["url"] = app.hook.as_ref().map_or(Value::Null, |h| Value::String(h.target.to_string()));
    shape["request"] = json!({"headers": sent, "payload": payload});
    shape["response"] = json!({"headers": headers, "payload": body});
    shape
}

/// The headers of a delivery but its signature.
pub(crate) fn request_headers(app: &App, delivery: &Delivery) -> Vec<(&'static str, String)> {
    let content = match app.hook.as_ref().map(|hook| hook.content) {
        Some(HookContent::Form) => "application/x-www-form-urlencoded",
        Some(HookContent::Json) | None => "application/json",
    };
    vec![
        ("User-Agent", "GitHub-Hookshot/51a5ed7".to_owned()),
        ("Accept", "*/*".to_owned()),
        ("Content-Type", content.to_owned()),
        ("X-GitHub-Delivery", delivery.guid.clone()),
        ("X-GitHub-Event", delivery.event.clone()),
        ("X-GitHub-Hook-ID", (app.id.0 + 400_000_000).to_string()),
        ("X-GitHub-Hook-Installation-Target-ID", app.id.to_string()),
        ("X-GitHub-Hook-Installation-Target-Type", "integration".to_owned()),
    ]
}
