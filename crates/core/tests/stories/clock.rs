//! The host's clock jumps.

use forrest_core::event::{Deregistration, Source};
use forrest_core::model::{Conclusion, JobStatus, Timestamp};
use forrest_core::{Command, Event};

use crate::world::*;

fn back(world: &mut World, by: std::time::Duration) {
    world.now = Timestamp(world.now.0 - by.as_millis() as u64);
    world.event(Event::Tick);
}

fn forward(world: &mut World, by: std::time::Duration) {
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
    assert_eq!(world.core.runs().get(&runner).and_then(|run| run.job()), None);
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
    world.now = Timestamp(world.now.0 - 300);
    world.event(Event::Tick);
    world.after(5 * MINUTE + SECOND);
    world.expect(|c| matches!(c, Command::Deregister { .. }));
}
