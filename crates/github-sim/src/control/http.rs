//! The simulator's own interface over HTTP, below `/_sim/`: for scripts, demos and curious people.

use std::sync::Arc;
use std::time::Duration;

use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::api::{Body, Reply, Request};
use crate::error::SimError;
use crate::model::{
    AccountKind, Faults, InstallationId, JobId, JobLog, JobView, RemovalReason, RunId, RunnerId,
    RunnerState, Workflow, World,
};
use crate::runner::{self, ARCHITECTURES, runner_tarball, tarball_name};
use crate::shared::Shared;
use crate::webhooks;

use super::RepositorySpec;

/// How long a request may wait for something.
const MAX_WAIT: Duration = Duration::from_secs(3_600);

/// What there is below `/_sim/`.
pub const HELP: &str = "\
The simulator's own interface (GitHub's API is beside it, also below /api/v3):

  GET    /_sim/                              this text
  GET    /_sim/jobs                          all jobs
  GET    /_sim/jobs/ID                       one job, with its times
  GET    /_sim/jobs/ID/log                   its log
  GET    /_sim/jobs/ID/wait?status=completed&timeout_s=600
                                             the same once it has that status; 408 after the time
  POST   /_sim/jobs/ID/approve | reject      a job behind an approval
  POST   /_sim/workflows                     triggers a workflow:
           {\"repository\": \"owner/name\", \"event\": \"push\", \"branch\": \"main\", \"jobs\": [
             {\"name\": \"build\", \"runs_on\": [\"self-hosted\", \"forrest\", \"build\"],
              \"steps\": [\"echo hello\"], \"needs\": [], \"secrets\": {\"PERSISTENCE_TOKEN\": \"…\"}}]}
           also: name, sha, from_fork; per job: env, environment, skip, timeout_minutes;
           a step may be {\"name\": …, \"run\": …, \"always\": true}
  POST   /_sim/runs/ID/cancel | force-cancel | rerun | rerun-failed
  GET    /_sim/runners                       registered runners
  DELETE /_sim/runners/ID                    removes one behind the client's back
  POST   /_sim/repositories                  {\"owner\": …, \"name\": …, \"organization\": false}
  POST   /_sim/installations/ID/suspend | unsuspend
  POST   /_sim/tokens/expire                 withdraws all access tokens
  POST   /_sim/ping                          sends a ping to the webhook
  GET    /_sim/faults                        the faults in force
  POST   /_sim/faults                        adds faults:
           {\"api\": [{\"operation\": \"*\", \"effect\": \"slow\", \"ms\": 100, \"when\": \"always\"}],
            \"webhooks\": [{\"action\": \"queued\", \"effect\": \"drop\", \"when\": {\"next\": 1}}],
            \"clock_skew_s\": 0}
           api effects: status (status), hang, slow (ms), lose_response, malformed_json,
             primary_limit (reset_s), secondary_limit (retry_after_s), refuse_token
           webhook effects: drop, forget, delay (min_ms, max_ms), double, reorder
           when: \"always\", {\"next\": n}, {\"probability\": p}
  DELETE /_sim/faults                        ends all faults
  GET    /_sim/clock                         what time it is, in microseconds since 1970
  POST   /_sim/clock                         {\"advance_s\": 60}: puts the clock forward
  GET    /_sim/requests                      the API requests so far, secrets removed
  GET    /_sim/events?after=N                the timeline after event N
  GET    /_sim/runner/                       the stand-in runner's files
";

type Answer = Result<Reply, Reply>;

/// Answers a request below `/_sim`.
pub(crate) async fn answer(shared: &Arc<Shared>, request: &Request) -> Reply {
    let path = request.path.trim_start_matches("/_sim").trim_matches('/');
    let segments: Vec<&str> = path.split('/').collect();
    let waiting = match segments.as_slice() {
        ["jobs", job, "wait"] if request.method == Method::GET => {
            Some(wait(shared, request, job).await)
        }
        _ => None,
    };
    let answer = waiting.unwrap_or_else(|| match request.method {
        Method::GET | Method::HEAD => get(shared, request, &segments),
        Method::POST => post(shared, request, &segments),
        Method::DELETE => delete(shared, &segments),
        _ => Err(Reply::not_found()),
    });
    answer.unwrap_or_else(|error| error)
}

fn id(text: &str) -> Result<u64, Reply> {
    text.parse().map_err(|_| Reply::not_found())
}

fn failed(error: &SimError) -> Reply {
    let status = match error {
        SimError::UnknownRepository(_)
        | SimError::UnknownInstallation(_)
        | SimError::UnknownRun(_)
        | SimError::UnknownJob(_)
        | SimError::UnknownRunner(_) => StatusCode::NOT_FOUND,
        SimError::JobState { .. } | SimError::RunState { .. } | SimError::RunnerBusy(_) => {
            StatusCode::CONFLICT
        }
        _ => StatusCode::UNPROCESSABLE_ENTITY,
    };
    Reply::error(status, &error.to_string())
}

fn shown<T: serde::Serialize>(result: Result<T, SimError>) -> Answer {
    let value = result.map_err(|error| failed(&error))?;
    let json = serde_json::to_value(value);
    json.map(Reply::ok).map_err(|e| Reply::error(StatusCode::INTERNAL_SERVER_ERROR, &e.to_string()))
}

fn done(result: Result<(), SimError>) -> Answer {
    shown(result.map(|()| json!({})))
}

fn body<'b, T: Deserialize<'b>>(request: &'b Request) -> Result<T, Reply> {
    serde_json::from_slice(&request.body)
        .map_err(|error| Reply::error(StatusCode::BAD_REQUEST, &format!("the body: {error}")))
}

fn get(shared: &Shared, request: &Request, segments: &[&str]) -> Answer {
    match segments {
        [""] => Ok(Reply::text(StatusCode::OK, HELP)),
        ["jobs"] => shown(Ok(shared.with(|world, _| {
            let views = world.jobs.keys().filter_map(|job| world.job_view(*job).ok());
            views.collect::<Vec<JobView>>()
        }))),
        ["jobs", job] => {
            let job = JobId(id(job)?);
            shown(shared.with(|world, _| world.job_view(job)))
        }
        ["jobs", job, "log"] => {
            let job = JobId(id(job)?);
            let text = shared.with(|world, _| world.logs.get(&job).map(JobLog::text));
            Ok(Reply::text(StatusCode::OK, text.ok_or_else(Reply::not_found)?))
        }
        ["runners"] => shown(Ok(shared.with(|world, _| {
            let views = world.runners.keys().filter_map(|runner| world.runner_view(*runner).ok());
            views.collect::<Vec<_>>()
        }))),
        ["clock"] => shown(Ok(shared.with(|_, now| json!({"unix_us": now.0})))),
        ["faults"] => shown(Ok(shared.with(|world, _| world.faults.clone()))),
        ["requests"] => shown(Ok(shared.requests())),
        ["events"] => {
            let after = request.query("after").map_or(Ok(0), id)?;
            shown(Ok(
                shared.with(|world, _| world.timeline.after(after).cloned().collect::<Vec<_>>())
            ))
        }
        ["runner"] => {
            let mut names: Vec<String> = ARCHITECTURES.iter().map(|a| tarball_name(a)).collect();
            names.push("run.sh".to_owned());
            let sum = &runner_tarball().sha256;
            Ok(Reply::ok(json!({"files": names, "sha256": sum})))
        }
        ["runner", "run.sh"] => Ok(Reply::text(StatusCode::OK, runner::run_sh())),
        // The last form is that of the releases of GitHub's own runner.
        ["runner", file] | ["runner", "releases", "download", _, file]
            if ARCHITECTURES.iter().any(|a| tarball_name(a) == *file) =>
        {
            let mut reply = Reply::empty(StatusCode::OK);
            reply.body = Body::Raw {
                content_type: "application/gzip",
                bytes: runner_tarball().bytes.clone(),
            };
            Ok(reply)
        }
        _ => Err(Reply::not_found()),
    }
}

#[derive(Deserialize)]
struct NewWorkflow {
    repository: String,
    #[serde(flatten)]
    workflow: serde_json::Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClockChange {
    advance_s: u64,
}

fn post(shared: &Shared, request: &Request, segments: &[&str]) -> Answer {
    match segments {
        ["workflows"] => {
            let new: NewWorkflow = body(request)?;
            let workflow: Workflow = serde_json::from_value(Value::Object(new.workflow))
                .map_err(|e| Reply::error(StatusCode::BAD_REQUEST, &format!("the body: {e}")))?;
            shown(shared.with(|world, now| {
                let repository = world.repository_named(&new.repository)?;
                let run = world.queue_workflow(repository, workflow, now)?;
                Ok(ids(world, run))
            }))
        }
        ["jobs", job, verb @ ("approve" | "reject")] => {
            let job = JobId(id(job)?);
            done(shared.with(|world, now| world.approve(job, *verb == "approve", now)))
        }
        ["runs", run, verb @ ("cancel" | "force-cancel")] => {
            let run = RunId(id(run)?);
            done(shared.with(|world, now| world.cancel_run(run, *verb == "force-cancel", now)))
        }
        ["runs", run, verb @ ("rerun" | "rerun-failed")] => {
            let run = RunId(id(run)?);
            shown(shared.with(|world, now| {
                world.rerun(run, *verb == "rerun-failed", now)?;
                Ok(ids(world, run))
            }))
        }
        ["repositories"] => {
            let new: RepositorySpec = body(request)?;
            let kind = if new.organization { AccountKind::Organization } else { AccountKind::User };
            let id = shared.with(|world, now| {
                world.add_repository(&new.owner, &new.name, kind, new.private, now)
            });
            Ok(Reply::ok(json!({"id": id})))
        }
        ["installations", there, verb @ ("suspend" | "unsuspend")] => {
            let there = InstallationId(id(there)?);
            done(shared.with(|world, now| world.suspend(there, *verb == "suspend", now)))
        }
        ["tokens", "expire"] => {
            shared.with(|world, _| world.tokens.clear());
            Ok(Reply::ok(json!({})))
        }
        ["ping"] => {
            shared.with(|world, now| {
                for dispatch in webhooks::ping(world, now) {
                    shared.enqueue(world, dispatch, now);
                }
            });
            Ok(Reply::ok(json!({})))
        }
        ["faults"] => {
            let more: Faults = body(request)?;
            shown(Ok(shared.with(|world, _| {
                world.faults.add(more);
                world.faults.clone()
            })))
        }
        ["clock"] => {
            let change: ClockChange = body(request)?;
            shared.advance(Duration::from_secs(change.advance_s));
            Ok(Reply::ok(json!({"now": shared.with(|_, now| now)})))
        }
        _ => Err(Reply::not_found()),
    }
}

/// The ids of a workflow run and its jobs.
fn ids(world: &World, run: RunId) -> Value {
    let jobs: Vec<Value> = world
        .runs
        .get(&run)
        .into_iter()
        .flat_map(|run| run.jobs())
        .filter_map(|id| world.jobs.get(id))
        .map(|job| json!({"name": job.spec.name, "id": job.id}))
        .collect();
    json!({"run_id": run, "jobs": jobs})
}

fn delete(shared: &Shared, segments: &[&str]) -> Answer {
    match segments {
        ["faults"] => {
            shared.with(|world, _| world.faults = Faults::default());
            Ok(Reply::ok(json!({})))
        }
        ["runners", runner] => {
            let runner = RunnerId(id(runner)?);
            done(shared.with(|world, now| {
                let there = world.runners.get(&runner).ok_or(SimError::UnknownRunner(runner))?;
                if matches!(there.state, RunnerState::Busy { .. }) {
                    return Err(SimError::RunnerBusy(runner));
                }
                world.remove_runner(runner, RemovalReason::BehindBack, now);
                Ok(())
            }))
        }
        _ => Err(Reply::not_found()),
    }
}

/// Waits until a job has a status.
async fn wait(shared: &Shared, request: &Request, job: &str) -> Answer {
    let job = JobId(id(job)?);
    let status = request.query("status").unwrap_or("completed");
    let timeout = request.query("timeout_s").map_or(Ok(600), id)?;
    let found = shared.wait(|world| match world.job_view(job) {
        Ok(view) => (view.status == status).then_some(Ok(view)),
        Err(error) => Some(Err(error)),
    });
    match tokio::time::timeout(Duration::from_secs(timeout).min(MAX_WAIT), found).await {
        Ok(found) => shown(found),
        Err(_) => Err(Reply::error(StatusCode::REQUEST_TIMEOUT, "not in this time")),
    }
}
