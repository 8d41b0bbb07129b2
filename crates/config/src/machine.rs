//! `repositories.<owner>.<repository>.machines.<machine>`: machine types.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use forrest_core::model::{Bytes, MachineTypeName, UseBase};

use crate::bases::Outline;
use crate::decode::{Decoder, Reader, Slot};
use crate::defaults;
use crate::diagnostic::Code;
use crate::labels;
use crate::network::{Destination, DestinationError};
use crate::path::ConfigPath;
use crate::persist::{self, PersistFrom};
use crate::problem::Problem;
use crate::read;
use crate::repository::Context;
use crate::shared::{self, Shared};
use crate::tables::{MACHINE, NETWORK, TEMPLATE};

/// A machine type: what a job can ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// `owner/repository/machine`.
    pub name: MachineTypeName,
    /// What sets the guest up and starts the runner.
    pub setup_template: SetupTemplate,
    /// What its runs start from as long as there is no machine image.
    pub base: Base,
    /// When they start from the base although there is a machine image.
    pub use_base: UseBase,
    /// Virtual CPUs of the guest, at least 1.
    pub cpus: u32,
    /// RAM of the guest, whole MiB.
    pub ram: Bytes,
    /// Size of the disk, whole MiB.
    pub disk: Bytes,
    /// Host directories for the guest; tags are unique.
    pub shared: Vec<Shared>,
    /// Whether runs start from a snapshot of the booted guest.
    pub snapshot: bool,
    /// How long the guest may take until it is ready.
    pub boot_timeout: Duration,
    /// How long a runner waits for a job before it is taken away again.
    pub idle_timeout: Duration,
    /// How long a job may run; `None`: as long as GitHub lets it.
    pub job_timeout: Option<Duration>,
    /// How many machine images are kept, at least 1: the current one.
    pub keep_generations: u32,
    /// How long those that were replaced are kept.
    pub keep_generations_for: Duration,
    /// The most runs at a time; `None`: not limited.
    pub max_runs: Option<u32>,
    /// Labels in addition to those that every machine type has.
    pub labels: Vec<String>,
    /// Which jobs may change the machine image.
    pub persist_from: PersistFrom,
    /// Which destinations the guest can reach.
    pub network: Network,
}

/// What sets a guest up.
#[derive(Clone, PartialEq, Eq)]
pub struct SetupTemplate {
    /// A directory with `cloud-init/` and `job-config/`.
    pub path: ConfigPath,
    /// What `<NAME>` is replaced by in the files of both. May hold secrets: not shown by `Debug`.
    pub parameters: BTreeMap<String, String>,
}

impl fmt::Debug for SetupTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&String> = self.parameters.keys().collect();
        f.debug_struct("SetupTemplate")
            .field("path", &self.path)
            .field("parameters", &names)
            .finish()
    }
}

/// What the runs of a machine type start from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Base {
    /// An operating system image.
    Image(ConfigPath),
    /// The machine image of another machine type, which exists and does not lead back here.
    Machine(MachineTypeName),
}

/// Which destinations a guest can reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Whether the guest is kept away from the host and from private networks.
    pub filter: bool,
    /// Destinations that the filter lets through.
    pub allow: Vec<Destination>,
}

/// The names that templates replace by themselves.
pub const BUILT_IN_PARAMETERS: [&str; 6] =
    ["REPO_OWNER", "REPO_NAME", "MACHINE_NAME", "JITCONFIG", "RUNNER_NAME", "INSTANCE_ID"];

/// Reads a machine type. `name` is `None` where it or its repository's is unusable, which has been
/// reported.
pub(crate) fn decode(
    d: &mut Decoder<'_>,
    slot: &Slot,
    name: Option<MachineTypeName>,
    context: &Context<'_>,
    outlines: &mut Vec<Outline>,
) -> Option<Machine> {
    let Some(r) = d.object(slot, &MACHINE) else {
        outlines.extend(name.map(|name| Outline { name, base: None }));
        return None;
    };
    let setup_template = r.required("setup_template", |s| template(d, s, context));
    let (base, outline) = base(d, slot, &r, context);
    outlines.extend(name.clone().map(|name| Outline { name, base: outline }));
    let use_base = r.optional("use_base", |s| d.word(s).map(use_base));
    let cpus = r.required("cpus", |s| d.integer(s));
    let ram = r.required("ram", |s| d.size(s));
    check_limits(d, &r, cpus, ram, context);
    let disk = r.required("disk", |s| d.size(s));
    let shared = r.optional("shared", |s| shared::decode(d, s, context));
    let snapshot = r.optional("snapshot", |s| d.bool(s));
    check_snapshot(d, &r, &snapshot);
    let boot_timeout = r.optional("boot_timeout", |s| d.duration(s));
    let idle_timeout = r.optional("idle_timeout", |s| d.duration(s));
    let job_timeout = r.optional("job_timeout", |s| d.duration(s));
    let keep_generations = r.optional("keep_generations", |s| d.integer(s));
    let keep_generations_for = r.optional("keep_generations_for", |s| d.duration(s));
    let max_runs = r.optional("max_runs", |s| d.integer(s));
    if let Some(name) = &name {
        labels::check_name(d, slot, name.machine());
    }
    let labels = r.optional("labels", |s| labels::decode(d, s, name.as_ref()));
    let persist_from = r.optional("persist_from", |s| persist::decode(d, s));
    let network = r.optional("network", |s| network(d, s, context));
    let unfiltered = || Network { filter: context.limits.filter, allow: Vec::new() };
    Some(Machine {
        name: name?,
        setup_template: setup_template?,
        base: base?,
        use_base: use_base?.unwrap_or_default(),
        cpus: cpus?,
        ram: ram?,
        disk: disk?,
        shared: shared?.unwrap_or_default(),
        snapshot: snapshot?.unwrap_or(false),
        boot_timeout: boot_timeout?.unwrap_or(defaults::BOOT_TIMEOUT),
        idle_timeout: idle_timeout?.unwrap_or(defaults::IDLE_TIMEOUT),
        job_timeout: job_timeout?,
        keep_generations: keep_generations?.unwrap_or(defaults::KEEP_GENERATIONS),
        keep_generations_for: keep_generations_for?.unwrap_or(defaults::KEEP_GENERATIONS_FOR),
        max_runs: max_runs?,
        labels: labels?.unwrap_or_default(),
        persist_from: persist_from?.unwrap_or_default(),
        network: network?.unwrap_or_else(unfiltered),
    })
}

fn use_base(word: &'static str) -> UseBase {
    match word {
        "always" => UseBase::Always,
        "never" => UseBase::Never,
        _ => UseBase::IfNewer,
    }
}

fn template(d: &mut Decoder<'_>, slot: &Slot, context: &Context<'_>) -> Option<SetupTemplate> {
    let r = d.object(slot, &TEMPLATE)?;
    let path = r.required("path", |s| read::path(d, s, context.bases));
    let entries = r.optional("parameters", |s| d.parameters(s));
    let mut parameters = BTreeMap::new();
    let mut sound = true;
    for (name, slot, text) in entries.as_ref().cloned().flatten().unwrap_or_default() {
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let problem = if BUILT_IN_PARAMETERS.contains(&&*name) {
            Some(("Forrest itself fills this parameter", "choose another name"))
        } else if name.is_empty() || !name.bytes().all(word) {
            Some(("this cannot be the name of a parameter", "use letters, digits and '_'"))
        } else {
            None
        };
        if let Some((message, help)) = problem {
            d.report(&slot, Problem::error(Code::BadValue, slot.key, message).help(help));
            sound = false;
        }
        match text {
            Some(text) => {
                parameters.insert(name.to_string(), text);
            }
            None => sound = false,
        }
    }
    entries?;
    sound.then_some(())?;
    Some(SetupTemplate { path: path?, parameters })
}

type BaseOutline = Option<(MachineTypeName, Slot)>;

fn base(
    d: &mut Decoder<'_>,
    slot: &Slot,
    r: &Reader,
    context: &Context<'_>,
) -> (Option<Base>, BaseOutline) {
    match (r.slot("base_image"), r.slot("base_machine")) {
        (None, None) if !r.lacks("base_image") || !r.lacks("base_machine") => (None, None),
        (None, None) => {
            let message = "the machine type has neither \"base_image\" nor \"base_machine\"";
            let help = "add base_image: <path of an operating system image>, or base_machine: \
                        owner/repository/machine";
            let problem = Problem::error(Code::Base, slot.key, message).help(help);
            d.report(slot, problem);
            (None, None)
        }
        (Some(image), None) => (read::path(d, image, context.bases).map(Base::Image), None),
        (image, Some(machine)) => {
            if let Some(image) = image {
                let message = "\"base_image\" has no effect: \"base_machine\" wins";
                let problem = Problem::warning(Code::Ignored, image.key, message)
                    .note(machine.key, "base_machine is here")
                    .help("remove one of the two, or set base_machine: null");
                d.report(image, problem);
                read::path(d, image, context.bases);
            }
            let Some(text) = d.text(machine) else { return (None, None) };
            match text.parse::<MachineTypeName>() {
                Ok(name) => (Some(Base::Machine(name.clone())), Some((name, machine.clone()))),
                Err(_) => {
                    let message = format!("{} does not name a machine type", d.quote(machine));
                    d.bad(machine, message, "write owner/repository/machine");
                    (None, None)
                }
            }
        }
    }
}

/// Machine types that could never run on this host.
fn check_limits(
    d: &mut Decoder<'_>,
    r: &Reader,
    cpus: Option<u32>,
    ram: Option<Bytes>,
    context: &Context<'_>,
) {
    if let (Some(ram), Some(limit), Some(slot)) = (ram, &context.limits.ram, r.slot("ram"))
        && ram > limit.value
    {
        let message = format!("no run can start: {ram} of RAM are more than host.ram has");
        let problem = Problem::error(Code::NeverRuns, slot.at, message)
            .note(limit.slot.at, format!("host.ram is {}", limit.value))
            .help(format!("write {} or less, or raise host.ram", limit.value));
        d.report(slot, problem);
    }
    if let (Some(cpus), Some(limit), Some(slot)) = (cpus, &context.limits.cpus, r.slot("cpus"))
        && cpus > limit.value
    {
        let message = format!("no run can start: {cpus} CPUs are more than host.cpus has");
        let problem = Problem::error(Code::NeverRuns, slot.at, message)
            .note(limit.slot.at, format!("host.cpus is {}", limit.value))
            .help(format!("write {} or less, or raise host.cpus", limit.value));
        d.report(slot, problem);
    }
}

/// A 9p mount blocks what a snapshot is saved with.
fn check_snapshot(d: &mut Decoder<'_>, r: &Reader, snapshot: &Option<Option<bool>>) {
    let (Some(slot), Some(shared)) = (r.slot("snapshot"), r.slot("shared")) else { return };
    let shares = d.list(shared).is_some_and(|items| !items.is_empty());
    if *snapshot == Some(Some(true)) && shares {
        let message = "a guest with shared directories cannot be saved as a snapshot";
        let problem = Problem::error(Code::Conflict, slot.at, message)
            .note(shared.key, "the directories are shared here")
            .help("remove \"shared\", or write snapshot: false");
        d.report(slot, problem);
    }
}

fn network(d: &mut Decoder<'_>, slot: &Slot, context: &Context<'_>) -> Option<Network> {
    let r = d.object(slot, &NETWORK)?;
    let filter = r.optional("filter", |s| d.word(s).map(|word| word == "on"));
    let allow = r.optional("allow", |s| {
        let items = d.list(s)?;
        let read: Vec<Option<Destination>> = items.iter().map(|i| destination(d, i)).collect();
        read.into_iter().collect::<Option<Vec<Destination>>>()
    });
    let filter = filter?.unwrap_or(context.limits.filter);
    let allow = allow?.unwrap_or_default();
    if let Some(slot) = r.slot("allow")
        && !filter
        && !allow.is_empty()
    {
        let message = "\"allow\" has no effect: the filter is off";
        let problem = Problem::warning(Code::Ignored, slot.key, message)
            .help("remove it, or write filter: on");
        d.report(slot, problem);
    }
    Some(Network { filter, allow })
}

fn destination(d: &mut Decoder<'_>, slot: &Slot) -> Option<Destination> {
    let text = d.text(slot)?;
    match text.parse::<Destination>() {
        Ok(destination) => {
            if destination.is_everything() {
                let message = "this lets the guest reach everything, the host included";
                let problem = Problem::warning(Code::BadValue, slot.at, message).help(
                    "name the networks that jobs need, or write filter: off to say it plainly",
                );
                d.report(slot, problem);
            }
            Some(destination)
        }
        Err(error) => {
            let help = match &error {
                DestinationError::HostBits(network) => {
                    format!("write {network}, or leave the prefix out for a single address")
                }
                _ => "write an address, then /LEN for a network and :PORT for one port: \
                      192.168.1.10:443, 10.0.0.0/8, \"[fd00::1]:443\"; host names are not possible"
                    .to_owned(),
            };
            let message = match &error {
                DestinationError::HostBits(_) => error.to_string(),
                _ => format!("{} is not a destination: {error}", d.quote(slot)),
            };
            d.bad(slot, message, help);
            None
        }
    }
}
