//! `forrest check`.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use crate::bench::{forrest, run, shown, stdout};

const SOUND: &str = "\
host:
  base_dir: /srv/forrest
  ram: 64G
github:
  app_id: 1234
  jwt_key_file: key.pem
  webhook_secret: hunter2
repositories:
  acme:
    firmware:
      machines:
        build:
          setup_template: { path: templates/generic }
          base_image: images/debian.img
          cpus: 4
          ram: 8G
          disk: 32G
";

fn check(name: &str, text: &str, args: &[&str]) -> std::process::Output {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join(name);
    std::fs::write(&path, text).expect("written");
    std::fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("a mode");
    let mut command = forrest();
    command.current_dir(dir.path()).arg("check").args(args).arg(name);
    command.output().expect("the program")
}

#[test]
fn a_sound_file_is_called_sound() {
    let output = check("forrest.yaml", SOUND, &[]);
    assert_eq!(output.status.code(), Some(0), "{}", shown(&output));
    assert!(stdout(&output).contains("1 machine type in 1 repository"), "{}", shown(&output));
    assert!(!shown(&output).contains("hunter2"));
}

#[test]
fn every_error_has_its_place() {
    let broken = SOUND.replace("ram: 8G", "ram: 8GB\n          rma: 8G").replace("hunter2", "\"\"");
    let output = check("forrest.yaml", &broken, &[]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stdout(&output), "");
    insta::assert_snapshot!("check_broken", shown(&output));
}

#[test]
fn escape_sequences_in_the_file_stay_there() {
    let output =
        check("forrest.yaml", &SOUND.replace("base_image", "\"base\\e[31m\u{9b}\": x #"), &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(!shown(&output).contains(['\x1b', '\u{9b}']), "{:?}", shown(&output));
}

#[test]
fn programs_get_json() {
    let output = check("forrest.yaml", &SOUND.replace("ram: 8G", "ram: 8GB"), &["--json"]);
    assert_eq!(output.status.code(), Some(1));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["sound"], false);
    assert_eq!(report["findings"][0]["severity"], "error");
    assert_eq!(report["findings"][0]["location"]["line"], 16);
    let output = check("forrest.yaml", SOUND, &["--json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["sound"], true);
}

#[test]
fn files_are_looked_at_only_when_asked_for() {
    let output = check("forrest.yaml", SOUND, &["--files"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(shown(&output).contains("key.pem does not exist"), "{}", shown(&output));
}

#[test]
fn a_missing_file_is_an_error() {
    let output = run(&["check", "/nowhere/forrest.yaml"]);
    assert_eq!(output.status.code(), Some(1));
    insta::assert_snapshot!("check_missing", shown(&output));
}

#[test]
fn the_schema_is_json() {
    let output = run(&["check", "--schema"]);
    let schema: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(schema["type"], "object");
    assert!(schema["properties"]["host"].is_object());
}
