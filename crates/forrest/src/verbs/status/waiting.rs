//! Why a job waits, in plain words.

use forrest_core::model::{Bytes, Timestamp};
use forrest_core::view::{JobWait, Waiting};

use crate::terminal::neutral::one_line;
use crate::words::{size, span};

/// What the job waits for, as the rest of a sentence that begins with "waits for".
pub fn job(wait: &JobWait, now: Timestamp) -> String {
    match wait {
        JobWait::Runner => "a runner that is on its way".to_owned(),
        JobWait::GitHub => "GitHub: an approval, or its concurrency group".to_owned(),
        JobWait::Start(waiting) => start(waiting, now),
    }
}

/// What keeps a run from being started, as the rest of a sentence that begins with "waits for".
pub fn start(waiting: &Waiting, now: Timestamp) -> String {
    match waiting {
        Waiting::Drained => "`forrest resume`: new runs are held back".to_owned(),
        Waiting::Pause { until, trouble } => {
            let left = span(until.since(now));
            format!("the next attempt in {left}; the last one failed: {}", one_line(trouble))
        }
        Waiting::MachineLimit { max_runs } => {
            format!("another run of its machine type to end ({})", limit(*max_runs))
        }
        Waiting::RepositoryLimit { max_runs } => {
            format!("another run of its repository to end ({})", limit(*max_runs))
        }
        Waiting::Base { runner } => {
            format!("the machine image that {runner} is about to leave behind")
        }
        Waiting::Ram { needed, free } => format!("RAM: {}", needs(*needed, *free)),
        Waiting::Cpus { needed, free } => {
            format!("virtual CPUs: needs {needed}, {free} left")
        }
        Waiting::Disk { needed, free } => format!(
            "disk space: needs up to {} with the reserve, {} left if every run fills its disk",
            size(*needed),
            size(*free)
        ),
        Waiting::OlderJob { job } => {
            format!("job {job}, which is older and needs more room, to go first")
        }
    }
}

fn limit(max_runs: u32) -> String {
    format!("max_runs is {max_runs}")
}

fn needs(needed: Bytes, free: Bytes) -> String {
    format!("needs {}, {} left", size(needed), size(free))
}
