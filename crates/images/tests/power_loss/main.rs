//! The power fails, at any moment: what was not forced to the disk may be gone, half there, or there in
//! another order ([`disk`]). Afterwards the store has to open, the current generation has to be the old
//! one or the new one, and the file system inside of it has to be whole.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use forrest_core::model::{Bytes, Generation, ImageRef};
use forrest_images::{
    DiskFormat, Driver, ImageError, Origin, RunDir, RunDisk, Store, StoreOptions,
};

mod disk;
#[expect(dead_code, reason = "each test binary uses some of it")]
#[path = "../fixture/mod.rs"]
mod fixture;

use disk::{Loss, Recorder};
use fixture::*;

/// The file system in the guests' disks: large enough for a journal.
const SIZE: Bytes = Bytes::mib(4);
/// Fates by dice, for each moment.
const DICE: u64 = 2;

/// A directory in memory where that is possible: for tests to which it does not matter whether something
/// reaches a disk, and that would wait for it a thousand times.
fn memory_dir() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| build_dir())
}

/// An ext4 file system with a file that says which one it is.
fn guest_file_system(dir: &Path, number: u32) -> PathBuf {
    let files = dir.join(format!("files-{number}"));
    std::fs::create_dir(&files).expect("a new directory");
    let text = format!("left by run {number}\n").repeat(20_000);
    std::fs::write(files.join("which"), text).expect("written");
    let image = dir.join(format!("fs-{number}.raw"));
    File::create(&image).and_then(|file| file.set_len(SIZE.0)).expect("a sparse file");
    let args = ["-q", "-F", "-b", "1024", "-d"].map(Into::into);
    let paths = [files.into_os_string(), image.clone().into_os_string()];
    run("mkfs.ext4", &[args.as_slice(), paths.as_slice()].concat());
    image
}

/// Images, with numbers that are equal for equal content.
type Images = Vec<(PathBuf, usize)>;

/// What happens on the host until the power fails.
struct Host {
    /// Not lost: what the operator has, and what is expected.
    safe: tempfile::TempDir,
    base: PathBuf,
    driver: Driver,
    recorder: Arc<Recorder>,
    store: Store,
    /// What the guest left in each generation.
    left: BTreeMap<u32, Vec<u8>>,
    /// Contents of generations that were looked into, and found as they were left: once is enough.
    clean: RefCell<BTreeSet<(u32, Images)>>,
}

impl Host {
    /// A host whose store is at `base`, empty.
    fn new(base: &Path, driver: Driver) -> Self {
        let safe = memory_dir();
        // The operator's image was there long before.
        raw_image(&base.join("src.raw"), Bytes::mib(1));
        let recorder = Recorder::begin(base);
        let options = StoreOptions {
            driver: Some(driver),
            hook: Some(recorder.hook()),
            boot_id: Some("before".to_owned()),
        };
        let store = Store::open_with(base, options).expect("a usable base directory");
        let base = base.to_owned();
        Self {
            safe,
            base,
            driver,
            recorder,
            store,
            left: BTreeMap::new(),
            clean: RefCell::default(),
        }
    }

    /// A run whose guest wrote a whole file system, and forced none of it to the disk.
    fn guest_ran(&mut self, number: u32) -> RunDir {
        let current = self.store.machine_image(&machine("o/r/m")).expect("readable");
        let src = || self.store.src_image(&self.base.join("src.raw")).expect("a raw image");
        let start = current.unwrap_or_else(src);
        let runner = u8::try_from(number).expect("few runs");
        let (run, disk) = forked(&self.store, &start, runner, SIZE);
        let image = guest_file_system(self.safe.path(), number);
        write_all(&disk, &image);
        self.left.insert(number, std::fs::read(image).expect("readable"));
        run
    }

    fn promote(&mut self, number: u32) -> RunDir {
        let run = self.guest_ran(number);
        assert_eq!(promote(&self.store, &run), Generation(number));
        run
    }

    /// What the store is after the power came back.
    fn reopened(&self) -> Store {
        let options = StoreOptions {
            driver: Some(self.driver),
            hook: None,
            boot_id: Some("after".to_owned()),
        };
        Store::open_with(&self.base, options).expect("the store opens after a power loss")
    }

    /// Lets the power fail at every moment from `from` on, in every way, and has each of the remains
    /// judged that is not in `seen`.
    fn lose_power(
        &self,
        from: usize,
        seen: &mut Seen,
        judge: &dyn Fn(&Self, usize) -> Result<(), String>,
    ) -> Result<(), String> {
        let simple = [Loss::Everything, Loss::Content, Loss::Torn, Loss::Names];
        for at in from..self.recorder.len() {
            let dice = (0..DICE).map(|n| Loss::Dice(n * 1000 + at as u64));
            for loss in simple.into_iter().chain(dice) {
                let remains = self.recorder.after(at, loss);
                // Whether something had succeeded by then is part of what is judged.
                if !seen.insert((remains.fingerprint(), at + 1 == self.recorder.len())) {
                    continue;
                }
                remains.build(&self.base);
                judge(self, at).map_err(|why| format!("before change {at} ({loss:?}): {why}"))?;
            }
        }
        Ok(())
    }
}

/// Remains that need not be judged again, by their fingerprints and by whether all was done.
type Seen = BTreeSet<(u64, bool)>;

/// As a guest would, through QEMU's own code, without a flush.
fn write_all(disk: &RunDisk, image: &Path) {
    let command = format!("write -s {} 0 {}", image.display(), SIZE.0);
    let path = disk.path.display().to_string();
    run("qemu-io", &["-t", "unsafe", "-f", disk.format.qemu_name(), "-c", &command, &path]);
}

fn current(store: &Store) -> Result<u32, String> {
    match store.machine_image(&machine("o/r/m")).map_err(|error| error.to_string())? {
        Some(start) => match start.image {
            ImageRef::Machine { generation, .. } => Ok(generation.0),
            ImageRef::Src { .. } => Err("a src image is current".to_owned()),
        },
        None => Ok(0),
    }
}

/// Whether each generation that a run could start from holds what its guest left, file system included.
fn whole(host: &Host, store: &Store) -> Result<(), String> {
    let history = store.history(&machine("o/r/m")).map_err(|error| error.to_string())?;
    let flat = host.safe.path().join("flat.raw");
    for found in history.iter().filter(|found| found.broken.is_none()) {
        let Some(lineage) = &found.lineage else { continue };
        let number = found.generation.0;
        let content = (number, images_in(&host.base));
        if host.clean.borrow().contains(&content) {
            continue;
        }
        let image = match lineage.format {
            DiskFormat::Raw => &found.path,
            DiskFormat::Qcow2 => {
                flatten(&found.path, &flat).map_err(|why| format!("generation {number}: {why}"))?;
                &flat
            }
        };
        if Some(&std::fs::read(image).expect("readable")) != host.left.get(&number) {
            return Err(format!("generation {number} is torn"));
        }
        let checked = Command::new("e2fsck").arg("-fn").arg(image).output();
        if !checked.is_ok_and(|checked| checked.status.success()) {
            return Err(format!("the file system in generation {number} is damaged"));
        }
        host.clean.borrow_mut().insert(content);
    }
    Ok(())
}

/// Equal for equal content of all generations, and of what they are built on.
fn images_in(base: &Path) -> Images {
    let mut images = Vec::new();
    for dir in ["machines/o/r/m", "src"] {
        let entries = std::fs::read_dir(base.join(dir)).into_iter().flatten().flatten();
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "img"));
        paths.sort();
        let read = |path: PathBuf| {
            let id = disk::id_of(&std::fs::read(&path).expect("readable"));
            (path, id)
        };
        images.extend(paths.into_iter().map(read));
    }
    images
}

fn flatten(image: &Path, flat: &Path) -> Result<(), String> {
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-f", "qcow2", "-O", "raw"]).args([image, flat]);
    let output = convert.output().map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(()),
        false => Err("cannot be read".to_owned()),
    }
}

/// The old generation or the new one, whole, and the store goes on.
fn old_or_new(host: &Host, run: &RunDir, old: u32, new: u32, done: bool) -> Result<(), String> {
    let store = host.reopened();
    let found = current(&store)?;
    if found != new && (found != old || done) {
        return Err(format!("generation {found} is current, not {old} or {new} (done: {done})"));
    }
    whole(host, &store)?;
    // A disk from before the power loss is not promoted after it, however often that is asked for.
    match store.promote(run, &Origin::default(), now(), &mut |_| {}) {
        Ok(generation) if generation.0 == new && found == new => {}
        Ok(generation) => return Err(format!("promoted to {generation}, {found} was current")),
        Err(ImageError::HostRestarted { .. } | ImageError::NoDisk { .. }) if found == old => {}
        Err(ImageError::BadRecord { .. }) if found == old => {}
        Err(error) => return Err(error.to_string()),
    }
    store.remove_run_dir(run).map_err(|error| error.to_string())?;
    whole(host, &store)
}

fn programs() -> bool {
    ["qemu-img", "qemu-io", "mkfs.ext4", "e2fsck"].into_iter().all(has)
}

fn promotion(base: &Path, driver: Driver, earlier: u32) {
    let mut host = Host::new(base, driver);
    for number in 1..=earlier {
        host.promote(number);
    }
    let from = host.recorder.len();
    let run = host.promote(earlier + 1);
    host.recorder.end();
    let last = host.recorder.len() - 1;
    let mut seen = Seen::new();
    let judge = |host: &Host, at| old_or_new(host, &run, earlier, earlier + 1, at == last);
    host.lose_power(from, &mut seen, &judge).expect("a power loss is survived");
    let remains = seen.len();
    println!("{remains} different remains of a promotion to generation {}", earlier + 1);
    assert!(remains > 20, "{remains}");
}

#[test]
fn a_promotion_survives_a_power_loss_with_overlays() {
    if !programs() {
        return;
    }
    for earlier in [0, 1] {
        promotion(memory_dir().path(), Driver::Qcow2Overlay, earlier);
    }
}

#[test]
fn a_promotion_survives_a_power_loss_with_reflinks() {
    if !programs() {
        return;
    }
    let Some(fs) = LoopFs::mount_in(memory_dir(), "xfs", Bytes::mib(512)) else { return };
    for earlier in [0, 1] {
        let base = fs.path().join(format!("base-{earlier}"));
        std::fs::create_dir(&base).expect("a new directory");
        promotion(&base, Driver::Reflink, earlier);
    }
}

/// What would be lost without the `fsync`s of each file and directory in turn? It proves that this test
/// sees what it looks for, and that none of them is there for nothing but one: that of the run's directory,
/// which keeps a disk from having two names.
#[test]
fn without_one_of_its_fsyncs_a_promotion_would_not_survive() {
    if !programs() {
        return;
    }
    let dir = memory_dir();
    let mut host = Host::new(dir.path(), Driver::Qcow2Overlay);
    host.promote(1);
    let from = host.recorder.len();
    let run = host.promote(2);
    host.recorder.end();
    let last = host.recorder.len() - 1;
    let judge = |host: &Host, at: usize| old_or_new(host, &run, 1, 2, at == last);
    let mut harmless = Seen::new();
    host.lose_power(from, &mut harmless, &judge).expect("a power loss is survived");
    let mut syncs: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (at, path) in host.recorder.syncs().into_iter().filter(|(at, _)| *at >= from) {
        let name = path.display().to_string().replace(run.runner().as_str(), "RUN");
        syncs.entry(without_tmp_number(&name)).or_default().push(at);
    }
    let mut verdicts = Vec::new();
    for (name, moments) in syncs {
        host.recorder.without_syncs(&moments, || {
            let survived = host.lose_power(from, &mut harmless.clone(), &judge);
            let why = survived.err().unwrap_or_else(|| ": nothing".to_owned());
            let why = why.split_once(": ").map_or("", |(_, why)| why).to_owned();
            verdicts.push(format!("{name} ({}): {why}", moments.len()));
        });
    }
    assert_eq!(
        verdicts.join("\n"),
        "machines/o/r (1): generation 1 is current, not 1 or 2 (done: true)\n\
         machines/o/r/m (3): generation 1 is current, not 1 or 2 (done: true)\n\
         machines/o/r/m/TMP (2): generation 1 is current, not 1 or 2 (done: true)\n\
         runs/o/r/m/RUN (1): nothing\n\
         runs/o/r/m/RUN/disk.img (2): generation 2: cannot be read"
    );
}

fn without_tmp_number(line: &str) -> String {
    match line.split_once(".forrest-tmp.") {
        Some((before, after)) => {
            let after = after.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
            format!("{before}TMP{after}")
        }
        None => line.to_owned(),
    }
}

#[test]
fn going_back_survives_a_power_loss() {
    if !programs() {
        return;
    }
    let dir = memory_dir();
    let mut host = Host::new(dir.path(), Driver::Qcow2Overlay);
    for number in 1..=3 {
        host.promote(number);
    }
    let from = host.recorder.len();
    let gone_back = host.store.roll_back(&machine("o/r/m"), Some(Generation(1)));
    assert_eq!(gone_back.expect("possible"), Generation(1));
    host.recorder.end();
    let last = host.recorder.len() - 1;
    let survived = host.lose_power(from, &mut Seen::new(), &|host, at| {
        let store = host.reopened();
        let found = current(&store)?;
        if found != 1 && (found != 3 || at == last) {
            return Err(format!("generation {found} is current"));
        }
        whole(host, &store)
    });
    survived.expect("a power loss is survived");
}

#[test]
fn marking_broken_and_removing_survive_a_power_loss() {
    if !programs() {
        return;
    }
    let m = machine("o/r/m");
    let dir = memory_dir();
    // On reflinks or not: these generations stand alone.
    let mut host = Host::new(dir.path(), Driver::Qcow2Overlay);
    for number in 1..=3 {
        host.promote(number);
    }
    let from = host.recorder.len();
    let below = host.store.mark_broken(&m, Generation(3), "does not boot", now());
    assert_eq!(below.expect("there"), Some(Generation(2)));
    let marked = host.recorder.len();
    host.store.prune(&m, 1).expect("removable");
    host.recorder.end();
    let survived = host.lose_power(from, &mut Seen::new(), &|host, at| {
        let store = host.reopened();
        let found = current(&store)?;
        if found != 2 && (found != 3 || at >= marked) {
            return Err(format!("generation {found} is current"));
        }
        whole(host, &store)
    });
    survived.expect("a power loss is survived");
}
