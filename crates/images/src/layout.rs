//! Where everything is below the base directory, and how file names are read back.
//!
//! Paths only: nothing here looks at a file.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use forrest_core::model::{Generation, MachineTypeName, Repository, RunnerName};

use crate::error::ImageError;

/// The run's disk.
pub const DISK: &str = "disk.img";
/// What the run's disk was made from.
pub const DISK_RECORD: &str = "disk.json";
/// The seed disk with the `cloud-init/` part of the setup template.
pub const CLOUD_INIT: &str = "cloud-init.img";
/// The seed disk with the `job-config/` part of the setup template, JIT config included.
pub const JOB_CONFIG: &str = "job-config.img";

/// A run disk that is being written out without backing files.
pub(crate) const FLAT_DISK: &str = "disk.flat.img";
/// High-water mark and marks of a machine type's generations.
pub(crate) const STATE: &str = "state.json";

const IMAGE_SUFFIX: &str = ".img";

/// The base directory's parts.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    base: PathBuf,
}

impl Layout {
    pub(crate) fn new(base: PathBuf) -> Self {
        Self { base }
    }

    pub(crate) fn base(&self) -> &Path {
        &self.base
    }

    pub(crate) fn machines(&self) -> PathBuf {
        self.base.join("machines")
    }

    pub(crate) fn runs(&self) -> PathBuf {
        self.base.join("runs")
    }

    pub(crate) fn snapshots(&self) -> PathBuf {
        self.base.join("snapshots")
    }

    /// Src images that were imported, converted, or pinned by a hard link.
    pub(crate) fn src(&self) -> PathBuf {
        self.base.join("src")
    }

    /// Held by whoever changes generations.
    pub(crate) fn store_lock(&self) -> PathBuf {
        self.base.join(".store.lock")
    }

    /// Held shared while something is built on an image file, alone while image files are removed.
    pub(crate) fn removal_lock(&self) -> PathBuf {
        self.base.join(".removal.lock")
    }

    /// Held by whoever imports a src image.
    pub(crate) fn src_lock(&self) -> PathBuf {
        self.base.join(".src.lock")
    }

    pub(crate) fn machine(&self, machine: &MachineTypeName) -> Result<MachinePaths, ImageError> {
        // "x.img" would be both the link of "x" and the directory of "x.img".
        if machine.machine().ends_with(IMAGE_SUFFIX) {
            return Err(ImageError::ReservedName { machine: machine.clone() });
        }
        let repository = self.repository_dir(&self.machines(), machine.repository());
        Ok(MachinePaths {
            dir: repository.join(machine.machine()),
            link: repository.join(format!("{}{IMAGE_SUFFIX}", machine.machine())),
            repository,
            machine: machine.clone(),
        })
    }

    pub(crate) fn run(&self, runner: &RunnerName, machine: &MachineTypeName) -> PathBuf {
        self.repository_dir(&self.runs(), machine.repository())
            .join(machine.machine())
            .join(runner.as_str())
    }

    fn repository_dir(&self, below: &Path, repository: &Repository) -> PathBuf {
        below.join(repository.owner()).join(repository.name())
    }
}

/// One machine type's files.
#[derive(Debug, Clone)]
pub(crate) struct MachinePaths {
    pub(crate) machine: MachineTypeName,
    /// The directory that holds the link, and those of the repository's other machine types.
    pub(crate) repository: PathBuf,
    /// The directory of the generations.
    pub(crate) dir: PathBuf,
    /// The link to the current generation.
    pub(crate) link: PathBuf,
}

impl MachinePaths {
    pub(crate) fn image(&self, generation: Generation) -> PathBuf {
        self.dir.join(format!("{generation}{IMAGE_SUFFIX}"))
    }

    pub(crate) fn lineage(&self, generation: Generation) -> PathBuf {
        self.dir.join(format!("{generation}.json"))
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.dir.join(STATE)
    }

    /// What the link says when this generation is current.
    pub(crate) fn link_target(&self, generation: Generation) -> PathBuf {
        Path::new(self.machine.machine()).join(format!("{generation}{IMAGE_SUFFIX}"))
    }

    /// The generation that a link with this target makes current, where the store could have made it.
    pub(crate) fn generation_of_target(&self, target: &Path) -> Option<Generation> {
        let (dir, file) = (target.parent()?, target.file_name()?);
        (dir == Path::new(self.machine.machine())).then(|| generation_of_image(file)).flatten()
    }
}

/// The generation whose image has this file name.
pub(crate) fn generation_of_image(name: &OsStr) -> Option<Generation> {
    generation_of(name, IMAGE_SUFFIX)
}

/// The generation whose lineage has this file name.
pub(crate) fn generation_of_lineage(name: &OsStr) -> Option<Generation> {
    generation_of(name, ".json")
}

fn generation_of(name: &OsStr, suffix: &str) -> Option<Generation> {
    let digits = name.to_str()?.strip_suffix(suffix)?;
    let generation = Generation(digits.parse().ok()?);
    // One file name per generation: no "7.img" beside "000007.img", and no zeroth one.
    (generation.0 > 0 && generation.to_string() == digits).then_some(generation)
}

/// The machine's own name in the link's file name.
pub(crate) fn machine_of_link(name: &OsStr) -> Option<&str> {
    name.to_str()?.strip_suffix(IMAGE_SUFFIX).filter(|name| !name.ends_with(IMAGE_SUFFIX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generations_have_one_file_name_each() {
        assert_eq!(generation_of_image(OsStr::new("000007.img")), Some(Generation(7)));
        assert_eq!(generation_of_image(OsStr::new("1000000.img")), Some(Generation(1_000_000)));
        for name in ["7.img", "000000.img", "+00007.img", "000007", "000007.img.img", "x.img"] {
            assert_eq!(generation_of_image(OsStr::new(name)), None, "{name}");
        }
    }

    #[test]
    fn names_that_would_collide_with_the_link_are_refused() {
        let layout = Layout::new("/b".into());
        let machine = |name: &str| name.parse::<MachineTypeName>().expect("a sound name");
        assert!(layout.machine(&machine("o/r/x.img")).is_err());
        let paths = layout.machine(&machine("o/r/x")).expect("a usable name");
        assert_eq!(paths.link, Path::new("/b/machines/o/r/x.img"));
        assert_eq!(paths.image(Generation(7)), Path::new("/b/machines/o/r/x/000007.img"));
        let target = paths.link_target(Generation(7));
        assert_eq!(target, Path::new("x/000007.img"));
        assert_eq!(paths.generation_of_target(&target), Some(Generation(7)));
        assert_eq!(paths.generation_of_target(Path::new("/etc/000007.img")), None);
    }
}
