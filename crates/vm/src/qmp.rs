//! A client of QEMU's monitor (QMP): commands with answers, and the few events that matter.
//!
//! Follows the QEMU Machine Protocol specification. QEMU is trusted less than this process, for a guest
//! may have broken into it: lines are bounded, unknown things are ignored, and answers have a time
//! limit.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};

use crate::VmError;
use crate::lines::{BoundedLines, Line, Pace};

/// The longest line that is taken from QEMU, in bytes. The answers to what is asked here are far
/// shorter.
pub const LINE_LEN_MAX: usize = 64 << 10;
/// How long QEMU may take for an answer: it may be writing to a slow disk.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Commands that may wait for their turn.
const COMMANDS_MAX: usize = 8;
/// Events that may wait to be looked at; QEMU waits beyond that.
const EVENTS_MAX: usize = 32;
/// How many lines QEMU may send in the long run, a second: each event may become a line of log. It sends
/// some hundred in its life, a few for each request that meets a full disk.
const LINES_PER_S_MAX: u32 = 10;
/// How many lines it may send at once before the rate counts.
const LINES_BURST: u32 = 1000;
const READ_BUFFER_LEN: usize = 4 << 10;

/// An event of QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QmpEvent {
    /// The machine has stopped for good, or QEMU is about to exit.
    Shutdown {
        /// QEMU's `ShutdownCause`, such as `guest-shutdown`.
        reason: String,
    },
    /// The guest's kernel panicked.
    GuestPanicked,
    /// The guest's CPUs stand still.
    Stop,
    /// The guest's CPUs run.
    Resume,
    /// A disk could not be read or written.
    BlockIoError {
        /// Which disk.
        device: String,
        /// Whether the machine is stopped because of it.
        stopped: bool,
        /// Whether the host's disk is full.
        nospace: bool,
    },
    /// A migration (here: saving or loading a template) has changed its status.
    Migration {
        /// QEMU's `MigrationStatus`, such as `completed`.
        status: String,
    },
}

impl QmpEvent {
    fn from_wire(name: &str, data: &Value) -> Option<Self> {
        let text = |key: &str| data.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        Some(match name {
            "SHUTDOWN" => Self::Shutdown { reason: text("reason") },
            "GUEST_PANICKED" => Self::GuestPanicked,
            "STOP" => Self::Stop,
            "RESUME" => Self::Resume,
            "BLOCK_IO_ERROR" => Self::BlockIoError {
                device: text("device"),
                stopped: text("action") == "stop",
                nospace: data.get("nospace").and_then(Value::as_bool).unwrap_or(false),
            },
            "MIGRATION" => Self::Migration { status: text("status") },
            _ => return None,
        })
    }
}

#[derive(Debug, Deserialize)]
struct Wire {
    id: Option<u64>,
    #[serde(rename = "return")]
    returned: Option<Value>,
    error: Option<WireError>,
    event: Option<String>,
    #[serde(default)]
    data: Value,
}

#[derive(Debug, Deserialize)]
struct WireError {
    #[serde(default)]
    desc: String,
}

type Reply = oneshot::Sender<Result<Value, VmError>>;

struct Command {
    name: &'static str,
    arguments: Value,
    reply: Reply,
}

/// A handle on the monitor. Clones share the connection, which ends with the last of them.
#[derive(Debug, Clone)]
pub struct Qmp {
    commands: mpsc::Sender<Command>,
}

impl Qmp {
    /// Takes the greeting, leaves the negotiation, and serves the connection from then on. The receiver
    /// gets the events and ends when QEMU closes the connection.
    ///
    /// # Errors
    /// [`VmError::Monitor`] where QEMU goes away or does not speak QMP.
    pub async fn handshake(
        stream: UnixStream,
    ) -> Result<(Self, mpsc::Receiver<QmpEvent>), VmError> {
        let (read, write) = stream.into_split();
        let mut lines = BoundedLines::new(read, LINE_LEN_MAX, READ_BUFFER_LEN);
        let greeting = next_json(&mut lines).await?;
        if greeting.get("QMP").is_none() {
            return Err(VmError::Monitor("it greeted with something other than QMP".to_owned()));
        }
        let (commands, queue) = mpsc::channel(COMMANDS_MAX);
        let (events, happened) = mpsc::channel(EVENTS_MAX);
        let connection = Connection { lines, write, events, pending: BTreeMap::new(), next_id: 1 };
        tokio::spawn(connection.serve(queue));
        let qmp = Self { commands };
        qmp.execute("qmp_capabilities", json!({})).await?;
        Ok((qmp, happened))
    }

    /// Gives a command and waits for its answer.
    ///
    /// # Errors
    /// [`VmError::Refused`] when QEMU says no, [`VmError::Timeout`] after [`ANSWER_TIMEOUT`],
    /// [`VmError::Monitor`] when the connection is gone.
    pub async fn execute(&self, name: &'static str, arguments: Value) -> Result<Value, VmError> {
        let gone =
            || VmError::Monitor(format!("the connection ended before {name:?} was answered"));
        let (reply, answer) = oneshot::channel();
        let exchange = async {
            self.commands.send(Command { name, arguments, reply }).await.map_err(|_| gone())?;
            answer.await.map_err(|_| gone())?
        };
        tokio::time::timeout(ANSWER_TIMEOUT, exchange).await.unwrap_or_else(|_| {
            Err(VmError::Timeout {
                what: format!("QEMU's monitor, asked for {name:?},"),
                seconds: ANSWER_TIMEOUT.as_secs(),
            })
        })
    }
}

async fn next_json(lines: &mut BoundedLines<OwnedReadHalf>) -> Result<Value, VmError> {
    match lines.next().await {
        Ok(Some(Line::Text(line))) => serde_json::from_slice(&line)
            .map_err(|err| VmError::Monitor(format!("it sent something other than JSON: {err}"))),
        Ok(Some(Line::TooLong)) => {
            Err(VmError::Monitor(format!("it sent a line of more than {LINE_LEN_MAX} bytes")))
        }
        Ok(None) => Err(VmError::Monitor("QEMU closed it".to_owned())),
        Err(err) => Err(VmError::Monitor(err.to_string())),
    }
}

struct Connection {
    lines: BoundedLines<OwnedReadHalf>,
    write: OwnedWriteHalf,
    events: mpsc::Sender<QmpEvent>,
    /// Who waits for which answer, with the command's name.
    pending: BTreeMap<u64, (&'static str, Reply)>,
    next_id: u64,
}

impl Connection {
    /// Until QEMU closes the connection, breaks the protocol, or nobody holds a handle any more. Those
    /// who still wait for an answer learn it by their reply being dropped.
    async fn serve(mut self, mut queue: mpsc::Receiver<Command>) {
        let mut pace = Pace::new(LINES_PER_S_MAX, LINES_BURST);
        loop {
            let go_on = tokio::select! {
                line = self.lines.next() => {
                    pace.keep().await;
                    match line {
                        Ok(Some(Line::Text(line))) => self.take(&line).await,
                        Ok(Some(Line::TooLong) | None) | Err(_) => false,
                    }
                }
                command = queue.recv() => match command {
                    Some(command) => self.give(command).await,
                    None => false,
                },
            };
            if !go_on {
                return;
            }
        }
    }

    async fn take(&mut self, line: &[u8]) -> bool {
        let Ok(wire) = serde_json::from_slice::<Wire>(line) else { return false };
        if let Some(name) = wire.event {
            return match QmpEvent::from_wire(&name, &wire.data) {
                Some(event) => self.events.send(event).await.is_ok(),
                None => true,
            };
        }
        let Some((name, reply)) = wire.id.and_then(|id| self.pending.remove(&id)) else {
            return true;
        };
        let answer = match (wire.returned, wire.error) {
            (_, Some(error)) => {
                Err(VmError::Refused { command: name.to_owned(), reason: error.desc })
            }
            (Some(value), None) => Ok(value),
            (None, None) => Err(VmError::Monitor(format!("it answered {name:?} with nothing"))),
        };
        // Whoever asked may have stopped waiting.
        let _ = reply.send(answer);
        true
    }

    async fn give(&mut self, command: Command) -> bool {
        let id = self.next_id;
        self.next_id += 1;
        // Those who gave up make room, so this stays as small as the number of those who wait.
        self.pending.retain(|_, (_, reply)| !reply.is_closed());
        let mut line = json!({ "execute": command.name, "arguments": command.arguments, "id": id })
            .to_string();
        line.push('\n');
        self.pending.insert(id, (command.name, command.reply));
        self.write.write_all(line.as_bytes()).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A QEMU that sends these lines and then hangs up once the client does, or at once.
    fn speaks(lines: &'static str) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        tokio::spawn(async move {
            let (read, mut write) = theirs.into_split();
            let mut requests = BoundedLines::new(read, LINE_LEN_MAX, 64);
            for line in lines.lines() {
                if line == "<" {
                    requests.next().await.expect("a request");
                } else if write.write_all(format!("{line}\n").as_bytes()).await.is_err() {
                    return;
                }
            }
        });
        ours
    }

    #[tokio::test]
    async fn answers_and_events_are_told_apart_and_strangers_ignored() {
        let stream = speaks(
            r#"{"QMP":{"version":{}}}
<
{"return":{},"id":1}
{"event":"NOVELTY","data":{"x":1},"timestamp":{}}
{"event":"SHUTDOWN","data":{"guest":true,"reason":"guest-shutdown"},"timestamp":{}}
{"return":{},"id":99}
<
{"error":{"class":"GenericError","desc":"no"},"id":2}"#,
        );
        let (qmp, mut events) = Qmp::handshake(stream).await.expect("handshake");
        let refusal = qmp.execute("cont", json!({})).await.expect_err("a refusal");
        assert!(matches!(refusal, VmError::Refused { .. }), "{refusal}");
        let reason = "guest-shutdown".to_owned();
        assert_eq!(events.recv().await, Some(QmpEvent::Shutdown { reason }));
        assert_eq!(events.recv().await, None, "the end of the connection");
        assert!(qmp.execute("cont", json!({})).await.is_err());
    }

    #[tokio::test]
    async fn nonsense_ends_the_connection_and_not_the_program() {
        for nonsense in ["not JSON", "[1]", "{\"id\":\"x\"}"] {
            let greeting = "{\"QMP\":{}}\n<\n{\"return\":{},\"id\":1}\n<\n";
            let script: &'static str = format!("{greeting}{nonsense}\n<").leak();
            let (qmp, mut events) = Qmp::handshake(speaks(script)).await.expect("handshake");
            assert!(qmp.execute("stop", json!({})).await.is_err(), "{nonsense}");
            assert_eq!(events.recv().await, None);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_events_is_read_slowly() {
        let flood = "{\"event\":\"RESUME\",\"data\":{}}\n".repeat(LINES_BURST as usize + 100);
        let greeting = "{\"QMP\":{}}\n<\n{\"return\":{},\"id\":1}\n";
        let script: &'static str = format!("{greeting}{flood}").leak();
        let (_qmp, mut events) = Qmp::handshake(speaks(script)).await.expect("handshake");
        let began = tokio::time::Instant::now();
        let mut seen = 0;
        while events.recv().await.is_some() {
            seen += 1;
        }
        assert_eq!(seen, LINES_BURST + 100);
        let took = began.elapsed();
        assert!((9..=12).contains(&took.as_secs()), "{took:?}");
    }

    #[tokio::test]
    async fn endless_lines_are_not_stored() {
        let script: &'static str = "x".repeat(LINE_LEN_MAX * 4).leak();
        let error = Qmp::handshake(speaks(script)).await.expect_err("no greeting").to_string();
        assert!(error.contains("closed") || error.contains("more than"), "{error}");
    }
}
