//! `shared`: host directories for the guest, and which ones must never be.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use crate::config::Config;
use crate::decode::{Decoder, Slot};
use crate::diagnostic::{Code, Location};
use crate::problem::Problem;
use crate::repository::Context;
use crate::source::Span;
use crate::tables::SHARED;

/// A host directory that a guest can mount.
#[derive(Debug, Clone)]
pub struct Shared {
    /// The directory: absolute, and none that would expose the host.
    pub path: PathBuf,
    /// What the guest mounts it by: 1 to 31 letters, digits, `-`, `_` and `.`.
    pub tag: String,
    /// Whether the guest may change it.
    pub writable: bool,
    pub(crate) location: Option<Location>,
}

/// Where it is written does not matter.
impl PartialEq for Shared {
    fn eq(&self, other: &Self) -> bool {
        (&self.path, &self.tag, self.writable) == (&other.path, &other.tag, other.writable)
    }
}

impl Eq for Shared {}

/// The longest tag that 9p over virtio can have.
const TAG_MAX: usize = 31;

/// Directories that hold the host's own programs, its state, or other people's files. Themselves only:
/// below them there are harmless directories.
const HOST_OWN: [&str; 6] = ["/bin", "/home", "/lib", "/sbin", "/usr", "/var"];

/// Directories that hold the host's own settings, keys and devices. Themselves, and everything below them.
const HOST_ONLY: [&str; 7] = ["/boot", "/dev", "/etc", "/proc", "/root", "/run", "/sys"];

/// Why a directory must not be shared. `path` must be free of links and `..`.
pub(crate) fn danger(path: &Path, base_dir: Option<&Path>) -> Option<String> {
    if path.parent().is_none() {
        return Some("it would give the guest the host's whole file system".to_owned());
    }
    if let Some(base_dir) = base_dir
        && (path.starts_with(base_dir) || base_dir.starts_with(path))
    {
        return Some("it would give the guest other runs' disks and secrets (base_dir)".to_owned());
    }
    let own = HOST_OWN.iter().any(|own| Path::new(own) == path);
    let only = HOST_ONLY.iter().any(|only| path.starts_with(only));
    (own || only).then(|| "it belongs to the host's operating system".to_owned())
}

/// What no shared directory may be, contain, or lead to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NeverShared {
    base_dir: Option<PathBuf>,
    /// Files with secrets.
    secrets: Vec<PathBuf>,
}

/// Why a directory cannot be shared.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SharedError {
    /// It cannot be looked at.
    #[error("failed to find {}: {reason}", path.display())]
    Missing {
        /// As it is written.
        path: PathBuf,
        /// What the operating system says.
        reason: String,
    },
    /// It is something else.
    #[error("{} is not a directory", path.display())]
    NoDirectory {
        /// As it is written.
        path: PathBuf,
    },
    /// It would expose the host.
    #[error("{}{} must not be shared: {danger}", written.display(), leads_to(written, path))]
    Danger {
        /// As it is written.
        written: PathBuf,
        /// Where that leads.
        path: PathBuf,
        /// What would be exposed.
        danger: String,
    },
}

fn leads_to(written: &Path, path: &Path) -> String {
    if written == path { String::new() } else { format!(" leads to {}, which", path.display()) }
}

impl Config {
    /// What no directory that is shared with a guest may expose: the base directory, the configuration
    /// file, and every file with a secret that it names. Asks the file system.
    pub fn never_shared(&self) -> NeverShared {
        let real = |path: &Path| std::fs::canonicalize(path).ok();
        let key = real(self.github.jwt_key_file.resolve());
        // The configuration itself, which may hold secrets.
        let configuration = self.github.jwt_key_file.location().and_then(|at| real(&at.file));
        let tokens = self.repositories.values().filter_map(|r| r.persistence_token.as_ref());
        let files = std::iter::once(&self.github.webhook_secret).chain(tokens);
        let files = files.filter_map(|secret| secret.file().and_then(real));
        NeverShared {
            base_dir: real(self.host.base_dir.resolve()),
            secrets: key.into_iter().chain(configuration).chain(files).collect(),
        }
    }
}

impl Shared {
    /// The directory itself, wherever links lead. To be asked again whenever it is about to be shared:
    /// links change.
    ///
    /// # Errors
    /// [`SharedError`] where there is none, or where sharing it would expose the host.
    pub fn resolve(&self, never: &NeverShared) -> Result<PathBuf, SharedError> {
        let path = std::fs::canonicalize(&self.path).map_err(|error| SharedError::Missing {
            path: self.path.clone(),
            reason: error.to_string(),
        })?;
        if !path.is_dir() {
            return Err(SharedError::NoDirectory { path: self.path.clone() });
        }
        let secret = never.secrets.iter().any(|secret| secret.starts_with(&path));
        let danger = danger(&path, never.base_dir.as_deref()).or_else(|| {
            secret.then(|| {
                "it would give the guest the configuration or a file with one of its secrets"
                    .to_owned()
            })
        });
        match danger {
            Some(danger) => Err(SharedError::Danger { written: self.path.clone(), path, danger }),
            None => Ok(path),
        }
    }
}

/// Reads the list.
pub(crate) fn decode(
    d: &mut Decoder<'_>,
    slot: &Slot,
    context: &Context<'_>,
) -> Option<Vec<Shared>> {
    let mut tags: HashMap<String, Span> = HashMap::new();
    let mut all = Vec::new();
    let mut sound = true;
    for item in d.list(slot)? {
        let Some(r) = d.object(&item, &SHARED) else {
            sound = false;
            continue;
        };
        let path = r.required("path", |s| directory(d, s, context));
        let tag = r.required("tag", |s| tag(d, s));
        let writable = r.optional("writable", |s| d.bool(s));
        if let (Some(tag), Some(slot)) = (&tag, r.slot("tag"))
            && let Some(first) = tags.insert(tag.clone(), slot.at)
        {
            let problem = Problem::error(Code::Duplicate, slot.at, "the tag is there twice")
                .note(first, "the first one is here")
                .help("give each shared directory a tag of its own");
            d.report(slot, problem);
        }
        let location = r.slot("path").map(|slot| d.locate(slot));
        match (path, tag, writable) {
            (Some(path), Some(tag), Some(writable)) => {
                all.push(Shared { path, tag, writable: writable.unwrap_or(false), location });
            }
            _ => sound = false,
        }
    }
    sound.then_some(all)
}

fn directory(d: &mut Decoder<'_>, slot: &Slot, context: &Context<'_>) -> Option<PathBuf> {
    let text = d.text(slot)?;
    let path = Path::new(&text);
    if !path.is_absolute() || path.components().any(|c| c == Component::ParentDir) {
        let message = format!("{} is not an absolute path without \"..\"", d.quote(slot));
        d.bad(slot, message, "write the full path of the directory, beginning with /");
        return None;
    }
    let path: PathBuf = path.components().collect();
    let base_dir = context.limits.base_dir.as_ref().map(|base_dir| base_dir.beside_config());
    let keys = [context.bases.config_dir.as_path()];
    let exposes_config = keys.iter().any(|key| key.starts_with(&path));
    let danger = danger(&path, base_dir).or_else(|| {
        exposes_config.then(|| "it would give the guest this configuration's secrets".to_owned())
    });
    if let Some(danger) = danger {
        let message = format!("{} must not be shared: {danger}", d.quote(slot));
        d.bad(slot, message, "share a directory that was made for the purpose");
        return None;
    }
    Some(path)
}

fn tag(d: &mut Decoder<'_>, slot: &Slot) -> Option<String> {
    let text = d.text(slot)?;
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if text.len() > TAG_MAX || !text.bytes().all(allowed) {
        let message = format!("{} cannot be a mount tag", d.quote(slot));
        let help = format!("use 1 to {TAG_MAX} letters, digits, '-', '_' or '.'");
        d.bad(slot, message, help);
        return None;
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_not_shared() {
        let base_dir = Some(Path::new("/srv/forrest"));
        for path in [
            "/",
            "/etc",
            "/etc/ssh",
            "/root/.aws",
            "/run/user/1000",
            "/boot/efi",
            "/proc/1",
            "/dev/shm",
            "/home",
            "/usr",
            "/var",
            "/srv/forrest/runs",
            "/srv/forrest",
            "/srv",
        ] {
            assert!(danger(Path::new(path), base_dir).is_some(), "{path}");
        }
        for path in
            ["/srv/cache", "/home/me/downloads", "/var/cache/yocto", "/srv/forrest2", "/etcetera"]
        {
            assert_eq!(danger(Path::new(path), base_dir), None, "{path}");
        }
    }
}
