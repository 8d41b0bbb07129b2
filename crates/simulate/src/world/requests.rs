//! Requests to GitHub: how they fare, what they do, what comes back.

use forrest_core::event::{Deregistration, Event, RegisterTrouble, RunEvent, Source, Trouble};
use forrest_core::model::{JobId, Repository, RunnerId, RunnerName, Timestamp};

use crate::checker::Broken;
use crate::plan::{MINUTE, SECOND};

use super::{Action, World};

/// A request on its way.
#[derive(Debug)]
pub(crate) struct Request {
    /// The daemon that sent it.
    pub epoch: u32,
    /// What it asks for.
    pub ask: Ask,
    /// How it fares.
    pub fate: Fate,
    /// When the answer is due.
    pub answer_at: u64,
    /// When it was sent, by the host's clock.
    pub asked_at: Timestamp,
}

/// What a request asks for.
#[derive(Debug)]
pub(crate) enum Ask {
    /// A registration.
    Register(RunnerName, usize),
    /// A removal.
    Deregister(RunnerName, Option<RunnerId>),
    /// The removal of a runner without a run.
    RemoveOrphan(RunnerName),
    /// Jobs and runners of a repository.
    Poll(Repository, Vec<JobId>),
    /// One job.
    Job(Repository, JobId),
    /// Lost webhooks once more.
    Redeliver,
}

impl Ask {
    /// Whether it changes something on GitHub: of those fewer are allowed.
    fn changes_something(&self) -> bool {
        match self {
            Self::Register(..) | Self::Deregister(..) | Self::RemoveOrphan(_) => true,
            Self::Poll(..) | Self::Job(..) | Self::Redeliver => false,
        }
    }
}

/// How a request fares.
#[derive(Debug, Clone)]
pub(crate) enum Fate {
    /// It works.
    Works,
    /// It is refused, or does not get through.
    Fails(Trouble),
    /// It takes effect, and the answer is lost.
    AnswerLost(Trouble),
    /// It is given up, and takes effect later.
    Late(Trouble),
}

impl World {
    /// Sends a request.
    pub(super) fn send(&mut self, ask: Ask) {
        let (fate, takes) = self.fate(&ask);
        let answer_at = self.now + takes;
        let reached_after = match fate {
            Fate::Late(_) => takes + self.random.spread(SECOND, MINUTE),
            Fate::Works | Fate::Fails(_) | Fate::AnswerLost(_) => self.random.between(1, takes),
        };
        if let (Fate::Late(_), Ask::Register(runner, _)) = (&fate, &ask) {
            self.checker.late_registration(runner);
        }
        let asked_at = self.wall();
        let request = Request { epoch: self.epoch, ask, fate, answer_at, asked_at };
        self.after(reached_after, Action::Request(request));
    }

    fn fate(&mut self, ask: &Ask) -> (Fate, u64) {
        let takes = if self.weather.api_slow && self.is_stormy() {
            self.random.spread(SECOND, 40 * SECOND)
        } else {
            self.random.spread(80, 1500)
        };
        let faults = &self.plan.faults;
        let (failed, lost, late) = (faults.api_failed, faults.api_answer_lost, faults.api_late);
        if let Some(until) = self.weather.api_limited.filter(|_| self.is_stormy()) {
            let not_before = Timestamp(self.wall().0 + until.saturating_sub(self.now) + SECOND);
            let trouble = Trouble { what: "rate limit".into(), not_before: Some(not_before) };
            return (Fate::Fails(trouble), takes);
        }
        if let Some(until) = self.weather.api_secondary.filter(|_| ask.changes_something()) {
            // Some of these answers say when to come back, others do not.
            let not_before = Timestamp(self.wall().0 + until.saturating_sub(self.now) + SECOND);
            let not_before = self.random.chance(0.5).then_some(not_before);
            return (
                Fate::Fails(Trouble { what: "secondary rate limit".into(), not_before }),
                takes,
            );
        }
        if self.is_refused(ask) {
            return (Fate::Fails(Trouble::new("bad credentials")), takes);
        }
        if (self.weather.api_down && self.is_stormy()) || self.strikes(failed) {
            return (Fate::Fails(Trouble::new("bad gateway")), takes);
        }
        if self.strikes(lost) {
            return (Fate::AnswerLost(Trouble::new("connection reset")), takes);
        }
        if self.strikes(late) {
            return (Fate::Late(Trouble::new("timeout")), 10 * SECOND);
        }
        (Fate::Works, takes)
    }

    /// Whether the token that belongs to this request is refused.
    fn is_refused(&self, ask: &Ask) -> bool {
        let Some(refused) = self.weather.token_refused else { return false };
        let place = |runner| self.host.runs.get(runner).map(|run| run.machine);
        let asked = match ask {
            Ask::Register(_, machine) => Some(*machine),
            Ask::Deregister(runner, _) | Ask::RemoveOrphan(runner) => place(runner),
            Ask::Poll(repository, _) | Ask::Job(repository, _) => {
                self.plan.machines.iter().position(|m| m.name.repository() == repository)
            }
            Ask::Redeliver => None,
        };
        let owner = |machine: usize| self.plan.machines[machine].name.repository().owner();
        asked.is_some_and(|asked| owner(asked) == owner(refused))
    }

    /// A request reaches GitHub.
    pub(super) fn reach_github(&mut self, request: Request) -> Result<(), Broken> {
        // A request of a daemon that is gone may have been sent before its end, or not.
        if request.epoch != self.epoch && self.random.chance(0.5) {
            return Ok(());
        }
        let Request { epoch, ask, fate, answer_at, asked_at } = request;
        // Its answer is heard by nobody. The present daemon may have looked for the runner before.
        if let (true, Ask::Register(runner, _)) = (epoch != self.epoch, &ask) {
            self.checker.late_registration(runner);
        }
        let trouble = match &fate {
            Fate::Works => None,
            Fate::Fails(trouble) | Fate::AnswerLost(trouble) | Fate::Late(trouble) => {
                Some(trouble.clone())
            }
        };
        let takes_effect = !matches!(fate, Fate::Fails(_));
        let answer_at = answer_at.max(self.now);
        match ask {
            Ask::Register(runner, machine) => {
                let lag = self.random.spread(1, 20 * SECOND);
                let lag = if self.random.chance(0.8) { 0 } else { lag };
                let id = takes_effect
                    .then(|| self.github.register(&runner, machine, self.now + lag))
                    .flatten();
                self.note(|_| format!("github: registers {runner}: {id:?} ({fate:?})"));
                let result = match (trouble, id) {
                    (None, Some(id)) => Ok(id),
                    (None, None) => Err(RegisterTrouble::Unknown(Trouble::new("name exists"))),
                    (Some(trouble), _) if matches!(fate, Fate::Fails(_)) && answer_at % 2 == 0 => {
                        Err(RegisterTrouble::Refused(trouble))
                    }
                    (Some(trouble), _) => Err(RegisterTrouble::Unknown(trouble)),
                };
                self.answer(epoch, answer_at, runner, RunEvent::Registered(result));
            }
            Ask::Deregister(runner, id) => {
                let result = if takes_effect { Ok(self.deregister(&runner, id)) } else { Err(()) };
                self.note(|_| format!("github: removes {runner}: {result:?} ({fate:?})"));
                let result = match (trouble, result) {
                    (None, Ok(result)) => Ok(result),
                    (trouble, _) => Err(trouble.unwrap_or(Trouble::new("no answer"))),
                };
                self.answer(epoch, answer_at, runner, RunEvent::Deregistered(result));
            }
            Ask::RemoveOrphan(runner) => {
                if takes_effect {
                    self.deregister(&runner, None);
                }
            }
            Ask::Poll(repository, known) => {
                self.answer_poll(epoch, answer_at, asked_at, repository, known, trouble);
            }
            Ask::Job(repository, job) => {
                if trouble.is_none() {
                    let event = self.job_event(&repository, job, asked_at);
                    self.at(answer_at, Action::Tell(epoch, Box::new(event)));
                }
            }
            Ask::Redeliver => {
                let count = if takes_effect { self.redeliver() } else { 0 };
                let result = trouble.map_or(Ok(count), Err);
                let event = Event::DeliveriesRepaired(result);
                self.at(answer_at, Action::Tell(epoch, Box::new(event)));
            }
        }
        Ok(())
    }

    fn answer(&mut self, epoch: u32, at: u64, runner: RunnerName, event: RunEvent) {
        self.at(at, Action::Tell(epoch, Box::new(Event::Run { runner, event })));
    }

    fn deregister(&mut self, runner: &RunnerName, id: Option<RunnerId>) -> Deregistration {
        match self.github.runners.get(runner) {
            Some(entry) if id.is_none_or(|id| id == entry.id) => {
                if entry.job.is_some() {
                    return Deregistration::Busy;
                }
            }
            Some(_) | None => return Deregistration::AlreadyGone,
        }
        self.github.runners.remove(runner);
        self.runner_is_unknown(runner);
        Deregistration::Removed
    }

    fn job_event(&self, repository: &Repository, job: JobId, asked_at: Timestamp) -> Event {
        let in_progress = self.plan.assigned_is_in_progress;
        match self.github.report(job, &self.plan.machines, in_progress) {
            Some(job) => Event::JobReported { job, source: Source::Asked(asked_at) },
            None => Event::JobMissing { repository: repository.clone(), job, asked_at },
        }
    }

    fn answer_poll(
        &mut self,
        epoch: u32,
        answer_at: u64,
        asked_at: Timestamp,
        repository: Repository,
        known: Vec<JobId>,
        trouble: Option<Trouble>,
    ) {
        let of_repository = |world: &Self, id: &JobId| {
            let job = world.github.jobs.get(id);
            job.is_some_and(|job| *world.plan.machines[job.machine].name.repository() == repository)
        };
        let mut jobs: Vec<JobId> =
            self.github.open.iter().filter(|id| of_repository(self, id)).copied().collect();
        let open = jobs.len();
        jobs.extend(known.into_iter().filter(|id| !self.github.open.contains(id)));
        if trouble.is_some() {
            // It fails somewhere on its way through the pages.
            jobs.truncate(self.random.between(0, open as u64) as usize);
        }
        for job in jobs {
            let event = self.job_event(&repository, job, asked_at);
            self.at(answer_at, Action::Tell(epoch, Box::new(event)));
        }
        let mut runners = self.github.list(self.now, &repository, &self.plan.machines);
        if !runners.is_empty() && self.strikes(self.plan.faults.list_incomplete) {
            let missed = self.random.between(0, runners.len() as u64 - 1) as usize;
            runners.remove(missed);
        }
        let result = trouble.map_or(Ok(runners), Err);
        let event = Event::Polled { repository, result, asked_at };
        self.at(answer_at, Action::Tell(epoch, Box::new(event)));
    }
}
