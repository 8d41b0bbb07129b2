//! What this host can do to keep guests inside.
//!
//! Found out by trying, once at the start; a filter that was not possible then is tried again by each run
//! that needs it, so that installing `nft` is enough.

use forrest_config::Config;
use forrest_confine::{calls, files, filter, privileges};
use forrest_core::model::UidRange;

/// What keeps guests inside here.
#[derive(Debug, Clone)]
pub(crate) struct Containment {
    range: UidRange,
    /// Whether each QEMU can have a user of its own, or why not.
    users: Result<(), String>,
    /// Whether there can be egress filters, or why not.
    filter: Result<(), String>,
}

impl Containment {
    /// Finds out what is possible with these users, and removes filters whose virtual machines are gone.
    pub(crate) async fn find(range: UidRange) -> Self {
        let users = privileges::can_change_users(range);
        let filter = filter_possible(range).await;
        if filter.is_ok() {
            match filter::sweep(range).await {
                Ok(0) => {}
                Ok(removed) => tracing::info!("removed {removed} egress filters of ended machines"),
                Err(error) => tracing::warn!(%error, "could not look for left egress filters"),
            }
        }
        Self { range, users, filter }
    }

    /// The users that QEMUs run as; `None` where they run as Forrest's own.
    pub(crate) fn uids(&self) -> Option<UidRange> {
        self.users.is_ok().then_some(self.range)
    }

    /// Whether a guest can be filtered now.
    ///
    /// # Errors
    /// Why not, with what to do.
    pub(crate) async fn filter(&self) -> Result<(), String> {
        match self.filter {
            Ok(()) => Ok(()),
            Err(_) => filter_possible(self.range).await.map_err(|why| refusal(&why)),
        }
    }

    /// What is missing, in words for people.
    pub(crate) fn missing(&self) -> Vec<String> {
        let users =
            self.users.as_ref().err().map(|why| format!("QEMU runs as Forrest's own user: {why}"));
        let filter = self.filter.as_ref().err().map(|why| refusal(why));
        let calls = calls::rehearse().err();
        users.into_iter().chain(filter).chain(calls).chain(files::missing()).collect()
    }
}

fn refusal(why: &str) -> String {
    format!(
        "the egress filter cannot be put in place, and no run starts without: {why}; or set \
         `network.filter: off` to let guests reach whatever this host reaches"
    )
}

/// Whether egress filters can be put in place on this host, or why not.
///
/// # Errors
/// Why not, with what to do.
pub async fn filter_possible(range: UidRange) -> Result<(), String> {
    privileges::can_change_users(range)?;
    let missing = privileges::missing(&privileges::FOR_FILTER);
    if let Some(privilege) = missing.first() {
        return Err(format!(
            "this process lacks {}: run Forrest as root, or as a service with the unit in \
             contrib/systemd",
            privilege.name
        ));
    }
    filter::rehearse(range).await.map_err(|error| error.to_string())
}

/// Says which guests are not filtered, since the configuration says so.
pub(crate) fn log_unfiltered(config: &Config) {
    let names: Vec<String> =
        config.machines().filter(|m| !m.network.filter).map(|m| m.name.to_string()).collect();
    if !names.is_empty() {
        tracing::warn!(
            "`network.filter` is off: guests of {} reach whatever this host reaches, its own \
             services and networks included",
            names.join(", ")
        );
    }
}
