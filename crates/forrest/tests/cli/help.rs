//! Help, usage errors, completions, manual pages.

use crate::bench::{forrest, run, shown, stderr, stdout};

#[test]
fn every_help_text() {
    let verbs: &[&[&str]] = &[
        &[],
        &["run"],
        &["check"],
        &["doctor"],
        &["status"],
        &["shell"],
        &["logs"],
        &["images"],
        &["images", "list"],
        &["images", "history"],
        &["images", "roll-back"],
        &["stop"],
        &["drain"],
        &["resume"],
        &["completions"],
        &["man"],
    ];
    for verb in verbs {
        let output = run(&[*verb, &["--help"]].concat());
        assert_eq!(output.status.code(), Some(0), "{verb:?}");
        let name = if verb.is_empty() { "root".to_owned() } else { verb.join("_") };
        insta::assert_snapshot!(format!("help_{name}"), stdout(&output));
    }
}

#[test]
fn usage_errors_say_what_is_wrong() {
    for (name, args) in [
        ("unknown_option", &["status", "--verbose"][..]),
        ("mistyped_verb", &["statsu"]),
        ("neither_verb_nor_file", &["frobnicate"]),
        ("no_generation", &["images", "roll-back", "build", "0"]),
        ("no_filter", &["run", "--config", "x.yaml", "--log", "=,="]),
        ("missing_name", &["logs"]),
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{name}: {}", shown(&output));
        assert!(stderr(&output).starts_with("forrest: "), "{name}");
        insta::assert_snapshot!(format!("usage_{name}"), shown(&output));
    }
}

#[test]
fn without_arguments_there_is_help() {
    let output = run(&[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("Usage: forrest"));
}

#[test]
fn a_file_serves_as_with_run() {
    let seed = run(&["/nowhere/forrest.yaml"]);
    let verb = run(&["run", "--config", "/nowhere/forrest.yaml"]);
    assert_eq!(shown(&seed), shown(&verb));
    assert_eq!(seed.status.code(), Some(1));
    insta::assert_snapshot!("no_configuration", shown(&seed));
}

#[test]
fn the_supervisors_verb_is_found_and_hidden() {
    let output = run(&["shim"]);
    assert_eq!(stderr(&output), "usage: forrest shim RUN_DIR\n");
    assert!(!stdout(&run(&["--help"])).contains("shim"));
}

#[test]
fn completions_are_scripts() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = run(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0));
        assert!(stdout(&output).contains("roll-back"), "{shell}");
    }
    let script = run(&["completions", "bash"]).stdout;
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("forrest.bash");
    std::fs::write(&path, script).expect("written");
    let checked = std::process::Command::new("bash").arg("-n").arg(&path).status().expect("bash");
    assert!(checked.success(), "bash does not understand the script");
}

#[test]
fn there_is_a_manual_page_for_each_command() {
    let dir = tempfile::tempdir().expect("a directory");
    let output = forrest().args(["man", "--dir"]).arg(dir.path()).output().expect("the program");
    assert_eq!(output.status.code(), Some(0), "{}", shown(&output));
    let mut names: Vec<String> = std::fs::read_dir(dir.path())
        .expect("list")
        .map(|entry| entry.expect("entry").file_name().into_string().expect("UTF-8"))
        .collect();
    names.sort();
    insta::assert_snapshot!("manual_pages", names.join("\n"));
    let page =
        std::fs::read_to_string(dir.path().join("forrest-images-roll-back.1")).expect("read");
    assert!(
        page.contains(".TH FORREST-IMAGES-ROLL-BACK 1")
            || page.contains("FORREST-IMAGES-ROLL-BACK")
    );
    assert!(
        stdout(&run(&["man"])).contains("Exit status") || stdout(&run(&["man"])).contains("EXIT")
    );
}
