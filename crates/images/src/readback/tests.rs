use std::cell::Cell;

use forrest_core::model::Bytes;
use proptest::prelude::*;

use super::*;
use crate::seed::{JOBDATA, SeedFiles, write_fat};

/// Counts what is read.
struct Counted<'a> {
    bytes: &'a [u8],
    read: Cell<usize>,
}

impl Source for Counted<'_> {
    fn len(&self) -> io::Result<u64> {
        Source::len(self.bytes)
    }

    fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read.set(self.read.get() + buffer.len());
        self.bytes.read_at(at, buffer)
    }
}

const MAX_LEN: usize = 4096;

/// Reads, and checks that no more was read than the module promises.
fn read_bounded(bytes: &[u8]) -> ReadBack {
    let source = Counted { bytes, read: Cell::new(0) };
    let found = read_from(&source, PERSIST, MAX_LEN).expect("memory can be read");
    // A table entry of up to 4 bytes for each cluster of at least 512.
    let table = (ROOT_MAX + MAX_LEN) / 512 * 4;
    assert!(source.read.get() <= 512 + ROOT_MAX + MAX_LEN + table, "{} bytes", source.read.get());
    if let ReadBack::Content(content) = &found {
        assert!(content.len() <= MAX_LEN);
    }
    found
}

fn image(content: &[u8], size: Bytes) -> Vec<u8> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("disk.img");
    let files =
        SeedFiles::from_iter([("job.sh", b"#!/bin/sh\n".to_vec()), (PERSIST, content.to_vec())]);
    write_fat(&path, JOBDATA, &files, size).expect("the files fit");
    std::fs::read(&path).expect("the image is there")
}

fn content(found: &ReadBack) -> &[u8] {
    match found {
        ReadBack::Content(content) => content,
        other => panic!("no content: {other:?}"),
    }
}

#[test]
fn what_was_written_is_read() {
    for size in [Bytes(64 << 10), Bytes::mib(1), Bytes::mib(4), Bytes::mib(40)] {
        for len in [0, 1, 511, 512, 513, MAX_LEN] {
            let written: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
            assert_eq!(content(&read_bounded(&image(&written, size))), written, "{size} {len}");
        }
    }
}

#[test]
fn other_files_are_not_taken_for_it() {
    let image = image(b"token", Bytes::mib(1));
    assert!(matches!(read_from(&image[..], "other", MAX_LEN), Ok(ReadBack::Absent)));
    assert!(matches!(read_from(&image[..], "persistent", MAX_LEN), Ok(ReadBack::Absent)));
    assert!(matches!(read_from(&image[..], "", MAX_LEN), Ok(ReadBack::Absent)));
}

#[test]
fn what_is_too_long_is_not_read() {
    let found = read_bounded(&image(&[b'x'; MAX_LEN + 1], Bytes::mib(1)));
    assert!(
        matches!(&found, ReadBack::Damaged(why) if why.contains("more than 4096")),
        "{found:?}"
    );
}

/// Where the entry of `persist` starts.
fn entry_at(image: &[u8]) -> usize {
    image.windows(11).position(|name| name == b"PERSIST    ").expect("the entry is there")
}

#[test]
fn a_directory_of_that_name_is_no_file() {
    let mut image = image(b"token", Bytes::mib(1));
    let at = entry_at(&image);
    image[at + 11] = 0x10;
    assert!(matches!(&read_bounded(&image), ReadBack::Damaged(why) if why.contains("directory")));
}

#[test]
fn a_deleted_file_is_absent() {
    let mut image = image(b"token", Bytes::mib(1));
    let at = entry_at(&image);
    image[at] = 0xe5;
    assert_eq!(read_bounded(&image), ReadBack::Absent);
}

#[test]
fn clusters_beyond_the_end_are_noticed() {
    for cluster in [0_u16, 1, 0xfff0, 0xffff] {
        let mut image = image(b"token", Bytes::mib(1));
        let at = entry_at(&image) + 26;
        image[at..at + 2].copy_from_slice(&cluster.to_le_bytes());
        assert!(matches!(read_bounded(&image), ReadBack::Damaged(_)), "{cluster}");
    }
}

#[test]
fn a_chain_that_bites_its_tail_ends_with_the_file() {
    let mut image = image(&[b'x'; MAX_LEN], Bytes::mib(4));
    let at = entry_at(&image) + 26;
    let first = u16::from_le_bytes([image[at], image[at + 1]]);
    let table = 512 + usize::from(first) * 2;
    image[table..table + 2].copy_from_slice(&first.to_le_bytes());
    assert_eq!(content(&read_bounded(&image)), [b'x'; MAX_LEN]);
}

#[test]
fn a_chain_that_ends_early_is_noticed() {
    let mut image = image(&[b'x'; MAX_LEN], Bytes::mib(4));
    let at = entry_at(&image) + 26;
    let table = 512 + usize::from(u16::from_le_bytes([image[at], image[at + 1]])) * 2;
    image[table..table + 2].copy_from_slice(&[0xff, 0xff]);
    assert!(matches!(&read_bounded(&image), ReadBack::Damaged(why) if why.contains("ends early")));
}

#[test]
fn what_is_no_file_system_is_damaged() {
    for image in [vec![], vec![0; 511], vec![0; 1 << 20], vec![0xff; 1 << 20]] {
        assert!(matches!(read_bounded(&image), ReadBack::Damaged(_)));
    }
}

/// A small generator of pseudo-random numbers (xorshift64*), so that a failure replays.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

/// Values that break parsers.
const NASTY: [u8; 8] = [0, 1, 2, 0x7f, 0x80, 0xe5, 0xfe, 0xff];

#[test]
fn a_hundred_thousand_corruptions_do_no_harm() {
    let sound = [image(b"token\n", Bytes(64 << 10)), image(&[b'x'; 3000], Bytes::mib(4))];
    let mut random = Random(0x00f0_44e5_7000_0001);
    let (mut absent, mut damaged, mut content) = (0, 0, 0);
    for sound in sound {
        let mut image = sound.clone();
        // The places that matter: boot sector, both ends of the table, root directory.
        let entry = entry_at(&sound);
        for _ in 0..50_000 {
            let mut touched = Vec::new();
            for _ in 0..=random.below(4) {
                let at = match random.below(4) {
                    0 | 1 => random.below(64),
                    2 => 512 + random.below(256),
                    _ => entry - 128 + random.below(256),
                };
                let value = match random.below(2) {
                    0 => NASTY[random.below(NASTY.len())],
                    _ => random.next() as u8,
                };
                image[at] = value;
                touched.push(at);
            }
            match read_bounded(&image) {
                ReadBack::Content(_) => content += 1,
                ReadBack::Absent => absent += 1,
                ReadBack::Damaged(_) => damaged += 1,
            }
            for at in touched {
                image[at] = sound[at];
            }
        }
    }
    println!("content {content}, absent {absent}, damaged {damaged}");
    assert!(content > 1000 && absent > 1000 && damaged > 1000, "the corruptions are one-sided");
}

proptest! {
    #[test]
    fn any_bytes_do_no_harm(mut bytes in proptest::collection::vec(any::<u8>(), 512..8192)) {
        bytes[510] = 0x55;
        bytes[511] = 0xaa;
        read_bounded(&bytes);
    }

    /// Boot sectors that pass the first checks, of disks of any length.
    #[test]
    fn any_geometry_does_no_harm(
        sector in prop::sample::select(vec![512_u16, 1024, 2048, 4096]),
        per_cluster in 0_u32..8,
        fields in any::<[u8; 50]>(),
        len in 512_usize..200_000,
        fill in any::<u8>(),
    ) {
        let mut image = vec![fill; len];
        image[14..64].copy_from_slice(&fields);
        image[11..13].copy_from_slice(&sector.to_le_bytes());
        image[13] = 1 << per_cluster;
        image[510] = 0x55;
        image[511] = 0xaa;
        read_bounded(&image);
        // Small numbers get further than random ones.
        image[14..64].fill(0);
        image[14] = fields[0] % 4;
        image[16] = fields[1] % 4;
        image[17] = fields[2];
        image[18] = fields[3] % 2;
        image[22] = fields[4];
        image[32..36].copy_from_slice(&((len / usize::from(sector)) as u32).to_le_bytes());
        read_bounded(&image);
    }
}
