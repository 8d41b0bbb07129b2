//! What this host can do: its QEMU, hardware virtualisation, its CPU.
//!
//! Everything is found out by trying, and comes with the reason in words where it is missing.

use std::fmt;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio::time::timeout;

use crate::VmError;
use crate::argv::SANDBOX;
use crate::qmp::Qmp;

/// The QEMU program that is looked for in `PATH`.
pub const QEMU_PROGRAM: &str = "qemu-system-x86_64";
/// The oldest QEMU that Forrest's machines can be made with: it has to take devices as JSON.
pub const QEMU_OLDEST: Version = Version { major: 6, minor: 2, micro: 0 };
/// The oldest QEMU that can save and restore templates: its migration has to know files.
pub const QEMU_OLDEST_SNAPSHOTS: Version = Version { major: 8, minor: 2, micro: 0 };
/// How long QEMU may take to tell about itself.
pub const PROBE_TIMEOUT: Duration = Duration::from_secs(20);
/// The devices of Forrest's machines. QEMU can be built without some of them.
const DEVICES: [&str; 9] = [
    "isa-serial",
    "pcie-root-port",
    "pvpanic-pci",
    "virtio-9p-pci",
    "virtio-blk-pci",
    "virtio-net-pci",
    "virtio-rng-pci",
    "virtserialport",
    "vmgenid",
];

/// QEMU's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// First number.
    pub major: u32,
    /// Second number.
    pub minor: u32,
    /// Third number.
    pub micro: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

/// A QEMU that answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qemu {
    /// The program.
    pub program: PathBuf,
    /// Its version.
    pub version: Version,
    /// What its distributor calls this build; may be empty. Part of what a template depends on.
    pub package: String,
    /// Whether it can filter its own system calls.
    pub sandbox: bool,
    /// Whether it has user-mode networking.
    pub user_network: bool,
    /// Devices of Forrest's machines that it lacks.
    pub missing_devices: Vec<&'static str>,
}

impl Qemu {
    /// Whether Forrest's machines can be made with it, or why not.
    ///
    /// # Errors
    /// The reason, with what to do.
    pub fn usable(&self) -> Result<(), String> {
        if self.version < QEMU_OLDEST {
            return Err(format!(
                "QEMU {} is too old: install {QEMU_OLDEST} or later",
                self.version
            ));
        }
        if !self.user_network {
            return Err(
                "this QEMU was built without user-mode networking (slirp): install another build"
                    .to_owned(),
            );
        }
        // Only machine types with shared directories need 9p.
        let missing: Vec<&str> =
            self.missing_devices.iter().copied().filter(|name| *name != "virtio-9p-pci").collect();
        if !missing.is_empty() {
            return Err(format!(
                "this QEMU was built without {}: install a full build",
                missing.join(", ")
            ));
        }
        Ok(())
    }

    /// Whether it can share directories with guests (9p).
    pub fn can_share(&self) -> bool {
        !self.missing_devices.contains(&"virtio-9p-pci")
    }

    /// Whether it can save and restore templates, or why not.
    ///
    /// # Errors
    /// The reason, with what to do.
    pub fn snapshots(&self) -> Result<(), String> {
        if self.version < QEMU_OLDEST_SNAPSHOTS {
            return Err(format!(
                "QEMU {} cannot restore snapshots: install {QEMU_OLDEST_SNAPSHOTS} or later; until then, jobs start cold",
                self.version
            ));
        }
        Ok(())
    }
}

/// Finds [`QEMU_PROGRAM`] in `PATH`.
pub fn find_qemu() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(QEMU_PROGRAM)).find(|file| file.is_file())
}

/// Asks a QEMU what it can do.
///
/// # Errors
/// [`VmError::Program`] where it cannot be executed or does not answer as QEMU does, errors of [`Qmp`]
/// besides.
pub async fn probe_qemu(program: &Path) -> Result<Qemu, VmError> {
    // Without these two QEMU refuses to start at all, so each is tried on its own.
    let (bare, sandbox, network) = tokio::join!(
        ask(program, &[]),
        ask(program, &["-sandbox", SANDBOX]),
        ask(program, &["-netdev", "user,id=net0"]),
    );
    let (version, package, missing_devices) = bare?;
    Ok(Qemu {
        program: program.to_owned(),
        version,
        package,
        sandbox: sandbox.is_ok(),
        user_network: network.is_ok(),
        missing_devices,
    })
}

async fn ask(
    program: &Path,
    more: &[&str],
) -> Result<(Version, String, Vec<&'static str>), VmError> {
    let failed = |reason: String| VmError::Program { program: program.to_owned(), reason };
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()
        .and_then(|(ours, theirs)| {
            ours.set_nonblocking(true)?;
            Ok((UnixStream::from_std(ours)?, theirs))
        })
        .map_err(|err| failed(err.to_string()))?;
    let mut child = Command::new(program)
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-S"])
        .args(["-machine", "none", "-accel", "tcg"])
        .args(["-chardev", "socket,id=qmp,fd=0", "-mon", "chardev=qmp,mode=control"])
        .args(more)
        .env_clear()
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|err| failed(err.to_string()))?;
    let conversation = async {
        let (qmp, _events) = Qmp::handshake(ours).await?;
        let answer = about(&qmp).await?;
        // It exits before it answers, or does not answer because it exits.
        let _ = qmp.execute("quit", json!({})).await;
        let _ = child.wait().await;
        Ok(answer)
    };
    timeout(PROBE_TIMEOUT, conversation).await.unwrap_or_else(|_| {
        Err(VmError::Timeout {
            what: format!("{}", program.display()),
            seconds: PROBE_TIMEOUT.as_secs(),
        })
    })
}

async fn about(qmp: &Qmp) -> Result<(Version, String, Vec<&'static str>), VmError> {
    let answer = qmp.execute("query-version", json!({})).await?;
    let number = |name: &str| {
        let number = answer.get("qemu").and_then(|qemu| qemu.get(name)).and_then(Value::as_u64);
        number
            .and_then(|number| u32::try_from(number).ok())
            .ok_or_else(|| VmError::Monitor(format!("its version has no {name:?}")))
    };
    let version =
        Version { major: number("major")?, minor: number("minor")?, micro: number("micro")? };
    let package = answer.get("package").and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut missing = Vec::new();
    for device in DEVICES {
        match qmp.execute("device-list-properties", json!({ "typename": device })).await {
            Ok(_) => {}
            Err(VmError::Refused { .. }) => missing.push(device),
            Err(err) => return Err(err),
        }
    }
    Ok((version, package, missing))
}

/// Whether hardware virtualisation can be used, and why, or why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kvm {
    /// Whether guests can use it.
    pub usable: bool,
    /// Why, in words, with what to do where it is not.
    pub reason: String,
}

/// Looks at `/dev/kvm` and the CPU.
///
/// A device that opens is not enough: hosts that are para-virtual guests themselves may have one on
/// which ordinary kernels hang.
pub fn probe_kvm() -> Kvm {
    let opened = OpenOptions::new().read(true).write(true).open("/dev/kvm");
    let cpu_info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    judge_kvm(opened.map(drop), std::env::consts::ARCH, &cpu_info)
}

fn judge_kvm(opened: std::io::Result<()>, arch: &str, cpu_info: &str) -> Kvm {
    if let Err(err) = opened {
        let advice = match err.kind() {
            std::io::ErrorKind::NotFound => {
                "load the kvm module, and see that virtualisation is switched on in the firmware or, in a VM, that nested virtualisation is"
            }
            std::io::ErrorKind::PermissionDenied => {
                "add the user that Forrest runs as to the group kvm"
            }
            _ => "see the kernel's log",
        };
        return Kvm {
            usable: false,
            reason: format!("/dev/kvm cannot be opened ({err}): {advice}"),
        };
    }
    if !matches!(arch, "x86" | "x86_64") {
        return Kvm { usable: true, reason: "/dev/kvm opens".to_owned() };
    }
    let flag = ["vmx", "svm"].into_iter().find(|flag| has_flag(cpu_info, flag));
    match flag {
        Some(flag) => {
            Kvm { usable: true, reason: format!("/dev/kvm opens and the CPU has {flag}") }
        }
        None => Kvm {
            usable: false,
            reason: "/dev/kvm opens, but the CPU shows neither vmx nor svm: guests would hang; switch on (nested) virtualisation, or use emulation (host.accel: tcg)".to_owned(),
        },
    }
}

/// The first CPU's value of a line of `/proc/cpuinfo`.
fn field<'a>(cpu_info: &'a str, name: &str) -> &'a str {
    cpu_info
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find_map(|(key, value)| (key.trim() == name).then(|| value.trim()))
        .unwrap_or_default()
}

fn has_flag(cpu_info: &str, flag: &str) -> bool {
    field(cpu_info, "flags").split_whitespace().any(|present| present == flag)
}

/// Names the host's CPU model with all of its features: templates of guests with hardware
/// virtualisation fit only hosts with the same one.
pub fn cpu_model() -> String {
    describe_cpu(&std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default())
}

fn describe_cpu(cpu_info: &str) -> String {
    let names = [
        "vendor_id",
        "cpu family",
        "model",
        "stepping",
        "model name",
        "CPU implementer",
        "CPU part",
    ];
    let mut text: Vec<String> = names
        .into_iter()
        .map(|name| field(cpu_info, name).to_owned())
        .filter(|value| !value.is_empty())
        .collect();
    let features = [field(cpu_info, "flags"), field(cpu_info, "Features")].concat();
    text.push(format!("features {:016x}", fnv1a(features.as_bytes())));
    text.join(" ")
}

/// The FNV-1a hash: stable across versions, which the standard library's is not.
fn fnv1a(bytes: &[u8]) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    bytes.iter().fold(OFFSET, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(PRIME))
}

/// Changes with every boot of the host; `None` where the kernel does not tell.
pub fn boot_id() -> Option<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPU: &str = "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 85\nmodel name\t: Some CPU\nstepping\t: 7\nflags\t\t: fpu vmx sse\n\nprocessor\t: 1\nmodel\t\t: 99\n";

    #[test]
    fn kvm_needs_the_device_and_the_flag() {
        assert!(judge_kvm(Ok(()), "x86_64", CPU).usable);
        assert!(!judge_kvm(Ok(()), "x86_64", &CPU.replace("vmx", "vmxish")).usable);
        assert!(judge_kvm(Ok(()), "aarch64", "").usable);
        let denied = judge_kvm(Err(std::io::ErrorKind::PermissionDenied.into()), "x86_64", CPU);
        assert!(!denied.usable && denied.reason.contains("group kvm"), "{denied:?}");
    }

    #[test]
    fn cpus_are_told_apart_by_their_features() {
        assert!(describe_cpu(CPU).starts_with("GenuineIntel 6 85 7 Some CPU features "));
        assert_ne!(describe_cpu(CPU), describe_cpu(&CPU.replace("sse", "avx")));
    }

    #[test]
    fn old_and_bare_builds_are_refused_with_a_reason() {
        let qemu = Qemu {
            program: "/usr/bin/qemu".into(),
            version: Version { major: 8, minor: 1, micro: 9 },
            package: String::new(),
            sandbox: true,
            user_network: true,
            missing_devices: vec!["virtio-9p-pci"],
        };
        assert_eq!(qemu.usable(), Ok(()));
        assert!(!qemu.can_share());
        assert!(qemu.snapshots().expect_err("too old").contains("8.1.9"));
        let bare = Qemu { missing_devices: vec!["vmgenid"], ..qemu.clone() };
        assert!(bare.usable().expect_err("vmgenid").contains("vmgenid"));
        let old = Qemu { version: Version { major: 6, minor: 1, micro: 0 }, ..qemu };
        assert!(old.usable().is_err());
    }
}
