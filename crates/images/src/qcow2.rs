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
/// In version 2, in bytes.
const HEADER_LEN_2: u64 = 72;
const SECTOR: u64 = 512;

const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
const REFCOUNT_ORDER: u32 = 4;

/// Bits of the field of incompatible features.
mod incompatible {
    pub(super) const DIRTY: u64 = 1;
    pub(super) const CORRUPT: u64 = 1 << 1;
    pub(super) const EXTERNAL_DATA: u64 = 1 << 2;
    pub(super) const COMPRESSION: u64 = 1 << 3;
    pub(super) const EXTENDED_L2: u64 = 1 << 4;
}

/// Kinds of header extensions.
pub(crate) mod extension {
    /// Ends the list.
    pub(super) const END: u32 = 0;
    /// The format of the backing file.
    pub(crate) const BACKING_FORMAT: u32 = 0xe279_2aca;
    /// Names of feature bits, for messages about those that a program does not know.
    pub(crate) const FEATURE_NAMES: u32 = 0x6803_f857;
}

/// The most extensions that a header may have; QEMU writes at most five.
const MAX_EXTENSIONS: usize = 16;
/// The longest name of a format that is read; QEMU has none that is longer.
const MAX_FORMAT_NAME: usize = 16;

/// The most that [`read_header`] reads, in bytes.
pub const READ_MAX: usize =
    HEADER_LEN + MAX_EXTENSIONS * EXTENSION_HEAD_LEN + MAX_FORMAT_NAME + MAX_BACKING_NAME;

const EXTENSION_HEAD_LEN: usize = 8;

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

/// All of a header that says what else is opened, or how the content is read. It lies within the file and
/// has the form of a header; what it says is for the caller to judge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fields {
    pub(crate) version: u32,
    pub(crate) virtual_size: Bytes,
    /// Bits that a program must know to open the image.
    pub(crate) incompatible: u64,
    /// Bits that need not be known.
    pub(crate) compatible: u64,
    /// Bits that whoever does not know them must clear before writing.
    pub(crate) autoclear: u64,
    /// The method, or 0.
    pub(crate) encryption: u32,
    /// How many internal snapshots there are.
    pub(crate) snapshots: u32,
    /// The backing file's name, as it stands there: perhaps no path at all.
    pub(crate) backing: Option<PathBuf>,
    /// The backing file's format, as it stands there.
    pub(crate) backing_format: Option<String>,
    /// The kinds of all extensions, that of the backing format included, in their order.
    pub(crate) extensions: Vec<u32>,
}

/// Reads the header of a file that has the magic number, with what Forrest asks of an operator's image.
///
/// # Errors
/// Why the image cannot be used, as a sentence fragment; or that the file cannot be read.
pub fn read_header<S: Source + ?Sized>(file: &S) -> io::Result<Result<Header, String>> {
    let usable = |fields: Fields| {
        check_features(fields.incompatible)?;
        if fields.encryption != 0 {
            return Err("it is encrypted; decrypt it with qemu-img convert".to_owned());
        }
        let Fields { version, virtual_size, backing, .. } = fields;
        Ok(Header { version, virtual_size, backing })
    };
    Ok(read_fields(file)?.and_then(usable))
}

/// Reads a header without judging it.
///
/// # Errors
/// Why it is no header, as a sentence fragment; or that the file cannot be read.
pub(crate) fn read_fields<S: Source + ?Sized>(file: &S) -> io::Result<Result<Fields, String>> {
    let len = file.len()?;
    let mut bytes = [0; HEADER_LEN];
    if len < HEADER_LEN as u64 {
        return Ok(Err("it is cut short: the qcow2 header is not complete".to_owned()));
    }
    file.read_at(0, &mut bytes)?;
    let (mut fields, place) = match parse(&bytes, len) {
        Err(why) => return Ok(Err(why)),
        Ok(parsed) => parsed,
    };
    if let Err(why) = read_extensions(file, &place, &mut fields)? {
        return Ok(Err(why));
    }
    let mut name = vec![0; place.backing_len];
    file.read_at(place.backing_at, &mut name)?;
    fields.backing = (!name.is_empty()).then(|| PathBuf::from(std::ffi::OsStr::from_bytes(&name)));
    Ok(Ok(fields))
}

/// Where the parts of a header are that have no fixed place. All lie within the file.
struct Place {
    extensions_at: u64,
    /// The end of the extensions' room. The list may end before it.
    extensions_end: u64,
    backing_at: u64,
    backing_len: usize,
}

fn parse(bytes: &[u8; HEADER_LEN], file_len: u64) -> Result<(Fields, Place), String> {
    if bytes[..4] != MAGIC {
        return Err("it has no qcow2 header".to_owned());
    }
    let version = u32_at(bytes, 4);
    if !matches!(version, 2 | 3) {
        return Err(format!("qcow2 version {version} is not known"));
    }
    let since_3 = |at| if version == 3 { u64_at(bytes, at) } else { 0 };
    let cluster_bits = u32_at(bytes, 20);
    if !(9..=21).contains(&cluster_bits) {
        return Err(format!("its header names an impossible cluster size (2^{cluster_bits})"));
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
    let fields = Fields {
        version,
        virtual_size,
        incompatible: since_3(72),
        compatible: since_3(80),
        autoclear: since_3(88),
        encryption: u32_at(bytes, 32),
        snapshots: u32_at(bytes, 60),
        backing: None,
        backing_format: None,
        extensions: Vec::new(),
    };
    let place = place(bytes, version, (1 << cluster_bits).min(file_len))?;
    Ok((fields, place))
}

/// `room` is where the header's cluster, or the file, ends.
fn place(bytes: &[u8; HEADER_LEN], version: u32, room: u64) -> Result<Place, String> {
    let header_len = if version == 3 { u64::from(u32_at(bytes, 100)) } else { HEADER_LEN_2 };
    let shortest = if version == 3 { HEADER_LEN as u64 } else { HEADER_LEN_2 };
    if header_len < shortest || header_len > room {
        return Err(format!("its header has an impossible length ({header_len})"));
    }
    let backing_at = u64_at(bytes, 8);
    let backing_len = if backing_at == 0 { 0 } else { u32_at(bytes, 16) as usize };
    let end = backing_at.checked_add(backing_len as u64);
    let impossible = backing_len > MAX_BACKING_NAME || end.is_none_or(|end| end > room);
    if impossible || (backing_at != 0 && backing_at < header_len) {
        return Err("its header has an impossible name of a backing file".to_owned());
    }
    let extensions_end = if backing_at == 0 { room } else { backing_at };
    Ok(Place { extensions_at: header_len, extensions_end, backing_at, backing_len })
}

/// Goes through the list as QEMU does, so that both see the same.
fn read_extensions<S: Source + ?Sized>(
    file: &S,
    place: &Place,
    fields: &mut Fields,
) -> io::Result<Result<(), String>> {
    let mut at = place.extensions_at;
    while at < place.extensions_end {
        let mut head = [0; EXTENSION_HEAD_LEN];
        let content_at = at + EXTENSION_HEAD_LEN as u64;
        if content_at > place.extensions_end {
            return Ok(Err("its header extensions have no end".to_owned()));
        }
        file.read_at(at, &mut head)?;
        let (kind, len) = (u32_at(&head, 0), u32_at(&head, 4));
        if kind == extension::END {
            break;
        }
        if u64::from(len) > place.extensions_end - content_at {
            return Ok(Err("its header has an impossible extension".to_owned()));
        }
        if fields.extensions.contains(&kind) || fields.extensions.len() == MAX_EXTENSIONS - 1 {
            return Ok(Err("its header has an extension twice, or too many".to_owned()));
        }
        fields.extensions.push(kind);
        if kind == extension::BACKING_FORMAT {
            let mut name = vec![0; MAX_FORMAT_NAME.min(len as usize)];
            file.read_at(content_at, &mut name)?;
            let more = if len as usize > MAX_FORMAT_NAME { "..." } else { "" };
            fields.backing_format = Some(String::from_utf8_lossy(&name).into_owned() + more);
        }
        at = content_at + u64::from(len).next_multiple_of(8);
    }
    Ok(Ok(()))
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
    out.extend(extension::BACKING_FORMAT.to_be_bytes());
    out.extend((format.len() as u32).to_be_bytes());
    out.extend(format);
    out.resize(name_at, 0); // padding, and the empty extension that ends the list
    out.extend(name);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An overlay of 10 GiB on `/x`, up to its tables.
    fn sound() -> Vec<u8> {
        let mut image = overlay_header(Bytes::gib(10), 20, b"/x", DiskFormat::Raw);
        image.resize(1 << 20, 0);
        image
    }

    fn changed(at: usize, bytes: &[u8]) -> Vec<u8> {
        let mut image = sound();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        image
    }

    fn refusal(at: usize, bytes: &[u8]) -> String {
        let header = read_header(changed(at, bytes).as_slice()).expect("memory can be read");
        header.expect_err("a refusal")
    }

    fn fields(image: &[u8]) -> Result<Fields, String> {
        read_fields(image).expect("memory can be read")
    }

    #[test]
    fn own_headers_read_back() {
        let fields = fields(&sound()).expect("a sound header");
        let expected = Fields {
            version: 3,
            virtual_size: Bytes::gib(10),
            incompatible: 0,
            compatible: 0,
            autoclear: 0,
            encryption: 0,
            snapshots: 0,
            backing: Some("/x".into()),
            backing_format: Some("raw".to_owned()),
            extensions: vec![extension::BACKING_FORMAT],
        };
        assert_eq!(fields, expected);
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
        assert!(refusal(8, &80_u64.to_be_bytes()).contains("backing file"));
        assert!(refusal(79, &[4]).contains("another file"));
        assert!(refusal(79, &[2]).contains("corrupt"));
        assert!(refusal(79, &[1]).contains("not closed"));
        assert!(refusal(72, &[1]).contains("not known"));
        assert!(refusal(100, &[0, 0, 0, 96]).contains("length"));
        assert!(refusal(100, &[0xff; 4]).contains("length"));
        assert!(refusal(108, &[0xff; 4]).contains("extension"));
    }

    /// With a backing file's name, its place ends the list; without, only the empty extension does.
    #[test]
    fn all_extensions_are_seen() {
        let mut image = changed(8, &[0; 8]);
        let other = [0x1234_5678_u32.to_be_bytes(), 5_u32.to_be_bytes()].concat();
        image[120..128].copy_from_slice(&other);
        image[136..144].copy_from_slice(&[0; 8]);
        let found = fields(&image).expect("a sound header");
        assert_eq!(found.extensions, [extension::BACKING_FORMAT, 0x1234_5678]);
        assert_eq!(found.backing, None);

        // Where there are two of a kind, QEMU goes by the later one.
        let again = image[104..120].to_vec();
        image[136..152].copy_from_slice(&again);
        assert!(fields(&image).expect_err("a refusal").contains("twice"));

        image.truncate(140);
        image[40..48].copy_from_slice(&8_u64.to_be_bytes());
        image[36..40].copy_from_slice(&1_u32.to_be_bytes());
        assert!(fields(&image).expect_err("a refusal").contains("no end"));
    }
}
