//! A daemon starts and finds what an earlier one left behind.

use forrest_core::event::{AdoptedVm, Deregistration, EndReason, Persist, Source, VmEnd};
use forrest_core::model::{Conclusion, Job, JobId, JobStatus};
use forrest_core::view::Waiting;
use forrest_core::{Command, Event, RunEvent};

use crate::world::*;

const NAME: &str = "forrest-build-aaaaaaaaaaaaaaaa";

#[test]
fn a_live_run_goes_on() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.adopted(NAME, "build", World::live(NAME), Some(1));
    world.is(&runner, "busy");
    world.after(HOUR);
    world.expect_unharmed();
}

#[test]
fn a_job_that_ended_while_no_daemon_was_there_is_asked_for_and_its_hanging_guest_goes() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.adopted(NAME, "build", World::live(NAME), Some(1));
    world.expect(|c| matches!(c, Command::FetchJob { job: JobId(1), .. }));
    // That answer is lost. The poll asks for it too, although no report told of it.
    world.after(16 * MINUTE);
    world.expect(|c| matches!(c, Command::Poll { known, .. } if known.contains(&JobId(1))));
    let done = Job {
        runner: Some(runner.clone()),
        conclusion: Some(Conclusion::Success),
        ..world.job(1, "build", JobStatus::Completed)
    };
    world.report(done, Source::Asked(world.now));
    world.polled(&[]);
    world.after(11 * MINUTE);
    world.expect_deregister(&runner);
    world.deregistered(&runner, Deregistration::AlreadyGone);
    world.expect_power_down(&runner);
}

#[test]
fn a_run_has_no_job_any_more_where_github_does_not_know_the_one_it_was_known_to_have() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.adopted(NAME, "build", World::live(NAME), Some(1));
    assert_eq!(world.job_of(&runner), Some(JobId(1)));
    world.event(Event::JobMissing {
        repository: machine_name("build").repository().clone(),
        job: JobId(1),
        asked_at: world.now,
    });
    assert_eq!(world.job_of(&runner), None);
    world.expect_unharmed();
}

#[test]
fn two_runs_that_knew_of_the_same_job_are_told_apart_by_github() {
    let mut world = World::new(&[("build", 4)]);
    let first = world.adopted(NAME, "build", World::live(NAME), Some(1));
    let other = "forrest-build-bbbbbbbbbbbbbbbb";
    let second = world.adopted(other, "build", World::live(other), Some(1));
    let running =
        Job { runner: Some(first.clone()), ..world.job(1, "build", JobStatus::InProgress) };
    world.report(running, Source::Asked(world.now));
    assert_eq!(world.job_of(&first), Some(JobId(1)));
    assert_eq!(world.job_of(&second), None);
    world.expect_unharmed();
}

#[test]
fn the_job_that_a_run_was_known_to_have_is_forgotten_with_it_although_it_had_another_one() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.adopted(NAME, "build", World::live(NAME), Some(1));
    let running =
        Job { runner: Some(runner.clone()), ..world.job(2, "build", JobStatus::InProgress) };
    world.report(running, Source::Webhook);
    assert_eq!(world.job_of(&runner), Some(JobId(2)));
    assert_eq!(world.core.sizes().adopted_jobs, 1);
    world.exits(&runner, EndReason::GuestShutdown);
    world.read_back(&runner, Persist::Absent);
    world.run_event(&runner, RunEvent::Discarded(Ok(())));
    world.deregistered(&runner, Deregistration::AlreadyGone);
    world.expect(|c| matches!(c, Command::Forget { .. }));
    assert_eq!(world.core.sizes().adopted_jobs, 0);
}

#[test]
fn a_job_of_a_machine_type_that_is_gone_still_frees_the_runner_that_was_known_to_have_it() {
    let mut world = World::new(&[("build", 4)]);
    let name = "forrest-old-aaaaaaaaaaaaaaaa";
    let runner = world.adopted(name, "o/r/old", World::live(name), Some(1));
    world.after(SECOND);
    let queued = world.job(1, "old", JobStatus::Queued);
    world.report(queued, Source::Asked(world.now));
    assert_eq!(world.job_of(&runner), None);
}

#[test]
fn a_live_run_without_a_known_job_is_busy_as_soon_as_the_list_says_so() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.adopted(NAME, "build", World::live(NAME), None);
    world.is(&runner, "idle");
    world.after(5 * SECOND);
    let busy = world.listed(&runner, true);
    world.polled(&[busy]);
    world.is(&runner, "busy");
}

#[test]
fn a_half_prepared_run_is_cleaned_up() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.adopted(NAME, "build", AdoptedVm::NotStarted, None);
    world.expect(|c| matches!(c, Command::Discard { .. }));
    world.expect(|c| matches!(c, Command::Deregister { id: None, .. }));
    world.run_event(&runner, RunEvent::Discarded(Ok(())));
    world.deregistered(&runner, Deregistration::AlreadyGone);
    world.expect(|c| matches!(c, Command::Forget { .. }));
}

#[test]
fn a_run_that_ended_meanwhile_is_read_back_and_promoted() {
    let mut world = World::new(&[("build", 4)]);
    let end = VmEnd { reason: EndReason::GuestShutdown, detail: None, at: world.now };
    let vm = AdoptedVm::Ended { end, runner_id: None, image: Some(src()) };
    let runner = world.adopted(NAME, "build", vm, Some(1));
    world.expect(|c| matches!(c, Command::ReadBack { .. }));
    world.read_back(&runner, Persist::Valid);
    world.expect_none(|c| matches!(c, Command::Promote { .. }));
    world.job_completed(1, "build", Some(&runner), Conclusion::Success);
    world.expect(|c| matches!(c, Command::Promote { .. }));
}

#[test]
fn a_run_that_ended_badly_meanwhile_is_removed() {
    let mut world = World::new(&[("build", 4)]);
    let end = VmEnd { reason: EndReason::SupervisorLost, detail: None, at: world.now };
    let vm = AdoptedVm::Ended { end, runner_id: None, image: Some(src()) };
    world.adopted(NAME, "build", vm, Some(1));
    world.expect(|c| matches!(c, Command::Discard { .. }));
    world.expect_none(|c| matches!(c, Command::ReadBack { .. }));
}

#[test]
fn a_settled_disk_leaves_the_deregistration() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.adopted(NAME, "build", AdoptedVm::DiskSettled, None);
    world.expect_none(|c| matches!(c, Command::Discard { .. } | Command::Promote { .. }));
    world.expect_deregister(&runner);
    world.deregistered(&runner, Deregistration::AlreadyGone);
    world.expect(|c| matches!(c, Command::Forget { .. }));
}

#[test]
fn a_repository_that_left_the_configuration_is_polled_until_its_last_run_is_gone() {
    let mut world = World::new(&[("build", 4)]);
    let name = "forrest-old-aaaaaaaaaaaaaaaa";
    let runner = world.adopted(name, "gone/away/old", World::live(name), Some(1));
    let of_gone =
        |c: &Command| matches!(c, Command::Poll { repository, .. } if repository.owner() == "gone");
    world.expect(of_gone);
    world.exits(&runner, EndReason::GuestPanicked);
    world.run_event(&runner, RunEvent::Discarded(Ok(())));
    world.deregistered(&runner, Deregistration::Removed);
    assert!(world.core.runs().is_empty());
    world.forget_commands();
    world.after(3 * HOUR);
    world.expect_none(of_gone);
}

#[test]
fn it_is_as_old_as_it_was_and_has_the_job_that_it_had() {
    let mut world = World::new(&[("build", 4)]);
    let runner: forrest_core::model::RunnerName = NAME.parse().expect("a sound name");
    let created = world.now;
    // GitHub's answer comes before the run is found.
    world.job_in_progress(1, "build", &runner);
    world.forget_commands();
    world.adopted(NAME, "build", World::live(NAME), Some(1));
    world.after(MINUTE);
    let run = world.core.runs().get(&runner).expect("the run is there");
    assert_eq!((run.times.created, run.job()), (created, Some(JobId(1))));
}

#[test]
fn a_job_that_github_said_is_another_runners_is_not_believed_to_be_its_own() {
    let mut world = World::new(&[("build", 4)]);
    let other = "forrest-build-bbbbbbbbbbbbbbbb".parse().expect("a sound name");
    world.job_in_progress(1, "build", &other);
    let runner = world.adopted(NAME, "build", World::live(NAME), Some(1));
    world.is(&runner, "idle");
}

#[test]
fn an_idle_runner_is_no_surplus_before_github_has_said_what_its_repository_waits_for() {
    let mut world = World::new(&[("build", 12)]);
    let name = "forrest-old-aaaaaaaaaaaaaaaa";
    let runner = world.adopted(name, "p/q/old", World::live(name), None);
    world.polled_in(&"o/r".parse().expect("a repository"), &[]);
    world.job_queued(1, "build");
    assert!(matches!(waits_for(&world, "build"), Some(Waiting::Ram { .. })));
    world.after(MINUTE);
    world.expect_none(deregister);
    world.polled_in(&"p/q".parse().expect("a repository"), &[world.listed(&runner, false)]);
    world.after(MINUTE);
    world.expect_deregister(&runner);
}
