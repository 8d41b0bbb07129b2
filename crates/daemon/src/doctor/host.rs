//! Hardware virtualisation, QEMU, RAM, CPUs.

use std::path::{Path, PathBuf};

use forrest_config::{Accel, Config, Machine};
use forrest_core::model::Bytes;
use forrest_vm::host::{Kvm, QEMU_OLDEST, Qemu, find_qemu, probe_kvm, probe_qemu};

use super::{Area, Findings};

/// The share of the host's RAM above which little is left for the host itself.
const RAM_PERCENT_MAX: u64 = 90;

pub(super) async fn examine(config: Option<&Config>, findings: &mut Findings) {
    let accel = config.map_or(Accel::Auto, |config| config.host.accel);
    virtualisation(accel, &probe_kvm(), findings);
    qemu(config, findings).await;
    if find_program("qemu-img").is_none() {
        findings.warning(
            Area::Host,
            "qemu-img is not installed",
            "install the package qemu-utils: src images in qcow2 format need it",
        );
    }
    if let Some(config) = config {
        ram(config.host.ram, findings);
        cpus(config, findings);
    }
}

fn virtualisation(wanted: Accel, kvm: &Kvm, findings: &mut Findings) {
    let reason = &kvm.reason;
    match (wanted, kvm.usable) {
        (Accel::Auto | Accel::Kvm, true) => {
            findings.ok(Area::Host, format!("hardware virtualisation can be used: {reason}"));
        }
        (Accel::Auto | Accel::Kvm, false) => findings.problem(
            Area::Host,
            format!("hardware virtualisation cannot be used: {reason}"),
            "mend that; or write host.accel: tcg to have guests emulated, many times slower",
        ),
        (Accel::Tcg, true) => findings.warning(
            Area::Host,
            "guests are emulated (host.accel: tcg) although hardware virtualisation can be used",
            "write host.accel: auto, and they run many times faster",
        ),
        (Accel::Tcg, false) => findings
            .ok(Area::Host, format!("guests are emulated, as host.accel: tcg asks for ({reason})")),
    }
}

async fn qemu(config: Option<&Config>, findings: &mut Findings) {
    let wanted = config.and_then(|config| config.host.qemu.clone());
    let program = match &wanted {
        Some(path) if path.is_absolute() => Some(path.clone()),
        Some(name) => find_program(&name.to_string_lossy()),
        None => find_qemu(),
    };
    let Some(program) = program else {
        let what = match wanted {
            Some(name) => format!("there is no {} in PATH, as host.qemu asks for", name.display()),
            None => "QEMU is not installed".to_owned(),
        };
        let advice = format!("install QEMU {QEMU_OLDEST} or later: the package qemu-system-x86");
        return findings.problem(Area::Host, what, advice);
    };
    match probe_qemu(&program).await {
        Ok(qemu) => judge_qemu(&qemu, config, findings),
        Err(error) => findings.problem(
            Area::Host,
            error.to_string(),
            "see that it is a working qemu-system program, and that this user may execute it",
        ),
    }
}

fn judge_qemu(qemu: &Qemu, config: Option<&Config>, findings: &mut Findings) {
    let program = qemu.program.display();
    if let Err(reason) = qemu.usable() {
        let advice = format!("or name another one in host.qemu; this one is {program}");
        return findings.problem(Area::Host, reason, advice);
    }
    findings.ok(Area::Host, format!("QEMU {} ({program}) has what Forrest needs", qemu.version));
    if !qemu.sandbox {
        findings.warning(
            Area::Host,
            "this QEMU cannot filter its own system calls (seccomp)",
            "install a build with seccomp: it is a wall behind the wall if a guest breaks out",
        );
    }
    let some = |wants: fn(&Machine) -> bool| {
        config.and_then(|config| config.machines().find(|machine| wants(machine)))
    };
    if let (false, Some(machine)) = (qemu.can_share(), some(|m| !m.shared.is_empty())) {
        findings.problem(
            Area::Host,
            format!("{} shares directories, which this QEMU cannot (virtio-9p)", machine.name),
            "install a full build of QEMU",
        );
    }
    match (qemu.snapshots(), some(|m| m.snapshot)) {
        (Ok(()), _) => findings.ok(Area::Host, "it can restore snapshots"),
        (Err(reason), Some(machine)) => findings.warning(
            Area::Host,
            format!("{reason} ({} asks for one)", machine.name),
            "upgrade QEMU, or write snapshot: false",
        ),
        (Err(reason), None) => {
            findings.ok(Area::Host, format!("no machine type asks for a snapshot ({reason})"));
        }
    }
}

fn ram(wanted: Bytes, findings: &mut Findings) {
    let Ok(text) = std::fs::read_to_string("/proc/meminfo") else {
        return findings.warning(
            Area::Host,
            "could not read /proc/meminfo, so the RAM is not known",
            "see that /proc is mounted",
        );
    };
    let total = meminfo(&text, "MemTotal").unwrap_or_default();
    let available = meminfo(&text, "MemAvailable").unwrap_or_default();
    judge_ram(wanted, total, available, findings);
}

fn judge_ram(wanted: Bytes, total: Bytes, available: Bytes, findings: &mut Findings) {
    let (wanted_text, total_text) = (about(wanted), about(total));
    if wanted > total {
        findings.problem(
            Area::Host,
            format!("host.ram is {wanted_text}, and the host has {total_text}"),
            "lower host.ram: guests would be killed when memory runs out, with their jobs",
        );
    } else if wanted.0 / 100 > total.0 / 100 / 100 * RAM_PERCENT_MAX {
        findings.warning(
            Area::Host,
            format!("host.ram is {wanted_text} of the host's {total_text}"),
            "leave a tenth to the host itself, if only for its page cache",
        );
    } else {
        findings.ok(
            Area::Host,
            format!(
                "host.ram is {wanted_text} of the host's {total_text}, of which {} is free now",
                about(available)
            ),
        );
    }
}

/// A value of `/proc/meminfo`, which counts in KiB.
fn meminfo(text: &str, name: &str) -> Option<Bytes> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(Bytes(kib.saturating_mul(1024)))
}

fn cpus(config: &Config, findings: &mut Findings) {
    let host = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let host = u32::try_from(host).unwrap_or(u32::MAX);
    let mut fits = true;
    for machine in config.machines().filter(|machine| machine.cpus > host) {
        fits = false;
        findings.warning(
            Area::Host,
            format!("{} has {} CPUs, and the host has {host}", machine.name, machine.cpus),
            "lower its cpus: more than the host has make a guest slower, not faster",
        );
    }
    if fits {
        let budget = match config.host.cpus {
            Some(budget) => format!("{budget} virtual CPUs may be in use at a time"),
            None => "the number of virtual CPUs in use is not limited".to_owned(),
        };
        findings.ok(Area::Host, format!("the host has {host} CPUs; {budget}"));
    }
}

/// A size for people: `16.3G`.
pub(super) fn about(size: Bytes) -> String {
    const UNITS: [(u32, char); 4] = [(40, 'T'), (30, 'G'), (20, 'M'), (10, 'K')];
    for (shift, unit) in UNITS {
        if size.0 >> shift > 0 {
            let value = size.0 as f64 / (1_u64 << shift) as f64;
            return format!("{value:.1}{unit}").replace(".0", "");
        }
    }
    format!("{}B", size.0)
}

/// A program of this name in `PATH`.
fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| Path::is_file(file))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    fn levels(check: impl FnOnce(&mut Findings)) -> Vec<Level> {
        let mut findings = Findings::default();
        check(&mut findings);
        findings.0.iter().map(|finding| finding.level).collect()
    }

    #[test]
    fn virtualisation_is_judged_by_what_is_wanted() {
        let kvm = |usable| Kvm { usable, reason: "because".to_owned() };
        let judge = |wanted, usable| levels(|f| virtualisation(wanted, &kvm(usable), f));
        assert_eq!(judge(Accel::Auto, true), [Level::Ok]);
        assert_eq!(judge(Accel::Auto, false), [Level::Problem]);
        assert_eq!(judge(Accel::Kvm, false), [Level::Problem]);
        assert_eq!(judge(Accel::Tcg, false), [Level::Ok]);
        assert_eq!(judge(Accel::Tcg, true), [Level::Warning]);
    }

    #[test]
    fn ram_is_judged_by_what_the_host_has() {
        let judge =
            |wanted| levels(|f| judge_ram(Bytes::gib(wanted), Bytes::gib(64), Bytes::gib(60), f));
        assert_eq!(judge(65), [Level::Problem]);
        assert_eq!(judge(60), [Level::Warning]);
        assert_eq!(judge(48), [Level::Ok]);
    }

    #[test]
    fn meminfo_is_read() {
        let text = "MemTotal:       65000 kB\nMemAvailable:   1 kB\n";
        assert_eq!(meminfo(text, "MemTotal"), Some(Bytes(65000 * 1024)));
        assert_eq!(meminfo(text, "MemFree"), None);
    }

    #[test]
    fn sizes_are_short() {
        assert_eq!(about(Bytes::gib(16)), "16G");
        assert_eq!(about(Bytes::mib(1536)), "1.5G");
        assert_eq!(about(Bytes(17)), "17B");
    }
}
