//! A host whose disk is nearly full: what may go has to, before guests are paused for want of space.

use std::time::Duration;

use crate::command::{Command, Level, Note};
use crate::core::Core;
use crate::model::{Bytes, Timestamp};

/// Shortest pause between two attempts to make room: what could go is gone after the first.
pub(crate) const RECLAIM_PAUSE: Duration = Duration::from_secs(10 * 60);

impl Core {
    /// Takes in how much is free, and has room made where that is less than what is to stay free.
    pub(crate) fn disk_measured(&mut self, now: Timestamp, free: Bytes, out: &mut Vec<Command>) {
        self.free_disk = Some(free);
        let wanted = self.policy.capacity.min_free_disk;
        let lately = self.reclaimed_at.is_some_and(|at| now.since(at) < RECLAIM_PAUSE);
        if free >= wanted || lately {
            return;
        }
        self.reclaimed_at = Some(now);
        let text = format!(
            "only {free} of the disk are free, and {wanted} are to stay free (`host.min_free_disk`): \
             removing the logs of finished runs, and then old machine images, as far as needed"
        );
        out.push(Command::Note(Note { level: Level::Warn, runner: None, job: None, text }));
        out.push(Command::Reclaim { wanted });
    }
}
