//! Reading the files of a template.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use forrest_core::model::Bytes;

use super::Part;
use crate::error::{ImageError, IoContext};
use crate::seed::{self, SeedFiles};

/// The most files in one of a template's directories.
pub const MAX_FILES: usize = 256;
/// The longest file of a template, in bytes.
pub const MAX_FILE_LEN: usize = 1 << 20;
/// The most bytes in one of a template's directories, which leaves room on the seed disk for what the
/// patterns are replaced by and for what the guest writes.
pub const MAX_PART_LEN: usize = 3 << 20;

/// The files of one part, by their paths below it.
pub(super) fn load_part(dir: &Path, part: Part) -> Result<BTreeMap<String, String>, ImageError> {
    let root = dir.join(part.dir_name());
    if !root.is_dir() {
        let why = format!("it has no directory {}/; create it", part.dir_name());
        return Err(ImageError::Template { path: dir.to_owned(), why });
    }
    let mut files = BTreeMap::new();
    load_dir(&root, "", 1, &mut files)?;
    check(&root, part, &files)?;
    Ok(files)
}

fn load_dir(
    dir: &Path,
    prefix: &str,
    depth: usize,
    files: &mut BTreeMap<String, String>,
) -> Result<(), ImageError> {
    let refuse =
        |path: &Path, why: String| Err(ImageError::Template { path: path.to_owned(), why });
    for entry in std::fs::read_dir(dir).context("list", dir)? {
        let path = entry.context("list", dir)?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            return refuse(&path, "its name is not valid UTF-8; rename it".to_owned());
        };
        let name = format!("{prefix}{name}");
        // Through links, so that a template can be put together from them.
        let metadata = std::fs::metadata(&path).context("find", &path)?;
        if metadata.is_dir() && depth == seed::MAX_DEPTH {
            return refuse(&path, format!("it is nested deeper than {} levels", seed::MAX_DEPTH));
        }
        if metadata.is_dir() {
            load_dir(&path, &format!("{name}/"), depth + 1, files)?;
            continue;
        }
        if !metadata.is_file() {
            return refuse(&path, "it is neither a file nor a directory".to_owned());
        }
        if files.len() == MAX_FILES {
            return refuse(dir, format!("it has more than {MAX_FILES} files"));
        }
        files.insert(name, read_text(&path)?);
    }
    Ok(())
}

fn read_text(path: &Path) -> Result<String, ImageError> {
    let refuse = |why: String| Err(ImageError::Template { path: path.to_owned(), why });
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).context("open", path)?;
    file.take(MAX_FILE_LEN as u64 + 1).read_to_end(&mut bytes).context("read", path)?;
    if bytes.len() > MAX_FILE_LEN {
        return refuse(format!("it is longer than {}", Bytes(MAX_FILE_LEN as u64)));
    }
    String::from_utf8(bytes).or_else(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()]
            .iter()
            .filter(|b| **b == b'\n')
            .count();
        refuse(format!("it is not UTF-8 text (line {}); only text can be templated", line + 1))
    })
}

/// Finds out now, not with a job at hand, what could not become a seed disk.
fn check(root: &Path, part: Part, files: &BTreeMap<String, String>) -> Result<(), ImageError> {
    let len: usize = files.values().map(String::len).sum();
    if len > MAX_PART_LEN {
        let why = format!("its files have more than {} together", Bytes(MAX_PART_LEN as u64));
        return Err(ImageError::Template { path: root.to_owned(), why });
    }
    let names = files.keys().map(|name| (name.as_str(), Vec::new()));
    seed::check_names(part.label(), &SeedFiles::from_iter(names)).map_err(|error| match error {
        ImageError::SeedName { name, why, .. } => ImageError::Template {
            path: root.join(name),
            why: format!("the file's name cannot be used: {why}"),
        },
        error => error,
    })
}
