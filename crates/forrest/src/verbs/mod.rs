//! One file per verb; here is what they have in common: parsing, and how failures are told.

mod check;
mod completions;
mod doctor;
mod drain;
mod images;
mod logs;
mod man;
mod run;
mod shell;
mod snapshots;
mod status;
mod stop;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::cli::{Cli, ConfigFile, Verb};
use crate::failure::{Failure, Status};
use crate::terminal::neutral;

/// Parses the command line and does what it says.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return explain(&error),
    };
    match dispatch(cli) {
        Ok(status) => status.into(),
        Err(failure) => {
            // Messages quote names, files and answers from elsewhere.
            eprintln!("forrest: {}", neutral::lines(&failure.message));
            failure.status.into()
        }
    }
}

fn dispatch(cli: Cli) -> Result<Status, Failure> {
    let Some(verb) = cli.verb else {
        let Some(config) = cli.file else {
            return Err(Failure::usage("nothing to do; `forrest --help` lists the commands"));
        };
        meant_a_file(&config)?;
        return run::run(&ConfigFile { config }, &cli.logging);
    };
    match verb {
        Verb::Run { config, logging } => run::run(&config, &logging),
        Verb::Check { file, files, json, schema } => check::run(&file, files, json, schema),
        Verb::Doctor { config, offline, json } => doctor::run(&config, offline, json),
        Verb::Status { which, json, watch, finished } => {
            status::run(&which, &status::Options { json, watch, finished })
        }
        Verb::Shell { runner, which, wait } => shell::run(&runner, &which, wait),
        Verb::Logs { runner, which, follow, raw } => logs::run(&runner, &which, follow, raw),
        Verb::Images { verb } => images::run(verb),
        Verb::Snapshots { verb } => snapshots::run(verb),
        Verb::Stop { runner, which, yes } => stop::run(&runner, &which, yes),
        Verb::Drain { which } => drain::run(&which, true),
        Verb::Resume { which } => drain::run(&which, false),
        Verb::Completions { shell } => completions::run(shell),
        Verb::Man { dir } => man::run(dir.as_deref()),
    }
}

/// `forrest FILE` serves: a mistyped command must not be taken for a file.
fn meant_a_file(path: &std::path::Path) -> Result<(), Failure> {
    let text = path.to_string_lossy();
    if path.exists() || text.contains(['/', '.']) {
        return Ok(());
    }
    let command = Cli::command();
    let near =
        command.get_subcommands().map(clap::Command::get_name).find(|name| near(name, &text));
    let hint = match near {
        Some(name) => format!("did you mean `forrest {name}`?"),
        None => "`forrest --help` lists the commands".to_owned(),
    };
    Err(Failure::usage(format!("there is neither a command nor a file called {text:?}; {hint}")))
}

/// Whether one text becomes the other by changing, adding, removing or swapping very little.
fn near(one: &str, two: &str) -> bool {
    let (one, two): (Vec<char>, Vec<char>) = (one.chars().collect(), two.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=two.len()).collect();
    for (i, a) in one.iter().enumerate() {
        let mut next = vec![i + 1];
        for (j, b) in two.iter().enumerate() {
            let mut cost = (row[j] + usize::from(a != b)).min(row[j + 1] + 1).min(next[j] + 1);
            if i > 0 && j > 0 && *a == two[j - 1] && one[i - 1] == *b {
                cost = cost.min(before[j - 1] + 1);
            }
            next.push(cost);
        }
        before = std::mem::replace(&mut row, next);
    }
    row[two.len()] * 2 < one.len().max(two.len())
}

/// Shows help, or what is wrong with the command line.
fn explain(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // A reader that went away wants no more.
        let _ = error.print();
        return Status::Ok.into();
    }
    let text = error.render().to_string();
    if error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        eprint!("{text}");
    } else {
        eprint!("forrest: {}", neutral::lines(text.strip_prefix("error: ").unwrap_or(&text)));
    }
    Status::Usage.into()
}

/// Prints to standard output. A reader that went away is no failure.
fn print(text: &str) -> Result<(), Failure> {
    write_out(text.as_bytes()).map(drop)
}

/// Writes to standard output. Returns whether anybody still reads.
fn write_out(bytes: &[u8]) -> Result<bool, Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::failed(format!("could not write the output: {error}"))),
    }
}

/// Prints a value as JSON for programs, without anything that a terminal would act on.
fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::failed(format!("could not write the output as JSON: {error}")))?;
    print(&format!("{}\n", neutral::json(&text)))
}

/// Runs asynchronous work on this thread.
fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| {
            Failure::failed(format!("could not start the asynchronous runtime: {error}"))
        })?;
    runtime.block_on(work)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn typing_errors_are_recognised() {
        for (meant, typed) in
            [("status", "statsu"), ("status", "staus"), ("doctor", "docter"), ("run", "rum")]
        {
            assert!(near(meant, typed), "{typed}");
        }
        for (other, typed) in [("status", "config"), ("run", "man"), ("logs", "ls")] {
            assert!(!near(other, typed), "{typed}");
        }
    }
}
