//! What keeps guests inside: QEMU's users, the egress filter.

use forrest_config::Config;
use forrest_confine::{calls, files, privileges};
use forrest_core::model::UidRange;

use super::{Area, Findings};
use crate::containment::filter_possible;
use crate::control::Client;

pub(super) async fn examine(config: Option<&Config>, findings: &mut Findings) {
    if let Some(config) = config {
        unfiltered(config, findings);
        // A daemon knows better than whoever asks: it has the service's privileges.
        if let Ok(status) = Client::new(config.host.base_dir.resolve()).status().await {
            return served(&status.daemon.uncontained, findings);
        }
    }
    let range = config.map_or(UidRange::DEFAULT, |config| config.host.vm_uids);
    match privileges::can_change_users(range) {
        Ok(()) => findings.ok(
            Area::Host,
            format!(
                "each QEMU can run as a user of its own ({range}), in the group {}",
                range.group()
            ),
        ),
        Err(why) => findings.warning(
            Area::Host,
            format!("QEMU would run as Forrest's own user: {why}"),
            "a guest that breaks out of QEMU could do what Forrest can; this is about whoever runs \
             `forrest doctor`, while the service has what its unit gives it",
        ),
    }
    match files::missing() {
        None => findings.ok(Area::Host, "QEMU can be kept from the host's files (Landlock)"),
        Some(why) => findings.warning(
            Area::Host,
            why,
            "it is a wall behind the wall: QEMU's user has no files, but reads what everyone can",
        ),
    }
    match calls::rehearse() {
        Ok(()) => findings.ok(Area::Host, "QEMU's system calls can be filtered (seccomp)"),
        Err(why) => findings.problem(
            Area::Host,
            why,
            "a kernel with CONFIG_SECCOMP_FILTER; in a container, one that allows seccomp(2)",
        ),
    }
    let wanted = config.is_none_or(|config| config.machines().any(|m| m.network.filter));
    match filter_possible(range).await {
        Ok(()) => findings.ok(Area::Host, "guests can be kept off the host and private networks"),
        // About whoever asks, too: only root's failure is the host's.
        Err(why) if wanted => {
            let what = format!("the egress filter cannot be put in place: {why}");
            let advice = "no run starts without it; mend that, or write network.filter: off to let guests \
                          reach whatever this host reaches";
            if rustix::process::geteuid().is_root() {
                findings.problem(Area::Host, what, advice);
            } else {
                let whose = "this is about whoever runs `forrest doctor`, while the service has what its \
                             unit gives it";
                findings.warning(Area::Host, what, format!("{advice}; {whose}"));
            }
        }
        Err(why) => {
            findings.ok(Area::Host, format!("no machine type asks for an egress filter ({why})"));
        }
    }
}

fn served(missing: &[String], findings: &mut Findings) {
    if missing.is_empty() {
        findings.ok(
            Area::Host,
            "the daemon gives each QEMU a user of its own and filters what it may reach",
        );
    }
    for what in missing {
        findings.warning(Area::Host, what.clone(), "mend that, then restart the daemon");
    }
}

fn unfiltered(config: &Config, findings: &mut Findings) {
    for machine in config.machines().filter(|machine| !machine.network.filter) {
        findings.warning(
            Area::Host,
            format!(
                "network.filter is off for {}: its guests reach whatever this host reaches, its own \
                 services and networks included",
                machine.name
            ),
            "write filter: on, and name in network.allow what its jobs need",
        );
    }
}
