//! What an earlier daemon left behind: every run directory becomes a run again, live or to be
//! settled. Nothing is stopped here.

use forrest_core::event::{AdoptedRun, AdoptedVm};
use forrest_core::model::Timestamp;
use forrest_images::{RunDir, Store};
use forrest_vm::RunSpec;
use forrest_vm::run_dir::{self, RunDirState};
use forrest_vm::spec::BootKind;

use crate::clock::{now, timestamp};
use crate::executors::{self, disk_exists};
use crate::record::RunRecord;

/// Every run directory, made sense of.
pub(crate) fn adopted(store: &Store) -> Vec<AdoptedRun> {
    let dirs = match store.list_run_dirs() {
        Ok(dirs) => dirs,
        Err(error) => {
            tracing::error!(%error, "could not look for the runs of an earlier start");
            return Vec::new();
        }
    };
    dirs.iter().filter_map(adopt).collect()
}

/// One run directory; `None` for one whose run is over and that only keeps its log.
fn adopt(dir: &RunDir) -> Option<AdoptedRun> {
    if executors::is_forgotten(dir.path()) {
        return None;
    }
    let record = RunRecord::read(dir.path());
    let state = match run_dir::classify(dir.path()) {
        Ok(state) => state,
        Err(error) => {
            tracing::error!(runner = %dir.runner(), %error, "its state cannot be read: settling it");
            RunDirState::Lost
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
            _ => {
                tracing::error!(
                    runner = %dir.runner(),
                    "a virtual machine runs, and its record cannot be read: left alone; end it with \
                     `forrest stop` once its job is over"
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
