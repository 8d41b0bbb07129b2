//! The FAT12, FAT16 or FAT32 file system itself.

use std::io;

use zeroize::Zeroizing;

use super::{ROOT_MAX, Source};

const BOOT_LEN: usize = 512;
const ENTRY: usize = 32;

pub(super) enum Damage {
    Found(String),
    Io(io::Error),
}

impl From<io::Error> for Damage {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn damaged<T>(why: impl Into<String>) -> Result<T, Damage> {
    Err(Damage::Found(why.into()))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Fat12,
    Fat16,
    Fat32,
}

enum Root {
    /// At a place of its own, with a length in bytes.
    Fixed { at: u64, len: usize },
    /// A chain of clusters.
    Chain { first: u32 },
}

/// A file that was found in the root directory.
pub(super) struct FoundFile {
    first: u32,
    len: u32,
}

/// A file system whose geometry was checked: every cluster lies within the source, and the table has an
/// entry for each.
pub(super) struct Volume<'a, S: Source + ?Sized> {
    source: &'a S,
    kind: Kind,
    table_at: u64,
    root: Root,
    data_at: u64,
    /// At least 512 and at most 512 KiB.
    cluster_len: usize,
    clusters: u32,
}

impl<'a, S: Source + ?Sized> Volume<'a, S> {
    pub(super) fn open(source: &'a S) -> Result<Self, Damage> {
        let source_len = source.len()?;
        let mut boot = [0; BOOT_LEN];
        if source_len < BOOT_LEN as u64 {
            return damaged("it is shorter than a boot sector");
        }
        source.read_at(0, &mut boot)?;
        if boot[510..] != [0x55, 0xaa] {
            return damaged("it has no FAT file system");
        }
        let u16_at = |at: usize| u64::from(u16::from_le_bytes([boot[at], boot[at + 1]]));
        let u32_at = |at: usize| u16_at(at) | u16_at(at + 2) << 16;
        let or = |one: u64, other: u64| if one == 0 { other } else { one };

        // All of these have at most 32 bits, so that no sum or product of two overflows 64.
        let sector = u16_at(11);
        let sectors_per_cluster = u64::from(boot[13]);
        let (reserved, tables, root_entries) = (u16_at(14), u64::from(boot[16]), u16_at(17));
        let (sectors, table_sectors) = (or(u16_at(19), u32_at(32)), or(u16_at(22), u32_at(36)));
        if !matches!(sector, 512 | 1024 | 2048 | 4096)
            || !sectors_per_cluster.is_power_of_two()
            || sectors_per_cluster > 128
        {
            return damaged(
                "it has no FAT file system, or one with impossible sectors or clusters",
            );
        }
        if reserved == 0 || tables == 0 || table_sectors == 0 {
            return damaged("its FAT file system has no allocation table");
        }
        if sectors.saturating_mul(sector) > source_len {
            return damaged("its FAT file system claims to be larger than the disk");
        }
        let root_at = reserved + tables * table_sectors;
        let data_from = root_at + (root_entries * ENTRY as u64).div_ceil(sector);
        if data_from >= sectors {
            return damaged("its FAT file system has no room for data");
        }
        // At most 2^32 sectors, so this fits.
        let clusters = ((sectors - data_from) / sectors_per_cluster) as u32;
        let (kind, bits) = match clusters {
            0..4085 => (Kind::Fat12, 12),
            4085..65525 => (Kind::Fat16, 16),
            _ => (Kind::Fat32, 32),
        };
        if (u64::from(clusters) + 2) * bits > table_sectors * sector * 8 {
            return damaged("its allocation table is too short");
        }
        let root = match (kind, root_entries) {
            (Kind::Fat32, 0) => Root::Chain { first: u32_at(44) as u32 & 0x0fff_ffff },
            (Kind::Fat32, _) | (_, 0) => return damaged("its root directory is in no known place"),
            (_, entries) => {
                let len = (entries as usize * ENTRY).min(ROOT_MAX);
                Root::Fixed { at: root_at * sector, len }
            }
        };
        Ok(Self {
            source,
            kind,
            table_at: reserved * sector,
            root,
            data_at: data_from * sector,
            cluster_len: (sectors_per_cluster * sector) as usize,
            clusters,
        })
    }

    /// Looks for a file in the root directory.
    pub(super) fn find(&self, name: &str) -> Result<Option<FoundFile>, Damage> {
        let Some(wanted) = short_name(name) else { return Ok(None) };
        match self.root {
            Root::Fixed { at, len } => {
                let mut entries = vec![0; len];
                self.source.read_at(at, &mut entries)?;
                match search(&entries, &wanted)? {
                    Search::Found(file) => Ok(Some(file)),
                    Search::End | Search::NotYet => Ok(None),
                }
            }
            Root::Chain { first } => self.find_in_chain(first, &wanted),
        }
    }

    fn find_in_chain(&self, first: u32, wanted: &[u8; 11]) -> Result<Option<FoundFile>, Damage> {
        let mut cluster = first;
        let mut left = ROOT_MAX;
        while left > 0 {
            let len = left.min(self.cluster_len);
            let mut entries = vec![0; len];
            self.source.read_at(self.cluster_at(cluster)?, &mut entries)?;
            match search(&entries, wanted)? {
                Search::Found(file) => return Ok(Some(file)),
                Search::End => return Ok(None),
                Search::NotYet => left -= len,
            }
            match self.next(cluster)? {
                Some(next) => cluster = next,
                None => return Ok(None),
            }
        }
        damaged("its root directory is too long")
    }

    /// Reads a file that was found.
    pub(super) fn read(
        &self,
        file: &FoundFile,
        max_len: usize,
    ) -> Result<Zeroizing<Vec<u8>>, Damage> {
        let len = usize::try_from(file.len).unwrap_or(usize::MAX);
        if len > max_len {
            return damaged(format!("the file has {len} bytes, more than {max_len}"));
        }
        let mut content = Zeroizing::new(vec![0; len]);
        let mut cluster = file.first;
        // Each round takes at least 512 of at most `max_len` bytes, loops in the table or not.
        for (i, part) in content.chunks_mut(self.cluster_len).enumerate() {
            if i > 0 {
                match self.next(cluster)? {
                    Some(next) => cluster = next,
                    None => return damaged("the file's chain of clusters ends early"),
                }
            }
            self.source.read_at(self.cluster_at(cluster)?, part)?;
        }
        Ok(content)
    }

    fn cluster_at(&self, cluster: u32) -> Result<u64, Damage> {
        match cluster.checked_sub(2).filter(|index| *index < self.clusters) {
            Some(index) => Ok(self.data_at + u64::from(index) * self.cluster_len as u64),
            None => damaged("it refers to a cluster that does not exist"),
        }
    }

    /// The table's entry for a cluster that exists: the next one, or `None` at the end of the chain.
    fn next(&self, cluster: u32) -> Result<Option<u32>, Damage> {
        let index = u64::from(cluster);
        let (next, end) = match self.kind {
            Kind::Fat12 => {
                let pair = self.table_bytes::<2>(index + index / 2)?;
                let pair = u32::from(u16::from_le_bytes(pair));
                (if cluster.is_multiple_of(2) { pair & 0xfff } else { pair >> 4 }, 0xff8)
            }
            Kind::Fat16 => (u32::from(u16::from_le_bytes(self.table_bytes(index * 2)?)), 0xfff8),
            Kind::Fat32 => {
                (u32::from_le_bytes(self.table_bytes(index * 4)?) & 0x0fff_ffff, 0x0fff_fff8)
            }
        };
        Ok((next < end).then_some(next))
    }

    fn table_bytes<const N: usize>(&self, at: u64) -> Result<[u8; N], Damage> {
        let mut bytes = [0; N];
        self.source.read_at(self.table_at + at, &mut bytes)?;
        Ok(bytes)
    }
}

enum Search {
    Found(FoundFile),
    /// The directory is over.
    End,
    /// It may go on.
    NotYet,
}

fn search(entries: &[u8], wanted: &[u8; 11]) -> Result<Search, Damage> {
    const DELETED: u8 = 0xe5;
    const LABEL: u8 = 0x08; // and part of a long name's attributes
    const DIRECTORY: u8 = 0x10;
    for entry in entries.chunks_exact(ENTRY) {
        let attributes = entry[11];
        match entry[0] {
            0 => return Ok(Search::End),
            DELETED => continue,
            _ if attributes & LABEL != 0 || entry[..11] != wanted[..] => continue,
            _ if attributes & DIRECTORY != 0 => return damaged("the file is a directory"),
            _ => {}
        }
        let u16_at = |at: usize| u32::from(u16::from_le_bytes([entry[at], entry[at + 1]]));
        let first = u16_at(20) << 16 | u16_at(26);
        return Ok(Search::Found(FoundFile { first, len: u16_at(28) | u16_at(30) << 16 }));
    }
    Ok(Search::NotYet)
}

/// The name as it stands in a directory entry, whatever long name goes with it.
fn short_name(name: &str) -> Option<[u8; 11]> {
    let sound = (1..=8).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric());
    let mut short = [b' '; 11];
    for (slot, b) in short.iter_mut().zip(name.bytes().filter(|_| sound)) {
        *slot = b.to_ascii_uppercase();
    }
    sound.then_some(short)
}
