//! `forrest doctor`: what it finds depends on the host, so only what does not is looked at.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::bench::{Base, run, shown, stdout};

/// A configuration whose key, template and image are missing, and whose GitHub nobody is at.
fn config(base: &Base) -> String {
    let path = base.path().parent().expect("a parent").join("config.yaml");
    let text = format!(
        "\
host: {{ base_dir: {}, ram: 1T, accel: tcg }}
github:
  app_id: 1234
  jwt_key_file: key.pem
  webhook_secret: hunter2
  api_url: http://127.0.0.1:1
repositories:
  acme:
    firmware:
      machines:
        build:
          setup_template: {{ path: template }}
          base_image: debian.img
          cpus: 4
          ram: 8G
          disk: 32G
",
        base.arg()
    );
    std::fs::write(&path, text).expect("written");
    path.to_str().expect("UTF-8").to_owned()
}

fn findings(report: &Value, area: &str, level: &str) -> Vec<String> {
    let all = report["findings"].as_array().expect("findings");
    all.iter()
        .filter(|finding| finding["area"] == area && finding["level"] == level)
        .map(|finding| finding["what"].as_str().expect("text").to_owned())
        .collect()
}

#[test]
fn every_area_is_looked_at_and_nothing_is_changed() {
    let base = Base::new();
    let config = config(&base);
    let output = run(&["doctor", "--offline", "--json", "--config", &config]);
    assert_eq!(output.status.code(), Some(1), "{}", shown(&output));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["fit"], false);
    let problems = findings(&report, "configuration", "problem").join("\n");
    for missing in ["key.pem", "template", "debian.img"] {
        assert!(problems.contains(missing), "{missing} is not missed: {problems}");
    }
    assert!(findings(&report, "host", "problem").join("\n").contains("host.ram is 1T"), "{report}");
    assert!(findings(&report, "storage", "ok").join("\n").contains("reflinks"), "{report}");
    assert!(findings(&report, "daemon", "ok").join("\n").contains("one could start"), "{report}");
    let all = report["findings"].as_array().expect("findings");
    assert!(all.iter().all(|finding| finding["area"] != "git-hub" && finding["area"] != "github"));
    assert!(all.iter().all(|f| f["level"] == "ok" || f["advice"].is_string()), "{report}");
    assert!(!stdout(&output).contains("hunter2"));
    assert_eq!(std::fs::read_dir(base.path()).expect("list").count(), 0);
}

#[test]
fn a_broken_configuration_does_not_hide_the_host() {
    let base = Base::new();
    let config = base.path().join("config.yaml");
    std::fs::write(&config, "host: [").expect("written");
    let config = config.to_str().expect("UTF-8");
    let output = run(&["doctor", "--offline", "--config", config]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout(&output).contains("Configuration\n  PROBLEM"), "{}", shown(&output));
    assert!(stdout(&output).contains("\nHost\n"), "{}", shown(&output));
}

#[test]
fn an_unreachable_github_is_a_problem_that_takes_little_time() {
    let base = Base::new();
    let config = config(&base);
    let key = base.path().parent().expect("a parent").join("key.pem");
    let made = std::process::Command::new("openssl")
        .args(["genrsa", "-traditional", "-out"])
        .arg(&key)
        .arg("2048")
        .output();
    if !made.is_ok_and(|made| made.status.success()) {
        assert!(std::env::var_os("CI").is_none(), "needs openssl, to make a key");
        eprintln!("skipped: needs openssl, to make a key");
        return;
    }
    let begun = Instant::now();
    let output = run(&["doctor", "--json", "--config", &config]);
    assert!(begun.elapsed() < Duration::from_secs(120), "took {:?}", begun.elapsed());
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let problems = findings(&report, "github", "problem");
    assert_eq!(problems.len(), 1, "{report}");
    assert!(problems[0].contains("GET /app"), "{problems:?}");
}
