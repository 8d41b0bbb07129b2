//! What applies where the configuration says nothing.
//!
//! The field tables in `tables.rs` give the same values as text; a test compares the two.

use std::time::Duration;

use forrest_core::model::Bytes;

const MINUTE: u64 = 60;
const DAY: u64 = 24 * 60 * MINUTE;

/// Disk space that runs leave free. Enough for the logs and the host's own services to go on.
pub const MIN_FREE_DISK: Bytes = Bytes::gib(5);

/// How long a job may be overtaken by smaller ones that happen to fit.
pub const MAX_OVERTAKE: Duration = Duration::from_secs(10 * MINUTE);

/// Records of finished runs that are kept. Each is at most 5 MiB of log and a few small files.
pub const KEEP_RUNS: u32 = 200;

/// How long they are kept.
pub const KEEP_RUNS_FOR: Duration = Duration::from_secs(30 * DAY);

/// How often GitHub is asked for jobs whose webhook never came.
pub const POLLING_INTERVAL: Duration = Duration::from_secs(15 * MINUTE);

/// Where GitHub's API is.
pub const API_URL: &str = "https://api.github.com";

/// How long a guest may take until it says that it is ready. A cold boot with emulation and
/// cloud-init's first run takes under a minute; one on a busy host several times as long.
pub const BOOT_TIMEOUT: Duration = Duration::from_secs(10 * MINUTE);

/// How long a runner waits for a job before it is taken away again.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(5 * MINUTE);

/// Machine images that are kept for a roll-back, the current one included.
pub const KEEP_GENERATIONS: u32 = 3;

/// How long they are kept after they were replaced.
pub const KEEP_GENERATIONS_FOR: Duration = Duration::from_secs(90 * DAY);
