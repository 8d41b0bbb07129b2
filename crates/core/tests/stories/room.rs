//! What fits on the host, to the last byte.

use std::collections::BTreeMap;

use forrest_core::event::RegisterTrouble;
use forrest_core::model::{Bytes, Conclusion, RunnerName};
use forrest_core::policy::Resources;
use forrest_core::view::Waiting;
use forrest_core::{Capacity, Command, Event, RunEvent};

use crate::world::*;

fn begun(world: &mut World) -> usize {
    world.count(|c| matches!(c, Command::Prepare { .. }))
}

fn with_cpus(world: &mut World, cpus: u32) {
    world.configure(|policy| policy.capacity = Capacity { cpus: Some(cpus), ..policy.capacity });
}

#[test]
fn two_runs_that_fill_the_host_exactly_both_fit() {
    let mut world = World::new(&[("build", 4)]);
    let one = Resources::of(Bytes::gib(4), 2, Bytes::gib(10));
    world.configure(|policy| policy.capacity.ram = Bytes(2 * one.ram.0));
    for id in 0..3 {
        world.job_queued(id, "build");
    }
    assert_eq!(begun(&mut world), 2);
}

#[test]
fn processors_are_counted() {
    let mut world = World::new(&[("build", 1)]);
    with_cpus(&mut world, 4);
    for id in 0..3 {
        world.job_queued(id, "build");
    }
    assert_eq!(begun(&mut world), 2);
    assert_eq!(waits_for(&world, "build"), Some(Waiting::Cpus { needed: 2, free: 0 }));
}

#[test]
fn a_guest_with_more_processors_than_the_host_stands_in_nobodys_way_but_one_with_all_of_them_does()
{
    for (cpus, others) in [(5, 1), (4, 0)] {
        let mut world = World::new(&[("large", 1), ("small", 1)]);
        with_cpus(&mut world, 4);
        world.configure_machine("large", |machine| machine.cpus = cpus);
        world.busy(1, "small");
        world.job_queued(2, "large");
        world.after(HOUR);
        world.forget_commands();
        world.job_queued(3, "small");
        assert_eq!(begun(&mut world), others, "{cpus}");
    }
}

#[test]
fn only_one_guest_gets_its_place_whatever_qemu_needs_beside_it() {
    let mut world = World::new(&[("all", 16)]);
    world.event(Event::DrainRequested(true));
    world.job_queued(1, "all");
    world.job_queued(2, "all");
    world.event(Event::DrainRequested(false));
    assert_eq!(begun(&mut world), 1);
}

#[test]
fn a_snapshot_that_is_built_counts_like_a_run() {
    let mut world = World::new(&[("build", 1), ("all", 16)]);
    world.configure_machine("build", |machine| machine.snapshot = true);
    world.event(Event::SnapshotChecked { machine: machine_name("build"), fits: Ok(false) });
    world.expect(|c| matches!(c, Command::BuildSnapshot { .. }));
    world.job_queued(1, "all");
    assert_eq!(begun(&mut world), 0);
}

#[test]
fn a_snapshot_does_not_give_way_to_a_job_that_waits_for_something_else() {
    let mut world = World::new(&[("build", 1), ("test", 1)]);
    world.configure_machine("build", |machine| machine.snapshot = true);
    world.configure_machine("test", |machine| machine.max_runs = Some(1));
    world.busy(1, "test");
    world.event(Event::SnapshotChecked { machine: machine_name("build"), fits: Ok(false) });
    world.expect(|c| matches!(c, Command::BuildSnapshot { .. }));
    world.job_queued(2, "test");
    assert_eq!(waits_for(&world, "test"), Some(Waiting::MachineLimit { max_runs: 1 }));
    world.expect_none(|c| matches!(c, Command::CancelSnapshot { .. }));
}

#[test]
fn what_a_disk_holds_already_is_not_counted_as_room_that_it_may_take() {
    for (held, runs) in [(6, 1), (5, 0)] {
        let mut world = World::new(&[("build", 1)]);
        let runner = world.busy(1, "build");
        let run_disks: BTreeMap<RunnerName, Bytes> = [(runner, Bytes::gib(held))].into();
        world.event(Event::HostMeasured { free_disk: Bytes::gib(15), run_disks });
        world.job_queued(2, "build");
        assert_eq!(begun(&mut world), runs, "{held} GiB of 10");
    }
}

#[test]
fn a_runner_that_github_lets_go_of_at_last_makes_room_for_another_try() {
    let mut world = World::new(&[("build", 1)]);
    world.job_queued(1, "build");
    let mut owing = Vec::new();
    for _ in 0..3 {
        world.after(6 * MINUTE);
        let runner = world.begun();
        let error = RegisterTrouble::Unknown(trouble());
        world.run_event(&runner, RunEvent::Prepared(Ok(src())));
        world.run_event(&runner, RunEvent::Registered(Err(error)));
        world.run_event(&runner, RunEvent::Discarded(Ok(())));
        world.run_event(&runner, RunEvent::Deregistered(Err(trouble())));
        owing.push(runner);
    }
    world.after(30 * MINUTE);
    world.expect_no_run();
    world.forget_commands();
    world.after(5 * MINUTE);
    world.deregistered(&owing[0], forrest_core::event::Deregistration::Removed);
    world.begun();
}

#[test]
fn no_more_runners_are_retired_than_jobs_are_gone_and_none_in_a_hurry() {
    let mut world = World::new(&[("build", 4), ("test", 12)]);
    for id in 1..=3 {
        world.idle(id, "build");
    }
    world.job_completed(1, "build", None, Conclusion::Cancelled);
    world.job_queued(10, "test");
    world.after(14 * SECOND);
    world.expect_none(|c| matches!(c, Command::Deregister { .. }));
    world.after(2 * SECOND);
    assert_eq!(world.count(|c| matches!(c, Command::Deregister { .. })), 1);
    assert!(!world.core.runs().is_empty());
    assert_eq!(world.core.runs().len(), 3);
}

#[test]
fn only_one_disk_gets_its_place_however_large_it_may_grow() {
    let mut world = World::new(&[("build", 1)]);
    world.configure(|policy| policy.capacity.min_free_disk = Bytes(0));
    world.event(Event::DrainRequested(true));
    world.event(Event::HostMeasured { free_disk: Bytes::gib(5), run_disks: BTreeMap::new() });
    world.job_queued(1, "build");
    world.job_queued(2, "build");
    world.event(Event::DrainRequested(false));
    assert_eq!(begun(&mut world), 1);
    assert!(matches!(waits_for(&world, "build"), Some(Waiting::Disk { .. })));
}
