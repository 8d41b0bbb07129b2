//! Snapshots of booted guests.

use forrest_core::model::{Generation, ImageRef};
use forrest_core::snapshots::BuildTrouble;
use forrest_core::{Command, Event};

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
