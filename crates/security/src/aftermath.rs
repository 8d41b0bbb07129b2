//! After all attacks: what is left, what was said, and what a terminal would make of it.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use forrest_testbed::Testbed;

use crate::measure::named;
use crate::report::Report;

/// Secrets that are left somewhere, and escape sequences that reach the operator.
pub async fn look(report: &mut Report, testbed: &Testbed) {
    report.add_result("secrets in what is left behind", secrets(testbed).await);
    report.add_result("escape sequences in forrest logs and status", terminal(testbed));
}

async fn secrets(testbed: &Testbed) -> Result<(bool, String)> {
    let secrets = testbed.secrets()?;
    let base_dir = testbed.plan().base_dir();
    let mut leaks = secrets.in_files(&base_dir)?;
    leaks.extend(secrets.in_file(&testbed.log())?);
    let status = serde_json::to_vec(&testbed.client().status().await?)?;
    leaks.extend(secrets.in_bytes("the status", &status));
    if let Some(pid) = testbed.daemon.as_ref().and_then(|daemon| daemon.pid()) {
        for file in ["cmdline", "environ"] {
            let place = format!("/proc/{pid}/{file}");
            leaks.extend(secrets.in_bytes(&place, &std::fs::read(&place)?));
        }
    }
    let configs = named(&base_dir.join("runs"), "job-config.img").len();
    let text = match leaks.first() {
        None => format!(
            "in no file below base_dir (images, snapshots, logs), log, status, argument or \
             environment; {configs} job-config disks are left"
        ),
        Some(leak) => format!("{} leaks, such as {} in {}", leaks.len(), leak.secret, leak.place),
    };
    Ok((leaks.is_empty() && configs == 0, text))
}

/// What the command line shows of guests that printed escape sequences.
fn terminal(testbed: &Testbed) -> Result<(bool, String)> {
    let plan = testbed.plan();
    let base_dir = plan.base_dir();
    let logs = named(&base_dir.join("runs"), "log.txt");
    let escapes = |bytes: &[u8]| bytes.iter().filter(|byte| **byte == 0x1b).count();
    let (mut raw, mut shown, mut bytes) = (0, 0, 0);
    let show = |arguments: &[&str]| -> Result<Vec<u8>> {
        let output = Command::new(&plan.forrest)
            .args(arguments)
            .arg("--config")
            .arg(testbed.config())
            .output()
            .context("forrest does not run")?;
        Ok([output.stdout, output.stderr].concat())
    };
    for log in &logs {
        raw += escapes(&std::fs::read(log)?);
        let runner = log.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
        let text = show(&["logs", &runner])?;
        shown += escapes(&text);
        bytes += text.len();
    }
    for arguments in [&["status"][..], &["status", "--json"]] {
        let text = show(arguments)?;
        shown += escapes(&text);
        bytes += text.len();
    }
    let text = format!(
        "{raw} in the logs of {} guests, {shown} in {bytes} bytes that the commands showed",
        logs.len()
    );
    Ok((shown == 0 && raw > 0 && bytes > 0, text))
}
