//! What keeps guests inside, around guests that do nothing: QEMU's user, its filter, its files.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::Command;

use forrest_core::model::RunnerName;
use forrest_daemon::control::Status;
use forrest_testbed::{Plan, Testbed};

use crate::scene::{BUILD, STEP, booting, end, machine, plan, queue, reconfigure, run_dir, until};

/// A plan whose guests can be confined; `None`, said loudly, where that takes privileges or `nft` that
/// are not there.
fn confined_plan(story: &str) -> Option<Plan> {
    let missing = if !rustix::process::geteuid().is_root() {
        Some("confining QEMU needs root")
    } else if nft(&["--version"]).is_none() {
        Some("nft is missing: `make setup` installs it")
    } else {
        None
    };
    if let Some(missing) = missing {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{missing}");
        eprintln!("NOT TESTED: {missing}");
        return None;
    }
    plan(story)
}

/// What `nft` prints; `None` where it refuses.
fn nft(arguments: &[&str]) -> Option<String> {
    let output = Command::new("nft")
        .env("PATH", "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin")
        .args(arguments)
        .output()
        .ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A table of the kernel's packet filter; empty where there is none.
fn table(name: &str) -> String {
    nft(&["-s", "list", "table", "inet", name]).unwrap_or_default()
}

/// The user that a run's QEMU runs as, from the supervisor's log.
fn user(testbed: &Testbed, runner: &RunnerName) -> u32 {
    let log = std::fs::read_to_string(run_dir(testbed, runner).join("shim.log")).expect("a log");
    let said = log.split("QEMU runs as user ").nth(1).expect("the user is told");
    said.split_whitespace().next().and_then(|uid| uid.parse().ok()).expect("a number")
}

/// What the kernel says of this user's only process.
fn process_of(uid: u32) -> (PathBuf, String) {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        // Processes come and go.
        let Ok(status) = std::fs::read_to_string(entry.path().join("status")) else { continue };
        if field(&status, "Uid:") == format!("{uid} {uid} {uid} {uid}") {
            found.push((entry.path(), status));
        }
    }
    assert_eq!(found.len(), 1, "processes of {uid}: {found:?}");
    found.remove(0)
}

fn field(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[tokio::test]
async fn each_qemu_is_a_user_of_its_own_with_a_filter_that_outlives_the_daemon() {
    let Some(plan) = confined_plan("confined") else { return };
    let other = format!("{BUILD}-too");
    let mut testbed = Testbed::start(plan.with(machine(&other))).await.expect("the testbed starts");
    queue(&testbed, BUILD, "patient");
    let runner = booting(&testbed, BUILD).await;
    let uid = user(&testbed, &runner);
    let filter = table(&format!("forrest-{uid}"));
    assert!(filter.contains(&format!("meta skuid {uid} jump guest")), "{filter}");
    assert!(filter.contains("ip daddr 127.0.0.1 meta l4proto"), "{filter}");

    let (qemu, status) = process_of(uid);
    let group = field(&status, "Gid:");
    assert!(group.starts_with("1900000000 "), "{group}");
    assert_eq!(field(&status, "Groups:"), "");
    for capabilities in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(&status, capabilities), "0000000000000000", "{capabilities}");
    }
    assert_eq!(
        (field(&status, "NoNewPrivs:"), field(&status, "Seccomp:")),
        ("1".into(), "2".into())
    );
    let limits = std::fs::read_to_string(qemu.join("limits")).expect("limits");
    for bounded in ["Max file size", "Max data size", "Max processes", "Max open files"] {
        let line = limits.lines().find(|line| line.starts_with(bounded)).expect(bounded);
        assert!(!line.contains("unlimited"), "{line}");
    }
    let readiness = std::fs::read_to_string(qemu.join("oom_score_adj")).expect("a readiness");
    assert_eq!(readiness.trim(), "300", "how readily the kernel ends it for want of memory");
    // Nothing of the run was given away for that.
    for entry in std::fs::read_dir(run_dir(&testbed, &runner)).expect("a run").flatten() {
        let found = entry.metadata().expect("a file");
        assert_eq!((found.uid(), found.gid()), (0, 0), "{}", entry.path().display());
        assert_eq!(found.mode() & 0o077 & !0o044, 0, "{}", entry.path().display());
    }

    queue(&testbed, &other, "patient, too");
    let neighbour = booting(&testbed, &other).await;
    let dir = testbed.plan().base_dir().join("runs").join(&other).join(neighbour.as_str());
    let log = std::fs::read_to_string(dir.join("shim.log")).expect("a log");
    assert!(!log.contains(&format!("QEMU runs as user {uid}\n")), "{log}");

    testbed.daemon.take().expect("a daemon").kill().await.expect("killed");
    nft(&["delete", "table", "inet", &format!("forrest-{uid}")]).expect("somebody takes it away");
    until("a filter without a daemon", || table(&format!("forrest-{uid}")) == filter).await;
    testbed.start_daemon().await.expect("it starts again");
    assert_eq!(booting(&testbed, BUILD).await, runner);
    assert_eq!(table(&format!("forrest-{uid}")), filter);
    end(testbed).await;
    // Its number may be another story's by now, with that one's exceptions.
    until("the end of the filter", || table(&format!("forrest-{uid}")) != filter).await;
}

/// As a service without `CAP_NET_ADMIN` is.
#[tokio::test]
async fn without_a_filter_no_run_starts_unless_the_configuration_says_so() {
    let Some(mut plan) = confined_plan("unfiltered") else { return };
    let wrapper = plan.dir.join("forrest");
    let script = format!(
        "#!/bin/sh\nexec setpriv --bounding-set=-net_admin -- {} \"$@\"\n",
        plan.forrest.display()
    );
    std::fs::write(&wrapper, script).expect("a script");
    std::fs::set_permissions(&wrapper, PermissionsExt::from_mode(0o755)).expect("executable");
    plan.forrest = wrapper;
    let testbed = Testbed::start(plan).await.expect("the daemon starts nevertheless");
    queue(&testbed, BUILD, "patient");
    let trouble = |status: &Status| {
        let machine = status.view.machines.iter().find(|one| one.name.to_string() == BUILD)?;
        machine.trouble.clone()
    };
    let said = testbed.wait(STEP, "a trouble", trouble).await.expect("a trouble");
    for words in ["egress filter cannot be put in place", "CAP_NET_ADMIN", "network.filter: off"] {
        assert!(said.contains(words), "{words:?} is not in {said:?}");
    }
    assert!(testbed.sim.runners().is_empty(), "GitHub was asked for a runner");
    let daemon = testbed.client().status().await.expect("a status").daemon;
    assert!(daemon.uncontained.join(" ").contains("CAP_NET_ADMIN"), "{:?}", daemon.uncontained);
    reconfigure(&testbed, "network: { allow: [", "network: { filter: off, allow: [");
    let runner = booting(&testbed, BUILD).await;
    let uid = user(&testbed, &runner);
    // The rest holds.
    assert_eq!(field(&process_of(uid).1, "CapBnd:"), "0000000000000000");
    end(testbed).await;
}

#[tokio::test]
async fn a_shared_directory_that_became_a_link_to_secrets_is_not_shared() {
    let Some(mut plan) = plan("shared-link") else { return };
    // Not beside the sources: those may be root's own, below which nothing is shared.
    let outside = tempfile::tempdir().expect("a directory");
    let everybody = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(outside.path(), everybody).expect("a mode");
    let (shared, harmless) = (outside.path().join("shared"), outside.path().join("harmless"));
    std::fs::create_dir(&harmless).expect("a directory");
    std::os::unix::fs::symlink(&harmless, &shared).expect("a link");
    let line = format!("shared: [{{ path: {}, tag: cache }}]", shared.display());
    plan.machines = vec![machine(BUILD).with(&line)];
    let testbed = Testbed::start(plan).await.expect("the testbed starts");
    let base_dir = testbed.plan().base_dir();
    std::fs::remove_file(&shared).expect("removed");
    std::os::unix::fs::symlink(&base_dir, &shared).expect("another link");
    queue(&testbed, BUILD, "curious");
    let trouble = |status: &Status| {
        let machine = status.view.machines.iter().find(|one| one.name.to_string() == BUILD)?;
        machine.trouble.clone()
    };
    let said = testbed.wait(STEP, "a trouble", trouble).await.expect("a trouble");
    assert!(said.contains("must not be shared") && said.contains("base_dir"), "{said}");
    std::fs::remove_file(&shared).expect("removed");
    std::os::unix::fs::symlink(&harmless, &shared).expect("the first link");
    booting(&testbed, BUILD).await;
    end(testbed).await;
}
