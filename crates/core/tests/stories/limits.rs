//! Nothing grows without bound, and nothing absurd breaks the sums.

use std::time::Duration;

use forrest_core::event::{AdoptedVm, Deregistration, EndReason, Source};
use forrest_core::jobs::{ACTIVE_JOBS_MAX, DONE_JOBS_MAX};
use forrest_core::model::{Bytes, Conclusion, JobStatus};
use forrest_core::{Command, Event, FINISHED_RUNS_MAX, RunEvent};

use crate::world::*;

#[test]
fn finished_jobs_are_forgotten_in_the_end() {
    let mut world = World::new(&[("build", 4)]);
    for id in 0..DONE_JOBS_MAX as u64 + 10 {
        let job = forrest_core::model::Job {
            conclusion: Some(Conclusion::Success),
            ..world.job(id, "build", JobStatus::Completed)
        };
        let mut out = Vec::new();
        world.core.handle(world.now, Event::JobReported { job, source: Source::Webhook }, &mut out);
    }
    assert_eq!(world.core.jobs().iter().count(), DONE_JOBS_MAX);
}

#[test]
fn a_flood_of_jobs_is_left_to_later_polls() {
    let mut world = World::new(&[("build", 4)]);
    world.event(Event::DrainRequested(true));
    for id in 0..ACTIVE_JOBS_MAX as u64 + 10 {
        let job = world.job(id, "build", JobStatus::Queued);
        let mut out = Vec::new();
        world.core.handle(world.now, Event::JobReported { job, source: Source::Webhook }, &mut out);
    }
    assert_eq!(world.core.jobs().active_count(), ACTIVE_JOBS_MAX);
}

#[test]
fn absurd_sizes_do_not_break_the_sums() {
    let mut world = World::new(&[("build", 4)]);
    for index in 0..200 {
        let runner = format!("forrest-build-{index:016}").parse().expect("a sound name");
        world.event(Event::Adopted(Box::new(forrest_core::event::AdoptedRun {
            runner,
            machine: machine_name("build"),
            ram: Bytes(u64::MAX),
            cpus: u32::MAX,
            disk: Bytes(u64::MAX),
            created_at: world.now,
            vm: AdoptedVm::NotStarted,
            job: None,
        })));
    }
}

#[test]
fn room_is_made_on_a_disk_that_is_nearly_full_and_not_again_at_once() {
    let mut world = World::new(&[("build", 4)]);
    let measured = |free_disk| Event::HostMeasured { free_disk, run_disks: [].into() };
    let is_reclaim = |command: &Command| matches!(command, Command::Reclaim { .. });
    world.event(measured(Bytes::gib(1)));
    assert_eq!(world.count(is_reclaim), 0);
    for _ in 0..5 {
        world.event(measured(Bytes(Bytes::gib(1).0 - 1)));
    }
    let wanted = Bytes::gib(1);
    assert_eq!(world.expect(is_reclaim), Command::Reclaim { wanted });
    assert_eq!(world.count(is_reclaim), 0);
    world.after(Duration::from_secs(10 * 60 - 1));
    world.event(measured(Bytes(0)));
    assert_eq!(world.count(is_reclaim), 0);
    world.after(Duration::from_secs(1));
    world.event(measured(Bytes(0)));
    assert_eq!(world.count(is_reclaim), 1);
}

#[test]
fn a_guest_that_complains_without_end_is_not_listened_to_without_end() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.idle(1, "build");
    let mut notes = 0;
    for _ in 0..1000 {
        let mut out = Vec::new();
        let event = RunEvent::GuestError("x".repeat(100_000));
        world.core.handle(world.now, Event::Run { runner: runner.clone(), event }, &mut out);
        notes += out.len();
    }
    assert_eq!(notes, 100);
    let run = world.core.runs().get(&runner).expect("the run is there");
    assert!(run.trouble.as_ref().is_some_and(|text| text.len() == 500));
}

#[test]
fn a_bounded_number_of_finished_runs_is_kept_in_mind() {
    let mut world = World::new(&[("build", 1)]);
    for id in 0..FINISHED_RUNS_MAX as u64 + 3 {
        let runner = world.finishing(id, "build", Conclusion::Success);
        world.exits(&runner, EndReason::Killed);
        world.run_event(&runner, RunEvent::Discarded(Ok(())));
        world.after(SECOND);
        world.deregistered(&runner, Deregistration::Removed);
        world.forget_commands();
    }
    let finished = world.core.view(world.now).finished;
    assert_eq!(finished.len(), FINISHED_RUNS_MAX);
    let last = finished.last().expect("the last one");
    assert_eq!(last.times.gone, Some(world.now));
    assert_eq!(last.job.as_ref().map(|job| job.id.0), Some(FINISHED_RUNS_MAX as u64 + 2));
}
