//! `forrest man`.

use std::path::Path;

use clap::{Command, CommandFactory};
use clap_mangen::Man;

use super::print;
use crate::cli::Cli;
use crate::failure::{Failure, Status};

/// Prints the page of `forrest` itself, or writes all pages.
pub fn run(dir: Option<&Path>) -> Result<Status, Failure> {
    let mut root = Cli::command();
    root.build();
    let Some(dir) = dir else {
        return print(&page(root, "forrest")?).map(|()| Status::Ok);
    };
    std::fs::create_dir_all(dir).map_err(|error| {
        Failure::failed(format!("could not make the directory {}: {error}", dir.display()))
    })?;
    write_pages(dir, &root, "forrest")?;
    Ok(Status::Ok)
}

fn write_pages(dir: &Path, command: &Command, name: &str) -> Result<(), Failure> {
    let path = dir.join(format!("{name}.1"));
    std::fs::write(&path, page(command.clone(), name)?)
        .map_err(|error| Failure::failed(format!("could not write {}: {error}", path.display())))?;
    for below in command.get_subcommands().filter(|below| below.get_name() != "help") {
        write_pages(dir, below, &format!("{name}-{}", below.get_name()))?;
    }
    Ok(())
}

fn page(command: Command, name: &str) -> Result<String, Failure> {
    let mut page = Vec::new();
    // Pages refer to each other by these names.
    let command = command.disable_help_subcommand(true).display_name(name.to_owned());
    Man::new(command)
        .title(name.to_uppercase())
        .manual("Forrest")
        .render(&mut page)
        .map_err(|error| Failure::failed(format!("could not make the page of {name}: {error}")))?;
    Ok(String::from_utf8_lossy(&page).into_owned())
}
