//! What the daemon's log looks like, depending on where it goes.

use std::fs::{File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use crate::bench::{Base, forrest};

/// What a daemon that cannot start says, with and without the journal behind its standard error. The
/// configuration can be read by everyone, which it warns of first.
fn said(journal: bool) -> String {
    let base = Base::new();
    let config = base.path().join("config.yaml");
    let text = "\
host: { base_dir: /proc/no/such/base, ram: 1G, accel: tcg }
github: { app_id: 1, jwt_key_file: key.pem, webhook_secret: hunter2 }
repositories: {}
";
    std::fs::write(&config, text).expect("written");
    std::fs::set_permissions(&config, Permissions::from_mode(0o644)).expect("a mode");
    let log = base.path().join("log");
    let stderr = File::create(&log).expect("a file");
    let found = stderr.metadata().expect("metadata");
    let mut command = forrest();
    if journal {
        command.env("JOURNAL_STREAM", format!("{}:{}", found.dev(), found.ino()));
    }
    let status = command.arg("run").arg("--config").arg(&config).stderr(stderr).status();
    assert_eq!(status.expect("starts").code(), Some(1));
    let said = std::fs::read_to_string(&log).expect("text");
    assert!(!said.contains(['\x1b']) && !said.contains("hunter2"), "{said}");
    assert!(said.contains("can be read by everyone"), "{said}");
    said
}

#[test]
fn the_journal_gets_levels_and_knows_the_time_itself() {
    let said = said(true);
    assert!(said.starts_with("<4>"), "{said}");
    assert!(!said.contains("WARN"), "{said}");
}

#[test]
fn a_file_gets_times_and_levels() {
    let said = said(false);
    let (time, rest) = said.split_once(' ').expect("a time");
    assert!(time.starts_with("20") && time.ends_with('Z'), "{said}");
    assert!(rest.trim_start().starts_with("WARN"), "{said}");
}
