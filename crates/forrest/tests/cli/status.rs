//! `forrest status`, `stop`, `drain`, `resume`, against a stand-in for the daemon.

use crate::bench::{Base, daemon, forrest, run, shown, stderr, stdout};

const STATUS: &str = include_str!("../data/status.json");

fn serving(base: &Base) -> std::sync::mpsc::Receiver<String> {
    daemon(base, |request| match request {
        "GET /status" => (200, STATUS.to_owned()),
        "POST /drain" | "POST /resume" => (202, String::new()),
        stop if stop.starts_with("POST /runs/") => (202, String::new()),
        _ => (404, "no such thing\x1b[31m".to_owned()),
    })
}

#[test]
fn people_get_a_table_and_programs_everything() {
    let base = Base::new();
    let _requests = serving(&base);
    let output = run(&["status", "--base-dir", base.arg()]);
    assert_eq!(output.status.code(), Some(0), "{}", shown(&output));
    assert!(stdout(&output).contains("waits for RAM: needs 32.4G"), "{}", shown(&output));
    assert!(!stdout(&output).contains('\x1b'));
    let output = run(&["status", "--json", "--base-dir", base.arg()]);
    let got: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let sent: serde_json::Value = serde_json::from_str(STATUS).expect("JSON");
    assert_eq!(got, sent);
    assert!(!stdout(&output).contains(['\x1b', '\u{202e}']));
}

#[test]
fn no_daemon_is_an_exit_status_of_its_own() {
    let base = Base::new();
    let output = run(&["status", "--base-dir", base.arg()]);
    assert_eq!(output.status.code(), Some(3));
    insta::assert_snapshot!("status_not_running", base.without_path(&shown(&output)));
}

#[test]
fn virtual_machines_without_a_daemon_are_mentioned() {
    let base = Base::new();
    let run_dir = base.run("acme/firmware/build", "forrest-build-3kd92mfa81xq7p0z");
    let _live = run_dir.live();
    let output = run(&["status", "--base-dir", base.arg()]);
    assert_eq!(output.status.code(), Some(3));
    assert!(stderr(&output).contains("1 virtual machine goes on meanwhile"), "{}", shown(&output));
}

#[test]
fn a_daemon_that_talks_nonsense_is_a_failure() {
    let base = Base::new();
    let _requests = daemon(&base, |_| (200, "{\"not\": \"a status\"}".to_owned()));
    let output = run(&["status", "--base-dir", base.arg()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("another version"), "{}", shown(&output));
}

#[test]
fn nobody_knows_which_daemon() {
    let output = run(&["status"]);
    if std::path::Path::new("/etc/forrest/config.yaml").exists() {
        eprintln!("skipped: this host has a Forrest of its own");
        return;
    }
    assert_eq!(output.status.code(), Some(2));
    insta::assert_snapshot!("status_which", shown(&output));
}

#[test]
fn the_configuration_leads_to_the_daemon() {
    let base = Base::new();
    let _requests = serving(&base);
    let config = base.path().join("c.yaml");
    let text = format!(
        "host: {{ base_dir: {}, ram: 8G }}\ngithub: {{ app_id: 1, jwt_key_file: k, webhook_secret: s }}\nrepositories: {{}}\n",
        base.arg()
    );
    std::fs::write(&config, text).expect("written");
    let output = forrest().arg("status").env("FORREST_CONFIG", &config).output().expect("runs");
    assert_eq!(output.status.code(), Some(0), "{}", shown(&output));
}

#[test]
fn drain_and_resume_reach_the_daemon() {
    let base = Base::new();
    let requests = serving(&base);
    for verb in ["drain", "resume"] {
        let output = run(&[verb, "--base-dir", base.arg()]);
        assert_eq!(output.status.code(), Some(0), "{}", shown(&output));
        assert_eq!(requests.recv().expect("a request"), format!("POST /{verb}"));
        assert_eq!(requests.recv().expect("a request"), "GET /status");
    }
}

#[test]
fn stopping_needs_a_yes() {
    let base = Base::new();
    let requests = serving(&base);
    let output = run(&["stop", "build", "--base-dir", base.arg()]);
    assert_eq!(output.status.code(), Some(2));
    insta::assert_snapshot!("stop_without_yes", shown(&output));
    let output = run(&["stop", "--yes", "build", "--base-dir", base.arg()]);
    assert_eq!(output.status.code(), Some(0), "{}", shown(&output));
    let asked: Vec<String> = requests.try_iter().collect();
    assert_eq!(
        asked.last().map(String::as_str),
        Some("POST /runs/forrest-build-3kd92mfa81xq7p0z/stop")
    );
    assert_eq!(asked.len(), 3, "{asked:?}");
}

#[test]
fn what_cannot_be_stopped_is_listed() {
    let base = Base::new();
    let _requests = serving(&base);
    let output = run(&["stop", "--yes", "nothing", "--base-dir", base.arg()]);
    assert_eq!(output.status.code(), Some(4));
    insta::assert_snapshot!("stop_unknown", shown(&output));
}

#[test]
fn watching_goes_on_until_nobody_reads() {
    use std::io::{BufRead, BufReader};
    let base = Base::new();
    let count = std::sync::atomic::AtomicU64::new(0);
    let _requests = daemon(&base, move |_| {
        let pid = count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        (200, STATUS.replace("4711", &pid.to_string()))
    });
    let mut child = forrest()
        .args(["status", "--watch", "--json", "--base-dir", base.arg()])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("starts");
    let mut lines = BufReader::new(child.stdout.take().expect("its output"));
    for expected in 0..2 {
        let mut line = String::new();
        lines.read_line(&mut line).expect("a line");
        let status: serde_json::Value = serde_json::from_str(&line).expect("JSON in a line");
        assert_eq!(status["daemon"]["pid"], expected);
    }
    drop(lines);
    assert!(child.wait().expect("it ends").success());
}
