//! From a file to a checked configuration.

use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::bases;
use crate::config::Config;
use crate::decode::Decoder;
use crate::diagnostic::{Code, Diagnostic, Severity, render_all};
use crate::fields::Kind;
use crate::path::Bases;
use crate::problem::{self, Problem};
use crate::read;
use crate::repository::{self, Context};
use crate::source::{Source, Span};
use crate::tables::ROOT;
use crate::tree::Tree;
use crate::{github, host};

/// The largest configuration file, in bytes.
pub const FILE_BYTES_MAX: usize = 1 << 20;

/// A configuration, and what is dubious about it.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Findings that do not keep it from being used.
    pub warnings: Vec<Diagnostic>,
}

/// Why a file is no usable configuration: every error that was found, and the warnings too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(transparent)]
pub struct ConfigErrors {
    /// The findings in the order of the file; at least one is an error.
    pub diagnostics: Vec<Diagnostic>,
}

impl ConfigErrors {
    fn one(diagnostic: Diagnostic) -> Self {
        Self { diagnostics: vec![diagnostic] }
    }

    /// How many of the findings are errors.
    pub fn errors(&self) -> usize {
        self.diagnostics.iter().filter(|d| d.is_error()).count()
    }

    /// Every finding as text.
    pub fn render(&self, colour: bool) -> String {
        render_all(&self.diagnostics, colour)
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.render(false).trim_end())
    }
}

impl Config {
    /// Reads and checks a configuration file.
    ///
    /// Looks at nothing of the host but this file and those that `webhook_secret_file` and
    /// `persistence_token_file` name; [`Config::check_files`] looks at the others.
    ///
    /// # Errors
    /// Everything that is wrong with the file, each finding with its place.
    pub fn load(path: &Path) -> Result<Loaded, ConfigErrors> {
        let (bytes, exposed) =
            read_file(path).map_err(|diagnostic| ConfigErrors::one(*diagnostic))?;
        let working_dir = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
        load(&bytes, path, working_dir, exposed)
    }

    /// Checks the text of a configuration as if it stood in a file at `path`.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(text: &[u8], path: &Path) -> Result<Loaded, ConfigErrors> {
        let working_dir = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
        load(text, path, working_dir, false)
    }
}

/// The file's bytes, and whether everyone can read them.
fn read_file(path: &Path) -> Result<(Vec<u8>, bool), Box<Diagnostic>> {
    let failed = |reason: String, help: &str| {
        let message = format!("failed to read the configuration {}: {reason}", path.display());
        Box::new(Diagnostic::new(Severity::Error, Code::File, message).help(help))
    };
    let file = std::fs::File::open(path).map_err(|error| {
        let help = match error.kind() {
            std::io::ErrorKind::NotFound => "give the path of a YAML file",
            std::io::ErrorKind::PermissionDenied => "let Forrest's user read it",
            _ => "check the path",
        };
        failed(error.to_string(), help)
    })?;
    let metadata = file.metadata().map_err(|error| failed(error.to_string(), "check the disk"))?;
    if metadata.is_dir() {
        return Err(failed("it is a directory".to_owned(), "give the path of a YAML file"));
    }
    let most = u64::try_from(FILE_BYTES_MAX).unwrap_or(u64::MAX);
    let mut bytes = Vec::new();
    file.take(most + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| failed(error.to_string(), "check the disk"))?;
    Ok((bytes, read::is_readable_by_everyone(&metadata)))
}

fn load(
    bytes: &[u8],
    path: &Path,
    working_dir: PathBuf,
    exposed: bool,
) -> Result<Loaded, ConfigErrors> {
    if bytes.len() > FILE_BYTES_MAX {
        let message = format!("{} is larger than {FILE_BYTES_MAX} bytes", path.display());
        let help = "use anchors and merge keys for what machine types have in common";
        return Err(ConfigErrors::one(
            Diagnostic::new(Severity::Error, Code::Limit, message).help(help),
        ));
    }
    let mut source = match std::str::from_utf8(bytes) {
        Ok(text) => Source::new(path, text.to_owned()),
        Err(error) => return Err(ConfigErrors::one(not_utf8(bytes, path, error.valid_up_to()))),
    };
    let (tree, problems) = Tree::parse(source.text());
    let Some(tree) = tree else {
        source.set_unsure();
        let problems = if problems.is_empty() { vec![empty_file()] } else { problems };
        return Err(ConfigErrors { diagnostics: problem::report(problems, &source) });
    };
    source.set_secrets(tree.secret_spans());
    let mut decoder = Decoder::new(&tree, &source, problems);
    let config = decode(&mut decoder, &Bases::of(path, working_dir));
    let has_inline_secrets = !tree.secret_spans().is_empty();
    let mut problems = decoder.into_problems();
    if exposed && has_inline_secrets {
        problems.push(world_readable(path));
    }
    let diagnostics = problem::report(problems, &source);
    match config {
        Some(config) if !diagnostics.iter().any(Diagnostic::is_error) => {
            Ok(Loaded { config, warnings: diagnostics })
        }
        _ if diagnostics.iter().any(Diagnostic::is_error) => Err(ConfigErrors { diagnostics }),
        // Every part that cannot be read says why; this is for the day on which one does not.
        _ => Err(ConfigErrors::one(Diagnostic::new(
            Severity::Error,
            Code::Syntax,
            format!("{} cannot be understood", path.display()),
        ))),
    }
}

fn not_utf8(bytes: &[u8], path: &Path, valid: usize) -> Diagnostic {
    let sound = String::from_utf8_lossy(bytes.get(..valid).unwrap_or_default()).into_owned();
    let source = Source::new(path, sound);
    let location = source.locate(Span { start: valid, end: valid + 1 });
    Diagnostic::new(Severity::Error, Code::Syntax, "this byte is not UTF-8 text")
        .at(Some(location))
        .help("save the file as UTF-8")
}

fn empty_file() -> Problem {
    let message = "the file has no settings";
    Problem::error(Code::MissingField, Span::default(), message)
        .help("write the sections host, github and repositories")
}

fn world_readable(path: &Path) -> Problem {
    let message =
        format!("{} holds secrets and can be read by everyone on this host", path.display());
    Problem::warning(Code::Permissions, Span::default(), message)
        .without_place()
        .help(format!("chmod o-r {}, or keep the secrets in files of their own", path.display()))
}

static ROOT_KIND: Kind = Kind::Object(&ROOT);

fn decode(d: &mut Decoder<'_>, bases: &Bases) -> Option<Config> {
    let root = d.root(&ROOT_KIND);
    let r = d.object(&root, &ROOT)?;
    let (host, limits) = match r.slot("host") {
        Some(slot) => host::decode(d, slot, bases),
        None => (None, host::Limits { filter: true, ..host::Limits::default() }),
    };
    let github = r.required("github", |slot| github::decode(d, slot, bases));
    let slot = r.slot("repositories")?;
    let context = Context { bases, limits: &limits };
    let found = repository::decode(d, slot, &context);
    bases::check(d, &found.outlines);
    if found.machines == 0 {
        let message = "there is no machine type: no job can run here";
        let help = "add owner, repository and machines; docs/config.md shows how";
        d.report(slot, Problem::warning(Code::Ignored, slot.key, message).help(help));
    }
    Some(Config { host: host?, github: github?, repositories: found.sound })
}
