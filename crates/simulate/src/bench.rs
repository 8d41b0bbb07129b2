//! How fast the core is.

use std::time::{Duration, Instant};

use forrest_core::event::{Deregistration, EndReason, Persist, Source, VmEnd};
use forrest_core::model::{
    Bytes, Conclusion, ImageRef, Job, JobId, JobStatus, MachineType, MachineTypeName, RunnerId,
    RunnerName, StartImage, Timestamp, WorkflowRunId,
};
use forrest_core::{Capacity, Command, Core, Event, Policy, RunEvent};
use serde::Serialize;

/// Machine types in the measured world, in ten repositories; one in five is based on another.
const MACHINES: usize = 20;
/// Runs that fit on the host.
const RUNS: u64 = 500;
/// Jobs that still wait after the scheduling pass that is measured.
const QUEUED: u64 = 10_000;
/// How often it is measured.
const PASSES: usize = 11;

/// What was measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Figures {
    /// Events a second that the core takes in: whole lives of runs, on a full host with jobs waiting.
    pub core_events_per_s: f64,
    /// Milliseconds that a scheduling pass over 10,500 queued jobs takes which begins 500 runs: the median.
    pub schedule_10k_ms: f64,
}

/// Measures both; takes some seconds.
pub fn measure() -> Figures {
    Figures { core_events_per_s: events_per_second(), schedule_10k_ms: scheduling_pass_ms() }
}

fn name(index: usize) -> MachineTypeName {
    let text = format!("owner/repository-{}/machine-{index}", index % 10);
    text.parse().unwrap_or_else(|_| unreachable!("a sound name"))
}

fn policy() -> Policy {
    let machine = |index: usize| {
        let name = name(index);
        MachineType {
            labels: ["self-hosted", "forrest", name.machine()].into_iter().collect(),
            base_machine: (index % 5 == 4).then(|| self::name(index - 1)),
            ram: Bytes::gib(1 + (index % 3) as u64),
            cpus: 2,
            disk: Bytes::gib(10),
            max_runs: None,
            boot_timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(5 * 60),
            job_timeout: None,
            snapshot: false,
            name,
        }
    };
    Policy {
        capacity: Capacity { ram: Bytes::gib(2 * RUNS + 100), cpus: None, ..Capacity::default() },
        machines: (0..MACHINES).map(|index| (name(index), machine(index))).collect(),
        ..Policy::default()
    }
}

/// A core, and what has to be done for it.
struct Bench {
    core: Core,
    now: u64,
    events: u64,
    /// Time spent in the core; making up the events does not count.
    spent: Duration,
    next_job: u64,
    next_runner: u64,
    commands: Vec<Command>,
    /// Ready runners without a job.
    idle: Vec<(RunnerName, usize)>,
    /// Runners with their jobs.
    busy: std::collections::VecDeque<(RunnerName, JobId, usize)>,
}

impl Bench {
    fn new() -> Self {
        let mut bench = Self {
            core: Core::new(policy(), 1),
            now: 1_000_000,
            events: 0,
            spent: Duration::ZERO,
            next_job: 0,
            next_runner: 0,
            commands: Vec::new(),
            idle: Vec::new(),
            busy: std::collections::VecDeque::new(),
        };
        bench.event(Event::PolicyChanged(policy()));
        bench
    }

    fn event(&mut self, event: Event) {
        self.now += 1;
        self.events += 1;
        let began = Instant::now();
        self.core.handle(Timestamp(self.now), event, &mut self.commands);
        self.spent += began.elapsed();
    }

    fn job(&self, id: JobId, machine: usize, status: JobStatus, on: Option<&RunnerName>) -> Event {
        let machine = name(machine);
        let job = Job {
            id,
            repository: machine.repository().clone(),
            workflow_run: WorkflowRunId(id.0 / 10),
            run_attempt: 1,
            status,
            conclusion: (status == JobStatus::Completed).then_some(Conclusion::Success),
            labels: ["self-hosted", "forrest", machine.machine()].into_iter().collect(),
            runner: on.cloned(),
            name: Some("build".into()),
            workflow_name: Some("ci".into()),
            head_branch: Some("main".into()),
            head_sha: Some("0123456789abcdef0123456789abcdef01234567".into()),
            created_at: Some(Timestamp(self.now)),
        };
        Event::JobReported { job, source: Source::Webhook }
    }

    fn queue(&mut self) {
        self.next_job += 1;
        let id = JobId(self.next_job);
        let machine = self.next_job as usize % MACHINES;
        self.event(self.job(id, machine, JobStatus::Queued, None));
    }

    /// Carries out what the core wants, as a host that always succeeds at once.
    fn carry_out(&mut self) {
        let image = StartImage {
            image: ImageRef::Src { path: "/debian.img".into() },
            made_at: Timestamp(1),
        };
        while !self.commands.is_empty() {
            for command in std::mem::take(&mut self.commands) {
                match command {
                    Command::Prepare { runner, .. } => {
                        let event = RunEvent::Prepared(Ok(image.clone()));
                        self.event(Event::Run { runner, event });
                    }
                    Command::Register { runner, .. } => {
                        self.next_runner += 1;
                        let event = RunEvent::Registered(Ok(RunnerId(self.next_runner)));
                        self.event(Event::Run { runner, event });
                    }
                    Command::StartVm { runner, .. } => {
                        let started = RunEvent::VmStarted { restored: true };
                        self.event(Event::Run { runner: runner.clone(), event: started });
                        let event = RunEvent::GuestReady;
                        self.event(Event::Run { runner: runner.clone(), event });
                        let machine = runner.machine().rsplit('-').next();
                        let machine = machine.and_then(|number| number.parse().ok());
                        self.idle.push((runner, machine.unwrap_or_default()));
                    }
                    Command::Deregister { runner, .. } => {
                        let event = RunEvent::Deregistered(Ok(Deregistration::AlreadyGone));
                        self.event(Event::Run { runner, event });
                    }
                    Command::ReadBack { runner, .. } => {
                        let event = RunEvent::ReadBack(Ok(Persist::Absent));
                        self.event(Event::Run { runner, event });
                    }
                    Command::Discard { runner, .. } => {
                        self.event(Event::Run { runner, event: RunEvent::Discarded(Ok(())) });
                    }
                    Command::Poll { repository, .. } => {
                        let (result, asked_at) = (Ok(Vec::new()), Timestamp(self.now));
                        self.event(Event::Polled { repository, result, asked_at });
                    }
                    _ => {}
                }
            }
        }
    }

    /// Idle runners get jobs.
    fn assign(&mut self) {
        for (runner, machine) in std::mem::take(&mut self.idle) {
            let first = self.core.jobs().queued(&name(machine)).next();
            let Some((_, job)) = first else {
                self.idle.push((runner, machine));
                continue;
            };
            self.event(self.job(job, machine, JobStatus::InProgress, Some(&runner)));
            self.busy.push_back((runner, job, machine));
        }
    }

    /// The oldest running job ends, and its guest with it.
    fn finish_one(&mut self) {
        let Some((runner, job, machine)) = self.busy.pop_front() else { return };
        self.event(self.job(job, machine, JobStatus::Completed, Some(&runner)));
        let end = VmEnd { reason: EndReason::GuestShutdown, detail: None, at: Timestamp(self.now) };
        self.event(Event::Run { runner, event: RunEvent::VmExited(end) });
    }

    fn fill(&mut self, queued: u64) {
        for _ in 0..RUNS + queued {
            self.queue();
            self.carry_out();
            self.assign();
            self.commands.clear();
        }
    }
}

/// Only batches of less than a millisecond in which this thread kept its CPU count: other processes' work is
/// not the core's.
fn events_per_second() -> f64 {
    let mut bench = Bench::new();
    bench.fill(500);
    let (mut events, mut spent) = (0, Duration::ZERO);
    let began = Instant::now();
    while spent < Duration::from_secs(1) && began.elapsed() < Duration::from_secs(20) {
        (bench.events, bench.spent) = (0, Duration::ZERO);
        let turns = turns_on_cpu();
        for _ in 0..10 {
            bench.finish_one();
            bench.queue();
            bench.carry_out();
            bench.assign();
        }
        if turns == turns_on_cpu() {
            events += bench.events;
            spent += bench.spent;
        }
    }
    events as f64 / spent.as_secs_f64()
}

/// How often this thread was given a CPU: the third figure of `proc_pid_schedstat(5)`. `None` where
/// the kernel does not count it.
fn turns_on_cpu() -> Option<u64> {
    let figures = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    figures.split_whitespace().nth(2)?.parse().ok()
}

/// The longest pass there is: all jobs wait, the host is empty, and as many runs begin as fit on it.
fn scheduling_pass_ms() -> f64 {
    let mut passes: Vec<f64> = (0..PASSES)
        .map(|_| {
            let mut bench = Bench::new();
            // Room for exactly so many, whichever they are.
            let mut policy = policy();
            policy.capacity.ram = Bytes::gib(10 * RUNS);
            policy.capacity.cpus = Some(2 * RUNS as u32);
            bench.event(Event::PolicyChanged(policy));
            bench.event(Event::DrainRequested(true));
            for _ in 0..RUNS + QUEUED {
                bench.queue();
            }
            // No run is begun before GitHub was heard of.
            bench.carry_out();
            bench.spent = Duration::ZERO;
            bench.event(Event::DrainRequested(false));
            let is_start = |command: &&Command| matches!(command, Command::Prepare { .. });
            let started = bench.commands.iter().filter(is_start).count() as u64;
            assert_eq!(started, RUNS, "runs began in the pass that is measured");
            bench.spent.as_secs_f64() * 1000.0
        })
        .collect();
    passes.sort_by(f64::total_cmp);
    passes[passes.len() / 2]
}
