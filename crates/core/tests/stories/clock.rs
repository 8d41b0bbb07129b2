//! The host's clock jumps.

use std::time::Duration;

use forrest_core::event::{Deregistration, Source};
use forrest_core::model::{Conclusion, Job, JobStatus, Timestamp};
use forrest_core::{Command, Event, Level};

use crate::world::*;

fn back(world: &mut World, by: Duration) {
    world.now = Timestamp(world.now.0 - by.as_millis() as u64);
    world.event(Event::Tick);
}

fn forward(world: &mut World, by: Duration) {
    world.now = world.now + by;
    world.event(Event::Tick);
}

#[test]
fn a_clock_that_is_set_back_delays_nothing() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.idle(1, "build");
    back(&mut world, 48 * HOUR);
    world.after(5 * MINUTE + SECOND);
    world.expect_deregister(&runner);
    world.after(16 * MINUTE);
    world.expect(|c| matches!(c, Command::Poll { .. }));
}

#[test]
fn jobs_from_before_a_step_back_stay_the_oldest() {
    let mut world = World::new(&[("large", 12), ("small", 3)]);
    for id in 0..4 {
        world.busy(id, "small");
    }
    world.job_queued(10, "large");
    back(&mut world, 48 * HOUR);
    world.after(SECOND);
    world.job_queued(11, "small");
    world.after(11 * MINUTE);
    let view = world.core.view(world.now);
    let queued_at = |id| view.jobs.iter().find(|j| j.job.id.0 == id).map(|j| j.queued_at);
    assert!(queued_at(10) < queued_at(11));
}

#[test]
fn an_answer_from_before_a_step_back_counts_as_old() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.busy(1, "build");
    let asked_at = world.now;
    back(&mut world, HOUR);
    let queued = world.job(1, "build", JobStatus::Queued);
    world.report(queued.clone(), Source::Asked(asked_at));
    world.is(&runner, "busy");
    // A new answer is believed at once, although its time lies before that of the last report.
    world.after(SECOND);
    world.report(queued, Source::Asked(world.now));
    assert_eq!(world.job_of(&runner), None);
}

#[test]
fn a_guest_keeps_its_time_for_shutting_down_when_the_clock_is_set_forward() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.finishing(1, "build", Conclusion::Success);
    world.after(MINUTE);
    forward(&mut world, 24 * HOUR);
    world.after(2 * MINUTE);
    world.expect_none(|c| matches!(c, Command::Deregister { .. }));
    world.after(8 * MINUTE);
    world.expect_deregister(&runner);
    world.deregistered(&runner, Deregistration::AlreadyGone);
    world.expect_power_down(&runner);
}

#[test]
fn a_small_step_back_is_no_step() {
    let mut world = World::new(&[("build", 4)]);
    world.idle(1, "build");
    back(&mut world, Duration::from_millis(300));
    back(&mut world, Duration::from_millis(300));
    assert!(!world.notes.iter().any(|note| note.text.contains("clock")), "{:?}", world.notes);
    world.after(5 * MINUTE + SECOND);
    world.expect(|c| matches!(c, Command::Deregister { .. }));
    world.event(Event::Tick);
    back(&mut world, SECOND);
    world.expect_note(Level::Warn, "the host's clock was set back by 1 s");
}

#[test]
fn a_deadline_that_is_met_a_minute_late_is_no_leap() {
    for (late, leap) in [(MINUTE, false), (MINUTE + SECOND, true)] {
        let mut world = World::new(&[("build", 4)]);
        world.idle(1, "build");
        world.now = world.core.next_deadline().expect("a poll, at least") + late;
        world.event(Event::Tick);
        let told = world.notes.iter().any(|note| note.text.contains("the host was asleep"));
        assert_eq!(told, leap, "{late:?}");
    }
}

#[test]
fn an_answer_to_a_question_that_was_asked_a_while_ago_is_not_old() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.busy(1, "build");
    world.after(SECOND);
    let asked_at = world.now;
    world.after(2 * SECOND);
    world.report(world.job(1, "build", JobStatus::Queued), Source::Asked(asked_at));
    assert_eq!(world.job_of(&runner), None);
}

#[test]
fn after_a_step_back_a_doubtful_job_is_asked_for_again() {
    let mut world = World::new(&[("build", 4)]);
    world.after(3 * HOUR);
    world.polled(&[]);
    let old = |world: &World| Job {
        created_at: Some(Timestamp(world.now.0 - HOUR.as_millis() as u64)),
        ..world.job(1, "build", JobStatus::Queued)
    };
    let asked = |c: &Command| matches!(c, Command::FetchJob { .. });
    let job = old(&world);
    world.report(job, Source::Webhook);
    world.expect(asked);
    back(&mut world, HOUR);
    world.after(MINUTE + SECOND);
    let job = old(&world);
    world.report(job, Source::Webhook);
    world.expect(asked);
}
