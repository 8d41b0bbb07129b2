//! What systemd wants to hear: that the daemon is ready, alive, reloading or stopping.
//!
//! Outside of systemd all of it does nothing.

use std::time::Duration;

use sd_notify::NotifyState;

/// How often systemd has to be told that the daemon is alive: half of what the unit allows.
pub(crate) fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 2)
}

/// The daemon serves.
pub(crate) fn ready(status: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The daemon is alive; only the driver loop says so, so that a loop that hangs is noticed.
pub(crate) fn alive() {
    notify(&[NotifyState::Watchdog]);
}

/// The daemon stops.
pub(crate) fn stopping() {
    notify(&[NotifyState::Stopping]);
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "could not notify systemd");
    }
}
