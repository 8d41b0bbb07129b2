//! Jobs, their steps, and the deployment that a gated job waits for.

use serde_json::{Value, json};

use super::{node_id, user};
use crate::model::{Account, Job, Step, World};

/// A job, for the API and for webhooks alike.
pub(crate) fn job(world: &World, job: &Job) -> Value {
    let settings = &world.settings;
    let run = world.runs.get(&job.run);
    let full_name = world
        .repositories
        .get(&job.repository)
        .map(crate::model::Repository::full_name)
        .unwrap_or_default();
    let api = format!("{}/repos/{full_name}", settings.api_url);
    let runner = job.runner.as_ref();
    json!({
        "id": job.id.0,
        "run_id": job.run.0,
        "run_url": format!("{api}/actions/runs/{}", job.run),
        "run_attempt": job.attempt,
        "node_id": node_id("CheckRun", job.id.0),
        "head_sha": run.map_or("", |run| run.sha.as_str()),
        "head_branch": run.map(|run| run.workflow.branch.as_str()),
        "workflow_name": run.map(|run| run.workflow.name.as_str()),
        "url": format!("{api}/actions/jobs/{}", job.id),
        "html_url": format!(
            "{}/{full_name}/actions/runs/{}/job/{}", settings.html_url, job.run, job.id
        ),
        "status": job.state.status(),
        "conclusion": job.state.conclusion().map(|conclusion| conclusion.as_str()),
        "created_at": job.created_at.iso(),
        "started_at": job.started_at().iso(),
        "completed_at": job.times.completed.map(|at| at.iso()),
        "name": job.spec.name,
        "steps": job.steps.iter().enumerate().map(step).collect::<Vec<_>>(),
        "check_run_url": format!("{api}/check-runs/{}", job.id),
        "labels": job.labels(),
        "runner_id": runner.map(|runner| runner.id.0),
        "runner_name": runner.map(|runner| runner.name.as_str()),
        "runner_group_id": runner.map(|_| 1),
        "runner_group_name": runner.map(|_| "Default"),
    })
}

fn step((index, step): (usize, &Step)) -> Value {
    let status = match (step.started, step.completed) {
        (_, Some(_)) => "completed",
        (Some(_), None) => "in_progress",
        (None, None) => "queued",
    };
    json!({
        "name": step.name,
        "status": status,
        "conclusion": step.completed.map(|(_, conclusion)| conclusion.as_str()),
        "number": index + 1,
        "started_at": step.started.map(|at| at.iso()),
        "completed_at": step.completed.map(|(at, _)| at.iso()),
    })
}

/// The deployment that comes with the events of a job behind an approval.
pub(crate) fn deployment(world: &World, job: &Job, creator: &Account) -> Value {
    let run = world.runs.get(&job.run);
    let full_name = world
        .repositories
        .get(&job.repository)
        .map(crate::model::Repository::full_name)
        .unwrap_or_default();
    let repo = format!("{}/repos/{full_name}", world.settings.api_url);
    // One deployment per job.
    let id = job.id.0;
    let api = format!("{repo}/deployments/{id}");
    let environment = job.spec.environment.as_deref().unwrap_or_default();
    json!({
        "url": api,
        "id": id,
        "node_id": node_id("Deployment", id),
        "task": "deploy",
        "original_environment": environment,
        "environment": environment,
        "description": null,
        "created_at": job.created_at.iso(),
        "updated_at": job.created_at.iso(),
        "statuses_url": format!("{api}/statuses"),
        "repository_url": repo,
        "creator": user(&world.settings, creator),
        "sha": run.map_or("", |run| run.sha.as_str()),
        "ref": run.map_or("", |run| run.workflow.branch.as_str()),
        "payload": {},
        "transient_environment": false,
        "production_environment": false,
        "performed_via_github_app": null,
    })
}
