//! Asking GitHub: often enough, and not more.

use std::time::Duration;

use forrest_core::event::{EndReason, Source, Trouble};
use forrest_core::model::{JobId, JobStatus};
use forrest_core::{Command, Event};

use crate::world::*;

fn poll(c: &Command) -> bool {
    matches!(c, Command::Poll { .. })
}

/// Polls that come within a time, each answered at once.
fn polls_within(world: &mut World, duration: Duration) -> usize {
    let end = world.now + duration;
    let mut polls = 0;
    while world.now < end {
        world.after(SECOND);
        let asked = world.count(poll);
        polls += asked;
        if asked > 0 {
            let runners: Vec<_> = world
                .core
                .runs()
                .iter()
                .filter(|run| run.vm().is_some())
                .map(|run| world.listed(&run.runner, true))
                .collect();
            world.polled(&runners);
        }
    }
    polls
}

#[test]
fn polls_are_rare_while_webhooks_arrive() {
    let mut world = World::new(&[("build", 4)]);
    assert_eq!(polls_within(&mut world, 2 * HOUR), 8);
}

#[test]
fn polls_are_frequent_after_a_job_that_no_webhook_announced() {
    let mut world = World::new(&[("build", 4)]);
    world.after(MINUTE);
    let job = world.job(1, "build", JobStatus::Queued);
    world.after(14 * MINUTE);
    world.report(job, Source::Asked(world.now));
    world.polled(&[]);
    world.forget_commands();
    let polls = polls_within(&mut world, 10 * MINUTE);
    assert!((15..=25).contains(&polls), "{polls}");
}

#[test]
fn a_job_from_before_the_start_is_no_missed_webhook() {
    let mut world = World::new(&[("build", 4)]);
    let mut job = world.job(1, "build", JobStatus::Queued);
    job.created_at = Some(forrest_core::model::Timestamp(world.now.0 - 600_000));
    world.report(job, Source::Asked(world.now));
    world.polled(&[]);
    world.forget_commands();
    assert!(polls_within(&mut world, 10 * MINUTE) <= 2);
}

#[test]
fn a_poll_without_an_answer_is_asked_again() {
    let mut world = World::new(&[("build", 4)]);
    world.after(16 * MINUTE);
    world.expect(poll);
    world.after(16 * MINUTE);
    world.expect(poll);
}

#[test]
fn a_limit_that_github_sets_is_kept_whatever_happens() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.busy(1, "build");
    world.after(15 * MINUTE);
    world.expect(poll);
    let not_before = Some(world.now + HOUR);
    world.poll_failed(Trouble { what: "too many requests".into(), not_before });
    world.exits(&runner, EndReason::QemuFailed);
    world.after(59 * MINUTE);
    world.expect_none(poll);
    world.after(2 * MINUTE);
    world.expect(poll);
}

#[test]
fn a_limit_without_measure_does_not_silence_forrest_for_ever() {
    let mut world = World::new(&[("build", 4)]);
    world.after(15 * MINUTE);
    world.expect(poll);
    let not_before = Some(forrest_core::model::Timestamp::NEVER);
    world.poll_failed(Trouble { what: "never come back".into(), not_before });
    world.after(2 * HOUR + SECOND);
    world.expect(poll);
}

#[test]
fn a_repository_that_comes_back_into_the_configuration_keeps_its_limit() {
    let mut world = World::new(&[("build", 4)]);
    world.after(15 * MINUTE);
    world.expect(poll);
    let not_before = Some(world.now + HOUR);
    world.poll_failed(Trouble { what: "too many requests".into(), not_before });
    let machines = world.policy.machines.clone();
    world.configure(|policy| policy.machines.clear());
    world.configure(|policy| policy.machines = machines);
    world.after(59 * MINUTE);
    world.expect_none(poll);
    world.after(2 * MINUTE);
    world.expect(poll);
}

#[test]
fn nothing_is_begun_before_github_answered_once() {
    let mut world = World::new(&[("build", 4)]);
    world.core = forrest_core::Core::new(world.policy.clone(), 2);
    world.configure(|_| {});
    world.job_queued(1, "build");
    world.expect_no_run();
    world.poll_failed(trouble());
    world.expect_no_run();
    world.after(MINUTE);
    world.polled(&[]);
    world.begun();
}

#[test]
fn a_failing_poll_is_tried_less_and_less_often() {
    let mut world = World::new(&[("build", 4)]);
    let mut polls = 0;
    for _ in 0..HOUR.as_secs() {
        world.after(SECOND);
        if world.count(poll) > 0 {
            polls += 1;
            world.poll_failed(trouble());
        }
    }
    assert!((5..=20).contains(&polls), "{polls}");
}

#[test]
fn an_unclear_runner_is_asked_about_every_minute() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.idle(1, "build");
    let busy = world.listed(&runner, true);
    world.polled(&[busy]);
    world.forget_commands();
    let polls = polls_within(&mut world, 10 * MINUTE);
    assert!((9..=11).contains(&polls), "{polls}");
}

#[test]
fn a_job_whose_runner_died_is_watched_until_github_queues_it_again() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.busy(1, "build");
    world.forget_commands();
    world.exits(&runner, EndReason::SupervisorLost);
    assert!(polls_within(&mut world, 5 * MINUTE) >= 4);
}

#[test]
fn an_absurd_interval_does_not_hang_the_core() {
    let mut world = World::new(&[("build", 4)]);
    world.configure(|policy| {
        policy.timing.polling_interval = Duration::ZERO;
        for machine in policy.machines.values_mut() {
            machine.idle_timeout = Duration::ZERO;
        }
        policy.timing.max_overtake = Duration::ZERO;
    });
    world.idle(1, "build");
    world.after(MINUTE);
    assert!(world.count(poll) <= 13);
}

#[test]
fn one_poll_asks_for_a_bounded_number_of_jobs() {
    let mut world = World::new(&[("build", 4)]);
    for id in 0..600 {
        let held = world.job(id, "build", JobStatus::Waiting);
        world.report(held, Source::Webhook);
    }
    world.after(16 * MINUTE);
    let command = world.expect(poll);
    let Command::Poll { known, .. } = command else { unreachable!("just matched") };
    assert_eq!(known.len(), 500);
    // Those that were asked for come last the next time.
    for id in &known {
        let held = world.job(id.0, "build", JobStatus::Waiting);
        world.report(held, Source::Asked(world.now));
    }
    world.polled(&[]);
    world.after(16 * MINUTE);
    let command = world.expect(poll);
    let Command::Poll { known, .. } = command else { unreachable!("just matched") };
    assert!((500..600).all(|id| known.contains(&JobId(id))));
}

#[test]
fn lost_webhooks_are_looked_for_at_every_interval() {
    let mut world = World::new(&[("build", 4)]);
    for _ in 0..8 {
        world.after(15 * MINUTE);
        world.event(Event::DeliveriesRepaired(Ok(0)));
    }
    assert_eq!(world.count(|c| matches!(c, Command::RepairDeliveries)), 8);
}

#[test]
fn an_orphan_is_removed_after_an_hour_and_only_while_it_is_offline() {
    let mut world = World::new(&[("build", 4)]);
    let name: forrest_core::model::RunnerName =
        "forrest-build-bbbbbbbbbbbbbbbb".parse().expect("a sound name");
    let orphan = |c: &Command| matches!(c, Command::RemoveOrphan { .. });
    let mut runner = world.listed(&name, false);
    world.polled(&[runner.clone()]);
    runner.online = false;
    for _ in 0..4 {
        world.polled(&[runner.clone()]);
        world.expect_none(orphan);
        world.after(15 * MINUTE);
    }
    world.polled(&[runner]);
    world.expect(orphan);
}
