//! What an overlay is built on, down to the file that stands alone.

use std::path::Path;

use forrest_core::model::{Bytes, Generation, MachineTypeName, Repository};

use crate::error::ImageError;
use crate::generations::{BackingFile, Lineage, RECORD_MAX};
use crate::layout::{DISK_RECORD, generation_of_image};
use crate::run_disk::DiskRecord;
use crate::store::{Store, read_record};

/// The most files that an image in the store is built on. Each one costs a look-up at every read of
/// a block that no file above it holds. A run that would add one more is written out as one file when
/// it is promoted.
pub const MAX_BACKING_DEPTH: usize = 6;

/// A chain that is longer than this is one that the store did not make, perhaps one that bites its tail.
const CHAIN_MAX: usize = MAX_BACKING_DEPTH + 2;

/// One file of a disk, by the store's records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layer {
    pub(crate) file: BackingFile,
    /// The disk's size as a guest sees it; `None` where it is not recorded.
    pub(crate) virtual_size: Option<Bytes>,
}

impl Store {
    /// The files that an image is built on, the nearest first, each checked to be what it was.
    pub(crate) fn chain_below(
        &self,
        image: &Path,
        backing: Option<&BackingFile>,
    ) -> Result<Vec<BackingFile>, ImageError> {
        let layers = self.layers_below(image, backing)?;
        Ok(layers.into_iter().map(|layer| layer.file).collect())
    }

    /// [`Store::chain_below`], with what else the records say. No image is opened.
    pub(crate) fn layers_below(
        &self,
        image: &Path,
        backing: Option<&BackingFile>,
    ) -> Result<Vec<Layer>, ImageError> {
        let mut chain: Vec<Layer> = Vec::new();
        let mut next = backing.cloned();
        while let Some(file) = next {
            let above = chain.last().map_or(image, |layer| layer.file.path.as_path()).to_owned();
            let broken = |why| ImageError::BrokenChain {
                image: above.clone(),
                backing: file.path.clone(),
                why,
            };
            if chain.len() == CHAIN_MAX {
                return Err(broken("is one file too many in the chain"));
            }
            if !file.path.is_file() {
                return Err(broken("is not there"));
            }
            let (backing, virtual_size) =
                self.recorded(&file.path).map_err(|error| match error {
                    Missing::Record => broken("has no readable record"),
                    Missing::Other(error) => error,
                })?;
            next = backing;
            chain.push(Layer { file, virtual_size });
        }
        Ok(chain)
    }

    /// What a file of the store is built on, and its virtual size, by its record.
    fn recorded(&self, path: &Path) -> Result<(Option<BackingFile>, Option<Bytes>), Missing> {
        if path.parent() == Some(&self.layout.src()) {
            // Raw, and no guest has it open for writing.
            return self.check_src_entry(path).map(|()| (None, None)).map_err(Missing::Other);
        }
        if let Some((machine, generation)) = self.generation_of_path(path) {
            let paths = self.layout.machine(&machine)?;
            let lineage = read_record::<Lineage>(&paths.lineage(generation), RECORD_MAX)?;
            let Lineage { backing, virtual_size, .. } = lineage.ok_or(Missing::Record)?;
            // Zero where the lineage does not say.
            return Ok((backing, Some(virtual_size).filter(|size| *size != Bytes(0))));
        }
        let record = read_record::<DiskRecord>(&path.with_file_name(DISK_RECORD), RECORD_MAX)?;
        let DiskRecord { backing, virtual_size, .. } = record.ok_or(Missing::Record)?;
        Ok((backing, Some(virtual_size)))
    }

    /// The generation whose image is at this path.
    pub(crate) fn generation_of_path(&self, path: &Path) -> Option<(MachineTypeName, Generation)> {
        let below = path.strip_prefix(self.layout.machines()).ok()?;
        let parts: Vec<_> = below.iter().collect();
        let &[owner, repository, machine, image] = parts.as_slice() else { return None };
        let repository = Repository::new(owner.to_str()?, repository.to_str()?).ok()?;
        let machine = MachineTypeName::new(repository, machine.to_str()?).ok()?;
        Some((machine, generation_of_image(image)?))
    }
}

enum Missing {
    Record,
    Other(ImageError),
}

impl From<ImageError> for Missing {
    fn from(error: ImageError) -> Self {
        match error {
            ImageError::BadRecord { .. } => Self::Record,
            error => Self::Other(error),
        }
    }
}
