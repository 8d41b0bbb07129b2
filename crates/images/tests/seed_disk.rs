//! Seed disks against the programs that others use to read FAT. The kernel has its say in the stories with
//! real guests, which mount the job-config disk and write to it.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;

use forrest_core::model::Bytes;
use forrest_images::readback::{ReadBack, read_file};
use forrest_images::seed::{CIDATA, JOBDATA, SEED_SIZE, SeedFiles, write_fat};
use forrest_images::{ImageError, Store};

#[expect(dead_code, reason = "each test binary uses some of it")]
mod fixture;

use fixture::{build_dir, has, run, stdout};

fn files() -> SeedFiles {
    SeedFiles::from_iter([
        ("user-data", b"#cloud-config\n".repeat(1000)),
        ("meta-data", b"instance-id: x\n".to_vec()),
        ("network-config", Vec::new()),
        ("UPPER.TXT", b"upper".to_vec()),
        ("lower.sh", vec![b'x'; 512]),
        ("a very long name, with spaces and \u{fc}ml\u{e4}uts.config", vec![b'y'; 513]),
        ("sub/dir/file.txt", vec![b'z'; 100_000]),
        ("sub/other", b"o".to_vec()),
        ("exactly13char", b"13".to_vec()),
    ])
}

#[test]
fn mtools_fsck_and_blkid_agree_with_what_was_written() {
    if !["mcopy", "fsck.vfat", "blkid"].into_iter().all(has) {
        return;
    }
    let dir = build_dir();
    let image = dir.path().join("seed.img");
    for size in [Bytes(256 << 10), Bytes::mib(1), Bytes(2 << 20), SEED_SIZE, Bytes::mib(64)] {
        write_fat(&image, CIDATA, &files(), size).expect("the files fit");
        let metadata = std::fs::metadata(&image).expect("the image is there");
        assert_eq!(metadata.len(), size.0);
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
        let path = image.as_os_str();
        let verdict = stdout("fsck.vfat", &["-n".as_ref(), "-v".as_ref(), path]);
        // Nine files, two directories, the label.
        assert!(!verdict.contains("differ") && verdict.contains("12 files"), "{size}: {verdict}");
        let facts = stdout("blkid", &["-p".as_ref(), "-o".as_ref(), "export".as_ref(), path]);
        for fact in ["LABEL=CIDATA", "LABEL_FATBOOT=CIDATA", "TYPE=vfat"] {
            assert!(facts.contains(fact), "{size}: {facts}");
        }
        let out = dir.path().join("out");
        std::fs::create_dir(&out).expect("a new directory");
        let image_option = ["-s", "-n", "-i", image.to_str().expect("UTF-8"), "::/"];
        let mut args: Vec<&std::ffi::OsStr> = image_option.iter().map(AsRef::as_ref).collect();
        args.push(out.as_os_str());
        run("mcopy", &args);
        for (name, content) in &files().0 {
            // mtools prints non-ASCII characters in its own way.
            if name.is_ascii() {
                let read = std::fs::read(out.join(name)).expect(name);
                assert_eq!(&read, &**content, "{size}: {name}");
            }
        }
        std::fs::remove_dir_all(&out).expect("removable");
    }
}

#[test]
fn what_other_programs_wrote_is_read_back() {
    if !["mkfs.vfat", "mcopy"].into_iter().all(has) {
        return;
    }
    let dir = build_dir();
    let image = dir.path().join("disk.img");
    let token = dir.path().join("token");
    let text = b"s3cret\n".repeat(300);
    std::fs::write(&token, &text).expect("writable");
    let path = image.to_str().expect("UTF-8");
    for (bits, mib) in [("12", 4), ("16", 32), ("32", 64)] {
        for name in ["persist", "PERSIST"] {
            let file = std::fs::File::create(&image).expect("writable");
            file.set_len(mib << 20).expect("a sparse file");
            run("mkfs.vfat", &["-F", bits, path]);
            for i in 0..100 {
                let other = format!("::/a long file name {i}");
                run("mcopy", &["-i", path, token.to_str().expect("UTF-8"), &other]);
            }
            assert_eq!(read_file(&image, "persist", 4096).expect("readable"), ReadBack::Absent);
            let to = format!("::/{name}");
            run("mcopy", &["-i", path, token.to_str().expect("UTF-8"), &to]);
            match read_file(&image, "persist", 4096).expect("readable") {
                ReadBack::Content(content) => assert_eq!(&**content, text, "FAT{bits}"),
                other => panic!("FAT{bits} {name}: {other:?}"),
            }
        }
    }
}

#[test]
fn the_same_files_give_the_same_bytes() {
    let dir = build_dir();
    let [one, two] = ["1.img", "2.img"].map(|name| dir.path().join(name));
    write_fat(&one, JOBDATA, &files(), SEED_SIZE).expect("the files fit");
    write_fat(&two, JOBDATA, &files(), SEED_SIZE).expect("the files fit");
    // Over what is there, too.
    write_fat(&two, JOBDATA, &files(), SEED_SIZE).expect("the files fit");
    assert!(std::fs::read(one).expect("there") == std::fs::read(two).expect("there"));
}

#[test]
fn an_empty_disk_that_somebody_has_open_is_filled() {
    let dir = build_dir();
    let store = Store::open(dir.path()).expect("an empty store");
    let [open, fresh] = ["open.img", "fresh.img"].map(|name| dir.path().join(name));
    store.write_seed(&open, JOBDATA, &SeedFiles::default()).expect("no files fit");
    let mut reader = File::open(&open).expect("there");
    store.fill_seed(&open, JOBDATA, &files()).expect("the files fit");
    store.write_seed(&fresh, JOBDATA, &files()).expect("the files fit");
    // By whom has had it open since before.
    let mut filled = Vec::new();
    reader.read_to_end(&mut filled).expect("readable");
    assert!(filled == std::fs::read(&fresh).expect("there"));
    let missing = dir.path().join("missing.img");
    let error = store.fill_seed(&missing, JOBDATA, &files()).expect_err("there is no such disk");
    assert!(error.to_string().contains("missing.img"), "{error}");
    assert!(!missing.exists());
}

#[test]
fn what_does_not_fit_is_refused() {
    let dir = build_dir();
    let image = dir.path().join("seed.img");
    let refusal = |files: SeedFiles, size| {
        let error = write_fat(&image, CIDATA, &files, size).expect_err("a refusal");
        assert!(!image.exists(), "nothing is left behind");
        error
    };
    let big = SeedFiles::from_iter([("x", vec![0; 4 << 20])]);
    assert!(matches!(refusal(big, SEED_SIZE), ImageError::SeedFull { .. }));
    let many: SeedFiles = (0..300).map(|i| (format!("file number {i}"), Vec::new())).collect();
    assert!(matches!(refusal(many, SEED_SIZE), ImageError::SeedFull { .. }));
    assert!(matches!(refusal(files(), Bytes(100)), ImageError::SeedFull { .. }));
    for name in ["", "/x", "x/", "a//b", "..", "a:b", "a\nb", "end.", "end ", &"x".repeat(256)] {
        let files = SeedFiles::from_iter([(name, Vec::new())]);
        assert!(matches!(refusal(files, SEED_SIZE), ImageError::SeedName { .. }), "{name:?}");
    }
    for (one, other) in [("a", "A"), ("d/x", "D/X"), ("d", "d/x")] {
        let files = SeedFiles::from_iter([(one, Vec::new()), (other, Vec::new())]);
        let error = refusal(files, SEED_SIZE);
        assert!(matches!(error, ImageError::SeedName { .. }), "{one:?} {other:?}");
    }
}
