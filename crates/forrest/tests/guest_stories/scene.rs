//! Where the stories are set.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use forrest_core::snapshots::Snapshot;
use forrest_daemon::control::Status;
use forrest_testbed::{MachinePlan, Plan, Testbed, Xfs};

/// How long a guest's whole life may take, emulated on a busy machine.
pub const GUEST_LIFE: Duration = Duration::from_secs(6 * 60);

/// How long to wait before looking again at what nobody tells of.
const LOOK_PAUSE: Duration = Duration::from_millis(20);

/// Size of the file system of a story that needs one of its own.
const XFS_GIB: u64 = 16;

/// The repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the repository")
}

/// The plan of a story, in a directory of its own; `None`, said loudly, where no guest can run.
pub fn plan(story: &str) -> Option<Plan> {
    let dir = root().join("target/stories").join(story);
    if dir.exists() {
        Xfs::unmount_left(&dir);
        std::fs::remove_dir_all(&dir).expect("the story's directory can be emptied");
    }
    let plan = Plan::new(&root(), &dir, Path::new(env!("CARGO_BIN_EXE_forrest")));
    if plan.guest_image.is_file() {
        return Some(plan);
    }
    let missing = format!("{} is missing: `make image` builds it", plan.guest_image.display());
    assert!(std::env::var_os("CI").is_none(), "{missing}");
    eprintln!("NOT TESTED: {missing}");
    None
}

/// The same on an XFS, where disks are reflinks; it has to be kept until the story is over.
pub fn plan_on_xfs(story: &str) -> Option<(Plan, Xfs)> {
    let mut plan = plan(story)?;
    match Xfs::mount(&plan.dir, XFS_GIB) {
        Ok(xfs) => {
            plan.dir = xfs.path().to_owned();
            Some((plan, xfs))
        }
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "{error:#}");
            eprintln!("NOT TESTED: {error:#}");
            None
        }
    }
}

/// A story with machine types that start from the Debian image.
pub async fn debian(story: &str, machines: &[&str]) -> Option<Testbed> {
    let mut plan = plan(story)?;
    plan.machines.extend(machines.iter().map(|name| MachinePlan::new(name)));
    Some(Testbed::start(plan).await.expect("the testbed starts"))
}

/// Waits until something is so that nobody tells of.
pub async fn until(what: &str, timeout: Duration, mut is_so: impl FnMut() -> bool) {
    let look = async {
        while !is_so() {
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    };
    let is_so = tokio::time::timeout(timeout, look).await.is_ok();
    assert!(is_so, "{what} did not happen within {} s", timeout.as_secs());
}

/// What the status says of a machine type's snapshot.
pub fn snapshot_of<'s>(status: &'s Status, machine: &str) -> Option<&'s Snapshot> {
    status.view.machines.iter().find(|m| m.name.to_string() == machine)?.snapshot.as_ref()
}

/// The names of the snapshots that are complete.
pub fn complete_snapshots(testbed: &Testbed) -> BTreeSet<String> {
    let entries = std::fs::read_dir(testbed.plan().base_dir().join("snapshots"));
    let names = entries.expect("a directory").flatten().map(|entry| entry.file_name());
    // What is being built, or could not be, has an ending.
    names.filter_map(|name| name.into_string().ok()).filter(|name| !name.contains('.')).collect()
}

/// Everything that a story leaves behind has to be as it should: no runner at GitHub, no run, no disk.
pub async fn assert_clean(testbed: &Testbed) {
    let idle = |status: &Status| status.view.runs.is_empty().then_some(());
    testbed.wait(GUEST_LIFE, "the end of all runs", idle).await.expect("all runs end");
    assert!(testbed.sim.runners().is_empty(), "runners are left: {:?}", testbed.sim.runners());
    let disks = files_named(&testbed.plan().base_dir().join("runs"), "disk.img");
    assert!(disks.is_empty(), "disks of runs are left: {disks:?}");
    let configs = files_named(&testbed.plan().base_dir().join("runs"), "job-config.img");
    assert!(configs.is_empty(), "JIT configs are left: {configs:?}");
}

/// While a run's guest boots: its JIT configuration is on its own disk, which is nobody else's to read, and
/// in no other place. Also says that the search finds what there is to find.
pub fn assert_secrets_of_a_run(testbed: &Testbed) {
    use std::os::unix::fs::MetadataExt;
    let secrets = testbed.secrets().expect("the testbed's secrets");
    let base_dir = testbed.plan().base_dir();
    let leaks = secrets.in_files(&base_dir).expect("the base directory can be searched");
    let config = files_named(&base_dir.join("runs"), "job-config.img");
    let [config] = config.as_slice() else { panic!("not one run: {config:?}") };
    let places: Vec<_> = leaks.iter().map(|leak| (leak.secret, leak.place.as_str())).collect();
    assert_eq!(places, [("a JIT configuration", &*config.to_string_lossy())]);
    assert_eq!(std::fs::metadata(config).expect("its disk").mode() & 0o777, 0o600);
    let (processes, leaks) = secrets.in_processes(&base_dir).expect("processes");
    assert!(processes >= 2, "no shim and no QEMU were found");
    assert!(leaks.is_empty(), "{leaks:?}");
}

/// After everything: no secret is in anything that is left, or was said.
pub async fn assert_no_secret_is_left(testbed: &Testbed) {
    let secrets = testbed.secrets().expect("the testbed's secrets");
    let mut leaks = secrets.in_files(&testbed.plan().base_dir()).expect("it can be searched");
    leaks.extend(secrets.in_file(&testbed.log()).expect("the log can be searched"));
    let status = testbed.client().status().await.expect("a status");
    let status = serde_json::to_vec(&status).expect("JSON");
    leaks.extend(secrets.in_bytes("the status", &status));
    let daemon = testbed.daemon.as_ref().and_then(|daemon| daemon.pid()).expect("a daemon");
    for file in ["cmdline", "environ"] {
        let place = format!("/proc/{daemon}/{file}");
        let bytes = std::fs::read(&place).expect("the daemon lives");
        leaks.extend(secrets.in_bytes(&place, &bytes));
    }
    assert!(leaks.is_empty(), "{leaks:#?}");
    let limits = std::fs::read_to_string(format!("/proc/{daemon}/limits")).expect("limits");
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("cores");
    assert_eq!(core.split_whitespace().nth(4), Some("1"), "{core}");
}

fn files_named(dir: &Path, name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).expect("a directory").flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files_named(&path, name));
        } else if entry.file_name() == name {
            found.push(path);
        }
    }
    found
}
