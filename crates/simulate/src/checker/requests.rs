//! GitHub is asked as often as it allows, and with measure.

use forrest_core::Command;

use crate::plan::{MINUTE, SECOND};
use crate::world::World;

use super::Broken;

/// The span over which requests are counted.
const SPAN: u64 = 10 * MINUTE;
/// Requests within that span, of a host with a handful of machine types. GitHub allows 5,000 an hour.
const REQUESTS_MAX: usize = 600;
/// The shortest pause between two polls of a repository.
const POLL_PAUSE: u64 = 5 * SECOND;

impl World {
    /// The core wants something done; if that is a request, whether it may.
    pub(super) fn judge_request(&mut self, command: &Command) -> Result<(), Broken> {
        let now = self.now;
        let checker = &mut self.checker;
        match command {
            Command::Register { .. }
            | Command::Deregister { .. }
            | Command::RemoveOrphan { .. }
            | Command::FetchJob { .. }
            | Command::RepairDeliveries => {}
            Command::Poll { repository, .. } => {
                let (last, blocked) = checker.polls.entry(repository.clone()).or_default();
                let jumped = |since: u64| checker.jumped >= since;
                if let Some(last) = *last
                    && last + POLL_PAUSE > now
                    && !jumped(last)
                {
                    let pause = now - last;
                    return Err(Broken(format!("{repository} is polled again after {pause} ms")));
                }
                if *blocked > now && !jumped(blocked.saturating_sub(2 * crate::plan::HOUR)) {
                    let early = *blocked - now;
                    return Err(Broken(format!("{repository} is polled {early} ms too early")));
                }
                *last = Some(now);
            }
            _ => return Ok(()),
        }
        checker.sent.push_back(now);
        while checker.sent.front().is_some_and(|at| at + SPAN < now) {
            checker.sent.pop_front();
        }
        if checker.sent.len() > REQUESTS_MAX {
            return Err(Broken(format!("more than {REQUESTS_MAX} requests in ten minutes")));
        }
        Ok(())
    }
}
