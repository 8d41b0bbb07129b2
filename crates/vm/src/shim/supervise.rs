//! The shim's main loop: the one place where the VM's state changes, and all I/O around it.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use forrest_core::model::foreign_text::harmless;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::process::{Child, ChildStderr};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::containment::{Containment, InPlace};
use super::control::{self, CALLS_MAX, Call, Clients};
use super::guest_port::{self, GuestLine};
use super::journal::Journal;
use super::machine::{Action, Input, Machine, Now};
use super::overgrowth::Overgrowth;
use super::{announce, make_private, migrate, process, settle, wall_clock};
use crate::console::ConsoleLog;
use crate::lines::{BoundedLines, Line};
use crate::outcome::QemuExit;
use crate::protocol::{EVENTS_BEHIND_MAX, Happened, ShimEvent};
use crate::qmp::{Qmp, QmpEvent};
use crate::run_dir::{Durability, ShimLock, files, write_whole};
use crate::spec::{BootKind, RunSpec};
use crate::{Outcome, VmError};

/// Inputs that may wait for the loop; whoever has one waits beyond that.
const NOTES_MAX: usize = 32;
/// How long what QEMU left behind in its sockets is read after its end.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);
/// How long clients may take to accept the last event.
const FAREWELL_LIMIT: Duration = Duration::from_secs(2);
/// How often the outcome is tried to be written, once a second, on a host with a full disk.
const OUTCOME_TRIES: u32 = 60;
/// Disk space that is set aside for the outcome, in bytes.
const OUTCOME_RESERVE_LEN: u64 = 32 << 10;
const OUTCOME_RESERVE: &str = ".outcome.reserve";
/// The most lines of QEMU's standard error output that are kept, the newest ones.
const STDERR_LINES_MAX: usize = 16;
/// The longest line of QEMU's standard error output that is kept, in bytes.
const STDERR_LINE_LEN_MAX: usize = 400;
/// What has to be free on the disk's file system for a VM to go on that was paused by a full one.
const SPACE_NEEDED: u64 = 256 << 20;
/// How much console output is read at a time.
const CONSOLE_CHUNK_LEN: usize = 4 << 10;

/// Everything that reaches the loop from a task of its own.
pub(super) enum Note {
    Input(Input),
    Monitor(Qmp, mpsc::Receiver<QmpEvent>),
    Log(String),
}

/// Runs one VM to its end and records it.
pub(super) async fn supervise(dir: &Path, spec: &RunSpec, lock: ShimLock) -> Result<(), VmError> {
    let mut journal = Journal::open(&dir.join(files::SHIM_LOG));
    let clients = Clients::new();
    let (calls_in, calls) = mpsc::channel(CALLS_MAX);
    let listener = listen(dir)?;
    tokio::spawn(control::serve(listener, clients.clone(), calls_in));
    reserve(dir, &mut journal);
    let (events, _) = broadcast::channel(EVENTS_BEHIND_MAX);
    let (outcome, containment) = {
        let mut supervisor = Supervisor::new(dir, spec, calls, events.clone(), &mut journal)?;
        announce();
        (supervisor.run().await?, supervisor.containment)
    };
    let (recorded, uncontained) =
        tokio::join!(record(dir, &outcome, &mut journal), containment.end());
    if let Err(err) = uncontained {
        journal.line(&format!("the egress filter is left for the daemon to remove: {err}"));
    }
    recorded?;
    for name in [files::CONTROL_SOCK, files::SHELL_SOCK] {
        let _ = std::fs::remove_file(dir.join(name));
    }
    // Whoever hears of the end finds the directory settled.
    drop(lock);
    let at = outcome.times.ended_at.unwrap_or_default();
    let _ = events.send(ShimEvent { at, event: Happened::Exited { outcome: Box::new(outcome) } });
    drop(events);
    let _ = timeout(FAREWELL_LIMIT, clients.gone()).await;
    Ok(())
}

/// Listens on the control socket. The working directory is the run directory, so the name is short.
fn listen(dir: &Path) -> Result<UnixListener, VmError> {
    let path = dir.join(files::CONTROL_SOCK);
    // The lock says that nobody else listens here.
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).map_err(VmError::io("listen on", &path))?;
    make_private(&path).map_err(VmError::io("protect", path))?;
    Ok(listener)
}

/// Sets aside the disk space that the outcome will need; the disk may be full by then.
fn reserve(dir: &Path, journal: &mut Journal) {
    let reserved = super::open_log(&dir.join(OUTCOME_RESERVE)).and_then(|file| {
        let flags = rustix::fs::FallocateFlags::empty();
        Ok(rustix::fs::fallocate(&file, flags, 0, OUTCOME_RESERVE_LEN)?)
    });
    if let Err(err) = reserved {
        journal.line(&format!("no disk space could be set aside for the outcome: {err}"));
    }
}

async fn record(dir: &Path, outcome: &Outcome, journal: &mut Journal) -> Result<(), VmError> {
    let json = serde_json::to_vec_pretty(outcome)
        .map_err(|err| VmError::Spec(format!("the outcome has no JSON form: {err}")))?;
    let _ = std::fs::remove_file(dir.join(OUTCOME_RESERVE));
    let mut tries = 0;
    loop {
        tries += 1;
        match write_whole(dir, files::OUTCOME, &json, Durability::PowerLoss) {
            Err(err) if tries < OUTCOME_TRIES => {
                journal.line(&format!("{err}; trying again"));
                sleep(Duration::from_secs(1)).await;
            }
            done => return done,
        }
    }
}

/// Waits until the egress filter is in place, where one is wanted: no guest runs without.
async fn contained(in_place: Option<InPlace>) -> Result<(), VmError> {
    let Some(in_place) = in_place else { return Ok(()) };
    let why = match in_place.await {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(why)) => why,
        Err(_) => "it was given up".to_owned(),
    };
    Err(VmError::NotContained(format!("the egress filter could not be put in place: {why}")))
}

struct Supervisor<'a> {
    dir: &'a Path,
    spec: &'a RunSpec,
    machine: Machine,
    started: Instant,
    journal: &'a mut Journal,
    calls: mpsc::Receiver<Call>,
    events: broadcast::Sender<ShimEvent>,
    notes_in: mpsc::Sender<Note>,
    notes: mpsc::Receiver<Note>,
    migration: watch::Sender<String>,
    signals: [Signal; 3],
    qmp: Option<Qmp>,
    guest: Option<OwnedWriteHalf>,
    child: Option<Child>,
    containment: Containment,
    in_place: Option<InPlace>,
    readers: Vec<JoinHandle<()>>,
    stderr: Option<JoinHandle<Vec<String>>>,
}

enum Woken {
    Note(Option<Note>),
    Call(Option<Call>),
    Exited(QemuExit),
    Signalled,
    /// A terminal that the shim was started from went away, which does not concern it.
    HungUp,
    Tick,
}

impl<'a> Supervisor<'a> {
    fn new(
        dir: &'a Path,
        spec: &'a RunSpec,
        calls: mpsc::Receiver<Call>,
        events: broadcast::Sender<ShimEvent>,
        journal: &'a mut Journal,
    ) -> Result<Self, VmError> {
        let on = |kind| signal(kind).map_err(VmError::io("handle signals in", dir));
        let signals =
            [on(SignalKind::terminate())?, on(SignalKind::interrupt())?, on(SignalKind::hangup())?];
        let (notes_in, notes) = mpsc::channel(NOTES_MAX);
        let now = Now { wall: wall_clock(), elapsed: Duration::ZERO };
        Ok(Self {
            dir,
            spec,
            machine: Machine::new(spec, now),
            started: Instant::now(),
            journal,
            calls,
            events,
            notes_in,
            notes,
            migration: watch::channel(String::new()).0,
            signals,
            qmp: None,
            guest: None,
            child: None,
            containment: Containment::default(),
            in_place: None,
            readers: Vec::new(),
            stderr: None,
        })
    }

    fn now(&self) -> Now {
        Now { wall: wall_clock(), elapsed: self.started.elapsed() }
    }

    async fn run(&mut self) -> Result<Outcome, VmError> {
        let mut finished = self.start_qemu().await;
        while finished.is_none() {
            finished = match self.woken().await {
                Woken::Note(Some(note)) => self.note(note).await,
                Woken::Call(Some(call)) => self.call(call).await,
                Woken::Exited(exit) => self.exited(exit).await,
                Woken::Signalled => self.input(Input::Signalled).await,
                Woken::HungUp => None,
                Woken::Tick => self.input(Input::Tick).await,
                // The loop itself holds one end of the notes, and the socket's task the other end of
                // the calls for as long as the loop runs.
                Woken::Note(None) | Woken::Call(None) => {
                    return Err(VmError::Monitor("the shim lost a part of itself".to_owned()));
                }
            };
        }
        finished.ok_or_else(|| VmError::Monitor("the VM has no outcome".to_owned()))
    }

    async fn woken(&mut self) -> Woken {
        let deadline = self.machine.next_deadline().map(|at| self.started + at);
        let [terminate, interrupt, hangup] = &mut self.signals;
        tokio::select! {
            note = self.notes.recv() => Woken::Note(note),
            call = self.calls.recv() => Woken::Call(call),
            exit = wait(&mut self.child) => Woken::Exited(exit),
            _ = terminate.recv() => Woken::Signalled,
            _ = interrupt.recv() => Woken::Signalled,
            _ = hangup.recv() => Woken::HungUp,
            () = until(deadline) => Woken::Tick,
        }
    }

    fn spawn_qemu(&mut self) -> Result<process::Qemu, String> {
        let begun = Containment::begin(self.spec, self.notes_in.clone());
        (self.containment, self.in_place) = begun.map_err(|err| err.to_string())?;
        let claim = self.containment.claim();
        if let Some(claim) = claim {
            self.journal.line(&format!("QEMU runs as user {}", claim.uid()));
        }
        process::start(self.spec, claim).map_err(|err| err.to_string())
    }

    async fn start_qemu(&mut self) -> Option<Outcome> {
        let overgrowth = Overgrowth::of(self.spec, self.dir);
        let mut qemu = match self.spawn_qemu() {
            Ok(qemu) => qemu,
            Err(reason) => {
                let stderr = vec![reason];
                return self.input(Input::QemuExited { exit: QemuExit::NotStarted, stderr }).await;
            }
        };
        let (guest_read, guest_write) = qemu.guest.into_split();
        self.guest = Some(guest_write);
        self.stderr =
            qemu.stderr.take().map(|pipe| tokio::spawn(read_stderr(pipe, self.notes_in.clone())));
        let console = read_console(qemu.console, self.dir.to_owned(), self.notes_in.clone());
        let (said, heard) = mpsc::channel(1);
        self.readers = vec![
            tokio::spawn(console),
            tokio::spawn(guest_port::read(guest_read, said)),
            tokio::spawn(forward(heard, self.notes_in.clone())),
        ];
        // To the end of the shim, which follows QEMU's.
        tokio::spawn(overgrowth.watch(self.notes_in.clone()));
        let pid = qemu.child.id();
        self.child = Some(qemu.child);
        let notes = self.notes_in.clone();
        tokio::spawn(async move {
            let note = match Qmp::handshake(qemu.monitor).await {
                Ok((qmp, events)) => Note::Monitor(qmp, events),
                Err(err) => Note::Input(Input::BringUpFailed(err.to_string())),
            };
            let _ = notes.send(note).await;
        });
        self.input(Input::QemuStarted { pid }).await
    }

    async fn note(&mut self, note: Note) -> Option<Outcome> {
        match note {
            Note::Input(input) => self.input(input).await,
            Note::Monitor(qmp, events) => {
                self.bring_up(qmp, events);
                None
            }
            Note::Log(line) => {
                self.journal.line(&line);
                None
            }
        }
    }

    /// The monitor is there: load the template where there is one, and let the CPUs run.
    fn bring_up(&mut self, qmp: Qmp, mut events: mpsc::Receiver<QmpEvent>) {
        self.qmp = Some(qmp.clone());
        let notes = self.notes_in.clone();
        let migration = self.migration.clone();
        self.readers.push(tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                if let QmpEvent::Migration { status } = &event {
                    migration.send_replace(status.clone());
                }
                if notes.send(Note::Input(Input::Event(event))).await.is_err() {
                    return;
                }
            }
            let _ = notes.send(Note::Input(Input::MonitorClosed)).await;
        }));
        let restored = self.spec.boot.kind() == BootKind::Restored;
        let in_place = self.in_place.take();
        let status = self.migration.subscribe();
        self.spawn_input(async move {
            let brought_up = async {
                if restored {
                    migrate::load(&qmp, status).await?;
                }
                contained(in_place).await?;
                qmp.execute("cont", json!({})).await
            };
            match brought_up.await {
                Ok(_) => Some(Input::BroughtUp),
                Err(VmError::NotContained(why)) => Some(Input::NotContained(why)),
                Err(err) => Some(Input::BringUpFailed(err.to_string())),
            }
        });
    }

    fn spawn_input(&self, task: impl Future<Output = Option<Input>> + Send + 'static) {
        let notes = self.notes_in.clone();
        tokio::spawn(async move {
            if let Some(input) = task.await {
                let _ = notes.send(Note::Input(input)).await;
            }
        });
    }

    async fn call(&mut self, call: Call) -> Option<Outcome> {
        // Whoever asked may be gone; that changes nothing.
        match call {
            Call::Status(reply) => {
                let _ = reply.send(Box::new(self.machine.state().clone()));
                None
            }
            Call::Watch(reply) => {
                let state = Box::new(self.machine.state().clone());
                let _ = reply.send((state, self.events.subscribe()));
                None
            }
            Call::Do(request, reply) => {
                self.journal.line(&format!("asked: {request:?}"));
                let (answer, actions) = match self.machine.request(self.now(), request) {
                    Ok(actions) => (Ok(()), actions),
                    Err(reason) => (Err(reason), Vec::new()),
                };
                let finished = self.perform(actions).await;
                let _ = reply.send(answer);
                finished
            }
        }
    }

    async fn input(&mut self, input: Input) -> Option<Outcome> {
        let actions = self.machine.handle(self.now(), input);
        self.perform(actions).await
    }

    async fn perform(&mut self, actions: Vec<Action>) -> Option<Outcome> {
        for action in actions {
            match action {
                Action::SendGo => self.tell_guest("go").await,
                Action::SendTime => self.tell_guest("time").await,
                Action::SendFiles => self.tell_guest_files().await,
                Action::PressPowerButton => self.execute("system_powerdown"),
                Action::Continue => self.execute("cont"),
                Action::QueryRunState => self.query_run_state(),
                Action::CheckSpace => self.check_space(),
                Action::Save => self.save(),
                Action::Quit => self.execute("quit"),
                Action::KillQemu => {
                    self.journal.line("QEMU did not quit in time and is killed");
                    if let Some(child) = &mut self.child {
                        let _ = child.start_kill();
                    }
                }
                Action::Emit(event) => {
                    self.journal.line(&format!("{:?}", event.event));
                    // Nobody may be watching.
                    let _ = self.events.send(event);
                }
                Action::Finish(outcome) => {
                    self.journal.line(&format!("over: {:?}: {}", outcome.reason, outcome.detail));
                    return Some(*outcome);
                }
            }
        }
        None
    }

    /// A word and the time, taken as late as possible. A guest that does not read leaves the line in the
    /// socket's buffer, where [`super::machine::GO_MAX`] and [`super::machine::TIMES_MAX`] of them fit
    /// many times over.
    async fn tell_guest(&mut self, word: &str) {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        self.send_to_guest(word, &format!("{word} {time}\n")).await;
    }

    /// As [`Self::tell_guest`], where [`super::machine::FILES_MAX`] of them fit, too.
    async fn tell_guest_files(&mut self) {
        let line = format!("{}\n", self.machine.files().line());
        self.send_to_guest("files", &line).await;
    }

    async fn send_to_guest(&mut self, word: &str, line: &str) {
        let Some(guest) = &mut self.guest else { return };
        let sent = timeout(Duration::from_secs(1), guest.write_all(line.as_bytes())).await;
        if !matches!(sent, Ok(Ok(()))) {
            self.journal.line(&format!("`{word}` could not be sent to the guest"));
        }
    }

    fn execute(&mut self, command: &'static str) {
        let Some(qmp) = self.qmp.clone() else {
            // Only `quit` can be wanted before the monitor is there: there is nothing to be saved.
            if let Some(child) = &mut self.child {
                let _ = child.start_kill();
            }
            return;
        };
        let notes = self.notes_in.clone();
        tokio::spawn(async move {
            if let Err(err) = qmp.execute(command, json!({})).await {
                let _ = notes.send(Note::Log(err.to_string())).await;
            }
        });
    }

    fn query_run_state(&self) {
        let Some(qmp) = self.qmp.clone() else { return };
        self.spawn_input(async move {
            let answer = qmp.execute("query-status", json!({})).await.ok()?;
            let state = answer.get("status").and_then(Value::as_str).unwrap_or_default();
            Some(Input::RunState(state.to_owned()))
        });
    }

    /// Where the disk is, or where the run directory is if that cannot be told.
    fn check_space(&self) {
        let free = |path: &Path| {
            rustix::fs::statvfs(path).map(|fs| fs.f_bavail.saturating_mul(fs.f_frsize))
        };
        let enough = free(&self.dir.join(&self.spec.disk.path))
            .or_else(|_| free(self.dir))
            .is_ok_and(|free| free >= SPACE_NEEDED);
        self.spawn_input(async move { Some(Input::Space { enough }) });
    }

    fn save(&self) {
        let Some(qmp) = self.qmp.clone() else { return };
        let status = self.migration.subscribe();
        let pid = self.child.as_ref().and_then(Child::id);
        self.spawn_input(async move {
            if let Some(pid) = pid {
                settle::until_quiet(pid).await;
            }
            let saved = migrate::save(&qmp, status).await;
            Some(Input::Saved(saved.map_err(|err| err.to_string())))
        });
    }

    /// QEMU is gone. What it and the guest said last is still in the sockets, and may be the reason.
    async fn exited(&mut self, exit: QemuExit) -> Option<Outcome> {
        self.child = None;
        self.guest = None;
        let give_up = Instant::now() + DRAIN_LIMIT;
        let readers = std::mem::take(&mut self.readers);
        let mut all_read = std::pin::pin!(async move {
            for reader in readers {
                let _ = reader.await;
            }
        });
        loop {
            let note = tokio::select! {
                biased;
                note = self.notes.recv() => note,
                () = &mut all_read => break,
                () = sleep_until(give_up) => break,
            };
            if let Some(note) = note
                && !matches!(note, Note::Input(Input::MonitorClosed | Input::BringUpFailed(_)))
            {
                // The end itself is decided below, so nothing is finished here.
                let _ = self.note(note).await;
            }
        }
        while let Ok(note) = self.notes.try_recv() {
            if let Note::Input(input @ (Input::Guest(_) | Input::Event(_))) = note {
                let _ = self.input(input).await;
            }
        }
        let stderr = match self.stderr.take() {
            Some(task) => timeout(DRAIN_LIMIT, task).await.ok().and_then(Result::ok),
            None => None,
        };
        self.input(Input::QemuExited { exit, stderr: stderr.unwrap_or_default() }).await
    }
}

/// Makes inputs of what the guest says.
async fn forward(mut heard: mpsc::Receiver<GuestLine>, notes: mpsc::Sender<Note>) {
    while let Some(line) = heard.recv().await {
        if notes.send(Note::Input(Input::Guest(line))).await.is_err() {
            return;
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

async fn wait(child: &mut Option<Child>) -> QemuExit {
    match child {
        Some(child) => child.wait().await.map_or(QemuExit::NotStarted, process::exit_of),
        None => std::future::pending().await,
    }
}

async fn read_console(console: UnixStream, dir: std::path::PathBuf, notes: mpsc::Sender<Note>) {
    let begun = Instant::now();
    let mut log = match ConsoleLog::create(&dir) {
        Ok(log) => log,
        Err(err) => {
            let _ = notes.send(Note::Log(format!("the console is not logged: {err}"))).await;
            return;
        }
    };
    let mut chunk = vec![0; CONSOLE_CHUNK_LEN];
    while console.readable().await.is_ok() {
        match console.try_read(&mut chunk) {
            Ok(0) => return,
            Ok(len) => log.write(begun.elapsed(), &chunk[..len]),
            Err(err) if err.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

/// Writes QEMU's standard error output to the log and keeps the newest lines.
async fn read_stderr(pipe: ChildStderr, notes: mpsc::Sender<Note>) -> Vec<String> {
    let mut lines = BoundedLines::new(pipe, STDERR_LINE_LEN_MAX, STDERR_LINE_LEN_MAX);
    let mut newest = std::collections::VecDeque::new();
    while let Ok(Some(line)) = lines.next().await {
        let line = match line {
            Line::Text(line) => harmless(&String::from_utf8_lossy(&line), STDERR_LINE_LEN_MAX),
            Line::TooLong => "(a line that is too long)".to_owned(),
        };
        // Losing a line is better than waiting for a loop that may be waiting for this task.
        let _ = notes.try_send(Note::Log(format!("qemu: {line}")));
        if newest.len() == STDERR_LINES_MAX {
            newest.pop_front();
        }
        newest.push_back(line);
    }
    newest.into()
}
