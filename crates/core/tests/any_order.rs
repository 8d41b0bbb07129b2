//! Whatever comes, in whatever order: the core never panics, what must always hold always holds, and
//! equal histories lead to equal decisions.

use std::collections::BTreeMap;
use std::time::Duration;

use forrest_core::check::check;
use forrest_core::event::{
    AdoptedRun, AdoptedVm, Deregistration, EndReason, Persist, RegisterTrouble, Runner, Source,
    Trouble, VmEnd,
};
use forrest_core::model::*;
use forrest_core::snapshots::BuildTrouble;
use forrest_core::{Capacity, Command, Core, Event, Policy, RunEvent, Timing};
use proptest::collection::vec;
use proptest::prelude::*;

const MACHINES: [&str; 4] = ["o/r/base", "o/r/derived", "o/s/large", "p/q/small"];

fn machine_name(index: usize) -> MachineTypeName {
    MACHINES[index % MACHINES.len()].parse().expect("a sound name")
}

fn policy(present: [bool; 4], capacity: Capacity, quick: bool) -> Policy {
    let machine = |index: usize| {
        let name = machine_name(index);
        MachineType {
            labels: ["self-hosted", "forrest", name.machine()].into_iter().collect(),
            base_machine: (index == 1).then(|| machine_name(0)),
            ram: Bytes::gib([2, 2, 6, 1][index]),
            cpus: 2,
            disk: Bytes::gib(4),
            max_runs: (index == 3).then_some(3),
            boot_timeout: Duration::from_secs(120),
            idle_timeout: Duration::from_secs(if quick { 0 } else { 300 }),
            job_timeout: (index == 2).then_some(Duration::from_secs(3600)),
            snapshot: index == 3,
            name,
        }
    };
    let timing = if quick {
        Timing {
            polling_interval: Duration::ZERO,
            max_overtake: Duration::ZERO,
            idle_timeout: Duration::ZERO,
        }
    } else {
        Timing::default()
    };
    Policy {
        capacity,
        machines: (0..4)
            .filter(|index| present[*index])
            .map(|index| (machine_name(index), machine(index)))
            .collect(),
        max_runs: BTreeMap::from([("p/q".parse().expect("a sound name"), 4)]),
        timing,
    }
}

/// One step: most runs are addressed by their place in the table, so that they are hit often.
#[derive(Debug, Clone)]
enum Step {
    Job {
        id: u64,
        machine: usize,
        status: u8,
        on: Option<usize>,
        asked: Option<u64>,
    },
    Missing {
        id: u64,
        machine: usize,
    },
    Polled {
        machine: usize,
        ok: bool,
        listed: u8,
        ago: u64,
    },
    Run {
        run: usize,
        event: RunEvent,
    },
    Stop {
        run: usize,
    },
    Adopt {
        name: u64,
        machine: usize,
        vm: u8,
        job: Option<u64>,
    },
    Policy {
        present: [bool; 4],
        ram: u64,
        quick: bool,
    },
    Measured {
        free: u64,
    },
    Drain(bool),
    Snapshot {
        machine: usize,
        what: u8,
    },
    Repaired(bool),
    Later(u64),
    Earlier(u64),
    /// To the next deadline.
    Due,
    /// The event before once more.
    Again,
}

fn trouble() -> impl Strategy<Value = Trouble> {
    proptest::option::of(prop_oneof![Just(u64::MAX), 0..2_000_000_000_u64])
        .prop_map(|at| Trouble { what: "it rains".into(), not_before: at.map(Timestamp) })
}

fn end_reason() -> impl Strategy<Value = EndReason> {
    prop_oneof![
        4 => Just(EndReason::GuestShutdown),
        1 => Just(EndReason::GuestPanicked),
        1 => Just(EndReason::Killed),
        1 => Just(EndReason::BootTimeout),
        1 => Just(EndReason::RestoreFailed),
        1 => Just(EndReason::SupervisorLost),
    ]
}

fn image() -> impl Strategy<Value = StartImage> {
    prop_oneof![
        Just(ImageRef::Src { path: "/src.img".into() }),
        (0..4_usize, 1..3_u32).prop_map(|(machine, generation)| ImageRef::Machine {
            machine: machine_name(machine),
            generation: Generation(generation),
        }),
    ]
    .prop_map(|image| StartImage { image, made_at: Timestamp(1) })
}

fn run_event() -> impl Strategy<Value = RunEvent> {
    let deregistration = prop_oneof![
        Just(Deregistration::Removed),
        Just(Deregistration::AlreadyGone),
        Just(Deregistration::Busy),
    ];
    let persist = prop_oneof![
        3 => Just(Persist::Valid),
        1 => Just(Persist::Absent),
        1 => Just(Persist::WrongToken),
        1 => Just(Persist::Damaged),
    ];
    prop_oneof![
        4 => image().prop_map(|image| RunEvent::Prepared(Ok(image))),
        1 => trouble().prop_map(|trouble| RunEvent::Prepared(Err(trouble))),
        4 => (1..50_u64).prop_map(|id| RunEvent::Registered(Ok(RunnerId(id)))),
        1 => trouble().prop_map(|t| RunEvent::Registered(Err(RegisterTrouble::Refused(t)))),
        1 => trouble().prop_map(|t| RunEvent::Registered(Err(RegisterTrouble::Unknown(t)))),
        4 => deregistration.prop_map(|answer| RunEvent::Deregistered(Ok(answer))),
        1 => trouble().prop_map(|trouble| RunEvent::Deregistered(Err(trouble))),
        3 => any::<bool>().prop_map(|restored| RunEvent::VmStarted { restored }),
        1 => trouble().prop_map(RunEvent::StartFailed),
        3 => Just(RunEvent::GuestReady),
        1 => Just(RunEvent::RunnerStarted),
        1 => Just(RunEvent::GuestError("no network".into())),
        1 => Just(RunEvent::Paused("disk full".into())),
        1 => Just(RunEvent::Resumed),
        3 => end_reason().prop_map(|reason| RunEvent::VmExited(VmEnd {
            reason,
            detail: None,
            at: Timestamp(5),
        })),
        3 => persist.prop_map(|persist| RunEvent::ReadBack(Ok(persist))),
        1 => trouble().prop_map(|trouble| RunEvent::ReadBack(Err(trouble))),
        2 => (1..9_u32).prop_map(|number| RunEvent::Promoted(Ok(Generation(number)))),
        1 => trouble().prop_map(|trouble| RunEvent::Promoted(Err(trouble))),
        1 => Just(RunEvent::PromotionRefused("not this branch".into())),
        3 => Just(RunEvent::Discarded(Ok(()))),
        1 => trouble().prop_map(|trouble| RunEvent::Discarded(Err(trouble))),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let some_run = 0..24_usize;
    let some_job = 0..24_u64;
    let some_machine = 0..4_usize;
    prop_oneof![
        8 => (
            some_job.clone(),
            some_machine.clone(),
            0..6_u8,
            proptest::option::of(some_run.clone()),
            proptest::option::of(prop_oneof![3 => Just(0_u64), 1 => 0..600_000_u64]),
        )
            .prop_map(|(id, machine, status, on, asked)| Step::Job {
                id, machine, status, on, asked
            }),
        1 => (some_job.clone(), some_machine.clone())
            .prop_map(|(id, machine)| Step::Missing { id, machine }),
        3 => (some_machine.clone(), any::<bool>(), any::<u8>(), 0..300_000_u64)
            .prop_map(|(machine, ok, listed, ago)| Step::Polled { machine, ok, listed, ago }),
        20 => (some_run.clone(), run_event()).prop_map(|(run, event)| Step::Run { run, event }),
        1 => some_run.prop_map(|run| Step::Stop { run }),
        1 => (0..5_u64, some_machine.clone(), 0..5_u8, proptest::option::of(some_job))
            .prop_map(|(name, machine, vm, job)| Step::Adopt { name, machine, vm, job }),
        1 => (any::<[bool; 4]>(), 0..20_u64, any::<bool>())
            .prop_map(|(present, ram, quick)| Step::Policy { present, ram, quick }),
        1 => (0..40_u64).prop_map(|free| Step::Measured { free }),
        1 => any::<bool>().prop_map(Step::Drain),
        2 => (some_machine, 0..5_u8).prop_map(|(machine, what)| Step::Snapshot { machine, what }),
        1 => any::<bool>().prop_map(Step::Repaired),
        3 => (0..900_000_u64).prop_map(Step::Later),
        1 => (0..90_000_000_u64).prop_map(Step::Earlier),
        6 => Just(Step::Due),
        2 => Just(Step::Again),
    ]
}

/// A core under arbitrary events.
struct World {
    core: Core,
    now: Timestamp,
    last: Event,
    commands: Vec<Command>,
}

impl World {
    fn new(seed: u64) -> Self {
        let capacity =
            Capacity { ram: Bytes::gib(12), cpus: Some(16), min_free_disk: Bytes::gib(1) };
        let policy = policy([true; 4], capacity, false);
        let core = Core::new(policy.clone(), seed);
        let mut world =
            Self { core, now: Timestamp(1_000_000_000), last: Event::Tick, commands: Vec::new() };
        world.handle(Event::PolicyChanged(policy));
        world
    }

    fn run(&self, place: usize) -> Option<RunnerName> {
        let count = self.core.runs().len();
        let run = self.core.runs().iter().nth(place % count.max(1))?;
        Some(run.runner.clone())
    }

    fn handle(&mut self, event: Event) {
        self.last = event.clone();
        self.core.handle(self.now, event, &mut self.commands);
    }

    fn job(&self, id: u64, machine: usize, status: u8, on: Option<usize>) -> Job {
        let machine = machine_name(machine);
        let (status, conclusion) = match status {
            0 | 1 => (JobStatus::Queued, None),
            2 => (JobStatus::InProgress, None),
            3 => (JobStatus::Completed, Some(Conclusion::Success)),
            4 => (JobStatus::Waiting, None),
            _ => (JobStatus::Completed, Some(Conclusion::Cancelled)),
        };
        Job {
            id: JobId(id),
            repository: machine.repository().clone(),
            workflow_run: WorkflowRunId(id / 6),
            run_attempt: 1,
            status,
            conclusion,
            labels: ["forrest", machine.machine()].into_iter().collect(),
            runner: on.and_then(|place| self.run(place)),
            name: None,
            workflow_name: None,
            head_branch: None,
            head_sha: None,
            created_at: Some(self.now),
        }
    }

    fn step(&mut self, step: Step) {
        let event = match step {
            Step::Job { id, machine, status, on, asked } => Event::JobReported {
                job: self.job(id, machine, status, on),
                source: asked.map_or(Source::Webhook, |ago| {
                    Source::Asked(Timestamp(self.now.0.saturating_sub(ago)))
                }),
            },
            Step::Missing { id, machine } => Event::JobMissing {
                repository: machine_name(machine).repository().clone(),
                job: JobId(id),
                asked_at: self.now,
            },
            Step::Polled { machine, ok, listed, ago } => self.polled(machine, ok, listed, ago),
            Step::Run { run, event } => match self.run(run) {
                Some(runner) => Event::Run { runner, event },
                None => Event::Tick,
            },
            Step::Stop { run } => {
                self.run(run).map_or(Event::Tick, |runner| Event::StopRequested { runner })
            }
            Step::Adopt { name, machine, vm, job } => self.adopted(name, machine, vm, job),
            Step::Policy { present, ram, quick } => {
                let ram = Bytes::gib(ram);
                let capacity = Capacity { ram, cpus: Some(16), min_free_disk: Bytes::gib(1) };
                Event::PolicyChanged(policy(present, capacity, quick))
            }
            Step::Measured { free } => {
                let used = self.core.runs().iter().map(|run| (run.runner.clone(), Bytes::gib(2)));
                Event::HostMeasured { free_disk: Bytes::gib(free), run_disks: used.collect() }
            }
            Step::Drain(drain) => Event::DrainRequested(drain),
            Step::Snapshot { machine, what } => snapshot_event(machine, what),
            Step::Repaired(ok) => {
                Event::DeliveriesRepaired(if ok { Ok(1) } else { Err(Trouble::new("no")) })
            }
            Step::Later(ms) => {
                self.now = Timestamp(self.now.0 + ms);
                Event::Tick
            }
            Step::Earlier(ms) => {
                self.now = Timestamp(self.now.0.saturating_sub(ms));
                Event::Tick
            }
            Step::Due => {
                self.now = self.now.max(self.core.next_deadline().unwrap_or(self.now));
                Event::Tick
            }
            Step::Again => self.last.clone(),
        };
        self.handle(event);
    }

    fn polled(&self, machine: usize, ok: bool, listed: u8, ago: u64) -> Event {
        let repository = machine_name(machine).repository().clone();
        let runners = self.core.runs().iter().enumerate().filter_map(|(place, run)| {
            let id = run.vm()?.runner_id;
            let bit = |shift: usize| (listed as usize >> ((place + shift) % 8)) & 1 == 1;
            let (online, busy) = (bit(1), bit(2));
            bit(0).then(|| Runner { id, name: run.runner.clone(), online, busy })
        });
        let result = if ok { Ok(runners.collect()) } else { Err(Trouble::new("no")) };
        let asked_at = Timestamp(self.now.0.saturating_sub(ago));
        Event::Polled { repository, result, asked_at }
    }

    fn adopted(&self, name: u64, machine: usize, vm: u8, job: Option<u64>) -> Event {
        let machine = machine_name(machine);
        let runner: RunnerName =
            format!("forrest-{}-{name:016}", machine.machine()).parse().expect("a sound name");
        let image =
            StartImage { image: ImageRef::Src { path: "/x".into() }, made_at: Timestamp(1) };
        let end = |reason| VmEnd { reason, detail: None, at: Timestamp(3) };
        let vm = match vm {
            0 => AdoptedVm::NotStarted,
            1 | 2 => AdoptedVm::Live {
                runner_id: RunnerId(name),
                image,
                restored: false,
                ready: vm == 1,
            },
            3 => AdoptedVm::Ended {
                end: end(EndReason::GuestShutdown),
                runner_id: None,
                image: Some(image),
            },
            _ => AdoptedVm::DiskSettled,
        };
        Event::Adopted(Box::new(AdoptedRun {
            runner,
            machine,
            ram: Bytes::gib(2),
            cpus: 2,
            disk: Bytes::gib(4),
            created_at: self.now,
            vm,
            job: job.map(JobId),
        }))
    }
}

fn snapshot_event(machine: usize, what: u8) -> Event {
    let machine = machine_name(machine);
    match what {
        0 => Event::SnapshotChecked { machine, fits: Ok(true) },
        1 => Event::SnapshotChecked { machine, fits: Ok(false) },
        2 => Event::SnapshotBuilt { machine, result: Ok(()) },
        3 => Event::SnapshotBuilt { machine, result: Err(BuildTrouble::GaveWay) },
        _ => {
            let image = ImageRef::Machine { machine: machine.clone(), generation: Generation(1) };
            let result = Err(BuildTrouble::Guest { what: "silent".into(), image });
            Event::SnapshotBuilt { machine, result }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 250,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn what_must_always_hold_holds(steps in vec(step(), 1..250)) {
        let mut world = World::new(1);
        for step in steps {
            world.step(step);
            prop_assert_eq!(check(&world.core), Ok(()));
            prop_assert!(world.core.next_deadline().is_none_or(|next| next > world.now
                || world.core.next_deadline() != Some(Timestamp(0))));
            // The commands of one event are bounded by what there is to do.
            prop_assert!(world.commands.len() < 2_000);
            world.commands.clear();
            drop(world.core.view(world.now));
        }
    }

    #[test]
    fn equal_histories_lead_to_equal_decisions(steps in vec(step(), 1..120), seed in any::<u64>()) {
        let (mut one, mut other) = (World::new(seed), World::new(seed));
        for step in steps {
            one.step(step.clone());
            other.step(step);
            prop_assert_eq!(&one.commands, &other.commands);
            prop_assert_eq!(one.core.next_deadline(), other.core.next_deadline());
            one.commands.clear();
            other.commands.clear();
        }
    }

    /// With nothing but time passing, every run comes to its end as far as the core can bring it:
    /// whatever is left waits for an answer that it asked for.
    #[test]
    fn time_alone_does_not_spin(steps in vec(step(), 1..120)) {
        let mut world = World::new(1);
        for step in steps {
            world.step(step);
        }
        let end = world.now + Duration::from_secs(3600);
        let mut ticks = 0;
        while let Some(next) = world.core.next_deadline().filter(|next| *next <= end) {
            world.now = world.now.max(next);
            world.commands.clear();
            world.handle(Event::Tick);
            prop_assert_eq!(check(&world.core), Ok(()));
            ticks += 1;
            prop_assert!(ticks < 20_000, "an hour of nothing takes {} deadlines", ticks);
        }
    }
}
