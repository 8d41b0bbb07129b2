//! The little of the qcow2 format that Forrest needs: reading a header with suspicion, and writing the
//! empty overlay that a run starts with.
//!
//! Follows "The QCOW2 image format specification" of the QEMU project. Writing the overlay here takes
//! five small writes; starting `qemu-img create` for it takes some 20 ms on a fast machine.

use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;

use std::path::{Path, PathBuf};

use forrest_core::model::Bytes;

use crate::durable::Files;
use crate::error::ImageError;
use crate::format::DiskFormat;
use crate::readback::Source;

/// The largest disk that Forrest makes or accepts.
pub const MAX_DISK: Bytes = Bytes(64 << 40);

/// Every qcow2 image starts with this.
pub(crate) const MAGIC: [u8; 4] = *b"QFI\xfb";

/// The specification's limit on the backing file's name, in bytes.
const MAX_BACKING_NAME: usize = 1023;
const HEADER_LEN: usize = 104;
const SECTOR: u64 = 512;

const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
const REFCOUNT_ORDER: u32 = 4;

mod incompatible {
    pub(super) const DIRTY: u64 = 1;
    pub(super) const CORRUPT: u64 = 1 << 1;
    pub(super) const EXTERNAL_DATA: u64 = 1 << 2;
    pub(super) const COMPRESSION: u64 = 1 << 3;
    pub(super) const EXTENDED_L2: u64 = 1 << 4;
}

/// What a header says, checked for sense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// The disk's size as the guest sees it.
    pub virtual_size: Bytes,
    /// The file that the image is built on.
    pub backing: Option<PathBuf>,
}

/// Reads the header of a file that has the magic number.
///
/// # Errors
/// Why the image cannot be used, as a sentence fragment; or that the file cannot be read.
pub fn read_header<S: Source + ?Sized>(file: &S) -> io::Result<Result<Header, String>> {
    let len = file.len()?;
    let mut bytes = [0; HEADER_LEN];
    if len < HEADER_LEN as u64 {
        return Ok(Err("it is cut short: the qcow2 header is not complete".to_owned()));
    }
    file.read_at(0, &mut bytes)?;
    let header = match parse(&bytes, len) {
        Err(why) => return Ok(Err(why)),
        Ok(header) => header,
    };
    let mut name = vec![0; header.backing_len];
    file.read_at(header.backing_at, &mut name)?;
    let backing = (!name.is_empty()).then(|| PathBuf::from(std::ffi::OsStr::from_bytes(&name)));
    Ok(Ok(Header { version: header.version, virtual_size: header.virtual_size, backing }))
}

struct Parsed {
    version: u32,
    virtual_size: Bytes,
    backing_at: u64,
    backing_len: usize,
}

fn parse(bytes: &[u8; HEADER_LEN], file_len: u64) -> Result<Parsed, String> {
    if bytes[..4] != MAGIC {
        return Err("it has no qcow2 header".to_owned());
    }
    let version = u32_at(bytes, 4);
    if !matches!(version, 2 | 3) {
        return Err(format!("qcow2 version {version} is not known"));
    }
    check_features(if version == 3 { u64_at(bytes, 72) } else { 0 })?;
    let cluster_bits = u32_at(bytes, 20);
    if !(9..=21).contains(&cluster_bits) {
        return Err(format!("its header names an impossible cluster size (2^{cluster_bits})"));
    }
    if u32_at(bytes, 32) != 0 {
        return Err("it is encrypted; decrypt it with qemu-img convert".to_owned());
    }
    let virtual_size = Bytes(u64_at(bytes, 24));
    if virtual_size == Bytes(0) || virtual_size > MAX_DISK {
        return Err(format!(
            "its header claims a size of {virtual_size}; from 1B to {MAX_DISK} is supported"
        ));
    }
    let l1_at = u64_at(bytes, 40);
    let l1_len = u64::from(u32_at(bytes, 36)) * 8;
    if l1_at == 0 || l1_at.checked_add(l1_len).is_none_or(|end| end > file_len) {
        return Err("it is cut short: its tables lie beyond its end".to_owned());
    }
    let backing_at = u64_at(bytes, 8);
    let backing_len = if backing_at == 0 { 0 } else { u32_at(bytes, 16) as usize };
    let end = backing_at.checked_add(backing_len as u64);
    if backing_len > MAX_BACKING_NAME || end.is_none_or(|end| end > file_len) {
        return Err("its header has an impossible name of a backing file".to_owned());
    }
    Ok(Parsed { version, virtual_size, backing_at, backing_len })
}

fn check_features(features: u64) -> Result<(), String> {
    use incompatible::*;
    if features & EXTERNAL_DATA != 0 {
        return Err(
            "it keeps its data in another file; make it one file with qemu-img convert".to_owned()
        );
    }
    if features & CORRUPT != 0 {
        return Err("it is marked corrupt; repair it with qemu-img check -r all".to_owned());
    }
    if features & DIRTY != 0 {
        return Err("it was not closed properly; repair it with qemu-img check -r all".to_owned());
    }
    let unknown = features & !(COMPRESSION | EXTENDED_L2);
    if unknown != 0 {
        return Err(format!("it uses qcow2 features that are not known ({unknown:#x})"));
    }
    Ok(())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().fold(0, |value, b| value << 8 | u32::from(*b))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) << 32 | u64::from(u32_at(bytes, at + 4))
}

/// Fills an empty file with an overlay of `virtual_size` that reads as the backing file.
///
/// Clusters 0, 1, 2: header, reference count table, reference count block; then the first level of the
/// mapping, which is all zeros, so a hole. Nothing is synchronised.
pub(crate) fn write_overlay(
    files: &Files,
    file: &File,
    path: &Path,
    virtual_size: Bytes,
    backing: &Path,
    backing_format: DiskFormat,
) -> Result<(), ImageError> {
    let name = backing.as_os_str().as_bytes();
    // QEMU takes a name with a colon before its first slash for a protocol.
    if !backing.is_absolute() || name.len() > MAX_BACKING_NAME {
        return Err(ImageError::not_an_image(
            backing,
            format!(
                "an overlay needs an absolute path of at most {MAX_BACKING_NAME} bytes: choose a shorter base_dir"
            ),
        ));
    }
    // One entry of the first level maps a cluster of the second, which maps CLUSTER / 8 clusters.
    let l1_entries = virtual_size.0.div_ceil(CLUSTER * (CLUSTER / 8)).max(1);
    let l1_clusters = (l1_entries * 8).div_ceil(CLUSTER);
    let header = overlay_header(virtual_size, l1_entries, name, backing_format);
    files.resize(file, path, (3 + l1_clusters) * CLUSTER)?;
    files.write_at(file, path, 0, &header)?;
    files.write_at(file, path, CLUSTER, &(2 * CLUSTER).to_be_bytes())?;
    let used = usize::try_from(3 + l1_clusters).unwrap_or(usize::MAX);
    files.write_at(file, path, 2 * CLUSTER, &1_u16.to_be_bytes().repeat(used))
}

fn overlay_header(size: Bytes, l1_entries: u64, name: &[u8], format: DiskFormat) -> Vec<u8> {
    const EXT_BACKING_FORMAT: u32 = 0xe279_2aca;
    let format = format.qemu_name().as_bytes();
    let padded = format.len().next_multiple_of(8);
    let name_at = HEADER_LEN + 8 + padded + 8;

    let mut out = Vec::with_capacity(name_at + name.len());
    out.extend(MAGIC);
    out.extend(3_u32.to_be_bytes());
    out.extend((name_at as u64).to_be_bytes());
    out.extend((name.len() as u32).to_be_bytes());
    out.extend(CLUSTER_BITS.to_be_bytes());
    out.extend(size.0.next_multiple_of(SECTOR).to_be_bytes());
    out.extend(0_u32.to_be_bytes()); // not encrypted
    out.extend((l1_entries as u32).to_be_bytes());
    out.extend((3 * CLUSTER).to_be_bytes()); // where the first level is
    out.extend(CLUSTER.to_be_bytes()); // where the reference count table is
    out.extend(1_u32.to_be_bytes()); // and its length in clusters
    out.extend([0; 12]); // no internal snapshots
    out.extend([0; 24]); // no incompatible, compatible or autoclear features
    out.extend(REFCOUNT_ORDER.to_be_bytes());
    out.extend((HEADER_LEN as u32).to_be_bytes());
    out.extend(EXT_BACKING_FORMAT.to_be_bytes());
    out.extend((format.len() as u32).to_be_bytes());
    out.extend(format);
    out.resize(name_at, 0); // padding, and the empty extension that ends the list
    out.extend(name);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sound() -> [u8; HEADER_LEN] {
        let header = overlay_header(Bytes::gib(10), 20, b"/x", DiskFormat::Raw);
        header[..HEADER_LEN].try_into().expect("the header is longer than its fixed part")
    }

    fn refusal(at: usize, bytes: &[u8]) -> String {
        let mut header = sound();
        header[at..at + bytes.len()].copy_from_slice(bytes);
        parse(&header, 1 << 20).err().expect("a refusal")
    }

    #[test]
    fn own_headers_read_back() {
        let parsed = parse(&sound(), 1 << 20).expect("a sound header");
        assert_eq!(parsed.virtual_size, Bytes::gib(10));
        assert_eq!((parsed.version, parsed.backing_len), (3, 2));
    }

    #[test]
    fn senseless_headers_are_refused() {
        assert!(refusal(0, b"QFI ").contains("no qcow2 header"));
        assert!(refusal(4, &[0, 0, 0, 9]).contains("version 9"));
        assert!(refusal(20, &[0, 0, 0, 60]).contains("cluster size"));
        assert!(refusal(24, &[0; 8]).contains("size of 0B"));
        assert!(refusal(24, &[0xff; 8]).contains("claims a size"));
        assert!(refusal(32, &[0, 0, 0, 1]).contains("encrypted"));
        assert!(refusal(40, &[0xff; 8]).contains("cut short"));
        assert!(refusal(16, &[0xff; 4]).contains("backing file"));
        assert!(refusal(8, &[0xff; 8]).contains("backing file"));
        assert!(refusal(79, &[4]).contains("another file"));
        assert!(refusal(79, &[2]).contains("corrupt"));
        assert!(refusal(79, &[1]).contains("not closed"));
        assert!(refusal(72, &[1]).contains("not known"));
    }
}
