//! The base directory, its file system, and the images.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use forrest_config::{Base, Config, WebhookListen};
use forrest_core::model::Bytes;
use forrest_images::{Store, inspect_src};
use rustix::fs::{Access, AtFlags, CWD, Mode, OFlags};

use super::config::counted;
use super::host::about;
use super::{Area, Findings};

/// The longest path that other programs can connect a Unix socket at, in bytes.
const SOCKET_PATH_LEN_MAX: usize = 107;

pub(super) fn examine(config: &Config, findings: &mut Findings) {
    let base_dir = config.host.base_dir.resolve();
    if base_dir_is_usable(base_dir, findings) {
        file_system(base_dir, findings);
        space(config, base_dir, findings);
        if config.host.webhook_listen == WebhookListen::Unix {
            socket_path(base_dir, findings);
        }
        machine_images(config, base_dir, findings);
    }
    src_images(config, findings);
}

fn base_dir_is_usable(base_dir: &Path, findings: &mut Findings) -> bool {
    let shown = base_dir.display();
    let metadata = match std::fs::metadata(base_dir) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let above = base_dir.ancestors().skip(1).find(|dir| dir.exists());
            if above.is_some_and(may_write) {
                findings.ok(Area::Storage, format!("{shown} is not there yet; Forrest makes it"));
            } else {
                findings.problem(
                    Area::Storage,
                    format!("{shown} is not there, and this user cannot make it"),
                    "make the directory and give it to the user that Forrest runs as",
                );
            }
            return false;
        }
        Err(error) => {
            findings.problem(
                Area::Storage,
                format!("could not look at {shown}: {error}"),
                "let the user that Forrest runs as into all directories above it",
            );
            return false;
        }
    };
    if !metadata.is_dir() {
        // The configuration's findings say so.
        return false;
    }
    let (owner, user) = (metadata.uid(), rustix::process::geteuid().as_raw());
    if owner != user {
        findings.warning(
            Area::Storage,
            format!("{shown} belongs to user {owner}, and this examination runs as user {user}"),
            "what is said here of writing is about whoever runs `forrest doctor`; a daemon that runs is asked \
             about itself",
        );
    }
    // To pass through, a reverse proxy needs mode 0711: the sockets are in there.
    if metadata.mode() & 0o006 != 0 {
        findings.warning(
            Area::Storage,
            format!("every user of this host can look into {shown}, or write to it"),
            format!("chmod o-rw {shown}: disks hold what private repositories hold"),
        );
    }
    if !may_write(base_dir) {
        findings.problem(
            Area::Storage,
            format!("this user cannot write to {shown}"),
            "give the directory to the user that Forrest runs as; see that it is not mounted read-only",
        );
        return false;
    }
    true
}

fn may_write(dir: &Path) -> bool {
    let wanted = Access::WRITE_OK | Access::EXEC_OK;
    rustix::fs::accessat(CWD, dir, wanted, AtFlags::EACCESS).is_ok()
}

/// Whether files can share blocks, tried with two files that never get a name.
fn file_system(base_dir: &Path, findings: &mut Findings) {
    match shares_blocks(base_dir) {
        Ok(true) => findings.ok(
            Area::Storage,
            format!("{} has reflinks: disks are forked in milliseconds", base_dir.display()),
        ),
        Ok(false) => findings.ok(
            Area::Storage,
            format!(
                "{} has no reflinks: disks are qcow2 overlays (XFS or btrfs would make raw copies, which run a little faster)",
                base_dir.display()
            ),
        ),
        Err(error) => findings.warning(
            Area::Storage,
            format!("could not try whether {} has reflinks: {error}", base_dir.display()),
            "the daemon tries again at its start, and says in its log what it found",
        ),
    }
}

fn shares_blocks(dir: &Path) -> rustix::io::Result<bool> {
    let nameless = || {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR)
    };
    let (from, to) = (nameless()?, nameless()?);
    rustix::io::write(&from, &[b'x'; 4096])?;
    Ok(rustix::fs::ioctl_ficlone(&to, &from).is_ok())
}

fn space(config: &Config, base_dir: &Path, findings: &mut Findings) {
    let stat = match rustix::fs::statvfs(base_dir) {
        Ok(stat) => stat,
        Err(error) => {
            return findings.problem(
                Area::Storage,
                format!("could not measure the free space of {}: {error}", base_dir.display()),
                "see that its file system is mounted",
            );
        }
    };
    let free = Bytes(stat.f_bavail.saturating_mul(stat.f_frsize));
    let total = Bytes(stat.f_blocks.saturating_mul(stat.f_frsize));
    let reserve = config.host.min_free_disk;
    let largest = config.machines().max_by_key(|machine| machine.disk);
    let (free_text, reserve_text) = (about(free), about(reserve));
    if free < reserve {
        return findings.problem(
            Area::Storage,
            format!("{free_text} of disk space is free, less than host.min_free_disk ({reserve_text}): no run is started"),
            "make room, or lower host.min_free_disk",
        );
    }
    match largest {
        Some(machine) if free < reserve.saturating_add(machine.disk) => findings.warning(
            Area::Storage,
            format!(
                "{free_text} of disk space is free: not enough for {} to fill its disk ({}) with {reserve_text} left over",
                machine.name,
                about(machine.disk)
            ),
            "make room, or lower the disk of that machine type: its runs wait while others hold disks",
        ),
        _ => findings.ok(
            Area::Storage,
            format!("{free_text} of {} of disk space is free ({reserve_text} is kept free)", about(total)),
        ),
    }
}

fn socket_path(base_dir: &Path, findings: &mut Findings) {
    let socket = base_dir.join("webhook.sock");
    let len = socket.as_os_str().len();
    if len > SOCKET_PATH_LEN_MAX {
        findings.problem(
            Area::Storage,
            format!("the path {} has {len} bytes; a reverse proxy can connect to sockets of at most {SOCKET_PATH_LEN_MAX}", socket.display()),
            "choose a shorter host.base_dir, or let the proxy use a symbolic link to it, or set host.webhook_listen to an address",
        );
    }
}

/// The src images that the machine types start from.
fn src_images(config: &Config, findings: &mut Findings) {
    let mut seen = BTreeSet::new();
    let mut sound = 0;
    for machine in config.machines() {
        let Base::Image(path) = &machine.base else { continue };
        let path = path.resolve();
        if !path.exists() {
            // The configuration's findings say so.
            continue;
        }
        let image = match inspect_src(path) {
            Ok(image) => image,
            Err(error) => {
                if seen.insert(path.to_owned()) {
                    let advice = "docs/debian-images.md says how to get a usable image";
                    findings.problem(Area::Storage, error.to_string(), advice);
                }
                continue;
            }
        };
        if machine.disk < image.virtual_size {
            findings.problem(
                Area::Storage,
                format!(
                    "{} has a disk of {}, and its image {} is {}",
                    machine.name,
                    machine.disk,
                    path.display(),
                    about(image.virtual_size)
                ),
                format!("set its disk to at least {}", image.virtual_size),
            );
        }
        if !seen.insert(path.to_owned()) {
            continue;
        }
        if image.bootable {
            sound += 1;
        } else {
            findings.warning(
                Area::Storage,
                format!("{} has no boot sector", path.display()),
                "see that it is the image of a whole disk that boots with BIOS",
            );
        }
    }
    if sound > 0 {
        let images = counted(sound, "src image", "src images");
        findings.ok(Area::Storage, format!("{images} can be started from"));
    }
}

/// The machine images. Only for the user they belong to: to open the store is to finish what a crash
/// left unfinished in it.
fn machine_images(config: &Config, base_dir: &Path, findings: &mut Findings) {
    let owner = std::fs::metadata(base_dir).map(|metadata| metadata.uid()).ok();
    let ours = owner == Some(rustix::process::geteuid().as_raw());
    if !ours || !base_dir.join("machines").is_dir() {
        return;
    }
    let store = match Store::open(base_dir) {
        Ok(store) => store,
        Err(error) => {
            let advice = "the daemon would stop at this, too: mend it first";
            return findings.problem(Area::Storage, error.to_string(), advice);
        }
    };
    let mut with_image = 0;
    for machine in config.machines() {
        match store.machine_image(&machine.name) {
            Ok(image) => with_image += usize::from(image.is_some()),
            Err(error) => {
                let advice =
                    format!("`forrest images history {}` shows what there is", machine.name);
                findings.problem(Area::Storage, error.to_string(), advice);
            }
        }
        for generation in store.history(&machine.name).unwrap_or_default() {
            if let Some(broken) = generation.broken {
                findings.warning(
                    Area::Storage,
                    format!("generation {} of {} is marked broken: {}", generation.generation, machine.name, broken.why),
                    "see the job that left it behind (`forrest images history`); an earlier one is used meanwhile",
                );
            }
        }
    }
    let images = counted(with_image, "machine type has", "machine types have");
    findings.ok(Area::Storage, format!("{images} an image of their own"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    #[test]
    fn examining_leaves_nothing_behind() {
        let base = tempfile::tempdir().expect("a directory");
        let mut findings = Findings::default();
        assert!(base_dir_is_usable(base.path(), &mut findings));
        file_system(base.path(), &mut findings);
        assert!(findings.0.iter().all(|f| f.level != Level::Problem), "{findings:?}");
        assert_eq!(std::fs::read_dir(base.path()).expect("list").count(), 0);
    }

    #[test]
    fn a_proxy_may_pass_through_and_nobody_may_look() {
        use std::os::unix::fs::PermissionsExt;
        let base = tempfile::tempdir().expect("a directory");
        for (mode, warned) in [(0o711, false), (0o750, false), (0o755, true), (0o703, true)] {
            let mode_of = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(base.path(), mode_of).expect("a mode");
            let mut findings = Findings::default();
            assert!(base_dir_is_usable(base.path(), &mut findings));
            let found = findings.0.iter().any(|f| f.level == Level::Warning);
            assert_eq!(found, warned, "{mode:o}: {findings:?}");
        }
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_a_problem() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let mut findings = Findings::default();
        assert!(!base_dir_is_usable(&file.path().join("base"), &mut findings));
        assert!(findings.0.iter().any(|f| f.level == Level::Problem), "{findings:?}");
    }

    #[test]
    fn sockets_that_no_proxy_could_reach_are_noticed() {
        let mut findings = Findings::default();
        socket_path(&Path::new("/srv").join("x".repeat(120)), &mut findings);
        assert_eq!(findings.0.len(), 1);
        socket_path(Path::new("/srv/forrest"), &mut findings);
        assert_eq!(findings.0.len(), 1);
    }
}
