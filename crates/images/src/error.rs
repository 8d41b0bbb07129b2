//! What can go wrong with images, in words that an operator can act on.

use std::io;
use std::path::{Path, PathBuf};

use forrest_core::model::{Bytes, Generation, MachineTypeName, RunnerName};

/// Why an operation on images failed.
///
/// The texts say what failed, on what, why and what to do next; none contains a secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The operating system refused.
    #[error("could not {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as an infinitive (`create the directory`).
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// The base directory is not there any more, or is not the one that was opened.
    #[error(
        "the base directory {} is gone, or empty: is its file system mounted? Nothing starts until it is \
         back", base.display()
    )]
    BaseGone {
        /// The base directory.
        base: PathBuf,
    },
    /// A file that should be a disk image is none that Forrest can start from.
    #[error("{} cannot be used as a disk image: {why}", path.display())]
    NotAnImage {
        /// The file.
        path: PathBuf,
        /// What is wrong with it and what to do.
        why: String,
    },
    /// A disk can grow, but never shrink below the image that it starts from.
    #[error(
        "a disk of {disk_size} is too small for {image}, which is {image_size}: set `disk` to at least {image_size}"
    )]
    DiskTooSmall {
        /// The image, as text.
        image: String,
        /// The image's size as the guest sees it.
        image_size: Bytes,
        /// The size that the configuration asks for.
        disk_size: Bytes,
    },
    /// A disk is larger than Forrest supports.
    #[error("a disk of {disk_size} is larger than the largest supported one, {max}: lower `disk`")]
    DiskTooLarge {
        /// The size that the configuration asks for.
        disk_size: Bytes,
        /// The largest size.
        max: Bytes,
    },
    /// A src image was changed in place although overlays are built on it.
    #[error(
        "the src image {} was modified in place after machine images or runs were built on it, so they can no longer be read: \
         bring back the original content, or remove those machine images (`forrest images`); \
         to update a src image, write a new file and rename it over the old one", path.display()
    )]
    SrcChanged {
        /// The src image's path, as it was when the overlays were made.
        path: PathBuf,
    },
    /// A file that an overlay needs is not there or is not what it should be.
    #[error(
        "{} needs {}, which {why}: roll back to a generation that does not need it, or restore it",
        image.display(), backing.display()
    )]
    BrokenChain {
        /// The overlay.
        image: PathBuf,
        /// The file that it is built on.
        backing: PathBuf,
        /// What is wrong with that.
        why: &'static str,
    },
    /// A machine type whose name would collide with the store's own file names.
    #[error(
        "the machine type {machine} cannot be stored: a machine's name must not end in \".img\"; rename it"
    )]
    ReservedName {
        /// The machine type.
        machine: MachineTypeName,
    },
    /// The generation does not exist.
    #[error("{machine} has no generation {generation}; `forrest images` lists those that exist")]
    NoSuchGeneration {
        /// Whose generation.
        machine: MachineTypeName,
        /// Which one.
        generation: Generation,
    },
    /// The generation is marked broken.
    #[error("generation {generation} of {machine} is marked broken ({why}); choose another one")]
    GenerationBroken {
        /// Whose generation.
        machine: MachineTypeName,
        /// Which one.
        generation: Generation,
        /// Why it was marked.
        why: String,
    },
    /// There is no earlier generation to go back to.
    #[error("{machine} has no earlier usable generation to roll back to")]
    NothingToRollBackTo {
        /// Whose generation.
        machine: MachineTypeName,
    },
    /// No number is left for a new generation.
    #[error("{machine} has used up all generation numbers; move its directory away to start again")]
    NoNumberLeft {
        /// Whose generation.
        machine: MachineTypeName,
    },
    /// A record of the store cannot be read.
    #[error("the record {} cannot be read: {why}; restore it from a backup or remove it", path.display())]
    BadRecord {
        /// The file.
        path: PathBuf,
        /// The parser's complaint.
        why: String,
    },
    /// The run has no disk: it was never forked, or was promoted or discarded.
    #[error("the run {runner} has no disk in {}: it was never made, or is already settled", dir.display())]
    NoDisk {
        /// The run.
        runner: RunnerName,
        /// Its directory.
        dir: PathBuf,
    },
    /// The run already has a disk.
    #[error("the run {runner} already has a disk in {}; discard it first", dir.display())]
    DiskExists {
        /// The run.
        runner: RunnerName,
        /// Its directory.
        dir: PathBuf,
    },
    /// The host restarted between the run and its promotion.
    #[error(
        "the host was restarted after the run {runner} wrote its disk; writes may be missing from it, so it is not promoted"
    )]
    HostRestarted {
        /// The run.
        runner: RunnerName,
    },
    /// The disk of a run, or a file that it is built on, is not what the store made of it. Trying again
    /// ends in the same way.
    #[error(
        "the disk of the run {runner} becomes no image and is removed, since it is not what Forrest made: the {field} of {} \
         is {found}. {advice}", path.display()
    )]
    DiskChanged {
        /// The run.
        runner: RunnerName,
        /// The file.
        path: PathBuf,
        /// The field of its header, or the property of the file.
        field: &'static str,
        /// What it is, which a guest may have chosen, and what it is by the store's records. Short, and
        /// without control characters.
        found: String,
        /// Who may have done that, and what to do.
        advice: &'static str,
    },
    /// A snapshot was dropped or removed since it was found.
    #[error("the snapshot in {} is not to be used any more; the next check has a new one built", dir.display())]
    SnapshotGone {
        /// Its directory.
        dir: PathBuf,
    },
    /// A snapshot's build did not leave what belongs to one.
    #[error("the snapshot in {} has no file {name}: it was not built to its end", dir.display())]
    SnapshotIncomplete {
        /// Its directory.
        dir: PathBuf,
        /// What is missing.
        name: &'static str,
    },
    /// `qemu-img` is not there.
    #[error("qemu-img is needed to {purpose} but is not installed: install the package qemu-utils")]
    NoQemuImg {
        /// What it is needed for, as an infinitive.
        purpose: &'static str,
    },
    /// `qemu-img` failed.
    #[error("qemu-img could not {purpose} {}: {stderr}", path.display())]
    QemuImg {
        /// What it was to do, as an infinitive.
        purpose: &'static str,
        /// With which image.
        path: PathBuf,
        /// The start of what it wrote to standard error.
        stderr: String,
    },
    /// The files do not fit on a seed disk.
    #[error("the files for the {label} disk do not fit into {size}: {why}")]
    SeedFull {
        /// The disk's label.
        label: String,
        /// The disk's size.
        size: Bytes,
        /// What does not fit.
        why: String,
    },
    /// A file name that a FAT file system cannot hold.
    #[error("{name:?} cannot be a file name on the {label} disk: {why}")]
    SeedName {
        /// The disk's label.
        label: String,
        /// The file's name.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A setup template is unusable.
    #[error("the setup template {} is unusable: {why}", path.display())]
    Template {
        /// The directory or file at fault.
        path: PathBuf,
        /// What is wrong and what to do.
        why: String,
    },
}

impl ImageError {
    /// The operating system's error number, where the system refused.
    pub fn io_kind(&self) -> Option<io::ErrorKind> {
        match self {
            Self::Io { source, .. } => Some(source.kind()),
            _ => None,
        }
    }

    pub(crate) fn not_an_image(path: &Path, why: impl Into<String>) -> Self {
        Self::NotAnImage { path: path.to_owned(), why: why.into() }
    }
}

/// Names action and path of a failed system call.
pub(crate) trait IoContext<T> {
    /// Wraps the error; `action` is an infinitive.
    fn context(self, action: &'static str, path: &Path) -> Result<T, ImageError>;
}

impl<T, E: Into<io::Error>> IoContext<T> for Result<T, E> {
    fn context(self, action: &'static str, path: &Path) -> Result<T, ImageError> {
        self.map_err(|source| ImageError::Io {
            action,
            path: path.to_owned(),
            source: source.into(),
        })
    }
}
