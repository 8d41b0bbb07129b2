//! Reports come late, doubled, out of order, or not at all.

use forrest_core::event::{Deregistration, EndReason, Persist, Source};
use forrest_core::jobs::Phase;
use forrest_core::model::{Conclusion, Job, JobId, JobStatus, RunnerName, Timestamp};
use forrest_core::{Command, Event, Level, RunEvent};

use crate::world::*;

fn phase(world: &World, id: u64) -> Option<Phase> {
    world.core.jobs().get(JobId(id)).map(|entry| entry.phase)
}

#[test]
fn a_job_that_is_over_stays_over() {
    let mut world = World::new(&[("build", 4)]);
    world.job_completed(1, "build", None, Conclusion::Cancelled);
    world.job_queued(1, "build");
    world.expect_no_run();
    assert_eq!(phase(&world, 1), Some(Phase::Done));
}

#[test]
fn a_doubled_webhook_begins_one_run() {
    let mut world = World::new(&[("build", 4)]);
    world.job_queued(1, "build");
    world.job_queued(1, "build");
    world.begun();
    world.expect_no_run();
}

#[test]
fn a_job_that_was_not_taken_in_time_frees_its_runner() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.busy(1, "build");
    world.after(2 * MINUTE);
    let queued = world.job(1, "build", JobStatus::Queued);
    world.report(queued, Source::Asked(world.now));
    assert_eq!(phase(&world, 1), Some(Phase::Queued));
    // Not known what it does: the next list tells.
    world.expect(|c| matches!(c, Command::Poll { .. }));
    world.after(SECOND);
    let idle = world.listed(&runner, false);
    world.polled(&[idle]);
    world.is(&runner, "idle");
    world.after(5 * MINUTE + SECOND);
    world.expect_deregister(&runner);
}

#[test]
fn a_job_that_moved_to_another_runner_frees_the_first_one() {
    let mut world = World::new(&[("build", 4)]);
    let first = world.busy(1, "build");
    let second = world.idle(2, "build");
    world.after(MINUTE);
    let moved =
        Job { runner: Some(second.clone()), ..world.job(1, "build", JobStatus::InProgress) };
    world.report(moved, Source::Asked(world.now));
    assert_eq!(world.job_of(&second), Some(JobId(1)));
    assert_eq!(world.job_of(&first), None);
}

#[test]
fn a_job_that_somebody_elses_runner_took_frees_ours() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.busy(1, "build");
    world.after(MINUTE);
    let taken = world.job(1, "build", JobStatus::InProgress);
    world.report(taken, Source::Asked(world.now));
    assert_eq!(world.job_of(&runner), None);
}

#[test]
fn a_runner_whose_first_job_was_cancelled_keeps_its_second() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.busy(1, "build");
    world.job_in_progress(2, "build", &runner);
    world.job_completed(1, "build", Some(&runner), Conclusion::Cancelled);
    world.is(&runner, "busy");
    world.after(3 * HOUR);
    world.expect_unharmed();
}

#[test]
fn a_runner_that_got_another_job_after_a_cancelled_one_is_busy_again() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.finishing(1, "build", Conclusion::Cancelled);
    world.after(MINUTE);
    world.job_in_progress(2, "build", &runner);
    world.is(&runner, "busy");
    world.after(3 * HOUR);
    world.expect_unharmed();
}

#[test]
fn webhooks_that_contradict_each_other_are_settled_by_asking() {
    let mut world = World::new(&[("build", 4)]);
    world.job_queued(1, "build");
    let waiting = world.job(1, "build", JobStatus::Waiting);
    world.report(waiting.clone(), Source::Webhook);
    world.expect(|c| matches!(c, Command::FetchJob { job: JobId(1), .. }));
    assert_eq!(phase(&world, 1), Some(Phase::Queued));
    world.after(SECOND);
    world.report(waiting, Source::Asked(world.now));
    assert_eq!(phase(&world, 1), Some(Phase::Held));
}

#[test]
fn an_answer_from_before_a_webhook_is_asked_for_again() {
    let mut world = World::new(&[("build", 4)]);
    let asked_at = world.now;
    world.after(SECOND);
    let runner = world.busy(1, "build");
    let queued = world.job(1, "build", JobStatus::Queued);
    world.report(queued, Source::Asked(asked_at));
    world.expect(|c| matches!(c, Command::FetchJob { job: JobId(1), .. }));
    world.is(&runner, "busy");
}

#[test]
fn an_answer_to_an_earlier_question_does_not_undo_a_later_one() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.idle(1, "build");
    world.after(MINUTE);
    let queued = world.job(1, "build", JobStatus::Queued);
    world.report(queued, Source::Asked(world.now));
    let running =
        Job { runner: Some(runner.clone()), ..world.job(1, "build", JobStatus::InProgress) };
    world.report(running, Source::Asked(Timestamp(world.now.0 - 10)));
    world.is(&runner, "idle");
}

#[test]
fn a_late_webhook_of_an_earlier_runner_does_not_take_the_job_from_its_present_one() {
    let mut world = World::new(&[("build", 4)]);
    let first = world.idle(1, "build");
    let second = world.idle(2, "build");
    world.job_in_progress(1, "build", &second);
    world.job_in_progress(1, "build", &first);
    world.is(&second, "busy");
    world.is(&first, "idle");
    world.expect(|c| matches!(c, Command::FetchJob { job: JobId(1), .. }));
}

#[test]
fn a_job_whose_webhooks_are_all_lost_is_found_by_the_poll() {
    let mut world = World::new(&[("build", 4)]);
    let job = world.job(1, "build", JobStatus::Queued);
    world.after(16 * MINUTE);
    world.expect(|c| matches!(c, Command::Poll { .. }));
    world.report(job, Source::Asked(world.now));
    world.begun();
}

fn missing(world: &mut World, id: u64, asked_at: Timestamp) {
    let repository = machine_name("build").repository().clone();
    world.event(Event::JobMissing { repository, job: JobId(id), asked_at });
}

#[test]
fn a_job_that_github_does_not_know_is_forgotten_unless_there_is_newer_news() {
    let mut world = World::new(&[("build", 4)]);
    world.after(SECOND);
    let asked_at = world.now;
    world.job_queued(1, "build");
    missing(&mut world, 1, asked_at);
    assert_eq!(phase(&world, 1), None, "asked when it was reported");
    world.after(SECOND);
    world.job_queued(2, "build");
    missing(&mut world, 2, asked_at);
    assert_eq!(phase(&world, 2), Some(Phase::Queued), "reported after GitHub was asked");
    world.job_completed(2, "build", None, Conclusion::Success);
    world.after(SECOND);
    let now = world.now;
    missing(&mut world, 2, now);
    assert_eq!(phase(&world, 2), Some(Phase::Done), "GitHub may forget what is over");
}

#[test]
fn a_doubled_report_of_a_running_job_changes_nothing() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.busy(1, "build");
    world.notes.clear();
    world.job_in_progress(1, "build", &runner);
    world.expect_none(|c| matches!(c, Command::RecordJob { .. } | Command::FetchJob { .. }));
    assert!(world.notes.is_empty(), "{:?}", world.notes);
}

#[test]
fn a_late_webhook_of_a_queued_job_does_not_take_it_from_its_runner() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.busy(1, "build");
    world.job_queued(1, "build");
    world.is(&runner, "busy");
    assert_eq!(phase(&world, 1), Some(Phase::Running));
    world.expect_none(|c| matches!(c, Command::FetchJob { .. }));
}

#[test]
fn a_doubled_report_may_know_more() {
    let mut world = World::new(&[("build", 4)]);
    world.job_queued(1, "build");
    let more = Some("main".to_owned());
    let job = Job { head_branch: more.clone(), ..world.job(1, "build", JobStatus::Queued) };
    world.report(job, Source::Webhook);
    assert_eq!(world.core.jobs().get(JobId(1)).expect("known").job.head_branch, more);
}

#[test]
fn what_a_report_leaves_out_is_known_from_the_one_before() {
    let mut world = World::new(&[("build", 4)]);
    let text = |text: &str| Some(text.to_owned());
    let whole = Job {
        name: text("build"),
        workflow_name: text("CI"),
        head_branch: text("main"),
        head_sha: text("0a1b2c"),
        ..world.job(1, "build", JobStatus::Queued)
    };
    world.report(whole.clone(), Source::Webhook);
    let runner = world.begun();
    world.boots(&runner, src());
    world.run_event(&runner, RunEvent::GuestReady);
    let bare = Job {
        name: None,
        labels: std::iter::empty::<&str>().collect(),
        created_at: None,
        ..world.job(1, "build", JobStatus::InProgress)
    };
    world.report(Job { runner: Some(runner.clone()), ..bare.clone() }, Source::Webhook);
    world.report(Job { status: JobStatus::Completed, ..bare }, Source::Webhook);
    let status = JobStatus::Completed;
    let known = Job { status, runner: Some(runner.clone()), ..whole };
    assert_eq!(world.core.jobs().get(JobId(1)).expect("known").job, known);
    world.is(&runner, "finishing");
}

#[test]
fn answers_to_one_question_complete_each_other() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.idle(1, "build");
    world.after(SECOND);
    let asked = Source::Asked(world.now);
    world.report(world.job(1, "build", JobStatus::Queued), asked);
    let job = Job { runner: Some(runner.clone()), ..world.job(1, "build", JobStatus::InProgress) };
    world.report(job, asked);
    world.is(&runner, "busy");
}

#[test]
fn an_answer_is_doubted_where_it_contradicts_a_webhook_that_did_not_come_before_the_question() {
    let mut world = World::new(&[("build", 4)]);
    let asked = Source::Asked(world.now);
    world.after(SECOND);
    let runner = world.busy(1, "build");
    world.job_queued(2, "build");
    let fetch = |c: &Command| matches!(c, Command::FetchJob { .. });
    world.report(world.job(2, "build", JobStatus::Queued), asked);
    world.expect_none(fetch);
    // In the same millisecond: neither is known to be the newer one.
    world.report(world.job(1, "build", JobStatus::Queued), Source::Asked(world.now));
    world.expect(fetch);
    world.is(&runner, "busy");
}

#[test]
fn another_runners_finished_job_is_not_taken_for_ours() {
    let mut world = World::new(&[("build", 4)]);
    world.finishing(1, "build", Conclusion::Success);
    let runner = world.idle(2, "build");
    world.exits(&runner, EndReason::GuestShutdown);
    assert_eq!(world.job_of(&runner), None);
}

#[test]
fn a_runner_that_lost_its_job_has_not_had_another_runners_finished_one() {
    let mut world = World::new(&[("build", 4)]);
    world.finishing(1, "build", Conclusion::Success);
    let runner = world.busy(2, "build");
    world.after(SECOND);
    world.report(world.job(2, "build", JobStatus::Queued), Source::Asked(world.now));
    assert_eq!(world.job_of(&runner), None);
    world.is(&runner, "busy");
}

#[test]
fn a_job_that_runs_elsewhere_is_forgotten_with_its_repository() {
    let mut world = World::new(&[("build", 4)]);
    world.report(world.job(1, "build", JobStatus::InProgress), Source::Webhook);
    assert_eq!(phase(&world, 1), Some(Phase::Running));
    world.configure(|policy| policy.machines.clear());
    assert_eq!(phase(&world, 1), None);
}

/// Of three jobs, the first of which was cancelled.
fn expect_it_had_the_second(world: &mut World, runner: &RunnerName) {
    for (id, had) in [(2, 2), (3, 2)] {
        world.job_completed(id, "build", Some(runner), Conclusion::Success);
        assert_eq!(world.job_of(runner), Some(JobId(had)));
    }
}

#[test]
fn a_gone_runner_has_had_the_job_that_was_not_cancelled() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.finishing(1, "build", Conclusion::Cancelled);
    world.exits(&runner, EndReason::GuestShutdown);
    assert_eq!(world.job_of(&runner), Some(JobId(1)));
    expect_it_had_the_second(&mut world, &runner);
}

#[test]
fn a_runner_whose_guest_is_powered_down_has_had_the_job_that_was_not_cancelled() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.finishing(1, "build", Conclusion::Cancelled);
    world.after(11 * MINUTE);
    world.expect_deregister(&runner);
    world.deregistered(&runner, Deregistration::Removed);
    world.expect_power_down(&runner);
    expect_it_had_the_second(&mut world, &runner);
}

#[test]
fn a_report_of_a_job_that_no_machine_type_serves_is_left_alone() {
    let mut world = World::new(&[("build", 4)]);
    world.job_queued(1, "other");
    world.expect_no_run();
    assert_eq!(phase(&world, 1), None);
}

#[test]
fn jobs_that_no_machine_type_serves_any_more_are_forgotten() {
    let mut world = World::new(&[("build", 4), ("test", 4)]);
    world.job_queued(1, "build");
    let runner = world.busy(2, "build");
    world.configure(|policy| drop(policy.machines.remove(&machine_name("build"))));
    assert_eq!(phase(&world, 1), None);
    assert_eq!(phase(&world, 2), Some(Phase::Running));
    world.is(&runner, "busy");
}

#[test]
fn the_news_of_a_short_job_can_come_after_its_run_is_gone() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.idle(1, "build");
    world.exits(&runner, EndReason::GuestShutdown);
    world.read_back(&runner, Persist::Absent);
    world.run_event(&runner, RunEvent::Discarded(Ok(())));
    world.deregistered(&runner, Deregistration::AlreadyGone);
    assert!(world.core.runs().is_empty());
    world.job_completed(1, "build", Some(&runner), Conclusion::Success);
    let view = world.core.view(world.now);
    assert_eq!(view.finished[0].job.as_ref().map(|job| job.id), Some(JobId(1)));
    assert_eq!(view.machines[0].trouble, None);
}

#[test]
fn a_drained_host_begins_no_run_until_it_may_again() {
    let mut world = World::new(&[("build", 4)]);
    world.event(Event::DrainRequested(true));
    world.job_queued(1, "build");
    world.expect_no_run();
    world.event(Event::DrainRequested(false));
    world.begun();
}

#[test]
fn the_log_says_what_became_of_a_job() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.busy(1, "build");
    assert_eq!(world.said(Level::Info), [r#"job "job 1" is queued"#, r#"job "job 1" runs"#]);
    world.after(MINUTE);
    world.report(world.job(1, "build", JobStatus::Queued), Source::Asked(world.now));
    world.report(world.job(1, "build", JobStatus::InProgress), Source::Webhook);
    assert_eq!(
        world.said(Level::Info),
        [
            r#"job "job 1" is queued again: its runner did not take it"#,
            r#"job "job 1" runs on a runner that is not this host's"#,
        ]
    );
    world.report(world.job(2, "build", JobStatus::Waiting), Source::Webhook);
    world.job_queued(2, "build");
    world.report(world.job(2, "build", JobStatus::Queued), Source::Asked(world.now + SECOND));
    assert_eq!(
        world.said(Level::Info),
        [r#"job "job 2" is held back by GitHub"#, r#"job "job 2" is queued"#]
    );
    world.is(&runner, "busy");
}

#[test]
fn a_job_that_ran_on_a_runner_of_this_host_that_is_gone_is_still_ours() {
    let mut world = World::new(&[("build", 4)]);
    let gone = [world.idle(1, "build"), world.idle(2, "build")];
    for runner in &gone {
        world.exits(runner, EndReason::GuestShutdown);
        world.read_back(runner, Persist::Absent);
        world.run_event(runner, RunEvent::Discarded(Ok(())));
        world.deregistered(runner, Deregistration::AlreadyGone);
    }
    world.notes.clear();
    world.job_in_progress(1, "build", &gone[0]);
    let others = "forrest-build-zzzzzzzzzzzzzzzz".parse().expect("a sound name");
    world.job_in_progress(2, "build", &others);
    assert_eq!(
        world.said(Level::Info),
        [r#"job "job 1" runs"#, r#"job "job 2" runs on a runner that is not this host's"#]
    );
}

#[test]
fn the_daemon_is_told_which_jobs_matter() {
    let mut world = World::new(&[("build", 4)]);
    let known = world.job(1, "build", JobStatus::Queued);
    let foreign = world.job(2, "other", JobStatus::Queued);
    assert!(world.core.serves(&known));
    assert!(!world.core.serves(&foreign));
    // One that is known matters although nothing serves it any more.
    world.busy(1, "build");
    world.configure(|policy| policy.machines.clear());
    assert!(world.core.serves(&known));
    assert!(!world.core.serves(&foreign));
    assert_eq!(world.core.policy(), &world.policy);
}

#[test]
fn only_waiting_jobs_that_are_left_alone_are_worth_a_word() {
    let mut world = World::new(&[("build", 4)]);
    world.busy(1, "build");
    world.configure(|_| {});
    assert!(!world.notes.iter().any(|note| note.text.contains("left alone")));
    world.job_queued(2, "build");
    world.configure(|policy| policy.machines.clear());
    world.expect_note(Level::Warn, "1 waiting jobs are left alone");
}

#[test]
fn a_runner_that_loses_the_second_of_two_jobs_goes_on_with_the_first() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.busy(1, "build");
    world.job_in_progress(2, "build", &runner);
    world.after(SECOND);
    let job = |world: &World| world.job_of(&runner);
    assert_eq!(job(&world), Some(JobId(2)));
    world.report(world.job(2, "build", JobStatus::Queued), Source::Asked(world.now));
    assert_eq!(job(&world), Some(JobId(1)));
}

#[test]
fn a_guest_that_is_gone_has_no_deadline_to_be_lifted() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.busy(1, "build");
    world.exits(&runner, EndReason::QemuFailed);
    world.after(MINUTE);
    world.forget_commands();
    world.report(world.job(1, "build", JobStatus::Queued), Source::Asked(world.now));
    world.expect_none(|c| matches!(c, Command::SetJobDeadline { .. }));
}
