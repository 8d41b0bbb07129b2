//! Templates: guests that were booted once, to be restored any number of times.
//!
//! A template is built by a VM like any other, under a shim like any other, with [`Boot::Template`]: its
//! guest boots with a placeholder in place of the job config, says `ready`, is stopped, and its devices
//! are saved. Its RAM is where it was all the time, in a file of its own. What is left is a directory's
//! worth of things that belong together:
//!
//! - the RAM file and the state file, named by [`Boot::Template`];
//! - the disk as it was when the guest was stopped: the run's own disk, which nobody writes to any more;
//! - the `CIDATA` image.
//!
//! A run starts from it with [`Boot::Restored`], a fork of that disk, a copy of that `CIDATA` image (or
//! the image itself: it is only read), and a job config image of the placeholder's size. The same CPUs,
//! RAM, accelerator and QEMU are needed; the formats of the disks may differ.
//!
//! The guest must not have the placeholder open when it says `ready`, or it would remember what it read.
//! The run's job config image may be filled in place after QEMU has started, before
//! [`crate::Request::AttachJobConfig`].
//!
//! The RAM file must not change while any run uses it, which QEMU is kept from by opening it for reading
//! only; removing it is fine. Nothing here survives a power loss for certain: a template is good for as
//! long as the host does not reboot ([`crate::host::boot_id`]).

use std::path::Path;
use std::time::Duration;

use crate::protocol::Happened;
use crate::spec::Boot;
use crate::{EndReason, Outcome, RunSpec, ShimClient, VmError, run_dir, spawn_shim};

/// A template that was built.
#[derive(Debug)]
pub struct Built {
    /// The record of the VM that built it.
    pub outcome: Outcome,
    /// From QEMU's start until the guest was ready.
    pub booted_in: Duration,
    /// From there until QEMU was gone.
    pub saved_in: Duration,
}

/// Builds a template in `run_dir`, as `spec` describes it. Takes as long as a cold boot; dropping the
/// future leaves the VM to itself, its end on record as that of any other.
///
/// # Errors
/// [`VmError::Spec`] where `spec` does not describe a template or its files exist already;
/// [`VmError::Snapshot`] where the guest does not become ready or cannot be saved: the files are removed.
/// Errors of [`spawn_shim`] and [`ShimClient`] besides.
pub async fn build(forrest: &Path, run_dir: &Path, spec: &RunSpec) -> Result<Built, VmError> {
    let Boot::Template { ram, state } = &spec.boot else {
        return Err(VmError::Spec("it is to become a template, but is to be started".to_owned()));
    };
    let files = [run_dir.join(ram), run_dir.join(state)];
    if let Some(present) = files.iter().find(|path| path.exists()) {
        return Err(VmError::Spec(format!("{} exists already", present.display())));
    }
    spec.write(run_dir)?;
    let outcome = run(forrest, run_dir).await;
    match outcome {
        Ok(outcome) if outcome.reason == EndReason::TemplateSaved => Ok(built(outcome)),
        failed => {
            for path in files {
                let _ = std::fs::remove_file(path);
            }
            let outcome = failed?;
            let mut reason = outcome.detail;
            if let Some(line) = outcome.stderr.last() {
                reason = format!("{reason}; QEMU said: {line}");
            }
            Err(VmError::Snapshot { reason, log: run_dir.join(run_dir::files::CONSOLE) })
        }
    }
}

async fn run(forrest: &Path, run_dir: &Path) -> Result<Outcome, VmError> {
    let shim = spawn_shim(forrest, run_dir).await?;
    let watched = async {
        let (_, mut watch) = ShimClient::connect(run_dir).await?.watch().await?;
        while let Some(event) = watch.next().await? {
            if let Happened::Exited { outcome } = event.event {
                return Ok(*outcome);
            }
        }
        Err(VmError::NoShim { run_dir: run_dir.to_owned() })
    };
    match watched.await {
        Ok(outcome) => Ok(outcome),
        // Gone before it could be watched, perhaps; then there is a record.
        Err(err) => {
            let _ = shim.exited.await;
            run_dir::read_outcome(run_dir).map_err(|_| err)
        }
    }
}

fn built(outcome: Outcome) -> Built {
    let times = outcome.times;
    let between = |from: Option<_>, to: Option<forrest_core::model::Timestamp>| {
        from.zip(to).map(|(from, to)| to.since(from)).unwrap_or_default()
    };
    let booted_in = between(times.qemu_started_at, times.ready_at);
    let saved_in = between(times.ready_at, times.ended_at);
    Built { outcome, booted_in, saved_in }
}
