//! Self-hosted runners.

use hyper::StatusCode;
use serde_json::{Value, json};

use super::call::{Answer, Call};
use super::page::Page;
use super::reply::Reply;
use super::route::Slug;
use super::shape;
use crate::model::{RegisterError, RemovalReason, RepositoryId, Runner, RunnerId, World};
use crate::runner;

/// GitHub's limits on what is registered.
const MAX_LABELS: usize = 100;
const MAX_NAME_LEN: usize = 64;
/// The only runner group that a repository has.
const DEFAULT_GROUP: u64 = 1;

pub(super) fn runners(world: &World, call: &Call<'_>, slug: &Slug) -> Answer {
    let repo = call.repository(world, slug, "administration", "read")?;
    let name = call.request.query("name");
    let all: Vec<&Runner> = world
        .runners
        .values()
        .filter(|runner| runner.repository == repo)
        .filter(|runner| name.is_none_or(|name| runner.name == name))
        .collect();
    let page = Page::of(call.request);
    let shapes: Vec<Value> = page.cut(&all).iter().map(|runner| shape::runner(runner)).collect();
    let reply = Reply::ok(json!({"total_count": all.len(), "runners": shapes}));
    Ok(call.linked(page, all.len(), reply))
}

fn find(world: &World, repo: RepositoryId, id: u64) -> Result<&Runner, Reply> {
    world.runners.get(&RunnerId(id)).filter(|r| r.repository == repo).ok_or_else(Reply::not_found)
}

pub(super) fn runner(world: &World, call: &Call<'_>, slug: &Slug, id: u64) -> Answer {
    let repo = call.repository(world, slug, "administration", "read")?;
    Ok(Reply::ok(shape::runner(find(world, repo, id)?)))
}

pub(super) fn labels(world: &World, call: &Call<'_>, slug: &Slug, id: u64) -> Answer {
    let repo = call.repository(world, slug, "administration", "read")?;
    let labels = &find(world, repo, id)?.labels;
    let shapes: Vec<Value> = labels.iter().enumerate().map(shape::label).collect();
    Ok(Reply::ok(json!({"total_count": labels.len(), "labels": shapes})))
}

pub(super) fn delete(world: &mut World, call: &Call<'_>, slug: &Slug, id: u64) -> Answer {
    let repo = call.repository(world, slug, "administration", "write")?;
    let runner = find(world, repo, id)?;
    if runner.state.job().is_some() {
        return Err(Reply::error(
            StatusCode::UNPROCESSABLE_ENTITY,
            &format!("Runner \"{}\" is still running a job\"", runner.name),
        ));
    }
    let id = runner.id;
    world.remove_runner(id, RemovalReason::Deleted, call.now);
    Ok(Reply::empty(StatusCode::NO_CONTENT))
}

pub(super) fn generate_jit_config(world: &mut World, call: &Call<'_>, slug: &Slug) -> Answer {
    let repo = call.repository(world, slug, "administration", "write")?;
    let body = call
        .request
        .object()
        .ok_or_else(|| Reply::error(StatusCode::BAD_REQUEST, "Problems parsing JSON"))?;
    let wanted = Wanted::read(&body).map_err(Reply::invalid)?;
    if wanted.group != DEFAULT_GROUP {
        return Err(Reply::not_found());
    }
    let id = world.register_runner(repo, &wanted.name, wanted.labels, call.now).map_err(
        |RegisterError::NameTaken| {
            Reply::error(
                StatusCode::CONFLICT,
                &format!("Already exists - A runner with the name \"{}\" exists.", wanted.name),
            )
        },
    )?;
    let there = world.runners.get(&id).ok_or_else(Reply::not_found)?;
    let config = runner::jit_config(world, there, &wanted.work_folder);
    Ok(Reply::json(
        StatusCode::CREATED,
        json!({"runner": shape::runner(there), "encoded_jit_config": config}),
    ))
}

/// The body of a registration, checked.
struct Wanted {
    name: String,
    group: u64,
    labels: Vec<String>,
    work_folder: String,
}

impl Wanted {
    fn read(body: &serde_json::Map<String, Value>) -> Result<Self, Vec<String>> {
        let mut errors = Vec::new();
        let name = match body.get("name") {
            Some(Value::String(name)) if (1..=MAX_NAME_LEN).contains(&name.len()) => name.clone(),
            _ => {
                errors.push(format!("name must be a text of 1 to {MAX_NAME_LEN} characters"));
                String::new()
            }
        };
        let group = body.get("runner_group_id").and_then(Value::as_u64).unwrap_or_else(|| {
            errors.push("runner_group_id must be a number".to_owned());
            0
        });
        let labels: Option<Vec<String>> =
            body.get("labels").and_then(Value::as_array).and_then(|labels| {
                labels.iter().map(|label| label.as_str().map(str::to_owned)).collect()
            });
        let sound = |labels: &Vec<String>| {
            (1..=MAX_LABELS).contains(&labels.len()) && labels.iter().all(|l| !l.trim().is_empty())
        };
        let labels = labels.filter(sound).unwrap_or_else(|| {
            errors.push(format!("labels must be 1 to {MAX_LABELS} texts"));
            Vec::new()
        });
        let work_folder = match body.get("work_folder") {
            None => "_work".to_owned(),
            Some(Value::String(folder)) => folder.clone(),
            Some(_) => {
                errors.push("work_folder must be a text".to_owned());
                String::new()
            }
        };
        if errors.is_empty() { Ok(Self { name, group, labels, work_folder }) } else { Err(errors) }
    }
}

pub(super) fn downloads(world: &World, call: &Call<'_>, slug: &Slug) -> Answer {
    call.repository(world, slug, "administration", "read")?;
    let tarball = runner::runner_tarball();
    // The stand-in is a shell script: one file for every architecture.
    let shapes: Vec<Value> = runner::ARCHITECTURES
        .iter()
        .map(|architecture| {
            let filename = runner::tarball_name(architecture);
            json!({
                "os": "linux",
                "architecture": architecture,
                "download_url": format!("{}/_sim/runner/{filename}", world.settings.api_url),
                "filename": filename,
                "sha256_checksum": tarball.sha256,
            })
        })
        .collect();
    Ok(Reply::ok(Value::Array(shapes)))
}
