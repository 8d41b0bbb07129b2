//! The configuration once it is read and checked.

use std::collections::BTreeMap;

use forrest_core::model::{MachineType, MachineTypeName, Repository};

use crate::github::GitHub;
use crate::host::Host;
use crate::labels;
use crate::machine::{Base, Machine};
use crate::repository::RepositoryConfig;

/// A complete configuration without contradictions.
///
/// Guaranteed for every value that [`Config::load`](crate::Config::load) returns: each
/// `base_machine` names a machine type of this configuration and no chain of them leads back; every
/// machine type fits into the host's RAM and CPUs on its own; no machine type has both a snapshot
/// and shared directories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The computer that runs the machines.
    pub host: Host,
    /// How to reach GitHub.
    pub github: GitHub,
    /// Whose jobs run here.
    pub repositories: BTreeMap<Repository, RepositoryConfig>,
}

impl Config {
    /// Every machine type, ordered by name.
    pub fn machines(&self) -> impl Iterator<Item = &Machine> {
        self.repositories.values().flat_map(|repository| repository.machines.values())
    }

    /// The machine type of this name.
    pub fn machine(&self, name: &MachineTypeName) -> Option<&Machine> {
        self.repositories.get(name.repository())?.machines.get(name.machine())
    }

    /// What the core needs to know of every machine type, ordered by name.
    ///
    /// Their labels are `self-hosted`, `forrest`, `linux`, the host's architecture as GitHub names
    /// it, the machine's own name, and those that the configuration adds.
    pub fn machine_types(&self) -> Vec<MachineType> {
        self.machines().map(|machine| machine.machine_type(std::env::consts::ARCH)).collect()
    }
}

impl Machine {
    fn machine_type(&self, architecture: &str) -> MachineType {
        MachineType {
            name: self.name.clone(),
            labels: labels::all(self.name.machine(), &self.labels, architecture),
            base_machine: match &self.base {
                Base::Machine(name) => Some(name.clone()),
                Base::Image(_) => None,
            },
            ram: self.ram,
            cpus: self.cpus,
            disk: self.disk,
            max_runs: self.max_runs,
            boot_timeout: self.boot_timeout,
            idle_timeout: self.idle_timeout,
            job_timeout: self.job_timeout,
            snapshot: self.snapshot,
        }
    }
}
