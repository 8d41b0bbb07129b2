//! `forrest run`, `forrest FILE`: the daemon.

use forrest_daemon::{DaemonError, Options};

use super::block_on;
use crate::cli::{ConfigFile, Logging};
use crate::failure::{Failure, Status};
use crate::logging;

/// Serves until a signal ends it.
pub fn run(config: &ConfigFile, log: &Logging) -> Result<Status, Failure> {
    logging::start(&log.log)?;
    let supervisor = std::env::current_exe().map_err(|error| {
        Failure::failed(format!(
            "could not find out where this program is, which has to supervise virtual machines, \
             too: {error}; see that /proc is mounted"
        ))
    })?;
    let options = Options { config: config.config.clone(), supervisor };
    block_on(async {
        match forrest_daemon::run(options).await {
            Ok(()) => Ok(Status::Ok),
            Err(DaemonError::Config(errors)) => Err(Failure::failed(format!(
                "{} cannot be used:\n{}",
                config.config.display(),
                errors.render(false).trim_end()
            ))),
            Err(error) => Err(Failure::failed(format!("could not start: {error}"))),
        }
    })
}
