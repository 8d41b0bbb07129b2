//! The JSON schema of the file, for editors, made from the field tables.

use forrest_core::model::Bytes;
use serde_json::{Map, Value, json};

use crate::fields::{Field, Kind, Object, Presence, Reload};
use crate::tables::ROOT;

/// A JSON schema (draft 7, which editors' YAML support understands best) of the configuration file.
///
/// It knows names, types and ranges. What fields mean together is checked by
/// [`Config::load`](crate::Config::load) only.
pub fn schema() -> Value {
    let mut root = object(&ROOT);
    root.insert("$schema".to_owned(), json!("http://json-schema.org/draft-07/schema#"));
    root.insert("title".to_owned(), json!("Forrest configuration"));
    // Only hold anchors.
    root.insert("patternProperties".to_owned(), json!({ "_snippets$": true }));
    Value::Object(root)
}

fn object(object: &Object) -> Map<String, Value> {
    let mut properties = Map::new();
    for field in object.fields {
        properties.insert(field.name.to_owned(), Value::Object(described(field)));
    }
    // What a merge key takes over; editors that resolve it themselves never look here.
    properties.insert("<<".to_owned(), json!(true));
    let mut schema = Map::new();
    schema.insert("type".to_owned(), json!("object"));
    schema.insert("properties".to_owned(), Value::Object(properties));
    schema.insert("additionalProperties".to_owned(), json!(false));
    schema
}

fn described(field: &Field) -> Map<String, Value> {
    let mut schema = kind(&field.kind);
    let mut doc = field.doc.to_owned();
    match field.presence {
        Presence::Required => doc.push_str(" Required."),
        Presence::Absent(what) => doc.push_str(&format!(" If absent: {what}.")),
        Presence::Default(text) => {
            let default = match field.kind {
                Kind::Integer { .. } => text.parse::<u32>().map_or(json!(text), |n| json!(n)),
                Kind::Bool => json!(text == "true"),
                _ => json!(text),
            };
            schema.insert("default".to_owned(), default);
        }
    }
    if field.reload == Reload::Restart {
        doc.push_str(" A change needs a restart.");
    }
    schema.insert("description".to_owned(), json!(doc));
    schema
}

fn kind(kind_of: &Kind) -> Map<String, Value> {
    let value = match kind_of {
        // A number or truth value without quotes is a text here, too.
        Kind::Text { .. } | Kind::Secret => json!({ "type": ["string", "number", "boolean"] }),
        Kind::Path => json!({ "type": "string", "minLength": 1 }),
        Kind::Size { min, max, .. } => json!({
            "type": "string",
            "pattern": "^[0-9]+[BKMGT]$",
            "examples": [example(*min, *max)],
        }),
        Kind::Duration { .. } => json!({
            "type": "string",
            "pattern": "^([0-9]+ *[a-z]+ *)+$",
            "examples": ["90s", "15m", "1h30m", "1d"],
        }),
        Kind::Integer { min, max } => json!({ "type": "integer", "minimum": min, "maximum": max }),
        Kind::Bool => json!({ "type": "boolean" }),
        Kind::OneOf(words) => json!({ "enum": words }),
        Kind::List(item, most) => {
            json!({ "type": "array", "items": Value::Object(kind(item)), "maxItems": most })
        }
        Kind::Object(fields) => Value::Object(object(fields)),
        Kind::Map(_, value) => {
            json!({ "type": "object", "additionalProperties": Value::Object(kind(value)) })
        }
        Kind::Parameters => json!({
            "type": "object",
            "additionalProperties": { "type": ["string", "number", "boolean"] },
        }),
    };
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

fn example(min: Bytes, max: Bytes) -> String {
    Bytes::gib(16).clamp(min, max).to_string()
}
