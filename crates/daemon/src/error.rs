//! Why the daemon does not start. Once it runs, nothing ends it but a signal.

use std::net::SocketAddr;
use std::path::PathBuf;

/// Why the daemon could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DaemonError {
    /// The configuration is not sound.
    #[error("{0}")]
    Config(#[from] forrest_config::ConfigErrors),
    /// A file that the configuration names cannot be used.
    #[error("{0}")]
    Files(String),
    /// The App's key cannot be read.
    #[error("could not read the GitHub App's private key {}: {source}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// The GitHub client cannot be set up.
    #[error(transparent)]
    GitHub(#[from] forrest_github::GitHubError),
    /// The image store cannot be used.
    #[error(transparent)]
    Images(#[from] forrest_images::ImageError),
    /// Something about virtual machines on this host.
    #[error(transparent)]
    Vm(#[from] forrest_vm::VmError),
    /// Virtual machines cannot run here as configured.
    #[error("{0}")]
    Host(String),
    /// Another daemon serves the same directory.
    #[error(
        "another Forrest (process {pid}) serves {}: stop it first, or give this one a `base_dir` of its own",
        base_dir.display()
    )]
    AlreadyRunning {
        /// The directory.
        base_dir: PathBuf,
        /// What it wrote into its lock file.
        pid: String,
    },
    /// The lock file cannot be used.
    #[error("could not lock {}: {source}", path.display())]
    Lock {
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// A Unix socket cannot be bound.
    #[error("could not listen on {}: {source}", path.display())]
    ListenUnix {
        /// The socket's path.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// A TCP address cannot be bound.
    #[error("could not listen on {address}: {source}; is something else using it?")]
    ListenTcp {
        /// The address.
        address: SocketAddr,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// The configuration cannot be watched.
    #[error("could not watch {} for changes: {source}", path.display())]
    WatchConfig {
        /// The file.
        path: PathBuf,
        /// Why.
        source: notify::Error,
    },
    /// Signals cannot be received.
    #[error("could not listen for signals: {0}")]
    Signals(std::io::Error),
}
