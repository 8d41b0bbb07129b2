//! Disks and src images on real file systems: ext4 (or what the build directory is on), XFS, btrfs.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use forrest_core::model::{Bytes, Generation, ImageRef};
use forrest_images::{DiskFormat, Driver, ImageError, Origin, SrcKeeping, Store};

mod fixture;

use fixture::*;

const MIB: u64 = 1 << 20;

/// The same story with either driver: two promotions in a row, the second one from the first.
fn evolution(base: &Path, driver: Driver, format: DiskFormat) {
    let store = Store::open(base).expect("a usable base directory");
    assert_eq!(store.driver(), driver);
    let src = base.join("debian.raw");
    raw_image(&src, Bytes::mib(64));
    let start = store.src_image(&src).expect("a raw image");
    let m = machine("o/r/m");
    assert_eq!(store.machine_image(&m).expect("readable"), None);

    let (run, disk) = forked(&store, &start, 1, Bytes::mib(100));
    assert_eq!((disk.format, disk.virtual_size), (format, Bytes::mib(100)));
    assert_eq!(store.run_disk(&run).expect("readable"), Some(disk.clone()));
    guest_reads(&disk.path, format.qemu_name(), 0x5a, 4096, 4096);
    guest_reads(&disk.path, format.qemu_name(), 0, 99 * MIB, MIB);
    guest_writes(&disk, 0x11, 70 * MIB, MIB);
    let origin = Origin { head_sha: Some("abc".to_owned()), ..Origin::default() };
    let first = store.promote(&run, &origin, now(), &mut |_| {}).expect("a first generation");
    assert_eq!(first, Generation(1));
    assert_eq!(store.promote(&run, &origin, now(), &mut |_| {}).expect("the same"), first);

    let current = store.machine_image(&m).expect("readable").expect("a machine image");
    assert_eq!(current.image, ImageRef::Machine { machine: m.clone(), generation: first });
    let (run, disk) = forked(&store, &current, 2, Bytes::mib(120));
    guest_reads(&disk.path, format.qemu_name(), 0x11, 70 * MIB, MIB);
    guest_writes(&disk, 0x22, 70 * MIB, MIB);
    let (loser, other) = forked(&store, &current, 3, Bytes::mib(120));
    assert_eq!(promote(&store, &run), Generation(2));
    guest_reads(&other.path, format.qemu_name(), 0x11, 70 * MIB, MIB);
    store.discard(&loser).expect("removable");
    store.discard(&loser).expect("removable twice");

    let history = store.history(&m).expect("readable");
    assert_eq!(history.iter().map(|g| g.current).collect::<Vec<_>>(), [false, true]);
    for (info, pattern) in history.iter().zip([0x11, 0x22]) {
        let lineage = info.lineage.as_ref().expect("a lineage");
        assert_eq!(lineage.format, format);
        guest_reads(&info.path, format.qemu_name(), pattern, 70 * MIB, MIB);
        let mode = std::fs::metadata(&info.path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o440);
        if format == DiskFormat::Qcow2 {
            run_qemu_check(&info.path);
        }
    }
    let lineage = history[1].lineage.as_ref().expect("a lineage");
    assert_eq!(lineage.parent, Some(current.image));
    assert_eq!(lineage.virtual_size, Bytes::mib(120));
    let lineage = history[0].lineage.as_ref().expect("a lineage");
    assert_eq!(lineage.origin.head_sha.as_deref(), Some("abc"));
    let link = std::fs::read_link(base.join("machines/o/r/m.img")).expect("a link");
    assert_eq!(link, Path::new("m/000002.img"));
}

fn run_qemu_check(path: &Path) {
    let verdict =
        stdout("qemu-img", &["check".as_ref(), "-f".as_ref(), "qcow2".as_ref(), path.as_os_str()]);
    assert!(verdict.contains("No errors were found"), "{}: {verdict}", path.display());
}

#[test]
fn images_evolve_on_the_build_directory() {
    if !["qemu-img", "qemu-io"].into_iter().all(has) {
        return;
    }
    let dir = build_dir();
    match Store::open(dir.path()).expect("a usable base directory").driver() {
        Driver::Qcow2Overlay => evolution(dir.path(), Driver::Qcow2Overlay, DiskFormat::Qcow2),
        Driver::Reflink => evolution(dir.path(), Driver::Reflink, DiskFormat::Raw),
    }
}

#[test]
fn images_evolve_on_ext4() {
    let Some(fs) = LoopFs::mount("ext4", Bytes::gib(1)) else { return };
    if has("qemu-io") {
        evolution(&fs.path(), Driver::Qcow2Overlay, DiskFormat::Qcow2);
    }
}

#[test]
fn images_evolve_on_xfs() {
    let Some(fs) = LoopFs::mount("xfs", Bytes::gib(1)) else { return };
    if has("qemu-io") {
        evolution(&fs.path(), Driver::Reflink, DiskFormat::Raw);
    }
}

#[test]
fn images_evolve_on_btrfs() {
    let Some(fs) = LoopFs::mount("btrfs", Bytes::gib(1)) else { return };
    if has("qemu-io") {
        evolution(&fs.path(), Driver::Reflink, DiskFormat::Raw);
    }
}

#[test]
fn own_overlays_are_what_qemu_would_make() {
    if !has("qemu-img") {
        return;
    }
    let dir = build_dir();
    let store = open_with(dir.path(), Driver::Qcow2Overlay, None);
    let src = dir.path().join("src.raw");
    raw_image(&src, Bytes::mib(8));
    let start = store.src_image(&src).expect("a raw image");
    // Sizes around the limits of the mapping's first level, and one that is no multiple of anything.
    let sizes = [
        8 << 20,
        (512 << 20) - 512,
        512 << 20,
        (512 << 20) + 512,
        10 << 30,
        5 << 40,
        64 << 40,
        8_388_609,
    ];
    for (number, size) in (0..).zip(sizes) {
        let (_, disk) = forked(&store, &start, number, Bytes(size));
        run_qemu_check(&disk.path);
        let info = ["info".as_ref(), "--output=json".as_ref(), disk.path.as_os_str()];
        let info: serde_json::Value =
            serde_json::from_str(&stdout("qemu-img", &info)).expect("JSON");
        assert_eq!(info["virtual-size"], size.next_multiple_of(512));
        assert_eq!(info["format"], "qcow2");
        assert_eq!(info["backing-filename-format"], "raw");
        assert_eq!(info["full-backing-filename"], disk.backing[0].path.to_str().expect("UTF-8"));
        if size < 1 << 30 {
            let flat = dir.path().join("flat.raw");
            let convert = ["convert", "-f", "qcow2", "-O", "raw"].map(Path::new);
            run("qemu-img", &[&convert[..], &[&disk.path, &flat]].concat());
            let compare = ["compare", "-f", "raw", "-F", "raw"].map(Path::new);
            run("qemu-img", &[&compare[..], &[&src, &flat]].concat());
        }
    }
}

#[test]
fn a_disk_never_shrinks() {
    let dir = build_dir();
    let store = open_with(dir.path(), Driver::Qcow2Overlay, None);
    let src = dir.path().join("src.raw");
    raw_image(&src, Bytes::mib(8));
    let start = store.src_image(&src).expect("a raw image");
    let m = machine("o/r/m");
    let run = store.create_run_dir(&runner(&m, 1), &m).expect("a new run");
    let error = store.fork(&start, &run, Bytes::mib(7)).expect_err("too small");
    let text = error.to_string();
    assert!(text.contains("7M") && text.contains("8M"), "{text}");
    assert!(!run.disk().exists());
    assert!(matches!(
        store.fork(&start, &run, Bytes(u64::MAX)),
        Err(ImageError::DiskTooLarge { .. })
    ));
    store.fork(&start, &run, Bytes::mib(8)).expect("the same size fits");
    let again = store.fork(&start, &run, Bytes::mib(8));
    assert!(matches!(again, Err(ImageError::DiskExists { .. })));
}

#[test]
fn what_is_no_image_is_refused_with_the_reason() {
    let dir = build_dir();
    let store = open_with(dir.path(), Driver::Qcow2Overlay, None);
    let file = dir.path().join("image");
    let refusal = |content: &[u8]| {
        std::fs::write(&file, content).expect("writable");
        store.src_image(&file).expect_err("a refusal").to_string()
    };
    assert!(refusal(b"").contains("empty"));
    assert!(refusal(b"short").contains("shorter"));
    assert!(refusal(&b"<!DOCTYPE html>".repeat(100)).contains("text"));
    assert!(refusal(&b"\xfd7zXZ\0".repeat(100)).contains("unxz"));
    assert!(refusal(&b"QFI\xfb".repeat(200)).contains("not known"));
    let error = store.src_image(dir.path()).expect_err("a refusal");
    assert!(error.to_string().contains("directory"));
    let error = store.src_image(&dir.path().join("nothing")).expect_err("a refusal");
    assert_eq!(error.io_kind(), Some(std::io::ErrorKind::NotFound));
    if has("qemu-img") {
        raw_image(&file, Bytes::mib(1));
        let overlay = dir.path().join("overlay");
        let create = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b"].map(Path::new);
        run("qemu-img", &[&create[..], &[&file, &overlay]].concat());
        let error = store.src_image(&overlay).expect_err("a refusal").to_string();
        assert!(error.contains("backing file"), "{error}");
        let data = dir.path().join("data");
        let option = format!("data_file={}", data.display());
        let create = ["create", "-q", "-f", "qcow2", "-o", &option].map(Path::new);
        run("qemu-img", &[&create[..], &[&overlay, Path::new("1M")]].concat());
        let error = store.src_image(&overlay).expect_err("a refusal").to_string();
        assert!(error.contains("another file"), "{error}");
    }
}

#[test]
fn qcow2_src_images_are_converted_once() {
    if !has("qemu-img") {
        return;
    }
    let dir = build_dir();
    let store = open_with(&dir.path().join("base"), Driver::Qcow2Overlay, None);
    let (raw, src) = (dir.path().join("src.raw"), dir.path().join("src.qcow2"));
    raw_image(&raw, Bytes::mib(32));
    let convert = ["convert", "-c", "-O", "qcow2"].map(Path::new);
    run("qemu-img", &[&convert[..], &[&raw, &src]].concat());
    let mut seen = Vec::new();
    assert!(!store.src_is_ready(&src).expect("a qcow2 image"));
    let kept = store.prepare_src(&src, &mut |part| seen.push(part)).expect("convertible");
    assert_eq!(kept, SrcKeeping::Imported);
    assert_eq!(seen.last(), Some(&1.0));
    assert!(store.src_is_ready(&src).expect("a qcow2 image"));
    let again = store.prepare_src(&src, &mut |_| panic!("nothing is left to do"));
    assert_eq!(again.expect("done before"), SrcKeeping::Imported);
    let start = store.src_image(&src).expect("a qcow2 image");
    let (_, disk) = forked(&store, &start, 1, Bytes::mib(40));
    assert_eq!(disk.backing[0].format, DiskFormat::Raw);
    let compare = ["compare", "-f", "qcow2", "-F", "raw"].map(Path::new);
    run("qemu-img", &[&compare[..], &[&disk.path, &raw]].concat());
}

#[test]
fn a_src_image_of_another_file_system_is_imported_for_reflinks() {
    let Some(fs) = LoopFs::mount("xfs", Bytes::gib(1)) else { return };
    if !has("qemu-img") {
        return;
    }
    let elsewhere = build_dir();
    let src = elsewhere.path().join("src.raw");
    raw_image(&src, Bytes::mib(32));
    let store = Store::open(&fs.path()).expect("a usable base directory");
    let start = store.src_image(&src).expect("a raw image");
    assert!(!store.src_is_ready(&src).expect("a raw image"));
    let (_, disk) = forked(&store, &start, 1, Bytes::mib(40));
    assert_eq!((disk.format, disk.backing.len()), (DiskFormat::Raw, 0));
    assert!(store.src_is_ready(&src).expect("a raw image"));
    assert_eq!(store.prepare_src(&src, &mut |_| {}).expect("done before"), SrcKeeping::Imported);
    // A new version gets an entry of its own, and the old one, which nobody needs, goes.
    let newer = elsewhere.path().join("newer.raw");
    raw_image(&newer, Bytes::mib(33));
    std::fs::rename(&newer, &src).expect("replaceable");
    let start = store.src_image(&src).expect("a raw image");
    forked(&store, &start, 2, Bytes::mib(40));
    assert_eq!(src_entries(&store), 1);
    assert_eq!(
        store.sweep_src(std::slice::from_ref(&src)).expect("readable"),
        Vec::<PathBuf>::new()
    );
    assert_eq!(store.sweep_src(&[]).expect("readable"), [src]);
    assert_eq!(src_entries(&store), 0);
}

fn src_entries(store: &Store) -> usize {
    let entries = std::fs::read_dir(store.base_dir().join("src")).expect("there");
    let is_image = |name: &Path| name.extension().is_some_and(|end| end == "img");
    entries.filter(|entry| is_image(&entry.as_ref().expect("readable").path())).count()
}

#[test]
fn a_src_image_that_is_replaced_stays_for_those_that_are_built_on_it() {
    let dir = build_dir();
    let store = open_with(&dir.path().join("base"), Driver::Qcow2Overlay, None);
    let src = dir.path().join("src.raw");
    raw_image(&src, Bytes::mib(8));
    let start = store.src_image(&src).expect("a raw image");
    let (run, disk) = forked(&store, &start, 1, Bytes::mib(8));
    assert_eq!(promote(&store, &run), Generation(1));
    let inode = std::fs::metadata(&src).expect("there").ino();
    assert_eq!(std::fs::metadata(&disk.backing[0].path).expect("there").ino(), inode);

    let newer = dir.path().join("newer.raw");
    raw_image(&newer, Bytes::mib(9));
    std::fs::rename(&newer, &src).expect("replaceable");
    let start = store.src_image(&src).expect("a raw image");
    let (other, _) = forked(&store, &start, 2, Bytes::mib(10));
    assert_eq!(src_entries(&store), 2);
    let m = machine("o/r/m");
    assert!(store.machine_image(&m).expect("still sound").is_some());
    assert_eq!(store.sweep_src(&[]).expect("readable"), Vec::<PathBuf>::new());
    store.remove_run_dir(&other).expect("removable");
    assert_eq!(store.sweep_src(&[]).expect("readable"), [src]);
    assert_eq!(src_entries(&store), 1);
}

#[test]
fn a_src_image_that_is_changed_in_place_is_noticed() {
    let dir = build_dir();
    let store = open_with(&dir.path().join("base"), Driver::Qcow2Overlay, None);
    let src = dir.path().join("src.raw");
    raw_image(&src, Bytes::mib(8));
    let start = store.src_image(&src).expect("a raw image");
    let (run, _) = forked(&store, &start, 1, Bytes::mib(8));
    promote(&store, &run);
    let (late, _) = forked(&store, &start, 2, Bytes::mib(8));
    let file = File::options().write(true).open(&src).expect("writable");
    file.write_all_at(b"changed", 4096).expect("writable");
    file.set_modified(std::time::SystemTime::now() + std::time::Duration::from_secs(2))
        .expect("settable");
    let m = machine("o/r/m");
    let error = store.machine_image(&m).expect_err("a changed src image");
    assert!(matches!(&error, ImageError::SrcChanged { path } if *path == src), "{error}");
    let error = store.promote(&late, &Origin::default(), now(), &mut |_| {});
    assert!(matches!(error, Err(ImageError::SrcChanged { .. })));
    // The new content can be started from.
    let start = store.src_image(&src).expect("a raw image");
    forked(&store, &start, 3, Bytes::mib(8));
}

#[test]
fn a_guest_cannot_make_its_raw_disk_pass_for_an_overlay() {
    let Some(fs) = LoopFs::mount("xfs", Bytes::gib(1)) else { return };
    let base = fs.path();
    let store = Store::open(&base).expect("a usable base directory");
    let src = base.join("src.raw");
    raw_image(&src, Bytes::mib(1));
    let (run, disk) =
        forked(&store, &store.src_image(&src).expect("a raw image"), 1, Bytes::mib(1));
    let guest = File::options().write(true).open(&disk.path).expect("writable");
    guest.write_all_at(b"QFI\xfb\0\0\0\x03", 0).expect("writable");
    promote(&store, &run);
    let m = machine("o/r/m");
    let start = store.machine_image(&m).expect("readable").expect("a machine image");
    // Even by a store that makes overlays.
    let overlays = open_with(&base, Driver::Qcow2Overlay, None);
    let (_, disk) = forked(&overlays, &start, 2, Bytes::mib(2));
    assert_eq!(disk.backing[0].format, DiskFormat::Raw);
    if has("qemu-img") {
        run_qemu_check(&disk.path);
    }
}

#[test]
fn there_is_room_and_it_can_be_measured() {
    let dir = build_dir();
    let store = open_with(dir.path(), Driver::Qcow2Overlay, None);
    let space = store.space().expect("measurable");
    assert!(space.free > Bytes::mib(1) && space.free <= space.total);
}

/// Not asserted, but shown: how long forks take, by the image's size.
#[test]
fn forks_are_timed() {
    let Some(fs) = LoopFs::mount("xfs", Bytes::gib(70)) else { return };
    let base = fs.path();
    for driver in [Driver::Reflink, Driver::Qcow2Overlay] {
        let store = open_with(&base.join(format!("{driver:?}")), driver, None);
        for (number, gib) in (1..).zip([1, 10, 50]) {
            let src = base.join("src.raw");
            raw_image(&src, Bytes::gib(gib));
            let file = File::options().write(true).open(&src).expect("writable");
            // 64 MiB of data in as many pieces.
            for i in 1..64 {
                file.write_all_at(&[i as u8; 1 << 20], i * (gib << 24)).expect("room");
            }
            file.sync_all().expect("room");
            let start = store.src_image(&src).expect("a raw image");
            let started = Instant::now();
            store.prepare_src(&src, &mut |_| {}).expect("usable");
            let prepared = started.elapsed();
            let started = Instant::now();
            forked(&store, &start, number, Bytes::gib(gib + 1));
            let ms = started.elapsed().as_secs_f64() * 1000.0;
            println!("{driver:?}: fork of {gib} GiB in {ms:.2} ms (prepared in {prepared:.2?})");
            std::fs::remove_file(&src).expect("removable");
        }
    }
}

#[test]
fn overlays_go_on_as_overlays_where_reflinks_are_possible() {
    let Some(fs) = LoopFs::mount("xfs", Bytes::gib(1)) else { return };
    if !["qemu-img", "qemu-io"].into_iter().all(has) {
        return;
    }
    let base = fs.path();
    let src = base.join("src.raw");
    raw_image(&src, Bytes::mib(8));
    let overlays = open_with(&base, Driver::Qcow2Overlay, None);
    let start = overlays.src_image(&src).expect("a raw image");
    let (run, disk) = forked(&overlays, &start, 1, Bytes::mib(8));
    guest_writes(&disk, 0x11, MIB, 4096);
    promote(&overlays, &run);
    // As when a base directory was copied to a better file system.
    let store = Store::open(&base).expect("a usable base directory");
    assert_eq!(store.driver(), Driver::Reflink);
    let start = store.machine_image(&machine("o/r/m")).expect("readable").expect("an image");
    let (_, disk) = forked(&store, &start, 2, Bytes::mib(9));
    assert_eq!((disk.format, disk.backing.len()), (DiskFormat::Qcow2, 2));
    guest_reads(&disk.path, "qcow2", 0x11, MIB, 4096);
}

#[test]
fn opening_leaves_no_debris() {
    let dir = build_dir();
    Store::open(dir.path()).expect("a usable base directory");
    let found =
        stdout("find", &[dir.path().as_os_str(), "-name".as_ref(), ".forrest-tmp*".as_ref()]);
    assert_eq!(found, "");
}
