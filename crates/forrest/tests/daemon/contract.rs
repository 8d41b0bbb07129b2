//! GitHub's own examples of webhooks at the real endpoint.

use serde_json::Value;
use std::path::PathBuf;

use crate::http::deliver;
use crate::scene::{end, root, testbed};

/// The examples by the event's name, from whichever of the files is there.
///
/// They are not part of the repository: `FORREST_GITHUB_CONTRACT`, the directory beside the
/// repository, or what `tools/fetch-github-contract` put into `target/`. `None`, said loudly, where
/// there is none.
fn examples() -> Option<Vec<(String, Value)>> {
    let places = match std::env::var_os("FORREST_GITHUB_CONTRACT") {
        Some(named) => vec![PathBuf::from(named)],
        None => ["../shared", "target"].map(|dir| root().join(dir).join("github-contract")).into(),
    };
    let names = [
        "webhook-workflow_job.examples.json",
        "webhook-ping-installation.examples.api.github.com.json",
        "webhooks-examples.api.github.com.json",
    ];
    let mut found = Vec::new();
    for file in places.iter().flat_map(|place| names.map(|name| place.join(name))) {
        let Ok(text) = std::fs::read_to_string(&file) else { continue };
        let data: Value = serde_json::from_str(&text).expect("a file of JSON");
        let events = if data.is_array() { data } else { Value::Array(vec![data]) };
        for event in events.as_array().into_iter().flatten() {
            let name = event["name"].as_str().unwrap_or("workflow_job");
            let all = event["examples"].as_array().into_iter().flatten();
            found.extend(all.map(|example| (name.to_owned(), example.clone())));
        }
    }
    if found.is_empty() {
        let missing = format!("GitHub's examples of webhooks are in none of {places:?}");
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{missing}");
        eprintln!("NOT TESTED: {missing}");
        return None;
    }
    Some(found)
}

#[tokio::test]
async fn every_example_of_githubs_is_accepted() {
    let Some(examples) = examples() else { return };
    let Some(testbed) = testbed("contract").await else { return };
    let mut jobs = 0;
    for (event, example) in &examples {
        let expected = if event == "workflow_job" { 202 } else { 200 };
        jobs += usize::from(event == "workflow_job");
        let answered = deliver(&testbed, event, example.to_string().as_bytes()).await;
        assert_eq!(answered, Some(expected), "{event}: {example}");
    }
    assert!(jobs > 2, "only {jobs} examples of jobs");
    // None of them is about a repository of ours.
    let view = testbed.client().status().await.expect("a status").view;
    assert!(view.jobs.is_empty() && view.runs.is_empty());
    end(testbed).await;
}
