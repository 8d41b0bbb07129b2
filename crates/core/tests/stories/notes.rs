//! Whatever goes wrong, the log says in plain words what it was and what is done about it.

use forrest_core::event::{AdoptedVm, Deregistration, EndReason, Persist, Source, Trouble, VmEnd};
use forrest_core::model::{Bytes, Conclusion, Generation, Job, JobStatus, Timestamp};
use forrest_core::{Event, Level, RunEvent};

use crate::world::*;

#[test]
fn webhooks_that_do_not_arrive() {
    let mut world = World::new(&[("build", 4)]);
    world.after(10 * MINUTE);
    let job = Job { created_at: Some(world.now), ..world.job(1, "build", JobStatus::Queued) };
    world.after(2 * MINUTE);
    let asked = Source::Asked(world.now);
    world.report(job, asked);
    world.expect_note(Level::Warn, "job 1 was found without a webhook: GitHub is asked every 30 s");
    world.event(Event::DeliveriesRepaired(Ok(2)));
    world.expect_note(Level::Warn, "2 webhooks had not arrived; GitHub sends them again");
    // It is said once, not for every job.
    let job = Job {
        created_at: Some(Timestamp(world.now.0 - 90_000)),
        ..world.job(2, "build", JobStatus::Queued)
    };
    world.report(job, asked);
    assert!(!world.notes.iter().any(|note| note.text.contains("without a webhook")));
}

#[test]
fn reports_that_contradict_each_other() {
    let mut world = World::new(&[("build", 4)]);
    world.job_queued(1, "build");
    let job = world.job(1, "build", JobStatus::Waiting);
    world.report(job, Source::Webhook);
    world.expect_note(Level::Debug, "contradict each other: asking GitHub");
}

#[test]
fn an_api_that_is_down_or_limits_requests() {
    let mut world = World::new(&[("build", 4)]);
    world.after(16 * MINUTE);
    let not_before = Some(world.now + HOUR);
    world.poll_failed(Trouble { what: "rate limit".into(), not_before });
    world.expect_note(Level::Warn, "could not poll o/r, asking again in 3600 s: rate limit");
    world.after(HOUR + MINUTE);
    world.polled(&[]);
    world.expect_note(Level::Info, "GitHub answers for o/r again");
}

#[test]
fn a_registration_that_is_refused() {
    let mut world = World::new(&[("build", 4)]);
    world.job_queued(1, "build");
    let runner = world.begun();
    world.refused(&runner);
    world.expect_note(Level::Error, "the run failed, next try in");
}

#[test]
fn jobs_that_others_have_or_nobody_wants() {
    let mut world = World::new(&[("build", 4), ("other", 4)]);
    world.job_queued(1, "build");
    let job = world.job(1, "build", JobStatus::InProgress);
    world.report(job, Source::Webhook);
    world.expect_note(Level::Info, "runs on a runner that is not this host's");
    let job = world.job(2, "build", JobStatus::Waiting);
    world.report(job, Source::Webhook);
    world.expect_note(Level::Info, "is held back by GitHub");
    world.job_queued(3, "build");
    world.job_completed(3, "build", None, Conclusion::Cancelled);
    world.expect_note(Level::Info, "is over: Cancelled");
    world.job_queued(4, "other");
    world.configure(|policy| drop(policy.machines.remove(&machine_name("other"))));
    world.expect_note(Level::Warn, "1 waiting jobs are left alone: no machine type serves them");
}

#[test]
fn a_clock_that_jumps() {
    let mut world = World::new(&[("build", 4)]);
    world.now = Timestamp(world.now.0 - 3_600_000);
    world.event(Event::Tick);
    world.expect_note(Level::Warn, "the host's clock was set back by 3600 s");
    world.now = world.now + 48 * HOUR;
    world.event(Event::Tick);
    world.expect_note(Level::Warn, "the clock was set forward or the host was asleep");
}

#[test]
fn a_daemon_that_takes_over() {
    let mut world = World::new(&[("build", 4)]);
    let name = |n: u8| format!("forrest-build-aaaaaaaaaaaaaaa{n}");
    let end = |reason| VmEnd { reason, detail: None, at: Timestamp(1) };
    let ended =
        AdoptedVm::Ended { end: end(EndReason::SupervisorLost), runner_id: None, image: None };
    let boots = match World::live(&name(3)) {
        AdoptedVm::Live { runner_id, image, restored, .. } => {
            AdoptedVm::Live { runner_id, image, restored, ready: false }
        }
        other => other,
    };
    for (vm, job, words) in [
        (AdoptedVm::NotStarted, None, "it had not started, and is put away"),
        (World::live(&name(1)), Some(7), "its guest runs job 7, and goes on"),
        (World::live(&name(2)), None, "its guest waits for a job"),
        (boots, None, "its guest boots"),
        (ended, None, "its virtual machine ended (supervisor-lost), and is put away"),
        (AdoptedVm::DiskSettled, None, "only its runner is left to be removed"),
    ] {
        let number = match &vm {
            AdoptedVm::NotStarted => 0,
            AdoptedVm::Live { ready: false, .. } => 3,
            AdoptedVm::Live { .. } if job.is_some() => 1,
            AdoptedVm::Live { .. } => 2,
            AdoptedVm::Ended { .. } => 4,
            AdoptedVm::DiskSettled => 5,
        };
        world.adopted(&name(number), "build", vm, job);
        world.expect_note(Level::Info, words);
    }
}

#[test]
fn guests_that_end_in_the_middle_of_a_job() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.busy(1, "build");
    world.exits(&runner, EndReason::SupervisorLost);
    world.expect_note(Level::Warn, "ended (supervisor-lost); its job is lost with it");
    let runner = world.finishing(2, "build", Conclusion::Success);
    world.notes.clear();
    world.exits(&runner, EndReason::GuestPanicked);
    world.expect_note(Level::Warn, "ended (guest-panicked)");
    assert!(!world.notes.iter().any(|note| note.text.contains("lost")));
}

#[test]
fn guests_that_do_not_end() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.finishing(1, "build", Conclusion::Success);
    world.after(10 * MINUTE + SECOND);
    world.expect_note(Level::Warn, "the guest does not shut down by itself: asking GitHub");
    world.deregistered(&runner, Deregistration::Removed);
    world.expect_note(Level::Info, "its guest's power button is pressed");
    world.after(2 * MINUTE + SECOND);
    world.expect_note(Level::Warn, "the guest does not hear its power button: ending it");
}

#[test]
fn runners_that_github_forgets_or_keeps() {
    let mut world = World::new(&[("build", 4)]);
    let _idle = world.idle(1, "build");
    world.after(2 * MINUTE);
    world.polled(&[]);
    world.expect_note(Level::Info, "GitHub has forgotten this runner: replacing it");
    let busy = world.idle(2, "build");
    world.after(5 * MINUTE + SECOND);
    world.expect_note(Level::Info, "the runner waited too long for a job: retiring it");
    world.deregistered(&busy, Deregistration::Busy);
    world.expect_note(Level::Info, "GitHub keeps this runner: it has a job");
}

#[test]
fn a_removal_that_fails_or_has_no_answer() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.finishing(1, "build", Conclusion::Success);
    world.exits(&runner, EndReason::GuestShutdown);
    world.run_event(&runner, RunEvent::Deregistered(Err(trouble())));
    let text = "could not deregister, trying again: it rains";
    world.expect_note(Level::Warn, text);
    assert_eq!(world.core.view(world.now).runs.remove(0).hindrance.as_deref(), Some(text));
    world.after(11 * MINUTE);
    world.expect_note(Level::Warn, "GitHub does not answer to the runner's removal: asking again");
}

#[test]
fn disks_that_fill_up_or_fail() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.busy(1, "build");
    world.run_event(&runner, RunEvent::Paused("no space left on device".into()));
    world.expect_note(Level::Error, "the guest is paused: no space left on device");
    let paused = world.core.view(world.now).runs.remove(0).paused;
    assert_eq!(paused.as_deref(), Some("no space left on device"));
    world.run_event(&runner, RunEvent::Resumed);
    world.expect_note(Level::Info, "the guest goes on");
    world.job_completed(1, "build", Some(&runner), Conclusion::Success);
    world.exits(&runner, EndReason::GuestShutdown);
    world.read_back(&runner, Persist::Valid);
    world.run_event(&runner, RunEvent::Promoted(Err(trouble())));
    let text = "could not keep the disk, trying again: it rains";
    world.expect_note(Level::Error, text);
    assert_eq!(world.core.view(world.now).runs.remove(0).hindrance.as_deref(), Some(text));
    world.run_event(&runner, RunEvent::Promoted(Ok(Generation(1))));
    world.expect_note(Level::Info, "its disk is now generation 000001");
    world.event(Event::HostMeasured { free_disk: Bytes::mib(10), run_disks: Default::default() });
    world.job_queued(2, "build");
    let machine = world.core.view(world.now).machines.remove(0);
    assert!(format!("{:?}", machine.waiting).contains("Disk"), "{:?}", machine.waiting);
}

#[test]
fn a_host_that_is_drained() {
    let mut world = World::new(&[("build", 4)]);
    world.event(Event::DrainRequested(true));
    world.expect_note(Level::Info, "no new runs are begun, those that are there go on");
    world.event(Event::DrainRequested(false));
    world.expect_note(Level::Info, "new runs are begun again");
}

#[test]
fn a_virtual_machine_that_ends_takes_a_running_job_with_it_and_no_other() {
    let lost = |prepare: fn(&mut World) -> forrest_core::model::RunnerName, reason| {
        let mut world = World::new(&[("build", 4)]);
        let runner = prepare(&mut world);
        world.exits(&runner, reason);
        let ended = |note: &&forrest_core::Note| note.text.contains("the virtual machine ended");
        let note = world.notes.iter().find(ended).expect("it is told");
        (note.level, note.text.contains("its job is lost with it"))
    };
    let busy: fn(&mut World) -> _ = |world| world.busy(1, "build");
    let idle: fn(&mut World) -> _ = |world| world.idle(1, "build");
    let over: fn(&mut World) -> _ = |world| world.finishing(1, "build", Conclusion::Success);
    assert_eq!(lost(busy, EndReason::QemuFailed), (Level::Warn, true));
    assert_eq!(lost(idle, EndReason::QemuFailed), (Level::Warn, false));
    assert_eq!(lost(over, EndReason::QemuFailed), (Level::Warn, false));
    assert_eq!(lost(busy, EndReason::GuestShutdown), (Level::Info, false));
    assert_eq!(lost(busy, EndReason::Killed), (Level::Info, false));
}
