//! Checks against GitHub's own descriptions of its API and webhooks (its OpenAPI documents and
//! octokit's webhook schemas), for tests: of what the simulator answers and sends, and of what a
//! client asks.
//!
//! The descriptions are not part of this repository. They are looked for in the directory that
//! `FORREST_GITHUB_CONTRACT` names, then in `../shared/github-contract` beside the repository, then in
//! `target/github-contract`, where a set-up script may put the same files from npm: either trimmed, as
//! `openapi-api.github.com.trimmed.json`, `openapi-webhooks-api.github.com.trimmed.json` and
//! `webhook-workflow_job.jsonschema.json`, or the originals, as `openapi-api.github.com.json`,
//! `openapi-webhooks-api.github.com.json` (npm `@octokit/openapi`, `@octokit/openapi-webhooks`) and
//! `webhooks.schema.json` (npm `@octokit/webhooks-schemas`).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use jsonschema::{Draft, Validator};
use serde_json::{Map, Value, json};

use crate::api::Recorded;

const API_FILES: [&str; 2] = ["openapi-api.github.com.trimmed.json", "openapi-api.github.com.json"];
const WEBHOOK_API_FILES: [&str; 2] =
    ["openapi-webhooks-api.github.com.trimmed.json", "openapi-webhooks-api.github.com.json"];
const WEBHOOK_SCHEMA_FILES: [&str; 2] =
    ["webhook-workflow_job.jsonschema.json", "webhooks.schema.json"];

/// The operations that an installation token is for although their id begins with `apps/`.
const BY_INSTALLATION: [&str; 2] =
    ["apps/list-repos-accessible-to-installation", "apps/revoke-installation-access-token"];

/// Why something does not agree with GitHub's descriptions, or could not be compared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ContractError {
    /// The descriptions are not there.
    #[error(
        "GitHub's API descriptions are missing ({0}): set FORREST_GITHUB_CONTRACT, or run the \
         set-up that fetches them into target/github-contract"
    )]
    Missing(String),
    /// A description is not what it should be.
    #[error("{path} cannot be used: {reason}")]
    Broken {
        /// Which file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// GitHub would not do that, or would not accept it.
    #[error("{what} breaks GitHub's contract:\n  {}", problems.join("\n  "))]
    Violation {
        /// What was checked.
        what: String,
        /// What is wrong with it.
        problems: Vec<String>,
    },
}

/// GitHub's descriptions.
#[derive(Debug)]
pub struct Contract {
    directory: PathBuf,
    api: Value,
    webhook_api: Value,
    webhook_schema: Value,
    validators: Mutex<BTreeMap<String, Arc<Validator>>>,
}

/// Where the descriptions are, if they are anywhere.
pub fn locate() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("FORREST_GITHUB_CONTRACT") {
        return Some(named.into());
    }
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    ["../shared/github-contract", "target/github-contract"]
        .iter()
        .map(|place| repository.join(place))
        .find(|place| API_FILES.iter().any(|file| place.join(file).is_file()))
}

/// The descriptions, for a test; `None` when they are missing: then the test is to end there.
///
/// # Panics
/// When they are missing and `CI=true`: there, no test may be left out. When they cannot be read.
pub fn for_test(test: &str) -> Option<&'static Contract> {
    static CONTRACT: OnceLock<Result<Contract, ContractError>> = OnceLock::new();
    match CONTRACT.get_or_init(Contract::load) {
        Ok(contract) => Some(contract),
        Err(error @ ContractError::Missing(_)) => {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "{test}: {error}");
            eprintln!("SKIPPED {test}: {error}");
            None
        }
        Err(error) => panic!("{test}: {error}"),
    }
}

impl Contract {
    /// Reads the descriptions.
    ///
    /// # Errors
    /// [`ContractError::Missing`], [`ContractError::Broken`].
    pub fn load() -> Result<Self, ContractError> {
        let directory = locate().ok_or_else(|| ContractError::Missing("found nowhere".into()))?;
        let read = |files: &[&str]| -> Result<Value, ContractError> {
            let path = files
                .iter()
                .map(|file| directory.join(file))
                .find(|path| path.is_file())
                .ok_or_else(|| ContractError::Missing(format!("none of {files:?}")))?;
            let broken = |reason: String| ContractError::Broken { path: path.clone(), reason };
            let text = std::fs::read(&path).map_err(|error| broken(error.to_string()))?;
            serde_json::from_slice(&text).map_err(|error| broken(error.to_string()))
        };
        Ok(Self {
            api: read(&API_FILES)?,
            webhook_api: read(&WEBHOOK_API_FILES)?,
            webhook_schema: read(&WEBHOOK_SCHEMA_FILES)?,
            directory,
            validators: Mutex::default(),
        })
    }

    /// The directory they come from, which has examples too.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Checks a request that a client sent: the operation exists, it has the parameters that it is
    /// called with, the body is what GitHub asks for, and the token is of the right kind.
    ///
    /// # Errors
    /// [`ContractError::Violation`].
    pub fn check_request(&self, request: &Recorded) -> Result<(), ContractError> {
        let what = format!("{} {}", request.method, request.path);
        let mut problems = Vec::new();
        match self.operation(&request.method, &request.path) {
            Some(operation) => {
                self.check_query(operation, request, &mut problems);
                self.check_body(operation, request, &mut problems);
                check_headers(operation, request, &mut problems);
            }
            None => problems.push("GitHub has no such operation".to_owned()),
        }
        verdict(what, problems)
    }

    fn check_query(&self, operation: &Value, request: &Recorded, problems: &mut Vec<String>) {
        let known: Vec<&Value> = list(&operation["parameters"])
            .iter()
            .map(|parameter| self.api_ref(parameter))
            .filter(|parameter| parameter["in"] == "query")
            .collect();
        for (name, value) in &request.query {
            let Some(parameter) = known.iter().find(|there| there["name"] == **name) else {
                problems.push(format!("the query parameter {name:?} is not known"));
                continue;
            };
            let schema = self.api_ref(&parameter["schema"]);
            let sound = match schema["type"].as_str() {
                Some("integer" | "number") => value.parse::<i64>().is_ok(),
                Some("boolean") => value == "true" || value == "false",
                _ => true,
            };
            let choices = list(&schema["enum"]);
            if !sound || !(choices.is_empty() || choices.iter().any(|choice| choice == value)) {
                problems.push(format!("the query parameter {name} cannot be {value:?}"));
            }
        }
    }

    fn check_body(&self, operation: &Value, request: &Recorded, problems: &mut Vec<String>) {
        let wanted = self.api_ref(&operation["requestBody"]);
        if request.body.is_empty() {
            if wanted["required"] == true {
                problems.push("a body is required".to_owned());
            }
            return;
        }
        let schema = &wanted["content"]["application/json"]["schema"];
        if schema.is_null() {
            if request.body != "{}" {
                problems.push("no body is expected".to_owned());
            }
            return;
        }
        let body: Value = match serde_json::from_str(&request.body) {
            Ok(body) => body,
            Err(error) => return problems.push(format!("the body is no JSON: {error}")),
        };
        let key = format!("request {}", operation["operationId"]);
        self.validate(key, &self.api, schema, &body, problems);
        // GitHub ignores what it does not know; a client that sends it is mistaken.
        let known = &self.api_ref(schema)["properties"];
        for name in body.as_object().into_iter().flat_map(Map::keys) {
            if known.get(name).is_none() {
                problems.push(format!("the body's {name:?} is not known"));
            }
        }
    }

    /// Checks an answer: the operation can answer with this status, and the body fits.
    ///
    /// # Errors
    /// [`ContractError::Violation`].
    pub fn check_response(
        &self,
        method: &str,
        path: &str,
        status: u16,
        body: &[u8],
    ) -> Result<(), ContractError> {
        let what = format!("the answer {status} to {method} {path}");
        let mut problems = Vec::new();
        match self.operation(method, path) {
            Some(operation) => self.check_answer(operation, status, body, &mut problems),
            None => problems.push("GitHub has no such operation".to_owned()),
        }
        verdict(what, problems)
    }

    fn check_answer(
        &self,
        operation: &Value,
        status: u16,
        body: &[u8],
        problems: &mut Vec<String>,
    ) {
        let error = json!({"$ref": "#/components/schemas/basic-error"});
        let described = &operation["responses"][status.to_string()];
        // GitHub's description of this one says that an account is a user AND an enterprise, which
        // its own example is not. The same thing is described soundly for a single installation.
        let installations = json!({
            "type": "array", "items": {"$ref": "#/components/schemas/installation"},
        });
        let schema = match (described.is_null(), status) {
            (false, 200) if operation["operationId"] == "apps/list-installations" => &installations,
            (false, _) => &self.api_ref(described)["content"]["application/json"]["schema"],
            // The descriptions do not repeat for every operation what any of them can answer.
            (true, 400 | 401 | 403 | 404 | 422 | 429 | 500..) => &error,
            (true, 304) => &Value::Null,
            (true, _) => {
                return problems.push("the operation does not answer with this status".to_owned());
            }
        };
        if schema.is_null() {
            if !body.is_empty() {
                problems.push("no body is expected".to_owned());
            }
            return;
        }
        match serde_json::from_slice::<Value>(body) {
            Ok(body) => {
                let key = format!("answer {status} {}", operation["operationId"]);
                self.validate(key, &self.api, schema, &body, problems);
            }
            Err(error) => problems.push(format!("the body is no JSON: {error}")),
        }
    }

    /// Checks a webhook's body against both descriptions of it.
    ///
    /// # Errors
    /// [`ContractError::Violation`].
    pub fn check_webhook(&self, event: &str, payload: &Value) -> Result<(), ContractError> {
        let action = payload["action"].as_str();
        let what = format!("the webhook {event} {}", action.unwrap_or_default());
        let mut problems = Vec::new();
        let name = match action {
            Some(action) => format!("{event}-{action}").replace('_', "-"),
            None => event.replace('_', "-"),
        };
        let described = &self.webhook_api["webhooks"][&name]["post"]["requestBody"]["content"]["application/json"]
            ["schema"];
        if described.is_null() {
            problems.push(format!("GitHub has no webhook {name:?}"));
        } else {
            let key = format!("openapi webhook {name}");
            self.validate(key, &self.webhook_api, described, payload, &mut problems);
        }
        let definition = format!("{event}_event");
        if !self.webhook_schema["definitions"][&definition].is_null() {
            let schema = json!({"$ref": format!("#/definitions/{definition}")});
            let key = format!("schema webhook {event}");
            self.validate(key, &self.webhook_schema, &schema, payload, &mut problems);
        }
        verdict(what, problems)
    }

    /// The operation that a request means; a literal path goes before one with parameters.
    fn operation(&self, method: &str, path: &str) -> Option<&Value> {
        let asked: Vec<&str> = path.split('/').collect();
        let (_, operations) = self.api["paths"]
            .as_object()?
            .iter()
            .filter_map(|(template, operations)| {
                let parts: Vec<&str> = template.split('/').collect();
                let fits = parts.len() == asked.len()
                    && parts.iter().zip(&asked).all(|(p, a)| p.starts_with('{') || p == a);
                let literal = parts.iter().filter(|part| !part.starts_with('{')).count();
                fits.then_some((literal, operations))
            })
            .max_by_key(|(literal, _)| *literal)?;
        operations.get(method.to_lowercase())
    }

    /// What a reference inside the API's description points to; anything else is itself.
    fn api_ref<'c>(&'c self, value: &'c Value) -> &'c Value {
        match value["$ref"].as_str().and_then(|target| target.strip_prefix('#')) {
            Some(pointer) => self.api.pointer(pointer).unwrap_or(&Value::Null),
            None => value,
        }
    }

    fn validate(
        &self,
        key: String,
        document: &Value,
        schema: &Value,
        value: &Value,
        problems: &mut Vec<String>,
    ) {
        let mut validators = self.validators.lock().unwrap_or_else(PoisonError::into_inner);
        let validator = match validators.get(&key) {
            Some(validator) => Arc::clone(validator),
            None => match compile(document, schema) {
                Ok(validator) => Arc::clone(validators.entry(key).or_insert(Arc::new(validator))),
                Err(error) => return problems.push(format!("the description is broken: {error}")),
            },
        };
        drop(validators);
        problems.extend(
            validator.iter_errors(value).map(|error| {
                format!("{}: {}", error.instance_path(), shortened(&error.to_string()))
            }),
        );
    }
}

fn verdict(what: String, problems: Vec<String>) -> Result<(), ContractError> {
    if problems.is_empty() { Ok(()) } else { Err(ContractError::Violation { what, problems }) }
}

fn check_headers(operation: &Value, request: &Recorded, problems: &mut Vec<String>) {
    if request.header("user-agent").is_none_or(str::is_empty) {
        problems.push("GitHub refuses requests without a User-Agent".to_owned());
    }
    let id = operation["operationId"].as_str().unwrap_or_default();
    let wanted = if id.starts_with("apps/") && !BY_INSTALLATION.contains(&id) {
        "<app token>"
    } else {
        "<installation token>"
    };
    let there = request.header("authorization").unwrap_or_default();
    if id != "rate-limit/get" && !there.ends_with(wanted) {
        problems.push(format!("it needs an {wanted}, not {there:?}"));
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn shortened(text: &str) -> String {
    const MAX: usize = 300;
    if text.chars().count() <= MAX {
        return text.to_owned();
    }
    // The beginning is the offending value, the end says what is wrong with it.
    let half = |chars: &mut dyn Iterator<Item = char>| chars.take(MAX / 2).collect::<String>();
    let tail: String = half(&mut text.chars().rev()).chars().rev().collect();
    format!("{} … {tail}", half(&mut text.chars()))
}

/// Compiles a schema together with what of the document it refers to.
fn compile(document: &Value, schema: &Value) -> Result<Validator, String> {
    let mut root = json!({"allOf": [converted(schema)]});
    let mut seen = BTreeSet::new();
    let mut open = references(schema);
    while let Some(target) = open.pop() {
        if !seen.insert(target.clone()) {
            continue;
        }
        let pointer = target.strip_prefix('#').ok_or_else(|| format!("{target} is elsewhere"))?;
        let found = document.pointer(pointer).ok_or_else(|| format!("{target} is missing"))?;
        open.extend(references(found));
        let mut place = &mut root;
        for part in pointer.trim_start_matches('/').split('/') {
            let part = part.replace("~1", "/").replace("~0", "~");
            if place.get(&part).is_none() {
                place[&part] = json!({});
            }
            place = &mut place[&part];
        }
        *place = converted(found);
    }
    jsonschema::options()
        .with_draft(Draft::Draft7)
        .should_validate_formats(true)
        .should_ignore_unknown_formats(true)
        .build(&root)
        .map_err(|error| error.to_string())
}

/// All references inside a value.
fn references(value: &Value) -> Vec<String> {
    match value {
        Value::Object(map) => {
            let own = map.get("$ref").and_then(Value::as_str).map(str::to_owned);
            own.into_iter().chain(map.values().flat_map(references)).collect()
        }
        Value::Array(items) => items.iter().flat_map(references).collect(),
        _ => Vec::new(),
    }
}

/// Rewrites what OpenAPI 3.0 words differently from JSON Schema: `nullable`, and `exclusiveMinimum` as
/// a flag. Example values must not be taken for schemas.
fn converted(schema: &Value) -> Value {
    match schema {
        Value::Array(items) => Value::Array(items.iter().map(converted).collect()),
        Value::Object(map) => {
            let mut new: Map<String, Value> = map
                .iter()
                .filter(|(name, value)| {
                    !(matches!(name.as_str(), "example" | "examples") && !is_schema(value)
                        || name.as_str() == "nullable" && value.is_boolean()
                        || matches!(name.as_str(), "exclusiveMinimum" | "exclusiveMaximum")
                            && value.is_boolean()
                        || name.as_str() == "$schema")
                })
                .map(|(name, value)| {
                    let keep = matches!(name.as_str(), "enum" | "default" | "const");
                    (name.clone(), if keep { value.clone() } else { converted(value) })
                })
                .collect();
            if map.get("nullable") == Some(&Value::Bool(true)) {
                if let Some(Value::Array(choices)) = new.get_mut("enum")
                    && !choices.contains(&Value::Null)
                {
                    choices.push(Value::Null);
                }
                return json!({"anyOf": [{"type": "null"}, Value::Object(new)]});
            }
            Value::Object(new)
        }
        other => other.clone(),
    }
}

/// Whether something named `example` is a property's schema rather than an example.
fn is_schema(value: &Value) -> bool {
    value.as_object().is_some_and(|map| map.contains_key("type") || map.contains_key("$ref"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nullable_means_null_is_allowed() {
        let document = json!({"components": {"schemas": {"name": {
            "type": "object", "nullable": true, "required": ["a"],
            "properties": {"a": {"type": "string", "nullable": true, "enum": ["x"]},
                           "example": {"type": "integer"}},
        }}}});
        let schema = json!({"$ref": "#/components/schemas/name"});
        let validator = compile(&document, &schema).expect("a sound schema");
        for sound in [json!(null), json!({"a": null}), json!({"a": "x", "example": 1})] {
            assert!(validator.is_valid(&sound), "{sound}");
        }
        for wrong in [json!(1), json!({}), json!({"a": "y"}), json!({"a": "x", "example": "1"})] {
            assert!(!validator.is_valid(&wrong), "{wrong}");
        }
    }
}
