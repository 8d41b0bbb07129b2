//! Workflow runs.

use serde_json::{Value, json};

use super::{node_id, repository, user};
use crate::model::{WorkflowRun, World};

/// A workflow run.
pub(crate) fn run(world: &World, run: &WorkflowRun) -> Value {
    let repo = world.repositories.get(&run.repository);
    let head = run.head_repository.and_then(|id| world.repositories.get(&id)).or(repo);
    let full_name = repo.map(crate::model::Repository::full_name).unwrap_or_default();
    let api = format!("{}/repos/{full_name}/actions/runs/{}", world.settings.api_url, run.id);
    let status = world.run_status(run.id);
    let actor = head
        .and_then(|head| world.accounts.get(&head.owner.to_lowercase()))
        .map(|account| user(&world.settings, account));
    let attempt = run.attempt();
    // One workflow file and one check suite per run are as good as any.
    let (workflow, suite) = (run.number, run.id.0 + 1);
    let repo_api = format!("{}/repos/{full_name}", world.settings.api_url);
    let person = json!({"name": "Octo Cat", "email": "octocat@example.com"});
    json!({
        "id": run.id.0,
        "name": run.workflow.name,
        "node_id": node_id("WorkflowRun", run.id.0),
        "check_suite_id": suite,
        "check_suite_node_id": node_id("CheckSuite", suite),
        "head_branch": run.workflow.branch,
        "head_sha": run.sha,
        "path": ".github/workflows/ci.yml",
        "display_title": format!("{} on {}", run.workflow.name, run.workflow.branch),
        "run_number": run.number,
        "run_attempt": attempt,
        "referenced_workflows": [],
        "event": run.workflow.event,
        "status": status.status,
        "conclusion": status.conclusion,
        "workflow_id": workflow,
        "url": api,
        "html_url": format!("{}/{full_name}/actions/runs/{}", world.settings.html_url, run.id),
        "pull_requests": [],
        "created_at": run.created_at.iso(),
        "updated_at": run.updated_at.iso(),
        "run_started_at": run.attempt_started_at.iso(),
        "actor": actor,
        "triggering_actor": actor,
        "jobs_url": format!("{api}/jobs"),
        "logs_url": format!("{api}/logs"),
        "check_suite_url": format!("{repo_api}/check-suites/{suite}"),
        "artifacts_url": format!("{api}/artifacts"),
        "cancel_url": format!("{api}/cancel"),
        "rerun_url": format!("{api}/rerun"),
        "previous_attempt_url":
            (attempt > 1).then(|| format!("{api}/attempts/{}", attempt - 1)),
        "workflow_url": format!("{repo_api}/actions/workflows/{workflow}"),
        "head_commit": {
            "id": run.sha,
            "tree_id": run.sha,
            "message": "A change",
            "timestamp": run.created_at.iso(),
            "author": person,
            "committer": person,
        },
        "repository": repo.map(|repo| repository(world, repo)),
        "head_repository": head.map(|head| repository(world, head)),
    })
}
