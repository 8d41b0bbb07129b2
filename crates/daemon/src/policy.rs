//! From the configuration to what the core decides by.

use forrest_config::Config;
use forrest_core::{Capacity, Policy, Timing};

/// The part of the configuration that decisions depend on.
pub(crate) fn policy(config: &Config) -> Policy {
    Policy {
        capacity: Capacity {
            ram: config.host.ram,
            cpus: config.host.cpus,
            min_free_disk: config.host.min_free_disk,
        },
        machines: config
            .machine_types()
            .into_iter()
            .map(|machine| (machine.name.clone(), machine))
            .collect(),
        max_runs: config
            .repositories
            .iter()
            .filter_map(|(name, repository)| Some((name.clone(), repository.max_runs?)))
            .collect(),
        timing: Timing {
            polling_interval: config.github.polling_interval,
            max_overtake: config.host.max_overtake,
            ..Timing::default()
        },
    }
}
