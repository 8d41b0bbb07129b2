//! Setup templates: a directory with `cloud-init/` and `job-config/`, whose files become the seed disks
//! of a guest after `<NAME>` patterns in them were replaced.
//!
//! Replacement is one pass over the text: what a pattern is replaced by is never looked at again.

mod files;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use forrest_core::model::{MachineTypeName, RunnerName};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::error::ImageError;
use crate::seed::{CIDATA, JOBDATA, SeedFiles};

pub use files::{MAX_FILE_LEN, MAX_FILES, MAX_PART_LEN};

/// The longest name of a pattern, in bytes.
pub const MAX_NAME_LEN: usize = 64;

const JITCONFIG: &str = "JITCONFIG";
const RUNNER_NAME: &str = "RUNNER_NAME";

/// The patterns that Forrest replaces by itself.
pub const BUILT_IN: [&str; 6] =
    ["REPO_OWNER", "REPO_NAME", "MACHINE_NAME", JITCONFIG, RUNNER_NAME, "INSTANCE_ID"];

/// One of a template's two directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// `cloud-init/`, for cloud-init's NoCloud.
    CloudInit,
    /// `job-config/`, with what the job's runner needs.
    JobConfig,
}

impl Part {
    /// Both.
    pub const ALL: [Self; 2] = [Self::CloudInit, Self::JobConfig];

    /// The directory's name.
    pub const fn dir_name(self) -> &'static str {
        match self {
            Self::CloudInit => "cloud-init",
            Self::JobConfig => "job-config",
        }
    }

    /// The label of its seed disk.
    pub const fn label(self) -> &'static str {
        match self {
            Self::CloudInit => CIDATA,
            Self::JobConfig => JOBDATA,
        }
    }
}

/// What the built-in patterns stand for.
#[derive(Debug, Clone, Copy)]
pub struct Replacements<'a> {
    /// `<REPO_OWNER>`, `<REPO_NAME>`, `<MACHINE_NAME>`.
    pub machine: &'a MachineTypeName,
    /// `<INSTANCE_ID>`: made from the template's hash and the image, so that cloud-init does its
    /// per-instance work again exactly when one of them changes.
    pub instance_id: &'a str,
    /// What belongs to one run; `None` when a snapshot is made, which must not contain it.
    pub run: Option<RunValues<'a>>,
}

/// What belongs to one run.
#[derive(Debug, Clone, Copy)]
pub struct RunValues<'a> {
    /// `<RUNNER_NAME>`.
    pub runner: &'a RunnerName,
    /// `<JITCONFIG>`.
    pub jit_config: &'a SecretString,
}

/// A pattern in a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PatternUse {
    /// The file, below the template's directory.
    pub file: PathBuf,
    /// The pattern's name, without `<` and `>`.
    pub name: String,
}

impl std::fmt::Display for PatternUse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "<{}> in {}", self.name, self.file.display())
    }
}

/// A setup template, loaded and checked.
#[derive(Clone, PartialEq, Eq)]
pub struct Template {
    dir: PathBuf,
    parameters: BTreeMap<String, String>,
    cloud_init: BTreeMap<String, String>,
    job_config: BTreeMap<String, String>,
}

/// Names only: files and parameters may hold secrets.
impl std::fmt::Debug for Template {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Template")
            .field("dir", &self.dir)
            .field("parameters", &self.parameters.keys())
            .field("cloud_init", &self.cloud_init.keys())
            .field("job_config", &self.job_config.keys())
            .finish()
    }
}

impl Template {
    /// Reads a template's directory. `parameters` are the configuration's own patterns, by name without
    /// `<` and `>`.
    ///
    /// # Errors
    /// [`ImageError::Template`], naming the file or directory at fault: one of the two directories is
    /// missing; a file is no UTF-8 text, too long, of a name that FAT cannot hold; there are too many
    /// ([`MAX_FILES`], [`MAX_FILE_LEN`], [`MAX_PART_LEN`]); a parameter's name cannot be used.
    /// [`ImageError::Io`].
    pub fn load(dir: &Path, parameters: &BTreeMap<String, String>) -> Result<Self, ImageError> {
        if let Some((name, why)) =
            parameters.keys().find_map(|name| Some((name, unusable_name(name)?)))
        {
            let why = format!("its parameter {name:?} {why}");
            return Err(ImageError::Template { path: dir.to_owned(), why });
        }
        Ok(Self {
            dir: dir.to_owned(),
            parameters: parameters.clone(),
            cloud_init: files::load_part(dir, Part::CloudInit)?,
            job_config: files::load_part(dir, Part::JobConfig)?,
        })
    }

    fn part(&self, part: Part) -> &BTreeMap<String, String> {
        match part {
            Part::CloudInit => &self.cloud_init,
            Part::JobConfig => &self.job_config,
        }
    }

    /// The files of one seed disk, with all patterns replaced.
    ///
    /// # Errors
    /// [`ImageError::Template`] when a file needs a value that belongs to a run and there is no run.
    pub fn render(
        &self,
        part: Part,
        replacements: &Replacements<'_>,
    ) -> Result<SeedFiles, ImageError> {
        let mut rendered = SeedFiles::default();
        for (file, text) in self.part(part) {
            let mut missing = None;
            let content = replace(text, |name| match self.value(name, replacements) {
                Value::Text(text) => Some(text),
                Value::Unknown => None,
                Value::OfRun => {
                    missing = Some(name.to_owned());
                    None
                }
            });
            if let Some(name) = missing {
                return Err(ImageError::Template {
                    path: self.dir.join(part.dir_name()).join(file),
                    why: format!(
                        "<{name}> is different in each run, so it cannot be part of a snapshot; move it to job-config"
                    ),
                });
            }
            rendered.0.insert(file.clone(), content);
        }
        Ok(rendered)
    }

    fn value<'a>(&'a self, name: &str, replacements: &Replacements<'a>) -> Value<'a> {
        let repository = replacements.machine.repository();
        let of_run = |text: Option<&'a str>| text.map_or(Value::OfRun, Value::Text);
        match name {
            "REPO_OWNER" => Value::Text(repository.owner()),
            "REPO_NAME" => Value::Text(repository.name()),
            "MACHINE_NAME" => Value::Text(replacements.machine.machine()),
            "INSTANCE_ID" => Value::Text(replacements.instance_id),
            RUNNER_NAME => of_run(replacements.run.map(|run| run.runner.as_str())),
            JITCONFIG => of_run(replacements.run.map(|run| run.jit_config.expose_secret())),
            _ => self.parameters.get(name).map_or(Value::Unknown, |text| Value::Text(text)),
        }
    }

    /// Patterns in upper case that nothing replaces, probably misspelt: worth a warning.
    pub fn unknown_patterns(&self) -> Vec<PatternUse> {
        let known = |name: &str| BUILT_IN.contains(&name) || self.parameters.contains_key(name);
        self.uses(&Part::ALL, |name| !known(name) && is_upper_case(name))
    }

    /// Patterns in `cloud-init/` that are different in each run. A template that has some cannot be used
    /// with snapshots: the guest would keep the first run's values, its credentials among them.
    pub fn run_values_in_cloud_init(&self) -> Vec<PatternUse> {
        self.uses(&[Part::CloudInit], |name| matches!(name, JITCONFIG | RUNNER_NAME))
    }

    fn uses(&self, parts: &[Part], wanted: impl Fn(&str) -> bool) -> Vec<PatternUse> {
        let mut found = Vec::new();
        for part in parts {
            for (file, text) in self.part(*part) {
                replace(text, |name| {
                    if wanted(name) {
                        let file = Path::new(part.dir_name()).join(file);
                        found.push(PatternUse { file, name: name.to_owned() });
                    }
                    None
                });
            }
        }
        found.sort();
        found.dedup();
        found
    }

    /// A hash (SHA-256, hexadecimal) of all files, before replacement, and all parameters.
    pub fn content_hash(&self) -> String {
        let mut hash = Sha256::new();
        for map in [&self.parameters, &self.cloud_init, &self.job_config] {
            hash.update((map.len() as u64).to_le_bytes());
            for text in map.iter().flat_map(|(name, value)| [name, value]) {
                hash.update((text.len() as u64).to_le_bytes());
                hash.update(text);
            }
        }
        hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
    }
}

enum Value<'a> {
    Text(&'a str),
    /// One of a run, and there is none.
    OfRun,
    Unknown,
}

/// Replaces each `<NAME>` that `lookup` knows, in one pass.
fn replace<'a>(text: &str, mut lookup: impl FnMut(&str) -> Option<&'a str>) -> Zeroizing<Vec<u8>> {
    // Room for what is usual. When it grows, what it leaves behind is not wiped: so make it rare.
    let mut out = Zeroizing::new(Vec::with_capacity(text.len() + 64 * 1024));
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('<') {
        out.extend_from_slice(before.as_bytes());
        let value = pattern_name(after).and_then(|name| Some((name, lookup(name)?)));
        rest = match value {
            Some((name, value)) => {
                out.extend_from_slice(value.as_bytes());
                &after[name.len() + 1..]
            }
            None => {
                out.push(b'<');
                after
            }
        };
    }
    out.extend_from_slice(rest.as_bytes());
    out
}

/// The name of the pattern whose `<` was just passed.
fn pattern_name(after: &str) -> Option<&str> {
    let end = after.bytes().take(MAX_NAME_LEN + 1).position(|b| !is_name_byte(b))?;
    (end > 0 && after.as_bytes()[end] == b'>').then(|| &after[..end])
}

fn is_name_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.')
}

fn is_upper_case(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_uppercase())
        && name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
}

fn unusable_name(name: &str) -> Option<&'static str> {
    match name {
        _ if BUILT_IN.contains(&name) => Some("has the name of a built-in one; rename it"),
        _ if name.is_empty() || name.len() > MAX_NAME_LEN => Some("must have 1 to 64 characters"),
        _ if !name.bytes().all(is_name_byte) => {
            Some("may have letters, digits, '_', '-' and '.' only")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
