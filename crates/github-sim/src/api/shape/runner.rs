//! Runners and their labels.

use serde_json::{Value, json};

use crate::model::Runner;

/// A runner.
pub(crate) fn runner(runner: &Runner) -> Value {
    json!({
        "id": runner.id.0,
        "runner_group_id": 1,
        "name": runner.name,
        // GitHub learns the system when the runner connects.
        "os": if runner.first_online.is_some() { "linux" } else { "unknown" },
        "status": runner.state.status(),
        "busy": runner.state.job().is_some(),
        "ephemeral": true,
        "labels": runner.labels.iter().enumerate().map(label).collect::<Vec<_>>(),
    })
}

/// A label.
pub(crate) fn label((index, name): (usize, &String)) -> Value {
    let kind = if name.eq_ignore_ascii_case("self-hosted") { "read-only" } else { "custom" };
    json!({"id": index + 1, "name": name, "type": kind})
}
