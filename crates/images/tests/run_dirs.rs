//! Run directories are found as far as they can be listed.

use std::path::{Path, PathBuf};

use forrest_core::model::{MachineTypeName, RunnerName};
use forrest_images::Store;
use rustix::fs::{Mode, OFlags, mkdirat, openat};

/// The longest path that the kernel takes, with the zero byte at its end.
const PATH_MAX: usize = 4096;

/// A directory whose path leaves this many bytes to what is in it.
fn deep_directory(top: &Path, left: usize) -> PathBuf {
    let mut path = top.to_owned();
    let wanted = PATH_MAX - 1 - left;
    while path.as_os_str().len() + 1 < wanted {
        let len = (wanted - path.as_os_str().len() - 1).min(200);
        path.push("d".repeat(len));
    }
    std::fs::create_dir_all(&path).expect("a directory");
    path
}

/// A directory that nobody can list, whoever it is: its path is too long.
#[test]
fn one_directory_that_cannot_be_listed_hides_no_other_run() {
    let dir = tempfile::tempdir().expect("a directory");
    let base = deep_directory(dir.path(), 250);
    let store = Store::open(&base).expect("an empty store");
    let machine: MachineTypeName = "o/r/m".parse().expect("a name");
    let runner = RunnerName::from_random(&machine, [1; 16]);
    let run = store.create_run_dir(&runner, &machine).expect("a run");
    std::fs::write(base.join("runs/stray"), "").expect("a file");
    let repository = base.join("runs").join("o".repeat(100)).join("r".repeat(100));
    std::fs::create_dir_all(&repository).expect("a directory");
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let repository = openat(rustix::fs::CWD, &repository, flags, Mode::empty()).expect("it opens");
    mkdirat(repository, "m".repeat(100), Mode::RWXU).expect("a directory");

    let found = store.find_run_dirs().expect("what there is");
    // Without the paths, which are long.
    assert!(found.runs == [run], "{} runs", found.runs.len());
    assert!(found.others == [base.join("runs/stray")], "{} others", found.others.len());
    assert_eq!(found.unlisted.len(), 1);
    // Who removes what no run needs has to know all of them.
    store.list_run_dirs().expect_err("not all runs are known");
}
