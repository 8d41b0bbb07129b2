//! Starts that fail.

use forrest_core::event::EndReason;
use forrest_core::model::{Conclusion, RunnerName};
use forrest_core::{Command, Level, RunEvent};

use crate::world::*;

fn broken(c: &Command) -> bool {
    matches!(c, Command::MarkBroken { .. })
}

/// Guests of this image that end before they are ready, each after its pause.
fn silent_guests(world: &mut World, number: u32, image: (&str, u32)) {
    for _ in 0..number {
        world.after(6 * MINUTE);
        let runner = world.begun();
        world.boots(&runner, generation(image.0, image.1));
        world.exits(&runner, EndReason::BootTimeout);
        settle(world, &runner);
    }
}

fn settle(world: &mut World, runner: &RunnerName) {
    world.run_event(runner, RunEvent::Discarded(Ok(())));
    world.deregistered(runner, forrest_core::event::Deregistration::Removed);
}

#[test]
fn runs_that_fail_together_count_once_and_then_one_is_tried() {
    let mut world = World::new(&[("build", 1)]);
    for id in 0..8 {
        world.job_queued(id, "build");
    }
    let runners: Vec<_> = (0..8).map(|_| world.begun()).collect();
    for runner in &runners {
        world.refused(runner);
    }
    world.expect_no_run();
    world.after(2 * SECOND);
    let probe = world.begun();
    world.expect_no_run();
    world.refused(&probe);
    world.after(SECOND);
    world.expect_no_run();
    world.after(2 * SECOND);
    let probe = world.begun();
    world.boots(&probe, src());
    world.expect_no_run();
    world.run_event(&probe, RunEvent::GuestReady);
    assert_eq!(world.count(|c| matches!(c, Command::Prepare { .. })), 7);
}

#[test]
fn the_pause_grows_to_five_minutes_and_no_further() {
    let mut world = World::new(&[("build", 1)]);
    world.job_queued(1, "build");
    for _ in 0..20 {
        let runner = world.begun();
        world.refused(&runner);
        world.run_event(&runner, RunEvent::Prepared(Ok(src())));
        world.run_event(&runner, RunEvent::Discarded(Ok(())));
        world.after(5 * MINUTE + SECOND);
    }
    world.begun();
    world.expect_no_run();
}

#[test]
fn a_generation_whose_guests_stay_silent_is_taken_out_of_use() {
    let mut world = World::new(&[("build", 1)]);
    world.job_queued(1, "build");
    silent_guests(&mut world, 1, ("build", 7));
    world.expect_none(broken);
    silent_guests(&mut world, 1, ("build", 7));
    world.expect(broken);
    world.expect_note(Level::Error, "taken out of use: 2 guests in a row: its guest did not");
    // The one before it is silent too: the fault may be elsewhere, so that takes more.
    silent_guests(&mut world, 7, ("build", 6));
    world.expect_none(broken);
    silent_guests(&mut world, 1, ("build", 6));
    world.expect(broken);
    // No longer than that, or jobs would wait for hours.
    silent_guests(&mut world, 7, ("build", 5));
    world.expect_none(broken);
    silent_guests(&mut world, 1, ("build", 5));
    world.expect(broken);
}

#[test]
fn a_generation_whose_guest_was_ready_once_is_not_at_fault() {
    let mut world = World::new(&[("build", 1)]);
    world.job_queued(1, "build");
    let runner = world.begun();
    world.boots(&runner, generation("build", 7));
    world.run_event(&runner, RunEvent::GuestReady);
    world.exits(&runner, EndReason::GuestPanicked);
    settle(&mut world, &runner);
    silent_guests(&mut world, 5, ("build", 7));
    world.expect_none(broken);
}

#[test]
fn guests_of_different_images_are_not_counted_together() {
    let mut world = World::new(&[("build", 1)]);
    world.job_queued(1, "build");
    for _ in 0..3 {
        silent_guests(&mut world, 1, ("build", 7));
        silent_guests(&mut world, 1, ("build", 6));
    }
    world.expect_none(broken);
}

#[test]
fn another_machine_types_generation_is_not_judged_so_soon() {
    let mut world = World::new(&[("derived", 1)]);
    world.job_queued(1, "derived");
    silent_guests(&mut world, 7, ("base", 7));
    world.expect_none(broken);
    silent_guests(&mut world, 1, ("base", 7));
    let command = world.expect(broken);
    let Command::MarkBroken { machine, .. } = command else { unreachable!("just matched") };
    assert_eq!(machine, machine_name("base"));
    // The next ones take more, but no more for each.
    for generation in [6, 5] {
        silent_guests(&mut world, 13, ("base", generation));
        world.expect_none(broken);
        silent_guests(&mut world, 1, ("base", generation));
        world.expect(broken);
    }
}

#[test]
fn an_operating_system_image_is_not_marked() {
    let mut world = World::new(&[("build", 1)]);
    world.job_queued(1, "build");
    for _ in 0..5 {
        world.after(6 * MINUTE);
        let runner = world.begun();
        world.boots(&runner, src());
        world.exits(&runner, EndReason::GuestReset);
    }
    world.expect_none(broken);
}

#[test]
fn guests_that_end_without_a_job_are_not_replaced_in_a_hurry() {
    let mut world = World::new(&[("build", 1)]);
    world.job_queued(1, "build");
    let mut begun = 0;
    for _ in 0..60 {
        if world.count(|c| matches!(c, Command::Prepare { .. })) > 0 {
            begun += 1;
            let runner = world.core.runs().iter().next_back_begun();
            world.boots(&runner, src());
            world.run_event(&runner, RunEvent::GuestReady);
            world.exits(&runner, EndReason::GuestShutdown);
        }
        world.after(10 * SECOND);
    }
    assert!(begun <= 10, "{begun} runs in ten minutes");
}

#[test]
fn a_single_guest_that_ends_without_a_job_raises_no_doubt() {
    let mut world = World::new(&[("build", 1)]);
    let runner = world.idle(1, "build");
    world.exits(&runner, EndReason::GuestShutdown);
    world.job_queued(2, "build");
    world.job_queued(3, "build");
    world.after(2 * SECOND);
    assert_eq!(world.count(|c| matches!(c, Command::Prepare { .. })), 3);
}

/// The run that was begun last, by its time.
trait NextBackBegun {
    fn next_back_begun(self) -> RunnerName;
}

impl<'a, I: Iterator<Item = &'a forrest_core::run::Run>> NextBackBegun for I {
    fn next_back_begun(self) -> RunnerName {
        let preparing = self.filter(|run| run.state_name() == "preparing");
        preparing.map(|run| run.runner.clone()).next().expect("a run is being prepared")
    }
}

#[test]
fn a_job_ends_all_doubts() {
    let mut world = World::new(&[("build", 1)]);
    world.job_queued(1, "build");
    for _ in 0..3 {
        world.after(MINUTE);
        let runner = world.begun();
        world.boots(&runner, src());
        world.run_event(&runner, RunEvent::GuestReady);
        world.exits(&runner, EndReason::GuestShutdown);
    }
    world.after(MINUTE);
    let runner = world.begun();
    world.boots(&runner, src());
    world.run_event(&runner, RunEvent::GuestReady);
    world.job_queued(2, "build");
    world.expect_no_run();
    world.job_in_progress(1, "build", &runner);
    world.begun();
    world.job_completed(1, "build", Some(&runner), Conclusion::Success);
    assert_eq!(world.core.view(world.now).machines[0].failures, 0);
}

#[test]
fn runners_that_github_does_not_let_go_of_do_not_pile_up() {
    let mut world = World::new(&[("build", 1)]);
    world.job_queued(1, "build");
    for _ in 0..200 {
        world.after(6 * MINUTE);
        while let Some(index) =
            world.commands.iter().position(|c| matches!(c, Command::Deregister { .. }))
        {
            let Command::Deregister { runner, .. } = world.commands.remove(index) else {
                unreachable!("just matched")
            };
            world.run_event(&runner, RunEvent::Deregistered(Err(trouble())));
        }
        if world.count(|c| matches!(c, Command::Prepare { .. })) > 0 {
            let runner = world.core.runs().iter().next_back_begun();
            let error = forrest_core::event::RegisterTrouble::Unknown(trouble());
            world.run_event(&runner, RunEvent::Registered(Err(error)));
            world.run_event(&runner, RunEvent::Prepared(Ok(src())));
            world.run_event(&runner, RunEvent::Discarded(Ok(())));
        }
    }
    assert!(world.core.runs().len() <= 5, "{} runs are owing", world.core.runs().len());
}

#[test]
fn a_new_configuration_ends_the_pause() {
    let mut world = World::new(&[("build", 1)]);
    world.job_queued(1, "build");
    for _ in 0..5 {
        world.after(MINUTE);
        let runner = world.begun();
        world.refused(&runner);
    }
    world.expect_no_run();
    world.configure(|_| {});
    world.begun();
}
