//! Snapshots' files with both drivers: forks from them, and what becomes of a run's disk that was built on
//! one.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Instant;

use forrest_core::model::{Bytes, StartImage};
use forrest_images::{
    DiskFormat, Driver, ImageError, RunDir, Snapshot, SnapshotKey, Store, snapshots,
};

mod fixture;

use fixture::*;

const MIB: u64 = 1 << 20;

/// Builds a snapshot as the daemon does, with a guest that wrote one megabyte.
fn built(store: &Store, start: &StartImage, key: &SnapshotKey, number: u8) -> Snapshot {
    let m = machine("o/r/m");
    let build = store.begin_snapshot(key, &m, &runner(&m, number)).expect("a new build");
    let disk = store.fork(start, &build, Bytes::mib(100)).expect("a disk");
    guest_writes(&disk, number, 40 * MIB, MIB);
    saved(&build);
    store.finish_snapshot(&build, key, start.clone(), now()).expect("a complete build")
}

/// The files that a virtual machine leaves.
fn saved(build: &RunDir) {
    for name in [snapshots::RAM, snapshots::STATE] {
        std::fs::write(build.path().join(name), name).expect("writable");
    }
    std::fs::write(build.cloud_init(), "CIDATA").expect("writable");
    std::fs::write(build.job_config(), "placeholder").expect("writable");
}

fn restored(store: &Store, snapshot: &Snapshot, number: u8) -> RunDir {
    let m = machine("o/r/m");
    let run = store.create_run_dir(&runner(&m, number), &m).expect("a new run");
    let began = Instant::now();
    let disk = store.fork_from_snapshot(snapshot, &run).expect("a disk");
    println!("forked from the snapshot in {:?}", began.elapsed());
    assert_eq!(disk.snapshot.as_ref(), Some(&snapshot.dir));
    assert_eq!(disk.parent, snapshot.meta.image);
    assert_eq!(store.run_disk(&run).expect("readable"), Some(disk));
    assert_eq!(std::fs::read(run.cloud_init()).expect("there"), b"CIDATA");
    run
}

/// From the start image to a snapshot, to a run, to a generation, to the snapshot's end.
fn life(base: &Path, driver: Driver, format: DiskFormat) {
    let store = open_with(base, driver, None);
    let src = base.join("debian.raw");
    raw_image(&src, Bytes::mib(64));
    let start = store.src_image(&src).expect("a raw image");
    let key = SnapshotKey::of(b"one");
    assert_eq!(store.find_snapshot(&key).expect("readable"), None);
    let snapshot = built(&store, &start, &key, 0x11);
    assert_eq!(store.find_snapshot(&key).expect("readable").as_ref(), Some(&snapshot));
    assert_eq!(store.snapshot_builds().expect("readable"), Vec::<std::path::PathBuf>::new());
    let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(snapshot.dir.path()), 0o700);
    let files = [snapshot.dir.disk(), snapshot.dir.ram(), snapshot.dir.state()];
    assert!(files.iter().all(|file| mode(file) == 0o600));
    assert!(!snapshot.dir.path().join("job-config.img").exists(), "the placeholder is left");

    let (run, other) = (restored(&store, &snapshot, 1), restored(&store, &snapshot, 2));
    let disk = store.run_disk(&run).expect("readable").expect("a disk");
    assert_eq!(disk.format, format);
    let qemu = format.qemu_name();
    guest_reads(&disk.path, qemu, 0x11, 40 * MIB, MIB);
    guest_reads(&disk.path, qemu, 0x5a, 4096, 4096);
    guest_writes(&disk, 0x22, 40 * MIB + MIB / 2, MIB);
    guest_reads(&other.disk(), qemu, 0x11, 40 * MIB, MIB);

    // Nobody wants it any more, but two runs need it.
    assert_eq!(store.prune_snapshots(|_, _| true).expect("removable"), 0);
    assert!(store.find_snapshot(&key).expect("readable").is_some());
    assert_eq!(store.prune_snapshots(|_, _| false).expect("removable"), 0);
    assert_eq!(store.find_snapshot(&key).expect("readable"), None);
    let late = store.create_run_dir(&runner(&machine("o/r/m"), 9), &machine("o/r/m"));
    let refused = store.fork_from_snapshot(&snapshot, &late.expect("a new run"));
    assert!(matches!(refused, Err(ImageError::SnapshotGone { .. })), "{refused:?}");

    // Another one of the same key is built beside it.
    let second = built(&store, &start, &key, 0x33);
    assert_ne!(second.dir, snapshot.dir);
    let third = restored(&store, &second, 3);

    let began = Instant::now();
    let generation = promote(&store, &run);
    println!("promoted in {:?}", began.elapsed());
    let machine = machine("o/r/m");
    let info = store.history(&machine).expect("readable").pop().expect("a generation");
    let lineage = info.lineage.expect("a lineage");
    assert_eq!((lineage.generation, lineage.format), (generation, format));
    assert_eq!(lineage.parent, Some(start.image.clone()));
    let backing = lineage.backing.map(|backing| backing.path);
    assert!(!backing.iter().any(|path| path.starts_with(store.snapshots_dir())), "{backing:?}");
    guest_reads(&info.path, qemu, 0x11, 40 * MIB, MIB / 2);
    store.discard(&other).expect("removable");
    assert_eq!(store.prune_snapshots(|_, _| true).expect("removable"), 1, "the dropped one");
    assert!(!snapshot.dir.path().exists());
    // Without the snapshot, the generation reads as the guest left it.
    guest_reads(&info.path, qemu, 0x11, 40 * MIB, MIB / 2);
    guest_reads(&info.path, qemu, 0x22, 40 * MIB + MIB / 2, MIB);
    guest_reads(&info.path, qemu, 0x5a, 4096, 4096);
    guest_reads(&third.disk(), qemu, 0x33, 40 * MIB, MIB);
    let current = store.machine_image(&machine).expect("readable").expect("a machine image");
    let (_, disk) = forked(&store, &current, 4, Bytes::mib(120));
    guest_reads(&disk.path, qemu, 0x22, 40 * MIB + MIB / 2, MIB);
    if format == DiskFormat::Qcow2 {
        run_check(&info.path);
        let allocated = std::fs::metadata(&info.path).expect("there").blocks() * 512;
        assert!(allocated < 8 * MIB, "more than what was written was copied: {allocated} bytes");
    }
}

fn run_check(path: &Path) {
    let verdict =
        stdout("qemu-img", &["check".as_ref(), "-f".as_ref(), "qcow2".as_ref(), path.as_os_str()]);
    assert!(verdict.contains("No errors were found"), "{}: {verdict}", path.display());
}

#[test]
fn a_snapshot_lives_on_ext4() {
    let Some(fs) = LoopFs::mount("ext4", Bytes::gib(1)) else { return };
    if has("qemu-io") {
        life(&fs.path(), Driver::Qcow2Overlay, DiskFormat::Qcow2);
    }
}

#[test]
fn a_snapshot_lives_on_xfs() {
    let Some(fs) = LoopFs::mount("xfs", Bytes::gib(1)) else { return };
    if has("qemu-io") {
        life(&fs.path(), Driver::Reflink, DiskFormat::Raw);
    }
}

/// A store whose file system was replaced: the snapshot's disk is a clone, the run's an overlay on it.
#[test]
fn an_overlay_on_a_cloned_snapshot_is_written_out() {
    let Some(fs) = LoopFs::mount("xfs", Bytes::gib(1)) else { return };
    if !has("qemu-io") {
        return;
    }
    let store = open_with(&fs.path(), Driver::Reflink, None);
    let src = fs.path().join("debian.raw");
    raw_image(&src, Bytes::mib(64));
    let start = store.src_image(&src).expect("a raw image");
    let key = SnapshotKey::of(b"one");
    let snapshot = built(&store, &start, &key, 0x11);
    let store = open_with(&fs.path(), Driver::Qcow2Overlay, None);
    let run = restored(&store, &snapshot, 1);
    promote(&store, &run);
    assert_eq!(store.prune_snapshots(|_, _| false).expect("removable"), 1);
    let info = store.history(&machine("o/r/m")).expect("readable").pop().expect("a generation");
    assert_eq!(info.lineage.expect("a lineage").backing, None);
    guest_reads(&info.path, "qcow2", 0x11, 40 * MIB, MIB);
    guest_reads(&info.path, "qcow2", 0x5a, 4096, 4096);
}

#[test]
fn builds_that_were_not_finished_are_no_snapshots() {
    if !has("qemu-io") {
        return;
    }
    let dir = build_dir();
    let store = open_with(dir.path(), Driver::Qcow2Overlay, None);
    let src = dir.path().join("debian.raw");
    raw_image(&src, Bytes::mib(64));
    let start = store.src_image(&src).expect("a raw image");
    let m = machine("o/r/m");
    let key = SnapshotKey::of(b"one");
    let build = store.begin_snapshot(&key, &m, &runner(&m, 1)).expect("a new build");
    let refused = store.finish_snapshot(&build, &key, start.clone(), now());
    assert!(matches!(refused, Err(ImageError::SnapshotIncomplete { .. })), "{refused:?}");
    assert_eq!(store.snapshot_builds().expect("readable"), [build.path().to_owned()]);

    // Opening the store, as every command line does, leaves a build alone.
    open_with(dir.path(), Driver::Qcow2Overlay, None);
    let build = store.begin_snapshot(&key, &m, &runner(&m, 2)).expect("debris is removed");
    store.fork(&start, &build, Bytes::mib(100)).expect("a disk");
    saved(&build);
    std::fs::write(build.path().join("log.txt"), "Kernel panic").expect("writable");
    let failed = store.keep_failed_snapshot(&key, &build).expect("removable");
    assert_eq!(store.find_snapshot(&key).expect("readable"), None);
    let left: Vec<_> = std::fs::read_dir(&failed).expect("there").collect();
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!(store.prune_snapshots(|_, _| true).expect("removable"), 0);
    assert_eq!(store.prune_snapshots(|_, _| false).expect("removable"), 1);
    assert!(!failed.exists());

    // What was built before the host was restarted is not used.
    built(&store, &start, &key, 3);
    let options = forrest_images::StoreOptions {
        driver: Some(Driver::Qcow2Overlay),
        hook: None,
        boot_id: Some("another boot".to_owned()),
    };
    let store = Store::open_with(dir.path(), options).expect("a usable base directory");
    assert_eq!(store.find_snapshot(&key).expect("readable"), None);
    assert_eq!(store.prune_snapshots(|_, _| true).expect("removable"), 1);
    // A record of nonsense is no reason to fail.
    let snapshot = built(&store, &start, &key, 4);
    std::fs::write(snapshot.dir.path().join("meta.json"), "{").expect("writable");
    assert_eq!(store.find_snapshot(&key).expect("readable"), None);
}
