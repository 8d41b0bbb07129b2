//! Waiting until a guest has nothing to do, before it is saved.
//!
//! A guest is ready for a job before its boot is over: units that no job needs still start. In a template
//! each clone would go on with them, just when its own job begins. The guest need not know of this: what
//! its QEMU computes says enough.

use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// How long a guest may take to calm down; it is saved as it is after that.
pub const SETTLE_LIMIT: Duration = Duration::from_secs(3);
/// How long it has to be quiet.
const WINDOW: Duration = Duration::from_millis(150);
/// CPU time in such a window that counts as quiet: timers go on.
const QUIET: Duration = Duration::from_millis(15);

/// Waits until this process has computed next to nothing for a while, at most [`SETTLE_LIMIT`]. Returns
/// at once where that cannot be told.
pub(crate) async fn until_quiet(pid: u32) {
    let give_up = Instant::now() + SETTLE_LIMIT;
    let Some(mut before) = cpu_time(pid) else { return };
    while Instant::now() < give_up {
        sleep(WINDOW).await;
        let Some(now) = cpu_time(pid) else { return };
        if now.saturating_sub(before) <= QUIET {
            return;
        }
        before = now;
    }
}

/// What the threads of a process have computed so far; the first number of `schedstat` is in nanoseconds.
fn cpu_time(pid: u32) -> Option<Duration> {
    let tasks = std::fs::read_dir(Path::new("/proc").join(pid.to_string()).join("task")).ok()?;
    let of_task = |task: std::fs::DirEntry| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    };
    let nanoseconds: u64 = tasks.flatten().filter_map(of_task).sum();
    Some(Duration::from_nanos(nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_that_sleeps_is_quiet_and_one_that_computes_is_not() {
        let mut sleeps = tokio::process::Command::new("sleep").arg("60").spawn().expect("sleep");
        let began = Instant::now();
        until_quiet(sleeps.id().expect("it runs")).await;
        assert!(began.elapsed() < SETTLE_LIMIT);
        sleeps.kill().await.expect("killed");

        let mut computes = tokio::process::Command::new("sh");
        let mut computes = computes.args(["-c", "while :; do :; done"]).spawn().expect("a shell");
        let began = Instant::now();
        until_quiet(computes.id().expect("it runs")).await;
        assert!(began.elapsed() >= SETTLE_LIMIT);
        computes.kill().await.expect("killed");

        let began = Instant::now();
        until_quiet(u32::MAX).await;
        assert!(began.elapsed() < WINDOW);
    }
}
