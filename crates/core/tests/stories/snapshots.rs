//! Snapshots of booted guests.

use std::collections::BTreeMap;
use std::time::Duration;

use forrest_core::event::{EndReason, Persist, Trouble};
use forrest_core::model::{Bytes, Conclusion, Generation, ImageRef, MachineTypeName, RunnerName};
use forrest_core::snapshots::{BuildTrouble, Snapshot, SnapshotState};
use forrest_core::{Capacity, Command, Event, Level, RunEvent};

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
    world.configure_machine("build", |machine| machine.snapshot = true);
    world.expect(|c| matches!(c, Command::CheckSnapshot { .. }));
    world.event(Event::SnapshotChecked { machine: machine_name("build"), fits: Ok(false) });
    world.expect(build);
    world
}

/// A machine type of 10 GiB that wants a snapshot, while a run has all of that room.
fn without_room() -> (World, RunnerName) {
    let mut world = World::new(&[("build", 10), ("test", 10)]);
    let runner = world.busy(1, "test");
    world.configure_machine("build", |machine| machine.snapshot = true);
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

fn completed(world: &mut World) {
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
    completed(&mut world);
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
    completed(&mut world);
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
    world.configure_machine("build", |machine| machine.snapshot = false);
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

// While they are used: images change, restores and builds fail.

fn check(c: &Command) -> bool {
    matches!(c, Command::CheckSnapshot { .. })
}

/// Machine types whose runs are to be restored; each was looked at: there is no snapshot yet.
fn wanting(machines: &[(&str, u64)]) -> World {
    let mut world = World::new(machines);
    world.configure(|policy| policy.machines.values_mut().for_each(|m| m.snapshot = true));
    for (machine, _) in machines {
        checked(&mut world, machine, false);
    }
    world
}

fn checked(world: &mut World, machine: &str, fits: bool) {
    let machine = machine_name(machine);
    world.commands.retain(|c| !matches!(c, Command::CheckSnapshot { machine: m } if *m == machine));
    world.event(Event::SnapshotChecked { machine, fits: Ok(fits) });
}

fn built(world: &mut World, machine: &str, result: Result<(), BuildTrouble>) {
    world.expect(
        |c| matches!(c, Command::BuildSnapshot { machine: m } if *m == machine_name(machine)),
    );
    world.event(Event::SnapshotBuilt { machine: machine_name(machine), result });
}

/// A machine type whose snapshot is ready.
fn ready() -> World {
    let mut world = wanting(&[("build", 4)]);
    built(&mut world, "build", Ok(()));
    checked(&mut world, "build", true);
    world
}

fn snapshot(world: &World, machine: &str) -> Snapshot {
    let machines = world.core.view(world.now).machines;
    let found = machines.into_iter().find(|m| m.name == machine_name(machine));
    found.and_then(|m| m.snapshot).expect("a snapshot")
}

/// The run that was begun last, and whether it is to be restored.
fn begun(world: &mut World) -> (RunnerName, bool) {
    let command = world.expect(|c| matches!(c, Command::Prepare { .. }));
    let Command::Prepare { runner, restore, .. } = command else { unreachable!("just matched") };
    (runner, restore)
}

#[test]
fn restored_runs_and_those_that_should_have_been_are_counted() {
    let mut world = ready();
    for (id, restored) in [(1, true), (2, false), (3, true)] {
        world.job_queued(id, "build");
        let (runner, restore) = begun(&mut world);
        assert!(restore);
        world.prepared(&runner, src());
        world.run_event(&runner, RunEvent::VmStarted { restored });
    }
    let snapshot = snapshot(&world, "build");
    assert_eq!((snapshot.restored, snapshot.fallbacks), (2, 1));
}

#[test]
fn a_cold_start_before_there_is_a_snapshot_is_no_fallback() {
    let mut world = wanting(&[("build", 4)]);
    world.job_queued(1, "build");
    let (runner, restore) = begun(&mut world);
    assert!(!restore);
    world.boots(&runner, src());
    assert_eq!(snapshot(&world, "build").fallbacks, 0);
}

#[test]
fn after_a_restore_that_failed_runs_start_cold_until_there_is_another_snapshot() {
    let mut world = ready();
    world.job_queued(1, "build");
    let (runner, _) = begun(&mut world);
    world.prepared(&runner, src());
    world.exits(&runner, EndReason::RestoreFailed);
    world.expect(drop_it);
    world.expect_note(Level::Warn, "could not be restored; runs start cold until there is a new");
    let (_, restore) = begun(&mut world);
    assert!(!restore, "the job gets another run at once, which boots");
    let failed = snapshot(&world, "build");
    assert_eq!((failed.fallbacks, failed.restore_failures), (1, 1));
    assert!(failed.trouble.is_some());
    // What is still there is not believed, whatever it looks like.
    checked(&mut world, "build", true);
    assert_ne!(snapshot(&world, "build").state, SnapshotState::Ready);
    built(&mut world, "build", Ok(()));
    let again = snapshot(&world, "build");
    assert_eq!(
        (again.state, again.restore_failures, again.trouble),
        (SnapshotState::Ready, 0, None)
    );
}

#[test]
fn a_snapshot_that_could_not_be_restored_is_not_believed_while_nothing_is_built_either() {
    let mut world = ready();
    world.job_queued(1, "build");
    let (runner, _) = begun(&mut world);
    world.prepared(&runner, src());
    world.event(Event::DrainRequested(true));
    world.exits(&runner, EndReason::RestoreFailed);
    checked(&mut world, "build", true);
    assert_eq!(snapshot(&world, "build").state, SnapshotState::Wanted);
}

#[test]
fn of_two_snapshots_that_are_wanted_at_once_one_is_built_first() {
    let mut world = World::new(&[("build", 4), ("test", 4)]);
    world.event(Event::DrainRequested(true));
    world.configure(|policy| policy.machines.values_mut().for_each(|m| m.snapshot = true));
    checked(&mut world, "build", false);
    checked(&mut world, "test", false);
    world.event(Event::DrainRequested(false));
    assert_eq!(world.count(build), 1);
}

#[test]
fn a_restore_that_works_ends_the_doubts_that_another_raised() {
    let mut world = ready();
    let runners = [1, 2].map(|id| {
        world.job_queued(id, "build");
        let (runner, _) = begun(&mut world);
        world.prepared(&runner, src());
        runner
    });
    world.exits(&runners[0], EndReason::RestoreFailed);
    assert_eq!(snapshot(&world, "build").restore_failures, 1);
    world.run_event(&runners[1], RunEvent::VmStarted { restored: true });
    assert_eq!(snapshot(&world, "build").restore_failures, 0);
}

#[test]
fn a_new_image_is_reason_to_look_at_its_own_snapshot_and_those_based_on_it() {
    let mut world = wanting(&[("build", 4), ("derived", 4), ("test", 4)]);
    world
        .configure_machine("derived", |machine| machine.base_machine = Some(machine_name("build")));
    for machine in ["build", "derived", "test"] {
        checked(&mut world, machine, false);
        built(&mut world, machine, Ok(()));
        checked(&mut world, machine, true);
        world.event(Event::SnapshotRemovalRequested { machine: machine_name(machine) });
    }
    let runner = world.finishing(1, "build", Conclusion::Success);
    world.exits(&runner, EndReason::GuestShutdown);
    world.read_back(&runner, Persist::Valid);
    world.forget_commands();
    world.run_event(&runner, RunEvent::Promoted(Ok(Generation(1))));
    let looked_at: Vec<MachineTypeName> = world.commands.iter().filter_map(of_check).collect();
    assert_eq!(looked_at, [machine_name("build"), machine_name("derived")]);
    let held_back = |machine: &str| snapshot(&world, machine).held_back;
    assert_eq!(["build", "derived", "test"].map(held_back), [false, false, true]);
}

fn of_check(command: &Command) -> Option<MachineTypeName> {
    match command {
        Command::CheckSnapshot { machine } => Some(machine.clone()),
        _ => None,
    }
}

#[test]
fn it_is_looked_every_minute_whether_a_snapshot_fits() {
    let mut world = ready();
    world.after(10 * MINUTE);
    assert_eq!(world.count(check), 10);
    // One that is looked at is not looked at again before there is an answer.
    checked(&mut world, "build", false);
    world.expect(build);
    world.after(5 * MINUTE);
    assert_eq!(world.count(check), 0, "it is being built");
}

#[test]
fn a_snapshot_without_an_image_is_not_built_and_said_why() {
    let mut world = World::new(&[("build", 4)]);
    world.configure(|policy| policy.machines.values_mut().for_each(|m| m.snapshot = true));
    let machine = machine_name("build");
    world.event(Event::SnapshotChecked { machine, fits: Err(Trouble::new("there is no image")) });
    world.expect_none(build);
    let snapshot = snapshot(&world, "build");
    assert_eq!(snapshot.state, SnapshotState::Unknown);
    assert_eq!(snapshot.trouble.as_deref(), Some("there is no image"));
}

#[test]
fn snapshots_are_built_one_after_the_other() {
    let mut world = wanting(&[("build", 4), ("test", 4)]);
    built(&mut world, "build", Ok(()));
    world.event(Event::Tick);
    built(&mut world, "test", Ok(()));
}

#[test]
fn a_build_that_fails_is_tried_again_after_8_16_and_32_seconds() {
    let mut world = wanting(&[("build", 4)]);
    for (failures, pause) in [8, 16, 32].into_iter().enumerate() {
        built(&mut world, "build", Err(BuildTrouble::Host(trouble())));
        world.expect_note(Level::Error, &format!("start cold; next try in {pause} s"));
        let failed = snapshot(&world, "build");
        assert_eq!(failed.failures as usize, failures + 1);
        assert_eq!(failed.not_before.since(world.now), Duration::from_secs(pause));
        world.after(Duration::from_secs(pause - 1));
        world.expect_none(build);
        world.after(SECOND);
    }
    built(&mut world, "build", Ok(()));
    assert_eq!(snapshot(&world, "build").failures, 0);
}

#[test]
fn a_build_may_take_ten_minutes_longer_than_a_boot() {
    let mut world = wanting(&[("build", 4)]);
    world.expect(build);
    world.after(12 * MINUTE - SECOND);
    world.expect_none(cancel);
    world.after(SECOND);
    world.expect(cancel);
    world.expect_note(Level::Warn, "takes too long: giving it up");
}

#[test]
fn a_build_is_given_up_once_however_often_it_is_said() {
    let mut world = wanting(&[("build", 4)]);
    world.expect(build);
    for _ in 0..2 {
        world.event(Event::SnapshotRemovalRequested { machine: machine_name("build") });
    }
    world.configure(|policy| policy.machines.values_mut().for_each(|m| m.snapshot = false));
    assert_eq!(world.count(cancel), 1);
    world.expect_none(drop_it);
}

#[test]
fn a_build_holds_processors_and_disk_too() {
    let mut world = wanting(&[("build", 1), ("test", 1)]);
    world.expect(build);
    world.configure(|policy| policy.capacity = Capacity { cpus: Some(3), ..policy.capacity });
    world.job_queued(1, "test");
    world.expect_no_run();
    world.event(Event::SnapshotBuilt { machine: machine_name("build"), result: Ok(()) });
    begun(&mut world);
}
