//! Which job is served next, and why the others wait.

use forrest_core::event::EndReason;
use forrest_core::model::{Bytes, Conclusion, RunnerName};
use forrest_core::view::Waiting;
use forrest_core::{Command, Event, RunEvent};

use crate::world::*;

fn begun_machine(world: &mut World) -> (RunnerName, String) {
    let command = world.expect(|c| matches!(c, Command::Prepare { .. }));
    let Command::Prepare { runner, machine, .. } = command else { unreachable!("just matched") };
    (runner, machine.machine().to_owned())
}

#[test]
fn ram_and_what_qemu_needs_beside_it_are_counted() {
    let mut world = World::new(&[("build", 8)]);
    world.job_queued(1, "build");
    world.job_queued(2, "build");
    world.begun();
    world.expect_no_run();
    assert!(matches!(waits_for(&world, "build"), Some(Waiting::Ram { .. })));
}

#[test]
fn a_guest_that_fits_gets_its_place_on_an_empty_host() {
    let mut world = World::new(&[("all", 16)]);
    world.job_queued(1, "all");
    world.begun();
}

#[test]
fn a_guest_that_is_larger_than_the_host_waits_and_stands_in_nobodys_way() {
    let mut world = World::new(&[("huge", 17), ("small", 1)]);
    world.job_queued(1, "huge");
    world.after(HOUR);
    world.job_queued(2, "small");
    let (_, machine) = begun_machine(&mut world);
    assert_eq!(machine, "small");
    world.expect_no_run();
}

#[test]
fn large_jobs_go_first_among_equals() {
    let mut world = World::new(&[("large", 12), ("small", 3)]);
    world.event(Event::DrainRequested(true));
    for id in 0..6 {
        world.job_queued(id, "small");
    }
    world.job_queued(10, "large");
    world.event(Event::DrainRequested(false));
    assert_eq!(begun_machine(&mut world).1, "large");
}

#[test]
fn a_job_that_waited_long_enough_is_not_overtaken_any_more() {
    let mut world = World::new(&[("large", 12), ("small", 3)]);
    let first: Vec<_> = (0..4).map(|id| world.busy(id, "small")).collect();
    world.job_queued(10, "large");
    world.expect_no_run();
    // Small ones go on overtaking it for ten minutes.
    world.exits(&first[0], EndReason::GuestPanicked);
    world.job_queued(11, "small");
    assert_eq!(begun_machine(&mut world).1, "small");
    world.after(11 * MINUTE);
    world.forget_commands();
    for (id, runner) in first.iter().enumerate().skip(1) {
        world.exits(runner, EndReason::GuestPanicked);
        world.job_queued(20 + id as u64, "small");
        world.expect_none(
            |c| matches!(c, Command::Prepare { machine, .. } if machine.machine() == "small"),
        );
    }
    assert_eq!(begun_machine(&mut world).1, "large");
}

#[test]
fn repositories_share_a_full_host() {
    let mut world = World::new(&[("a/a/build", 2), ("b/b/build", 2)]);
    world.event(Event::DrainRequested(true));
    for id in 0..10 {
        world.job_queued(id, "a/a/build");
        world.job_queued(100 + id, "b/b/build");
    }
    world.event(Event::DrainRequested(false));
    let of = |world: &World, owner: &str| {
        world.core.runs().iter().filter(|r| r.machine.repository().owner() == owner).count()
    };
    assert_eq!((of(&world, "a"), of(&world, "b")), (4, 3));
}

#[test]
fn the_limits_of_machine_types_and_repositories_hold() {
    let mut world = World::new(&[("build", 1), ("test", 1)]);
    world.configure(|policy| {
        policy.max_runs.insert(machine_name("x").repository().clone(), 3);
        policy.machines.get_mut(&machine_name("build")).expect("it is there").max_runs = Some(2);
    });
    for id in 0..4 {
        world.job_queued(id, "build");
    }
    assert_eq!(world.count(|c| matches!(c, Command::Prepare { .. })), 2);
    assert_eq!(waits_for(&world, "build"), Some(Waiting::MachineLimit { max_runs: 2 }));
    for id in 10..14 {
        world.job_queued(id, "test");
    }
    assert_eq!(world.count(|c| matches!(c, Command::Prepare { .. })), 1);
    assert_eq!(waits_for(&world, "test"), Some(Waiting::RepositoryLimit { max_runs: 3 }));
}

#[test]
fn runners_that_no_job_is_left_for_make_room() {
    let mut world = World::new(&[("build", 10), ("test", 10)]);
    let runner = world.idle(1, "build");
    world.job_completed(1, "build", None, Conclusion::Cancelled);
    world.job_queued(2, "test");
    world.expect_no_run();
    world.after(16 * SECOND);
    world.expect_deregister(&runner);
}

#[test]
fn a_runner_whose_job_is_cancelled_makes_room_for_one_that_waits_already() {
    let mut world = World::new(&[("build", 10), ("test", 10)]);
    let runner = world.idle(1, "build");
    world.job_queued(2, "test");
    world.after(MINUTE);
    world.expect_none(|c| matches!(c, Command::Deregister { .. }));
    world.job_completed(1, "build", None, Conclusion::Cancelled);
    world.expect_deregister(&runner);
}

#[test]
fn a_limit_of_one_run_does_not_let_an_idle_runner_block_another_machine_type() {
    let mut world = World::new(&[("build", 1), ("test", 1)]);
    world.configure(|policy| {
        policy.max_runs.insert(machine_name("x").repository().clone(), 1);
    });
    let runner = world.idle(1, "build");
    world.job_completed(1, "build", None, Conclusion::Cancelled);
    world.job_queued(2, "test");
    world.after(16 * SECOND);
    world.expect_deregister(&runner);
}

#[test]
fn the_disk_may_fill_up_but_not_be_promised_twice() {
    let mut world = World::new(&[("build", 1)]);
    let measured = |gib| Event::HostMeasured {
        free_disk: Bytes::gib(gib),
        run_disks: std::collections::BTreeMap::new(),
    };
    world.event(measured(12));
    world.job_queued(1, "build");
    world.job_queued(2, "build");
    world.begun();
    world.expect_no_run();
    assert!(matches!(waits_for(&world, "build"), Some(Waiting::Disk { .. })));
    world.event(measured(21));
    world.begun();
}

#[test]
fn a_disk_that_is_removed_makes_room_at_once() {
    let mut world = World::new(&[("build", 1)]);
    let run_disks = std::collections::BTreeMap::new();
    world.event(Event::HostMeasured { free_disk: Bytes::gib(21), run_disks });
    let first = world.busy(1, "build");
    world.busy(2, "build");
    world.job_queued(3, "build");
    assert!(matches!(waits_for(&world, "build"), Some(Waiting::Disk { .. })));
    world.exits(&first, EndReason::GuestPanicked);
    world.expect_no_run();
    world.run_event(&first, RunEvent::Discarded(Ok(())));
    world.begun();
}

#[test]
fn a_disk_without_its_reserve_serves_nobody() {
    let mut world = World::new(&[("build", 1)]);
    let run_disks = std::collections::BTreeMap::new();
    world.event(Event::HostMeasured { free_disk: Bytes::mib(900), run_disks: run_disks.clone() });
    world.job_queued(1, "build");
    world.expect_no_run();
    world.event(Event::HostMeasured { free_disk: Bytes::mib(1100), run_disks });
    world.begun();
}

fn derived() -> World {
    let mut world = World::new(&[("base", 1), ("derived", 1)]);
    world.configure_machine("derived", |machine| machine.base_machine = Some(machine_name("base")));
    world
}

#[test]
fn a_job_waits_for_the_image_that_a_job_before_it_leaves() {
    let mut world = derived();
    let base = world.finishing(101, "base", Conclusion::Success);
    world.job_queued(102, "derived");
    world.expect_no_run();
    assert_eq!(waits_for(&world, "derived"), Some(Waiting::Base { runner: base.clone() }));
    world.exits(&base, EndReason::GuestShutdown);
    world.read_back(&base, forrest_core::event::Persist::Valid);
    world.expect_no_run();
    world.run_event(&base, RunEvent::Promoted(Ok(forrest_core::model::Generation(1))));
    world.begun();
}

#[test]
fn a_job_waits_for_the_job_that_the_base_has_now_and_not_for_an_earlier_one() {
    let mut world = derived();
    let base = world.busy(101, "base");
    world.job_queued(201, "base");
    world.job_in_progress(201, "base", &base);
    world.forget_commands();
    world.job_queued(102, "derived");
    let derived = world.begun();
    world.job_queued(202, "derived");
    assert_eq!(waits_for(&world, "derived"), Some(Waiting::Base { runner: base }));
    world.is(&derived, "preparing");
}

#[test]
fn a_job_waits_while_the_base_is_busy_for_the_same_workflow_run_only() {
    let mut world = derived();
    world.busy(101, "base");
    world.job_queued(102, "derived");
    world.expect_no_run();
    // One of another workflow run gets a run; the waiting one does not get a second.
    world.job_queued(202, "derived");
    world.begun();
    world.expect_no_run();
    world.job_queued(303, "base");
    world.begun();
    world.expect_no_run();
}

#[test]
fn a_base_that_is_always_about_to_change_starves_nobody() {
    let mut world = derived();
    world.finishing(101, "base", Conclusion::Success);
    world.job_queued(202, "derived");
    world.expect_no_run();
    for id in 0..6 {
        world.after(2 * MINUTE);
        world.forget_commands();
        if world.core.runs().iter().any(|run| run.machine == machine_name("derived")) {
            return;
        }
        world.finishing(1000 + id * 100, "base", Conclusion::Success);
    }
    panic!("the derived machine type never got a run");
}

#[test]
fn a_job_that_waits_for_its_base_keeps_nobody_from_the_room_it_cannot_use() {
    let mut world = World::new(&[("base", 1), ("derived", 15), ("small", 1)]);
    world.configure_machine("derived", |machine| machine.base_machine = Some(machine_name("base")));
    world.busy(101, "base");
    world.job_queued(102, "derived");
    world.after(HOUR);
    world.job_queued(900, "small");
    assert_eq!(begun_machine(&mut world).1, "small");
}

#[test]
fn nobody_is_said_to_wait_for_a_base_when_all_have_their_runs() {
    let mut world = derived();
    world.busy(101, "base");
    for id in [202, 303] {
        world.job_queued(id, "derived");
        world.begun();
        assert_eq!(waits_for(&world, "derived"), None);
    }
}

#[test]
fn an_image_that_takes_its_time_is_waited_for_until_the_job_is_not_to_be_overtaken() {
    let mut world = derived();
    let base = world.finishing(101, "base", Conclusion::Success);
    world.exits(&base, EndReason::GuestShutdown);
    world.read_back(&base, forrest_core::event::Persist::Valid);
    world.job_queued(202, "derived");
    world.after(10 * MINUTE - SECOND);
    world.expect_no_run();
    world.after(SECOND);
    world.begun();
}

#[test]
fn a_repositorys_limit_holds_for_runs_that_are_begun_at_once() {
    let mut world = World::new(&[("build", 1), ("test", 1), ("other", 1)]);
    world.configure(|policy| {
        policy.max_runs.insert(machine_name("x").repository().clone(), 3);
        policy.machines.get_mut(&machine_name("build")).expect("it is there").max_runs = Some(2);
    });
    world.event(Event::DrainRequested(true));
    for id in 0..4 {
        world.job_queued(id, "build");
        world.job_queued(10 + id, "test");
    }
    world.event(Event::DrainRequested(false));
    let begun = |machine: &str| world.core.runs().of_machine(&machine_name(machine)).runs;
    assert_eq!(begun("build") + begun("test"), 3);
    world.configure(|policy| policy.max_runs.clear());
    let begun = |machine: &str| world.core.runs().of_machine(&machine_name(machine)).runs;
    assert_eq!((begun("build"), begun("test")), (2, 4));
}

#[test]
fn a_machine_types_limit_holds_for_runs_that_are_begun_at_once() {
    let mut world = World::new(&[("build", 1)]);
    world.configure_machine("build", |machine| machine.max_runs = Some(2));
    world.event(Event::DrainRequested(true));
    for id in 0..4 {
        world.job_queued(id, "build");
    }
    world.event(Event::DrainRequested(false));
    assert_eq!(world.core.runs().of_machine(&machine_name("build")).runs, 2);
}
