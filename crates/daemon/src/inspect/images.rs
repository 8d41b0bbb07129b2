//! The machine images of a base directory and where they come from.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use forrest_core::model::{
    Bytes, Generation, ImageRef, JobId, MachineTypeName, Repository, RunnerName, Timestamp,
    WorkflowRunId,
};
use forrest_images::{GenerationInfo, Store};
use serde::Serialize;

use super::InspectError;

/// The machine images of a base directory.
#[derive(Debug, Clone)]
pub struct MachineImages {
    store: Store,
}

/// One machine type's images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MachineSummary {
    /// The machine type.
    pub machine: MachineTypeName,
    /// The image that new runs start from; `None`: they start from the base.
    pub current: Option<GenerationView>,
    /// How many generations there are.
    pub generations: usize,
    /// How many of them are marked broken.
    pub broken: usize,
    /// The room that all of them take, in bytes. Blocks that they share count for each.
    pub size: Bytes,
}

/// One generation of a machine type's image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GenerationView {
    /// Its number.
    pub generation: Generation,
    /// Its file.
    pub path: PathBuf,
    /// Whether new runs start from it.
    pub current: bool,
    /// Why it is not used any more, where it was found not to work.
    pub broken: Option<String>,
    /// Whether its record is there and makes sense; without one it is never used, and what follows
    /// is not known.
    pub has_record: bool,
    /// The image that the run started from which left this one behind.
    pub parent: Option<ImageRef>,
    /// When it became a machine image.
    pub promoted_at: Option<Timestamp>,
    /// The run that left it behind.
    pub runner: Option<RunnerName>,
    /// The job of that run.
    pub job: Option<JobId>,
    /// The job's name. Whoever writes the workflow chooses it.
    pub job_name: Option<String>,
    /// The workflow run.
    pub workflow_run: Option<WorkflowRunId>,
    /// Which attempt at that run it was, from 1.
    pub run_attempt: Option<u32>,
    /// The repository.
    pub repository: Option<Repository>,
    /// The branch.
    pub head_branch: Option<String>,
    /// The commit.
    pub head_sha: Option<String>,
    /// What triggered the workflow, such as `push`.
    pub event: Option<String>,
    /// The disk's size as a guest sees it.
    pub virtual_size: Option<Bytes>,
    /// The room that its file takes now, in bytes; blocks shared with other files included.
    pub size: Bytes,
}

impl MachineImages {
    /// The images below this base directory; `None` where there have never been any.
    ///
    /// # Errors
    /// [`InspectError::NoBaseDir`]; [`InspectError::Images`].
    pub fn open(base_dir: &Path) -> Result<Option<Self>, InspectError> {
        if !base_dir.is_dir() {
            return Err(InspectError::NoBaseDir { path: base_dir.to_owned() });
        }
        // To open the store is to make its directories, and whoever asks here may be another user
        // than the daemon's.
        if !base_dir.join("machines").is_dir() {
            return Ok(None);
        }
        Ok(Some(Self { store: Store::open(base_dir)? }))
    }

    /// Every machine type that has images.
    ///
    /// # Errors
    /// [`InspectError::Images`].
    pub fn list(&self) -> Result<Vec<MachineSummary>, InspectError> {
        let mut summaries = Vec::new();
        for machine in self.store.machines()? {
            let generations = self.history(&machine)?;
            summaries.push(MachineSummary {
                machine,
                generations: generations.len(),
                broken: generations.iter().filter(|g| g.broken.is_some()).count(),
                size: generations.iter().map(|g| g.size).sum(),
                current: generations.into_iter().find(|g| g.current),
            });
        }
        Ok(summaries)
    }

    /// The generations of one machine type, the oldest first.
    ///
    /// # Errors
    /// [`InspectError::Images`].
    pub fn history(&self, machine: &MachineTypeName) -> Result<Vec<GenerationView>, InspectError> {
        let history = self.store.history(machine)?;
        Ok(history.into_iter().map(GenerationView::from).collect())
    }

    /// The generation that [`Self::roll_back`] to `to` makes current, and the one that is current.
    ///
    /// # Errors
    /// [`InspectError::Images`], as [`Self::roll_back`].
    pub fn target(
        &self,
        machine: &MachineTypeName,
        to: Option<Generation>,
    ) -> Result<Option<GenerationView>, InspectError> {
        let history = self.history(machine)?;
        let current = history.iter().find(|g| g.current).map(|g| g.generation);
        let sound = |g: &GenerationView| g.broken.is_none() && g.has_record;
        Ok(history.into_iter().rev().find(|g| match to {
            Some(to) => g.generation == to,
            None => sound(g) && current.is_some_and(|current| g.generation < current),
        }))
    }

    /// Makes another generation current: `to`, or the next sound one below the current one. Nothing
    /// is removed, and runs that are under way keep their disks.
    ///
    /// # Errors
    /// [`InspectError::OtherUser`] for a user who would leave files in the daemon's way;
    /// [`InspectError::Images`] where there is no such generation or it is broken.
    pub fn roll_back(
        &self,
        machine: &MachineTypeName,
        to: Option<Generation>,
    ) -> Result<Generation, InspectError> {
        let base_dir = self.store.base_dir();
        let owner = std::fs::metadata(base_dir)
            .map_err(|source| InspectError::Io {
                action: "look at",
                path: base_dir.to_owned(),
                source,
            })?
            .uid();
        let user = rustix::process::geteuid().as_raw();
        if owner != user {
            return Err(InspectError::OtherUser { base_dir: base_dir.to_owned(), owner, user });
        }
        Ok(self.store.roll_back(machine, to)?)
    }
}

impl From<GenerationInfo> for GenerationView {
    fn from(info: GenerationInfo) -> Self {
        let taken = std::fs::metadata(&info.path).map_or(0, |found| found.blocks());
        let has_record = info.lineage.is_some();
        let lineage = info.lineage.as_ref();
        let origin = info.lineage.as_ref().map(|l| l.origin.clone()).unwrap_or_default();
        Self {
            generation: info.generation,
            current: info.current,
            broken: info.broken.map(|mark| mark.why),
            has_record,
            parent: lineage.and_then(|l| l.parent.clone()),
            promoted_at: lineage.map(|l| l.promoted_at),
            runner: lineage.and_then(|l| l.runner.clone()),
            job: origin.job,
            job_name: origin.job_name,
            workflow_run: origin.workflow_run,
            run_attempt: origin.run_attempt,
            repository: origin.repository,
            head_branch: origin.head_branch,
            head_sha: origin.head_sha,
            event: origin.event,
            virtual_size: lineage.map(|l| l.virtual_size),
            size: Bytes(taken.saturating_mul(512)),
            path: info.path,
        }
    }
}
