//! Disks that guests wrote, and images that somebody made.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::sync::LazyLock;

use forrest_core::model::Bytes;
use forrest_images::qcow2::{self, MAX_DISK};
use forrest_images::readback::{PERSIST, ROOT_MAX, ReadBack, Source, read_from};
use forrest_images::seed::{JOBDATA, SeedFiles, write_fat};

use crate::Cut;

/// The longest content that is asked for, in bytes.
const CONTENT_MAX: usize = 4096;

/// A disk that mostly has what another one has, and counts what is read of it.
struct Disk<'a> {
    below: &'a [u8],
    /// The whole length; zeros follow what is below.
    len: u64,
    changed: BTreeMap<u64, u8>,
    read: Cell<usize>,
}

impl Source for Disk<'_> {
    fn len(&self) -> io::Result<u64> {
        Ok(self.len)
    }

    fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read.set(self.read.get() + buffer.len());
        let end = at.checked_add(buffer.len() as u64).filter(|end| *end <= self.len);
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.fill(0);
        let from = usize::try_from(at).unwrap_or(usize::MAX).min(self.below.len());
        let below = &self.below[from..];
        let len = below.len().min(buffer.len());
        buffer[..len].copy_from_slice(&below[..len]);
        for (place, value) in self.changed.range(at..end) {
            buffer[(place - at) as usize] = *value;
        }
        Ok(())
    }
}

/// No more is read than the reader's module promises, and no more comes of it.
fn read_bounded(disk: &Disk<'_>) {
    let found = read_from(disk, PERSIST, CONTENT_MAX).expect("memory can be read");
    // A table entry of up to 4 bytes for each cluster of at least 512.
    let table = (ROOT_MAX + CONTENT_MAX) / 512 * 4;
    let bound = 512 + ROOT_MAX + CONTENT_MAX + table;
    assert!(disk.read.get() <= bound, "{} bytes were read", disk.read.get());
    match found {
        ReadBack::Content(content) => assert!(content.len() <= CONTENT_MAX),
        ReadBack::Absent => {}
        ReadBack::Damaged(why) => assert!(why.len() < 200 && !why.contains(char::is_control)),
    }
}

/// `LENGTH LENGTH IMAGE`: the disk's length in units of 4 KiB, and what it begins with; zeros follow.
pub(crate) fn fat(data: &[u8]) {
    let mut cut = Cut::new(data);
    let units = u64::from(u16::from_le_bytes([cut.byte(), cut.byte()]));
    let below = cut.rest();
    let len = (units * 4096).max(below.len() as u64);
    read_bounded(&Disk { below, len, changed: BTreeMap::new(), read: Cell::new(0) });
}

/// A FAT12, a FAT16 and a FAT32 file system with a `persist` file, and where its entry is.
static SOUND: LazyLock<Vec<(Vec<u8>, u64)>> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let sizes = [Bytes(64 << 10), Bytes::mib(4), Bytes::mib(40)];
    let write = |size: Bytes| {
        let path = dir.path().join(size.0.to_string());
        let files = SeedFiles::from_iter([
            ("job.sh", b"#!/bin/sh\n".to_vec()),
            (PERSIST, vec![b'x'; 3000]),
        ]);
        write_fat(&path, JOBDATA, &files, size).expect("the files fit");
        let image = std::fs::read(&path).expect("the image is there");
        let entry =
            image[..image.len().min(2 << 20)].windows(11).position(|name| name == b"PERSIST    ");
        let entry = entry.expect("the entry is there") as u64;
        // What is all zeros need not be kept.
        let used = image.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
        (image[..used].to_vec(), entry)
    };
    sizes.map(write).to_vec()
});

/// `WHICH (AREA OFFSET VALUE)*`: changes to a sound file system, in the places that matter.
pub(crate) fn fat_damage(data: &[u8]) {
    let mut cut = Cut::new(data);
    let which = usize::from(cut.byte());
    let size = [64_u64 << 10, 4 << 20, 40 << 20][which % 3];
    let (below, entry) = &SOUND[which % 3];
    let mut changed = BTreeMap::new();
    for change in cut.rest().chunks_exact(3) {
        let offset = u64::from(change[1]);
        let at = match change[0] % 5 {
            0 | 1 => offset % 64,
            // The tables begin behind the reserved sectors: one, or 32 with FAT32.
            2 => 512 + offset,
            3 => 32 * 512 + offset,
            _ => (entry + offset).saturating_sub(128),
        };
        changed.insert(at, change[2]);
    }
    read_bounded(&Disk { below, len: size, changed, read: Cell::new(0) });
}

/// The beginning of an image; its length is what the first two bytes say, in sectors.
pub(crate) fn qcow2(data: &[u8]) {
    let mut cut = Cut::new(data);
    let sectors = u64::from(u16::from_le_bytes([cut.byte(), cut.byte()]));
    let below = cut.rest();
    let len = (sectors * 512).max(below.len() as u64);
    let disk = Disk { below, len, changed: BTreeMap::new(), read: Cell::new(0) };
    let header = qcow2::read_header(&disk).expect("memory can be read");
    assert!(disk.read.get() <= qcow2::READ_MAX, "{} bytes were read", disk.read.get());
    if let Ok(header) = header {
        assert!(matches!(header.version, 2 | 3));
        assert!(header.virtual_size > Bytes(0) && header.virtual_size <= MAX_DISK);
    }
}
