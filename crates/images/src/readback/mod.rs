//! Reading one file back from a FAT file system that a guest's root wrote.
//!
//! Nothing on that disk is trusted. The reader knows only the root directory and short names, keeps no
//! state, and every number that it takes from the disk is checked before it is used: it reads at most
//! the boot sector, [`ROOT_MAX`] bytes of directory, `max_len` bytes of content and one table entry per
//! cluster of these, whatever the disk says. Loops in the table end with the bytes that were asked for.
//!
//! Follows Microsoft's "FAT: General Overview of On-Disk Format". It shares nothing with [`crate::seed`],
//! so that two equal mistakes cannot cancel out.

mod volume;

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;
use zeroize::Zeroizing;

use crate::error::{ImageError, IoContext};
use volume::{Damage, Volume};

/// The file that a job leaves its repository's persistence token in.
pub const PERSIST: &str = "persist";

/// The longest `persist` file that is read, in bytes.
pub const PERSIST_MAX: usize = 4096;

/// How much of a root directory is searched, in bytes: 4096 entries.
pub const ROOT_MAX: usize = 128 << 10;

/// What was found.
#[derive(Clone, PartialEq, Eq)]
pub enum ReadBack {
    /// The file's content. It may be a secret; it is wiped on drop and never printed.
    Content(Zeroizing<Vec<u8>>),
    /// The file system is sound as far as it was looked at, and has no such file.
    Absent,
    /// The file system, or the file, is not what it should be; why.
    Damaged(String),
}

impl std::fmt::Debug for ReadBack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Content(content) => write!(f, "Content({} bytes)", content.len()),
            Self::Absent => f.write_str("Absent"),
            Self::Damaged(why) => write!(f, "Damaged({why:?})"),
        }
    }
}

/// Bytes that can be read anywhere.
pub trait Source {
    /// How many there are.
    ///
    /// # Errors
    /// The operating system's.
    fn len(&self) -> io::Result<u64>;

    /// Fills the buffer from an offset on.
    ///
    /// # Errors
    /// The operating system's; [`io::ErrorKind::UnexpectedEof`] beyond the end.
    fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Whether there are none.
    ///
    /// # Errors
    /// As [`Source::len`].
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

impl Source for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(buffer, at)
    }
}

impl Source for [u8] {
    fn len(&self) -> io::Result<u64> {
        Ok(<[u8]>::len(self) as u64)
    }

    fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        let from = usize::try_from(at).ok();
        let range = from.and_then(|from| Some(from..from.checked_add(buffer.len())?));
        match range.and_then(|range| self.get(range)) {
            Some(bytes) => buffer.copy_from_slice(bytes),
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
        Ok(())
    }
}

/// Reads a file of at most `max_len` bytes from the root directory of the FAT file system in an image.
///
/// `name` has at most eight ASCII letters or digits, and is found without regard to case.
///
/// # Errors
/// [`ImageError::Io`] when the image itself cannot be read. What the guest may have done to its content
/// is no error but [`ReadBack::Damaged`].
pub fn read_file(image: &Path, name: &str, max_len: usize) -> Result<ReadBack, ImageError> {
    // Neither a link nor a pipe belongs there; do not follow the one or wait for the other.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = File::options()
        .read(true)
        .custom_flags(flags.bits() as i32)
        .open(image)
        .context("open", image)?;
    if !file.metadata().context("open", image)?.is_file() {
        return Err(ImageError::not_an_image(image, "it is not an ordinary file"));
    }
    read_from(&file, name, max_len).context("read", image)
}

/// [`read_file`] on any source of bytes.
///
/// # Errors
/// The source's.
pub fn read_from<S: Source + ?Sized>(
    source: &S,
    name: &str,
    max_len: usize,
) -> io::Result<ReadBack> {
    let result = Volume::open(source).and_then(|volume| match volume.find(name)? {
        None => Ok(ReadBack::Absent),
        Some(file) => volume.read(&file, max_len).map(ReadBack::Content),
    });
    match result {
        Ok(found) => Ok(found),
        Err(Damage::Found(why)) => Ok(ReadBack::Damaged(why)),
        // The length was checked, but a file can be cut short while it is read.
        Err(Damage::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Ok(ReadBack::Damaged("it ends early".to_owned()))
        }
        Err(Damage::Io(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests;
