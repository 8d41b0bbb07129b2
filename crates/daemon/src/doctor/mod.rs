//! What is right and wrong with this host, its configuration and GitHub, and what to do about it.
//!
//! Looks and changes nothing: no directory is made, no daemon is disturbed. Findings are data; the
//! command line shows them.
//!
//! - `config`: the file itself and the files that it names.
//! - `host`: hardware virtualisation, QEMU, RAM, CPUs.
//! - `containment`: what keeps guests inside.
//! - `storage`: the base directory and its file system, images.
//! - `running`: sockets, and the daemon that may be serving already.
//! - `github`: the App, its installations, the clock. The only part that needs a network.

mod config;
mod containment;
mod github;
mod host;
mod running;
mod storage;

use std::path::Path;

use serde::Serialize;

/// What a finding is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Area {
    /// The configuration and the files that it names.
    Configuration,
    /// Hardware virtualisation, QEMU, RAM, CPUs.
    Host,
    /// The base directory and the images.
    Storage,
    /// The daemon and its sockets.
    Daemon,
    /// GitHub and the App.
    #[serde(rename = "github")]
    GitHub,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Works, but deserves a look.
    Warning,
    /// Forrest cannot do its work like this.
    Problem,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it is about.
    pub area: Area,
    /// How bad it is.
    pub level: Level,
    /// What was found. May quote files and answers from elsewhere.
    pub what: String,
    /// What to do about it.
    pub advice: Option<String>,
}

/// What to examine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// Leave out what needs a network.
    pub offline: bool,
}

/// Findings under way.
#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn ok(&mut self, area: Area, what: impl Into<String>) {
        self.0.push(Finding { area, level: Level::Ok, what: what.into(), advice: None });
    }

    fn warning(&mut self, area: Area, what: impl Into<String>, advice: impl Into<String>) {
        let (what, advice) = (what.into(), Some(advice.into()));
        self.0.push(Finding { area, level: Level::Warning, what, advice });
    }

    fn problem(&mut self, area: Area, what: impl Into<String>, advice: impl Into<String>) {
        let (what, advice) = (what.into(), Some(advice.into()));
        self.0.push(Finding { area, level: Level::Problem, what, advice });
    }
}

/// Examines everything. Where the configuration cannot be used, what does not depend on it is
/// examined all the same.
pub async fn examine(config: &Path, options: Options) -> Vec<Finding> {
    let mut findings = Findings::default();
    let loaded = config::examine(config, &mut findings);
    let config = loaded.as_ref();
    host::examine(config, &mut findings).await;
    containment::examine(config, &mut findings).await;
    if let Some(config) = config {
        storage::examine(config, &mut findings);
        running::examine(config, &mut findings).await;
        if !options.offline {
            github::examine(config, &mut findings).await;
        }
    }
    findings.0
}
