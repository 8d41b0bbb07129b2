//! Whether a daemon serves this base directory already, and whether one could.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use forrest_config::{Config, WebhookListen};
use rustix::fs::FlockOperation;

use super::config::counted;
use super::{Area, Findings};
use crate::control::{Client, ControlError, Status};
use crate::inspect::runs::{self, Life};

pub(super) async fn examine(config: &Config, findings: &mut Findings) {
    let base_dir = config.host.base_dir.resolve();
    if !base_dir.is_dir() {
        return;
    }
    match Client::new(base_dir).status().await {
        Ok(status) => serving(&status, findings),
        Err(ControlError::NotRunning { .. }) => not_serving(config, base_dir, findings).await,
        Err(error) => findings.problem(
            Area::Daemon,
            error.to_string(),
            "see its log (`journalctl -u forrest`); restarting it ends no virtual machine",
        ),
    }
}

fn serving(status: &Status, findings: &mut Findings) {
    let daemon = &status.daemon;
    findings.ok(
        Area::Daemon,
        format!(
            "a daemon (process {}, version {}) serves {} with {}",
            daemon.pid,
            daemon.version,
            daemon.webhooks,
            daemon.config.display()
        ),
    );
    if daemon.version != env!("CARGO_PKG_VERSION") {
        findings.warning(
            Area::Daemon,
            format!(
                "the daemon is version {}, this command {}",
                daemon.version,
                env!("CARGO_PKG_VERSION")
            ),
            "restart the daemon; virtual machines go on meanwhile",
        );
    }
    if status.view.draining {
        findings.warning(
            Area::Daemon,
            "new runs are held back: somebody said `forrest drain`",
            "`forrest resume` lets them start again",
        );
    }
    for repository in &status.view.repositories {
        if let Some(trouble) = &repository.trouble {
            findings.warning(
                Area::Daemon,
                format!("{} could not be polled: {trouble}", repository.name),
                "see what is found about GitHub",
            );
        }
    }
    for machine in &status.view.machines {
        if let (Some(trouble), 1..) = (&machine.trouble, machine.failures) {
            findings.warning(
                Area::Daemon,
                format!(
                    "{} failed to start {} times in a row: {trouble}",
                    machine.name, machine.failures
                ),
                "`forrest logs` shows the console of its last run",
            );
        }
    }
}

async fn not_serving(config: &Config, base_dir: &Path, findings: &mut Findings) {
    match lock_holder(base_dir) {
        Some(pid) => findings.problem(
            Area::Daemon,
            format!("process {pid} holds {} and does not answer", base_dir.display()),
            "it may be starting or stopping; otherwise see its log, and restart it",
        ),
        None => findings.ok(Area::Daemon, "no daemon runs; one could start"),
    }
    let live = runs::runs(base_dir).unwrap_or_default();
    let live = live.iter().filter(|run| matches!(run.life(), Ok(Life::Live))).count();
    if live > 0 {
        findings.warning(
            Area::Daemon,
            format!(
                "{} and no daemon looks after them",
                counted(live, "virtual machine runs", "virtual machines run")
            ),
            "start the daemon: it takes them over",
        );
    }
    match config.host.webhook_listen {
        WebhookListen::Tcp(address) => match tokio::net::TcpListener::bind(address).await {
            Ok(_) => findings.ok(Area::Daemon, format!("{address} is free for webhooks")),
            Err(error) => findings.problem(
                Area::Daemon,
                format!("webhooks cannot be received on {address}: {error}"),
                "see what else uses the address (`ss -ltnp`), or change host.webhook_listen",
            ),
        },
        WebhookListen::Unix => {
            for name in ["webhook.sock", "control.sock"] {
                let path = base_dir.join(name);
                let other =
                    std::fs::symlink_metadata(&path).is_ok_and(|m| !m.file_type().is_socket());
                if other {
                    findings.problem(
                        Area::Daemon,
                        format!("{} is in the way: it is no socket", path.display()),
                        "move it away",
                    );
                }
            }
        }
    }
}

/// The process that holds the daemon's lock; `?` where it does not say which.
fn lock_holder(base_dir: &Path) -> Option<String> {
    let file = File::open(base_dir.join("daemon.lock")).ok()?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut pid = String::new();
            let _ = file.take(32).read_to_string(&mut pid);
            let pid = pid.trim();
            Some(if pid.is_empty() { "?".to_owned() } else { pid.to_owned() })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_lock_is_noticed() {
        let base = tempfile::tempdir().expect("a directory");
        assert_eq!(lock_holder(base.path()), None);
        let path = base.path().join("daemon.lock");
        std::fs::write(&path, "4711\n").expect("write");
        assert_eq!(lock_holder(base.path()), None);
        let held = File::open(&path).expect("open");
        rustix::fs::flock(&held, FlockOperation::NonBlockingLockExclusive).expect("lock");
        assert_eq!(lock_holder(base.path()), Some("4711".to_owned()));
    }
}
