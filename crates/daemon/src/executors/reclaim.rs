//! Making room on a disk that is nearly full.
//!
//! What goes, in this order, until enough is free: snapshots that nobody uses any more, the logs of
//! finished runs, machine images that are kept only for a roll-back. Never: the current machine images, and
//! what a run or a snapshot is built on.

use std::time::SystemTime;

use forrest_core::model::Bytes;
use forrest_images::{ImageError, Store};

use super::Executors;
use super::housekeeping::{KeptRuns, remove_old_runs};

impl Executors {
    pub(crate) async fn reclaim(self, wanted: Bytes) {
        self.prune_snapshots().await;
        let reclaimed = self.on_disk(move |store| reclaim(store, wanted)).await;
        if let Err(trouble) = reclaimed {
            tracing::error!("could not make room on the disk: {}", trouble.what);
        }
    }
}

fn reclaim(store: &Store, wanted: Bytes) -> Result<(), ImageError> {
    if store.space()?.free < wanted {
        remove_old_runs(store, KeptRuns::NONE, SystemTime::now())?;
    }
    for machine in store.machines()? {
        if store.space()?.free < wanted {
            store.prune(&machine, 1)?;
        }
    }
    let free = store.space()?.free;
    if free < wanted {
        tracing::error!(
            "only {free} are free on the file system of {}, and Forrest has nothing left that may go: \
             remove something else there, or make it larger; no new run starts, and guests that need \
             more space are paused until then",
            store.base_dir().display()
        );
    } else {
        tracing::warn!("made room on the disk: {free} are free now");
    }
    Ok(())
}
