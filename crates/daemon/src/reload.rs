//! The configuration file is watched, and a sound new version takes effect.
//!
//! The file's directory is watched, not the file: editors and configuration management replace files
//! by renaming. A broken new version is reported, and the old one stays in force.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use forrest_config::Config;
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

use crate::driver::{Inbox, Message};
use crate::error::DaemonError;

/// How long the file has to rest before it is read: editors write in several steps.
const SETTLE: Duration = Duration::from_millis(100);

/// Watches the file for as long as it is kept.
#[derive(Debug)]
pub(crate) struct Reload {
    _watcher: RecommendedWatcher,
}

impl Reload {
    /// Begins to watch.
    ///
    /// # Errors
    /// Where the operating system does not let the directory be watched.
    pub(crate) fn start(
        path: &Path,
        current: Arc<Config>,
        inbox: Inbox,
    ) -> Result<Self, DaemonError> {
        let file = path.file_name().map(ToOwned::to_owned);
        // One waiting change stands for all that follow it.
        let (changed, changes) = mpsc::channel(1);
        // It may have changed between its first reading and now.
        let _ = changed.try_send(());
        let watch_error = |source| DaemonError::WatchConfig { path: path.to_owned(), source };
        let mut watcher =
            notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
                let ours = match &event {
                    Ok(event) => {
                        !event.kind.is_access()
                            && event.paths.iter().any(|path| path.file_name() == file.as_deref())
                    }
                    Err(_) => true,
                };
                if ours {
                    let _ = changed.try_send(());
                }
            })
            .map_err(watch_error)?;
        let dir = match path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        watcher.watch(dir, RecursiveMode::NonRecursive).map_err(watch_error)?;
        let hangup = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup())
            .map_err(DaemonError::Signals)?;
        tokio::spawn(reload(path.to_owned(), current, inbox, changes, hangup));
        Ok(Self { _watcher: watcher })
    }
}

async fn reload(
    path: PathBuf,
    mut current: Arc<Config>,
    inbox: Inbox,
    mut changes: mpsc::Receiver<()>,
    mut hangup: tokio::signal::unix::Signal,
) {
    loop {
        let asked = tokio::select! {
            change = changes.recv() => {
                if change.is_none() {
                    return;
                }
                // Wait until the file rests.
                while let Ok(Some(())) = tokio::time::timeout(SETTLE, changes.recv()).await {}
                false
            }
            _ = hangup.recv() => true,
        };
        let Some(config) = load(&path, &current, asked) else { continue };
        current = Arc::clone(&config);
        if inbox.send(Message::ConfigLoaded(config)).await.is_err() {
            return;
        }
    }
}

/// The new configuration, where there is a sound one that says something new.
fn load(path: &Path, current: &Config, asked: bool) -> Option<Arc<Config>> {
    let loaded = match Config::load(path) {
        Ok(loaded) => loaded,
        Err(errors) => {
            let path = path.display();
            tracing::error!("{path} cannot be used; the configuration stays as it was:\n{errors}");
            return None;
        }
    };
    let changes = loaded.config.diff(current);
    if changes.is_empty() && !asked {
        return None;
    }
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    for field in &changes.needs_restart {
        tracing::warn!("{field} changed: that takes effect when Forrest is restarted");
    }
    tracing::info!("the configuration was loaded again");
    Some(Arc::new(loaded.config))
}
