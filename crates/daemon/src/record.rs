//! What the daemon keeps of a run for its successor: `record.json` in the run's directory.

use std::path::Path;

use forrest_core::model::{
    Bytes, JobId, MachineTypeName, RunnerId, RunnerName, StartImage, Timestamp,
};
use serde::{Deserialize, Serialize};

/// The file's name in the run directory.
const FILE: &str = "record.json";
/// The largest file that is read.
const LEN_MAX: u64 = 64 << 10;

/// What the daemon knew of a run when it last wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunRecord {
    /// The run.
    pub(crate) runner: RunnerName,
    /// Its machine type.
    pub(crate) machine: MachineTypeName,
    /// RAM of its guest.
    pub(crate) ram: Bytes,
    /// Virtual CPUs of its guest.
    pub(crate) cpus: u32,
    /// Size of its disk.
    pub(crate) disk: Bytes,
    /// When it was made.
    pub(crate) created_at: Timestamp,
    /// The image it started from, once forked.
    #[serde(default)]
    pub(crate) image: Option<StartImage>,
    /// GitHub's id of its runner, once registered.
    #[serde(default)]
    pub(crate) runner_id: Option<RunnerId>,
    /// The job that it has, once known.
    #[serde(default)]
    pub(crate) job: Option<JobId>,
}

impl RunRecord {
    /// Reads the record in a run directory; `None` where there is none that makes sense.
    pub(crate) fn read(run_dir: &Path) -> Option<Self> {
        let path = run_dir.join(FILE);
        if std::fs::metadata(&path).ok()?.len() > LEN_MAX {
            return None;
        }
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()
    }

    /// Writes the record: a reader sees the old or the new one.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub(crate) fn write(&self, run_dir: &Path) -> std::io::Result<()> {
        let text = serde_json::to_vec_pretty(self)?;
        let new = run_dir.join("record.json.new");
        std::fs::write(&new, text)?;
        std::fs::rename(new, run_dir.join(FILE))
    }
}
