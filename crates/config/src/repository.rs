//! `repositories`: whose jobs run here.

use std::collections::{BTreeMap, HashMap};

use forrest_core::model::{MachineTypeName, Repository};

use crate::bases::Outline;
use crate::decode::{Decoder, Slot};
use crate::diagnostic::Code;
use crate::host::Limits;
use crate::machine::{self, Machine};
use crate::path::Bases;
use crate::problem::Problem;
use crate::read;
use crate::secret::Secret;
use crate::source::Span;
use crate::tables::REPOSITORY;

/// A repository whose jobs run here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepositoryConfig {
    /// What a job must leave behind for its disk to become the machine image; `None`: no job can.
    pub persistence_token: Option<Secret>,
    /// The most runs at a time, of all its machine types together; `None`: not limited.
    pub max_runs: Option<u32>,
    /// Its machine types by their own names.
    pub machines: BTreeMap<String, Machine>,
}

/// What every section below `repositories` is read with.
pub(crate) struct Context<'a> {
    pub bases: &'a Bases,
    pub limits: &'a Limits,
}

/// What was found below `repositories`.
#[derive(Default)]
pub(crate) struct Repositories {
    /// Those that are sound.
    pub sound: BTreeMap<Repository, RepositoryConfig>,
    /// Every machine type that has a usable name, for checking what `base_machine` leads to.
    pub outlines: Vec<Outline>,
    /// How many machine types there are, sound or not.
    pub machines: usize,
}

/// Reads the section.
pub(crate) fn decode(d: &mut Decoder<'_>, slot: &Slot, context: &Context<'_>) -> Repositories {
    let mut all = Repositories::default();
    let mut seen: HashMap<String, Span> = HashMap::new();
    for (owner, slot, _) in d.map(slot).unwrap_or_default() {
        // Any sound name will do for the other part.
        let sound = Repository::new(&owner, "x").is_ok();
        if !sound {
            bad_name(d, &slot, "an owner");
        }
        for (name, slot, _) in d.map(&slot).unwrap_or_default() {
            let repository = match Repository::new(&owner, &name) {
                Ok(repository) => Some(repository),
                Err(_) if sound => {
                    bad_name(d, &slot, "a repository");
                    None
                }
                Err(_) => None,
            };
            // GitHub does not tell names apart by case.
            let key = format!("{owner}/{name}").to_lowercase();
            if let Some(first) = seen.insert(key, slot.key) {
                let problem =
                    Problem::error(Code::Duplicate, slot.key, "the repository is there twice")
                        .note(first, "the first one is here")
                        .help("keep one; GitHub does not tell names apart by case");
                d.report(&slot, problem);
            }
            let settings = repository_settings(d, &slot, repository.as_ref(), context, &mut all);
            if let (Some(repository), Some(settings)) = (repository, settings) {
                all.sound.insert(repository, settings);
            }
        }
    }
    all
}

fn bad_name(d: &mut Decoder<'_>, slot: &Slot, what: &str) {
    let message = format!("this cannot be the name of {what}");
    let help = "use 1 to 100 letters, digits, '-', '_' or '.', and not only dots";
    d.report(slot, Problem::error(Code::BadValue, slot.key, message).help(help));
}

fn repository_settings(
    d: &mut Decoder<'_>,
    slot: &Slot,
    repository: Option<&Repository>,
    context: &Context<'_>,
    all: &mut Repositories,
) -> Option<RepositoryConfig> {
    let r = d.object(slot, &REPOSITORY)?;
    let persistence_token = read::secret(d, &r, "persistence_token", context.bases);
    let max_runs = r.optional("max_runs", |s| d.integer(s));
    let entries = r.required("machines", |s| d.map(s)).unwrap_or_default();
    let mut machines = BTreeMap::new();
    let mut seen: HashMap<String, Span> = HashMap::new();
    let mut sound = true;
    for (name, mut slot, written) in entries {
        all.machines += 1;
        d.own(&mut slot, written);
        if let Some(first) = seen.insert(name.to_lowercase(), slot.key) {
            let problem =
                Problem::error(Code::Duplicate, slot.key, "the machine type is there twice")
                    .note(first, "the first one is here")
                    .help("rename one; jobs ask for it by a label, and labels have no case");
            d.report(&slot, problem);
        }
        // The name's own check needs no repository, so that one bad name does not hide another.
        let own = Repository::new("x", "x").and_then(|r| MachineTypeName::new(r, &name));
        if own.is_err() {
            bad_name(d, &slot, "a machine type");
        }
        let full = repository.and_then(|r| MachineTypeName::new(r.clone(), &name).ok());
        match machine::decode(d, &slot, full, context, &mut all.outlines) {
            Some(machine) => {
                machines.insert(name.to_string(), machine);
            }
            None => sound = false,
        }
    }
    r.slot("machines")?;
    if !sound {
        return None;
    }
    Some(RepositoryConfig { persistence_token: persistence_token?, max_runs: max_runs?, machines })
}
