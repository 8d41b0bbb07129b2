//! How the daemon and the shim talk over `control.sock`: one JSON object a line, in both directions.
//!
//! ```text
//! > {"request":"power_down"}
//! < {"answer":"done"}
//! > {"request":"watch"}
//! < {"answer":"state","state":{…}}
//! < {"answer":"event","event":{"at":1700000000000,"event":"guest_ready"}}
//! ```
//!
//! Requests of one connection are answered in order. After `watch` the connection only carries events;
//! the state that answers it and the events after it leave nothing out and repeat nothing. The end of
//! the connection without an `exited` event means that the client was too slow, or the shim died.

use forrest_core::model::{RunnerName, Timestamp};
use serde::{Deserialize, Serialize};

use crate::outcome::VmTimes;
use crate::spec::BootKind;
use crate::{JobFiles, Outcome};

/// The longest request, in bytes: with all that a guest may be told of its job configuration.
pub const REQUEST_LEN_MAX: usize = 2 * crate::job_files::LEN_MAX;
/// The longest answer, in bytes.
pub const ANSWER_LEN_MAX: usize = 256 << 10;
/// The most connections to one shim at a time; further ones are closed at once.
pub const CLIENTS_MAX: usize = 16;
/// How many events a watcher may lag behind before it is cut off.
pub const EVENTS_BEHIND_MAX: usize = 64;
/// The most characters that are kept of a text that a client gives as its reason.
pub const WHY_LEN_MAX: usize = 200;

/// What a client can ask of a shim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// The VM's state.
    Status,
    /// The VM's state, then every event.
    Watch,
    /// The job config disk has its content: send the guest `go` as soon as it is ready.
    AttachJobConfig {
        /// What the guest is told of that disk when it asks.
        #[serde(default)]
        files: JobFiles,
    },
    /// End a VM that was never given a job config, since it will not get one. Refused where it was.
    GiveUp {
        /// Why, for the record; at most [`WHY_LEN_MAX`] characters of it are kept.
        why: String,
    },
    /// Press the guest's power button.
    PowerDown,
    /// End the VM at once.
    Kill {
        /// Why, for the record; at most [`WHY_LEN_MAX`] characters of it are kept.
        why: String,
    },
    /// End the VM at this time with [`crate::EndReason::JobTimeout`]; `None`: not any more.
    JobDeadline {
        /// When, by the host's clock.
        at: Option<Timestamp>,
    },
    /// Let a VM go on that was paused because its disk could not be written.
    Resume,
}

/// What a shim answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// It is done.
    Done,
    /// It is not done.
    Refused {
        /// Why.
        reason: String,
    },
    /// To `status` and `watch`.
    State {
        /// The VM's state.
        state: Box<VmState>,
    },
    /// After `watch`.
    Event {
        /// What happened.
        event: ShimEvent,
    },
}

/// Why a VM is paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PauseReason {
    /// The host's disk is full. The shim lets the VM go on by itself when there is space again.
    #[serde(rename = "nospace")]
    NoSpace,
    /// The host's disk failed. The VM goes on when asked to.
    IoError,
}

/// A pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// Why.
    pub reason: PauseReason,
    /// Since when.
    pub since: Timestamp,
}

/// Something that happened to a VM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShimEvent {
    /// When, by the host's clock.
    pub at: Timestamp,
    /// What.
    #[serde(flatten)]
    pub event: Happened,
}

/// What happened to a VM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Happened {
    /// The guest's CPUs run.
    VmStarted,
    /// The guest said `ready`, or was restored from a guest that had.
    GuestReady,
    /// `go` was sent to the guest.
    GoSent,
    /// The guest said that its runner started.
    RunnerStarted,
    /// The guest said that its runner exited.
    RunnerExited {
        /// With which code, if it said one.
        code: Option<i32>,
    },
    /// The guest complained.
    GuestError {
        /// Its words, bounded and without control characters.
        text: String,
    },
    /// The VM is paused.
    Paused {
        /// Why.
        reason: PauseReason,
    },
    /// The VM runs again.
    Resumed,
    /// The VM is gone; nothing follows.
    Exited {
        /// How it ended, as recorded in `outcome.json`.
        outcome: Box<Outcome>,
    },
    /// Something that this version does not know.
    #[serde(other)]
    Unknown,
}

/// All there is to know about a VM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VmState {
    /// Whose VM it is.
    pub runner: RunnerName,
    /// How the guest comes to life.
    pub boot: BootKind,
    /// QEMU's process id, while it runs.
    pub qemu_pid: Option<u32>,
    /// When what happened.
    pub times: VmTimes,
    /// Set while the VM is paused because its disk could not be written.
    pub paused: Option<Pause>,
    /// When the shim will end the VM because the job took too long.
    pub job_deadline: Option<Timestamp>,
    /// What the guest reported as its runner's exit code.
    pub runner_exit_code: Option<i32>,
    /// What the guest complained about; bounded.
    pub guest_errors: Vec<String>,
    /// Lines of the guest that were not understood, too long or too many.
    pub guest_lines_dropped: u64,
    /// How it ended, once it has.
    pub outcome: Option<Box<Outcome>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wire_form_is_stable() {
        let wire = |value: serde_json::Result<String>| value.expect("JSON");
        assert_eq!(wire(serde_json::to_string(&Request::PowerDown)), r#"{"request":"power_down"}"#);
        assert_eq!(
            wire(serde_json::to_string(&Request::JobDeadline { at: Some(Timestamp(5)) })),
            r#"{"request":"job_deadline","at":5}"#
        );
        let event = ShimEvent {
            at: Timestamp(7),
            event: Happened::Paused { reason: PauseReason::NoSpace },
        };
        let text = wire(serde_json::to_string(&Answer::Event { event: event.clone() }));
        assert_eq!(
            text,
            r#"{"answer":"event","event":{"at":7,"event":"paused","reason":"nospace"}}"#
        );
        assert_eq!(serde_json::from_str::<Answer>(&text).expect("reads"), Answer::Event { event });
    }

    #[test]
    fn events_of_a_newer_shim_are_tolerated() {
        let event: ShimEvent =
            serde_json::from_str(r#"{"at":7,"event":"levitated","height":3}"#).expect("tolerated");
        assert_eq!(event.event, Happened::Unknown);
    }
}
