//! Waiting until a guest has nothing to do, before it is saved.
//!
//! A guest is ready for a job before its boot is over: units that no job needs still start. In a template
//! each clone would go on with them, just when its own job begins. The guest need not know of this: what
//! its QEMU does says enough.

use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// How long a guest may take to calm down; it is saved as it is after that.
pub const SETTLE_LIMIT: Duration = Duration::from_secs(3);
/// How long it has to be quiet.
const WINDOW: Duration = Duration::from_millis(150);
/// Work in such a window that counts as quiet: timers go on.
const QUIET: Duration = Duration::from_millis(15);

/// Waits until this process has had next to nothing to do for a while, at most [`SETTLE_LIMIT`]. Says whether
/// that was so; at once where it cannot be told.
pub(crate) async fn until_quiet(pid: u32) -> bool {
    let give_up = Instant::now() + SETTLE_LIMIT;
    let Some(mut before) = work(pid) else { return false };
    while Instant::now() < give_up {
        sleep(WINDOW).await;
        let Some(now) = work(pid) else { return false };
        if now.saturating_sub(before) <= QUIET {
            return true;
        }
        before = now;
    }
    false
}

/// How long the threads of a process have computed or waited for a CPU so far: on a busy host, one that has
/// much to do may get little of it done. The first two numbers of `schedstat`, in nanoseconds.
fn work(pid: u32) -> Option<Duration> {
    let tasks = std::fs::read_dir(Path::new("/proc").join(pid.to_string()).join("task")).ok()?;
    let of_task = |task: std::fs::DirEntry| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').take(2).map(|number| number.parse::<u64>().ok()).sum::<Option<u64>>()
    };
    let nanoseconds: u64 = tasks.flatten().filter_map(of_task).sum();
    Some(Duration::from_nanos(nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::process::Command;

    #[tokio::test]
    async fn a_process_that_sleeps_is_quiet_and_one_that_computes_is_not() {
        let start = |command: &mut Command| command.kill_on_drop(true).spawn().expect("it starts");
        let sleeps = start(Command::new("sleep").arg("60"));
        assert!(until_quiet(sleeps.id().expect("it runs")).await);
        let computes = start(Command::new("sh").args(["-c", "while :; do :; done"]));
        assert!(!until_quiet(computes.id().expect("it runs")).await);
        assert!(!until_quiet(u32::MAX).await);
    }
}
