//! What an earlier daemon left behind: every run directory becomes a run again, live or to be
//! settled. Nothing is stopped here.

use forrest_core::event::{AdoptedRun, AdoptedVm};
use forrest_core::model::Timestamp;
use forrest_images::{RunDir, Store};
use forrest_vm::run_dir::{self, RunDirState};
use forrest_vm::spec::BootKind;
use forrest_vm::{RunSpec, VmError};

use crate::clock::{now, timestamp};
use crate::executors::{self, disk_exists};
use crate::record::RunRecord;

/// Every run directory, made sense of.
pub(crate) fn adopted(store: &Store) -> Vec<AdoptedRun> {
    let found = match store.find_run_dirs() {
        Ok(found) => found,
        Err(error) => {
            tracing::error!(%error, "could not look for the runs of an earlier start");
            return Vec::new();
        }
    };
    for error in &found.unlisted {
        tracing::error!(
            %error,
            "runs of an earlier start may be in there: they are left alone until the next start"
        );
    }
    for path in &found.others {
        tracing::warn!(path = %path.display(), "not a run directory, left alone");
    }
    found.runs.iter().filter_map(adopt).collect()
}

/// One run directory; `None` for one whose run is over and that only keeps its log.
fn adopt(dir: &RunDir) -> Option<AdoptedRun> {
    if executors::is_forgotten(dir.path()) {
        return None;
    }
    let record = RunRecord::read(dir.path());
    let state = match run_dir::classify(dir.path()) {
        Ok(state) => state,
        Err(error @ VmError::Malformed { .. }) => {
            tracing::error!(runner = %dir.runner(), %error, "its state cannot be read: settling it");
            RunDirState::Lost
        }
        // The host cannot look just now. What watches it goes on looking.
        Err(error) => {
            tracing::error!(runner = %dir.runner(), %error, "taken to live, as its state cannot be read");
            RunDirState::Live
        }
    };
    let known = |end| AdoptedVm::Ended {
        end,
        runner_id: record.as_ref().and_then(|record| record.runner_id),
        image: record.as_ref().and_then(|record| record.image.clone()),
    };
    let vm = match state {
        RunDirState::Live => match &record {
            Some(RunRecord { runner_id: Some(runner_id), image: Some(image), .. }) => {
                AdoptedVm::Live {
                    runner_id: *runner_id,
                    image: image.clone(),
                    restored: is_restored(dir),
                    // The watcher tells more as soon as it is connected.
                    ready: false,
                }
            }
            // Its guest was restored ahead of its registration, which never came: its directory's files are
            // removed, and the guest before them. Its supervisor refuses that where there may be a job.
            Some(RunRecord { runner_id: None, image: Some(_), .. }) => AdoptedVm::NotStarted,
            _ => {
                tracing::error!(
                    runner = %dir.runner(),
                    "a virtual machine runs, and its record cannot be read: left alone; it ends with \
                     its job, and the next start puts it away"
                );
                return None;
            }
        },
        _ if !disk_exists(dir.path()) => AdoptedVm::DiskSettled,
        RunDirState::Over(outcome) => known(executors::vm_end(&outcome)),
        RunDirState::Lost => known(executors::supervisor_lost(now())),
        RunDirState::NeverStarted => AdoptedVm::NotStarted,
    };
    Some(AdoptedRun {
        runner: dir.runner().clone(),
        machine: dir.machine().clone(),
        ram: record.as_ref().map(|r| r.ram).unwrap_or_default(),
        cpus: record.as_ref().map_or(0, |r| r.cpus),
        disk: record.as_ref().map(|r| r.disk).unwrap_or_default(),
        created_at: record.as_ref().map_or_else(|| modified(dir), |r| r.created_at),
        job: record.as_ref().and_then(|r| r.job),
        vm,
    })
}

fn is_restored(dir: &RunDir) -> bool {
    RunSpec::read(dir.path()).is_ok_and(|spec| spec.boot.kind() == BootKind::Restored)
}

fn modified(dir: &RunDir) -> Timestamp {
    let time = std::fs::metadata(dir.path()).and_then(|found| found.modified());
    time.map_or_else(|_| now(), timestamp)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use forrest_core::event::EndReason;
    use forrest_core::model::RunnerName;

    use super::*;

    /// What a power loss may leave of a file.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Remains {
        Nothing,
        Empty,
        Torn,
        Whole,
    }

    const ALL: [Remains; 4] = [Remains::Nothing, Remains::Empty, Remains::Torn, Remains::Whole];

    impl Remains {
        fn of(self, path: &Path, content: &str) {
            let half = content.len() / 2;
            let bytes = match self {
                Self::Nothing => return,
                Self::Empty => Vec::new(),
                Self::Torn => {
                    [&content.as_bytes()[..half], &vec![0; content.len() - half]].concat()
                }
                Self::Whole => content.as_bytes().to_vec(),
            };
            std::fs::write(path, bytes).expect("written");
        }
    }

    /// Whatever a power loss leaves of a run's records, the run is settled by what can be read: none is
    /// taken for one that lives, none is overlooked, and only a whole outcome says that a guest shut
    /// itself down.
    #[test]
    fn a_power_loss_leaves_no_run_that_cannot_be_settled() {
        let base = tempfile::tempdir().expect("a directory");
        let store = Store::open(base.path()).expect("a store");
        let machine: forrest_core::model::MachineTypeName = "o/r/m".parse().expect("a name");
        let mut number = 0;
        for record in ALL {
            for outcome in ALL {
                for mark in ALL {
                    for disk in [Remains::Nothing, Remains::Empty] {
                        number += 1;
                        let runner: RunnerName =
                            format!("forrest-m-{number:016}").parse().expect("a name");
                        let dir = store.create_run_dir(&runner, &machine).expect("a new run");
                        let path = dir.path();
                        record.of(&path.join("record.json"), &whole_record(&runner));
                        outcome.of(&path.join("outcome.json"), &whole_outcome(&runner));
                        mark.of(&path.join("shim.lock"), "started\n");
                        disk.of(&path.join("disk.img"), "");
                        let left = (record, outcome, mark, disk);
                        let run = adopt(&dir).unwrap_or_else(|| panic!("{left:?} is overlooked"));
                        match run.vm {
                            AdoptedVm::Live { .. } => panic!("{left:?} is taken for alive"),
                            AdoptedVm::Ended { end, runner_id, .. } => {
                                assert_eq!(runner_id.is_some(), record == Remains::Whole);
                                let whole = outcome == Remains::Whole;
                                let shut_down = end.reason == EndReason::GuestShutdown;
                                assert_eq!(shut_down, whole, "{left:?}");
                            }
                            AdoptedVm::NotStarted => {
                                assert_ne!(outcome, Remains::Whole, "{left:?}")
                            }
                            AdoptedVm::DiskSettled => {
                                assert_eq!(disk, Remains::Nothing, "{left:?}")
                            }
                        }
                    }
                }
            }
        }
        assert_eq!(adopted(&store).len(), number);
    }

    fn whole_record(runner: &RunnerName) -> String {
        format!(
            r#"{{"runner": "{runner}", "machine": "o/r/m", "ram": 1, "cpus": 1, "disk": 1,
                "created_at": 1, "runner_id": 7}}"#
        )
    }

    fn whole_outcome(runner: &RunnerName) -> String {
        format!(
            r#"{{"format": 1, "runner": "{runner}", "boot": "cold", "reason": "guest-shutdown",
                "requested": false, "detail": "", "qemu_exit": {{"status": 0}}, "times": {{}}}}"#
        )
    }
}
