//! Disk and registration come side by side, and either may fail.

use forrest_core::event::{RegisterTrouble, RunEvent};
use forrest_core::{Command, Level};

use crate::world::*;

#[test]
fn a_disk_that_comes_after_the_registration_was_refused_is_removed_then() {
    let mut world = World::new(&[("build", 4)]);
    world.job_queued(1, "build");
    let runner = world.begun();
    world.refused(&runner);
    world.expect_none(discard);
    world.run_event(&runner, RunEvent::Prepared(Ok(src())));
    world.expect(discard);
    world.expect_none(deregister);
}

#[test]
fn a_disk_that_was_there_is_removed_as_soon_as_the_registration_is_refused() {
    let mut world = World::new(&[("build", 4)]);
    world.job_queued(1, "build");
    let runner = world.begun();
    world.run_event(&runner, RunEvent::Prepared(Ok(src())));
    world.refused(&runner);
    world.expect(discard);
}

#[test]
fn a_runner_whose_disk_could_not_be_made_is_removed_from_github() {
    for registered_first in [true, false] {
        let mut world = World::new(&[("build", 4)]);
        world.job_queued(1, "build");
        let runner = world.begun();
        let registered = RunEvent::Registered(Ok(id_of(&runner)));
        if registered_first {
            world.run_event(&runner, registered.clone());
        }
        world.run_event(&runner, RunEvent::Prepared(Err(trouble())));
        world.expect_note(Level::Error, "the run failed, next try in 1 s: it rains");
        world.expect(discard);
        if !registered_first {
            world.expect_none(deregister);
            world.run_event(&runner, registered);
        }
        let command = world.expect(deregister);
        assert!(
            matches!(command, Command::Deregister { id: Some(id), .. } if id == id_of(&runner))
        );
    }
}

#[test]
fn a_runner_that_may_have_been_registered_is_removed_by_its_name() {
    let mut world = World::new(&[("build", 4)]);
    world.job_queued(1, "build");
    let runner = world.begun();
    let error = RegisterTrouble::Unknown(trouble());
    world.run_event(&runner, RunEvent::Registered(Err(error)));
    let command = world.expect(deregister);
    assert!(matches!(command, Command::Deregister { id: None, .. }));
}

#[test]
fn a_run_is_as_old_as_its_beginning() {
    let mut world = World::new(&[("build", 4)]);
    world.after(MINUTE);
    let begun_at = world.now;
    let runner = world.booting(1, "build");
    world.after(MINUTE);
    let times = world.core.runs().get(&runner).expect("the run is there").times;
    assert_eq!((times.created, times.prepared), (begun_at, Some(begun_at)));
}
