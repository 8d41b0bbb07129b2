//! The simulator as a program, steered with HTTP alone.

use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

#[tokio::test]
async fn the_program_is_steered_over_http() {
    let directory = tempfile::tempdir().expect("a directory");
    let key = directory.path().join("key.pem");
    let mut program = Command::new(env!("CARGO_BIN_EXE_github-sim"))
        .args(["--repo", "octo/hello", "--webhook-url", "http://127.0.0.1:9/hook"])
        .args(["--webhook-secret", "s", "--runner-url", "http://10.0.2.2:0", "--key-out"])
        .arg(&key)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("it starts");
    let mut lines = BufReader::new(program.stdout.take().expect("its output")).lines();
    let line = tokio::time::timeout(Duration::from_secs(30), lines.next_line()).await;
    let line = line.expect("in time").expect("readable").expect("a line");
    let told: Value = serde_json::from_str(&line).expect("a JSON line");
    let pem = std::fs::read_to_string(&key).expect("the key");
    assert!(pem.starts_with("-----BEGIN RSA PRIVATE KEY-----"));
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&key).expect("there"));
    assert_eq!(mode & 0o777, 0o600);

    let http = reqwest::Client::builder().user_agent("x").no_proxy().build().expect("a client");
    let url = |path: &str| format!("{}{path}", told["url"].as_str().expect("an address"));
    let help = http.get(url("/_sim/")).send().await.expect("one").text().await.expect("a text");
    assert!(help.contains("POST   /_sim/workflows"));
    let flow = json!({"repository": "octo/hello", "jobs": [
        {"name": "build", "runs_on": ["x"], "steps": ["echo hello"]}]});
    let made = http.post(url("/_sim/workflows")).json(&flow).send().await.expect("one");
    let made: Value = made.json().await.expect("JSON");
    let job = &made["jobs"][0]["id"];
    let wait = format!("/_sim/jobs/{job}/wait?status=queued&timeout_s=10");
    let view: Value = http.get(url(&wait)).send().await.expect("one").json().await.expect("JSON");
    assert_eq!((&view["name"], &view["status"]), (&"build".into(), &"queued".into()));
    assert!(view["times"]["queued"].as_f64().expect("seconds") > 1.7e9);
    let wait = format!("/_sim/jobs/{job}/wait?status=completed&timeout_s=0");
    assert_eq!(http.get(url(&wait)).send().await.expect("one").status(), 408);
    let day = json!({"advance_s": 24 * 3600});
    http.post(url("/_sim/clock")).json(&day).send().await.expect("one");
    let view: Value = http
        .get(url(&format!("/_sim/jobs/{job}")))
        .send()
        .await
        .expect("one")
        .json()
        .await
        .expect("J");
    assert_eq!(view["conclusion"], "failure");
    let rerun = format!("/_sim/runs/{}/rerun", made["run_id"]);
    assert_eq!(http.post(url(&rerun)).send().await.expect("one").status(), 200);
    let events: Value =
        http.get(url("/_sim/events")).send().await.expect("one").json().await.expect("JSON");
    assert_eq!(events[0]["kind"], "job_queued");
    let wrong = json!({"repository": "octo/hello", "jobs": [], "typo": 1});
    let wrong = http.post(url("/_sim/workflows")).json(&wrong).send().await.expect("one");
    assert_eq!(wrong.status(), 400);
    for path in ["/_sim/nothing", "/_sim/jobs/1", "/_sim/jobs/x"] {
        assert_eq!(http.get(url(path)).send().await.expect("one").status(), 404, "{path}");
    }
}
