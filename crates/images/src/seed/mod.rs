//! Seed disks: small FAT file systems that carry a setup template's files into a guest.
//!
//! Written here rather than by a FAT library, because a seed disk is written once, front to back, and
//! must be the same bytes for the same files: the library considered (hadris-fat) stamps the volume
//! label with the clock, and would keep the secrets in buffers of its own. The layout follows
//! Microsoft's "FAT: General Overview of On-Disk Format" (FAT12 or FAT16, long names); mtools,
//! dosfstools, blkid and the kernel are the tests' judges.
//!
//! `geometry` decides where what lies, `names` encodes directory entries, this file places files and
//! writes.

mod geometry;
mod names;

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::path::Path;

use forrest_core::model::Bytes;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::durable::Files;
use crate::error::{ImageError, IoContext};
use crate::store::Store;
use geometry::{ENTRY, FIRST_CLUSTER, Geometry, ROOT_ENTRIES, SECTOR};
use names::{Attribute, ShortNames};

/// The label of the disk made from `cloud-init/`: cloud-init's NoCloud looks for it.
pub const CIDATA: &str = "CIDATA";
/// The label of the disk made from `job-config/`.
pub const JOBDATA: &str = "JOBDATA";

/// The size of every seed disk. One size for all, so that a snapshot's placeholder can be replaced by any
/// run's disk.
pub const SEED_SIZE: Bytes = Bytes::mib(4);

/// Root directory entries that are left free for what the guest writes, such as its `persist` file.
const GUEST_ENTRIES: usize = 32;

/// The deepest nesting of directories.
pub const MAX_DEPTH: usize = 8;

/// The files of a seed disk by their paths, with `/` between directories. They may hold secrets: the
/// contents are wiped on drop and never printed.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct SeedFiles(pub BTreeMap<String, Zeroizing<Vec<u8>>>);

impl SeedFiles {
    /// Adds or replaces a file.
    pub fn insert(&mut self, name: impl Into<String>, content: impl Into<Vec<u8>>) {
        self.0.insert(name.into(), Zeroizing::new(content.into()));
    }

    /// The files' paths and contents.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.0.iter().map(|(name, content)| (name.as_str(), content.as_slice()))
    }
}

impl<N: Into<String>, C: Into<Vec<u8>>> FromIterator<(N, C)> for SeedFiles {
    fn from_iter<I: IntoIterator<Item = (N, C)>>(files: I) -> Self {
        let mut list = Self::default();
        for (name, content) in files {
            list.insert(name, content);
        }
        list
    }
}

impl std::fmt::Debug for SeedFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.0.iter().map(|(name, content)| (name, content.len()))).finish()
    }
}

impl Store {
    /// [`write_fat`] with [`SEED_SIZE`], among the store's own changes of files.
    ///
    /// # Errors
    /// As [`write_fat`].
    pub fn write_seed(
        &self,
        path: &Path,
        label: &str,
        content: &SeedFiles,
    ) -> Result<(), ImageError> {
        write(&self.files, path, Target::New, label, content, SEED_SIZE)
    }

    /// As [`Store::write_seed`], into a seed disk that has the same label and no files yet and stays the same
    /// file: a virtual machine, which has not looked at it, has it open.
    ///
    /// # Errors
    /// As [`write_fat`]; [`ImageError::Io`] where there is no such file.
    pub fn fill_seed(
        &self,
        path: &Path,
        label: &str,
        content: &SeedFiles,
    ) -> Result<(), ImageError> {
        write(&self.files, path, Target::Empty, label, content, SEED_SIZE)
    }
}

/// Where a seed disk is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    /// A file of its own.
    New,
    /// A seed disk without files.
    Empty,
}

/// Writes a FAT file system with these files to `path`, readable by this user only; what was there is
/// replaced. The same files give the same bytes. Nothing is synchronised.
///
/// `size` is from 64 KiB to 1 GiB, in whole sectors of 512 bytes; `label` has 1 to 11 upper-case letters.
///
/// # Errors
/// [`ImageError::SeedFull`] where the files do not fit, or `size` is no size for a seed disk;
/// [`ImageError::SeedName`] for a name that FAT cannot hold or that differs from another one in case
/// only; [`ImageError::Io`].
pub fn write_fat(
    path: &Path,
    label: &str,
    content: &SeedFiles,
    size: Bytes,
) -> Result<(), ImageError> {
    write(&Files::default(), path, Target::New, label, content, size)
}

fn write(
    files: &Files,
    path: &Path,
    target: Target,
    label: &str,
    content: &SeedFiles,
    size: Bytes,
) -> Result<(), ImageError> {
    let sound = (1..=11).contains(&label.len()) && label.bytes().all(|b| b.is_ascii_uppercase());
    if !sound {
        let (label, name) = (label.to_owned(), label.to_owned());
        return Err(ImageError::SeedName { label, name, why: "a label has 1 to 11 letters" });
    }
    let geometry = Geometry::for_size(size).ok_or_else(|| ImageError::SeedFull {
        label: label.to_owned(),
        size,
        why: "a seed disk has from 64K to 1G".to_owned(),
    })?;
    let mut disk = Disk::new(label, size, geometry);
    let root = Directory::new(label, content)?;
    disk.place_root(&root)?;

    let file = match target {
        Target::New => {
            files.remove(path)?;
            let file = files.create(path, 0o600)?;
            files.resize(&file, path, size.0)?;
            file
        }
        Target::Empty => OpenOptions::new().write(true).open(path).context("open", path)?,
    };
    let id: [u8; 4] = Sha256::digest(label)[..4].try_into().unwrap_or_default();
    files.write_at(&file, path, 0, &disk.geometry.boot_sector(label, id))?;
    let table = disk.geometry.encode_table(&disk.table);
    for copy in 0..2 {
        files.write_at(&file, path, disk.geometry.table_at(copy), &table)?;
    }
    for (at, bytes) in &disk.pieces {
        files.write_at(&file, path, *at, bytes)?;
    }
    Ok(())
}

/// Whether the names of the files could stand on a seed disk.
///
/// # Errors
/// [`ImageError::SeedName`] where they could not.
pub(crate) fn check_names(label: &str, content: &SeedFiles) -> Result<(), ImageError> {
    Directory::new(label, content).map(|_| ())
}

/// A directory before it has a place.
struct Directory<'a> {
    entries: BTreeMap<&'a str, Node<'a>>,
}

enum Node<'a> {
    File(&'a [u8]),
    Directory(Directory<'a>),
}

impl<'a> Directory<'a> {
    fn new(label: &str, content: &'a SeedFiles) -> Result<Self, ImageError> {
        let mut root = Self { entries: BTreeMap::new() };
        for (path, content) in &content.0 {
            let refuse = |why| {
                Err(ImageError::SeedName { label: label.to_owned(), name: path.clone(), why })
            };
            let mut parts: Vec<&str> = path.split('/').collect();
            if parts.len() > MAX_DEPTH {
                return refuse("it is nested too deeply");
            }
            if let Some(why) = parts.iter().find_map(|part| names::unusable(part)) {
                return refuse(why);
            }
            let Some(name) = parts.pop() else { return refuse("it is empty") };
            let mut here = &mut root;
            for part in parts {
                let inner = || Node::Directory(Self { entries: BTreeMap::new() });
                here = match here.entries.entry(part).or_insert_with(inner) {
                    Node::Directory(directory) => directory,
                    Node::File(_) => return refuse("a part of its path is also a file"),
                };
            }
            if here.entries.insert(name, Node::File(content)).is_some() {
                return refuse("it is also a directory");
            }
        }
        root.check_case(label)?;
        Ok(root)
    }

    fn check_case(&self, label: &str) -> Result<(), ImageError> {
        let mut seen = std::collections::BTreeSet::new();
        for (name, node) in &self.entries {
            if !seen.insert(name.to_uppercase()) {
                let (label, name) = (label.to_owned(), (*name).to_owned());
                let why = "another name differs from it in upper and lower case only";
                return Err(ImageError::SeedName { label, name, why });
            }
            if let Node::Directory(directory) = node {
                directory.check_case(label)?;
            }
        }
        Ok(())
    }

    /// How many directory entries its names take.
    fn entry_count(&self) -> usize {
        self.entries.keys().map(|name| names::entry_count(name)).sum()
    }
}

/// The disk while files are placed on it.
struct Disk<'a> {
    label: &'a str,
    size: Bytes,
    geometry: Geometry,
    /// The allocation table: for each cluster the next one of its file.
    table: Vec<u16>,
    /// What to write where.
    pieces: Vec<(u64, std::borrow::Cow<'a, [u8]>)>,
}

impl<'a> Disk<'a> {
    fn new(label: &'a str, size: Bytes, geometry: Geometry) -> Self {
        // The first two entries stand for no cluster: media type, and "unmounted properly".
        let table = vec![0xfff8, 0xffff];
        Self { label, size, geometry, table, pieces: Vec::new() }
    }

    fn full(&self, why: String) -> ImageError {
        ImageError::SeedFull { label: self.label.to_owned(), size: self.size, why }
    }

    /// Takes the next free clusters for a file of this length; 0 for an empty one.
    fn allocate(&mut self, len: usize) -> Result<u16, ImageError> {
        let count = len.div_ceil(self.geometry.cluster_len());
        let first = self.table.len();
        let end = usize::from(FIRST_CLUSTER) + self.geometry.clusters;
        if count > end - first {
            let free = (end - first) * self.geometry.cluster_len();
            return Err(self.full(format!("{len} more bytes are needed where {free} are left")));
        }
        // Numbers fit: a FAT16 file system has fewer than 65,525 clusters.
        self.table.extend((first + 1..first + count).map(|next| next as u16));
        if count > 0 {
            self.table.push(0xffff);
        }
        Ok(if count == 0 { 0 } else { first as u16 })
    }

    fn place_root(&mut self, root: &Directory<'a>) -> Result<(), ImageError> {
        // The label takes one.
        if root.entry_count() + 1 + GUEST_ENTRIES > ROOT_ENTRIES {
            return Err(self.full(format!(
                "its root directory has room for {ROOT_ENTRIES} names of up to 13 characters; put files into directories"
            )));
        }
        let mut bytes = names::label_entry(self.label).to_vec();
        self.place_entries(root, 0, &mut bytes)?;
        let at = self.geometry.root_at();
        self.pieces.push((at, bytes.into()));
        Ok(())
    }

    fn place_directory(
        &mut self,
        directory: &Directory<'a>,
        parent: u16,
    ) -> Result<u16, ImageError> {
        let len = (directory.entry_count() + 2) * ENTRY;
        let cluster = self.allocate(len)?;
        let mut bytes = names::dot_entry(b".          ", cluster).to_vec();
        bytes.extend(names::dot_entry(b"..         ", parent));
        self.place_entries(directory, cluster, &mut bytes)?;
        self.pieces.push((self.geometry.cluster_at(cluster), bytes.into()));
        Ok(cluster)
    }

    fn place_entries(
        &mut self,
        directory: &Directory<'a>,
        own: u16,
        bytes: &mut Vec<u8>,
    ) -> Result<(), ImageError> {
        let mut short_names = ShortNames::new(directory.entries.keys().copied());
        for (name, node) in &directory.entries {
            let (attribute, cluster, len) = match node {
                Node::File(content) => {
                    let cluster = self.allocate(content.len())?;
                    if !content.is_empty() {
                        self.pieces.push((self.geometry.cluster_at(cluster), (*content).into()));
                    }
                    (Attribute::File, cluster, content.len())
                }
                Node::Directory(inner) => {
                    (Attribute::Directory, self.place_directory(inner, own)?, 0)
                }
            };
            bytes.extend(short_names.entries(name, attribute, cluster, len as u32));
        }
        Ok(())
    }
}

const _: () = assert!(SEED_SIZE.0.is_multiple_of(SECTOR as u64));
