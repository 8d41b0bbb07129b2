//! `forrest status`: what runs, what waits and for what, and where the time went.

mod finished;
mod render;
mod waiting;

use std::time::Duration;

use forrest_daemon::control::{Client, Status as DaemonState};
use forrest_daemon::inspect::runs::{self, Life};

use super::{block_on, print, print_json, write_out};
use crate::cli::Which;
use crate::failure::{Failure, Status};
use crate::find;
use crate::terminal::layout::{output_size, output_width};
use crate::terminal::neutral;
use crate::terminal::paint::Paint;
use crate::words::counted;

/// Time between two looks with `--watch`.
const INTERVAL: Duration = Duration::from_secs(1);

/// What to show.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// As JSON.
    pub json: bool,
    /// Again and again.
    pub watch: bool,
    /// How many finished runs.
    pub finished: usize,
}

/// Asks the daemon and shows what it says.
pub fn run(which: &Which, options: &Options) -> Result<Status, Failure> {
    let base_dir = find::base_dir(which)?;
    let client = Client::new(&base_dir);
    block_on(async {
        let first = match client.status().await {
            Ok(status) => status,
            Err(error) => return Err(with_orphans(error.into(), &base_dir)),
        };
        if options.watch {
            watch(&client, first, options).await
        } else if options.json {
            print_json(&first)
        } else {
            print(&shown(&first, options))
        }
    })?;
    Ok(Status::Ok)
}

fn shown(status: &DaemonState, options: &Options) -> String {
    let paint = Paint::for_stream(&std::io::stdout());
    render::render(status, output_width(), options.finished, paint)
}

/// A daemon that is down is no reason not to say that its virtual machines go on.
fn with_orphans(mut failure: Failure, base_dir: &std::path::Path) -> Failure {
    if failure.status == Status::NotRunning {
        let found = runs::runs(base_dir).unwrap_or_default();
        let live: Vec<_> =
            found.iter().filter(|run| matches!(run.life(), Ok(Life::Live))).collect();
        if !live.is_empty() {
            let count = counted(live.len(), "virtual machine goes", "virtual machines go");
            failure.message.push_str(&format!("\n{count} on meanwhile, and will be taken over:"));
            for run in live {
                failure.message.push_str(&format!("\n  {}  ({})", run.runner, run.machine));
            }
        }
    }
    failure
}

/// Shows every change. On a terminal each picture takes the place of the one before.
async fn watch(client: &Client, first: DaemonState, options: &Options) -> Result<(), Failure> {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut state: Result<DaemonState, Failure> = Ok(first);
    let mut last = None;
    loop {
        let text = match &state {
            Ok(status) if options.json => json_line(status)?,
            Ok(status) => shown(status, options),
            Err(failure) => format!("{}\n", neutral::lines(&failure.message)),
        };
        if last.as_ref() != Some(&text) {
            let is_read = match output_size() {
                Some((_, rows)) if !options.json => write_out(picture(&text, rows).as_bytes())?,
                _ if state.is_err() => {
                    eprint!("forrest: {text}");
                    true
                }
                _ if options.json => write_out(text.as_bytes())?,
                _ => write_out(format!("{text}\n").as_bytes())?,
            };
            if !is_read {
                return Ok(());
            }
            last = Some(text);
        }
        ticks.tick().await;
        // A daemon that is being restarted comes back.
        state = client.status().await.map_err(Failure::from);
    }
}

/// The state in one line. Two answers that differ in nothing but the time are one.
fn json_line(status: &DaemonState) -> Result<String, Failure> {
    let text = serde_json::to_string(status)
        .map_err(|error| Failure::failed(format!("could not write the status as JSON: {error}")))?;
    Ok(format!("{}\n", neutral::json(&text)))
}

/// The text from the top of the screen, cut to its height.
fn picture(text: &str, rows: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let shown = if lines.len() < rows { lines.len() } else { rows.saturating_sub(2) };
    let mut picture = "\x1b[H".to_owned();
    for line in &lines[..shown] {
        picture.push_str(line);
        picture.push_str("\x1b[K\n");
    }
    if shown < lines.len() {
        picture.push_str(&format!("… {} more lines\x1b[K\n", lines.len() - shown));
    }
    picture.push_str("\x1b[J");
    picture
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_never_scrolls() {
        let text = "line\n".repeat(50);
        assert!(picture(&text, 24).matches('\n').count() < 24);
        assert!(picture("one\ntwo\n", 24).starts_with("\x1b[Hone\x1b[K\ntwo"));
    }
}
