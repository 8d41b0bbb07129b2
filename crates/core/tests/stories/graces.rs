//! How long each thing is waited for, to the second.

use std::time::Duration;

use forrest_core::event::{Deregistration, EndReason, Persist, RegisterTrouble, Trouble};
use forrest_core::model::{Conclusion, RunnerName, Timestamp};
use forrest_core::{Command, RunEvent};

use crate::world::*;

/// How long it takes until such a command comes; it is taken out.
#[track_caller]
fn until(world: &mut World, wanted: fn(&Command) -> bool) -> Duration {
    let began = world.now;
    world.commands.retain(|c| !wanted(c));
    while world.now.since(began) < 5 * HOUR {
        world.after(SECOND);
        if world.count(wanted) > 0 {
            return world.now.since(began);
        }
    }
    panic!("not within five hours");
}

#[test]
fn a_guest_has_ten_minutes_after_its_job_and_two_after_its_power_button() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.finishing(1, "build", Conclusion::Success);
    assert_eq!(until(&mut world, deregister), 10 * MINUTE);
    world.deregistered(&runner, Deregistration::AlreadyGone);
    world.expect_power_down(&runner);
    assert_eq!(until(&mut world, kill), 2 * MINUTE);
    assert_eq!(until(&mut world, kill), 30 * SECOND);
}

#[test]
fn an_idle_guest_has_five_minutes_and_half_a_minute_after_its_power_button() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.idle(1, "build");
    assert_eq!(until(&mut world, deregister), 5 * MINUTE);
    assert_eq!(until(&mut world, deregister), 10 * MINUTE, "GitHub's answer is waited for");
    world.deregistered(&runner, Deregistration::Removed);
    world.expect_power_down(&runner);
    assert_eq!(until(&mut world, kill), 30 * SECOND);
}

#[test]
fn a_guest_whose_runner_is_gone_has_two_minutes_to_shut_down_by_itself() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.idle(1, "build");
    assert_eq!(until(&mut world, deregister), 5 * MINUTE);
    world.deregistered(&runner, Deregistration::AlreadyGone);
    assert_eq!(until(&mut world, deregister), 2 * MINUTE);
    world.expect_unharmed();
    world.deregistered(&runner, Deregistration::AlreadyGone);
    world.expect_power_down(&runner);
}

#[test]
fn a_boot_may_take_a_minute_longer_than_configured_and_sixteen_when_it_is_not() {
    for (configured, minutes) in [(true, 3), (false, 16)] {
        let mut world = World::new(&[("build", 4)]);
        world.job_queued(1, "build");
        let runner = world.begun();
        world.prepared(&runner, src());
        if !configured {
            world.configure(|policy| policy.machines.clear());
        }
        world.run_event(&runner, RunEvent::VmStarted { restored: false });
        assert_eq!(until(&mut world, deregister), minutes * MINUTE);
    }
}

#[test]
fn a_runner_that_is_busy_with_nobody_knows_what_is_asked_about_after_half_an_hour() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.idle(1, "build");
    let busy = world.listed(&runner, true);
    world.polled(&[busy]);
    assert_eq!(until(&mut world, deregister), 30 * MINUTE);
}

#[test]
fn a_disk_with_a_token_waits_two_minutes_for_the_news_that_nobody_has() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.idle(1, "build");
    world.exits(&runner, EndReason::GuestShutdown);
    world.read_back(&runner, Persist::Valid);
    world.after(SECOND);
    world.polled(&[]);
    assert_eq!(until(&mut world, promote), 2 * MINUTE - SECOND);
}

#[test]
fn github_can_ask_for_a_pause_of_two_hours() {
    for (asked, granted) in [(90 * MINUTE, 90 * MINUTE), (3 * HOUR, 2 * HOUR)] {
        let mut world = World::new(&[("build", 4)]);
        let not_before = Some(world.now + asked);
        world.poll_failed(Trouble { what: "too many requests".into(), not_before });
        assert_eq!(until(&mut world, poll), granted);
    }
}

#[test]
fn a_failed_removal_of_a_disk_is_tried_again_after_2_4_8_seconds_and_at_most_5_minutes() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.finishing(1, "build", Conclusion::Success);
    world.exits(&runner, EndReason::Killed);
    world.expect(discard);
    let mut pauses = Vec::new();
    for _ in 0..12 {
        world.run_event(&runner, RunEvent::Discarded(Err(trouble())));
        pauses.push(until(&mut world, discard).as_secs());
    }
    assert_eq!(pauses, [2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300, 300]);
}

/// The pauses after each of four failures to remove the runner, in seconds.
fn pauses(world: &mut World, runner: &RunnerName) -> [u64; 4] {
    [(); 4].map(|()| {
        world.run_event(runner, RunEvent::Deregistered(Err(trouble())));
        until(world, deregister).as_secs()
    })
}

#[test]
fn a_removal_of_a_runner_that_fails_is_tried_again_after_2_4_8_seconds() {
    let mut world = World::new(&[("build", 4)]);
    let idle = world.idle(1, "build");
    assert_eq!(until(&mut world, deregister), 5 * MINUTE);
    assert_eq!(pauses(&mut world, &idle), [2, 4, 8, 16]);
    let mut world = World::new(&[("build", 4)]);
    let finishing = world.finishing(1, "build", Conclusion::Success);
    assert_eq!(until(&mut world, deregister), 10 * MINUTE);
    assert_eq!(pauses(&mut world, &finishing), [2, 4, 8, 16]);
}

#[test]
fn polls_may_take_a_quarter_of_an_hour() {
    let mut world = World::new(&[("build", 4)]);
    until(&mut world, poll);
    assert_eq!(until(&mut world, poll), 15 * MINUTE);
    world.expect_note(forrest_core::Level::Warn, "has no answer");
}

// What a run is counted as meanwhile.

fn run<'w>(world: &'w World, runner: &RunnerName) -> &'w forrest_core::run::Run {
    world.core.runs().get(runner).expect("the run is there")
}

#[test]
fn a_run_whose_disk_is_settled_holds_none() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.finishing(1, "build", Conclusion::Success);
    world.exits(&runner, EndReason::Killed);
    assert!(run(&world, &runner).holds_disk());
    world.run_event(&runner, RunEvent::Discarded(Ok(())));
    assert!(!run(&world, &runner).holds_disk());
}

#[test]
fn only_a_run_without_a_guest_whose_runner_github_does_not_let_go_of_is_owing() {
    let mut world = World::new(&[("build", 4)]);
    let had_a_guest = world.finishing(1, "build", Conclusion::Success);
    world.exits(&had_a_guest, EndReason::Killed);
    world.run_event(&had_a_guest, RunEvent::Deregistered(Err(trouble())));
    assert!(!run(&world, &had_a_guest).is_owing());

    world.job_queued(2, "build");
    let never_started = world.begun();
    let error = RegisterTrouble::Unknown(trouble());
    world.run_event(&never_started, RunEvent::Registered(Err(error)));
    assert!(!run(&world, &never_started).is_owing(), "GitHub was asked just now");
    world.run_event(&never_started, RunEvent::Deregistered(Err(trouble())));
    assert!(run(&world, &never_started).is_owing());
}

#[test]
fn it_is_unclear_how_a_job_ended_once_its_disk_could_be_kept() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.busy(1, "build");
    assert!(!run(&world, &runner).is_unclear());
    world.exits(&runner, EndReason::GuestShutdown);
    assert!(!run(&world, &runner).is_unclear());
    world.read_back(&runner, Persist::Valid);
    assert!(run(&world, &runner).is_unclear());
}

#[test]
fn a_restored_run_is_known_as_such_to_its_end() {
    for restored in [false, true] {
        let mut world = World::new(&[("build", 4)]);
        world.job_queued(1, "build");
        let runner = world.begun();
        world.prepared(&runner, src());
        world.run_event(&runner, RunEvent::VmStarted { restored });
        world.run_event(&runner, RunEvent::GuestReady);
        assert_eq!(run(&world, &runner).restored(), restored);
        world.exits(&runner, EndReason::GuestShutdown);
        assert_eq!(run(&world, &runner).restored(), restored);
        assert_eq!(run(&world, &runner).times.vm_started, Some(world.now));
        assert!(run(&world, &runner).times.created > Timestamp(0));
    }
}
