//! Which files a process may still open (Landlock, `landlock(7)`).
//!
//! QEMU needs its own program and libraries, firmware, a few files of `/proc`, `/sys` and `/etc`, and its
//! devices; what belongs to its VM it is handed open. The rest of the host's files it cannot open,
//! readable for everyone or not. Neither can it take a TCP port, nor reach abstract Unix sockets or
//! signal processes outside, where the kernel is recent enough. What Landlock does not know, such as
//! Unix sockets with a name in the file system, is up to [`crate::calls`].

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, Scope,
};

/// The newest version of Landlock that is made use of; older kernels leave out what they do not know.
const NEWEST: ABI = ABI::V6;

/// Where programs and their libraries and firmware are, whatever the distribution.
const PROGRAMS: [&str; 9] =
    ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/opt", "/nix/store", "/gnu/store"];

/// What QEMU and the libraries below it read of the host besides; links are followed. Files, so that
/// nothing beside them can be read: `/proc/self` has the host's connections (`net`) and mounts.
const READ: [&str; 12] = [
    crate::resolvers::PATH,
    "/etc/ld.so.cache",
    "/etc/ld.so.preload",
    "/etc/localtime",
    "/etc/nsswitch.conf",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/self/maps",
    "/proc/self/status",
    "/proc/sys/vm",
    "/sys/devices/system",
    "/dev/urandom",
];

/// Where programs keep what they hand to others while the host runs.
const RUNTIME: &str = "/run";

/// What QEMU writes to as well.
const DEVICES: [&str; 2] = ["/dev/null", "/dev/kvm"];

/// What a process may open, besides what every QEMU needs.
#[derive(Debug, Clone, Default)]
pub struct Reach {
    /// The program that it becomes: its libraries may be beside it.
    pub program: PathBuf,
    /// A file to read, and to write if so.
    pub file: Option<(PathBuf, bool)>,
    /// Directories to read, and to write if so.
    pub directories: Vec<(PathBuf, bool)>,
}

/// Restricts the calling process for good, as far as the kernel can ([`missing`]).
///
/// # Errors
/// What the kernel says. Where it does not know Landlock, or a part of it, that is no error.
pub fn restrict(reach: &Reach) -> Result<(), String> {
    restricted(reach).map_err(|err| err.to_string())
}

fn restricted(reach: &Reach) -> Result<(), RulesetError> {
    let read = AccessFs::from_read(NEWEST);
    let read_file = AccessFs::ReadFile | AccessFs::ReadDir;
    let write_file =
        AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate | AccessFs::IoctlDev;
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::BindTcp)?
        .scope(Scope::AbstractUnixSocket | Scope::Signal)?
        .create()?;
    for path in PROGRAMS {
        rules = allow(rules, Path::new(path), read)?;
    }
    // A QEMU of one's own: PREFIX/bin/qemu-system-….
    if let Some(prefix) =
        reach.program.parent().and_then(Path::parent).filter(|p| *p != Path::new("/"))
    {
        rules = allow(rules, prefix, read)?;
    }
    for path in READ {
        rules = allow(rules, Path::new(path), read_file)?;
    }
    if let Some(dir) = resolver_directory() {
        rules = allow(rules, &dir, AccessFs::ReadFile.into())?;
    }
    for path in DEVICES {
        rules = allow(rules, Path::new(path), write_file)?;
    }
    if let Some((path, write)) = &reach.file {
        rules = allow(rules, path, if *write { write_file } else { AccessFs::ReadFile.into() })?;
    }
    for (path, write) in &reach.directories {
        rules = allow(rules, path, if *write { shared_and_written() } else { read_file })?;
    }
    rules.restrict_self().map(drop)
}

/// In a directory that a guest may write to, QEMU makes plain files and directories only.
fn shared_and_written() -> BitFlags<AccessFs> {
    let never = AccessFs::Execute
        | AccessFs::MakeChar
        | AccessFs::MakeBlock
        | AccessFs::MakeFifo
        | AccessFs::MakeSock
        | AccessFs::MakeSym
        | AccessFs::IoctlDev;
    AccessFs::from_all(NEWEST) & !never
}

/// The directory that user-mode networking may open the list of name servers in, also when somebody has
/// put a new one in its place. `None` where there is no such directory: then it may open the file that is
/// there at the start, which serves for as long as that one is written to and not replaced.
pub(crate) fn resolver_directory() -> Option<PathBuf> {
    directory_of_link(&std::fs::canonicalize(crate::resolvers::PATH).ok()?)
}

/// A permission for a file follows the file, and the new one has none. So it is the directory that counts
/// where there is one of whoever manages the name servers (systemd-resolved, NetworkManager, resolvconf).
/// It does not where the list is in `/etc` itself: that would be everything in there. Nor elsewhere, where
/// nobody knows what else there is.
fn directory_of_link(real: &Path) -> Option<PathBuf> {
    let dir = real.parent()?;
    (dir.starts_with(RUNTIME) && dir != Path::new(RUNTIME)).then(|| dir.to_owned())
}

/// What is not there needs no permission.
fn allow(
    rules: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    let Ok(fd) = PathFd::new(path) else { return Ok(rules) };
    // Files take fewer rights than directories.
    let is_dir = std::fs::metadata(path).is_ok_and(|found| found.is_dir());
    let access = if is_dir { access } else { access & AccessFs::from_file(NEWEST) };
    rules.add_rule(PathBeneath::new(fd, access))
}

/// What the kernel cannot restrict of all this, in words for people; `None`: it can restrict everything.
/// Asked of the kernel, which leaves out what it does not know.
pub fn missing() -> Option<String> {
    match supported() {
        Ok(()) => lacking(&PARTS, Part::is_known),
        Err(why) => Some(why),
    }
}

fn supported() -> Result<(), String> {
    if asked(|rules| rules.handle_access(AccessFs::from_all(ABI::V1))) {
        return Ok(());
    }
    Err("this kernel does not restrict which files QEMU can open (Landlock): it needs Linux 5.13, \
         and landlock among the security modules (lsm= on the kernel's command line)"
        .to_owned())
}

/// Whether the kernel knows all that these rules are about.
fn asked(about: impl FnOnce(Ruleset) -> Result<Ruleset, RulesetError>) -> bool {
    let rules = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    about(rules).and_then(Ruleset::create).is_ok()
}

/// What a part of Landlock restricts, that kernels before some version do not have. (What came with its
/// second version, links between directories, the first one refuses always.)
struct Part {
    restricts: Restricted,
    what: &'static str,
    /// Since which Linux.
    since: &'static str,
    /// Whether [`crate::calls`] refuses the same.
    refused_as_call: bool,
}

enum Restricted {
    File(AccessFs),
    Net(AccessNet),
    Scope(Scope),
}

const PARTS: [Part; 5] = [
    Part {
        restricts: Restricted::File(AccessFs::Truncate),
        what: "shortening files",
        since: "6.2",
        refused_as_call: false,
    },
    Part {
        restricts: Restricted::Net(AccessNet::BindTcp),
        what: "taking TCP ports",
        since: "6.7",
        refused_as_call: true,
    },
    Part {
        restricts: Restricted::File(AccessFs::IoctlDev),
        what: "commands to devices",
        since: "6.10",
        refused_as_call: false,
    },
    Part {
        restricts: Restricted::Scope(Scope::AbstractUnixSocket),
        what: "connecting to abstract Unix sockets",
        since: "6.12",
        refused_as_call: true,
    },
    Part {
        restricts: Restricted::Scope(Scope::Signal),
        what: "signals to other processes of the same user",
        since: "6.12",
        refused_as_call: false,
    },
];

impl Part {
    fn is_known(&self) -> bool {
        asked(|rules| match self.restricts {
            Restricted::File(access) => rules.handle_access(access),
            Restricted::Net(access) => rules.handle_access(access),
            Restricted::Scope(scope) => rules.scope(scope),
        })
    }
}

fn lacking(parts: &[Part], known: impl Fn(&Part) -> bool) -> Option<String> {
    let lacking: Vec<String> = parts
        .iter()
        .filter(|part| !known(part))
        .map(|part| {
            let instead =
                if part.refused_as_call { ", but the filter of system calls does" } else { "" };
            format!("{} (since Linux {}{instead})", part.what, part.since)
        })
        .collect();
    (!lacking.is_empty()).then(|| {
        format!(
            "Landlock of this kernel keeps QEMU from other files, but does not restrict: {}",
            lacking.join("; ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_name_servers_is_opened_and_no_other() {
        let directory = |real: &str| directory_of_link(Path::new(real));
        for real in ["/run/systemd/resolve/stub-resolv.conf", "/run/NetworkManager/resolv.conf"] {
            assert_eq!(directory(real).as_deref(), Path::new(real).parent());
        }
        for real in ["/etc/resolv.conf", "/run/resolv.conf", "/root/resolv.conf", "/runaway/x/y"] {
            assert_eq!(directory(real), None, "{real}");
        }
    }

    #[test]
    fn what_an_old_kernel_does_not_restrict_is_told() {
        let of_linux_6_8 = |part: &Part| matches!(part.since, "6.2" | "6.7");
        assert_eq!(
            lacking(&PARTS, of_linux_6_8).as_deref(),
            Some(
                "Landlock of this kernel keeps QEMU from other files, but does not restrict: \
                 commands to devices (since Linux 6.10); connecting to abstract Unix sockets (since \
                 Linux 6.12, but the filter of system calls does); signals to other processes of the \
                 same user (since Linux 6.12)"
            )
        );
        let of_linux_6_1 = lacking(&PARTS, |_| false).expect("something");
        assert!(of_linux_6_1.contains("shortening files (since Linux 6.2);"), "{of_linux_6_1}");
        assert_eq!(lacking(&PARTS, |_| true), None);
    }

    /// What the kernel says of itself: later versions can do what earlier ones can.
    #[test]
    fn the_kernel_is_asked_for_each_part() {
        if supported().is_err() {
            return;
        }
        let known: Vec<bool> = PARTS.iter().map(Part::is_known).collect();
        assert!(known.is_sorted_by(|earlier, later| earlier >= later), "{known:?}");
        assert_eq!(missing().is_some(), known.contains(&false));
    }

    /// The restriction holds for the thread that asks for it, and for what it starts.
    #[test]
    fn what_is_not_named_cannot_be_opened() {
        if let Err(why) = supported() {
            eprintln!("SKIPPED, NOT TESTED: {why}");
            assert!(std::env::var("CI").as_deref() != Ok("true"), "{why}");
            return;
        }
        let dir = std::env::temp_dir().join(format!("forrest-landlock-{}", std::process::id()));
        let (named, other) = (dir.join("named"), dir.join("other"));
        for dir in [&named, &other] {
            std::fs::create_dir_all(dir).expect("a directory");
            std::fs::write(dir.join("file"), b"x").expect("a file");
        }
        let (named_too, other_too) = (named.clone(), other.clone());
        let restricted = std::thread::spawn(move || {
            let reach = Reach {
                program: "/usr/bin/qemu-system-x86_64".into(),
                file: Some((other_too.join("file"), false)),
                directories: vec![(named_too.clone(), true)],
            };
            restrict(&reach).expect("restricted");
            std::fs::write(named_too.join("new"), b"y").expect("a named directory is written to");
            std::fs::read(other_too.join("file")).expect("a named file is read");
            for needed in ["/proc/cpuinfo", "/proc/self/status", "/proc/self/maps"] {
                std::fs::read(needed).expect(needed);
            }
            std::fs::read(crate::resolvers::PATH).expect("name servers are read");
            let denied = |result: std::io::Result<()>| {
                result.is_err_and(|err| err.kind() == std::io::ErrorKind::PermissionDenied)
            };
            assert!(denied(std::fs::write(other_too.join("file"), b"z")));
            assert!(denied(std::fs::read_dir(&other_too).map(drop)));
            for others in
                ["/etc/passwd", "/etc/hostname", "/proc/self/net/tcp", "/proc/self/mountinfo"]
            {
                assert!(denied(std::fs::read(others).map(drop)), "{others}");
            }
            for directory in ["/etc", "/proc/self", "/root"] {
                assert!(denied(std::fs::read_dir(directory).map(drop)), "{directory}");
            }
            assert!(denied(std::fs::read_dir("/").map(drop)));
            assert!(denied(std::os::unix::fs::symlink("/", named_too.join("link"))));
        });
        restricted.join().expect("as expected");
        std::fs::remove_dir_all(&dir).expect("removed");
    }
}
