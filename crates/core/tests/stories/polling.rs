//! Asking GitHub: often enough, and not more.

use std::time::Duration;

use forrest_core::event::{Deregistration, EndReason, Runner, Source, Trouble};
use forrest_core::model::{JobId, JobStatus};
use forrest_core::{Command, Event, Level, RunEvent};

use crate::world::*;

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
fn polls_become_rare_again_after_an_hour_without_a_missed_webhook() {
    let mut world = World::new(&[("build", 4)]);
    world.after(SECOND);
    let job = world.job(1, "build", JobStatus::Queued);
    world.after(14 * MINUTE);
    world.report(job, Source::Asked(world.now));
    world.expect_note(Level::Warn, "GitHub is asked every 30 s for an hour from now");
    world.polled(&[]);
    world.forget_commands();
    assert!(polls_within(&mut world, 59 * MINUTE) >= 110);
    polls_within(&mut world, 2 * MINUTE);
    assert!(polls_within(&mut world, HOUR) <= 5);
}

#[test]
fn a_job_that_a_poll_finds_at_once_is_no_missed_webhook() {
    let mut world = World::new(&[("build", 4)]);
    world.after(14 * MINUTE);
    let job = world.job(1, "build", JobStatus::Queued);
    world.after(MINUTE);
    world.report(job, Source::Asked(world.now));
    world.polled(&[]);
    world.forget_commands();
    assert!(polls_within(&mut world, 10 * MINUTE) <= 2);
}

#[test]
fn news_of_a_known_job_and_of_one_that_runs_are_no_missed_webhooks() {
    let mut world = World::new(&[("build", 4)]);
    world.after(SECOND);
    world.job_queued(1, "build");
    let known = world.job(1, "build", JobStatus::Queued);
    let runs = world.job(2, "build", JobStatus::InProgress);
    world.after(14 * MINUTE);
    world.notes.clear();
    for job in [known, runs] {
        world.report(job, Source::Asked(world.now));
    }
    assert!(!world.notes.iter().any(|n| n.text.contains("without a webhook")), "{:?}", world.notes);
}

#[test]
fn webhooks_that_had_not_arrived_make_polls_frequent_for_an_hour() {
    let mut world = World::new(&[("build", 4)]);
    world.event(Event::DeliveriesRepaired(Ok(3)));
    world.expect_note(Level::Warn, "3 webhooks had not arrived");
    // The next poll is where the first one put it.
    polls_within(&mut world, 16 * MINUTE);
    assert!((18..=22).contains(&polls_within(&mut world, 10 * MINUTE)));
    polls_within(&mut world, 40 * MINUTE);
    assert!(polls_within(&mut world, HOUR) <= 5);
}

#[test]
fn a_job_from_before_the_start_is_no_missed_webhook() {
    let mut world = World::new(&[("build", 4)]);
    let mut job = world.job(1, "build", JobStatus::Queued);
    job.created_at = Some(forrest_core::model::Timestamp(world.now.0 - 600_000));
    let at_the_start = world.job(2, "build", JobStatus::Queued);
    world.after(2 * MINUTE);
    world.report(job, Source::Asked(world.now));
    world.report(at_the_start, Source::Asked(world.now));
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

/// A configuration that is saved twice within seconds does not make GitHub be asked at once.
#[test]
fn a_repository_that_comes_back_within_seconds_is_not_polled_again_at_once() {
    let mut world = World::new(&[("build", 4)]);
    world.after(15 * MINUTE);
    world.expect(poll);
    world.polled(&[]);
    let machines = world.policy.machines.clone();
    world.configure(|policy| policy.machines.clear());
    world.after(4 * SECOND);
    world.configure(|policy| policy.machines = machines);
    world.expect_none(poll);
    world.after(SECOND);
    world.expect(poll);
}

#[test]
fn every_repository_that_comes_back_keeps_its_limit() {
    let mut world = World::new(&[("a/a/build", 4), ("b/b/build", 4)]);
    let not_before = Some(world.now + 2 * HOUR);
    for repository in world.policy.repositories() {
        let result = Err(Trouble { what: "too many requests".into(), not_before });
        world.event(Event::Polled { repository, result, asked_at: world.now });
    }
    let machines = world.policy.machines.clone();
    world.configure(|policy| policy.machines.clear());
    world.configure(|policy| policy.machines = machines);
    world.after(HOUR);
    world.expect_none(poll);
    world.after(HOUR + SECOND);
    assert_eq!(world.count(poll), 2);
}

/// What is kept in mind of repositories that left is bounded, and the longest limits are kept.
#[test]
fn a_limit_outlives_a_thousand_other_repositories_that_leave() {
    let names: Vec<_> = (0..1_002).map(|number| format!("o/r{number}/build")).collect();
    let machines: Vec<_> = names.iter().map(|name| (name.as_str(), 4)).collect();
    let mut world = World::new(&machines);
    let limited = machine_name("o/r7/build").repository().clone();
    let not_before = Some(world.now + HOUR);
    let result = Err(Trouble { what: "too many requests".into(), not_before });
    world.event(Event::Polled { repository: limited.clone(), result, asked_at: world.now });
    let machines = world.policy.machines.clone();
    world.configure(|policy| policy.machines.clear());
    assert!(world.core.sizes().blocked_repositories <= 1_000);
    world.after(10 * SECOND);
    world.configure(|policy| policy.machines = machines);
    assert_eq!(world.count(poll), 1_001);
    world.after(HOUR);
    world.expect(|c| matches!(c, Command::Poll { repository, .. } if *repository == limited));
}

#[test]
fn lists_lag_behind_so_that_a_runner_may_be_missing_for_a_minute() {
    for has_job in [false, true] {
        let mut world = World::new(&[("build", 4)]);
        let runner = world.idle(1, "build");
        let listed = world.listed(&runner, has_job);
        world.polled(&[listed]);
        world.is(&runner, if has_job { "busy" } else { "idle" });
        world.after(MINUTE);
        world.polled(&[]);
        world.expect_none(|c| matches!(c, Command::Deregister { .. }));
        world.after(SECOND);
        world.polled(&[]);
        world.expect_deregister(&runner);
    }
}

#[test]
fn a_list_from_the_moment_at_which_a_runner_became_busy_does_not_make_it_idle() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.idle(1, "build");
    let (busy, idle) = (world.listed(&runner, true), world.listed(&runner, false));
    world.polled(&[busy]);
    world.polled(std::slice::from_ref(&idle));
    world.is(&runner, "busy");
    world.after(SECOND);
    world.polled(&[idle]);
    world.is(&runner, "idle");
}

#[test]
fn only_an_end_of_trouble_is_worth_a_word() {
    let mut world = World::new(&[("build", 4)]);
    let told = |world: &World| world.notes.iter().any(|n| n.text.contains("answers for o/r again"));
    world.polled(&[]);
    assert!(!told(&world));
    world.poll_failed(trouble());
    world.polled(&[]);
    assert!(told(&world));
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
    world.run_event(&runner, RunEvent::Discarded(Ok(())));
    world.deregistered(&runner, Deregistration::Removed);
    assert!(world.core.runs().is_empty());
    world.forget_commands();
    assert!((13..=16).contains(&polls_within(&mut world, 15 * MINUTE)));
    polls_within(&mut world, 2 * MINUTE);
    assert!(polls_within(&mut world, HOUR) <= 5);
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
fn a_new_machine_type_or_label_is_reason_to_ask_for_jobs_that_were_left_alone() {
    let mut world = World::new(&[("build", 4)]);
    world.after(MINUTE);
    world.configure(|policy| policy.timing.polling_interval *= 2);
    world.expect_none(poll);
    let build = machine_name("build");
    world.configure(|policy| {
        let mut test = policy.machines[&build].clone();
        test.name = machine_name("test");
        policy.machines.insert(test.name.clone(), test);
    });
    world.expect(poll);
    world.polled(&[]);
    world.after(MINUTE);
    let labels = ["self-hosted", "forrest", "other"];
    world.configure_machine("build", |machine| machine.labels = labels.into_iter().collect());
    world.expect(poll);
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

fn offline(world: &World, name: &str) -> Runner {
    Runner { online: false, ..world.listed(&name.parse().expect("a sound name"), false) }
}

#[test]
fn a_runner_that_was_online_or_busy_meanwhile_is_no_orphan() {
    let mut world = World::new(&[("build", 4)]);
    let orphan = |c: &Command| matches!(c, Command::RemoveOrphan { .. });
    let runner = offline(&world, "forrest-build-bbbbbbbbbbbbbbbb");
    let (online, busy) =
        (Runner { online: true, ..runner.clone() }, Runner { busy: true, ..runner.clone() });
    for seen in [online, busy] {
        world.polled(std::slice::from_ref(&runner));
        world.after(45 * MINUTE);
        world.polled(&[seen]);
        world.after(30 * MINUTE);
    }
    world.polled(&[runner]);
    world.expect_none(orphan);
}

#[test]
fn a_runner_that_a_run_owns_is_no_orphan_however_long_it_is_offline() {
    let mut world = World::new(&[("build", 4)]);
    let runner = world.busy(1, "build");
    let runner = offline(&world, runner.as_str());
    for _ in 0..3 {
        world.polled(std::slice::from_ref(&runner));
        world.after(HOUR);
    }
    world.expect_none(|c| matches!(c, Command::RemoveOrphan { .. }));
}

#[test]
fn another_hosts_runners_are_left_alone() {
    let mut world = World::new(&[("build", 4)]);
    let runner = offline(&world, "forrest-test-bbbbbbbbbbbbbbbb");
    for _ in 0..3 {
        world.polled(std::slice::from_ref(&runner));
        world.after(HOUR);
    }
    world.expect_none(|c| matches!(c, Command::RemoveOrphan { .. }));
}

#[test]
fn one_poll_removes_a_bounded_number_of_orphans() {
    let mut world = World::new(&[("build", 4)]);
    let names = (0..25).map(|n| format!("forrest-build-bbbbbbbbbbbbb{}bb", char::from(b'a' + n)));
    let orphans: Vec<_> = names.map(|name| offline(&world, &name)).collect();
    let orphan = |c: &Command| matches!(c, Command::RemoveOrphan { .. });
    world.polled(&orphans);
    world.after(HOUR);
    world.polled(&orphans);
    assert_eq!(world.count(orphan), 20);
    world.after(MINUTE);
    world.polled(&orphans);
    assert_eq!(world.count(orphan), 5);
}
