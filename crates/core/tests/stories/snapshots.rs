//! Snapshots of booted guests.

use std::collections::BTreeMap;

use forrest_core::event::EndReason;
use forrest_core::model::{Bytes, Generation, ImageRef, RunnerName};
use forrest_core::snapshots::BuildTrouble;
use forrest_core::{Command, Event, RunEvent};

use crate::world::*;

fn build(c: &Command) -> bool {
    matches!(c, Command::BuildSnapshot { .. })
}

fn cancel(c: &Command) -> bool {
    matches!(c, Command::CancelSnapshot { .. })
}

/// A machine type of 10 GiB whose snapshot is being built.
fn building() -> World {
    let mut world = World::new(&[("build", 10), ("test", 10)]);
    world.configure(|policy| {
        policy.machines.get_mut(&machine_name("build")).expect("it is there").snapshot = true;
    });
    world.expect(|c| matches!(c, Command::CheckSnapshot { .. }));
    world.event(Event::SnapshotChecked { machine: machine_name("build"), fits: Ok(false) });
    world.expect(build);
    world
}

/// A machine type of 10 GiB that wants a snapshot, while a run has all of that room.
fn without_room() -> (World, RunnerName) {
    let mut world = World::new(&[("build", 10), ("test", 10)]);
    let runner = world.busy(1, "test");
    world.configure(|policy| {
        policy.machines.get_mut(&machine_name("build")).expect("it is there").snapshot = true;
    });
    world.event(Event::SnapshotChecked { machine: machine_name("build"), fits: Ok(false) });
    world.expect_none(build);
    (world, runner)
}

#[test]
fn a_snapshot_is_built_as_soon_as_a_run_leaves_its_room() {
    let (mut world, runner) = without_room();
    world.exits(&runner, EndReason::GuestPanicked);
    world.expect(build);
}

#[test]
fn a_snapshot_is_built_as_soon_as_a_run_leaves_its_disk() {
    let (mut world, runner) = without_room();
    world.event(Event::HostMeasured { free_disk: Bytes::gib(20), run_disks: BTreeMap::new() });
    world.exits(&runner, EndReason::GuestPanicked);
    world.expect_none(build);
    world.run_event(&runner, RunEvent::Discarded(Ok(())));
    world.expect(build);
}

#[test]
fn no_snapshot_is_built_on_a_host_that_is_drained() {
    let (mut world, runner) = without_room();
    world.event(Event::DrainRequested(true));
    world.exits(&runner, EndReason::GuestPanicked);
    world.expect_none(build);
    world.event(Event::DrainRequested(false));
    world.expect(build);
}

fn ask(world: &mut World, event: impl FnOnce(forrest_core::model::MachineTypeName) -> Event) {
    world.event(event(machine_name("build")));
}

fn built(world: &mut World) {
    world.event(Event::SnapshotBuilt { machine: machine_name("build"), result: Ok(()) });
    world.expect(|c| matches!(c, Command::CheckSnapshot { .. }));
    world.event(Event::SnapshotChecked { machine: machine_name("build"), fits: Ok(true) });
}

fn drop_it(c: &Command) -> bool {
    matches!(c, Command::DropSnapshot { .. })
}

#[test]
fn an_operator_has_a_snapshot_built_again() {
    let mut world = building();
    built(&mut world);
    ask(&mut world, |machine| Event::SnapshotBuildRequested { machine });
    world.expect(drop_it);
    world.expect(build);
}

#[test]
fn a_snapshot_that_an_operator_removed_stays_away_until_there_is_a_reason() {
    let mut world = building();
    ask(&mut world, |machine| Event::SnapshotRemovalRequested { machine });
    world.expect(cancel);
    let result = Err(BuildTrouble::GaveWay);
    world.event(Event::SnapshotBuilt { machine: machine_name("build"), result });
    world.after(10 * MINUTE);
    world.expect_none(build);

    ask(&mut world, |machine| Event::SnapshotBuildRequested { machine });
    world.expect(build);
    built(&mut world);
    ask(&mut world, |machine| Event::SnapshotRemovalRequested { machine });
    world.expect(drop_it);
    world.event(Event::SnapshotChecked { machine: machine_name("build"), fits: Ok(false) });
    world.after(10 * MINUTE);
    world.expect_none(build);
}

fn silent(world: &mut World, owner: &str, generation: u32) {
    let image =
        ImageRef::Machine { machine: machine_name(owner), generation: Generation(generation) };
    let result = Err(BuildTrouble::Guest { what: "boot-timeout".into(), image });
    world.event(Event::SnapshotBuilt { machine: machine_name("build"), result });
}

#[test]
fn a_build_gives_way_to_a_job_but_holds_its_ram_until_it_has() {
    let mut world = building();
    world.job_queued(1, "test");
    world.expect(cancel);
    world.expect_no_run();
    let result = Err(BuildTrouble::GaveWay);
    world.event(Event::SnapshotBuilt { machine: machine_name("build"), result });
    world.begun();
}

#[test]
fn a_build_that_is_not_wanted_any_more_holds_its_ram_until_it_ended() {
    let mut world = building();
    world.configure(|policy| {
        policy.machines.get_mut(&machine_name("build")).expect("it is there").snapshot = false;
    });
    world.expect(cancel);
    world.job_queued(1, "test");
    world.expect_no_run();
    world.event(Event::SnapshotBuilt { machine: machine_name("build"), result: Ok(()) });
    world.begun();
}

#[test]
fn a_build_that_never_ends_is_given_up() {
    let mut world = building();
    world.after(14 * MINUTE);
    world.expect(cancel);
    world.after(2 * MINUTE);
    world.expect(cancel);
}

#[test]
fn a_generation_that_does_not_boot_is_taken_out_of_use_and_others_not_so_soon() {
    let mut world = building();
    let broken = |c: &Command| matches!(c, Command::MarkBroken { .. });
    silent(&mut world, "build", 7);
    world.expect(broken);
    let taken_out = |world: &World| world.core.view(world.now).machines[0].taken_out.clone();
    assert_eq!(taken_out(&world).map(|it| it.generation), Some(Generation(7)), "status says so");
    for generation in [6, 5, 4] {
        world.after(10 * MINUTE);
        world.expect(build);
        silent(&mut world, "build", generation);
        world.expect_none(broken);
    }
}

#[test]
fn another_machine_types_generation_is_not_judged_by_one_build() {
    let mut world = building();
    silent(&mut world, "base", 7);
    world.expect_none(|c| matches!(c, Command::MarkBroken { .. }));
}
