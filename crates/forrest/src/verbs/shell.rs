//! `forrest shell`: the root shell of a run's guest.

use std::io::{self, IsTerminal, Read};
use std::time::Duration;

use forrest_daemon::inspect::InspectError;
use forrest_daemon::inspect::runs::{self, FoundRun, Life};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{block_on, write_out};
use crate::cli::Which;
use crate::failure::{Failure, Status};
use crate::find;
use crate::terminal::guard::Guard;
use crate::terminal::layout::output_size;
use crate::terminal::raw::RawMode;

/// Ctrl-], as in telnet.
const ESCAPE: u8 = 0x1d;
/// How much is read at once, in bytes.
const BUFFER_LEN: usize = 16 << 10;
/// How much typed input waits for the guest, in bytes; more is thrown away, so that a guest that does
/// not read cannot keep ctrl-] from being seen.
const TYPED_LEN_MAX: usize = 64 << 10;
/// How many pieces of input wait to be looked at.
const PIECES_MAX: usize = 16;

/// How a session ended.
enum End {
    /// Ctrl-].
    Escape,
    /// The guest, or its virtual machine, is gone.
    Guest,
    /// Piped input is over and the guest has been quiet.
    Input,
    /// Nobody reads the output.
    Output,
    /// A signal of this name.
    Signal(&'static str),
}

/// Connects this terminal, or pipes, with the guest's shell.
pub fn run(name: &str, which: &Which, wait_s: f64) -> Result<Status, Failure> {
    let found = runs::runs(&find::base_dir(which)?)?;
    let run = choose(name, &found)?;
    let wait = Duration::from_secs_f64(wait_s);
    let end = block_on(async {
        let stream = run.shell().await.map_err(|error| unreachable_shell(run, error))?;
        let signals = Signals::new()?;
        let raw = RawMode::enter(io::stdin())
            .map_err(|error| Failure::failed(format!("could not prepare the terminal: {error}")))?;
        if raw.is_some() {
            greet(run);
        }
        let mut session = Session::new(stream, raw.is_some(), wait);
        let end = session.talk(signals).await;
        if io::stdout().is_terminal() {
            let _ = write_out(&session.guard.farewell());
        }
        // Before anything is said about it.
        drop(raw);
        end
    })?;
    match end {
        End::Escape => eprintln!("\nforrest: detached from {}; its shell goes on", run.runner),
        End::Guest => eprintln!("\nforrest: the guest closed the connection"),
        End::Input | End::Output => {}
        End::Signal(name) => return Err(Failure::failed(format!("ended by {name}"))),
    }
    Ok(Status::Ok)
}

/// The live run that is meant.
fn choose<'a>(name: &str, found: &'a [FoundRun]) -> Result<&'a FoundRun, Failure> {
    let is_live = |run: &FoundRun| matches!(run.life(), Ok(Life::Live));
    let live: Vec<FoundRun> = found.iter().filter(|run| is_live(run)).cloned().collect();
    if find::matching(name, &live).is_empty()
        && let Some(gone) = find::matching(name, found).first()
    {
        let runner = &gone.runner;
        return Err(Failure::not_found(format!(
            "no virtual machine of {name:?} runs now; `forrest logs {runner}` shows what its last \
             one printed"
        )));
    }
    let runner = find::one_run(name, &live, "a run with a running virtual machine")?.runner.clone();
    found
        .iter()
        .find(|run| run.runner == runner)
        .ok_or_else(|| Failure::failed(format!("{runner} ended just now")))
}

fn unreachable_shell(run: &FoundRun, error: InspectError) -> Failure {
    let gone = matches!(&error, InspectError::Io { source, .. }
        if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused));
    if gone {
        let runner = &run.runner;
        return Failure::not_found(format!(
            "{runner} has no shell to connect to: {error}; its virtual machine is starting or has \
             just ended (`forrest logs {runner}`)"
        ));
    }
    error.into()
}

fn greet(run: &FoundRun) {
    let size = match output_size() {
        Some((columns, rows)) => {
            format!("; `stty cols {columns} rows {rows}` tells the guest the size of this terminal")
        }
        None => String::new(),
    };
    eprint!(
        "forrest: root shell of {} ({}); press Enter for a prompt, Ctrl-] to leave{size}\r\n",
        run.runner, run.machine
    );
}

/// The signals that end a session in order.
struct Signals([(Signal, &'static str); 4]);

impl Signals {
    fn new() -> Result<Self, Failure> {
        let listen = |kind, name| {
            signal(kind)
                .map(|signal| (signal, name))
                .map_err(|error| Failure::failed(format!("could not listen for signals: {error}")))
        };
        Ok(Self([
            listen(SignalKind::terminate(), "SIGTERM")?,
            listen(SignalKind::hangup(), "SIGHUP")?,
            listen(SignalKind::interrupt(), "SIGINT")?,
            listen(SignalKind::quit(), "SIGQUIT")?,
        ]))
    }

    async fn any(&mut self) -> &'static str {
        let [a, b, c, d] = &mut self.0;
        tokio::select! {
            _ = a.0.recv() => a.1,
            _ = b.0.recv() => b.1,
            _ = c.0.recv() => c.1,
            _ = d.0.recv() => d.1,
        }
    }
}

struct Session {
    from_guest: tokio::net::unix::OwnedReadHalf,
    to_guest: OwnedWriteHalf,
    /// Input that the guest has not taken yet.
    typed: Vec<u8>,
    interactive: bool,
    wait: Duration,
    guard: Guard,
}

impl Session {
    fn new(stream: UnixStream, interactive: bool, wait: Duration) -> Self {
        let (from_guest, to_guest) = stream.into_split();
        let typed = Vec::new();
        Self { from_guest, to_guest, typed, interactive, wait, guard: Guard::default() }
    }

    async fn talk(&mut self, mut signals: Signals) -> Result<End, Failure> {
        let mut input = read_input();
        let mut buffer = vec![0; BUFFER_LEN];
        let mut input_is_over = false;
        // Only counts once the input is over.
        let mut quiet_at = Instant::now();
        loop {
            let takes_input =
                !input_is_over && (self.interactive || self.typed.len() < TYPED_LEN_MAX);
            tokio::select! {
                name = signals.any() => return Ok(End::Signal(name)),
                piece = input.recv(), if takes_input => match piece {
                    Some(piece) => {
                        if self.take(&piece) {
                            return Ok(End::Escape);
                        }
                    }
                    // A terminal that is gone; the signal may still be on its way.
                    None if self.interactive => return Ok(End::Escape),
                    None => {
                        input_is_over = true;
                        quiet_at = Instant::now() + self.wait;
                    }
                },
                written = self.to_guest.write(&self.typed), if !self.typed.is_empty() => match written {
                    Ok(len) => {
                        self.typed.drain(..len);
                        quiet_at = Instant::now() + self.wait;
                    }
                    Err(_) => return Ok(End::Guest),
                },
                read = self.from_guest.read(&mut buffer) => match read {
                    Ok(0) | Err(_) => return Ok(End::Guest),
                    Ok(len) => {
                        quiet_at = Instant::now() + self.wait;
                        if !self.show(&buffer[..len])? {
                            return Ok(End::Output);
                        }
                    }
                },
                () = tokio::time::sleep_until(quiet_at), if input_is_over => return Ok(End::Input),
            }
        }
    }

    /// Takes input for the guest. Returns whether it ends the session.
    fn take(&mut self, piece: &[u8]) -> bool {
        if !self.interactive {
            self.typed.extend(piece);
            return false;
        }
        let escape = piece.iter().position(|byte| *byte == ESCAPE);
        let piece = &piece[..escape.unwrap_or(piece.len())];
        let room = TYPED_LEN_MAX.saturating_sub(self.typed.len());
        self.typed.extend(&piece[..piece.len().min(room)]);
        escape.is_some()
    }

    /// Shows what the guest printed. Returns whether anybody reads.
    fn show(&mut self, bytes: &[u8]) -> Result<bool, Failure> {
        if !io::stdout().is_terminal() {
            return write_out(bytes);
        }
        let mut passed = Vec::with_capacity(bytes.len());
        self.guard.feed(bytes, &mut passed);
        write_out(&passed)
    }
}

/// Reads standard input on a thread of its own: files, pipes and terminals all can be read so. It ends
/// with the process.
fn read_input() -> mpsc::Receiver<Vec<u8>> {
    let (pieces, input) = mpsc::channel(PIECES_MAX);
    std::thread::spawn(move || {
        let mut stdin = io::stdin().lock();
        let mut buffer = vec![0; BUFFER_LEN];
        loop {
            match stdin.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => return,
                Ok(len) => {
                    if pieces.blocking_send(buffer[..len].to_vec()).is_err() {
                        return;
                    }
                }
            }
        }
    });
    input
}
