//! What people are shown.

use forrest_core::event::{EndReason, Source};
use forrest_core::jobs::Phase;
use forrest_core::model::{Bytes, Conclusion, JobStatus};
use forrest_core::policy::Resources;
use forrest_core::view::{JobWait, Waiting};
use forrest_core::{Capacity, Event};

use crate::world::*;

#[test]
fn a_busy_host_is_shown_as_it_is() {
    let mut world = World::new(&[("build", 7)]);
    world.configure(|policy| policy.capacity = Capacity { cpus: Some(6), ..policy.capacity });
    let busy = world.busy(1, "build");
    let booting = world.booting(2, "build");
    world.job_queued(3, "build");
    world.report(world.job(4, "build", JobStatus::Waiting), Source::Webhook);
    world.event(Event::HostMeasured {
        free_disk: Bytes::gib(100),
        run_disks: [(busy.clone(), Bytes::gib(1))].into_iter().collect(),
    });

    let view = world.core.view(world.now);
    let one = Resources::of(Bytes::gib(7), 2, Bytes::gib(10));
    assert_eq!((view.now, view.draining), (world.now, false));
    let capacity = view.capacity;
    assert_eq!((capacity.ram, capacity.ram_held), (Bytes::gib(16), Bytes(2 * one.ram.0)));
    assert_eq!((capacity.cpus, capacity.cpus_held), (Some(6), 4));
    assert_eq!(capacity.disk_free, Some(Bytes::gib(100)));
    let repository = &view.repositories[0];
    assert_eq!((repository.polled_at, repository.running), (Some(world.now), 1));
    let machine = &view.machines[0];
    assert_eq!((machine.queued, machine.runs, machine.failures), (2, 2, 0));
    assert!(matches!(machine.waiting, Some(Waiting::Ram { .. })), "{:?}", machine.waiting);
    let states: Vec<_> = view.runs.iter().map(|run| (&run.runner, run.state.as_str())).collect();
    assert!(states.contains(&(&busy, "busy")) && states.contains(&(&booting, "booting")));
    let waits: Vec<_> = view.jobs.iter().map(|job| (job.phase, job.waits_for.clone())).collect();
    let no_room = machine.waiting.clone().map(JobWait::Start);
    assert_eq!(
        waits,
        [
            (Phase::Running, None),
            (Phase::Queued, Some(JobWait::Runner)),
            (Phase::Queued, no_room),
            (Phase::Held, Some(JobWait::GitHub)),
        ]
    );
}

#[test]
fn runs_that_are_put_away_hold_a_disk_and_nothing_else() {
    let mut world = World::new(&[("build", 7)]);
    let runner = world.busy(1, "build");
    world.exits(&runner, EndReason::GuestShutdown);
    let view = world.core.view(world.now);
    assert_eq!((view.capacity.ram_held, view.capacity.cpus_held), (Bytes(0), 0));
    assert_eq!((view.machines[0].runs, view.runs.len()), (0, 1));
    // GitHub has not said yet that its job is over.
    assert_eq!(view.repositories[0].running, 1);
    world.job_completed(1, "build", Some(&runner), Conclusion::Success);
    assert_eq!(world.core.view(world.now).repositories[0].running, 0);
}
