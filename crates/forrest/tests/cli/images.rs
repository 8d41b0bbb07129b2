//! `forrest images`, on files as the image store leaves them.

use std::fs;
use std::path::Path;

use crate::bench::{Base, run, shown, stdout};

/// Two generations of `acme/firmware/build`, the second one current.
fn with_images() -> Base {
    let base = Base::new();
    let beside = base.path().join("machines/acme/firmware");
    let machine = beside.join("build");
    fs::create_dir_all(&machine).expect("directories");
    for generation in [1, 2] {
        let name = format!("{generation:06}");
        fs::write(machine.join(format!("{name}.img")), vec![b'x'; 8192]).expect("an image");
        // The repository was renamed between the two.
        let repository = if generation == 1 { "acme/old-firmware" } else { "acme/firmware" };
        let lineage = serde_json::json!({
            "generation": generation,
            "format": "raw",
            "promoted_at": 1_795_486_200_000_u64 + generation * 86_400_000,
            "parent": {"stage": "src", "path": "/srv/images/debian.img"},
            "runner": "forrest-build-3kd92mfa81xq7p0z",
            "origin": {
                "job": 100 + generation, "job_name": "compile \u{1b}[31mred", "workflow_run": 9000, "run_attempt": 2,
                "repository": repository, "head_branch": "main",
                "head_sha": "0123456789abcdef0123456789abcdef01234567", "event": "push",
            },
            "virtual_size": 8192, "allocated_size": 8192,
        });
        fs::write(machine.join(format!("{name}.json")), lineage.to_string()).expect("a record");
    }
    fs::write(machine.join("state.json"), "{\"high_water\": 2, \"broken\": {}}")
        .expect("the state");
    std::os::unix::fs::symlink("build/000002.img", beside.join("build.img")).expect("the link");
    base
}

fn current(base: &Base) -> String {
    let link = base.path().join("machines/acme/firmware/build.img");
    fs::read_link(link).expect("the link").display().to_string()
}

#[test]
fn images_are_listed_with_where_they_come_from() {
    let base = with_images();
    let output = run(&["images", "list", "--base-dir", base.arg()]);
    assert_eq!(output.status.code(), Some(0), "{}", shown(&output));
    assert!(stdout(&output).contains("acme/firmware/build"), "{}", shown(&output));
    let output = run(&["images", "history", "build", "--base-dir", base.arg()]);
    insta::assert_snapshot!("images_history", shown(&output));
    let output = run(&["images", "history", "build", "--json", "--base-dir", base.arg()]);
    let history: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(history["machine"], "acme/firmware/build");
    assert_eq!(history["generations"][1]["current"], true);
    assert_eq!(history["generations"][0]["parent"]["stage"], "src");
    assert_eq!(history["generations"][0]["event"], "push");
    assert_eq!(history["generations"][0]["run_attempt"], 2);
    assert_eq!(history["generations"][0]["repository"], "acme/old-firmware");
    assert!(!stdout(&output).contains('\x1b'));
}

#[test]
fn going_back_needs_a_yes_and_works_both_ways() {
    let base = with_images();
    let output = run(&["images", "roll-back", "build", "--base-dir", base.arg()]);
    assert_eq!(output.status.code(), Some(2));
    insta::assert_snapshot!("images_roll_back_asks", shown(&output));
    assert_eq!(current(&base), "build/000002.img");
    let output = run(&["images", "roll-back", "build", "--yes", "--base-dir", base.arg()]);
    assert_eq!(output.status.code(), Some(0), "{}", shown(&output));
    assert_eq!(current(&base), "build/000001.img");
    let output = run(&["images", "roll-back", "build", "--yes", "--base-dir", base.arg()]);
    assert_eq!(output.status.code(), Some(4), "{}", shown(&output));
    let output = run(&["images", "roll-back", "build", "2", "--yes", "--base-dir", base.arg()]);
    assert_eq!(output.status.code(), Some(0), "{}", shown(&output));
    assert_eq!(current(&base), "build/000002.img");
    let output = run(&["images", "roll-back", "build", "9", "--yes", "--base-dir", base.arg()]);
    assert_eq!(output.status.code(), Some(4), "{}", shown(&output));
}

#[test]
fn a_new_base_directory_stays_as_it_is() {
    let base = Base::new();
    let output = run(&["images", "list", "--base-dir", base.arg()]);
    assert_eq!(output.status.code(), Some(0), "{}", shown(&output));
    assert!(stdout(&output).contains("no machine images yet"));
    let output = run(&["images", "history", "build", "--base-dir", base.arg()]);
    assert_eq!(output.status.code(), Some(4));
    assert_eq!(fs::read_dir(base.path()).expect("list").count(), 0);
    let output = run(&["images", "list", "--base-dir", "/nowhere/at/all"]);
    assert_eq!(output.status.code(), Some(4));
    assert!(!Path::new("/nowhere").exists());
}

#[test]
fn images_of_another_user_are_not_touched() {
    let base = with_images();
    if rustix::process::geteuid().as_raw() != 0 {
        assert!(std::env::var_os("CI").is_none(), "needs root, for a directory of another user");
        eprintln!("skipped: needs root, for a directory of another user");
        return;
    }
    std::os::unix::fs::chown(base.path(), Some(4711), None).expect("chown");
    let output = run(&["images", "roll-back", "build", "--yes", "--base-dir", base.arg()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(shown(&output).contains("sudo -u '#4711'"), "{}", shown(&output));
    assert_eq!(current(&base), "build/000002.img");
}
