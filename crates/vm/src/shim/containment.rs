//! The user that QEMU runs as, and the egress filter: there before the guest's first instruction, kept
//! while the VM lives, gone with it.
//!
//! The supervisor does this itself, since it lives exactly as long as its VM: filters are kept in place
//! also while no daemon runs. Putting one in place takes some hundredths of a second of waiting for the
//! kernel, so it is done while QEMU starts, which it does stopped; the guest's CPUs wait for it.

use forrest_confine::{Claim, ConfineError, Filter};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::machine::Input;
use super::supervise::Note;
use crate::spec::RunSpec;

/// Whether the filter is in place, or why not, once that is known.
pub(super) type InPlace = oneshot::Receiver<Result<(), String>>;

/// What confines one VM.
#[derive(Debug, Default)]
pub(super) struct Containment {
    claim: Option<Claim>,
    filter: Option<Guard>,
}

/// The task that keeps the filter.
#[derive(Debug)]
struct Guard {
    stop: oneshot::Sender<()>,
    /// Ends with the filter's removal.
    task: JoinHandle<Result<(), ConfineError>>,
}

impl Containment {
    /// Takes a user for QEMU and begins to put its filter in place, where these are wanted.
    ///
    /// # Errors
    /// [`ConfineError::NoUidLeft`], [`ConfineError::UidDirectory`], [`ConfineError::Claim`].
    pub(super) fn begin(
        spec: &RunSpec,
        notes: mpsc::Sender<Note>,
    ) -> Result<(Self, Option<InPlace>), ConfineError> {
        let Some(range) = spec.confinement.uids else { return Ok((Self::default(), None)) };
        let claim = Claim::any(range)?;
        let Some(wanted) = &spec.network.filter else {
            return Ok((Self { claim: Some(claim), filter: None }, None));
        };
        let (placed, in_place) = oneshot::channel();
        let (stop, stopped) = oneshot::channel();
        let (uid, allow) = (claim.uid(), wanted.allow.clone());
        let task = tokio::spawn(async move {
            let filter = Filter::put_in_place(uid, allow).await;
            // Nobody waits for it where QEMU did not start.
            let _ = placed.send(filter.as_ref().map(drop).map_err(ConfineError::to_string));
            match filter {
                Ok(filter) => keep(filter, stopped, notes).await,
                // Told already.
                Err(_) => Ok(()),
            }
        });
        let filter = Some(Guard { stop, task });
        Ok((Self { claim: Some(claim), filter }, Some(in_place)))
    }

    /// The user that QEMU has to become.
    pub(super) fn claim(&self) -> Option<&Claim> {
        self.claim.as_ref()
    }

    /// Takes the filter away; QEMU is gone.
    pub(super) async fn end(self) -> Result<(), ConfineError> {
        if let Some(guard) = self.filter {
            let _ = guard.stop.send(());
            if let Ok(removed) = guard.task.await {
                removed?;
            }
        }
        // Only now may another VM have this user.
        drop(self.claim);
        Ok(())
    }
}

async fn keep(
    mut filter: Filter,
    mut stopped: oneshot::Receiver<()>,
    notes: mpsc::Sender<Note>,
) -> Result<(), ConfineError> {
    let told = |what: &str| {
        // A line in a log is no reason to wait.
        let _ = notes.try_send(Note::Log(what.to_owned()));
    };
    let lost = tokio::select! {
        lost = filter.keep(told) => Some(lost),
        _ = &mut stopped => None,
    };
    if let Some(why) = lost {
        // Closed rather than open: the VM ends.
        let why = format!("the egress filter could not be kept in place: {why}");
        let _ = notes.send(Note::Input(Input::NotContained(why))).await;
        // What is left of the filter stays for as long as QEMU does.
        let _ = stopped.await;
    }
    filter.remove().await
}
