//! What can be learnt from a base directory without asking the daemon: for `forrest shell`, `logs`
//! and `images`, which work while it is down, too.
//!
//! - [`runs`]: the run directories, with console and shell of each.
//! - [`images`]: the machine images and their history.
//!
//! Nothing here changes anything but [`images::MachineImages::roll_back`], which is there to.

pub mod images;
pub mod runs;

use std::io;
use std::path::PathBuf;

/// Why something cannot be looked at.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InspectError {
    /// The base directory is not there.
    #[error(
        "there is no directory {}: name the one that the daemon uses (`host.base_dir` in its configuration)",
        path.display()
    )]
    NoBaseDir {
        /// The directory.
        path: PathBuf,
    },
    /// The operating system refuses.
    #[error("could not {action} {}: {source}{}", path.display(), hint(source))]
    Io {
        /// What was tried, as an infinitive.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// The user who asks is not the one whose files would be changed.
    #[error(
        "could not change images in {}: they belong to user {owner}, and files made by user {user} would be in the daemon's way; run this as that user (`sudo -u '#{owner}' forrest …`)",
        base_dir.display()
    )]
    OtherUser {
        /// The base directory.
        base_dir: PathBuf,
        /// The id of the user that it belongs to.
        owner: u32,
        /// The id of the user who asks.
        user: u32,
    },
    /// The image store refuses.
    #[error(transparent)]
    Images(#[from] forrest_images::ImageError),
    /// The files of a virtual machine make no sense.
    #[error(transparent)]
    Vm(#[from] forrest_vm::VmError),
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "; run this as root or as the daemon's user",
        _ => "",
    }
}
