//! `forrest completions`.

use clap::CommandFactory;
use clap_complete::Shell;

use super::print;
use crate::cli::Cli;
use crate::failure::{Failure, Status};

/// Prints the script.
pub fn run(shell: Shell) -> Result<Status, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "forrest", &mut script);
    print(&String::from_utf8_lossy(&script)).map(|()| Status::Ok)
}
