//! No guest is stopped while its runner may have a job.

use forrest_core::event::{Deregistration, EndReason, RegisterTrouble};
use forrest_core::model::Conclusion;
use forrest_core::{Command, Event, KillReason, RunEvent};

use crate::world::*;

#[test]
fn an_idle_runner_is_deleted_before_its_guest_is_stopped() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.idle(1, "build");
    world.after(6 * MINUTE);
    world.expect_deregister(&runner);
    world.expect_unharmed();
    world.deregistered(&runner, Deregistration::Removed);
    world.expect_power_down(&runner);
    world.after(31 * SECOND);
    world.expect(|c| matches!(c, Command::Kill { why: KillReason::Fenced, .. }));
}

#[test]
fn a_runner_that_github_does_not_delete_keeps_its_guest() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.idle(1, "build");
    world.after(6 * MINUTE);
    world.expect_deregister(&runner);
    world.deregistered(&runner, Deregistration::Busy);
    world.is(&runner, "busy");
    world.forget_commands();
    world.after(10 * MINUTE);
    world.expect_unharmed();
}

#[test]
fn a_guest_that_never_became_ready_is_killed_as_soon_as_its_runner_is_deleted() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.booting(1, "build");
    world.after(4 * MINUTE);
    world.expect_deregister(&runner);
    world.deregistered(&runner, Deregistration::Removed);
    world.expect_kill(&runner);
}

#[test]
fn a_start_that_is_never_answered_is_given_up() {
    let mut world = World::new(&[("build", 4)]);
    world.job_queued(1, "build");
    let runner = world.begun();
    world.run_event(&runner, RunEvent::Prepared(Ok(src())));
    world.run_event(&runner, RunEvent::Registered(Ok(id_of(&runner))));
    world.is(&runner, "starting");
    world.after(4 * MINUTE);
    world.expect_deregister(&runner);
}

#[test]
fn a_guest_that_hangs_after_its_job_is_fenced_powered_down_and_killed() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.finishing(1, "build", Conclusion::Success);
    world.after(9 * MINUTE);
    world.expect_none(|c| matches!(c, Command::Deregister { .. }));
    world.after(2 * MINUTE);
    world.expect_deregister(&runner);
    world.expect_unharmed();
    world.deregistered(&runner, Deregistration::AlreadyGone);
    world.expect_power_down(&runner);
    world.after(3 * MINUTE);
    world.expect(|c| matches!(c, Command::Kill { why: KillReason::AfterJob, .. }));
    world.after(MINUTE);
    world.expect_kill(&runner);
}

#[test]
fn a_hanging_guest_is_left_alone_while_github_is_not_to_be_reached() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.finishing(1, "build", Conclusion::Success);
    for _ in 0..20 {
        world.after(11 * MINUTE);
        if world.count(|c| matches!(c, Command::Deregister { .. })) > 0 {
            world.run_event(&runner, RunEvent::Deregistered(Err(trouble())));
        }
    }
    world.expect_unharmed();
}

#[test]
fn a_deregistration_without_an_answer_is_asked_for_again() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.idle(1, "build");
    world.after(6 * MINUTE);
    world.expect_deregister(&runner);
    world.after(11 * MINUTE);
    world.expect_deregister(&runner);
    world.expect_unharmed();
}

#[test]
fn a_runner_that_is_gone_already_may_have_had_a_job_so_its_guest_gets_time() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.idle(1, "build");
    world.after(6 * MINUTE);
    world.deregistered(&runner, Deregistration::AlreadyGone);
    world.expect_unharmed();
    // The late news: it had one. It gets the time that a guest gets after its job.
    world.after(MINUTE);
    world.job_completed(1, "build", Some(&runner), Conclusion::Success);
    world.after(9 * MINUTE);
    world.expect_unharmed();
    world.is(&runner, "finishing");
}

#[test]
fn a_job_that_arrives_while_its_runner_is_retired_wins() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.idle(1, "build");
    world.after(6 * MINUTE);
    world.expect_deregister(&runner);
    world.job_in_progress(1, "build", &runner);
    world.is(&runner, "busy");
    // The answer to the deregistration comes late.
    world.deregistered(&runner, Deregistration::Busy);
    world.is(&runner, "busy");
    world.after(HOUR);
    world.expect_unharmed();
}

#[test]
fn a_deletion_that_took_place_after_all_says_that_the_runner_has_no_job() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.idle(1, "build");
    world.after(6 * MINUTE);
    world.job_in_progress(1, "build", &runner);
    world.deregistered(&runner, Deregistration::Removed);
    world.is(&runner, "finishing");
    world.expect_unharmed();
}

#[test]
fn a_runner_that_somebody_removed_while_it_was_busy_goes_on() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.idle(1, "build");
    world.after(6 * MINUTE);
    world.job_in_progress(1, "build", &runner);
    world.deregistered(&runner, Deregistration::AlreadyGone);
    world.is(&runner, "busy");
    for _ in 0..20 {
        world.after(15 * MINUTE);
        world.polled(&[]);
    }
    world.is(&runner, "busy");
    world.expect_unharmed();
}

#[test]
fn a_job_that_github_does_not_know_any_more_is_no_reason_to_stop_its_guest() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.busy(1, "build");
    world.after(MINUTE);
    world.event(Event::JobMissing {
        repository: machine_name("x").repository().clone(),
        job: forrest_core::model::JobId(1),
        asked_at: world.now,
    });
    world.is(&runner, "busy");
    // The list does not show it either. Only GitHub's consent to delete it counts.
    for _ in 0..5 {
        world.after(2 * MINUTE);
        world.polled(&[]);
        world.expect_unharmed();
    }
    world.expect_deregister(&runner);
    world.deregistered(&runner, Deregistration::Busy);
    world.is(&runner, "busy");
    world.expect_unharmed();
}

#[test]
fn a_runner_that_is_busy_with_nobody_knows_what_is_asked_about_again_and_again() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.idle(1, "build");
    let busy = world.listed(&runner, true);
    world.polled(&[busy]);
    world.is(&runner, "busy");
    world.forget_commands();
    for _ in 0..31 {
        world.after(MINUTE);
        world.poll_failed(trouble());
    }
    world.expect_deregister(&runner);
    world.expect_unharmed();
    world.deregistered(&runner, Deregistration::AlreadyGone);
    world.is(&runner, "finishing");
}

#[test]
fn the_operator_may_stop_a_busy_guest() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.busy(1, "build");
    world.event(Event::StopRequested { runner: runner.clone() });
    world.expect(|c| matches!(c, Command::Kill { why: KillReason::Operator, .. }));
    world.exits(&runner, EndReason::Killed);
    world.expect_deregister(&runner);
}

#[test]
fn the_operator_may_stop_a_run_that_is_being_prepared() {
    let mut world = World::new(&[("build", 4)]);
    world.job_queued(1, "build");
    let runner = world.begun();
    world.event(Event::StopRequested { runner: runner.clone() });
    world.run_event(&runner, RunEvent::Prepared(Ok(src())));
    world.run_event(&runner, RunEvent::Registered(Ok(id_of(&runner))));
    world.expect_none(|c| matches!(c, Command::StartVm { .. }));
    world.expect(|c| matches!(c, Command::Discard { .. }));
    world.expect_deregister(&runner);
    world.run_event(&runner, RunEvent::Discarded(Ok(())));
    world.deregistered(&runner, Deregistration::Removed);
    world.expect(|c| matches!(c, Command::Forget { .. }));
}

#[test]
fn a_registration_whose_answer_was_lost_is_looked_up_by_name_and_removed() {
    let mut world = World::new(&[("build", 4)]);
    world.job_queued(1, "build");
    let runner = world.begun();
    let error = RegisterTrouble::Unknown(trouble());
    world.run_event(&runner, RunEvent::Registered(Err(error)));
    world.expect(|c| matches!(c, Command::Deregister { id: None, .. }));
}

#[test]
fn a_registration_that_was_refused_leaves_nothing_to_be_removed() {
    let mut world = World::new(&[("build", 4)]);
    world.job_queued(1, "build");
    let runner = world.begun();
    world.refused(&runner);
    world.run_event(&runner, RunEvent::Prepared(Ok(src())));
    world.run_event(&runner, RunEvent::Discarded(Ok(())));
    world.expect(|c| matches!(c, Command::Forget { .. }));
    world.expect_none(|c| matches!(c, Command::Deregister { .. }));
}

fn deadlines(world: &mut World) -> Vec<forrest_core::model::Timestamp> {
    let mut deadlines = Vec::new();
    world.commands.retain(|c| match c {
        Command::SetJobDeadline { at, .. } => {
            deadlines.push(*at);
            false
        }
        _ => true,
    });
    deadlines
}

#[test]
fn a_jobs_time_limit_is_its_own() {
    let mut world = World::new(&[("build", 4)]);
    world.configure_machine("build", |machine| machine.job_timeout = Some(HOUR));
    let runner = world.busy(1, "build");
    assert_eq!(deadlines(&mut world), [world.now + HOUR]);
    // It was not taken in time: its limit goes with it.
    world.after(2 * MINUTE);
    let queued = world.job(1, "build", forrest_core::model::JobStatus::Queued);
    world.report(queued, forrest_core::event::Source::Asked(world.now));
    assert_eq!(deadlines(&mut world), [forrest_core::model::Timestamp::NEVER]);
    world.after(20 * MINUTE);
    world.job_in_progress(2, "build", &runner);
    assert_eq!(deadlines(&mut world), [world.now + HOUR]);
    world.job_completed(2, "build", Some(&runner), Conclusion::Success);
    assert_eq!(deadlines(&mut world), [forrest_core::model::Timestamp::NEVER]);
}

#[test]
fn an_adopted_jobs_time_limit_is_left_alone() {
    let mut world = World::new(&[("build", 4)]);
    world.configure_machine("build", |machine| machine.job_timeout = Some(HOUR));
    let name = "forrest-build-aaaaaaaaaaaaaaaa";
    let runner = world.adopted(name, "build", World::live(name), Some(1));
    world.job_in_progress(1, "build", &runner);
    assert_eq!(deadlines(&mut world), []);
}
