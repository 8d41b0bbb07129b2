//! A small language for stories about the core: what happens, and what has to be done about it.
//!
//! Every event is followed by [`check`], so each story also tests what must always hold.

use std::collections::BTreeMap;
use std::time::Duration;

use forrest_core::check::check;
use forrest_core::event::{
    AdoptedRun, AdoptedVm, Deregistration, EndReason, Persist, RegisterTrouble, Runner, Source,
    Trouble, VmEnd,
};
use forrest_core::model::*;
use forrest_core::view::Waiting;
use forrest_core::{Capacity, Command, Core, Event, Level, Note, Policy, RunEvent, Timing};

pub const SECOND: Duration = Duration::from_secs(1);
pub const MINUTE: Duration = Duration::from_secs(60);
pub const HOUR: Duration = Duration::from_secs(60 * 60);

/// A core with its surroundings.
pub struct World {
    pub core: Core,
    pub now: Timestamp,
    pub policy: Policy,
    /// What the core wants done and no story has looked at yet; notes left out.
    pub commands: Vec<Command>,
    /// What the log says that no story has looked at yet.
    pub notes: Vec<Note>,
}

pub fn machine_name(text: &str) -> MachineTypeName {
    let text = if text.contains('/') { text.to_owned() } else { format!("o/r/{text}") };
    text.parse().expect("a sound name")
}

pub fn trouble() -> Trouble {
    Trouble::new("it rains")
}

pub fn src() -> StartImage {
    StartImage {
        image: ImageRef::Src { path: "/debian.img".into() },
        made_at: Timestamp::default(),
    }
}

pub fn generation(machine: &str, number: u32) -> StartImage {
    let image =
        ImageRef::Machine { machine: machine_name(machine), generation: Generation(number) };
    StartImage { image, made_at: Timestamp::default() }
}

// Kinds of commands.

pub fn deregister(c: &Command) -> bool {
    matches!(c, Command::Deregister { .. })
}

pub fn discard(c: &Command) -> bool {
    matches!(c, Command::Discard { .. })
}

pub fn promote(c: &Command) -> bool {
    matches!(c, Command::Promote { .. })
}

pub fn kill(c: &Command) -> bool {
    matches!(c, Command::Kill { .. })
}

pub fn poll(c: &Command) -> bool {
    matches!(c, Command::Poll { .. })
}

/// What the machine type's jobs wait for.
pub fn waits_for(world: &World, machine: &str) -> Option<Waiting> {
    let view = world.core.view(world.now);
    let found = view.machines.into_iter().find(|m| m.name == machine_name(machine));
    found.expect("the machine type is there").waiting
}

/// GitHub's id of a runner, from its name.
pub fn id_of(runner: &RunnerName) -> RunnerId {
    RunnerId(runner.as_str().bytes().fold(7, |sum, b| sum * 31 % 1_000_003 + u64::from(b)))
}

impl World {
    /// 16 GiB of RAM, and machine types of that many GiB each: `("build", 4)` is `o/r/build`.
    pub fn new(machines: &[(&str, u64)]) -> Self {
        let mut policy = Policy {
            capacity: Capacity { ram: Bytes::gib(16), cpus: None, min_free_disk: Bytes::gib(1) },
            machines: BTreeMap::new(),
            max_runs: BTreeMap::new(),
            timing: Timing::default(),
        };
        for (name, ram) in machines {
            let name = machine_name(name);
            let labels = ["self-hosted", "forrest", name.machine()].into_iter().collect();
            let machine = MachineType {
                name: name.clone(),
                labels,
                base_machine: None,
                ram: Bytes::gib(*ram),
                cpus: 2,
                disk: Bytes::gib(10),
                max_runs: None,
                boot_timeout: 2 * MINUTE,
                idle_timeout: std::time::Duration::from_secs(300),
                job_timeout: None,
                snapshot: false,
            };
            policy.machines.insert(name, machine);
        }
        let core = Core::new(policy.clone(), 1);
        let now = Timestamp(1_000_000_000);
        let mut world = Self { core, now, policy, commands: Vec::new(), notes: Vec::new() };
        world.configure(|_| {});
        for repository in world.policy.repositories() {
            world.expect(|c| matches!(c, Command::Poll { .. }));
            world.polled_in(&repository, &[]);
        }
        world
    }

    /// Changes the configuration.
    pub fn configure(&mut self, change: impl FnOnce(&mut Policy)) {
        change(&mut self.policy);
        self.event(Event::PolicyChanged(self.policy.clone()));
    }

    /// Changes one machine type.
    pub fn configure_machine(&mut self, machine: &str, change: impl FnOnce(&mut MachineType)) {
        self.configure(|policy| {
            change(policy.machines.get_mut(&machine_name(machine)).expect("the machine type"));
        });
    }

    pub fn event(&mut self, event: Event) {
        let mut out = Vec::new();
        self.core.handle(self.now, event, &mut out);
        check(&self.core).expect("what must always hold");
        for command in out {
            match command {
                Command::Note(note) => self.notes.push(note),
                command => self.commands.push(command),
            }
        }
    }

    pub fn run_event(&mut self, runner: &RunnerName, event: RunEvent) {
        self.event(Event::Run { runner: runner.clone(), event });
    }

    /// Lets time pass; every deadline is met on its way.
    pub fn after(&mut self, duration: Duration) {
        let end = self.now + duration;
        while let Some(next) = self.core.next_deadline().filter(|next| *next <= end) {
            self.now = self.now.max(next);
            self.event(Event::Tick);
        }
        self.now = end;
    }

    // Jobs.

    pub fn job(&self, id: u64, machine: &str, status: JobStatus) -> Job {
        let machine = machine_name(machine);
        Job {
            id: JobId(id),
            repository: machine.repository().clone(),
            workflow_run: WorkflowRunId(id / 100),
            run_attempt: 1,
            status,
            conclusion: None,
            labels: ["self-hosted", "forrest", machine.machine()].into_iter().collect(),
            runner: None,
            name: Some(format!("job {id}")),
            workflow_name: None,
            head_branch: None,
            head_sha: None,
            created_at: Some(self.now),
        }
    }

    pub fn report(&mut self, job: Job, source: Source) {
        self.event(Event::JobReported { job, source });
    }

    pub fn job_queued(&mut self, id: u64, machine: &str) {
        let job = self.job(id, machine, JobStatus::Queued);
        self.report(job, Source::Webhook);
    }

    pub fn job_in_progress(&mut self, id: u64, machine: &str, runner: &RunnerName) {
        let job =
            Job { runner: Some(runner.clone()), ..self.job(id, machine, JobStatus::InProgress) };
        self.report(job, Source::Webhook);
    }

    pub fn job_completed(
        &mut self,
        id: u64,
        machine: &str,
        runner: Option<&RunnerName>,
        how: Conclusion,
    ) {
        let job = Job {
            runner: runner.cloned(),
            conclusion: Some(how),
            ..self.job(id, machine, JobStatus::Completed)
        };
        self.report(job, Source::Webhook);
    }

    // Polls.

    /// GitHub answers a poll that was asked just now.
    pub fn polled(&mut self, runners: &[Runner]) {
        let repository = machine_name("x").repository().clone();
        self.polled_in(&repository, runners);
    }

    pub fn polled_in(&mut self, repository: &Repository, runners: &[Runner]) {
        let (repository, result, asked_at) = (repository.clone(), Ok(runners.to_vec()), self.now);
        self.event(Event::Polled { repository, result, asked_at });
    }

    pub fn poll_failed(&mut self, trouble: Trouble) {
        let repository = machine_name("x").repository().clone();
        self.event(Event::Polled { repository, result: Err(trouble), asked_at: self.now });
    }

    // Runs.

    /// The run that was begun last: its `Prepare` and `Register` are taken out.
    pub fn begun(&mut self) -> RunnerName {
        let command = self.expect(|c| matches!(c, Command::Prepare { .. }));
        let Command::Prepare { runner, .. } = command else { unreachable!("just matched") };
        self.expect(|c| matches!(c, Command::Register { runner: r, .. } if *r == runner));
        runner
    }

    /// A job is queued and its run comes as far as a started virtual machine.
    pub fn booting(&mut self, id: u64, machine: &str) -> RunnerName {
        self.job_queued(id, machine);
        let runner = self.begun();
        self.boots(&runner, src());
        runner
    }

    pub fn boots(&mut self, runner: &RunnerName, image: StartImage) {
        self.prepared(runner, image);
        self.run_event(runner, RunEvent::VmStarted { restored: false });
    }

    /// Its disk and its registration are there.
    pub fn prepared(&mut self, runner: &RunnerName, image: StartImage) {
        self.run_event(runner, RunEvent::Prepared(Ok(image)));
        self.run_event(runner, RunEvent::Registered(Ok(id_of(runner))));
        self.expect(|c| matches!(c, Command::StartVm { .. }));
    }

    /// ... as far as a runner that waits for a job.
    pub fn idle(&mut self, id: u64, machine: &str) -> RunnerName {
        let runner = self.booting(id, machine);
        self.run_event(&runner, RunEvent::GuestReady);
        runner
    }

    /// ... as far as a running job.
    pub fn busy(&mut self, id: u64, machine: &str) -> RunnerName {
        let runner = self.idle(id, machine);
        self.job_in_progress(id, machine, &runner);
        self.expect(|c| matches!(c, Command::RecordJob { .. }));
        runner
    }

    /// ... as far as a finished job whose guest is about to shut down.
    pub fn finishing(&mut self, id: u64, machine: &str, how: Conclusion) -> RunnerName {
        let runner = self.busy(id, machine);
        self.job_completed(id, machine, Some(&runner), how);
        self.expect(|c| matches!(c, Command::RecordJob { .. }));
        runner
    }

    pub fn exits(&mut self, runner: &RunnerName, reason: EndReason) {
        let end = VmEnd { reason, detail: None, at: self.now };
        self.run_event(runner, RunEvent::VmExited(end));
    }

    pub fn deregistered(&mut self, runner: &RunnerName, how: Deregistration) {
        self.run_event(runner, RunEvent::Deregistered(Ok(how)));
    }

    pub fn refused(&mut self, runner: &RunnerName) {
        let error = RegisterTrouble::Refused(trouble());
        self.run_event(runner, RunEvent::Registered(Err(error)));
    }

    pub fn read_back(&mut self, runner: &RunnerName, persist: Persist) {
        self.run_event(runner, RunEvent::ReadBack(Ok(persist)));
    }

    pub fn listed(&self, runner: &RunnerName, busy: bool) -> Runner {
        Runner { id: id_of(runner), name: runner.clone(), online: true, busy }
    }

    pub fn adopted(
        &mut self,
        runner: &str,
        machine: &str,
        vm: AdoptedVm,
        job: Option<u64>,
    ) -> RunnerName {
        let runner: RunnerName = runner.parse().expect("a sound name");
        self.event(Event::Adopted(Box::new(AdoptedRun {
            runner: runner.clone(),
            machine: machine_name(machine),
            ram: Bytes::gib(4),
            cpus: 2,
            disk: Bytes::gib(10),
            created_at: self.now,
            vm,
            job: job.map(JobId),
        })));
        runner
    }

    pub fn live(runner: &str) -> AdoptedVm {
        let runner: RunnerName = runner.parse().expect("a sound name");
        AdoptedVm::Live { runner_id: id_of(&runner), image: src(), restored: false, ready: true }
    }

    /// The job that the run is known to have, or to have had.
    pub fn job_of(&self, runner: &RunnerName) -> Option<JobId> {
        self.core.runs().get(runner).and_then(|run| run.job())
    }

    // What people are told.

    /// The log has a line of at least this weight with these words; what came before it is forgotten.
    #[track_caller]
    pub fn expect_note(&mut self, level: Level, words: &str) {
        let found = |note: &Note| note.level >= level && note.text.contains(words);
        match self.notes.iter().position(found) {
            Some(index) => drop(self.notes.drain(..=index)),
            None => panic!("nobody says {words:?}: {:#?}", self.notes),
        }
    }

    /// What the log says, word for word, in this weight and since somebody asked last.
    pub fn said(&mut self, level: Level) -> Vec<String> {
        let notes = std::mem::take(&mut self.notes);
        notes.into_iter().filter(|note| note.level == level).map(|note| note.text).collect()
    }

    // What the core wants.

    /// The command has to be among those that no story has looked at; it is taken out.
    #[track_caller]
    pub fn expect(&mut self, wanted: impl Fn(&Command) -> bool) -> Command {
        match self.commands.iter().position(wanted) {
            Some(index) => self.commands.remove(index),
            None => panic!("not among the commands: {:#?}", self.commands),
        }
    }

    #[track_caller]
    pub fn expect_none(&self, unwanted: impl Fn(&Command) -> bool) {
        if let Some(command) = self.commands.iter().find(|c| unwanted(c)) {
            panic!("unwanted: {command:?}");
        }
    }

    #[track_caller]
    pub fn expect_deregister(&mut self, runner: &RunnerName) {
        self.expect(|c| matches!(c, Command::Deregister { runner: r, .. } if r == runner));
    }

    #[track_caller]
    pub fn expect_kill(&mut self, runner: &RunnerName) {
        self.expect(|c| matches!(c, Command::Kill { runner: r, .. } if r == runner));
    }

    #[track_caller]
    pub fn expect_power_down(&mut self, runner: &RunnerName) {
        self.expect(|c| matches!(c, Command::PowerDown { runner: r } if r == runner));
    }

    /// Nothing that stops a guest was wanted.
    #[track_caller]
    pub fn expect_unharmed(&self) {
        self.expect_none(|c| matches!(c, Command::Kill { .. } | Command::PowerDown { .. }));
    }

    /// No run was begun.
    #[track_caller]
    pub fn expect_no_run(&self) {
        self.expect_none(|c| matches!(c, Command::Prepare { .. }));
    }

    /// How many commands of a kind were wanted; they are taken out.
    pub fn count(&mut self, wanted: impl Fn(&Command) -> bool) -> usize {
        let before = self.commands.len();
        self.commands.retain(|c| !wanted(c));
        before - self.commands.len()
    }

    pub fn forget_commands(&mut self) {
        self.commands.clear();
    }

    #[track_caller]
    pub fn is(&self, runner: &RunnerName, state: &str) {
        let run = self.core.runs().get(runner).expect("the run is there");
        assert_eq!(run.state_name(), state, "{:?}", run.state);
    }
}
