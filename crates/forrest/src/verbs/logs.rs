//! `forrest logs`: what a guest printed.

use std::io::Read;
use std::time::Duration;

use forrest_daemon::inspect::runs::{self, FoundRun, Life};

use super::write_out;
use crate::cli::{Which, names_machine};
use crate::failure::{Failure, Status};
use crate::find;
use crate::terminal::neutral::{Console, one_line};

/// Time between two looks with `--follow`.
const INTERVAL: Duration = Duration::from_millis(200);
/// How much is read at once, in bytes.
const BUFFER_LEN: usize = 64 << 10;

/// Shows the console's output.
pub fn run(name: &str, which: &Which, follow: bool, raw: bool) -> Result<Status, Failure> {
    let found = runs::runs(&find::base_dir(which)?)?;
    let run = choose(name, &found)?;
    let mut reader = run.console();
    let mut output = Output { raw, console: Console::default() };
    let mut buffer = vec![0; BUFFER_LEN];
    loop {
        // In this order: what is written before the end is read after it.
        let life = run.life();
        loop {
            let len = reader.read(&mut buffer).map_err(|error| {
                Failure::failed(format!(
                    "could not read the console log of {}: {error}",
                    run.runner
                ))
            })?;
            if len == 0 {
                break;
            }
            if !output.show(&buffer[..len])? {
                return Ok(Status::Ok);
            }
        }
        let goes_on = follow && matches!(life, Ok(Life::Preparing | Life::Live));
        if !goes_on {
            output.finish()?;
            eprintln!("forrest: {}", ending(run, &life));
            return Ok(Status::Ok);
        }
        std::thread::sleep(INTERVAL);
    }
}

/// The newest run of a machine type, or the one run that is meant.
fn choose<'a>(name: &str, found: &'a [FoundRun]) -> Result<&'a FoundRun, Failure> {
    let fitting = find::matching(name, found);
    match fitting.first() {
        Some(newest)
            if names_machine(name, &newest.machine)
                && fitting.iter().all(|run| run.machine == newest.machine) =>
        {
            Ok(newest)
        }
        _ => find::one_run(name, found, "a run with a log"),
    }
}

/// What became of the run, for people.
fn ending(run: &FoundRun, life: &Result<Life, forrest_daemon::inspect::InspectError>) -> String {
    let runner = &run.runner;
    match life {
        Ok(Life::Over(end)) => {
            let detail = one_line(&end.detail);
            let detail = if detail.is_empty() { detail } else { format!(" ({detail})") };
            format!("{runner} ended: {}{detail}", one_line(&end.reason))
        }
        Ok(Life::Live) => format!("{runner} still runs; -f follows it"),
        Ok(Life::Preparing) => format!("{runner} is still being prepared; -f follows it"),
        Ok(Life::Lost) => format!("{runner} ended without a word: its supervisor was killed"),
        Ok(Life::NeverStarted) => format!("{runner} never started"),
        Err(error) => {
            format!("what became of {runner} is not known: {}", one_line(&error.to_string()))
        }
    }
}

struct Output {
    raw: bool,
    console: Console,
}

impl Output {
    /// Returns whether anybody still reads.
    fn show(&mut self, bytes: &[u8]) -> Result<bool, Failure> {
        if self.raw {
            return write_out(bytes);
        }
        let mut text = String::new();
        self.console.feed(bytes, &mut text);
        write_out(text.as_bytes())
    }

    fn finish(&mut self) -> Result<(), Failure> {
        let mut text = String::new();
        self.console.finish(&mut text);
        write_out(text.as_bytes()).map(drop)
    }
}
