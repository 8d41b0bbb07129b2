//! What the host's disk has left, measured again and again.

use std::time::Duration;

use forrest_core::Event;

use crate::driver::{Inbox, Message};
use crate::executors::Executors;

/// Time between two measurements: short against the time in which a guest can fill a disk's reserve.
const INTERVAL: Duration = Duration::from_secs(10);

/// Measures for ever.
pub(crate) async fn measure(executors: Executors, inbox: Inbox) {
    let mut interval = tokio::time::interval(INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        if let Some(event) = once(&executors).await
            && inbox.send(Message::Event(event)).await.is_err()
        {
            return;
        }
    }
}

/// One measurement; `None` where the disk cannot be asked, which is logged.
pub(crate) async fn once(executors: &Executors) -> Option<Event> {
    match executors.measure().await {
        Ok((free_disk, run_disks)) => Some(Event::HostMeasured { free_disk, run_disks }),
        Err(error) => {
            tracing::error!(%error, "could not measure the free disk space");
            None
        }
    }
}
