//! What is owed after a virtual machine's end.

use std::time::Duration;

use forrest_core::event::{Deregistration, EndReason, Persist, Source};
use forrest_core::model::{Conclusion, Generation, JobId, JobStatus, RunnerName};
use forrest_core::run::{KEEP_ATTEMPTS, RETRY_MAX};
use forrest_core::{Command, Level, RunEvent};

use crate::world::*;

/// A job ended, its guest shut down, and the token is right.
fn with_token(world: &mut World, how: Option<Conclusion>) -> RunnerName {
    let runner = world.busy(1, "build");
    if let Some(how) = how {
        world.job_completed(1, "build", Some(&runner), how);
    }
    world.exits(&runner, EndReason::GuestShutdown);
    world.expect(|c| matches!(c, Command::ReadBack { .. }));
    world.read_back(&runner, Persist::Valid);
    runner
}

/// Found by the simulation (seed 108668): GitHub gave the runner a job that it did not take, then another
/// one, whose end was told while the runner was still taken to have the first.
#[test]
fn the_end_of_a_second_job_is_not_lost_with_the_first() {
    for ended_before in [false, true] {
        let mut world = World::new(&[("build", 4)]);
        let runner = world.busy(1, "build");
        world.job_queued(2, "build");
        world.job_completed(2, "build", Some(&runner), Conclusion::Failure);
        world.is(&runner, "busy");
        if ended_before {
            world.exits(&runner, EndReason::GuestShutdown);
        }
        world.after(SECOND);
        let first = world.job(1, "build", JobStatus::Queued);
        let asked = Source::Asked(world.now);
        world.report(first, asked);
        if !ended_before {
            world.is(&runner, "finishing");
            world.exits(&runner, EndReason::GuestShutdown);
        }
        world.read_back(&runner, Persist::Valid);
        world.after(2 * HOUR);
        world.expect_none(|c| matches!(c, Command::Promote { .. }));
        world.expect(|c| matches!(c, Command::Discard { .. }));
    }
}

#[test]
fn a_successful_job_with_the_token_leaves_an_image() {
    let mut world = World::new(&[("build", 4)]);
    let runner = with_token(&mut world, Some(Conclusion::Success));
    world.expect(promote);
    world.run_event(&runner, RunEvent::Promoted(Ok(Generation(1))));
    world.deregistered(&runner, Deregistration::AlreadyGone);
    world.expect(|c| matches!(c, Command::Forget { .. }));
    world.expect_none(discard);
    assert_eq!(world.core.view(world.now).finished[0].result, Some(Generation(1)));
}

#[test]
fn a_job_config_disk_that_the_host_cannot_read_is_read_again() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.busy(1, "build");
    world.job_completed(1, "build", Some(&runner), Conclusion::Success);
    world.exits(&runner, EndReason::GuestShutdown);
    let read = |c: &Command| matches!(c, Command::ReadBack { .. });
    let failed = || RunEvent::ReadBack(Err(trouble()));
    world.expect(read);
    for pause in [2 * SECOND, 4 * SECOND] {
        world.run_event(&runner, failed());
        world.expect_note(Level::Error, "could not read the job-config disk, trying again");
        world.after(pause - Duration::from_millis(1));
        world.expect_none(read);
        world.after(Duration::from_millis(1));
        world.expect(read);
    }
    world.expect_none(discard);
    world.read_back(&runner, Persist::Valid);
    world.expect(promote);
}

#[test]
fn a_job_config_disk_that_never_can_be_read_is_given_up() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.busy(1, "build");
    world.exits(&runner, EndReason::GuestShutdown);
    for _ in 1..KEEP_ATTEMPTS {
        world.run_event(&runner, RunEvent::ReadBack(Err(trouble())));
        world.expect_none(discard);
        world.after(RETRY_MAX);
    }
    world.run_event(&runner, RunEvent::ReadBack(Err(trouble())));
    world.expect_note(Level::Error, "the disk is removed unread");
    world.expect(discard);
    // An answer that nobody waits for any more changes nothing.
    world.read_back(&runner, Persist::Valid);
    world.expect_none(promote);
}

#[test]
fn no_token_a_wrong_one_or_a_damaged_disk_leave_nothing() {
    for persist in [Persist::Absent, Persist::WrongToken, Persist::Damaged] {
        let mut world = World::new(&[("build", 4)]);
        let runner = world.finishing(1, "build", Conclusion::Success);
        world.exits(&runner, EndReason::GuestShutdown);
        world.read_back(&runner, persist);
        world.expect(discard);
        world.expect_none(promote);
    }
}

#[test]
fn a_guest_that_did_not_shut_down_by_itself_is_not_even_read() {
    let reasons = [
        EndReason::GuestReset,
        EndReason::GuestPanicked,
        EndReason::Killed,
        EndReason::IoError,
        EndReason::JobTimeout,
        EndReason::QemuFailed,
        EndReason::SupervisorLost,
    ];
    for reason in reasons {
        let mut world = World::new(&[("build", 4)]);
        let runner = world.finishing(1, "build", Conclusion::Success);
        world.exits(&runner, reason);
        world.expect(discard);
        world.expect_none(|c| matches!(c, Command::ReadBack { .. }));
        // A late answer changes nothing.
        world.read_back(&runner, Persist::Valid);
        world.expect_none(promote);
    }
}

#[test]
fn a_job_that_did_not_succeed_leaves_no_image_although_its_token_is_right() {
    let mut world = World::new(&[("build", 4)]);
    with_token(&mut world, Some(Conclusion::Failure));
    world.expect(discard);
    world.expect_none(promote);
}

#[test]
fn the_news_of_the_jobs_end_is_waited_for() {
    let mut world = World::new(&[("build", 4)]);
    let runner = with_token(&mut world, None);
    world.after(30 * MINUTE);
    world.expect_none(promote);
    world.job_completed(1, "build", Some(&runner), Conclusion::Failure);
    world.expect(discard);
}

#[test]
fn news_that_never_come_are_not_waited_for_for_ever() {
    let mut world = World::new(&[("build", 4)]);
    with_token(&mut world, None);
    world.after(2 * HOUR);
    world.expect(promote);
}

#[test]
fn a_job_that_no_report_tells_of_is_believed_after_a_poll_in_vain() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.idle(1, "build");
    world.exits(&runner, EndReason::GuestShutdown);
    world.read_back(&runner, Persist::Valid);
    world.after(10 * MINUTE);
    world.expect_none(promote);
    world.polled(&[]);
    world.after(5 * MINUTE);
    world.expect(promote);
}

/// Found by the simulation (seed 205693): the disk was full, and before there was room GitHub told how the
/// job had ended.
#[test]
fn a_failure_that_is_told_between_two_tries_ends_the_promotion() {
    let mut world = World::new(&[("build", 4)]);
    let runner = with_token(&mut world, None);
    world.after(2 * HOUR);
    world.expect(promote);
    world.run_event(&runner, RunEvent::Promoted(Err(trouble())));
    world.job_completed(1, "build", Some(&runner), Conclusion::Failure);
    world.after(HOUR);
    world.expect_none(promote);
    world.expect(discard);
    world.expect_note(Level::Warn, "the job did not succeed");
}

#[test]
fn a_promotion_that_fails_is_tried_again_and_given_up_in_the_end() {
    let mut world = World::new(&[("build", 4)]);
    let runner = with_token(&mut world, Some(Conclusion::Success));
    let mut attempts = 0;
    for _ in 0..1000 {
        attempts += world.count(promote);
        if world.count(discard) > 0 {
            break;
        }
        world.run_event(&runner, RunEvent::Promoted(Err(trouble())));
        world.after(5 * MINUTE);
    }
    assert_eq!(attempts, 15);
}

#[test]
fn a_removal_is_tried_until_it_succeeds() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.finishing(1, "build", Conclusion::Success);
    world.exits(&runner, EndReason::Killed);
    world.deregistered(&runner, Deregistration::Removed);
    for _ in 0..50 {
        world.expect(discard);
        world.run_event(&runner, RunEvent::Discarded(Err(trouble())));
        world.after(5 * MINUTE + SECOND);
    }
    world.run_event(&runner, RunEvent::Discarded(Ok(())));
    world.expect(|c| matches!(c, Command::Forget { .. }));
}

#[test]
fn a_runner_that_github_still_calls_busy_is_removed_later() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.busy(1, "build");
    world.exits(&runner, EndReason::SupervisorLost);
    for _ in 0..10 {
        world.expect_deregister(&runner);
        world.deregistered(&runner, Deregistration::Busy);
        world.after(5 * MINUTE + SECOND);
    }
    world.deregistered(&runner, Deregistration::Removed);
    world.run_event(&runner, RunEvent::Discarded(Ok(())));
    world.expect(|c| matches!(c, Command::Forget { .. }));
}

#[test]
fn a_deregistration_that_is_never_answered_is_asked_for_again() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.busy(1, "build");
    world.exits(&runner, EndReason::SupervisorLost);
    world.expect_deregister(&runner);
    world.after(11 * MINUTE);
    world.expect_deregister(&runner);
}

#[test]
fn a_cancelled_job_before_the_real_one_does_not_cost_the_image() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.idle(1, "build");
    world.job_completed(1, "build", Some(&runner), Conclusion::Cancelled);
    world.after(MINUTE);
    world.job_completed(2, "build", Some(&runner), Conclusion::Success);
    world.exits(&runner, EndReason::GuestShutdown);
    world.read_back(&runner, Persist::Valid);
    world.expect(promote);
}

#[test]
fn a_cancelled_job_that_is_told_of_before_the_real_one_does_not_cost_the_image_either() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.idle(1, "build");
    world.exits(&runner, EndReason::GuestShutdown);
    world.read_back(&runner, Persist::Valid);
    world.job_completed(1, "build", Some(&runner), Conclusion::Cancelled);
    world.expect_none(discard);
    world.job_completed(2, "build", Some(&runner), Conclusion::Success);
    world.expect(promote);
}

/// Found by the simulation (seed 1230915): while the runner is taken to have a job that was cancelled before it took it,
/// the end of the real one is told first.
#[test]
fn a_cancelled_job_that_is_told_of_after_the_real_one_does_not_cost_the_image_either() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.busy(1, "build");
    world.job_completed(2, "build", Some(&runner), Conclusion::Success);
    world.is(&runner, "busy");
    world.job_completed(1, "build", Some(&runner), Conclusion::Cancelled);
    world.is(&runner, "finishing");
    assert_eq!(world.job_of(&runner), Some(JobId(2)));
    world.exits(&runner, EndReason::GuestShutdown);
    world.read_back(&runner, Persist::Valid);
    world.expect(promote);
}

#[test]
fn a_cancelled_job_leaves_no_image_where_no_other_is_heard_of() {
    let mut world = World::new(&[("build", 4)]);
    let runner = with_token(&mut world, Some(Conclusion::Cancelled));
    world.after(MINUTE);
    world.expect_none(discard);
    world.after(2 * MINUTE);
    world.expect(discard);
    world.expect_none(promote);
    world.expect_note(Level::Warn, "but the job did not succeed");
    world.is(&runner, "discarding");
}

#[test]
fn an_end_that_is_told_twice_is_settled_once() {
    let mut world = World::new(&[("build", 4)]);
    let runner = with_token(&mut world, Some(Conclusion::Success));
    world.exits(&runner, EndReason::Killed);
    world.read_back(&runner, Persist::Valid);
    assert_eq!(world.count(promote), 1);
    world.expect_none(discard);
    world.run_event(&runner, RunEvent::Promoted(Ok(Generation(3))));
    world.run_event(&runner, RunEvent::Promoted(Ok(Generation(4))));
    world.run_event(&runner, RunEvent::Discarded(Ok(())));
    world.deregistered(&runner, Deregistration::AlreadyGone);
    assert_eq!(world.core.view(world.now).finished[0].result, Some(Generation(3)));
}

#[test]
fn a_promotion_that_the_configuration_refuses_ends_with_the_disks_removal() {
    let refused = RunEvent::PromotionRefused("a pull request from a fork".into());
    let mut world = World::new(&[("build", 4)]);
    let runner = with_token(&mut world, Some(Conclusion::Success));
    world.expect(promote);
    world.run_event(&runner, refused.clone());
    world.expect(discard);
    world.expect_note(Level::Warn, "its token is right: a pull request from a fork");
    // Where nothing is promoted, there is nothing to refuse.
    let mut world = World::new(&[("build", 4)]);
    let runner = with_token(&mut world, None);
    world.run_event(&runner, refused);
    world.expect_none(discard);
}

#[test]
fn a_removal_that_github_does_not_answer_is_told_and_asked_for_again() {
    let told =
        |world: &World| world.notes.iter().any(|n| n.text.contains("does not answer to the"));
    let mut world = World::new(&[("build", 4)]);
    let runner = world.finishing(1, "build", Conclusion::Success);
    world.exits(&runner, EndReason::Killed);
    world.expect(deregister);
    world.run_event(&runner, RunEvent::Deregistered(Err(trouble())));
    world.after(5 * SECOND);
    world.expect(deregister);
    assert!(!told(&world));
    world.after(11 * MINUTE);
    world.expect(deregister);
    assert!(told(&world));
}
