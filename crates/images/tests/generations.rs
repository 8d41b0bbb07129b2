//! Generations: promotion, going back, removal, and what may lie around.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;

use forrest_core::model::{Bytes, Generation, ImageRef, StartImage, Timestamp};
use forrest_images::{Driver, ImageError, MAX_BACKING_DEPTH, Origin, Store, StoreOptions};
use tempfile::TempDir;

#[expect(dead_code, reason = "each test binary uses some of it")]
mod fixture;

use fixture::*;

const MIB: u64 = 1 << 20;

/// A store with overlays, and a src image of 1 MiB.
fn with_src() -> (TempDir, Store, StartImage) {
    let dir = build_dir();
    let store = open_with(dir.path(), Driver::Qcow2Overlay, None);
    let src = dir.path().join("src.raw");
    raw_image(&src, Bytes::mib(1));
    let start = store.src_image(&src).expect("a raw image");
    (dir, store, start)
}

#[test]
fn long_chains_are_written_out_as_one_file() {
    if !["qemu-img", "qemu-io"].into_iter().all(has) {
        return;
    }
    let dir = build_dir();
    let store = open_with(dir.path(), Driver::Qcow2Overlay, None);
    let src = dir.path().join("src.raw");
    raw_image(&src, Bytes::mib(8));
    let mut start = store.src_image(&src).expect("a raw image");
    let m = machine("o/r/m");
    let mut depths = Vec::new();
    for number in 1..=MAX_BACKING_DEPTH as u8 + 2 {
        let (run, disk) = forked(&store, &start, number, Bytes::mib(16));
        depths.push(disk.backing.len());
        guest_writes(&disk, number, u64::from(number) * MIB, 4096);
        promote(&store, &run);
        start = store.machine_image(&m).expect("readable").expect("a machine image");
    }
    assert_eq!(depths.iter().max(), Some(&(MAX_BACKING_DEPTH + 1)));
    assert_eq!(depths.last(), Some(&1));
    let current = store.history(&m).expect("readable").pop().expect("the newest");
    for number in 1..=MAX_BACKING_DEPTH as u8 + 2 {
        guest_reads(&current.path, "qcow2", number, u64::from(number) * MIB, 4096);
    }
    // What the flat one replaced is needed by nobody now; the newest is built on the flat one.
    let pruned = store.prune(&m, 1).expect("readable");
    assert_eq!(pruned.needed, [Generation(MAX_BACKING_DEPTH as u32 + 1)]);
    assert_eq!(pruned.removed.len(), MAX_BACKING_DEPTH);
    guest_reads(&current.path, "qcow2", 1, MIB, 4096);
}

#[test]
fn generations_only_grow_and_can_be_gone_back_to() {
    let (dir, store, start) = with_src();
    let m = machine("o/r/m");
    let mut number = 0;
    let mut next = || {
        number += 1;
        promote(&store, &forked(&store, &start, number, Bytes::mib(1)).0)
    };
    let current = |store: &Store| {
        let image = store.machine_image(&m).expect("readable")?.image;
        match image {
            ImageRef::Machine { generation, .. } => Some(generation.0),
            ImageRef::Src { .. } => panic!("no machine image"),
        }
    };
    let reopened = || open_with(dir.path(), Driver::Qcow2Overlay, None);
    for expected in 1..=5 {
        assert_eq!(next(), Generation(expected));
    }
    assert_eq!(store.roll_back(&m, None).expect("an earlier one"), Generation(4));
    assert_eq!(store.roll_back(&m, Some(Generation(2))).expect("there"), Generation(2));
    // Opening again does not undo it.
    assert_eq!(current(&reopened()), Some(2));
    assert_eq!(
        store.mark_broken(&m, Generation(2), "panics", now()).expect("there"),
        Some(Generation(1))
    );
    assert_eq!(current(&reopened()), Some(1));
    assert!(matches!(
        store.roll_back(&m, Some(Generation(2))),
        Err(ImageError::GenerationBroken { .. })
    ));
    assert!(matches!(store.roll_back(&m, None), Err(ImageError::NothingToRollBackTo { .. })));
    assert_eq!(store.roll_back(&m, Some(Generation(5))).expect("there"), Generation(5));
    assert_eq!(
        store.mark_broken(&m, Generation(5), "panics", now()).expect("there"),
        Some(Generation(4))
    );
    // The highest is removed, but its number is not used again.
    assert_eq!(store.roll_back(&m, Some(Generation(1))).expect("there"), Generation(1));
    std::fs::remove_file(dir.path().join("machines/o/r/m/000005.img")).expect("there");
    let store = reopened();
    assert!(!dir.path().join("machines/o/r/m/000005.json").exists());
    assert_eq!(current(&store), Some(1));
    assert_eq!(next(), Generation(6));
    assert_eq!(current(&store), Some(6));
    let pruned = store.prune(&m, 2).expect("readable");
    assert_eq!(pruned.removed, [3, 2, 1].map(Generation));
    let left: Vec<u32> =
        store.history(&m).expect("readable").iter().map(|g| g.generation.0).collect();
    assert_eq!(left, [4, 6]);
    // Marked broken with nothing below: runs start from the base again.
    store.mark_broken(&m, Generation(4), "x", now()).expect("there");
    assert_eq!(store.mark_broken(&m, Generation(6), "x", now()).expect("there"), None);
    assert_eq!(current(&store), None);
    assert_eq!(next(), Generation(7));
}

#[test]
fn generations_that_were_replaced_long_ago_are_removed() {
    let (dir, store, start) = with_src();
    let m = machine("o/r/m");
    for number in 1..=4 {
        promote(&store, &forked(&store, &start, number, Bytes::mib(1)).0);
    }
    // As if each had been promoted a day after the one before it.
    let day = |n: u32| Timestamp(u64::from(n) * 24 * 3600 * 1000);
    for n in 1..=4 {
        let path = dir.path().join(format!("machines/o/r/m/{n:06}.json"));
        let text = std::fs::read_to_string(&path).expect("a lineage");
        let mut lineage: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        lineage["promoted_at"] = day(n).0.into();
        std::fs::write(&path, lineage.to_string()).expect("written");
    }
    // Number 2 was replaced on the third day.
    assert_eq!(store.prune_old(&m, 9, day(3)).expect("readable").removed, [Generation(1)]);
    store.roll_back(&m, Some(Generation(2))).expect("there");
    assert_eq!(store.prune_old(&m, 9, day(9)).expect("readable").removed, [Generation(3)]);
    // The newest was replaced by none, number 2 is current.
    assert_eq!(store.prune_old(&m, 9, Timestamp::NEVER).expect("readable").removed, []);
    assert_eq!(store.history(&m).expect("readable").len(), 2);
}

#[test]
fn generations_that_somebody_needs_are_not_removed() {
    let (dir, store, start) = with_src();
    let m = machine("o/r/m");
    promote(&store, &forked(&store, &start, 1, Bytes::mib(1)).0);
    let first = store.machine_image(&m).expect("readable").expect("a machine image");
    let (run, _) = forked(&store, &first, 2, Bytes::mib(1));
    let derived = machine("o/r/derived");
    let other = store.create_run_dir(&runner(&derived, 3), &derived).expect("a new run");
    store.fork(&first, &other, Bytes::mib(1)).expect("a disk");
    promote(&store, &other);
    promote(&store, &forked(&store, &start, 4, Bytes::mib(1)).0);
    // A run and another machine type's image are built on it.
    assert_eq!(store.prune(&m, 1).expect("readable").needed, [Generation(1)]);
    store.remove_run_dir(&run).expect("removable");
    assert_eq!(store.prune(&m, 1).expect("readable").needed, [Generation(1)]);
    let snapshot = store.snapshots_dir().join("key");
    std::fs::create_dir(&snapshot).expect("a new directory");
    let (run, _) = forked(&store, &first, 5, Bytes::mib(1));
    for file in ["disk.img", "disk.json"] {
        std::fs::rename(run.path().join(file), snapshot.join(file)).expect("movable");
    }
    std::fs::remove_dir_all(dir.path().join("machines/o/r/derived")).expect("removable");
    assert_eq!(store.prune(&m, 1).expect("readable").needed, [Generation(1)]);
    std::fs::remove_dir_all(&snapshot).expect("removable");
    assert_eq!(store.prune(&m, 1).expect("readable").removed, [Generation(1)]);
}

#[test]
fn disks_from_before_a_restart_of_the_host_are_not_promoted() {
    let dir = build_dir();
    let store = open_with(dir.path(), Driver::Qcow2Overlay, None);
    let src = dir.path().join("src.raw");
    raw_image(&src, Bytes::mib(1));
    let (run, _) = forked(&store, &store.src_image(&src).expect("a raw image"), 1, Bytes::mib(1));
    let boot_id = Some("another boot".to_owned());
    let later = StoreOptions { boot_id, ..StoreOptions::default() };
    let later = Store::open_with(dir.path(), later).expect("a usable base directory");
    let error = later.promote(&run, &Origin::default(), now(), &mut |_| {});
    assert!(matches!(error, Err(ImageError::HostRestarted { .. })));
    assert_eq!(promote(&store, &run), Generation(1));
    assert_eq!(promote(&later, &run), Generation(1));
    let m = machine("o/r/m");
    let never = store.create_run_dir(&runner(&m, 2), &m).expect("a new run");
    let error = store.promote(&never, &Origin::default(), now(), &mut |_| {});
    assert!(matches!(error, Err(ImageError::NoDisk { .. })));
}

#[test]
fn junk_does_not_disturb() {
    let dir = build_dir();
    let store = open_with(dir.path(), Driver::Qcow2Overlay, None);
    let src = dir.path().join("src.raw");
    raw_image(&src, Bytes::mib(1));
    let (run, _) = forked(&store, &store.src_image(&src).expect("a raw image"), 1, Bytes::mib(1));
    let (second, _) =
        forked(&store, &store.src_image(&src).expect("a raw image"), 2, Bytes::mib(1));
    promote(&store, &second);
    for junk in [
        "runs/file",
        "runs/o/r/m/not-a-runner/x",
        "runs/o/r/m/file",
        "runs/a b/c/d/e/x",
        "runs/o/r/other/forrest-m-aaaaaaaaaaaaaaaa/x",
        "machines/file",
        "machines/o/r/m/note.txt",
        "machines/o/r/m/000009.img",
        "machines/o/r/m/7.img",
        "machines/o/r/m/.forrest-tmp.1.1",
        "machines/o/r/.forrest-tmp.1.1",
        "src/0123456789abcdef.img",
        "src/debian.img",
        "src/.forrest-tmp.1.1",
    ] {
        let path = dir.path().join(junk);
        std::fs::create_dir_all(path.parent().expect("below the base")).expect("writable");
        std::fs::write(path, b"junk").expect("writable");
    }
    let nowhere = dir.path().join("machines/o/r/gone.img");
    std::os::unix::fs::symlink("/etc/passwd", &nowhere).expect("a link");
    let store = open_with(dir.path(), Driver::Qcow2Overlay, None);
    let runs: BTreeSet<_> = store.list_run_dirs().expect("readable").into_iter().collect();
    assert_eq!(runs, BTreeSet::from([run, second]));
    let m = machine("o/r/m");
    assert_eq!(store.machines().expect("readable"), [machine("o/r/gone"), m.clone()]);
    assert_eq!(store.machine_image(&machine("o/r/gone")).expect("readable"), None);
    // An image without a lineage is somebody else's: shown, not used, not touched, number not reused.
    let history = store.history(&m).expect("readable");
    assert_eq!(history.iter().map(|g| g.lineage.is_some()).collect::<Vec<_>>(), [true, false]);
    assert_eq!(store.prune(&m, 1).expect("readable").removed, []);
    let start = store.machine_image(&m).expect("readable").expect("a machine image");
    assert_eq!(promote(&store, &forked(&store, &start, 3, Bytes::mib(1)).0), Generation(10));
    let tmp = stdout("find", &[dir.path().as_os_str(), "-name".as_ref(), ".forrest-tmp*".as_ref()]);
    assert_eq!(tmp, "");
    assert!(!dir.path().join("src/0123456789abcdef.img").exists());
    assert!(dir.path().join("src/debian.img").exists(), "an operator's own image");
    assert!(dir.path().join("machines/o/r/m/000009.img").exists());
}

#[test]
fn a_machine_image_of_the_earlier_layout_is_taken_over() {
    let dir = build_dir();
    let old = dir.path().join("machines/o/r/m.img");
    std::fs::create_dir_all(old.parent().expect("below the base")).expect("writable");
    raw_image(&old, Bytes::mib(1));
    let inode = std::fs::metadata(&old).expect("there").ino();
    let store = open_with(dir.path(), Driver::Qcow2Overlay, None);
    let m = machine("o/r/m");
    let start = store.machine_image(&m).expect("readable").expect("a machine image");
    assert_eq!(start.image, ImageRef::Machine { machine: m.clone(), generation: Generation(1) });
    assert_eq!(std::fs::metadata(&old).expect("there").ino(), inode);
    assert!(old.is_symlink());
    forked(&store, &start, 1, Bytes::mib(1));
}

#[test]
fn many_promotions_at_once_get_a_number_each() {
    let (_dir, store, start) = with_src();
    let m = machine("o/r/m");
    let generations: BTreeSet<Generation> = std::thread::scope(|scope| {
        let one = |number| {
            let (store, start) = (&store, &start);
            scope.spawn(move || promote(store, &forked(store, start, number, Bytes::mib(1)).0))
        };
        let threads: Vec<_> = (0..8).map(one).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    assert_eq!(generations, (1..=8).map(Generation).collect());
    assert_eq!(store.history(&m).expect("readable").len(), 8);
}
