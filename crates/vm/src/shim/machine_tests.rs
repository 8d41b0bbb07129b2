//! Tests of the VM's life, without a VM.

use proptest::prelude::*;

use super::*;
use crate::spec::Boot;
use crate::spec::tests::example;

/// A VM and a clock of its own.
struct World {
    machine: Machine,
    elapsed: Duration,
    events: Vec<Happened>,
    outcomes: Vec<Outcome>,
}

/// The host's clock at the start.
const EPOCH: Timestamp = Timestamp(1_800_000_000_000);

impl World {
    fn new(boot: Boot) -> Self {
        let mut spec = example();
        spec.boot = boot;
        let now = Now { wall: EPOCH, elapsed: Duration::ZERO };
        let machine = Machine::new(&spec, now);
        Self { machine, elapsed: Duration::ZERO, events: Vec::new(), outcomes: Vec::new() }
    }

    fn running(boot: Boot) -> Self {
        let mut world = Self::new(boot);
        world.input(Input::QemuStarted { pid: Some(1) });
        world.input(Input::BroughtUp);
        world
    }

    fn now(&self) -> Now {
        Now { wall: EPOCH + self.elapsed, elapsed: self.elapsed }
    }

    /// Lets something happen; returns what is to be done besides reporting it.
    fn input(&mut self, input: Input) -> Vec<Action> {
        let actions = self.machine.handle(self.now(), input);
        self.sort_out(actions)
    }

    fn request(&mut self, request: Request) -> Result<Vec<Action>, String> {
        let actions = self.machine.request(self.now(), request)?;
        Ok(self.sort_out(actions))
    }

    fn sort_out(&mut self, actions: Vec<Action>) -> Vec<Action> {
        let mut rest = Vec::new();
        for action in actions {
            match action {
                Action::Emit(event) => self.events.push(event.event),
                Action::Finish(outcome) => self.outcomes.push(*outcome),
                other => rest.push(other),
            }
        }
        rest
    }

    /// Goes to the next deadline.
    fn tick(&mut self) -> Vec<Action> {
        self.elapsed = self.machine.next_deadline().expect("a deadline").max(self.elapsed);
        self.input(Input::Tick)
    }

    fn shutdown(&mut self, reason: &str) -> Vec<Action> {
        self.input(Input::Event(QmpEvent::Shutdown { reason: reason.to_owned() }))
    }

    fn exited(&mut self, exit: QemuExit) -> EndReason {
        assert_eq!(self.input(Input::QemuExited { exit, stderr: Vec::new() }), []);
        self.outcomes.last().expect("an outcome").reason
    }
}

fn template() -> Boot {
    Boot::Template { ram: "/ram".into(), state: "/state".into() }
}

fn restored() -> Boot {
    Boot::Restored { ram: "/ram".into(), state: "/state".into() }
}

fn full_disk() -> Input {
    Input::Event(QmpEvent::BlockIoError { device: "disk".into(), stopped: true, nospace: true })
}

fn attach() -> Request {
    Request::AttachJobConfig { files: JobFiles::default() }
}

const CLEAN: QemuExit = QemuExit::Status(0);

#[test]
fn a_cold_guest_gets_its_go_when_both_it_and_the_job_are_ready() {
    let mut world = World::running(Boot::Cold);
    assert_eq!(world.input(Input::Guest(GuestLine::Ready)), []);
    assert_eq!(world.request(attach()), Ok(vec![Action::SendGo]));
    let mut world = World::running(Boot::Cold);
    assert_eq!(world.request(attach()), Ok(vec![]));
    assert_eq!(world.input(Input::Guest(GuestLine::Ready)), [Action::SendGo]);
    assert_eq!(world.events, [Happened::VmStarted, Happened::GuestReady, Happened::GoSent]);
}

#[test]
fn a_guest_that_starts_over_gets_another_go_but_not_for_ever() {
    let mut world = World::running(Boot::Cold);
    world.request(attach()).expect("attached");
    let gos: usize = (0..100).map(|_| world.input(Input::Guest(GuestLine::Ready)).len()).sum();
    assert_eq!(gos, GO_MAX as usize);
    assert_eq!(world.events.iter().filter(|event| **event == Happened::GoSent).count(), 1);
}

#[test]
fn a_restored_guest_is_ready_as_soon_as_it_runs() {
    let mut world = World::new(restored());
    assert_eq!(world.request(attach()), Ok(vec![]));
    assert_eq!(world.input(Input::BroughtUp), [Action::SendGo]);
    assert_eq!(world.events, [Happened::VmStarted, Happened::GuestReady, Happened::GoSent]);
}

#[test]
fn a_restored_guest_that_gets_no_job_config_is_given_up() {
    let give_up = || Request::GiveUp { why: "not wanted".to_owned() };
    let mut world = World::new(restored());
    assert_eq!(world.request(give_up()), Ok(vec![Action::Quit]));
    assert_eq!(world.request(give_up()), Ok(vec![]));
    assert_eq!(world.exited(CLEAN), EndReason::Killed);
    // One that has its job config may have a job.
    let mut world = World::new(restored());
    world.request(attach()).expect("attached");
    assert!(world.request(give_up()).is_err());
    world.input(Input::BroughtUp);
    assert_eq!(world.machine.next_deadline(), None);
    // Nobody comes.
    let mut world = World::running(restored());
    assert_eq!(world.tick(), [Action::Quit]);
    assert_eq!(world.elapsed, ATTACH_LIMIT);
    assert_eq!(world.exited(CLEAN), EndReason::Killed);
}

#[test]
fn a_guest_is_told_of_its_job_config_when_it_asks_but_not_for_ever() {
    let mut vm = World::running(Boot::Cold);
    let files = JobFiles::new([("hostname", &b"x"[..])]);
    vm.request(Request::AttachJobConfig { files: files.clone() }).expect("attached");
    for _ in 0..FILES_MAX {
        assert_eq!(vm.input(Input::Guest(GuestLine::FilesWanted)), [Action::SendFiles]);
    }
    assert_eq!(vm.machine.files(), &files);
    assert_eq!(vm.input(Input::Guest(GuestLine::FilesWanted)), []);
}

#[test]
fn a_template_is_saved_once_it_is_ready_and_never_sees_a_job() {
    let mut world = World::running(template());
    assert!(world.request(attach()).is_err());
    assert_eq!(world.input(Input::Guest(GuestLine::Ready)), [Action::Save]);
    assert_eq!(world.input(Input::Event(QmpEvent::Stop)), []);
    assert_eq!(world.input(Input::Saved(Ok(()))), [Action::Quit]);
    assert_eq!(world.exited(CLEAN), EndReason::TemplateSaved);
}

#[test]
fn a_template_that_cannot_be_saved_is_a_failure() {
    let mut world = World::running(template());
    world.input(Input::Guest(GuestLine::Ready));
    world.input(Input::Saved(Err("no".to_owned())));
    assert_eq!(world.exited(CLEAN), EndReason::QemuFailed);
    let mut world = World::running(template());
    world.input(Input::Guest(GuestLine::Ready));
    assert_eq!(world.tick(), [Action::Quit], "saving has a limit");
    assert_eq!(world.exited(CLEAN), EndReason::QemuFailed);
}

/// As the kernel does when the host is out of memory, which is said; not of a QEMU that was killed from here.
#[test]
fn a_qemu_that_is_killed_from_outside_is_told_of() {
    for monitor_first in [false, true] {
        let mut world = World::running(Boot::Cold);
        if monitor_first {
            world.input(Input::MonitorClosed);
        }
        assert_eq!(world.exited(QemuExit::Signal(9)), EndReason::QemuFailed);
        let detail = &world.outcomes.last().expect("an outcome").detail;
        assert!(detail.contains("out of memory"), "{detail}");
    }
    let mut world = World::running(Boot::Cold);
    world.input(Input::MonitorClosed);
    assert_eq!(world.tick(), [Action::KillQemu]);
    assert_eq!(world.exited(QemuExit::Signal(9)), EndReason::QemuFailed);
    let detail = &world.outcomes.last().expect("an outcome").detail;
    assert!(!detail.contains("out of memory"), "{detail}");
}

#[test]
fn ends_are_told_apart() {
    let cases = [
        ("guest-shutdown", EndReason::GuestShutdown),
        ("guest-reset", EndReason::GuestReset),
        ("guest-panic", EndReason::GuestPanicked),
        ("host-signal", EndReason::Killed),
        ("host-error", EndReason::QemuFailed),
        ("unheard-of", EndReason::Killed),
    ];
    for (cause, reason) in cases {
        let mut world = World::running(Boot::Cold);
        assert_eq!(world.shutdown(cause), [Action::Quit]);
        assert_eq!(world.exited(CLEAN), reason, "{cause}");
    }
}

#[test]
fn a_disk_that_was_not_closed_in_order_is_not_a_good_end() {
    for exit in [QemuExit::Signal(9), QemuExit::Status(1)] {
        let mut world = World::running(Boot::Cold);
        world.shutdown("guest-shutdown");
        assert_eq!(world.exited(exit), EndReason::QemuFailed);
    }
}

#[test]
fn the_first_reason_counts() {
    let mut world = World::running(Boot::Cold);
    world.shutdown("guest-shutdown");
    assert_eq!(world.request(Request::Kill { why: "late".into() }), Ok(vec![]));
    assert!(world.request(Request::PowerDown).is_err());
    world.input(Input::Signalled);
    world.input(Input::MonitorClosed);
    assert_eq!(world.shutdown("host-qmp-quit"), []);
    assert_eq!(world.exited(CLEAN), EndReason::GuestShutdown);
    assert!(!world.outcomes[0].requested);
}

#[test]
fn a_qemu_that_does_not_quit_is_killed_and_killed_again() {
    let mut world = World::running(Boot::Cold);
    world.request(Request::Kill { why: "enough".into() }).expect("killed");
    assert_eq!(world.tick(), [Action::KillQemu]);
    assert_eq!(world.elapsed, QUIT_GRACE);
    assert_eq!(world.tick(), [Action::KillQemu]);
    assert_eq!(world.exited(QemuExit::Signal(9)), EndReason::Killed);
    let mut world = World::running(Boot::Cold);
    world.shutdown("guest-shutdown");
    assert_eq!(world.tick(), [Action::KillQemu]);
    assert_eq!(world.elapsed, QUIT_GRACE_DISK_KEPT, "a disk that may be kept gets more time");
}

#[test]
fn failures_before_the_guest_runs_are_told_by_how_it_starts() {
    for (boot, reason) in
        [(Boot::Cold, EndReason::QemuFailed), (restored(), EndReason::RestoreFailed)]
    {
        let mut world = World::new(boot.clone());
        assert_eq!(world.exited(QemuExit::NotStarted), reason);
        let mut world = World::new(boot.clone());
        world.input(Input::BringUpFailed("no".to_owned()));
        assert_eq!(world.exited(QemuExit::Status(1)), reason);
        let mut world = World::running(boot);
        assert_eq!(world.exited(QemuExit::Signal(11)), EndReason::QemuFailed);
    }
}

#[test]
fn deadlines_are_kept() {
    let mut world = World::running(Boot::Cold);
    assert_eq!(world.tick(), [Action::Quit]);
    assert_eq!(world.elapsed, example().boot_timeout());
    assert_eq!(world.exited(CLEAN), EndReason::BootTimeout);

    let mut world = World::new(restored());
    assert_eq!(world.tick(), [Action::Quit]);
    assert_eq!(world.elapsed, RESTORE_LIMIT);
    assert_eq!(world.exited(CLEAN), EndReason::RestoreFailed);

    let mut world = World::running(Boot::Cold);
    world.input(Input::Guest(GuestLine::Ready));
    assert_eq!(world.machine.next_deadline(), None, "a guest that is ready may wait");
    let at = EPOCH + Duration::from_secs(100);
    world.request(Request::JobDeadline { at: Some(at) }).expect("set");
    assert_eq!(world.tick(), [Action::Quit]);
    assert_eq!(world.elapsed, Duration::from_secs(100));
    assert_eq!(world.exited(CLEAN), EndReason::JobTimeout);
}

#[test]
fn a_full_disk_pauses_until_there_is_space() {
    let mut world = World::running(Boot::Cold);
    world.input(Input::Guest(GuestLine::Ready));
    world.input(full_disk());
    world.input(full_disk());
    world.input(Input::Event(QmpEvent::Stop));
    assert_eq!(world.tick(), [Action::CheckSpace]);
    assert_eq!(world.input(Input::Space { enough: false }), []);
    assert_eq!(world.tick(), [Action::CheckSpace]);
    assert_eq!(world.elapsed, SPACE_CHECK_EVERY * 2);
    assert_eq!(world.input(Input::Space { enough: true }), [Action::Continue]);
    world.input(Input::Event(QmpEvent::Resume));
    assert!(world.machine.state().paused.is_none());
    let reason = PauseReason::NoSpace;
    assert_eq!(world.events[2..], [Happened::Paused { reason }, Happened::Resumed]);
    assert!(world.request(Request::Resume).is_err(), "nothing to resume");
}

#[test]
fn a_pause_does_not_last_for_ever_and_is_the_reason_for_what_follows() {
    let mut world = World::running(Boot::Cold);
    world.input(Input::Guest(GuestLine::Ready));
    world.input(full_disk());
    while world.tick() == [Action::CheckSpace] {}
    assert_eq!(world.elapsed, PAUSE_LIMIT);
    assert_eq!(world.exited(CLEAN), EndReason::IoError);

    let mut world = World::running(Boot::Cold);
    world.input(full_disk());
    world.request(Request::Kill { why: "no space".into() }).expect("killed");
    assert_eq!(world.exited(CLEAN), EndReason::IoError);
    assert!(world.outcomes[0].detail.contains("no space"));
}

#[test]
fn a_cpu_that_cannot_go_on_ends_the_vm() {
    let mut world = World::running(Boot::Cold);
    assert_eq!(world.input(Input::Event(QmpEvent::Stop)), [Action::QueryRunState]);
    assert_eq!(world.input(Input::RunState("internal-error".into())), [Action::Quit]);
    assert_eq!(world.exited(CLEAN), EndReason::QemuFailed);
}

#[test]
fn a_guest_is_told_the_time_when_it_asks_but_not_for_ever() {
    let mut vm = World::running(Boot::Cold);
    for _ in 0..TIMES_MAX {
        assert_eq!(vm.input(Input::Guest(GuestLine::TimeWanted)), [Action::SendTime]);
    }
    assert_eq!(vm.input(Input::Guest(GuestLine::TimeWanted)), []);
}

#[test]
fn what_a_guest_says_is_bounded() {
    let mut world = World::running(Boot::Cold);
    for n in 0..1000 {
        world.input(Input::Guest(GuestLine::Error { text: n.to_string() }));
        world.input(Input::Guest(GuestLine::RunnerExited { code: Some(n) }));
        world.input(Input::Guest(GuestLine::Nonsense));
    }
    let state = world.machine.state();
    assert_eq!(state.guest_errors, ["0", "1", "2", "3"]);
    assert_eq!(state.runner_exit_code, Some(0));
    assert_eq!(state.guest_lines_dropped, 3000 - 4 - 1);
    assert_eq!(world.events.len(), 1 + 4 + 1);
}

fn inputs() -> impl Strategy<Value = Result<Input, Request>> {
    let event = |event| Ok(Input::Event(event));
    let shutdown = move |reason: &str| event(QmpEvent::Shutdown { reason: reason.to_owned() });
    (0..20_u32).prop_map(move |n| match n {
        0 => Ok(Input::BroughtUp),
        1 => Ok(Input::BringUpFailed("no".to_owned())),
        2 => shutdown("guest-shutdown"),
        3 => shutdown("guest-reset"),
        4 => event(QmpEvent::GuestPanicked),
        5 => event(QmpEvent::Stop),
        6 => event(QmpEvent::Resume),
        7 => Ok(full_disk()),
        8 => Ok(Input::MonitorClosed),
        9 => Ok(Input::RunState("internal-error".to_owned())),
        10 => Ok(Input::Guest(GuestLine::Ready)),
        11 => Ok(Input::Guest(GuestLine::RunnerStarted)),
        12 => Ok(Input::Saved(Ok(()))),
        13 => Ok(Input::Space { enough: true }),
        14 => Ok(Input::Tick),
        15 => Ok(Input::QemuExited { exit: CLEAN, stderr: Vec::new() }),
        16 => Ok(Input::QemuExited { exit: QemuExit::Signal(9), stderr: Vec::new() }),
        17 => Err(attach()),
        18 => Err(Request::PowerDown),
        _ => Err(Request::Kill { why: "enough".to_owned() }),
    })
}

proptest! {
    /// Whatever happens in whatever order: there is one outcome, after it nothing; a good end needs a
    /// guest that powered itself off first and a QEMU that exited in order; an end is always in sight.
    #[test]
    fn no_order_of_events_breaks_the_rules(
        kind in 0..3_usize,
        script in proptest::collection::vec(inputs(), 1..40),
    ) {
        let boot = [Boot::Cold, template(), restored()][kind].clone();
        let mut world = World::new(boot.clone());
        let mut first_end = None;
        for step in script {
            let over = !world.outcomes.is_empty();
            let shown = format!("{step:?}");
            let clean = matches!(step, Ok(Input::QemuExited { exit: CLEAN, .. }));
            let actions = match step {
                Ok(input) => world.input(input),
                Err(request) => world.request(request).unwrap_or_default(),
            };
            if over {
                prop_assert_eq!(&actions, &[], "after the end: {}", shown);
                continue;
            }
            prop_assert_eq!(actions.contains(&Action::Save) && boot.kind() != BootKind::Template, false);
            prop_assert_eq!(actions.contains(&Action::SendGo) && boot.kind() == BootKind::Template, false);
            if actions.contains(&Action::Quit) {
                prop_assert!(first_end.is_none(), "ended twice");
                first_end = Some(shown);
                prop_assert!(world.machine.next_deadline().is_some());
            }
            if let Some(outcome) = world.outcomes.last() {
                let good = outcome.reason == EndReason::GuestShutdown;
                let powered_off = first_end.as_deref().is_some_and(|end| end.contains("guest-shutdown"));
                prop_assert_eq!(good, powered_off && clean);
            }
        }
        prop_assert!(world.outcomes.len() <= 1);
    }
}
