//! Crashes between any two changes of the file system, by a hook that refuses one of them and all that
//! follow: what is found afterwards must be the old state or the new one, and going on must work.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use forrest_core::model::{Bytes, Generation, ImageRef, StartImage};
use forrest_images::durable::Hook;
use forrest_images::{Driver, ImageError, Origin, RunDir, Store};

#[expect(dead_code, reason = "each test binary uses some of it")]
mod fixture;

use fixture::*;

/// A world that ends before the operation with this number, from 0.
fn crash_before(number: usize) -> (Hook, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&count);
    let hook: Hook = Arc::new(move |_| {
        if seen.fetch_add(1, Ordering::SeqCst) < number {
            Ok(())
        } else {
            Err(io::Error::other("the world has ended"))
        }
    });
    (hook, count)
}

/// The current generation's number, or 0.
fn current(store: &Store) -> u32 {
    match store.machine_image(&machine("o/r/m")).expect("readable").map(|start| start.image) {
        Some(ImageRef::Machine { generation, .. }) => generation.0,
        Some(ImageRef::Src { .. }) => panic!("no machine image"),
        None => 0,
    }
}

/// What the files say, whatever the store thinks of them.
fn link(base: &Path) -> Option<String> {
    let target = std::fs::read_link(base.join("machines/o/r/m.img")).ok()?;
    Some(target.display().to_string())
}

/// Everything that must hold once a store was opened.
fn check_settled(base: &Path) {
    let store = open(base);
    let m = machine("o/r/m");
    let now = current(&store);
    assert_eq!(link(base), (now > 0).then(|| format!("m/{now:06}.img")));
    let history = store.history(&m).expect("readable");
    assert!(history.iter().all(|generation| generation.lineage.is_some()), "{history:?}");
    for generation in &history {
        let name = generation.path.file_stem().expect("a name").to_string_lossy().into_owned();
        assert!(generation.path.with_file_name(format!("{name}.json")).is_file());
    }
    let args = [base.join("machines").into_os_string(), "-name".into(), ".forrest-tmp*".into()];
    assert_eq!(stdout("find", &args), "");
    // Opening again changes nothing.
    let before = stdout("find", &[base.join("machines").into_os_string(), "-ls".into()]);
    open(base);
    assert_eq!(before, stdout("find", &[base.join("machines").into_os_string(), "-ls".into()]));
}

fn open(base: &Path) -> Store {
    open_with(base, Driver::Qcow2Overlay, None)
}

/// A store with `generations` generations and one more run that waits to be promoted.
fn prepare(base: &Path, generations: u8) -> RunDir {
    let store = open(base);
    let src = base.join("src.raw");
    raw_image(&src, Bytes::mib(1));
    let start = |store: &Store| -> StartImage {
        let machine = store.machine_image(&machine("o/r/m")).expect("readable");
        machine.unwrap_or_else(|| store.src_image(&src).expect("a raw image"))
    };
    for number in 0..generations {
        let (run, _) = forked(&store, &start(&store), number, Bytes::mib(1));
        promote(&store, &run);
    }
    forked(&store, &start(&store), generations, Bytes::mib(1)).0
}

/// Crashes before each operation of `action` in turn, on a fresh base each time, and hands the base to
/// `judge`, until the action gets through. Opening the store is not crashed. Answers how many crashes
/// there were.
fn crash_everywhere<T>(
    generations: u8,
    action: impl Fn(&Store, &RunDir) -> Result<T, ImageError>,
    judge: impl Fn(&Path, &RunDir, bool),
) -> usize {
    for crash_at in 0.. {
        let dir = build_dir();
        let run = prepare(dir.path(), generations);
        let opening = {
            let (hook, count) = crash_before(usize::MAX);
            open_with(dir.path(), Driver::Qcow2Overlay, Some(hook));
            count.load(Ordering::SeqCst)
        };
        let (hook, count) = crash_before(opening + crash_at);
        let store = open_with(dir.path(), Driver::Qcow2Overlay, Some(hook));
        let done = action(&store, &run).is_ok();
        assert_eq!(done, count.load(Ordering::SeqCst) <= opening + crash_at);
        drop(store);
        judge(dir.path(), &run, done);
        check_settled(dir.path());
        if done {
            return crash_at;
        }
        assert!(crash_at < 1000, "the action does not get through");
    }
    unreachable!("the loop ends by returning")
}

#[test]
fn promotion_leaves_the_old_generation_or_the_new_one() {
    for generations in [0, 1, 3] {
        let before = u32::from(generations);
        let promote_run = |store: &Store, run: &RunDir| {
            store.promote(run, &Origin::default(), now(), &mut |_| {})
        };
        let crashes = crash_everywhere(generations, promote_run, |base, run, done| {
            let has_disk = run.disk().exists();
            let store = open(base);
            // The disk is in exactly one place, and that is what decides.
            let expected = if has_disk { before } else { before + 1 };
            assert_eq!(current(&store), expected);
            assert!(!done || !has_disk);
            // Asking again completes it, and only once.
            for _ in 0..2 {
                assert_eq!(promote(&store, run), Generation(before + 1));
            }
            assert_eq!(current(&store), before + 1);
            let history = store.history(&machine("o/r/m")).expect("readable");
            assert_eq!(history.len(), usize::from(generations) + 1);
        });
        println!("{crashes} crashes of a promotion to generation {}", before + 1);
        assert!(crashes > 10, "{crashes}");
    }
}

/// What a power loss would need to be harmless: each step is on the disk before the next one starts. The
/// hook sees the changes; this is their order.
#[test]
fn promotion_makes_each_step_durable_before_the_next() {
    let dir = build_dir();
    let run = prepare(dir.path(), 1);
    let log = Arc::new(Mutex::new(Vec::new()));
    let (seen, base) = (Arc::clone(&log), dir.path().to_owned());
    let hook: Hook = Arc::new(move |op| {
        let text = format!("{op:?}").replace(&format!("{}/", base.display()), "");
        seen.lock().expect("no panic").push(text);
        Ok(())
    });
    let store = open_with(dir.path(), Driver::Qcow2Overlay, Some(hook));
    log.lock().expect("no panic").clear();
    promote(&store, &run);
    let disk = format!("runs/o/r/m/{}", run.runner());
    let log = log.lock().expect("no panic").join("\n").replace(&disk, "RUN");
    // The names of unfinished files hold numbers that differ.
    let log: Vec<String> = log.lines().map(without_tmp_number).collect();
    assert_eq!(
        log.join("\n"),
        r#"SyncFile { path: "RUN/disk.img" }
SetMode { path: "RUN/disk.img", mode: 288 }
SyncFile { path: "RUN/disk.img" }
Create { path: "machines/o/r/m/TMP" }
Write { path: "machines/o/r/m/TMP" }
SyncFile { path: "machines/o/r/m/TMP" }
Rename { from: "machines/o/r/m/TMP", to: "machines/o/r/m/000002.json" }
SyncDir { path: "machines/o/r/m" }
Rename { from: "RUN/disk.img", to: "machines/o/r/m/000002.img" }
SyncDir { path: "machines/o/r/m" }
SyncDir { path: "RUN" }
Symlink { target: "m/000002.img", path: "machines/o/r/TMP" }
Rename { from: "machines/o/r/TMP", to: "machines/o/r/m.img" }
SyncDir { path: "machines/o/r" }
Create { path: "machines/o/r/m/TMP" }
Write { path: "machines/o/r/m/TMP" }
SyncFile { path: "machines/o/r/m/TMP" }
Rename { from: "machines/o/r/m/TMP", to: "machines/o/r/m/state.json" }
SyncDir { path: "machines/o/r/m" }"#
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
fn a_crash_while_a_crash_is_repaired_does_no_harm() {
    let promote_run =
        |store: &Store, run: &RunDir| store.promote(run, &Origin::default(), now(), &mut |_| {});
    // Crash a promotion somewhere, then the opening of the store everywhere.
    crash_everywhere(2, promote_run, |base, run, _| {
        let expected = if run.disk().exists() { 2 } else { 3 };
        for crash_at in 0..1000 {
            let (hook, count) = crash_before(crash_at);
            let options = forrest_images::StoreOptions {
                driver: Some(Driver::Qcow2Overlay),
                hook: Some(hook),
                boot_id: None,
            };
            let opened = Store::open_with(base, options);
            assert!(opened.is_ok() || count.load(Ordering::SeqCst) > crash_at);
            if let Ok(store) = opened {
                assert_eq!(current(&store), expected);
                return;
            }
        }
        panic!("the store cannot be opened");
    });
}

#[test]
fn a_promotion_that_is_never_asked_for_again_is_still_whole() {
    let promote_run =
        |store: &Store, run: &RunDir| store.promote(run, &Origin::default(), now(), &mut |_| {});
    crash_everywhere(1, promote_run, |base, run, _| {
        let store = open(base);
        let expected = if run.disk().exists() { 1 } else { 2 };
        assert_eq!(current(&store), expected);
        store.remove_run_dir(run).expect("removable");
        // The next run gets a number of its own.
        let start = store.machine_image(&machine("o/r/m")).expect("readable").expect("an image");
        let (next, _) = forked(&store, &start, 9, Bytes::mib(1));
        assert_eq!(promote(&store, &next), Generation(expected + 1));
    });
}

#[test]
fn marking_broken_leaves_the_old_current_generation_or_the_one_below() {
    let mark = |store: &Store, _: &RunDir| {
        store.mark_broken(&machine("o/r/m"), Generation(3), "does not boot", now())
    };
    let crashes = crash_everywhere(3, mark, |base, _, done| {
        let store = open(base);
        let history = store.history(&machine("o/r/m")).expect("readable");
        let marked = history[2].broken.is_some();
        assert!(marked || !done);
        assert_eq!(current(&store), if marked { 2 } else { 3 });
    });
    assert!(crashes > 5, "{crashes}");
}

#[test]
fn rolling_back_leaves_the_old_current_generation_or_the_wanted_one() {
    let roll_back =
        |store: &Store, _: &RunDir| store.roll_back(&machine("o/r/m"), Some(Generation(1)));
    let crashes = crash_everywhere(3, roll_back, |base, _, done| {
        let now = current(&open(base));
        assert!(now == 1 || (now == 3 && !done), "{now}");
    });
    assert!(crashes > 2, "{crashes}");
}

#[test]
fn removing_old_generations_never_harms_the_current_one() {
    // The first generation stands alone once the others are built on src again.
    let prune = |store: &Store, _: &RunDir| store.prune(&machine("o/r/m"), 1);
    let crashes = crash_everywhere(0, prune, |base, run, _| {
        let store = open(base);
        assert_eq!(promote(&store, run), Generation(1));
    });
    println!("{crashes} crashes of a removal with nothing to remove");

    for crash_at in 0..100 {
        let dir = build_dir();
        let store = open(dir.path());
        let src = dir.path().join("src.raw");
        raw_image(&src, Bytes::mib(1));
        let start = store.src_image(&src).expect("a raw image");
        for number in 0..4 {
            promote(&store, &forked(&store, &start, number, Bytes::mib(1)).0);
        }
        store.mark_broken(&machine("o/r/m"), Generation(2), "x", now()).expect("there");
        let opening = {
            let (hook, count) = crash_before(usize::MAX);
            open_with(dir.path(), Driver::Qcow2Overlay, Some(hook));
            count.load(Ordering::SeqCst)
        };
        let (hook, _) = crash_before(opening + crash_at);
        let store = open_with(dir.path(), Driver::Qcow2Overlay, Some(hook));
        let done = prune(&store, &RunDirOf::any(&store)).is_ok();
        check_settled(dir.path());
        let store = open(dir.path());
        assert_eq!(current(&store), 4);
        prune(&store, &RunDirOf::any(&store)).expect("removable");
        assert_eq!(store.history(&machine("o/r/m")).expect("readable").len(), 1);
        assert_eq!(promote(&store, &forked(&store, &start, 9, Bytes::mib(1)).0), Generation(5));
        if done {
            assert!(crash_at > 6, "{crash_at}");
            return;
        }
    }
    panic!("the removal does not get through");
}

/// A run that nothing is done with.
struct RunDirOf;

impl RunDirOf {
    fn any(store: &Store) -> RunDir {
        let m = machine("o/r/m");
        store.run_dir(&runner(&m, 0), &m)
    }
}

#[test]
fn forking_leaves_a_whole_disk_or_what_discarding_removes() {
    let m = machine("o/r/m");
    let fork = |store: &Store, _: &RunDir| {
        let run = store.create_run_dir(&runner(&m, 7), &m)?;
        let src = store.base_dir().join("src.raw");
        store.fork(&store.src_image(&src)?, &run, Bytes::mib(2))
    };
    crash_everywhere(0, fork, |base, _, done| {
        let store = open(base);
        let run = store.run_dir(&runner(&m, 7), &m);
        if done {
            assert!(store.run_disk(&run).expect("readable").is_some());
        }
        store.remove_run_dir(&run).expect("removable");
        assert!(!run.path().exists());
        let src = store.src_image(&base.join("src.raw")).expect("a raw image");
        forked(&store, &src, 7, Bytes::mib(2));
    });
}

#[test]
fn taking_over_the_earlier_layout_loses_no_image() {
    for crash_at in 0..1000 {
        let dir = build_dir();
        let old = dir.path().join("machines/o/r/m.img");
        std::fs::create_dir_all(old.parent().expect("below the base")).expect("writable");
        raw_image(&old, Bytes::mib(1));
        let (hook, _) = crash_before(crash_at);
        let options = forrest_images::StoreOptions {
            driver: Some(Driver::Qcow2Overlay),
            hook: Some(hook),
            boot_id: None,
        };
        let done = Store::open_with(dir.path(), options).is_ok();
        let store = open(dir.path());
        assert_eq!(current(&store), 1);
        let history = store.history(&machine("o/r/m")).expect("readable");
        assert_eq!(std::fs::metadata(&history[0].path).expect("there").len(), 1 << 20);
        check_settled(dir.path());
        if done {
            return;
        }
    }
    panic!("the store cannot be opened");
}
