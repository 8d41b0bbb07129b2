//! Asking GitHub: the backup for webhooks that never arrive, and the place where runners that GitHub
//! and Forrest disagree about are found.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::command::{Command, Level};
use crate::core::{Core, general_note};
use crate::event::{Runner, Source, Trouble};
use crate::jobs::Phase;
use crate::model::{Job, JobId, JobStatus, MachineType, Repository, RunnerName, Timestamp};
use crate::policy::Policy;
use crate::run::{RetireReason, Run, RunState, retry_at, retry_pause};
use crate::timers::Timer;

/// Shortest pause between two polls of one repository, however many reasons there are.
pub(crate) const POLL_MIN_PAUSE: Duration = Duration::from_secs(5);
/// Polling interval while webhooks evidently do not arrive.
pub(crate) const POLL_FAST: Duration = Duration::from_secs(30);
/// Polling interval while it is not clear what one of the repository's runners does.
pub(crate) const POLL_UNCLEAR: Duration = Duration::from_secs(60);
/// How long a repository is polled at that interval after a run ended and its job did not.
const CLOSE_WATCH: Duration = Duration::from_secs(20 * 60);
/// How long the answer to a poll is waited for.
const POLL_ANSWER_MAX: Duration = Duration::from_secs(15 * 60);
/// Jobs that one poll asks for one by one, at most. Those that GitHub was not asked for longest go
/// first.
pub const KNOWN_MAX: usize = 500;
/// How long polling stays fast after the last job that no webhook had announced.
pub(crate) const POLL_FAST_FOR: Duration = Duration::from_secs(60 * 60);
/// Age at which a queued job that only a poll found counts as missed by the webhooks.
const WEBHOOK_LATE: Duration = Duration::from_secs(60);
/// How long a runner that no run owns has to be offline before it is removed. Long enough for
/// another host's guests to boot, far shorter than the day that GitHub takes.
const ORPHAN_AGE: Duration = Duration::from_secs(60 * 60);
/// Runners that no run owns and that are kept in mind; more than that wait for the next poll.
pub const ORPHANS_MAX: usize = 1_000;
/// Such runners that one poll removes at most.
const ORPHANS_PER_POLL: usize = 20;
/// Repositories that are not polled any more, and of which it is kept in mind when they may be.
const BLOCKED_MAX: usize = 1_000;
/// How long an idle runner may be missing in GitHub's list: the list lags behind registrations.
const LIST_LAG: Duration = Duration::from_secs(60);

/// What is known of the polls of all repositories.
#[derive(Debug, Clone, Default)]
pub(crate) struct Polls {
    by_repository: BTreeMap<Repository, Poll>,
    /// Webhooks are known to be missing until then.
    fast_until: Option<Timestamp>,
    /// Until when repositories that are not polled any more must not be asked for, should they come back.
    blocked: BTreeMap<Repository, Timestamp>,
    /// When polling began: jobs from before it cannot have been announced.
    since: Option<Timestamp>,
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
    /// Nothing is asked before this time: GitHub does not answer, or said so.
    blocked_until: Option<Timestamp>,
    /// Polled often until then.
    watched_until: Option<Timestamp>,
    trouble: Option<String>,
    orphans: BTreeMap<RunnerName, Timestamp>,
}

impl Poll {
    /// Before that, the repository must not be asked for.
    fn earliest(&self) -> Option<Timestamp> {
        self.last_asked.map(|at| at + POLL_MIN_PAUSE).max(self.blocked_until)
    }
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

    /// Why nothing is begun for a repository: GitHub has not answered for it since the start.
    pub(crate) fn silence(&self, repository: &Repository) -> Option<String> {
        let poll = self.by_repository.get(repository)?;
        if poll.last_success.is_some() {
            return None;
        }
        let waits = || "GitHub has not answered yet".to_owned();
        Some(poll.trouble.clone().unwrap_or_else(waits))
    }

    /// The repositories that are polled.
    pub(crate) fn repositories(&self) -> impl Iterator<Item = &Repository> {
        self.by_repository.keys()
    }

    /// How many repositories are polled, are not and must not be yet, and how many orphans are known.
    pub(crate) fn sizes(&self) -> (usize, usize, usize) {
        let orphans = self.by_repository.values().map(|poll| poll.orphans.len()).sum();
        (self.by_repository.len(), self.blocked.len(), orphans)
    }

    /// Moves all points in time back, after the clock was.
    pub(crate) fn clock_moved_back(&mut self, change: impl Fn(Timestamp) -> Timestamp) {
        let moved = |at: &mut Option<Timestamp>| *at = at.map(&change);
        moved(&mut self.fast_until);
        moved(&mut self.since);
        moved(&mut self.last_webhook);
        for at in self.blocked.values_mut() {
            *at = change(*at);
        }
        for poll in self.by_repository.values_mut() {
            moved(&mut poll.last_asked);
            moved(&mut poll.last_success);
            moved(&mut poll.blocked_until);
            moved(&mut poll.watched_until);
            for since in poll.orphans.values_mut() {
                *since = change(*since);
            }
        }
    }

    /// Whether webhooks are known to be missing.
    pub(crate) fn is_fast(&self, now: Timestamp) -> bool {
        self.fast_until.is_some_and(|until| until > now)
    }
}

impl Core {
    /// Starts polling new repositories and stops with those that are not needed any more.
    pub(crate) fn polls_follow_policy(&mut self, now: Timestamp, out: &mut Vec<Command>) {
        self.polls.since.get_or_insert(now);
        if self.timers.get(&Timer::Deliveries).is_none() {
            self.timers.set(Timer::Deliveries, now + self.policy.timing.polling_interval());
        }
        let polled: Vec<_> = self.polls.by_repository.keys().cloned().collect();
        for repository in polled {
            self.stop_polling_unless_needed(&repository);
        }
        for repository in self.policy.repositories() {
            self.ensure_polled(&repository);
            if self.polls.state(&repository).0.is_none() {
                self.poll(now, &repository, out);
            }
        }
    }

    /// Asks again for the jobs of repositories that have a machine type which `old` did not have, or
    /// not with these labels: jobs that nothing served were left alone when they were reported.
    pub(crate) fn poll_for_new_machines(
        &mut self,
        now: Timestamp,
        old: &Policy,
        out: &mut Vec<Command>,
    ) {
        let is_new = |machine: &&MachineType| {
            old.machines.get(&machine.name).is_none_or(|before| before.labels != machine.labels)
        };
        let new = self.policy.machines.values().filter(is_new);
        let repositories: BTreeSet<_> =
            new.map(|machine| machine.name.repository().clone()).collect();
        for repository in repositories {
            // Those that were never polled are being polled already.
            if self.polls.state(&repository).0.is_some() {
                self.poll(now, &repository, out);
            }
        }
    }

    /// From now on the repository is one of those that are polled.
    pub(crate) fn ensure_polled(&mut self, repository: &Repository) {
        if !self.polls.by_repository.contains_key(repository) {
            let blocked_until = self.polls.blocked.remove(repository);
            let poll = Poll { blocked_until, ..Poll::default() };
            self.polls.by_repository.insert(repository.clone(), poll);
        }
    }

    /// A repository that left the configuration is polled until its last run is gone: what became of
    /// their jobs has to be learnt.
    pub(crate) fn stop_polling_unless_needed(&mut self, repository: &Repository) {
        let configured = || self.policy.machines_of(repository).next().is_some();
        let has_runs = || self.runs.iter().any(|run| run.machine.repository() == repository);
        if configured() || has_runs() {
            return;
        }
        if let Some(at) =
            self.polls.by_repository.remove(repository).and_then(|poll| poll.earliest())
        {
            let blocked = &mut self.polls.blocked;
            blocked.insert(repository.clone(), at);
            if blocked.len() > BLOCKED_MAX {
                // The half that ends first goes: most of those pauses are over.
                let mut ends: Vec<_> = blocked.values().copied().collect();
                let (_, median, _) = ends.select_nth_unstable(BLOCKED_MAX / 2);
                let median = *median;
                blocked.retain(|_, at| *at > median);
            }
        }
        self.timers.clear(&Timer::Poll(repository.clone()));
        self.jobs.forget(repository);
    }

    /// Polls now, or as soon as the present poll is over and GitHub allows it.
    pub(crate) fn poll(&mut self, now: Timestamp, repository: &Repository, out: &mut Vec<Command>) {
        let Some(poll) = self.polls.by_repository.get_mut(repository) else { return };
        if poll.in_flight {
            poll.again = true;
            return;
        }
        if let Some(earliest) = poll.earliest()
            && earliest > now
        {
            self.timers.set_at_latest(Timer::Poll(repository.clone()), earliest);
            return;
        }
        poll.in_flight = true;
        poll.last_asked = Some(now);
        self.timers.set(Timer::Poll(repository.clone()), now + POLL_ANSWER_MAX);
        let known = self.known_jobs(repository);
        out.push(Command::Poll { repository: repository.clone(), known });
    }

    /// Polls in a minute at the latest, for something that may happen again and again.
    pub(crate) fn poll_within_a_minute(&mut self, now: Timestamp, repository: &Repository) {
        let Some(poll) = self.polls.by_repository.get_mut(repository) else { return };
        if poll.in_flight {
            poll.again = true;
            return;
        }
        let at = (now + POLL_UNCLEAR).max(poll.earliest().unwrap_or_default());
        self.timers.set_at_latest(Timer::Poll(repository.clone()), at);
    }

    /// The next poll is due, or the answer to the last one never came.
    pub(crate) fn poll_timer(
        &mut self,
        now: Timestamp,
        repository: &Repository,
        out: &mut Vec<Command>,
    ) {
        if let Some(poll) = self.polls.by_repository.get_mut(repository)
            && std::mem::take(&mut poll.in_flight)
        {
            let text = format!("a poll of {repository} has no answer: asking again");
            out.push(general_note(Level::Warn, text));
        }
        self.poll(now, repository, out);
    }

    /// The jobs to ask for: those that are not over, and those of adopted runs.
    fn known_jobs(&self, repository: &Repository) -> Vec<JobId> {
        let of_runs = self
            .runs
            .iter()
            .filter(|run| run.machine.repository() == repository)
            .filter_map(Run::job)
            .filter(|id| self.jobs.get(*id).is_none());
        let mut known: Vec<_> = of_runs.map(|id| (Timestamp(0), id)).collect();
        known.extend(self.jobs.active(repository).map(|entry| (entry.asked_at, entry.job.id)));
        known.sort_unstable();
        known.truncate(KNOWN_MAX);
        known.into_iter().map(|(_, id)| id).collect()
    }

    /// Polls the repository often for a while.
    pub(crate) fn watch_closely(&mut self, now: Timestamp, runner: &RunnerName) {
        if let Some(repository) = self.repository_of(runner)
            && let Some(poll) = self.polls.by_repository.get_mut(&repository)
        {
            poll.watched_until = Some(now + CLOSE_WATCH);
        }
    }

    fn poll_interval(&self, now: Timestamp, repository: &Repository) -> Duration {
        let interval = self.policy.timing.polling_interval();
        let watched = self.polls.by_repository.get(repository).and_then(|poll| poll.watched_until);
        let unclear =
            || self.runs.iter().any(|r| r.is_unclear() && r.machine.repository() == repository);
        if self.polls.is_fast(now) {
            POLL_FAST.min(interval)
        } else if watched.is_some_and(|until| until > now) || unclear() {
            POLL_UNCLEAR.min(interval)
        } else {
            interval
        }
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
    pub(crate) fn note_webhook(
        &mut self,
        now: Timestamp,
        job: &Job,
        source: Source,
        out: &mut Vec<Command>,
    ) {
        match source {
            Source::Webhook => self.polls.last_webhook = Some(now),
            Source::Asked(_) => {
                let late = job.created_at.is_some_and(|at| {
                    now.since(at) > WEBHOOK_LATE && self.polls.since.is_some_and(|since| at > since)
                });
                let new = self.jobs.get(job.id).is_none();
                if new && late && job.status == JobStatus::Queued {
                    if !self.polls.is_fast(now) {
                        let text = format!(
                            "job {} was found without a webhook: GitHub is asked every {} s for an \
                             hour from now",
                            job.id,
                            POLL_FAST.min(self.policy.timing.polling_interval()).as_secs()
                        );
                        out.push(general_note(Level::Warn, text));
                    }
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
        let interval = self.poll_interval(now, repository);
        let Some(poll) = self.polls.by_repository.get_mut(repository) else { return };
        poll.in_flight = false;
        let again = std::mem::take(&mut poll.again);
        match result {
            Ok(runners) => {
                if poll.failures > 0 {
                    let text = format!("GitHub answers for {repository} again");
                    out.push(general_note(Level::Info, text));
                }
                (poll.failures, poll.trouble, poll.blocked_until) = (0, None, None);
                poll.last_success = Some(asked_at);
                let next = if again { now + POLL_MIN_PAUSE } else { now + interval };
                self.timers.set(Timer::Poll(repository.clone()), next);
                self.runners_listed(now, repository, &runners, asked_at, out);
                self.unscheduled = true;
            }
            Err(trouble) => {
                let pause = retry_pause(poll.failures).max(POLL_MIN_PAUSE);
                let next = retry_at(now, pause, trouble.not_before);
                poll.failures = poll.failures.saturating_add(1);
                poll.blocked_until = Some(next);
                let text = format!(
                    "could not poll {repository}, asking again in {} s: {}",
                    next.since(now).as_secs(),
                    trouble.what
                );
                poll.trouble = Some(trouble.what);
                out.push(general_note(Level::Warn, text));
                self.timers.set(Timer::Poll(repository.clone()), next);
            }
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
                Some(runner) => self.runner_listed(now, runner, asked_at, out),
                None => self.runner_not_listed(now, name, asked_at, out),
            }
        }
        self.find_orphans(now, repository, listed, out);
    }

    fn runner_listed(
        &mut self,
        now: Timestamp,
        runner: &Runner,
        asked_at: Timestamp,
        out: &mut Vec<Command>,
    ) {
        let name = &runner.name;
        if runner.online {
            self.runs.change(name, |run| *run.times.runner_online.get_or_insert(now));
        }
        let Some(run) = self.runs.get(name) else { return };
        match &run.state {
            RunState::Starting(vm) | RunState::Booting(vm) | RunState::Idle { vm, .. }
                if runner.busy =>
            {
                let vm = vm.clone();
                self.runner_is_busy(now, name, vm, out);
            }
            // GitHub had said "busy" without a job, and has taken that back.
            RunState::Busy { vm, since, job: None } if !runner.busy && *since < asked_at => {
                let vm = vm.clone();
                self.runs.change(name, |run| run.state = RunState::Idle { vm, since: now });
                self.watch_idle(now, name);
            }
            RunState::Preparing { .. }
            | RunState::Starting(_)
            | RunState::Booting(_)
            | RunState::Idle { .. }
            | RunState::Busy { .. }
            | RunState::Retiring { .. }
            | RunState::Finishing { .. }
            | RunState::Settling(_) => {}
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
                self.retire(now, name, RetireReason::Forgotten, out);
            }
            // GitHub removes a runner when its job is over. A list can be wrong; a refusal to delete
            // the runner is not.
            RunState::Busy { since, job: None, .. } if *since + LIST_LAG < asked_at => {
                self.retire(now, name, RetireReason::Unclear, out);
            }
            RunState::Preparing { .. }
            | RunState::Starting(_)
            | RunState::Booting(_)
            | RunState::Idle { .. }
            | RunState::Busy { .. }
            | RunState::Retiring { .. }
            | RunState::Finishing { .. }
            | RunState::Settling(_) => {}
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
        let names: BTreeSet<_> = candidates.iter().map(|runner| &runner.name).collect();
        poll.orphans.retain(|name, _| names.contains(name));
        let mut removed = 0;
        for runner in candidates {
            let since = *poll.orphans.entry(runner.name.clone()).or_insert(now);
            if now.since(since) >= ORPHAN_AGE && removed < ORPHANS_PER_POLL {
                removed += 1;
                poll.orphans.remove(&runner.name);
                out.push(general_note(
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
        self.timers.set(Timer::Deliveries, now + self.policy.timing.polling_interval());
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
                out.push(general_note(Level::Warn, text));
            }
            Err(trouble) => {
                let text = format!("could not look for lost webhooks: {}", trouble.what);
                out.push(general_note(Level::Debug, text));
            }
        }
    }

    /// How many of the repository's jobs are running, for people.
    pub(crate) fn running_jobs(&self, repository: &Repository) -> usize {
        self.jobs.active(repository).filter(|entry| entry.phase == Phase::Running).count()
    }
}
