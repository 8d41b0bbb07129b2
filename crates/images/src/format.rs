//! What kind of file a disk is, and what a first look at a file says.
//!
//! The kind of a run's or a machine image's file is recorded when it is made and never guessed from its
//! content: a guest's root can write a qcow2 header to the start of a raw disk, and whoever believed
//! it would open any file of the host that it names.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use forrest_core::model::Bytes;
use serde::{Deserialize, Serialize};

use crate::error::{ImageError, IoContext};
use crate::qcow2;

/// The format of a disk's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// The disk's bytes, with holes where it is empty.
    Raw,
    /// QEMU's own format; here: an overlay on another file, or one that was flattened.
    Qcow2,
}

impl DiskFormat {
    /// QEMU's name of the block driver.
    pub const fn qemu_name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// What an operator's file turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SrcFile {
    /// Its format, by its first bytes: the operator is trusted with them.
    pub format: DiskFormat,
    /// The disk's size as a guest sees it.
    pub virtual_size: Bytes,
    /// Whether a raw image's first sector has a boot signature. One without it may still be meant, but
    /// no firmware starts it.
    pub bootable: bool,
}

/// How the files start that are often taken for raw images, and what to do with them.
const KNOWN_OTHERS: [(&[u8], &str); 8] = [
    (b"\x1f\x8b", "it is compressed with gzip; unpack it with gunzip first"),
    (b"\xfd7zXZ\0", "it is compressed with xz; unpack it with unxz first"),
    (b"\x28\xb5\x2f\xfd", "it is compressed with zstd; unpack it with unzstd first"),
    (b"BZh", "it is compressed with bzip2; unpack it with bunzip2 first"),
    (b"PK\x03\x04", "it is a ZIP archive; unpack it first"),
    (b"KDMV", "it is a VMDK image; convert it with qemu-img convert -O raw"),
    (b"vhdxfile", "it is a VHDX image; convert it with qemu-img convert -O raw"),
    (b"<<< ", "it is a VDI image; convert it with qemu-img convert -O raw"),
];

const SECTOR: usize = 512;

/// Looks at a src image: its format and size, or why it is none.
///
/// # Errors
/// [`ImageError::NotAnImage`] with the reason; [`ImageError::Io`].
pub fn inspect_src(path: &Path) -> Result<SrcFile, ImageError> {
    let metadata = std::fs::metadata(path).context("find the src image", path)?;
    let refuse = |why: &str| Err(ImageError::not_an_image(path, why));
    if metadata.is_dir() {
        return refuse("it is a directory; name the image file in it");
    }
    if !metadata.is_file() {
        return refuse("it is not an ordinary file");
    }
    let mut file = File::open(path).context("open the src image", path)?;
    if metadata.len() < SECTOR as u64 {
        return refuse(match metadata.len() {
            0 => "it is empty; was its download interrupted?",
            _ => "it is shorter than one sector",
        });
    }
    let mut head = [0; SECTOR];
    file.read_exact(&mut head).context("read the src image", path)?;
    if head.starts_with(&qcow2::MAGIC) {
        return inspect_qcow2(&file, path);
    }
    if let Some((_, why)) = KNOWN_OTHERS.iter().find(|(magic, _)| head.starts_with(magic)) {
        return refuse(why);
    }
    if head.iter().all(|b| matches!(b, b'\t' | b'\n' | b'\r' | 0x20..=0x7e)) {
        return refuse("it starts with text; did a download save an error page?");
    }
    if metadata.len() > qcow2::MAX_DISK.0 {
        return refuse(&format!("it is larger than {}", qcow2::MAX_DISK));
    }
    let bootable = head[SECTOR - 2..] == [0x55, 0xaa];
    Ok(SrcFile { format: DiskFormat::Raw, virtual_size: Bytes(metadata.len()), bootable })
}

fn inspect_qcow2(file: &File, path: &Path) -> Result<SrcFile, ImageError> {
    let header = qcow2::read_header(file)
        .context("read the src image", path)?
        .map_err(|why| ImageError::not_an_image(path, why))?;
    if let Some(backing) = header.backing {
        return Err(ImageError::not_an_image(
            path,
            format!(
                "it needs a backing file ({}); make it one file with qemu-img convert",
                backing.display()
            ),
        ));
    }
    Ok(SrcFile {
        format: DiskFormat::Qcow2,
        virtual_size: header.virtual_size,
        // Only its content could tell.
        bootable: true,
    })
}
