//! Disks whose QEMU was taken over: headers that name other files, and what else whoever may write to the
//! file can do to it. None becomes an image, and `qemu-img` opens nothing that it names.

use std::fs::{File, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use forrest_core::model::{Bytes, StartImage};
use forrest_images::durable::{FileOp, Hook};
use forrest_images::{
    Driver, ImageError, MAX_BACKING_DEPTH, Origin, RunDir, SnapshotKey, Store, snapshots,
};
use tempfile::TempDir;

mod fixture;

use fixture::*;

const MIB: u64 = 1 << 20;
const SIZE: Bytes = Bytes(16 * MIB);
const SECRET: &str = "the secret of the host";

/// A store, and beside it what no guest may see.
struct Host {
    dir: TempDir,
    store: Store,
    start: StartImage,
    port: TcpListener,
}

impl Host {
    fn new() -> Self {
        let dir = build_dir();
        let store = open_with(&dir.path().join("base"), Driver::Qcow2Overlay, None);
        let src = dir.path().join("src.raw");
        raw_image(&src, Bytes::mib(8));
        let start = store.src_image(&src).expect("a raw image");
        std::fs::write(dir.path().join("secret"), SECRET.repeat(100_000)).expect("writable");
        let port = TcpListener::bind("127.0.0.1:0").expect("a free port");
        port.set_nonblocking(true).expect("settable");
        Self { dir, store, start, port }
    }

    /// With so many generations that the next run's disk is written out when it is promoted.
    fn with_long_chain() -> Self {
        let mut host = Self::new();
        host.grow_chain();
        host
    }

    fn grow_chain(&mut self) {
        for number in 100..100 + MAX_BACKING_DEPTH as u8 {
            promote(&self.store, &forked(&self.store, &self.start, number, SIZE).0);
            self.start = self.current();
        }
    }

    fn current(&self) -> StartImage {
        let image = self.store.machine_image(&machine("o/r/m")).expect("readable");
        image.expect("a machine image")
    }

    fn secret(&self) -> PathBuf {
        self.dir.path().join("secret")
    }

    /// Everything in the store and beside it, but for the disk itself and what belongs to its run.
    fn listing(&self) -> String {
        let find = ["-not", "-path", "*/base/runs/*", "-type", "f", "-printf", "%p %s %T@\n"];
        let args = [&[self.dir.path().to_str().expect("UTF-8")], &find[..]].concat();
        stdout("find", &args)
    }

    /// Promotes the run twice, and sees it refused with this field named and nothing done.
    fn refuses(&self, run: &RunDir, field: &str, what: &str) {
        let before = self.listing();
        for _ in 0..2 {
            let promoted = self.store.promote(run, &Origin::default(), now(), &mut |_| {});
            let error = match promoted {
                Err(error @ ImageError::DiskChanged { .. }) => error.to_string(),
                other => panic!("{what}: {other:?}"),
            };
            println!("{what}: {error}");
            assert!(error.contains(&format!("the {field} of ")), "{what}: {error}");
            assert!(error.contains(run.runner().as_str()) && !error.contains(SECRET), "{error}");
            let own = error.contains(&format!("of {} is", run.disk().display()));
            let advice = if own { "The next job starts" } else { "roll back" };
            assert!(error.contains("is removed") && error.contains(advice), "{error}");
        }
        assert_eq!(before, self.listing(), "{what}");
        assert!(!self.has_leaked(), "{what}");
        let connection = self.port.accept().map(|(_, from)| from);
        assert!(connection.is_err(), "{what}: {connection:?} connected");
        assert!(!run.path().join("disk.flat.img").exists(), "{what}");
    }

    fn has_leaked(&self) -> bool {
        let base = self.dir.path().join("base");
        let found = Command::new("grep").args(["-r", "-l", "-F", SECRET]).arg(base).output();
        !found.expect("grep runs").stdout.is_empty()
    }

    /// A run that is restored from a snapshot.
    fn restored(&self, number: u8) -> RunDir {
        let (m, key) = (machine("o/r/m"), SnapshotKey::of(b"one"));
        let snapshot = self.store.find_snapshot(&key).expect("readable").unwrap_or_else(|| {
            let build = self.build(&key, 0xfe);
            self.store.finish_snapshot(&build, &key, self.start.clone(), now()).expect("complete")
        });
        let run = self.store.create_run_dir(&runner(&m, number), &m).expect("a new run");
        self.store.fork_from_snapshot(&snapshot, &run).expect("a disk");
        run
    }

    /// What a virtual machine leaves that a snapshot is to be made of.
    fn build(&self, key: &SnapshotKey, number: u8) -> RunDir {
        let m = machine("o/r/m");
        let build = self.store.begin_snapshot(key, &m, &runner(&m, number)).expect("a new build");
        let disk = self.store.fork(&self.start, &build, SIZE).expect("a disk");
        guest_writes(&disk, 0x11, 4 * MIB, MIB);
        for name in [snapshots::RAM, snapshots::STATE, "cloud-init.img"] {
            std::fs::write(build.path().join(name), name).expect("writable");
        }
        build
    }
}

/// Writes the name of another backing file, a raw one, in place of the recorded one.
fn names_backing(host: &Host, disk: &Path, name: &str) {
    let name = name.replace("SECRET", host.secret().to_str().expect("UTF-8"));
    let mut at = [0; 8];
    File::open(disk).and_then(|file| file.read_exact_at(&mut at, 8)).expect("a header");
    writes(disk, u64::from_be_bytes(at), name.as_bytes());
    writes(disk, 16, &(name.len() as u32).to_be_bytes());
    writes(disk, 108, &[0, 0, 0, 3]);
    writes(disk, 112, b"raw");
}

fn writes(disk: &Path, at: u64, bytes: &[u8]) {
    let file = File::options().write(true).open(disk).expect("writable");
    file.write_all_at(bytes, at).expect("writable");
}

fn resizes(disk: &Path, len: u64) {
    let file = File::options().write(true).open(disk).expect("writable");
    file.set_len(len).expect("resizable");
}

fn replaces(disk: &Path, by: impl FnOnce(&Path)) {
    std::fs::remove_file(disk).expect("removable");
    by(disk);
}

fn qemu_img(args: &[&str], disk: &Path) {
    let disk = disk.to_str().expect("UTF-8");
    let args: Vec<_> = args.iter().map(|arg| if *arg == "DISK" { disk } else { arg }).collect();
    run("qemu-img", &args);
}

/// A disk of QEMU's own making with all of its content in the secret file.
fn has_external_data(host: &Host, disk: &Path) {
    let kept = std::fs::read(host.secret()).expect("readable");
    let option = format!("data_file={},data_file_raw=on", host.secret().display());
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", &option, "DISK", "16M"], disk);
    std::fs::write(host.secret(), kept).expect("writable");
}

/// The recorded overlay, but with its content in the secret file.
fn has_data_elsewhere(host: &Host, disk: &Path) {
    let header = std::fs::read(disk).expect("readable");
    let at = u64::from_be_bytes(header[8..16].try_into().expect("8 bytes")) as usize;
    let len = u32::from_be_bytes(header[16..20].try_into().expect("4 bytes")) as usize;
    let data = host.secret().into_os_string().into_encoded_bytes();
    let mut rest = b"DATA".to_vec();
    rest.extend((data.len() as u32).to_be_bytes());
    rest.extend(&data);
    rest.resize(rest.len().next_multiple_of(8) + 8, 0);
    writes(disk, 8, &(120 + rest.len() as u64).to_be_bytes());
    rest.extend(&header[at..at + len]);
    writes(disk, 120, &rest);
    writes(disk, 79, &[4]);
}

/// Names the recorded backing file, with another format.
fn has_other_format(_: &Host, disk: &Path) {
    let mut format = [0; 5];
    let file = File::open(disk).expect("readable");
    file.read_exact_at(&mut format, 112).expect("a header");
    let other: &[u8] = if format == *b"qcow2" { b"raw" } else { b"qcow2" };
    writes(disk, 108, &(other.len() as u32).to_be_bytes());
    writes(disk, 112, other);
}

type Change = (&'static str, &'static str, fn(&Host, &Path));

/// What is changed, the field that the refusal names, and how.
const CHANGES: &[Change] = &[
    ("another file", "backing file", |host, disk| names_backing(host, disk, "SECRET")),
    ("a json: name", "backing file", |host, disk| {
        let name = r#"json:{"driver":"raw","file":{"driver":"file","filename":"SECRET"}}"#;
        names_backing(host, disk, name);
    }),
    ("a server", "backing file", |host, disk| {
        let address = host.port.local_addr().expect("bound");
        names_backing(host, disk, &format!("nbd:{address}:exportname=x"));
    }),
    ("another file, by qemu-img", "backing file", |host, disk| {
        let secret = host.secret();
        let secret = secret.to_str().expect("UTF-8");
        qemu_img(&["rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", secret, "DISK"], disk);
    }),
    ("a file that is none of its chain", "backing file", |host, disk| {
        names_backing(host, disk, host.dir.path().join("src.raw").to_str().expect("UTF-8"));
    }),
    ("another format", "format of the backing file", has_other_format),
    ("no format", "format of the backing file", |_, disk| writes(disk, 104, &[0; 16])),
    ("data in another file", "set of incompatible features", has_external_data),
    (
        "data in another file, with a backing file",
        "set of incompatible features",
        has_data_elsewhere,
    ),
    ("the name of a file with the data", "kind of a header extension", |_, disk| {
        writes(disk, 104, b"DATA");
    }),
    ("an unknown feature", "set of incompatible features", |_, disk| writes(disk, 72, &[0x80])),
    ("a dirty image", "set of incompatible features", |_, disk| writes(disk, 79, &[1])),
    ("a bitmap", "set of autoclear features", |_, disk| {
        qemu_img(&["bitmap", "-f", "qcow2", "--add", "DISK", "b"], disk);
    }),
    ("lazy reference counts", "set of compatible features", |_, disk| writes(disk, 87, &[1])),
    ("encryption", "encryption method", |_, disk| writes(disk, 35, &[2])),
    ("an internal snapshot", "number of internal snapshots", |_, disk| writes(disk, 63, &[1])),
    ("an older version", "version", |_, disk| writes(disk, 7, &[2])),
    ("a larger disk", "virtual size", |_, disk| {
        qemu_img(&["resize", "-q", "-f", "qcow2", "DISK", "20M"], disk);
    }),
    ("a smaller disk", "virtual size", |_, disk| {
        writes(disk, 24, &(8 * MIB).to_be_bytes());
    }),
    ("nothing", "header", |_, disk| resizes(disk, 0)),
    ("a piece of a header", "header", |_, disk| resizes(disk, 110)),
    ("a header without tables", "header", |_, disk| resizes(disk, 4096)),
    ("garbage", "header", |_, disk| writes(disk, 0, &[0xa5; 4096])),
    ("extensions without end", "header", |_, disk| writes(disk, 108, &[0xff; 4])),
    ("a link", "kind", |host, disk| {
        let secret = host.secret();
        replaces(disk, |disk| std::os::unix::fs::symlink(secret, disk).expect("writable"));
    }),
];

fn all_refused(host: &Host, mut new: impl FnMut(u8) -> RunDir) {
    for (number, (what, field, change)) in (1..).zip(CHANGES) {
        let run = new(number);
        change(host, &run.disk());
        host.refuses(&run, field, what);
        // As the daemon does then.
        host.store.remove_run_dir(&run).expect("removable");
    }
}

fn programs() -> bool {
    ["qemu-img", "qemu-io"].into_iter().all(has)
}

#[test]
fn a_changed_overlay_is_not_promoted() {
    if !programs() {
        return;
    }
    let host = Host::new();
    all_refused(&host, |number| forked(&host.store, &host.start, number, SIZE).0);
    // The next job's disk is.
    promote(&host.store, &forked(&host.store, &host.start, 99, SIZE).0);
}

#[test]
fn a_changed_overlay_is_not_written_out() {
    if !programs() {
        return;
    }
    let host = Host::with_long_chain();
    all_refused(&host, |number| forked(&host.store, &host.start, number, SIZE).0);
    promote(&host.store, &forked(&host.store, &host.start, 99, SIZE).0);
    let history = host.store.history(&machine("o/r/m")).expect("readable");
    let newest = history.last().and_then(|info| info.lineage.as_ref()).expect("a lineage");
    assert_eq!(newest.backing, None, "it was not written out");
}

#[test]
fn a_changed_overlay_is_not_taken_off_its_snapshot() {
    if !programs() {
        return;
    }
    let host = Host::new();
    all_refused(&host, |number| host.restored(number));
    promote(&host.store, &host.restored(99));
}

/// As it may have become an image before disks were looked at, or by somebody's hand.
#[test]
fn an_image_below_that_was_changed_is_not_read() {
    if !programs() {
        return;
    }
    // The chain that is written out, and one that is left as it is, but which the next job would have.
    let mut short = Host::new();
    promote(&short.store, &forked(&short.store, &short.start, 1, SIZE).0);
    short.start = short.current();
    for (host, layer) in [(Host::with_long_chain(), 2), (short, 0)] {
        let (run, disk) = forked(&host.store, &host.start, 2, SIZE);
        let image = &disk.backing[layer].path;
        let sound = std::fs::read(image).expect("readable");
        std::fs::set_permissions(image, Permissions::from_mode(0o600)).expect("settable");
        for (what, field, change) in CHANGES.iter().filter(|(_, field, _)| *field != "kind") {
            change(&host, image);
            host.refuses(&run, field, &format!("{what}, {layer} below"));
            std::fs::write(image, &sound).expect("writable");
        }
        promote(&host.store, &run);
    }
}

#[test]
fn a_changed_disk_makes_no_snapshot() {
    if !programs() {
        return;
    }
    let host = Host::new();
    let key = SnapshotKey::of(b"two");
    let build = host.build(&key, 1);
    names_backing(&host, &build.disk(), "SECRET");
    let made = host.store.finish_snapshot(&build, &key, host.start.clone(), now());
    assert!(matches!(made, Err(ImageError::DiskChanged { field: "backing file", .. })), "{made:?}");
    assert_eq!(host.store.find_snapshot(&key).expect("readable"), None);
}

/// A raw image can hold anything, an overlay's header too.
#[test]
fn a_raw_image_is_raw_whatever_it_holds() {
    if !programs() {
        return;
    }
    let mut host = Host::new();
    // The layout of earlier Forrests, with the image that a guest of theirs left.
    let plain = host.dir.path().join("base/machines/o/r/m.img");
    std::fs::create_dir_all(plain.parent().expect("below the base")).expect("writable");
    let secret = host.secret();
    let secret = secret.to_str().expect("UTF-8");
    qemu_img(&["create", "-q", "-f", "qcow2", "-F", "raw", "-b", secret, "DISK", "1M"], &plain);
    resizes(&plain, 8 * MIB);
    host.store = open_with(&host.dir.path().join("base"), Driver::Qcow2Overlay, None);
    host.start = host.current();
    host.grow_chain();
    promote(&host.store, &forked(&host.store, &host.start, 99, SIZE).0);
    let info = host.store.history(&machine("o/r/m")).expect("readable").pop().expect("an image");
    assert_eq!(info.lineage.expect("a lineage").backing, None, "it was not written out");
    assert!(!host.has_leaked());
    guest_reads(&info.path, "qcow2", b'Q', 0, 1);
    guest_reads(&info.path, "qcow2", 0, 7 * MIB, MIB);
}

#[test]
fn a_changed_raw_disk_is_not_promoted() {
    let Some(fs) = LoopFs::mount("xfs", Bytes::gib(1)) else { return };
    let mut host = Host::new();
    let base = fs.path().join("base");
    host.store = open_with(&base, Driver::Reflink, None);
    let src = fs.path().join("src.raw");
    raw_image(&src, Bytes::mib(8));
    host.start = host.store.src_image(&src).expect("a raw image");
    let changes: [Change; 4] = [
        ("a longer disk", "length", |_, disk| resizes(disk, 64 * MIB)),
        ("a shorter disk", "length", |_, disk| resizes(disk, 4096)),
        ("a link", "kind", |host, disk| {
            let secret = host.secret();
            replaces(disk, |disk| std::os::unix::fs::symlink(secret, disk).expect("writable"));
        }),
        ("an overlay", "length", |host, disk| {
            let secret = host.secret();
            let secret = secret.to_str().expect("UTF-8");
            let size = SIZE.0.to_string();
            qemu_img(
                &["create", "-q", "-f", "qcow2", "-F", "raw", "-b", secret, "DISK", &size],
                disk,
            );
        }),
    ];
    for (number, (what, field, change)) in (1..).zip(changes) {
        if what == "an overlay" && !has("qemu-img") {
            continue;
        }
        let run = forked(&host.store, &host.start, number, SIZE).0;
        change(&host, &run.disk());
        host.refuses(&run, field, what);
        host.store.remove_run_dir(&run).expect("removable");
    }
    promote(&host.store, &forked(&host.store, &host.start, 99, SIZE).0);
}

/// The records lag behind the disk by one step, which is not taken for somebody else's work.
#[test]
fn what_an_interrupted_promotion_did_to_the_disk_is_known() {
    if !programs() {
        return;
    }
    let interrupted: Hook = Arc::new(|op| match op {
        FileOp::Rename { to, .. } if to.ends_with("disk.json") => {
            Err(std::io::Error::other("the world has ended"))
        }
        _ => Ok(()),
    });
    for restored in [true, false] {
        let host = if restored { Host::new() } else { Host::with_long_chain() };
        let run = match restored {
            true => host.restored(1),
            false => forked(&host.store, &host.start, 1, SIZE).0,
        };
        let disk = host.store.run_disk(&run).expect("readable").expect("a disk");
        guest_writes(&disk, 0x33, 12 * MIB, MIB);
        let recorded = std::fs::read(run.path().join("disk.json")).expect("readable");
        let base = host.dir.path().join("base");
        let ending = open_with(&base, Driver::Qcow2Overlay, Some(Arc::clone(&interrupted)));
        let promoted = ending.promote(&run, &Origin::default(), now(), &mut |_| {});
        assert!(matches!(promoted, Err(ImageError::Io { .. })), "{promoted:?}");
        assert_eq!(std::fs::read(run.path().join("disk.json")).expect("readable"), recorded);

        promote(&host.store, &run);
        let info = host.store.history(&machine("o/r/m")).expect("readable").pop();
        let info = info.expect("a generation");
        let backing = info.lineage.expect("a lineage").backing;
        assert_eq!(backing.is_some(), restored, "{backing:?}");
        guest_reads(&info.path, "qcow2", 0x33, 12 * MIB, MIB);
        guest_reads(&info.path, "qcow2", 0x5a, 4096, 4096);
        if restored {
            guest_reads(&info.path, "qcow2", 0x11, 4 * MIB, MIB / 2);
        }
    }
}
