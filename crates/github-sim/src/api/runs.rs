//! Workflow runs and jobs.

use hyper::StatusCode;
use serde_json::{Value, json};

use super::call::{Answer, Call};
use super::page::Page;
use super::reply::Reply;
use super::route::Slug;
use super::shape;
use crate::model::{Job, JobId, JobState, Moment, RepositoryId, RunId, WorkflowRun, World};

/// The most results that GitHub lists when a filter is given.
const MAX_FILTERED: usize = 1_000;

pub(super) fn runs(world: &World, call: &Call<'_>, slug: &Slug) -> Answer {
    let repo = call.repository(world, slug, "actions", "read")?;
    let created = match call.request.query("created") {
        Some(text) => Some(Created::parse(text).ok_or_else(|| {
            Reply::invalid(vec![format!("{text:?} is not a valid date or range for created")])
        })?),
        None => None,
    };
    let status = call.request.query("status");
    let equals =
        |name: &str, value: &str| call.request.query(name).is_none_or(|wanted| wanted == value);
    let mut all: Vec<&WorkflowRun> = world
        .runs
        .values()
        .rev()
        .filter(|run| run.repository == repo)
        .filter(|run| created.is_none_or(|created| created.holds(run.created_at)))
        .filter(|run| equals("event", &run.workflow.event))
        .filter(|run| equals("branch", &run.workflow.branch))
        .filter(|run| equals("head_sha", &run.sha))
        .filter(|run| {
            status.is_none_or(|wanted| {
                let there = world.run_status(run.id);
                there.status == wanted || there.conclusion == Some(wanted)
            })
        })
        .collect();
    let total = all.len();
    if created.is_some() || status.is_some() {
        all.truncate(MAX_FILTERED);
    }
    let page = Page::of(call.request);
    let shapes: Vec<Value> = page.cut(&all).iter().map(|run| shape::run(world, run)).collect();
    let reply = Reply::ok(json!({"total_count": total, "workflow_runs": shapes}));
    Ok(call.linked(page, all.len(), reply))
}

/// The `created` filter: `>=DATE`, `>DATE`, `<=DATE`, `<DATE`, `DATE..DATE`, `DATE`. Whole seconds,
/// or whole days where only a date is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Created {
    from: Moment,
    /// Not included.
    until: Moment,
}

impl Created {
    fn parse(text: &str) -> Option<Self> {
        let all = Self { from: Moment(0), until: Moment(u64::MAX) };
        if let Some(date) = text.strip_prefix(">=") {
            return Some(Self { from: Self::span(date)?.from, ..all });
        }
        if let Some(date) = text.strip_prefix("<=") {
            return Some(Self { until: Self::span(date)?.until, ..all });
        }
        if let Some(date) = text.strip_prefix('>') {
            return Some(Self { from: Self::span(date)?.until, ..all });
        }
        if let Some(date) = text.strip_prefix('<') {
            return Some(Self { until: Self::span(date)?.from, ..all });
        }
        if let Some((from, until)) = text.split_once("..") {
            let from = if from == "*" { all.from } else { Self::span(from)?.from };
            let until = if until == "*" { all.until } else { Self::span(until)?.until };
            return Some(Self { from, until });
        }
        Self::span(text)
    }

    /// The day or the second that a date means.
    fn span(date: &str) -> Option<Self> {
        let from = Moment::parse(date)?;
        let secs = if date.len() == 10 { 24 * 3600 } else { 1 };
        Some(Self { from, until: from.after(std::time::Duration::from_secs(secs)) })
    }

    fn holds(&self, moment: Moment) -> bool {
        (self.from..self.until).contains(&moment)
    }
}

fn find_run(world: &World, repo: RepositoryId, id: u64) -> Result<&WorkflowRun, Reply> {
    world.runs.get(&RunId(id)).filter(|run| run.repository == repo).ok_or_else(Reply::not_found)
}

pub(super) fn run(world: &World, call: &Call<'_>, slug: &Slug, id: u64) -> Answer {
    let repo = call.repository(world, slug, "actions", "read")?;
    Ok(Reply::ok(shape::run(world, find_run(world, repo, id)?)))
}

pub(super) fn jobs(
    world: &World,
    call: &Call<'_>,
    slug: &Slug,
    id: u64,
    attempt: Option<u64>,
) -> Answer {
    let repo = call.repository(world, slug, "actions", "read")?;
    let run = find_run(world, repo, id)?;
    let ids: Vec<JobId> = match attempt {
        Some(number) => {
            let index = usize::try_from(number).ok().and_then(|n| n.checked_sub(1));
            index.and_then(|i| run.attempts.get(i)).ok_or_else(Reply::not_found)?.clone()
        }
        None if call.request.query("filter") == Some("all") => {
            let mut ids: Vec<JobId> = run.attempts.iter().flatten().copied().collect();
            ids.sort_unstable();
            ids.dedup();
            ids
        }
        None => run.jobs().to_vec(),
    };
    let all: Vec<&Job> = ids
        .iter()
        .filter_map(|id| world.jobs.get(id))
        .filter(|job| job.state != JobState::Blocked)
        .collect();
    let page = Page::of(call.request);
    let shapes: Vec<Value> = page.cut(&all).iter().map(|job| shape::job(world, job)).collect();
    let reply = Reply::ok(json!({"total_count": all.len(), "jobs": shapes}));
    Ok(call.linked(page, all.len(), reply))
}

fn find_job(world: &World, repo: RepositoryId, id: u64) -> Result<&Job, Reply> {
    world
        .jobs
        .get(&JobId(id))
        .filter(|job| job.repository == repo && job.state != JobState::Blocked)
        .ok_or_else(Reply::not_found)
}

pub(super) fn job(world: &World, call: &Call<'_>, slug: &Slug, id: u64) -> Answer {
    let repo = call.repository(world, slug, "actions", "read")?;
    Ok(Reply::ok(shape::job(world, find_job(world, repo, id)?)))
}

pub(super) fn job_logs(world: &World, call: &Call<'_>, slug: &Slug, id: u64) -> Answer {
    let repo = call.repository(world, slug, "actions", "read")?;
    let job = find_job(world, repo, id)?;
    let place = format!("{}/_sim/jobs/{}/log", world.settings.api_url, job.id);
    Ok(Reply::empty(StatusCode::FOUND).header("location", place))
}

pub(super) fn cancel(
    world: &mut World,
    call: &Call<'_>,
    slug: &Slug,
    id: u64,
    force: bool,
) -> Answer {
    let repo = call.repository(world, slug, "actions", "write")?;
    let run = find_run(world, repo, id)?.id;
    match world.cancel_run(run, force, call.now) {
        Ok(()) => Ok(Reply::json(StatusCode::ACCEPTED, json!({}))),
        Err(_) => Err(Reply::error(
            StatusCode::CONFLICT,
            "Cannot cancel a workflow run that is completed.",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn created_filters_read_as_documented() {
        let noon = Moment::parse("2026-11-24T12:00:00Z").expect("a date");
        let holds = |text: &str| Created::parse(text).expect(text).holds(noon);
        for text in [
            ">=2026-11-24T12:00:00Z",
            ">=2026-11-24",
            "<=2026-11-24",
            "2026-11-24",
            "2026-11-01..2026-11-24",
            "*..2026-11-24T12:00:00Z",
            ">2026-11-23",
        ] {
            assert!(holds(text), "{text}");
        }
        for text in [">2026-11-24", "<2026-11-24", ">2026-11-24T12:00:00Z", "2026-11-23"] {
            assert!(!holds(text), "{text}");
        }
        assert_eq!(Created::parse("soon"), None);
    }
}
