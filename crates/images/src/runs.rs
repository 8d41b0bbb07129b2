//! Run directories: one per run, from its preparation until what it left behind is settled.

use std::path::{Path, PathBuf};

use forrest_core::model::{MachineTypeName, Repository, RunnerName};

use crate::error::ImageError;
use crate::layout::{CLOUD_INIT, DISK, DISK_RECORD, FLAT_DISK, JOB_CONFIG};
use crate::store::{DirEntry, PRIVATE_DIR_MODE, Store, read_dir};

/// The directory of one run. It need not exist.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RunDir {
    runner: RunnerName,
    machine: MachineTypeName,
    path: PathBuf,
}

impl RunDir {
    pub(crate) const fn at(runner: RunnerName, machine: MachineTypeName, path: PathBuf) -> Self {
        Self { runner, machine, path }
    }

    /// The run.
    pub const fn runner(&self) -> &RunnerName {
        &self.runner
    }

    /// Its machine type.
    pub const fn machine(&self) -> &MachineTypeName {
        &self.machine
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The run's disk.
    pub fn disk(&self) -> PathBuf {
        self.path.join(DISK)
    }

    /// The seed disk made from `cloud-init/`.
    pub fn cloud_init(&self) -> PathBuf {
        self.path.join(CLOUD_INIT)
    }

    /// The seed disk made from `job-config/`.
    pub fn job_config(&self) -> PathBuf {
        self.path.join(JOB_CONFIG)
    }
}

impl Store {
    /// Where a run's files belong. Looks at no file.
    pub fn run_dir(&self, runner: &RunnerName, machine: &MachineTypeName) -> RunDir {
        let path = self.layout.run(runner, machine);
        RunDir { runner: runner.clone(), machine: machine.clone(), path }
    }

    /// Makes a run's directory, for this user alone.
    ///
    /// # Errors
    /// [`ImageError::Io`], also when it exists: runner names are never used twice;
    /// [`ImageError::BaseGone`], instead of making another base directory where the real one was.
    pub fn create_run_dir(
        &self,
        runner: &RunnerName,
        machine: &MachineTypeName,
    ) -> Result<RunDir, ImageError> {
        let run = self.run_dir(runner, machine);
        if !self.layout.runs().is_dir() {
            return Err(ImageError::BaseGone { base: self.layout.base().to_owned() });
        }
        if let Some(parent) = run.path.parent() {
            self.files.make_dirs(parent, 0o750)?;
        }
        self.files.make_dir(&run.path, PRIVATE_DIR_MODE)?;
        Ok(run)
    }

    /// All run directories, in the order of machine types and runners. What does not have the form of
    /// one is passed over.
    ///
    /// # Errors
    /// [`ImageError::Io`] when a directory cannot be listed: then not all of them are known.
    pub fn list_run_dirs(&self) -> Result<Vec<RunDir>, ImageError> {
        let mut found = self.find_run_dirs()?;
        match found.unlisted.pop() {
            Some(error) => Err(error),
            None => Ok(found.runs),
        }
    }

    /// The run directories that can be found, and what stands in the way of finding all.
    ///
    /// # Errors
    /// [`ImageError::Io`] when the directory above them all cannot be listed.
    pub fn find_run_dirs(&self) -> Result<RunDirs, ImageError> {
        let mut found = RunDirs::default();
        for owner in read_dir(&self.layout.runs())? {
            for repository in found.inside(&owner) {
                for machine in found.inside(&repository) {
                    for run in found.inside(&machine) {
                        let names = [&owner.name, &repository.name, &machine.name, &run.name];
                        match named(names.map(|name| name.to_str())).filter(|_| run.is_dir) {
                            Some((runner, machine)) => {
                                found.runs.push(RunDir { runner, machine, path: run.path });
                            }
                            None => found.others.push(run.path),
                        }
                    }
                }
            }
        }
        found.runs.sort();
        Ok(found)
    }

    /// Removes what a run's guest could see: its disk and its seed disks, the JIT config with them. The
    /// run's records and logs stay. Doing it twice is as good as doing it once.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub fn discard(&self, run: &RunDir) -> Result<(), ImageError> {
        // The record goes last: as long as there may be a disk, it says what the disk needs.
        for name in [JOB_CONFIG, CLOUD_INIT, FLAT_DISK, DISK, DISK_RECORD] {
            self.files.remove(&run.path.join(name))?;
        }
        Ok(())
    }

    /// Removes a run's directory with everything in it, logs included. Doing it twice is as good as
    /// doing it once.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub fn remove_run_dir(&self, run: &RunDir) -> Result<(), ImageError> {
        self.discard(run)?;
        self.files.remove_tree(&run.path)?;
        Ok(())
    }
}

/// What is found below `runs/`.
#[derive(Debug, Default)]
pub struct RunDirs {
    /// The run directories, in the order of machine types and runners.
    pub runs: Vec<RunDir>,
    /// Files and directories that are nothing of Forrest's.
    pub others: Vec<PathBuf>,
    /// What kept a directory from being listed; what is in it is not known.
    pub unlisted: Vec<ImageError>,
}

impl RunDirs {
    fn inside(&mut self, entry: &DirEntry) -> Vec<DirEntry> {
        if !entry.is_dir {
            self.others.push(entry.path.clone());
            return Vec::new();
        }
        read_dir(&entry.path).unwrap_or_else(|error| {
            self.unlisted.push(error);
            Vec::new()
        })
    }
}

fn named(names: [Option<&str>; 4]) -> Option<(RunnerName, MachineTypeName)> {
    let [Some(owner), Some(repository), Some(machine), Some(runner)] = names else { return None };
    let repository = Repository::new(owner, repository).ok()?;
    let machine = MachineTypeName::new(repository, machine).ok()?;
    let runner: RunnerName = runner.parse().ok()?;
    (runner.machine() == machine.machine()).then_some((runner, machine))
}
