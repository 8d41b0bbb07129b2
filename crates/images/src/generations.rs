//! Machine images: which generations a machine type has, what is known of each, which one is current.
//!
//! The files decide, by these rules, which [`crate::promote`] relies on:
//!
//! - A generation *exists* when its image and its lineage do. An image alone is somebody else's file and
//!   is never used or touched; a lineage alone is what a promotion or a removal left unfinished.
//! - A generation above the high-water mark of `state.json` was promoted but not yet switched to: it is
//!   the current one, whatever the link says.
//! - Otherwise the link names the current one. When that is marked broken or does not exist, the next
//!   lower sound one is current.
//! - No link: nothing is current, and runs start from the base.

use std::collections::BTreeMap;
use std::path::PathBuf;

use forrest_core::model::{
    Bytes, Generation, ImageRef, JobId, MachineTypeName, Repository, RunnerName, StartImage,
    Timestamp, WorkflowRunId,
};
use serde::{Deserialize, Serialize};

use crate::error::ImageError;
use crate::format::DiskFormat;
use crate::layout::{MachinePaths, generation_of_image, generation_of_lineage, machine_of_link};
use crate::store::{Store, read_dir, read_record};

/// The longest record that is read, in bytes.
pub(crate) const RECORD_MAX: u64 = 1 << 20;

/// A file that an overlay is built on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackingFile {
    /// The file.
    pub path: PathBuf,
    /// Its format.
    pub format: DiskFormat,
}

/// Who caused a promotion, as GitHub reports it. What GitHub left out is `None`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the fields are named after GitHub's")]
pub struct Origin {
    pub job: Option<JobId>,
    pub job_name: Option<String>,
    pub workflow_run: Option<WorkflowRunId>,
    pub run_attempt: Option<u32>,
    pub repository: Option<Repository>,
    pub head_branch: Option<String>,
    pub head_sha: Option<String>,
    pub event: Option<String>,
}

/// Where a generation comes from: the content of `000007.json`.
///
/// Read with tolerance: fields that are missing are `None`, unknown ones are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lineage {
    /// The generation.
    pub generation: Generation,
    /// The format of its file. Never guessed, so a lineage without it is unreadable.
    pub format: DiskFormat,
    /// When it was promoted.
    pub promoted_at: Timestamp,
    /// The image that the run started from; `None` for one that was there before Forrest kept lineages.
    #[serde(default)]
    pub parent: Option<ImageRef>,
    /// The file that the image needs, where it is an overlay.
    #[serde(default)]
    pub backing: Option<BackingFile>,
    /// The run that left it behind.
    #[serde(default)]
    pub runner: Option<RunnerName>,
    /// The job that ran.
    #[serde(default)]
    pub origin: Origin,
    /// The disk's size as a guest sees it.
    #[serde(default)]
    pub virtual_size: Bytes,
    /// The room that its file took when it was promoted, blocks shared with other files included.
    #[serde(default)]
    pub allocated_size: Bytes,
}

/// Why and when a generation was marked broken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokenMark {
    /// In words for the operator.
    pub why: String,
    /// When.
    pub at: Timestamp,
}

/// One generation, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GenerationInfo {
    /// Its number.
    pub generation: Generation,
    /// Its image.
    pub path: PathBuf,
    /// Where it comes from; `None` when its record is missing or unreadable: then it is never used.
    pub lineage: Option<Lineage>,
    /// Whether new runs start from it.
    pub current: bool,
    /// Whether it was found not to boot.
    pub broken: Option<BrokenMark>,
}

/// The content of `state.json`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct State {
    /// The highest number that was ever switched to, or 0. Numbers up to it are never given out again.
    pub(crate) high_water: u32,
    pub(crate) broken: BTreeMap<Generation, BrokenMark>,
}

/// What the files of one machine type say.
#[derive(Debug, Clone)]
pub(crate) struct Generations {
    pub(crate) state: State,
    /// What the link names.
    pub(crate) link: Option<Generation>,
    /// Whether an ordinary file sits where the link belongs.
    pub(crate) plain_file: bool,
    /// Images, each with its lineage where that is readable.
    pub(crate) images: BTreeMap<Generation, Option<Lineage>>,
    /// Lineages without images.
    pub(crate) orphans: Vec<Generation>,
}

impl Generations {
    pub(crate) fn read(paths: &MachinePaths) -> Result<Self, ImageError> {
        let mut images = BTreeMap::new();
        let mut lineages = Vec::new();
        for entry in read_dir(&paths.dir)?.iter().filter(|entry| entry.is_file) {
            if let Some(generation) = generation_of_image(&entry.name) {
                images.insert(generation, read_lineage(paths, generation)?);
            } else if let Some(generation) = generation_of_lineage(&entry.name) {
                lineages.push(generation);
            }
        }
        let orphans = lineages.into_iter().filter(|n| !images.contains_key(n)).collect();
        let highest = images.keys().next_back().map_or(0, |n| n.0);
        let state = match read_record(&paths.state(), RECORD_MAX) {
            Ok(state) => state.unwrap_or_default(),
            Err(error @ ImageError::BadRecord { .. }) => {
                // Nothing is rolled forward on the word of a record that cannot be read.
                tracing::warn!("{error}; marks of broken generations are lost");
                State { high_water: highest, broken: BTreeMap::new() }
            }
            Err(error) => return Err(error),
        };
        let link_target = std::fs::read_link(&paths.link).ok();
        let link = link_target.and_then(|target| paths.generation_of_target(&target));
        let plain_file =
            std::fs::symlink_metadata(&paths.link).is_ok_and(|metadata| metadata.is_file());
        Ok(Self { state, link, plain_file, images, orphans })
    }

    /// Whether it exists and is not marked broken.
    pub(crate) fn is_sound(&self, generation: Generation) -> bool {
        self.images.get(&generation).is_some_and(Option::is_some)
            && !self.state.broken.contains_key(&generation)
    }

    pub(crate) fn current(&self) -> Option<Generation> {
        let unswitched = self
            .images
            .keys()
            .rev()
            .take_while(|n| n.0 > self.state.high_water)
            .find(|n| self.is_sound(**n));
        unswitched.copied().or_else(|| self.sound_up_to(self.link?))
    }

    /// The next sound one below the current one.
    pub(crate) fn previous(&self) -> Option<Generation> {
        self.sound_up_to(Generation(self.current()?.0 - 1))
    }

    fn sound_up_to(&self, top: Generation) -> Option<Generation> {
        self.images.range(..=top).rev().map(|(n, _)| *n).find(|n| self.is_sound(*n))
    }

    /// The number that the next promotion takes.
    pub(crate) fn next(&self, machine: &MachineTypeName) -> Result<Generation, ImageError> {
        let highest = self.images.keys().chain(&self.orphans).map(|n| n.0).max().unwrap_or(0);
        highest
            .max(self.state.high_water)
            .checked_add(1)
            .map(Generation)
            .ok_or_else(|| ImageError::NoNumberLeft { machine: machine.clone() })
    }

    /// The generation that this run left behind.
    pub(crate) fn of_runner(&self, runner: &RunnerName) -> Option<Generation> {
        let lineages = self.images.values().flatten();
        lineages
            .filter(|lineage| lineage.runner.as_ref() == Some(runner))
            .map(|lineage| lineage.generation)
            .next_back()
    }
}

/// The lineage, or `None` where it is missing or unreadable.
fn read_lineage(
    paths: &MachinePaths,
    generation: Generation,
) -> Result<Option<Lineage>, ImageError> {
    match read_record::<Lineage>(&paths.lineage(generation), RECORD_MAX) {
        // The file name is what names a generation.
        Ok(lineage) => Ok(lineage.map(|lineage| Lineage { generation, ..lineage })),
        Err(error @ ImageError::BadRecord { .. }) => {
            tracing::warn!("{error}; the generation is not used");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

impl Store {
    /// The machine type's own image, where it has one that is sound.
    ///
    /// # Errors
    /// [`ImageError::SrcChanged`] or [`ImageError::BrokenChain`] when the image is an overlay and what it
    /// is built on is no longer what it was; [`ImageError::ReservedName`]; [`ImageError::Io`].
    pub fn machine_image(
        &self,
        machine: &MachineTypeName,
    ) -> Result<Option<StartImage>, ImageError> {
        let paths = self.layout.machine(machine)?;
        let generations = Generations::read(&paths)?;
        let Some(generation) = generations.current() else { return Ok(None) };
        let Some(Some(lineage)) = generations.images.get(&generation) else { return Ok(None) };
        self.chain_below(&paths.image(generation), lineage.backing.as_ref())?;
        Ok(Some(StartImage {
            image: ImageRef::Machine { machine: machine.clone(), generation },
            made_at: lineage.promoted_at,
        }))
    }

    /// All generations of a machine type, oldest first.
    ///
    /// # Errors
    /// [`ImageError::ReservedName`]; [`ImageError::Io`].
    pub fn history(&self, machine: &MachineTypeName) -> Result<Vec<GenerationInfo>, ImageError> {
        let paths = self.layout.machine(machine)?;
        let mut generations = Generations::read(&paths)?;
        let current = generations.current();
        let info = |(generation, lineage)| GenerationInfo {
            generation,
            path: paths.image(generation),
            lineage,
            current: current == Some(generation),
            broken: generations.state.broken.remove(&generation),
        };
        Ok(std::mem::take(&mut generations.images).into_iter().map(info).collect())
    }

    /// Every machine type that has, or had, an image here, in the order of their names. What does not
    /// have the form that the store gives its directories is passed over.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub fn machines(&self) -> Result<Vec<MachineTypeName>, ImageError> {
        let mut machines = Vec::new();
        for owner in read_dir(&self.layout.machines())?.iter().filter(|entry| entry.is_dir) {
            for repository in read_dir(&owner.path)?.iter().filter(|entry| entry.is_dir) {
                let names = owner.name.to_str().zip(repository.name.to_str());
                let Some(Ok(name)) = names.map(|(owner, name)| Repository::new(owner, name)) else {
                    continue;
                };
                for entry in read_dir(&repository.path)? {
                    let machine = match entry.is_dir {
                        true => entry.name.to_str(),
                        false => machine_of_link(&entry.name),
                    };
                    let machine = machine.map(|text| MachineTypeName::new(name.clone(), text));
                    machines.extend(machine.and_then(Result::ok));
                }
            }
        }
        machines.retain(|machine| self.layout.machine(machine).is_ok());
        machines.sort();
        machines.dedup();
        Ok(machines)
    }
}
