//! Which machine types have a snapshot of their booted guest, and when one is built.
//!
//! ```text
//!            asked                missing               room, and no job waits
//! Unknown ──────────▶ Checking ───────────▶ Wanted ───────────────────────────▶ Building
//!    ▲                    │                    ▲ ▲                                 │ │
//!    │ image, template    │ there              │ └── gave way to a job ────────────┘ │
//!    │ or configuration   ▼                    └──── failed: a pause ────────────────┤
//!    └────────────────  Ready ◀──────────────────────────── built ───────────────────┘
//! ```
//!
//! A run may be restored only while its machine type is `Ready`. Whether the snapshot that is there fits
//! the image that the run has to start from is looked at again when the run is prepared: a run never
//! starts from an outdated image because its snapshot is newer or older than that.
//!
//! Building is the first boot of a new generation: one whose guest does not become ready is taken out of
//! use here, before a job meets it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::command::{Command, Level};
use crate::core::{Core, general_note};
use crate::event::Trouble;
use crate::model::{ImageRef, MachineType, MachineTypeName, Timestamp};
use crate::policy::Resources;
use crate::run::{BOOT_TIMEOUT_UNKNOWN, retry_at, retry_pause};
use crate::timers::Timer;

/// Snapshots that are built at a time: each takes the CPUs of a boot.
pub const BUILDS_MAX: usize = 1;
/// How often it is looked whether a snapshot still fits, beside the times when that is known to have
/// changed: a src image or a template may be replaced at any time.
const CHECK_INTERVAL: Duration = Duration::from_secs(60);
/// Time that a build has on top of the guest's boot time: saving takes a while.
const BUILD_MARGIN: Duration = Duration::from_secs(10 * 60);
/// Failed restores in a row after which a machine type's runs start cold until a new snapshot is built.
const RESTORE_FAILURES_MAX: u32 = 1;

/// Where a machine type's snapshot stands.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum SnapshotState {
    /// Nothing is known.
    #[default]
    Unknown,
    /// Somebody looks whether one is there.
    Checking,
    /// None fits: one is to be built.
    Wanted,
    /// One is being built.
    Building {
        /// Since when.
        since: Timestamp,
        /// What its guest holds.
        resources: Resources,
        /// Whether it is being given up for a job that needs the room.
        giving_way: bool,
    },
    /// One is there that fitted when it was last looked at.
    Ready,
}

/// What is known of a machine type's snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Snapshot {
    /// Where it stands.
    pub state: SnapshotState,
    /// Builds that failed in a row.
    pub failures: u32,
    /// No build before this time.
    pub not_before: Timestamp,
    /// What went wrong last, with building or restoring.
    pub trouble: Option<String>,
    /// Runs that were restored since the start.
    pub restored: u64,
    /// Runs that should have been restored and started cold, or failed to restore, since the start.
    pub fallbacks: u64,
    /// Restores that failed in a row.
    pub restore_failures: u32,
    /// An operator removed it: none is built until one is asked for, the image or the configuration
    /// changes, or the daemon starts again.
    #[serde(default)]
    pub held_back: bool,
}

/// Why a snapshot was not built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BuildTrouble {
    /// It was given up as asked.
    GaveWay,
    /// The guest did not become ready: the image is at fault.
    Guest {
        /// What happened.
        what: String,
        /// The image that it booted from.
        image: ImageRef,
    },
    /// Anything else.
    Host(Trouble),
}

impl Core {
    /// Follows the configuration: new machine types are looked at, others forgotten.
    pub(crate) fn snapshots_follow_policy(&mut self, now: Timestamp, out: &mut Vec<Command>) {
        let wanted = |machine: &MachineTypeName, core: &Self| {
            core.policy.machines.get(machine).is_some_and(|machine| machine.snapshot)
        };
        let gone: Vec<_> =
            self.snapshots.keys().filter(|machine| !wanted(machine, self)).cloned().collect();
        for machine in gone {
            match self.snapshots.get_mut(&machine).map(|snapshot| &mut snapshot.state) {
                // Its guest holds RAM until the answer is there.
                Some(SnapshotState::Building { giving_way, .. }) => {
                    if !std::mem::replace(giving_way, true) {
                        out.push(Command::CancelSnapshot { machine });
                    }
                }
                Some(
                    SnapshotState::Unknown
                    | SnapshotState::Checking
                    | SnapshotState::Wanted
                    | SnapshotState::Ready,
                )
                | None => drop(self.snapshots.remove(&machine)),
            }
        }
        let machines: Vec<_> =
            self.policy.machines.values().filter(|m| m.snapshot).map(|m| m.name.clone()).collect();
        for machine in machines {
            self.snapshots.entry(machine.clone()).or_default();
            self.check_snapshot(&machine, out);
        }
        if self.snapshots.is_empty() {
            self.timers.clear(&Timer::Snapshots);
        } else {
            self.timers.set(Timer::Snapshots, now + CHECK_INTERVAL);
        }
    }

    /// Has somebody look whether the machine type's snapshot is there and fits.
    pub(crate) fn check_snapshot(&mut self, machine: &MachineTypeName, out: &mut Vec<Command>) {
        let Some(snapshot) = self.snapshots.get_mut(machine) else { return };
        match snapshot.state {
            // What it is built from is looked at when it is done.
            SnapshotState::Building { .. } | SnapshotState::Checking => {}
            SnapshotState::Unknown | SnapshotState::Wanted => {
                snapshot.state = SnapshotState::Checking;
                out.push(Command::CheckSnapshot { machine: machine.clone() });
            }
            // It may be used until the answer is there: each run looks for itself.
            SnapshotState::Ready => {
                out.push(Command::CheckSnapshot { machine: machine.clone() });
            }
        }
    }

    /// A machine type's image changed: its snapshot and those of the machine types based on it are
    /// looked at.
    pub(crate) fn image_changed(&mut self, image_of: &MachineTypeName, out: &mut Vec<Command>) {
        let affected: Vec<_> = self
            .policy
            .machines
            .values()
            .filter(|m| &m.name == image_of || m.base_machine.as_ref() == Some(image_of))
            .map(|m| m.name.clone())
            .collect();
        for machine in affected {
            if let Some(snapshot) = self.snapshots.get_mut(&machine) {
                snapshot.failures = 0;
                snapshot.not_before = Timestamp::default();
                snapshot.held_back = false;
            }
            self.check_snapshot(&machine, out);
        }
    }

    /// An operator wants a snapshot built. One that is there is not used any more.
    pub(crate) fn build_snapshot_again(
        &mut self,
        machine: &MachineTypeName,
        out: &mut Vec<Command>,
    ) {
        let Some(snapshot) = self.snapshots.get_mut(machine) else { return };
        snapshot.failures = 0;
        snapshot.not_before = Timestamp::default();
        snapshot.held_back = false;
        self.unscheduled = true;
        self.drop_snapshot(machine, out);
    }

    /// An operator wants a snapshot gone. Runs that were restored from it go on.
    pub(crate) fn remove_snapshot(&mut self, machine: &MachineTypeName, out: &mut Vec<Command>) {
        let Some(snapshot) = self.snapshots.get_mut(machine) else { return };
        snapshot.held_back = true;
        if let SnapshotState::Building { giving_way, .. } = &mut snapshot.state
            && !std::mem::replace(giving_way, true)
        {
            out.push(Command::CancelSnapshot { machine: machine.clone() });
        }
        self.drop_snapshot(machine, out);
    }

    /// Takes a snapshot out of use, unless one is being built: that has an answer of its own.
    fn drop_snapshot(&mut self, machine: &MachineTypeName, out: &mut Vec<Command>) {
        let Some(snapshot) = self.snapshots.get_mut(machine) else { return };
        match snapshot.state {
            SnapshotState::Building { .. } => {}
            SnapshotState::Unknown
            | SnapshotState::Checking
            | SnapshotState::Wanted
            | SnapshotState::Ready => {
                snapshot.state = SnapshotState::Wanted;
                out.push(Command::DropSnapshot { machine: machine.clone() });
            }
        }
    }

    pub(crate) fn snapshots_timer(&mut self, now: Timestamp, out: &mut Vec<Command>) {
        let machines: Vec<_> = self.snapshots.keys().cloned().collect();
        for machine in machines {
            self.check_snapshot(&machine, out);
            self.watch_build(now, &machine, out);
        }
        self.timers.set(Timer::Snapshots, now + CHECK_INTERVAL);
    }

    /// A build that goes on for far longer than a boot is given up, again and again until the answer
    /// comes: its guest holds RAM that jobs may need.
    fn watch_build(&mut self, now: Timestamp, machine: &MachineTypeName, out: &mut Vec<Command>) {
        let configured = self.policy.machines.get(machine);
        let boot_timeout = configured.map_or(BOOT_TIMEOUT_UNKNOWN, |machine| machine.boot_timeout);
        let Some(snapshot) = self.snapshots.get_mut(machine) else { return };
        if let SnapshotState::Building { since, giving_way, .. } = &mut snapshot.state
            && *since + boot_timeout + BUILD_MARGIN <= now
        {
            *giving_way = true;
            let text = format!("building the snapshot of {machine} takes too long: giving it up");
            out.push(general_note(Level::Warn, text));
            out.push(Command::CancelSnapshot { machine: machine.clone() });
        }
    }

    /// The answer to a check: whether a snapshot is there that fits; an error where there is no image
    /// to build one from.
    pub(crate) fn snapshot_checked(
        &mut self,
        machine: &MachineTypeName,
        fits: Result<bool, Trouble>,
    ) {
        let Some(snapshot) = self.snapshots.get_mut(machine) else { return };
        if let SnapshotState::Building { .. } = snapshot.state {
            return;
        }
        snapshot.state = match fits {
            Ok(true) if snapshot.restore_failures < RESTORE_FAILURES_MAX => SnapshotState::Ready,
            Ok(true | false) => SnapshotState::Wanted,
            Err(trouble) => {
                snapshot.trouble = Some(trouble.what);
                SnapshotState::Unknown
            }
        };
        self.unscheduled = true;
    }

    /// Whether a new run of the machine type may be restored.
    pub(crate) fn may_restore(&self, machine: &MachineTypeName) -> bool {
        self.snapshots.get(machine).is_some_and(|s| s.state == SnapshotState::Ready)
    }

    /// Starts builds that there is room for, when no job waits for that room.
    pub(crate) fn build_snapshots(
        &mut self,
        now: Timestamp,
        fits: impl Fn(&MachineType) -> bool,
        out: &mut Vec<Command>,
    ) {
        let building = |s: &Snapshot| matches!(s.state, SnapshotState::Building { .. });
        let mut builds = self.snapshots.values().filter(|s| building(s)).count();
        for (machine, snapshot) in &mut self.snapshots {
            if builds >= BUILDS_MAX {
                return;
            }
            let Some(settings) = self.policy.machines.get(machine) else { continue };
            let resources = Resources::from(settings);
            if snapshot.state != SnapshotState::Wanted || snapshot.held_back || !fits(settings) {
                continue;
            }
            if snapshot.not_before > now {
                self.timers.set_at_latest(Timer::Schedule, snapshot.not_before);
                continue;
            }
            snapshot.state = SnapshotState::Building { since: now, resources, giving_way: false };
            builds += 1;
            out.push(Command::BuildSnapshot { machine: machine.clone() });
        }
    }

    /// Jobs wait for room: builds give way.
    pub(crate) fn builds_give_way(&mut self, out: &mut Vec<Command>) {
        for (machine, snapshot) in &mut self.snapshots {
            if let SnapshotState::Building { giving_way, .. } = &mut snapshot.state
                && !std::mem::replace(giving_way, true)
            {
                out.push(Command::CancelSnapshot { machine: machine.clone() });
                out.push(general_note(
                    Level::Info,
                    format!("building the snapshot of {machine} gives way to a waiting job"),
                ));
            }
        }
    }

    /// What builds hold.
    pub(crate) fn held_by_builds(&self) -> Resources {
        let held = self.snapshots.values().filter_map(|snapshot| match snapshot.state {
            SnapshotState::Building { resources, .. } => Some(resources),
            _ => None,
        });
        held.fold(Resources::default(), |sum, one| Resources {
            ram: sum.ram.saturating_add(one.ram),
            cpus: sum.cpus + one.cpus,
            disk: sum.disk.saturating_add(one.disk),
        })
    }

    pub(crate) fn snapshot_built(
        &mut self,
        now: Timestamp,
        machine: &MachineTypeName,
        result: Result<(), BuildTrouble>,
        out: &mut Vec<Command>,
    ) {
        self.unscheduled = true;
        let Some(snapshot) = self.snapshots.get_mut(machine) else { return };
        let SnapshotState::Building { .. } = snapshot.state else { return };
        if !self.policy.machines.get(machine).is_some_and(|machine| machine.snapshot) {
            self.snapshots.remove(machine);
            return;
        }
        match result {
            Ok(()) => {
                snapshot.failures = 0;
                snapshot.restore_failures = 0;
                snapshot.trouble = None;
                // The image may have changed meanwhile.
                snapshot.state = SnapshotState::Ready;
                out.push(general_note(Level::Info, format!("{machine} has a new snapshot")));
                self.check_snapshot(machine, out);
            }
            Err(BuildTrouble::GaveWay) => snapshot.state = SnapshotState::Wanted,
            Err(BuildTrouble::Guest { what, image }) => {
                self.build_failed(now, machine, &Trouble::new(what.clone()), out);
                let what = format!("its guest did not become ready for a snapshot: {what}");
                self.guest_was_silent(machine, &image, &what, 1, out);
            }
            Err(BuildTrouble::Host(trouble)) => self.build_failed(now, machine, &trouble, out),
        }
    }

    fn build_failed(
        &mut self,
        now: Timestamp,
        machine: &MachineTypeName,
        trouble: &Trouble,
        out: &mut Vec<Command>,
    ) {
        let Some(snapshot) = self.snapshots.get_mut(machine) else { return };
        let pause = retry_pause(snapshot.failures.saturating_add(2));
        snapshot.failures = snapshot.failures.saturating_add(1);
        snapshot.not_before = retry_at(now, pause, trouble.not_before);
        snapshot.state = SnapshotState::Wanted;
        let text = format!(
            "the snapshot of {machine} could not be built, its runs start cold; next try in {} s: {}",
            snapshot.not_before.since(now).as_secs(),
            trouble.what
        );
        snapshot.trouble = Some(trouble.what.clone());
        out.push(general_note(Level::Error, text));
    }

    /// A run of the machine type started.
    pub(crate) fn count_start(&mut self, machine: &MachineTypeName, wanted: bool, restored: bool) {
        let Some(snapshot) = self.snapshots.get_mut(machine) else { return };
        if restored {
            snapshot.restored += 1;
            snapshot.restore_failures = 0;
        } else if wanted {
            snapshot.fallbacks += 1;
        }
    }

    /// A run could not be restored: the next ones start cold until there is a new snapshot.
    pub(crate) fn restore_failed(
        &mut self,
        machine: &MachineTypeName,
        what: &str,
        out: &mut Vec<Command>,
    ) {
        let Some(snapshot) = self.snapshots.get_mut(machine) else { return };
        snapshot.fallbacks += 1;
        snapshot.restore_failures = snapshot.restore_failures.saturating_add(1);
        snapshot.trouble = Some(what.to_owned());
        let text = format!(
            "a run of {machine} could not be restored; runs start cold until there is a new \
             snapshot: {what}"
        );
        out.push(general_note(Level::Warn, text));
        if snapshot.state == SnapshotState::Ready {
            self.drop_snapshot(machine, out);
        }
        self.unscheduled = true;
    }
}
