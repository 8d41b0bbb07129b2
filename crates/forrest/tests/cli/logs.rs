//! `forrest logs`.

use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;

use crate::bench::{Base, forrest, run, shown, stderr, stdout};

const RUNNER: &str = "forrest-build-3kd92mfa81xq7p0z";
const OTHER: &str = "forrest-build-aaaabbbbccccdddd";

#[test]
fn finished_runs_have_a_log_and_an_end() {
    let base = Base::new();
    let finished = base.run("acme/firmware/build", RUNNER);
    finished.console(b"[\x1b[0;32m  OK  \x1b[0m] Started\r\n\x1b]0;owned\x07hidden\rshown\n");
    finished.over("boot-timeout", "the guest was \x1b[31mnot ready");
    let output = run(&["logs", "build", "--base-dir", base.arg()]);
    assert_eq!(output.status.code(), Some(0), "{}", shown(&output));
    insta::assert_snapshot!("logs_finished", shown(&output));
}

#[test]
fn raw_is_raw() {
    let base = Base::new();
    let bytes = b"\x1b[31mred\x1b[0m\xff\r\n";
    base.run("acme/firmware/build", RUNNER).console(bytes);
    let output = run(&["logs", "--raw", RUNNER, "--base-dir", base.arg()]);
    assert_eq!(output.stdout, bytes);
}

#[test]
fn a_machine_type_stands_for_its_newest_run() {
    let base = Base::new();
    for (runner, created_at) in [(RUNNER, 2000), (OTHER, 1000)] {
        let dir = base.run("acme/firmware/build", runner);
        dir.console(runner.as_bytes());
        let record = serde_json::json!({
            "runner": runner, "machine": "acme/firmware/build", "ram": 1, "cpus": 1, "disk": 1,
            "created_at": created_at,
        });
        std::fs::write(dir.path.join("record.json"), record.to_string()).expect("the record");
    }
    let output = run(&["logs", "build", "--base-dir", base.arg()]);
    assert_eq!(stdout(&output), RUNNER);
    // The same machine's name in another repository: which one is not clear any more.
    base.run("acme/website/build", "forrest-build-zzzzbbbbccccdddd");
    let output = run(&["logs", "build", "--base-dir", base.arg()]);
    assert_eq!(output.status.code(), Some(4));
    let output = run(&["logs", "acme/firmware/build", "--base-dir", base.arg()]);
    assert_eq!(stdout(&output), RUNNER);
}

#[test]
fn following_ends_with_the_run() {
    let base = Base::new();
    let live = base.run("acme/firmware/build", RUNNER);
    let lock = live.live();
    live.console(b"one\n");
    let mut child = forrest()
        .args(["logs", "-f", "build", "--base-dir", base.arg()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut output = BufReader::new(child.stdout.take().expect("its output"));
    let mut line = String::new();
    output.read_line(&mut line).expect("a line");
    assert_eq!(line, "one\n");
    live.console(b"two\n");
    line.clear();
    output.read_line(&mut line).expect("a line");
    assert_eq!(line, "two\n");
    live.console(b"three");
    live.over("guest-shutdown", "");
    drop(lock);
    let mut rest = String::new();
    output.read_to_string(&mut rest).expect("the rest");
    assert_eq!(rest, "three");
    let mut said = String::new();
    child.stderr.take().expect("its errors").read_to_string(&mut said).expect("text");
    assert_eq!(said, format!("forrest: {RUNNER} ended: guest-shutdown\n"));
    assert!(child.wait().expect("ends").success());
}

#[test]
fn a_run_that_is_not_there_is_not_found() {
    let base = Base::new();
    let output = run(&["logs", "build", "--base-dir", base.arg()]);
    assert_eq!(output.status.code(), Some(4));
    assert!(stderr(&output).contains("at all"), "{}", shown(&output));
    let output = run(&["logs", "build", "--base-dir", "/nowhere/at/all"]);
    assert_eq!(output.status.code(), Some(4));
    insta::assert_snapshot!("logs_no_base_dir", shown(&output));
}
