//! `host`: the computer that runs the machines.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use forrest_core::model::{Bytes, UidRange};

use crate::decode::{Decoder, Slot};
use crate::defaults;
use crate::path::{Bases, ConfigPath};
use crate::read;
use crate::tables::{HOST, HOST_NETWORK};

/// The computer that runs the machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Where images, runs, snapshots and sockets live.
    pub base_dir: ConfigPath,
    /// RAM that may be handed to machines.
    pub ram: Bytes,
    /// Hardware virtualisation or emulation.
    pub accel: Accel,
    /// Virtual CPUs that may be in use at a time; `None`: not limited.
    pub cpus: Option<u32>,
    /// Disk space that runs must leave free.
    pub min_free_disk: Bytes,
    /// Where webhooks come in.
    pub webhook_listen: WebhookListen,
    /// The group, by name or number, that may connect to the webhook socket; `None`: Forrest's own.
    pub webhook_group: Option<String>,
    /// How long a waiting job can be overtaken by smaller ones.
    pub max_overtake: Duration,
    /// How many finished runs' logs and records are kept.
    pub keep_runs: u32,
    /// How long they are kept after the run's end.
    pub keep_runs_for: Duration,
    /// The QEMU program, an absolute path or a name to look up in `PATH`; `None`: the usual one.
    pub qemu: Option<PathBuf>,
    /// The users that machines' QEMUs run as, one each.
    pub vm_uids: UidRange,
    /// Whether the egress filter is on where a machine type does not say.
    pub network_filter: bool,
}

/// How guests' instructions are executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Accel {
    /// [`Accel::Kvm`], and a clear refusal where that is unusable.
    #[default]
    Auto,
    /// By the processor's virtualisation extensions.
    Kvm,
    /// By emulation: works everywhere, slowly.
    Tcg,
}

/// Where webhooks come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WebhookListen {
    /// At the unix socket `<base_dir>/webhook.sock`.
    #[default]
    Unix,
    /// At a TCP address.
    Tcp(SocketAddr),
}

/// A value with the place that it came from.
pub(crate) struct Limit<T> {
    pub value: T,
    pub slot: Slot,
}

/// What is known of the host when machine types are checked, even if other parts are wrong.
#[derive(Default)]
pub(crate) struct Limits {
    pub ram: Option<Limit<Bytes>>,
    pub cpus: Option<Limit<u32>>,
    pub base_dir: Option<ConfigPath>,
    pub filter: bool,
}

/// Reads the section.
pub(crate) fn decode(d: &mut Decoder<'_>, slot: &Slot, bases: &Bases) -> (Option<Host>, Limits) {
    let mut limits = Limits { filter: true, ..Limits::default() };
    let Some(r) = d.object(slot, &HOST) else { return (None, limits) };
    let base_dir = r.required("base_dir", |s| read::path(d, s, bases));
    let ram = r.required("ram", |s| d.size(s));
    let accel = r.optional("accel", |s| d.word(s).map(accel));
    let cpus = r.optional("cpus", |s| d.integer(s));
    let min_free_disk = r.optional("min_free_disk", |s| d.size(s));
    let webhook_listen = r.optional("webhook_listen", |s| webhook_listen(d, s));
    let webhook_group = r.optional("webhook_group", |s| d.text(s));
    let max_overtake = r.optional("max_overtake", |s| d.duration(s));
    let keep_runs = r.optional("keep_runs", |s| d.integer(s));
    let keep_runs_for = r.optional("keep_runs_for", |s| d.duration(s));
    let qemu = r.optional("qemu", |s| qemu(d, s));
    let vm_uids = r.optional("vm_uids", |s| vm_uids(d, s));
    let filter = r.optional("network", |s| {
        let r = d.object(s, &HOST_NETWORK)?;
        r.optional("filter", |s| d.word(s).map(|word| word == "on"))
    });
    let limit = |name| r.slot(name).cloned();
    limits.ram = ram.zip(limit("ram")).map(|(value, slot)| Limit { value, slot });
    limits.cpus = cpus.flatten().zip(limit("cpus")).map(|(value, slot)| Limit { value, slot });
    limits.base_dir = base_dir.clone();
    limits.filter = filter.flatten().flatten().unwrap_or(true);
    let host = || {
        Some(Host {
            base_dir: base_dir?,
            ram: ram?,
            accel: accel?.unwrap_or_default(),
            cpus: cpus?,
            min_free_disk: min_free_disk?.unwrap_or(defaults::MIN_FREE_DISK),
            webhook_listen: webhook_listen?.unwrap_or_default(),
            webhook_group: webhook_group?,
            max_overtake: max_overtake?.unwrap_or(defaults::MAX_OVERTAKE),
            keep_runs: keep_runs?.unwrap_or(defaults::KEEP_RUNS),
            keep_runs_for: keep_runs_for?.unwrap_or(defaults::KEEP_RUNS_FOR),
            qemu: qemu?,
            vm_uids: vm_uids?.unwrap_or(UidRange::DEFAULT),
            network_filter: filter?.flatten().unwrap_or(true),
        })
    };
    (host(), limits)
}

fn accel(word: &'static str) -> Accel {
    match word {
        "kvm" => Accel::Kvm,
        "tcg" => Accel::Tcg,
        _ => Accel::Auto,
    }
}

fn webhook_listen(d: &mut Decoder<'_>, slot: &Slot) -> Option<WebhookListen> {
    let text = d.text(slot)?;
    if text == "unix" {
        return Some(WebhookListen::Unix);
    }
    match text.parse() {
        Ok(address) => Some(WebhookListen::Tcp(address)),
        Err(_) => {
            let message = format!("{} is no place to listen at", d.quote(slot));
            let help = "write unix, or an IP address and a port such as 127.0.0.1:8080 or \
                        \"[::1]:8080\"";
            d.bad(slot, message, help);
            None
        }
    }
}

fn qemu(d: &mut Decoder<'_>, slot: &Slot) -> Option<PathBuf> {
    let text = d.text(slot)?;
    if text.contains('/') && !text.starts_with('/') {
        let message = format!("{} is neither an absolute path nor a name", d.quote(slot));
        d.bad(slot, message, "write the full path, or only the program's name");
        return None;
    }
    Some(PathBuf::from(text))
}

fn vm_uids(d: &mut Decoder<'_>, slot: &Slot) -> Option<UidRange> {
    let text = d.text(slot)?;
    match text.parse() {
        Ok(range) => Some(range),
        Err(error) => {
            let message = format!("{} is no range of users for machines: {error}", d.quote(slot));
            let help = format!(
                "write the first and the last of numbers that no user of this host has: {}",
                UidRange::DEFAULT
            );
            d.bad(slot, message, help);
            None
        }
    }
}
