//! Who has a place among the connections, and who loses it when there are too many.
//!
//! Anybody can open connections and send nothing, or little, again and again. When all places are
//! taken, whoever has kept one longest without a request that was answered makes room for the next
//! one. GitHub sends a webhook within a fraction of a second.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long everybody may keep a place. To keep a webhook out, as many connections as there are places
/// have to be opened in each such time.
const GRACE: Duration = Duration::from_secs(1);
/// Pause between two looks for somebody to be sent away.
const LOOK_PAUSE: Duration = Duration::from_millis(50);

/// The connections that have a place, at most as many as there are places. Clones share.
#[derive(Debug, Clone, Default)]
pub(super) struct Crowd(Arc<Mutex<Members>>);

#[derive(Debug, Default)]
struct Members {
    next: u64,
    /// By how long they have been of no use: the lowest number for the longest.
    by_order: BTreeMap<u64, (Instant, CancellationToken)>,
}

impl Members {
    fn add(&mut self, token: CancellationToken) -> u64 {
        let order = self.next;
        self.next += 1;
        self.by_order.insert(order, (Instant::now(), token));
        order
    }
}

impl Crowd {
    /// One more connection.
    pub(super) fn join(&self) -> Member {
        let token = CancellationToken::new();
        let order = self.with(|members| members.add(token.clone()));
        Member { crowd: self.clone(), token, order: Mutex::new(order) }
    }

    /// A place; somebody may have to go for it. `None` where there will be none any more.
    pub(super) async fn make_room(&self, places: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
        loop {
            if let Ok(place) = Arc::clone(places).try_acquire_owned() {
                return Some(place);
            }
            self.send_away();
            let place = Arc::clone(places).acquire_owned();
            if let Ok(place) = tokio::time::timeout(LOOK_PAUSE, place).await {
                return place.ok();
            }
        }
    }

    /// Sends away who has been of no use for longest, unless that is not for long.
    fn send_away(&self) {
        self.with(|members| {
            if let Some(first) = members.by_order.first_entry()
                && first.get().0.elapsed() >= GRACE
            {
                first.remove().1.cancel();
            }
        });
    }

    fn with<T>(&self, change: impl FnOnce(&mut Members) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// One connection with a place. It leaves when this is dropped.
#[derive(Debug)]
pub(super) struct Member {
    crowd: Crowd,
    token: CancellationToken,
    order: Mutex<u64>,
}

impl Member {
    /// A request was answered.
    pub(super) fn made_itself_useful(&self) {
        let mut order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        *order = self.crowd.with(|members| {
            members.by_order.remove(&order);
            members.add(self.token.clone())
        });
    }

    /// Waits until it has to make room for another one.
    pub(super) async fn sent_away(&self) {
        self.token.cancelled().await;
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let order = self.order.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.crowd.with(|members| members.by_order.remove(order));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_is_of_no_use_for_longest_makes_room() {
        let (crowd, places) = (Crowd::default(), Arc::new(Semaphore::new(2)));
        let began = Instant::now();
        let first = crowd.make_room(&places).await.expect("a place");
        let useful = crowd.join();
        let second = crowd.make_room(&places).await.expect("a place");
        let idle = crowd.join();
        useful.made_itself_useful();
        assert_eq!(began.elapsed(), Duration::ZERO);
        let leaves = async {
            idle.sent_away().await;
            drop((idle, second));
        };
        let (third, ()) = tokio::join!(crowd.make_room(&places), leaves);
        assert!(third.is_some() && began.elapsed() >= GRACE, "{:?}", began.elapsed());
        assert!(!useful.token.is_cancelled());
        // Whoever leaves by himself is not there to be sent away.
        drop((first, useful));
        assert!(crowd.make_room(&places).await.is_some());
        assert_eq!(crowd.with(|members| members.by_order.len()), 0);
    }
}
