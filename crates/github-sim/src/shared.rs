//! The state behind its lock, with the clock, and with who is told about changes.
//!
//! Everything that touches the model goes through [`Shared::with`]: it tells the model the time, and
//! afterwards passes on what the model has to say. The lock is never held while something is waited
//! for.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{broadcast, mpsc, watch};

use crate::api::{MAX_RECORDED, Recorded};
use crate::model::{Moment, TimelineEvent, World};
use crate::webhooks::{self, Dispatch};

/// How many events a slow follower of the timeline may lag behind.
const TIMELINE_LAG: usize = 4_096;
/// How many webhooks may wait for being sent; more are lost and logged as failed.
pub const MAX_QUEUED_WEBHOOKS: usize = 20_000;

/// Tells the time: the system's, which a test can put forward, and which never goes back.
#[derive(Debug, Default)]
struct Clock {
    ahead_micros: AtomicU64,
    latest: AtomicU64,
}

impl Clock {
    fn now(&self) -> Moment {
        let system = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let micros = u64::try_from(system.as_micros()).unwrap_or(u64::MAX);
        let micros = micros.saturating_add(self.ahead_micros.load(Ordering::SeqCst));
        Moment(self.latest.fetch_max(micros, Ordering::SeqCst).max(micros))
    }
}

/// The requests that were received, latest last.
#[derive(Debug, Default)]
struct RequestLog {
    entries: VecDeque<Recorded>,
    /// The number of the first one that is kept.
    first: u64,
}

/// The state and its surroundings.
#[derive(Debug)]
pub(crate) struct Shared {
    world: Mutex<World>,
    clock: Clock,
    changed: watch::Sender<u64>,
    timeline: broadcast::Sender<TimelineEvent>,
    dispatch: mpsc::Sender<Dispatch>,
    requests: Mutex<RequestLog>,
    closed: watch::Sender<bool>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic in a test's closure must not take the rest of the simulator down with it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// The state, and where webhooks wait for being sent.
    pub(crate) fn new(world: World) -> (Arc<Self>, mpsc::Receiver<Dispatch>) {
        let (dispatch, queue) = mpsc::channel(MAX_QUEUED_WEBHOOKS);
        let shared = Self {
            world: Mutex::new(world),
            clock: Clock::default(),
            changed: watch::Sender::new(0),
            timeline: broadcast::Sender::new(TIMELINE_LAG),
            dispatch,
            requests: Mutex::default(),
            closed: watch::Sender::new(false),
        };
        (Arc::new(shared), queue)
    }

    /// Does something with the state, and passes on what follows from it.
    pub(crate) fn with<R>(&self, action: impl FnOnce(&mut World, Moment) -> R) -> R {
        let mut world = lock(&self.world);
        let now = self.clock.now();
        let before = (world.timeline.last(), world.touched, world.next_deadline());
        world.tick(now);
        let result = action(&mut world, now);
        self.post(&mut world, now);
        for event in world.timeline.after(before.0) {
            // Nobody listening is no error.
            let _ = self.timeline.send(event.clone());
        }
        let changed = before != (world.timeline.last(), world.touched, world.next_deadline());
        drop(world);
        if changed {
            self.wake();
        }
        result
    }

    /// Hands what is to be announced over to the sender of webhooks.
    fn post(&self, world: &mut World, now: Moment) {
        let news = std::mem::take(&mut world.outbox);
        for dispatch in webhooks::post(world, news, now) {
            self.enqueue(world, dispatch, now);
        }
    }

    /// Hands one delivery over.
    pub(crate) fn enqueue(&self, world: &mut World, dispatch: Dispatch, now: Moment) {
        if let Err(error) = self.dispatch.try_send(dispatch) {
            let (mpsc::error::TrySendError::Full(dispatch)
            | mpsc::error::TrySendError::Closed(dispatch)) = error;
            webhooks::give_up(world, dispatch.delivery, now);
        }
    }

    /// Waits until the state satisfies `wanted`.
    pub(crate) async fn wait<R>(&self, mut wanted: impl FnMut(&World) -> Option<R>) -> R {
        let mut changes = self.changed.subscribe();
        loop {
            changes.mark_unchanged();
            if let Some(found) = self.with(|world, _| wanted(world)) {
                return found;
            }
            if changes.changed().await.is_err() {
                // The sender is `self`.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Makes everyone who waits look again.
    fn wake(&self) {
        self.changed.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Puts the clock forward.
    pub(crate) fn advance(&self, by: Duration) {
        let micros = u64::try_from(by.as_micros()).unwrap_or(u64::MAX);
        self.clock.ahead_micros.fetch_add(micros, Ordering::SeqCst);
        self.with(|_, _| ());
        self.wake();
    }

    /// The timeline from now on.
    pub(crate) fn follow(&self) -> broadcast::Receiver<TimelineEvent> {
        self.timeline.subscribe()
    }

    /// Does what is due by time alone, for ever.
    pub(crate) async fn keep_time(self: Arc<Self>) {
        let mut changes = self.changed.subscribe();
        loop {
            changes.mark_unchanged();
            let next = self.with(|world, now| world.next_deadline().map(|at| at.since(now)));
            let due = async {
                match next {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => {}
                _ = changes.changed() => {}
            }
        }
    }

    /// Ends all connections.
    pub(crate) fn close(&self) {
        self.closed.send_replace(true);
    }

    /// Waits until the simulator ends.
    pub(crate) async fn closing(&self) {
        // An error means that `self` is gone, which cannot be while it is borrowed.
        let _ = self.closed.subscribe().wait_for(|closed| *closed).await;
    }

    /// Keeps a request; returns its number.
    pub(crate) fn record(&self, request: Recorded) -> u64 {
        let mut log = lock(&self.requests);
        if log.entries.len() >= MAX_RECORDED {
            log.entries.pop_front();
            log.first += 1;
        }
        log.entries.push_back(request);
        log.first + log.entries.len() as u64 - 1
    }

    /// Adds the answer to a kept request.
    pub(crate) fn record_answer(&self, number: u64, status: u16, body: Option<String>) {
        let mut log = lock(&self.requests);
        let index = number.checked_sub(log.first).and_then(|index| usize::try_from(index).ok());
        if let Some(entry) = index.and_then(|index| log.entries.get_mut(index)) {
            entry.status = Some(status);
            entry.response = body;
        }
    }

    /// The kept requests, oldest first.
    pub(crate) fn requests(&self) -> Vec<Recorded> {
        lock(&self.requests).entries.iter().cloned().collect()
    }

    /// Forgets the kept requests.
    pub(crate) fn clear_requests(&self) {
        let mut log = lock(&self.requests);
        log.first += log.entries.len() as u64;
        log.entries.clear();
    }
}
