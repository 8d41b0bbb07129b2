//! Asking GitHub: the backup for webhooks that never arrive, and the place where runners that GitHub
//! and Forrest disagree about are found.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::command::{Command, Level, Note};
use crate::core::Core;
use crate::event::{Runner, Source, Trouble};
use crate::jobs::Phase;
use crate::model::{Job, JobStatus, Repository, RunnerName, Timestamp};
use crate::run::{FinishStep, RetireReason, RunState, SHUTDOWN_GRACE, retry_pause};
use crate::timers::Timer;

/// Shortest pause between two polls of one repository, however many reasons there are.
pub(crate) const POLL_MIN_PAUSE: Duration = Duration::from_secs(5);
/// Polling interval while webhooks evidently do not arrive.
pub(crate) const POLL_FAST: Duration = Duration::from_secs(30);
/// How long polling stays fast after the last job that no webhook had announced.
pub(crate) const POLL_FAST_FOR: Duration = Duration::from_secs(60 * 60);
/// Age at which a queued job that only a poll found counts as missed by the webhooks.
const WEBHOOK_LATE: Duration = Duration::from_secs(60);
/// How long a runner that no run owns has to be offline before it is removed. Long enough for
/// another host's guests to boot, far shorter than the day that GitHub takes.
const ORPHAN_AGE: Duration = Duration::from_secs(60 * 60);
/// Runners that no run owns and that are kept in mind; more than that wait for the next poll.
const ORPHANS_MAX: usize = 1_000;
/// How long an idle runner may be missing in GitHub's list: the list lags behind registrations.
const LIST_LAG: Duration = Duration::from_secs(60);

/// What is known of the polls of all repositories.
#[derive(Debug, Clone, Default)]
pub(crate) struct Polls {
    by_repository: BTreeMap<Repository, Poll>,
    /// Webhooks are known to be missing until then.
    fast_until: Option<Timestamp>,
    /// When the last webhook came.
    pub(crate) last_webhook: Option<Timestamp>,
}

#[derive(Debug, Clone, Default)]
struct Poll {
    in_flight: bool,
    again: bool,
    failures: u32,
    last_asked: Option<Timestamp>,
    last_success: Option<Timestamp>,
    trouble: Option<String>,
    orphans: BTreeMap<RunnerName, Timestamp>,
}

impl Polls {
    /// Whether the repository was heard of since the start: before that, nothing is known to be
    /// surplus.
    pub(crate) fn synced(&self, repository: &Repository) -> bool {
        self.by_repository.get(repository).is_some_and(|poll| poll.last_success.is_some())
    }

    /// When the repository's last poll succeeded, and what keeps it from succeeding now.
    pub(crate) fn state(&self, repository: &Repository) -> (Option<Timestamp>, Option<&str>) {
        self.by_repository
            .get(repository)
            .map_or((None, None), |poll| (poll.last_success, poll.trouble.as_deref()))
    }

    /// Whether a poll of the repository is on its way.
    pub(crate) fn in_flight(&self, repository: &Repository) -> bool {
        self.by_repository.get(repository).is_some_and(|poll| poll.in_flight)
    }

    /// Whether webhooks are known to be missing.
    pub(crate) fn is_fast(&self, now: Timestamp) -> bool {
        self.fast_until.is_some_and(|until| until > now)
    }
}

impl Core {
    /// Starts polling new repositories and stops with those that are not configured any more.
    pub(crate) fn polls_follow_policy(&mut self, now: Timestamp, out: &mut Vec<Command>) {
        let wanted = self.policy.repositories();
        let first = self.polls.by_repository.is_empty() && !wanted.is_empty();
        let gone: Vec<_> = self
            .polls
            .by_repository
            .keys()
            .filter(|name| !wanted.contains(name))
            .cloned()
            .collect();
        for repository in gone {
            self.polls.by_repository.remove(&repository);
            self.timers.clear(&Timer::Poll(repository));
        }
        for repository in wanted {
            if !self.polls.by_repository.contains_key(&repository) {
                self.polls.by_repository.insert(repository.clone(), Poll::default());
                self.poll(now, &repository, out);
            }
        }
        if first {
            self.timers.set(Timer::Deliveries, now + self.policy.timing.polling_interval);
        }
    }

    /// Polls now, or as soon as the present poll is over.
    pub(crate) fn poll(&mut self, now: Timestamp, repository: &Repository, out: &mut Vec<Command>) {
        let Some(poll) = self.polls.by_repository.get_mut(repository) else { return };
        if poll.in_flight {
            poll.again = true;
            return;
        }
        if let Some(earliest) = poll.last_asked.map(|at| at + POLL_MIN_PAUSE)
            && earliest > now
        {
            self.timers.set(Timer::Poll(repository.clone()), earliest);
            return;
        }
        poll.in_flight = true;
        poll.last_asked = Some(now);
        self.timers.clear(&Timer::Poll(repository.clone()));
        let known = self.jobs.active(repository);
        out.push(Command::Poll { repository: repository.clone(), known });
    }

    /// Polls the run's repository, because something about the run is not clear.
    pub(crate) fn poll_soon(
        &mut self,
        now: Timestamp,
        runner: &RunnerName,
        out: &mut Vec<Command>,
    ) {
        if let Some(repository) = self.repository_of(runner) {
            self.poll(now, &repository, out);
        }
    }

    /// Notices which way the news of a job came.
    pub(crate) fn note_webhook(&mut self, now: Timestamp, job: &Job, source: Source) {
        match source {
            Source::Webhook => self.polls.last_webhook = Some(now),
            Source::Asked(_) => {
                let late = job.created_at.is_some_and(|at| now.since(at) > WEBHOOK_LATE);
                let new = self.jobs.get(job.id).is_none();
                if new && late && job.status == JobStatus::Queued {
                    self.polls.fast_until = Some(now + POLL_FAST_FOR);
                }
            }
        }
    }

    pub(crate) fn polled(
        &mut self,
        now: Timestamp,
        repository: &Repository,
        result: Result<Vec<Runner>, Trouble>,
        asked_at: Timestamp,
        out: &mut Vec<Command>,
    ) {
        let interval = if self.polls.is_fast(now) {
            POLL_FAST.min(self.policy.timing.polling_interval)
        } else {
            self.policy.timing.polling_interval
        };
        let Some(poll) = self.polls.by_repository.get_mut(repository) else { return };
        poll.in_flight = false;
        let again = std::mem::take(&mut poll.again);
        let next = match &result {
            Ok(_) => {
                if poll.failures > 0 {
                    let text = format!("GitHub answers for {repository} again");
                    out.push(repository_note(Level::Info, text));
                }
                poll.failures = 0;
                poll.trouble = None;
                poll.last_success = Some(asked_at);
                if again { now + POLL_MIN_PAUSE } else { now + interval }
            }
            Err(trouble) => {
                let pause = retry_pause(poll.failures).max(POLL_MIN_PAUSE);
                poll.failures = poll.failures.saturating_add(1);
                poll.trouble = Some(trouble.what.clone());
                let text = format!("could not poll {repository}: {}", trouble.what);
                out.push(repository_note(Level::Warn, text));
                (now + pause).max(trouble.not_before.unwrap_or_default())
            }
        };
        self.timers.set(Timer::Poll(repository.clone()), next);
        if let Ok(runners) = result {
            self.runners_listed(now, repository, &runners, asked_at, out);
            self.unscheduled = true;
        }
    }

    fn runners_listed(
        &mut self,
        now: Timestamp,
        repository: &Repository,
        listed: &[Runner],
        asked_at: Timestamp,
        out: &mut Vec<Command>,
    ) {
        let by_name: BTreeMap<&RunnerName, &Runner> =
            listed.iter().map(|runner| (&runner.name, runner)).collect();
        let ours: Vec<RunnerName> = self
            .runs
            .iter()
            .filter(|run| run.machine.repository() == repository)
            .map(|run| run.runner.clone())
            .collect();
        for name in &ours {
            match by_name.get(name) {
                Some(runner) => self.runner_listed(now, runner, asked_at),
                None => self.runner_not_listed(now, name, asked_at, out),
            }
        }
        self.find_orphans(now, repository, listed, out);
    }

    fn runner_listed(&mut self, now: Timestamp, runner: &Runner, asked_at: Timestamp) {
        let job = self.jobs.running_on(&runner.name);
        let now_idle = self.runs.change(&runner.name, |run| {
            if runner.online {
                run.times.runner_online.get_or_insert(now);
            }
            match &run.state {
                RunState::Booting(vm) | RunState::Idle { vm, .. } if runner.busy => {
                    run.state = RunState::Busy { vm: vm.clone(), since: now, job };
                    Some(false)
                }
                // GitHub had said "busy" without a job, and has taken that back.
                RunState::Busy { vm, since, job: None }
                    if runner.online && !runner.busy && *since < asked_at =>
                {
                    run.state = RunState::Idle { vm: vm.clone(), since: now };
                    Some(true)
                }
                _ => None,
            }
        });
        match now_idle.flatten() {
            Some(true) => {
                let at = now + self.policy.timing.idle_timeout;
                self.timers.set(Timer::Run(runner.name.clone()), at);
            }
            Some(false) => self.timers.clear(&Timer::Run(runner.name.clone())),
            None => {}
        }
    }

    fn runner_not_listed(
        &mut self,
        now: Timestamp,
        name: &RunnerName,
        asked_at: Timestamp,
        out: &mut Vec<Command>,
    ) {
        let Some(run) = self.runs.get(name) else { return };
        match &run.state {
            RunState::Idle { since, .. } if *since + LIST_LAG < asked_at => {
                self.retire(name, RetireReason::Forgotten, out);
            }
            // Its runner is removed when its job is over: the guest is shutting down.
            RunState::Busy { vm, since, job: None } if *since + LIST_LAG < asked_at => {
                let vm = vm.clone();
                self.runs.change(name, |run| {
                    run.state =
                        RunState::Finishing { vm, job: None, step: FinishStep::ShuttingDown };
                });
                self.timers.set(Timer::Run(name.clone()), now + SHUTDOWN_GRACE);
            }
            _ => {}
        }
    }

    /// Removes runners that carry the name of one of this host's machine types, belong to no run,
    /// and have been offline for long. Another Forrest may serve the same repository.
    fn find_orphans(
        &mut self,
        now: Timestamp,
        repository: &Repository,
        listed: &[Runner],
        out: &mut Vec<Command>,
    ) {
        let configured = |name: &RunnerName| {
            self.policy.machines_of(repository).any(|m| m.name.machine() == name.machine())
        };
        let candidates: Vec<&Runner> = listed
            .iter()
            .filter(|r| !r.online && !r.busy && self.runs.get(&r.name).is_none())
            .filter(|r| configured(&r.name))
            .take(ORPHANS_MAX)
            .collect();
        let Some(poll) = self.polls.by_repository.get_mut(repository) else { return };
        poll.orphans.retain(|name, _| candidates.iter().any(|runner| &runner.name == name));
        for runner in candidates {
            let since = *poll.orphans.entry(runner.name.clone()).or_insert(now);
            if now.since(since) >= ORPHAN_AGE {
                poll.orphans.remove(&runner.name);
                out.push(repository_note(
                    Level::Warn,
                    format!(
                        "runner {} of {repository} belongs to no run: removing it",
                        runner.name
                    ),
                ));
                out.push(Command::RemoveOrphan {
                    runner: runner.name.clone(),
                    repository: repository.clone(),
                    id: runner.id,
                });
            }
        }
    }

    pub(crate) fn repair_deliveries(&mut self, now: Timestamp, out: &mut Vec<Command>) {
        out.push(Command::RepairDeliveries);
        self.timers.set(Timer::Deliveries, now + self.policy.timing.polling_interval);
    }

    pub(crate) fn deliveries_repaired(
        &mut self,
        now: Timestamp,
        result: Result<u32, Trouble>,
        out: &mut Vec<Command>,
    ) {
        match result {
            Ok(0) => {}
            Ok(count) => {
                self.polls.fast_until = Some(now + POLL_FAST_FOR);
                let text = format!("{count} webhooks had not arrived; GitHub sends them again");
                out.push(repository_note(Level::Warn, text));
            }
            Err(trouble) => {
                let text = format!("could not look for lost webhooks: {}", trouble.what);
                out.push(repository_note(Level::Debug, text));
            }
        }
    }

    /// How many of the repository's jobs are running, for people.
    pub(crate) fn running_jobs(&self, repository: &Repository) -> usize {
        let running = |e: &&crate::jobs::JobEntry| {
            e.phase == Phase::Running && &e.job.repository == repository
        };
        self.jobs.iter().filter(running).count()
    }
}

fn repository_note(level: Level, text: String) -> Command {
    Command::Note(Note { level, runner: None, job: None, text })
}
