//! After all attacks: what is left, what was said, and what a terminal would make of it.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use forrest_testbed::Testbed;
use forrest_testbed::secrets::Secrets;

use crate::measure::{below, named};
use crate::report::Report;

/// Secrets that are left somewhere, and escape sequences that reach the operator.
pub async fn look(report: &mut Report, testbed: &Testbed) {
    report.add_result("secrets in what is left behind", secrets(testbed).await);
    report.add_result("escape sequences in forrest logs and status", terminal(testbed));
}

/// Plays the demo, and searches all that it leaves and says.
pub fn of_demo(report: &mut Report, root: &Path, forrest: &Path) {
    println!("A whole demo ...");
    report.add_result("secrets in what a demo leaves behind", demo(root, forrest));
}

fn demo(root: &Path, forrest: &Path) -> Result<(bool, String)> {
    let program = forrest.with_file_name("forrest-demo");
    let played = Command::new(&program)
        .current_dir(root)
        .output()
        .with_context(|| format!("could not run {}: build it, too", program.display()))?;
    let said = [played.stdout, played.stderr].concat();
    ensure!(played.status.success(), "the demo failed:\n{}", String::from_utf8_lossy(&said));
    let dir = root.join("target/demo");
    let key = std::fs::read_to_string(dir.join("app-key.pem")).context("the App's key")?;
    let secrets = Secrets::new(&key);
    let mut leaks = secrets.in_bytes("what it said", &said);
    let (mut files, mut kept) = (0, Vec::new());
    for entry in std::fs::read_dir(&dir)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            files += below(&path).len();
            leaks.extend(secrets.in_files(&path)?);
        } else if ["app-key.pem", "config.yaml"].contains(&name.as_str()) {
            // The operator's own.
            kept.push(mode(&path)?);
        } else {
            files += 1;
            leaks.extend(secrets.in_file(&path)?);
        }
    }
    let configs = named(&dir.join("base/runs"), "job-config.img").len();
    let private = kept.iter().all(|mode| mode & 0o077 == 0);
    let text = match leaks.first() {
        None => format!(
            "in none of {files} files (images, snapshots, logs, the report), nor in the {} bytes that it said; \
             {configs} job-config disks are left; the key and the configuration are {}",
            said.len(),
            if private { "their owner's alone" } else { "OPEN TO OTHERS" },
        ),
        Some(leak) => format!("{} leaks, such as {} in {}", leaks.len(), leak.secret, leak.place),
    };
    Ok((leaks.is_empty() && configs == 0 && private && files > 0, text))
}

fn mode(path: &Path) -> Result<u32> {
    use std::os::unix::fs::MetadataExt;
    Ok(std::fs::metadata(path)?.mode() & 0o7777)
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
