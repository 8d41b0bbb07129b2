//! How a VM ended: `outcome.json`, written by the shim when QEMU is gone.

use forrest_core::model::{RunnerName, Timestamp};
use serde::{Deserialize, Serialize};

use crate::spec::BootKind;

/// The format of outcomes that this version writes.
pub const FORMAT: u32 = 1;
/// The most complaints of a guest that are kept.
pub const GUEST_ERRORS_MAX: usize = 4;

/// Why a VM ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndReason {
    /// The guest powered itself off and QEMU closed the disk in order: the only end after which a disk
    /// may be kept.
    GuestShutdown,
    /// The guest rebooted. A run boots once.
    GuestReset,
    /// The guest's kernel panicked.
    GuestPanicked,
    /// Somebody asked for it, or stopped the shim or QEMU from outside.
    Killed,
    /// The VM was ended while it was paused because its disk could not be written.
    IoError,
    /// The guest did not say `ready` in time.
    BootTimeout,
    /// The job took longer than its machine type allows.
    JobTimeout,
    /// QEMU could not be started, failed, or did not close the disk in order.
    QemuFailed,
    /// The guest could not be restored from its template; it never ran.
    RestoreFailed,
    /// The VM did what it was for: its template is saved.
    TemplateSaved,
    /// A reason that a newer version knows.
    #[serde(other)]
    Unknown,
}

/// When the stations of a VM's life were passed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VmTimes {
    /// The shim began.
    pub shim_started_at: Timestamp,
    /// QEMU was started.
    pub qemu_started_at: Option<Timestamp>,
    /// The guest's CPUs began to run.
    pub vm_started_at: Option<Timestamp>,
    /// The guest said `ready`; for a restored guest, when it ran again.
    pub ready_at: Option<Timestamp>,
    /// The daemon said that the job config is in place.
    pub job_config_attached_at: Option<Timestamp>,
    /// `go` was sent to the guest.
    pub go_sent_at: Option<Timestamp>,
    /// The guest said that its runner started.
    pub runner_started_at: Option<Timestamp>,
    /// The guest said that its runner exited.
    pub runner_exited_at: Option<Timestamp>,
    /// The guest was asked to power down.
    pub power_down_requested_at: Option<Timestamp>,
    /// The VM's end was decided, by whomever.
    pub ending_at: Option<Timestamp>,
    /// QEMU had exited.
    pub ended_at: Option<Timestamp>,
}

/// How the QEMU process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QemuExit {
    /// With this status.
    Status(i32),
    /// By this signal.
    Signal(i32),
    /// It never ran.
    NotStarted,
}

impl QemuExit {
    /// Whether QEMU ended as it should, with everything written.
    pub fn is_clean(self) -> bool {
        self == Self::Status(0)
    }

    /// What a signal says that was not sent from here, where that is worth saying.
    pub(crate) fn signal_from_outside(self) -> Option<&'static str> {
        match self {
            Self::Signal(SIGKILL) => Some(
                "it was killed from outside (SIGKILL), as the kernel does when the host is out of memory; \
                 `dmesg` says so then: lower `host.ram`",
            ),
            Self::Signal(SIGBUS) => Some(
                "it was ended by SIGBUS: there was no room for its guest's memory, which is a file while a \
                 snapshot is made: is the disk full?",
            ),
            Self::Status(_) | Self::Signal(_) | Self::NotStarted => None,
        }
    }
}

/// Numbers of signals, the same on all processors that QEMU emulates or runs on here.
const SIGBUS: i32 = 7;
const SIGKILL: i32 = 9;

/// How a VM ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// [`FORMAT`].
    pub format: u32,
    /// Whose end it is.
    pub runner: RunnerName,
    /// How the guest came to life.
    pub boot: BootKind,
    /// Why it ended.
    pub reason: EndReason,
    /// Whether the daemon or an operator asked for the end, be it by `power_down` or `kill`.
    pub requested: bool,
    /// More about the reason, in words.
    pub detail: String,
    /// How QEMU exited.
    pub qemu_exit: QemuExit,
    /// The last that QEMU wrote to its standard error output; bounded.
    #[serde(default)]
    pub stderr: Vec<String>,
    /// When what happened.
    pub times: VmTimes,
    /// What the guest reported as its runner's exit code. A hostile guest says what it likes.
    #[serde(default)]
    pub runner_exit_code: Option<i32>,
    /// What the guest complained about: its first [`GUEST_ERRORS_MAX`] messages, without control
    /// characters. A hostile guest says what it likes.
    #[serde(default)]
    pub guest_errors: Vec<String>,
    /// Lines of the guest that were not understood, too long or too many.
    #[serde(default)]
    pub guest_lines_dropped: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_have_the_documented_names_and_newer_ones_are_tolerated() {
        let text = |reason| serde_json::to_string(&reason).expect("JSON");
        assert_eq!(text(EndReason::GuestShutdown), "\"guest-shutdown\"");
        assert_eq!(text(EndReason::IoError), "\"io-error\"");
        let reason: EndReason = serde_json::from_str("\"abducted\"").expect("tolerated");
        assert_eq!(reason, EndReason::Unknown);
    }
}
