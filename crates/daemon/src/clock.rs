//! The host's clock, for the one place that may read it on behalf of the core.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use forrest_core::model::Timestamp;

/// The present time.
pub(crate) fn now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Timestamp(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}

/// The time of a file's content, or the epoch for one from before it.
pub(crate) fn timestamp(time: SystemTime) -> Timestamp {
    let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Timestamp(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}
