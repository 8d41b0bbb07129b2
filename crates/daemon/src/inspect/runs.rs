//! The runs that have a directory: those that are under way, and those whose log is still kept.

use std::io;
use std::path::{Path, PathBuf};

use forrest_core::model::{MachineTypeName, Repository, RunnerName, Timestamp};
use forrest_vm::console::ConsoleReader;
use forrest_vm::run_dir::{self, RunDirState, files};
use forrest_vm::{EndReason, Outcome, VmError};
use tokio::net::UnixStream;

use super::InspectError;
use crate::clock::timestamp;
use crate::executors::is_forgotten;
use crate::record::RunRecord;

/// A run that has a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundRun {
    /// Its name, and its runner's.
    pub runner: RunnerName,
    /// Its machine type.
    pub machine: MachineTypeName,
    /// Its directory.
    pub path: PathBuf,
    /// When it was created, as far as its record tells; newer runs come first.
    pub created_at: Timestamp,
}

/// What has become of a run's virtual machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Life {
    /// It is being prepared.
    Preparing,
    /// It runs.
    Live,
    /// It ended.
    Over(End),
    /// It ended without a word: its supervisor was killed, or the host went down.
    Lost,
    /// It never ran.
    NeverStarted,
}

/// How a virtual machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// Why, as in `outcome.json`: `guest-shutdown`.
    pub reason: String,
    /// Whether the guest shut itself down, as it should.
    pub is_orderly: bool,
    /// More on that. May quote the guest.
    pub detail: String,
    /// When, where it is known.
    pub at: Option<Timestamp>,
}

/// Every run that has a directory in `<base_dir>/runs`, the newest first. What does not have the form
/// of a run's directory is passed over.
///
/// # Errors
/// [`InspectError::NoBaseDir`]; [`InspectError::Io`].
pub fn runs(base_dir: &Path) -> Result<Vec<FoundRun>, InspectError> {
    if !base_dir.is_dir() {
        return Err(InspectError::NoBaseDir { path: base_dir.to_owned() });
    }
    let mut runs = Vec::new();
    for owner in directories(&base_dir.join("runs"))? {
        for repository in directories(&owner.path)? {
            let Ok(name) = Repository::new(&owner.name, &repository.name) else { continue };
            for machine in directories(&repository.path)? {
                let Ok(machine_name) = MachineTypeName::new(name.clone(), &machine.name) else {
                    continue;
                };
                for run in directories(&machine.path)? {
                    let Ok(runner) = run.name.parse() else { continue };
                    let machine = machine_name.clone();
                    runs.push(FoundRun {
                        runner,
                        machine,
                        created_at: created_at(&run.path),
                        path: run.path,
                    });
                }
            }
        }
    }
    runs.sort_by(|a, b| (b.created_at, &a.runner).cmp(&(a.created_at, &b.runner)));
    Ok(runs)
}

struct Directory {
    name: String,
    path: PathBuf,
}

/// When the run was made: by its record, or by the last change of its directory.
fn created_at(run_dir: &Path) -> Timestamp {
    let changed = || std::fs::metadata(run_dir).and_then(|found| found.modified()).ok();
    RunRecord::read(run_dir)
        .map(|record| record.created_at)
        .or_else(|| changed().map(timestamp))
        .unwrap_or_default()
}

/// The directories directly in `path`; none where there is no such directory.
fn directories(path: &Path) -> Result<Vec<Directory>, InspectError> {
    let failed = |source| InspectError::Io { action: "list", path: path.to_owned(), source };
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if let (true, Ok(name)) = (is_dir, entry.file_name().into_string()) {
            found.push(Directory { name, path: entry.path() });
        }
    }
    Ok(found)
}

impl FoundRun {
    /// What has become of its virtual machine.
    ///
    /// # Errors
    /// [`InspectError::Vm`] where its files cannot be read or make no sense.
    pub fn life(&self) -> Result<Life, InspectError> {
        Ok(match run_dir::classify(&self.path)? {
            RunDirState::Live => Life::Live,
            RunDirState::Over(outcome) => Life::Over(End::of(&outcome)),
            RunDirState::Lost => Life::Lost,
            RunDirState::NeverStarted if is_forgotten(&self.path) || !self.path.exists() => {
                Life::NeverStarted
            }
            RunDirState::NeverStarted => Life::Preparing,
        })
    }

    /// Its console's output, from the beginning of what is kept of it.
    ///
    /// The bytes are the guest's own: neutralise them before showing them.
    pub fn console(&self) -> ConsoleReader {
        ConsoleReader::new(&self.path)
    }

    /// Whether there is console output at all.
    pub fn has_console(&self) -> bool {
        self.path.join(files::CONSOLE).exists()
    }

    /// Connects to the guest's root shell. One at a time: a second one waits for the first to end.
    ///
    /// # Errors
    /// [`InspectError::Io`]; of kind `NotFound` or `ConnectionRefused` where no guest runs.
    pub async fn shell(&self) -> Result<UnixStream, InspectError> {
        run_dir::connect(&self.path, files::SHELL_SOCK).await.map_err(|error| match error {
            VmError::Io { path, source, .. } => {
                InspectError::Io { action: "connect to", path, source }
            }
            other => InspectError::Vm(other),
        })
    }
}

impl End {
    fn of(outcome: &Outcome) -> Self {
        let name = serde_json::to_value(outcome.reason).ok();
        let name = name.as_ref().and_then(serde_json::Value::as_str).unwrap_or("unknown");
        Self {
            reason: name.to_owned(),
            is_orderly: outcome.reason == EndReason::GuestShutdown,
            detail: outcome.detail.clone(),
            at: outcome.times.ended_at,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_found_and_other_things_are_passed_over() {
        let base = tempfile::tempdir().expect("a directory");
        assert!(runs(base.path()).expect("no runs yet").is_empty());
        let run = base.path().join("runs/o/r/build/forrest-build-abcdefghijklmnop");
        std::fs::create_dir_all(&run).expect("a run directory");
        std::fs::create_dir_all(base.path().join("runs/o/r/build/lost+found")).expect("other");
        std::fs::create_dir_all(base.path().join("runs/o o/r/b")).expect("other");
        std::fs::write(base.path().join("runs/o/r/file"), "").expect("other");
        let found = runs(base.path()).expect("runs");
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].machine.to_string(), "o/r/build");
        assert_eq!(found[0].path, run);
        assert_eq!(found[0].life().expect("life"), Life::Preparing);
    }

    #[test]
    fn a_missing_base_directory_is_no_empty_one() {
        let base = tempfile::tempdir().expect("a directory");
        let error = runs(&base.path().join("typo")).expect_err("nothing is there");
        assert!(matches!(error, InspectError::NoBaseDir { .. }), "{error}");
    }
}
