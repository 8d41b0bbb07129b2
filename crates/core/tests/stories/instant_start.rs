//! What becomes of snapshots while they are used: images change, restores and builds fail.

use std::time::Duration;

use forrest_core::event::{EndReason, Persist, Trouble};
use forrest_core::model::{Conclusion, Generation, MachineTypeName, RunnerName};
use forrest_core::snapshots::{BuildTrouble, Snapshot, SnapshotState};
use forrest_core::{Capacity, Command, Event, Level, RunEvent};

use crate::world::*;

fn build(c: &Command) -> bool {
    matches!(c, Command::BuildSnapshot { .. })
}

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

fn starts(world: &mut World, runner: &RunnerName, restored: bool) {
    world.run_event(runner, RunEvent::Prepared(Ok(src())));
    world.run_event(runner, RunEvent::Registered(Ok(id_of(runner))));
    world.run_event(runner, RunEvent::VmStarted { restored });
}

#[test]
fn restored_runs_and_those_that_should_have_been_are_counted() {
    let mut world = ready();
    for (id, restored) in [(1, true), (2, false), (3, true)] {
        world.job_queued(id, "build");
        let (runner, restore) = begun(&mut world);
        assert!(restore);
        starts(&mut world, &runner, restored);
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
    starts(&mut world, &runner, false);
    assert_eq!(snapshot(&world, "build").fallbacks, 0);
}

#[test]
fn after_a_restore_that_failed_runs_start_cold_until_there_is_another_snapshot() {
    let mut world = ready();
    world.job_queued(1, "build");
    let (runner, _) = begun(&mut world);
    starts(&mut world, &runner, false);
    world.exits(&runner, EndReason::RestoreFailed);
    world.expect(|c| matches!(c, Command::DropSnapshot { .. }));
    world.expect_note(Level::Warn, "could not be restored; runs start cold until there is a new");
    let (_, restore) = begun(&mut world);
    assert!(!restore, "the job gets another run at once, which boots");
    let failed = snapshot(&world, "build");
    assert_eq!((failed.fallbacks, failed.restore_failures), (2, 1));
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
fn a_restore_that_works_ends_the_doubts() {
    let mut world = ready();
    for (id, restored) in [(1, true), (2, true)] {
        world.job_queued(id, "build");
        let (runner, _) = begun(&mut world);
        starts(&mut world, &runner, restored);
    }
    assert_eq!(snapshot(&world, "build").restore_failures, 0);
}

#[test]
fn a_new_image_is_reason_to_look_at_its_own_snapshot_and_those_based_on_it() {
    let mut world = wanting(&[("build", 4), ("derived", 4), ("test", 4)]);
    world.configure(|policy| {
        let derived = policy.machines.get_mut(&machine_name("derived")).expect("it is there");
        derived.base_machine = Some(machine_name("build"));
    });
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
    let cancel = |c: &Command| matches!(c, Command::CancelSnapshot { .. });
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
    assert_eq!(world.count(|c| matches!(c, Command::CancelSnapshot { .. })), 1);
    world.expect_none(|c| matches!(c, Command::DropSnapshot { .. }));
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
