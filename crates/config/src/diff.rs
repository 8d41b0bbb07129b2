//! What changes from one configuration to the next, and when it takes effect.

use std::collections::BTreeSet;

use forrest_core::model::MachineTypeName;

use crate::config::Config;

/// The difference between two configurations.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// Changed fields that a running daemon keeps its old value of until it is restarted.
    pub needs_restart: Vec<&'static str>,
    /// Changed fields of `host` and `github` that take effect at once.
    pub applied: Vec<&'static str>,
    /// New machine types.
    pub added: Vec<MachineTypeName>,
    /// Machine types that are no longer there.
    pub removed: Vec<MachineTypeName>,
    /// Machine types with a changed field; runs that exist keep what they were created with.
    pub changed: Vec<MachineTypeName>,
    /// Whether a repository's own settings (token, `max_runs`) changed.
    pub repositories: bool,
}

impl Changes {
    /// Whether nothing changed that Forrest acts on.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Config {
    /// What changes when this configuration replaces `old`.
    pub fn diff(&self, old: &Self) -> Changes {
        let mut changes = Changes::default();
        let (host, github) = (&self.host, &self.github);
        let (old_host, old_github) = (&old.host, &old.github);
        let needs_restart = [
            ("host.base_dir", host.base_dir != old_host.base_dir),
            ("host.accel", host.accel != old_host.accel),
            ("host.webhook_listen", host.webhook_listen != old_host.webhook_listen),
            ("host.webhook_group", host.webhook_group != old_host.webhook_group),
            ("host.qemu", host.qemu != old_host.qemu),
            ("host.vm_uids", host.vm_uids != old_host.vm_uids),
            ("github.app_id", github.app_id != old_github.app_id),
            ("github.jwt_key_file", github.jwt_key_file != old_github.jwt_key_file),
            ("github.api_url", github.api_url != old_github.api_url),
        ];
        let applied = [
            ("host.ram", host.ram != old_host.ram),
            ("host.cpus", host.cpus != old_host.cpus),
            ("host.min_free_disk", host.min_free_disk != old_host.min_free_disk),
            ("host.max_overtake", host.max_overtake != old_host.max_overtake),
            ("host.keep_runs", host.keep_runs != old_host.keep_runs),
            ("host.keep_runs_for", host.keep_runs_for != old_host.keep_runs_for),
            ("host.network.filter", host.network_filter != old_host.network_filter),
            ("github.webhook_secret", github.webhook_secret != old_github.webhook_secret),
            ("github.polling_interval", github.polling_interval != old_github.polling_interval),
        ];
        let names = |fields: &[(&'static str, bool)]| {
            fields.iter().filter(|(_, changed)| *changed).map(|(name, _)| *name).collect()
        };
        changes.needs_restart = names(&needs_restart);
        changes.applied = names(&applied);
        self.diff_machines(old, &mut changes);
        changes
    }

    fn diff_machines(&self, old: &Self, changes: &mut Changes) {
        let names: BTreeSet<&MachineTypeName> =
            self.machines().chain(old.machines()).map(|machine| &machine.name).collect();
        for name in names {
            match (old.machine(name), self.machine(name)) {
                (None, Some(_)) => changes.added.push(name.clone()),
                (Some(_), None) => changes.removed.push(name.clone()),
                (before, after) if before != after => changes.changed.push(name.clone()),
                _ => {}
            }
        }
        let settings = |config: &Self| -> Vec<_> {
            let all = config.repositories.iter();
            all.map(|(name, r)| (name.clone(), r.persistence_token.clone(), r.max_runs)).collect()
        };
        changes.repositories = settings(self) != settings(old);
    }
}
