//! What confining takes: the privileges, and which of them this process lacks.

use forrest_core::model::UidRange;
use rustix::thread::{CapabilitySet, capabilities};

use crate::uids;

/// A capability (`capabilities(7)`) with what it is needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Privilege {
    /// Its name, as systemd and the manual write it.
    pub name: &'static str,
    /// What Forrest does with it.
    pub purpose: &'static str,
    set: CapabilitySet,
}

/// What running each QEMU as a user of its own takes.
pub const FOR_USERS: [Privilege; 4] = [
    Privilege {
        name: "CAP_SETUID",
        purpose: "QEMU becomes a user of its own",
        set: CapabilitySet::SETUID,
    },
    Privilege {
        name: "CAP_SETGID",
        purpose: "QEMU leaves Forrest's groups; memory snapshots become readable for its group",
        set: CapabilitySet::SETGID,
    },
    Privilege {
        name: "CAP_KILL",
        purpose: "a QEMU that does not quit is killed although it is another user's",
        set: CapabilitySet::KILL,
    },
    Privilege {
        name: "CAP_SETPCAP",
        purpose: "QEMU's capability bounding set is emptied",
        set: CapabilitySet::SETPCAP,
    },
];

/// What the egress filter takes besides.
pub const FOR_FILTER: [Privilege; 1] = [Privilege {
    name: "CAP_NET_ADMIN",
    purpose: "the egress filter is put in place, watched and taken away",
    set: CapabilitySet::NET_ADMIN,
}];

/// Which of these privileges this process lacks.
pub fn missing(wanted: &[Privilege]) -> Vec<Privilege> {
    // A process can always ask for its own; nothing is the safe answer where not.
    let held = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    wanted.iter().filter(|privilege| !held.contains(privilege.set)).copied().collect()
}

/// Whether each VM can have a user of its own, or why not. Makes the directory that says who has which.
///
/// # Errors
/// The reason, with what to do.
pub fn can_change_users(range: UidRange) -> Result<(), String> {
    let missing = missing(&FOR_USERS);
    if !missing.is_empty() {
        let names: Vec<&str> = missing.iter().map(|privilege| privilege.name).collect();
        return Err(format!(
            "this process lacks {}: run Forrest as root, or as a service with the unit in \
             contrib/systemd",
            names.join(", ")
        ));
    }
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let groups = std::fs::read_to_string("/proc/self/gid_map").unwrap_or_default();
    if ![map, groups].iter().all(|map| maps(map, range)) {
        return Err(format!(
            "the users {range} do not exist in this container: give `host.vm_uids` a range that its \
             user namespace has (/proc/self/uid_map)"
        ));
    }
    uids::prepare().map_err(|error| error.to_string())
}

/// Whether one line of a `uid_map` (`user_namespaces(7)`) covers the range.
fn maps(map: &str, range: UidRange) -> bool {
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u64>);
        let (Some(Ok(first)), Some(Ok(_)), Some(Ok(len))) =
            (numbers.next(), numbers.next(), numbers.next())
        else {
            return false;
        };
        let (low, high) =
            (u64::from(range.group()), u64::from(range.group()) + u64::from(range.len()));
        first <= low && high <= first.saturating_add(len)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_cover_ranges_or_not() {
        let range = UidRange::DEFAULT;
        assert!(maps("         0          0 4294967295\n", range));
        assert!(!maps("0 100000 65536\n", range));
        assert!(maps("0 1000 1\n1900000000 100000 1000\n", range));
        assert!(!maps("1900000000 100000 999\n", range));
        assert!(!maps("", range));
    }
}
