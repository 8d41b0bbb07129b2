//! Values that several sections have: paths, and secrets that are given directly or in a file.

use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::decode::{Decoder, Reader, Slot};
use crate::diagnostic::Code;
use crate::path::{Bases, ConfigPath, Found};
use crate::problem::Problem;
use crate::secret::Secret;

/// The most bytes of a file with a secret, and of the secret itself.
pub(crate) const SECRET_BYTES_MAX: usize = 16 << 10;

/// Reads a path.
pub(crate) fn path(d: &mut Decoder<'_>, slot: &Slot, bases: &Bases) -> Option<ConfigPath> {
    let text = d.text(slot)?;
    Some(ConfigPath::new(&text, bases, Some(d.locate(slot))))
}

/// Reads a secret from the field `name` or from the file that `<name>_file` names. Outer `None`:
/// it is wrong; inner `None`: neither is there.
pub(crate) fn secret(
    d: &mut Decoder<'_>,
    r: &Reader,
    name: &str,
    bases: &Bases,
) -> Option<Option<Secret>> {
    let file = format!("{name}_file");
    match (r.slot(name), r.slot(&file)) {
        (None, None) => Some(None),
        (Some(slot), None) => inline(d, slot).map(Some),
        (None, Some(slot)) => from_file(d, slot, bases).map(Some),
        (Some(slot), Some(other)) => {
            let message = format!("\"{name}\" and \"{file}\" are both there");
            let problem = Problem::error(Code::Conflict, slot.key, message)
                .note(other.key, "the file is named here")
                .help("remove one of the two");
            d.report(slot, problem);
            None
        }
    }
}

fn inline(d: &mut Decoder<'_>, slot: &Slot) -> Option<Secret> {
    let text = d.text(slot)?;
    if text.trim().is_empty() {
        d.bad(slot, "the secret is empty".to_owned(), "write at least one character");
        return None;
    }
    if text.len() > SECRET_BYTES_MAX {
        let message = format!("the secret is longer than {SECRET_BYTES_MAX} bytes");
        d.bad(slot, message, "write a shorter one");
        return None;
    }
    Some(Secret::new(text))
}

fn from_file(d: &mut Decoder<'_>, slot: &Slot, bases: &Bases) -> Option<Secret> {
    let path = path(d, slot, bases)?;
    let found = match path.find() {
        Found::Here(found) => found,
        Found::Nowhere(found) => found,
        Found::InWorkingDir(found) => {
            let message = format!(
                "{} does not exist; the file in the working directory is used",
                path.beside_config().display()
            );
            let help = format!("write {}", found.display());
            let problem = Problem::warning(Code::File, slot.at, message).help(help);
            d.report(slot, problem);
            found
        }
    };
    match read(found) {
        Ok((secret, everyone)) => {
            if everyone {
                let message = format!("{} can be read by everyone on this host", found.display());
                let help = format!("chmod o-r {}", found.display());
                let problem = Problem::warning(Code::Permissions, slot.at, message).help(help);
                d.report(slot, problem);
            }
            Some(secret)
        }
        Err(reason) => {
            let message = format!("failed to read the secret in {}: {reason}", found.display());
            let problem = Problem::error(Code::File, slot.at, message)
                .help("name a text file with nothing in it but the secret");
            d.report(slot, problem);
            None
        }
    }
}

/// The file's content less white space at its end, and whether everyone can read it.
fn read(path: &Path) -> Result<(Secret, bool), String> {
    let file = std::fs::File::open(path).map_err(|e| e.to_string())?;
    let metadata = file.metadata().map_err(|e| e.to_string())?;
    if metadata.is_dir() {
        return Err("it is a directory".to_owned());
    }
    let most = u64::try_from(SECRET_BYTES_MAX).unwrap_or(u64::MAX);
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    if bytes.len() > SECRET_BYTES_MAX {
        return Err(format!("it has more than {SECRET_BYTES_MAX} bytes"));
    }
    let text = String::from_utf8(bytes).map_err(|_| "it is not UTF-8 text".to_owned())?;
    let secret = text.trim_end();
    if secret.is_empty() {
        return Err("it is empty".to_owned());
    }
    Ok((Secret::read_from(path, secret.to_owned()), is_readable_by_everyone(&metadata)))
}

/// Whether the file's mode lets every user read it.
pub(crate) fn is_readable_by_everyone(metadata: &std::fs::Metadata) -> bool {
    metadata.is_file() && metadata.permissions().mode() & 0o004 != 0
}
