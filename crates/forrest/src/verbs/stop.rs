//! `forrest stop`: the one command that kills.

use forrest_core::view::{RunView, View};
use forrest_daemon::control::Client;

use super::{block_on, print};
use crate::cli::Which;
use crate::failure::{Failure, Status};
use crate::find;
use crate::terminal::confirm::confirm;
use crate::terminal::neutral::one_line;

/// Ends a run.
pub fn run(name: &str, which: &Which, yes: bool) -> Result<Status, Failure> {
    let client = Client::new(&find::base_dir(which)?);
    let view = block_on(async { Ok(client.status().await?.view) })?;
    let run = find::one_run(name, &view.runs, "a run that is under way")?;
    let runner = run.runner.clone();
    if !yes {
        eprintln!("{runner} ({}) is {}. {}", run.machine, run.state, loss(run, &view));
        confirm(&format!("stop {runner}"), "Kill its virtual machine?")?;
    }
    block_on(async { Ok(client.stop(&runner).await?) })?;
    print(&format!("{runner} is being stopped; `forrest status` shows when it is gone.\n"))
        .map(|()| Status::Ok)
}

/// What is lost.
fn loss(run: &RunView, view: &View) -> String {
    let Some(id) = run.job else {
        return "It has no job that is known of; it may get one at any time.".to_owned();
    };
    let job = view.jobs.iter().find(|job| job.job.id == id);
    let name = job.and_then(|job| job.job.name.as_deref());
    let name =
        name.map_or_else(|| format!("job {id}"), |name| format!("job \"{}\"", one_line(name)));
    format!("Its {name} will fail on GitHub, and its disk will be removed.")
}
