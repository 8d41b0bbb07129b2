//! What of a report is believed, and what GitHub is asked for first.

use forrest_core::event::{Deregistration, EndReason, Persist, Source};
use forrest_core::model::{Conclusion, Job, JobId, JobStatus, Timestamp};
use forrest_core::{Command, Level, RunEvent};

use crate::world::*;

#[test]
fn a_runner_of_that_name_in_another_repository_is_not_ours() {
    let mut world = World::new(&[("build", 4), ("o/other/build", 4)]);
    let idle = world.idle(1, "build");
    let busy = world.busy(2, "build");
    world.forget_commands();
    for (id, runner) in [(70, &idle), (71, &busy)] {
        world.job_in_progress(id, "o/other/build", runner);
        world.expect_note(Level::Warn, "is reported to have this runner, which is one of o/r");
        world.job_completed(id, "o/other/build", Some(runner), Conclusion::Failure);
        assert_eq!(world.core.jobs().get(JobId(id)).expect("known").job.runner, None);
    }
    world.is(&idle, "idle");
    world.is(&busy, "busy");
    assert_eq!(world.job_of(&busy), Some(JobId(2)));
    world.expect_none(|c| matches!(c, Command::RecordJob { .. } | Command::SetJobDeadline { .. }));
    // Its own job is believed as before.
    world.job_completed(2, "build", Some(&busy), Conclusion::Success);
    world.is(&busy, "finishing");
}

#[test]
fn a_run_that_is_over_gets_no_job_of_another_repository() {
    let mut world = World::new(&[("build", 4), ("o/other/build", 4)]);
    let runner = world.idle(1, "build");
    world.exits(&runner, EndReason::GuestShutdown);
    world.read_back(&runner, Persist::Absent);
    world.run_event(&runner, RunEvent::Discarded(Ok(())));
    world.deregistered(&runner, Deregistration::Removed);
    world.job_completed(70, "o/other/build", Some(&runner), Conclusion::Success);
    let view = world.core.view(world.now);
    assert_eq!(view.finished.first().expect("finished").job, None);
    world.job_completed(1, "build", Some(&runner), Conclusion::Success);
    let view = world.core.view(world.now);
    assert_eq!(view.finished.first().expect("finished").job.as_ref().expect("had").id, JobId(1));
}

#[test]
fn another_spelling_of_a_repository_or_its_new_name_is_the_same_repository() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.idle(1, "build");
    let reported = |world: &World, id: u64, repository: &str| Job {
        runner: Some(runner.clone()),
        repository: repository.parse().expect("a sound name"),
        ..world.job(id, "build", JobStatus::InProgress)
    };
    // Renamed, and known by its old name.
    let renamed = reported(&world, 1, "o/renamed");
    world.report(renamed, Source::Webhook);
    assert_eq!(world.job_of(&runner), Some(JobId(1)));
    let spelt = reported(&world, 2, "O/R");
    world.report(spelt, Source::Webhook);
    assert_eq!(world.job_of(&runner), Some(JobId(2)));
    let known = world.core.jobs().get(JobId(2)).expect("known");
    assert_eq!(known.job.repository, *machine_name("build").repository());
}

#[test]
fn an_old_webhook_about_an_unknown_job_begins_no_run_before_github_was_asked() {
    let mut world = World::new(&[("build", 4)]);
    let queued = |world: &World, id: u64, age| Job {
        created_at: Some(Timestamp(world.now.0 - age)),
        ..world.job(id, "build", JobStatus::Queued)
    };
    let fetched =
        |id| move |c: &Command| matches!(c, Command::FetchJob { job, .. } if *job == JobId(id));
    world.after(HOUR);
    world.polled(&[]);
    world.forget_commands();
    let (over, waits) = (queued(&world, 1, 300_001), queued(&world, 2, 300_001));
    for job in [&over, &waits] {
        world.report(job.clone(), Source::Webhook);
        world.expect(fetched(job.id.0));
        // Once is enough.
        world.report(job.clone(), Source::Webhook);
        world.expect_none(fetched(job.id.0));
    }
    world.expect_no_run();
    world.after(SECOND);
    let how = Some(Conclusion::Success);
    let over = Job { status: JobStatus::Completed, conclusion: how, ..over };
    world.report(over.clone(), Source::Asked(world.now));
    world.expect_no_run();
    world.report(waits, Source::Asked(world.now));
    world.begun();
    // Had GitHub not answered, a poll would have told.
    world.expect_none(|c| matches!(c, Command::Poll { .. }));
    world.after(MINUTE);
    world.expect(|c| matches!(c, Command::Poll { .. }));
    world.polled(&[]);
    // What is known by now needs no question, what is young neither.
    world.after(5 * MINUTE);
    world.report(Job { status: JobStatus::Queued, ..over }, Source::Webhook);
    let young = queued(&world, 3, 300_000);
    world.report(young, Source::Webhook);
    world.begun();
    world.expect_none(|c| matches!(c, Command::FetchJob { .. }));
}

#[test]
fn a_flood_of_old_webhooks_is_few_questions_and_a_poll() {
    let mut world = World::new(&[("build", 4)]);
    world.after(HOUR);
    world.polled(&[]);
    world.forget_commands();
    let flood = |world: &mut World| {
        for id in 1..=200 {
            let created_at = Some(Timestamp(world.now.0 - 3_600_000));
            let job = Job { created_at, ..world.job(id, "build", JobStatus::Queued) };
            world.report(job, Source::Webhook);
        }
        world.count(|c| matches!(c, Command::FetchJob { .. }))
    };
    assert_eq!(flood(&mut world), 50);
    world.after(MINUTE - SECOND);
    assert_eq!(flood(&mut world), 0);
    world.expect_none(|c| matches!(c, Command::Poll { .. }));
    world.after(SECOND);
    world.expect(|c| matches!(c, Command::Poll { .. }));
    world.polled(&[]);
    assert_eq!(flood(&mut world), 50);
    assert_eq!(world.core.sizes().asked_jobs, 50);
    world.expect_no_run();
}
