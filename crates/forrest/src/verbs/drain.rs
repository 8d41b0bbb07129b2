//! `forrest drain`, `forrest resume`.

use forrest_daemon::control::Client;

use super::{block_on, print};
use crate::cli::Which;
use crate::failure::{Failure, Status};
use crate::find;
use crate::words::counted;

/// Holds new runs back, or lets them start again.
pub fn run(which: &Which, draining: bool) -> Result<Status, Failure> {
    let client = Client::new(&find::base_dir(which)?);
    let status = block_on(async {
        client.drain(draining).await?;
        Ok(client.status().await?)
    })?;
    let text = if draining {
        let runs = match status.view.runs.len() {
            0 => "none is under way".to_owned(),
            n => format!("{} under way", counted(n, "run is still", "runs are still")),
        };
        format!("No new runs are started; {runs}. `forrest resume` ends this.\n")
    } else {
        "New runs are started again.\n".to_owned()
    };
    print(&text).map(|()| Status::Ok)
}
