//! Whether the files that a configuration names are there and look right.

use std::fs;
use std::io::Read as _;
use std::path::Path;

use crate::config::Config;
use crate::diagnostic::{Code, Diagnostic, Location, Severity};
use crate::machine::{Base, Machine};
use crate::path::{ConfigPath, Found};
use crate::read;
use crate::shared::SharedError;

/// The most of a key file, and of a template's file, that is looked at.
const LOOK_BYTES_MAX: u64 = 1 << 20;

/// The most files of a template directory that are looked at.
const TEMPLATE_FILES_MAX: usize = 256;

impl Config {
    /// Looks at every file and directory that the configuration names, except those with secrets,
    /// which loading has read: the App's key, setup templates, base images, shared directories, and
    /// what is at `base_dir`.
    ///
    /// Findings have the place in the configuration that names the file. The same file is reported
    /// once.
    pub fn check_files(&self) -> Vec<Diagnostic> {
        let mut found = Vec::new();
        check_base_dir(&self.host.base_dir, &mut found);
        check_key(&self.github.jwt_key_file, &mut found);
        for machine in self.machines() {
            check_template(machine, &mut found);
            if let Base::Image(image) = &machine.base {
                check_image(image, &mut found);
            }
            self.check_shared(machine, &mut found);
        }
        let mut distinct: Vec<Diagnostic> = Vec::new();
        for diagnostic in found {
            if !distinct.contains(&diagnostic) {
                distinct.push(diagnostic);
            }
        }
        distinct
    }

    fn check_shared(&self, machine: &Machine, found: &mut Vec<Diagnostic>) {
        let never = self.never_shared();
        for shared in &machine.shared {
            let location = shared.location.as_ref();
            let Err(refusal) = shared.resolve(&never) else { continue };
            let help = match refusal {
                SharedError::Missing { .. } => "create the directory",
                SharedError::NoDirectory { .. } => "name a directory",
                SharedError::Danger { .. } => "share a directory that was made for the purpose",
            };
            found.push(error_at(location, refusal.to_string()).help(help));
        }
    }
}

fn error_at(location: Option<&Location>, message: String) -> Diagnostic {
    Diagnostic::new(Severity::Error, Code::File, message).at(location.cloned())
}

fn warning_at(location: Option<&Location>, message: String) -> Diagnostic {
    Diagnostic::new(Severity::Warning, Code::File, message).at(location.cloned())
}

/// The path to look at, after a warning if it is only in the working directory.
fn locate<'a>(path: &'a ConfigPath, found: &mut Vec<Diagnostic>) -> Option<&'a Path> {
    match path.find() {
        Found::Here(here) => Some(here),
        Found::InWorkingDir(elsewhere) => {
            let message = format!(
                "{} does not exist; the one in the working directory is used",
                path.beside_config().display()
            );
            let help = format!("write {}", elsewhere.display());
            found.push(warning_at(path.location(), message).help(help));
            Some(elsewhere)
        }
        Found::Nowhere(missing) => {
            let message = format!("{} does not exist", missing.display());
            let help = if path.written().is_absolute() {
                "check the path"
            } else {
                "relative paths are taken from the configuration file's directory"
            };
            found.push(error_at(path.location(), message).help(help));
            None
        }
    }
}

fn check_base_dir(path: &ConfigPath, found: &mut Vec<Diagnostic>) {
    // Forrest creates it; only something else in its place is wrong.
    if matches!(path.find(), Found::Nowhere(_)) {
        return;
    }
    let Some(here) = locate(path, found) else { return };
    if !here.is_dir() {
        let message = format!("{} is not a directory", here.display());
        found.push(error_at(path.location(), message).help("name a directory"));
    }
}

/// The file's content up to [`LOOK_BYTES_MAX`], and its metadata.
fn look(path: &Path) -> Result<(Vec<u8>, fs::Metadata), String> {
    let metadata = fs::metadata(path).map_err(|e| e.to_string())?;
    if !metadata.is_file() {
        return Err("it is not a regular file".to_owned());
    }
    let file = fs::File::open(path).map_err(|e| e.to_string())?;
    let mut bytes = Vec::new();
    file.take(LOOK_BYTES_MAX).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    Ok((bytes, metadata))
}

fn check_key(path: &ConfigPath, found: &mut Vec<Diagnostic>) {
    let Some(here) = locate(path, found) else { return };
    let shown = here.display();
    let (bytes, metadata) = match look(here) {
        Ok(read) => read,
        Err(reason) => {
            let message = format!("failed to read the App's private key {shown}: {reason}");
            found.push(error_at(path.location(), message).help("let Forrest's user read it"));
            return;
        }
    };
    if read::is_readable_by_everyone(&metadata) {
        let message = format!("the App's private key {shown} can be read by everyone on this host");
        let mut warning = warning_at(path.location(), message).help(format!("chmod o-r {shown}"));
        warning.code = Code::Permissions;
        found.push(warning);
    }
    if let Err(what) = looks_like_key(&bytes) {
        let message = format!("{shown} is not the App's private key: {what}");
        let help = "generate one on the App's settings page; it is downloaded as a .pem file";
        found.push(error_at(path.location(), message).help(help));
    }
}

/// Whether it can be an unencrypted RSA private key in PEM form; otherwise what it is instead.
fn looks_like_key(bytes: &[u8]) -> Result<(), &'static str> {
    let text = std::str::from_utf8(bytes).map_err(|_| "it is not text")?;
    let labels = ["RSA PRIVATE KEY", "PRIVATE KEY"];
    let body = labels.iter().find_map(|label| {
        let (_, rest) = text.split_once(&format!("-----BEGIN {label}-----"))?;
        rest.split_once(&format!("-----END {label}-----")).map(|(body, _)| body)
    });
    match body {
        Some(body) if body.contains("ENCRYPTED") => Err("it is protected by a passphrase"),
        Some(body) if body.trim().len() < 64 => Err("it is too short"),
        Some(_) => Ok(()),
        None if text.contains("ENCRYPTED PRIVATE KEY") => Err("it is protected by a passphrase"),
        None if text.contains("OPENSSH PRIVATE KEY") => Err("it is an SSH key"),
        None if text.contains("EC PRIVATE KEY") => Err("it is an elliptic-curve key, not RSA"),
        None if text.contains("PUBLIC KEY") => Err("it is a public key"),
        None if text.contains("CERTIFICATE") => Err("it is a certificate"),
        None if text.contains("PRIVATE KEY-----") => Err("it is incomplete"),
        None => Err("it has no line \"-----BEGIN RSA PRIVATE KEY-----\""),
    }
}

fn check_image(path: &ConfigPath, found: &mut Vec<Diagnostic>) {
    let Some(here) = locate(path, found) else { return };
    let shown = here.display();
    match fs::metadata(here) {
        Ok(metadata) if metadata.is_dir() => {
            let message = format!("the image {shown} is a directory");
            found.push(error_at(path.location(), message).help("name the image file in it"));
        }
        Ok(metadata) if metadata.is_file() && metadata.len() == 0 => {
            let message = format!("the image {shown} is empty");
            found.push(error_at(path.location(), message).help("download it again"));
        }
        Ok(_) => {
            if let Err(error) = fs::File::open(here) {
                let message = format!("failed to read the image {shown}: {error}");
                found.push(error_at(path.location(), message).help("let Forrest's user read it"));
            }
        }
        Err(error) => {
            let message = format!("failed to look at the image {shown}: {error}");
            found.push(error_at(path.location(), message).help("check the path"));
        }
    }
}

fn check_template(machine: &Machine, found: &mut Vec<Diagnostic>) {
    let path = &machine.setup_template.path;
    let Some(here) = locate(path, found) else { return };
    let shown = here.display();
    if !here.is_dir() {
        let message = format!("the setup template {shown} is not a directory");
        let help = "name the directory that has cloud-init/ and job-config/ in it";
        found.push(error_at(path.location(), message).help(help));
        return;
    }
    for part in ["cloud-init", "job-config"] {
        if !here.join(part).is_dir() {
            let message = format!("the setup template {shown} has no directory {part}/");
            let help = "create it, or start from contrib/templates";
            found.push(error_at(path.location(), message).help(help));
        }
    }
    if here.join("job-config").is_dir() && !mentions_jit_config(&here.join("job-config")) {
        let message = format!("no file in job-config/ of {shown} mentions <JITCONFIG>");
        let help = "the runner's registration takes that pattern's place: without it the guest runs \
                    no job, unless the template gets it there in a way of its own";
        found.push(warning_at(path.location(), message).help(help));
    }
    if machine.snapshot && mentions_jit_config(&here.join("cloud-init")) {
        let message = format!("the cloud-init part of {shown} mentions <JITCONFIG>");
        let help = "a snapshot is taken before there is a job: use <JITCONFIG> in job-config/ only, \
                    or write snapshot: false";
        found.push(error_at(path.location(), message).help(help));
    }
}

/// Whether a file directly in the directory has the pattern that a JIT config replaces.
fn mentions_jit_config(directory: &Path) -> bool {
    let Ok(entries) = fs::read_dir(directory) else { return false };
    entries.flatten().take(TEMPLATE_FILES_MAX).any(|entry| {
        look(&entry.path()).is_ok_and(|(bytes, _)| {
            let pattern = b"<JITCONFIG>";
            bytes.windows(pattern.len()).any(|window| window == pattern)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::looks_like_key;

    #[test]
    fn keys_are_told_from_what_is_mistaken_for_them() {
        let body = "A".repeat(64);
        let pem = |label: &str| format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n");
        assert_eq!(looks_like_key(pem("RSA PRIVATE KEY").as_bytes()), Ok(()));
        assert_eq!(looks_like_key(pem("PRIVATE KEY").as_bytes()), Ok(()));
        for label in [
            "ENCRYPTED PRIVATE KEY",
            "OPENSSH PRIVATE KEY",
            "EC PRIVATE KEY",
            "PUBLIC KEY",
            "CERTIFICATE",
        ] {
            assert!(looks_like_key(pem(label).as_bytes()).is_err(), "{label}");
        }
        assert!(looks_like_key(b"-----BEGIN PRIVATE KEY-----\nAAAA").is_err());
        assert!(looks_like_key(b"\xff\xfe").is_err());
        assert!(looks_like_key(b"").is_err());
    }
}
