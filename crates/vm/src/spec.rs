//! What a virtual machine is made of: `run.json`, written by the daemon, read by the shim.
//!
//! A shim may be older than the daemon that adopts it, and a daemon older than a `run.json` after a
//! roll-back, so unknown fields are ignored, and new ones need a default.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use forrest_confine::Destination;
use forrest_core::model::{Bytes, MachineTypeName, RunnerName, UidRange};
use serde::{Deserialize, Serialize};

use crate::VmError;
use crate::run_dir::{self, Durability, files};

/// The format that [`RunSpec::format`] has in files of this version.
pub const FORMAT: u32 = 1;
/// The most virtual CPUs of a guest: what `q35` takes without an IOMMU.
pub const CPUS_MAX: u32 = 255;
/// The least RAM of a guest.
pub const RAM_MIN: Bytes = Bytes::mib(16);
/// The most shared directories of a guest, bounded by the PCI slots set aside for them.
pub const SHARED_MAX: usize = 8;
/// The longest mount tag that 9p carries, in bytes.
pub const TAG_LEN_MAX: usize = 31;
/// The largest `run.json` that is read, in bytes.
const SPEC_LEN_MAX: u64 = 256 << 10;

/// Everything that the shim needs to know about one run.
///
/// Relative paths are taken from the run directory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunSpec {
    /// [`FORMAT`].
    pub format: u32,
    /// The run's name, everywhere.
    pub runner: RunnerName,
    /// The machine type that the run belongs to.
    pub machine: MachineTypeName,
    /// The guest's own id (SMBIOS), new for each run.
    pub uuid: GuestUuid,
    /// The QEMU program: an absolute path.
    pub qemu: PathBuf,
    /// How guest code is executed.
    pub accel: Accel,
    /// Virtual CPUs, 1 to [`CPUS_MAX`].
    pub cpus: u32,
    /// RAM, at least [`RAM_MIN`]; rounded up to whole MiB.
    pub ram: Bytes,
    /// The disk that the guest boots from.
    pub disk: Disk,
    /// Raw image with cloud-init's `CIDATA`, read-only for the guest.
    pub cloud_init: PathBuf,
    /// Raw image with `JOBDATA`, writable for the guest.
    pub job_config: PathBuf,
    /// Host directories for the guest, at most [`SHARED_MAX`]. Not with snapshots: 9p cannot be
    /// migrated.
    #[serde(default)]
    pub shared: Vec<SharedDir>,
    /// Whether the guest boots or is restored.
    pub boot: Boot,
    /// How long the guest may take from QEMU's start until it says `ready`, in milliseconds.
    pub boot_timeout_ms: u64,
    /// What the guest's network may do.
    #[serde(default)]
    pub network: Network,
    /// How QEMU itself is confined.
    #[serde(default)]
    pub confinement: Confinement,
    /// What the daemon keeps here for itself; the shim does not look at it.
    #[serde(default)]
    pub record: serde_json::Value,
}

/// How guest code is executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// Hardware virtualisation.
    Kvm,
    /// Emulation.
    Tcg,
}

/// A disk image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Where it is.
    pub path: PathBuf,
    /// Its format.
    pub format: DiskFormat,
    /// What an overlay is built on, the nearest file first, all of it: QEMU looks at no file name in
    /// an image.
    #[serde(default)]
    pub backing: Vec<Layer>,
    /// The disk's size as the guest sees it; `None` where that is not known, and the file's not bounded.
    #[serde(default)]
    pub virtual_size: Option<Bytes>,
}

/// An image file below an overlay. Nobody writes to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Where it is.
    pub path: PathBuf,
    /// Its format.
    pub format: DiskFormat,
}

/// The formats of disks that guests run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// The bytes as they are.
    Raw,
    /// QEMU's own, for overlays.
    Qcow2,
}

/// A host directory for the guest (9p).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedDir {
    /// The directory on the host: an absolute path.
    pub path: PathBuf,
    /// The name by which the guest mounts it: 1 to [`TAG_LEN_MAX`] letters, digits, `-`, `_`, `.`.
    pub tag: String,
    /// Whether the guest may write.
    #[serde(default)]
    pub writable: bool,
}

/// How a guest comes to life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "lowercase")]
pub enum Boot {
    /// From its disk.
    Cold,
    /// From its disk, to be saved as a template and ended once it says `ready`. No file of these
    /// names may exist yet.
    Template {
        /// Where the guest's RAM goes.
        ram: PathBuf,
        /// Where the devices' state goes.
        state: PathBuf,
    },
    /// From a template, which stays as it is and may serve many guests at a time.
    Restored {
        /// The template's RAM.
        ram: PathBuf,
        /// The template's devices' state.
        state: PathBuf,
    },
}

impl Boot {
    /// The same without paths.
    pub fn kind(&self) -> BootKind {
        match self {
            Self::Cold => BootKind::Cold,
            Self::Template { .. } => BootKind::Template,
            Self::Restored { .. } => BootKind::Restored,
        }
    }
}

/// How a guest comes to life, without the paths of [`Boot`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BootKind {
    /// [`Boot::Cold`].
    Cold,
    /// [`Boot::Template`].
    Template,
    /// [`Boot::Restored`].
    Restored,
}

/// What the guest's network may do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// No way out of the guest at all (QEMU's `restrict`).
    #[serde(default)]
    pub isolated: bool,
    /// Keeps the guest away from the host and from private networks; `None`: it reaches whatever the
    /// host reaches. Needs [`Confinement::uids`].
    #[serde(default)]
    pub filter: Option<EgressFilter>,
}

/// What the egress filter lets through besides the Internet and the host's name servers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressFilter {
    /// Exceptions.
    #[serde(default)]
    pub allow: Vec<Destination>,
}

/// How QEMU itself is confined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confinement {
    /// Whether QEMU filters its own system calls. Off only where QEMU was built without that.
    #[serde(default = "yes")]
    pub sandbox: bool,
    /// QEMU runs as a user of this range that no other live VM has, and in the range's group; `None`:
    /// as the user of the shim. The shim needs the privileges of
    /// [`forrest_confine::privileges::FOR_USERS`].
    #[serde(default)]
    pub uids: Option<UidRange>,
}

fn yes() -> bool {
    true
}

impl Default for Confinement {
    fn default() -> Self {
        Self { sandbox: true, uids: None }
    }
}

/// A random UUID (RFC 9562, version 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GuestUuid([u8; 16]);

impl GuestUuid {
    /// From 16 random bytes, of which six bits are overwritten.
    pub fn from_random(mut bytes: [u8; 16]) -> Self {
        bytes[6] = (bytes[6] & 0x0f) | 0x40;
        bytes[8] = (bytes[8] & 0x3f) | 0x80;
        Self(bytes)
    }
}

impl fmt::Display for GuestUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl FromStr for GuestUuid {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || format!("{text:?} is not a UUID");
        let hyphens_fit = text.len() == 36
            && text.bytes().enumerate().all(|(i, b)| match i {
                8 | 13 | 18 | 23 => b == b'-',
                _ => b.is_ascii_hexdigit(),
            });
        if !hyphens_fit {
            return Err(refuse());
        }
        let number = u128::from_str_radix(&text.replace('-', ""), 16).map_err(|_| refuse())?;
        Ok(Self(number.to_be_bytes()))
    }
}

impl TryFrom<String> for GuestUuid {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<GuestUuid> for String {
    fn from(uuid: GuestUuid) -> Self {
        uuid.to_string()
    }
}

impl RunSpec {
    /// How long the guest may take from QEMU's start until it says `ready`.
    pub fn boot_timeout(&self) -> Duration {
        Duration::from_millis(self.boot_timeout_ms)
    }

    /// Checks what QEMU would only refuse later, or worse, would not refuse.
    ///
    /// # Errors
    /// [`VmError::Spec`] for the first thing that is wrong.
    pub fn validate(&self) -> Result<(), VmError> {
        let refuse = |reason: String| Err(VmError::Spec(reason));
        if self.format != FORMAT {
            return refuse(format!(
                "its description has format {}, this version of Forrest knows {FORMAT}",
                self.format
            ));
        }
        if !self.qemu.is_absolute() {
            return refuse(format!("{} is not an absolute path to QEMU", self.qemu.display()));
        }
        if !(1..=CPUS_MAX).contains(&self.cpus) {
            return refuse(format!("it has {} CPUs; use 1 to {CPUS_MAX}", self.cpus));
        }
        if self.ram < RAM_MIN {
            return refuse(format!("it has {} of RAM; use at least {RAM_MIN}", self.ram));
        }
        if self.network.filter.is_some() && self.confinement.uids.is_none() {
            return refuse(
                "it has an egress filter, which needs a user of its own for QEMU".to_owned(),
            );
        }
        self.validate_shared()
    }

    fn validate_shared(&self) -> Result<(), VmError> {
        let refuse = |reason: String| Err(VmError::Spec(reason));
        if self.shared.len() > SHARED_MAX {
            return refuse(format!(
                "it shares {} directories; at most {SHARED_MAX} are possible",
                self.shared.len()
            ));
        }
        if !self.shared.is_empty() && self.boot != Boot::Cold {
            return refuse(
                "it shares directories and uses a snapshot, which exclude each other".to_owned(),
            );
        }
        let mut tags = BTreeSet::new();
        for dir in &self.shared {
            let sound = (1..=TAG_LEN_MAX).contains(&dir.tag.len())
                && dir.tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
            if !sound {
                return refuse(format!(
                    "the shared directory's tag {:?} is not 1 to {TAG_LEN_MAX} letters, digits, '-', '_' or '.'",
                    dir.tag
                ));
            }
            if !tags.insert(&dir.tag) {
                return refuse(format!("two shared directories have the tag {:?}", dir.tag));
            }
            if !dir.path.is_absolute() {
                return refuse(format!(
                    "the shared directory {} is not an absolute path",
                    dir.path.display()
                ));
            }
        }
        Ok(())
    }

    /// Writes `run.json` (mode 0600), replacing an earlier one as a whole.
    ///
    /// Readers never see half a file. A power loss may leave an empty one, which does not matter: it
    /// ends the VM as well.
    ///
    /// # Errors
    /// [`VmError::Spec`] for what [`RunSpec::validate`] refuses, [`VmError::Io`] for the rest.
    pub fn write(&self, run_dir: &Path) -> Result<(), VmError> {
        self.validate()?;
        let json = serde_json::to_vec_pretty(self)
            .map_err(|err| VmError::Spec(format!("it has no JSON form: {err}")))?;
        run_dir::write_whole(run_dir, files::SPEC, &json, Durability::Process)
    }

    /// Reads and checks `run.json`.
    ///
    /// # Errors
    /// [`VmError::Io`] where it cannot be read, [`VmError::Malformed`] or [`VmError::Spec`] where it
    /// makes no sense.
    pub fn read(run_dir: &Path) -> Result<Self, VmError> {
        let spec: Self = run_dir::read_json(run_dir, files::SPEC, SPEC_LEN_MAX)?;
        spec.validate()?;
        Ok(spec)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A small sound VM.
    pub(crate) fn example() -> RunSpec {
        RunSpec {
            format: FORMAT,
            runner: "forrest-build-abcdefghijklmnop".parse().expect("a runner's name"),
            machine: "owner/repository/build".parse().expect("a machine type's name"),
            uuid: GuestUuid::from_random([0x11; 16]),
            qemu: "/usr/bin/qemu-system-x86_64".into(),
            accel: Accel::Tcg,
            cpus: 2,
            ram: Bytes::gib(1),
            disk: Disk {
                path: "disk.img".into(),
                format: DiskFormat::Raw,
                backing: Vec::new(),
                virtual_size: None,
            },
            cloud_init: "cloud-init.img".into(),
            job_config: "job-config.img".into(),
            shared: Vec::new(),
            boot: Boot::Cold,
            boot_timeout_ms: 60_000,
            network: Network::default(),
            confinement: Confinement::default(),
            record: serde_json::Value::Null,
        }
    }

    #[test]
    fn what_is_written_reads_back_and_is_private() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut spec = example();
        spec.record = serde_json::json!({ "start_image": "src" });
        spec.write(dir.path()).expect("write");
        assert_eq!(RunSpec::read(dir.path()).expect("read"), spec);
        let mode = std::os::unix::fs::MetadataExt::mode(
            &dir.path().join(files::SPEC).metadata().expect("metadata"),
        );
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn fields_of_a_newer_version_are_ignored_and_missing_ones_have_defaults() {
        let mut json = serde_json::to_value(example()).expect("JSON");
        let fields = json.as_object_mut().expect("an object");
        fields.insert("from_the_future".to_owned(), serde_json::json!(1));
        for field in ["shared", "network", "confinement", "record"] {
            fields.remove(field);
        }
        let spec: RunSpec = serde_json::from_value(json).expect("a spec");
        assert_eq!(spec, example());
    }

    #[test]
    fn what_cannot_work_is_refused() {
        let refused = |change: fn(&mut RunSpec), word: &str| {
            let mut spec = example();
            change(&mut spec);
            let error = spec.validate().expect_err("should be refused").to_string();
            assert!(error.contains(word), "{error:?} does not mention {word:?}");
        };
        refused(|spec| spec.cpus = 0, "CPUs");
        refused(|spec| spec.cpus = 256, "CPUs");
        refused(|spec| spec.ram = Bytes::mib(1), "RAM");
        refused(|spec| spec.qemu = "qemu".into(), "absolute");
        refused(|spec| spec.format = 2, "format");
        refused(
            |spec| {
                let dir = SharedDir { path: "/srv".into(), tag: "a".into(), writable: false };
                spec.shared = vec![dir.clone(), dir];
            },
            "two shared",
        );
        refused(
            |spec| {
                spec.shared =
                    vec![SharedDir { path: "/srv".into(), tag: "a,b".into(), writable: false }];
            },
            "tag",
        );
        refused(
            |spec| {
                spec.shared =
                    vec![SharedDir { path: "/srv".into(), tag: "a".into(), writable: false }];
                spec.boot = Boot::Restored { ram: "/r".into(), state: "/s".into() };
            },
            "exclude",
        );
    }

    #[test]
    fn uuids_are_version_4_and_read_back() {
        let uuid = GuestUuid::from_random([0xff; 16]);
        assert_eq!(uuid.to_string(), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_eq!(uuid.to_string().parse(), Ok(uuid));
        assert!("ffffffff-ffff-4fff-bfff-fffffffffff".parse::<GuestUuid>().is_err());
    }
}
