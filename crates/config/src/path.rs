//! Paths of the configuration, and what a relative one is relative to.

use std::path::{Component, Path, PathBuf};

use crate::diagnostic::Location;

/// What a path begins with that names one of the service's credentials.
const CREDENTIALS: &str = "$CREDENTIALS_DIRECTORY/";
/// Where systemd puts the credentials of the unit in `contrib/systemd`: for `forrest check`, which is
/// not run by it.
const OF_THE_UNIT: &str = "/run/credentials/forrest.service";

/// A path as the configuration names it.
///
/// A relative one is taken from the configuration file's own directory. Where nothing is there but
/// the working directory of the time of loading has it, that is used. One that begins with
/// `$CREDENTIALS_DIRECTORY/` is a credential that systemd hands to the service (systemd.exec(5)).
#[derive(Debug, Clone)]
pub struct ConfigPath {
    written: PathBuf,
    beside_config: PathBuf,
    in_working_dir: Option<PathBuf>,
    location: Option<Location>,
}

/// Where a [`ConfigPath`] was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found<'a> {
    /// At the place that it names.
    Here(&'a Path),
    /// Only in the working directory, which deserves a warning.
    InWorkingDir(&'a Path),
    /// Nowhere; this is where it should be.
    Nowhere(&'a Path),
}

impl ConfigPath {
    pub(crate) fn new(written: &str, bases: &Bases, location: Option<Location>) -> Self {
        let credential = written.strip_prefix(CREDENTIALS).map(|name| bases.credentials.join(name));
        let written = PathBuf::from(written);
        // An absolute path joined to another one replaces it.
        let named = credential.as_ref().unwrap_or(&written);
        let beside_config = plain(&bases.config_dir.join(named));
        let elsewhere = plain(&bases.working_dir.join(named));
        let in_working_dir = (elsewhere != beside_config).then_some(elsewhere);
        Self { written, beside_config, in_working_dir, location }
    }

    /// The path as it is written in the file.
    pub fn written(&self) -> &Path {
        &self.written
    }

    /// The absolute path, taken from the configuration file's directory. Looks at nothing.
    pub fn beside_config(&self) -> &Path {
        &self.beside_config
    }

    /// Looks where the path is. Asks the file system.
    pub fn find(&self) -> Found<'_> {
        match &self.in_working_dir {
            _ if self.beside_config.exists() => Found::Here(&self.beside_config),
            Some(elsewhere) if elsewhere.exists() => Found::InWorkingDir(elsewhere),
            _ => Found::Nowhere(&self.beside_config),
        }
    }

    /// The absolute path to use. Asks the file system; where nothing is there, this is the place
    /// where it should be.
    pub fn resolve(&self) -> &Path {
        match self.find() {
            Found::Here(path) | Found::InWorkingDir(path) | Found::Nowhere(path) => path,
        }
    }

    /// Where in the configuration the path is.
    pub fn location(&self) -> Option<&Location> {
        self.location.as_ref()
    }
}

/// Two paths are the same when they lead to the same place, wherever they are written.
impl PartialEq for ConfigPath {
    fn eq(&self, other: &Self) -> bool {
        (&self.beside_config, &self.in_working_dir) == (&other.beside_config, &other.in_working_dir)
    }
}

impl Eq for ConfigPath {}

/// What relative paths are taken from; both absolute.
#[derive(Debug, Clone)]
pub(crate) struct Bases {
    pub config_dir: PathBuf,
    pub working_dir: PathBuf,
    /// Where systemd puts the service's credentials.
    pub credentials: PathBuf,
}

impl Bases {
    /// Those of a configuration file.
    pub(crate) fn of(config: &Path, working_dir: PathBuf) -> Self {
        let parent = config.parent().unwrap_or(Path::new(""));
        let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").filter(|dir| !dir.is_empty());
        let credentials = credentials.map_or_else(|| OF_THE_UNIT.into(), PathBuf::from);
        Self { config_dir: plain(&working_dir.join(parent)), working_dir, credentials }
    }
}

/// The path without `.`. `..` stays: what it means depends on symbolic links.
fn plain(path: &Path) -> PathBuf {
    path.components().filter(|c| !matches!(c, Component::CurDir)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_paths_belong_to_the_configuration_and_then_to_the_working_directory() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (config_dir, working_dir) = (dir.path().join("etc"), dir.path().join("work"));
        for made in [&config_dir, &working_dir] {
            std::fs::create_dir(made).expect("a directory");
        }
        let bases = Bases::of(&config_dir.join("forrest.yaml"), working_dir.clone());
        let path = ConfigPath::new("./key.pem", &bases, None);
        assert_eq!(path.find(), Found::Nowhere(&config_dir.join("key.pem")));
        std::fs::write(working_dir.join("key.pem"), "x").expect("a file");
        assert_eq!(path.find(), Found::InWorkingDir(&working_dir.join("key.pem")));
        std::fs::write(config_dir.join("key.pem"), "x").expect("a file");
        assert_eq!(path.find(), Found::Here(&config_dir.join("key.pem")));
        assert_eq!(path.resolve(), config_dir.join("key.pem"));
    }

    #[test]
    fn credentials_are_where_systemd_puts_them() {
        let bases = Bases {
            credentials: "/run/credentials/x.service".into(),
            ..Bases::of(Path::new("/etc/forrest/forrest.yaml"), "/work".into())
        };
        let path = |text: &str| ConfigPath::new(text, &bases, None);
        let key = path("$CREDENTIALS_DIRECTORY/app-key");
        assert_eq!(key.beside_config(), Path::new("/run/credentials/x.service/app-key"));
        assert_eq!(key.in_working_dir, None);
        assert_eq!(key.written(), Path::new("$CREDENTIALS_DIRECTORY/app-key"));
        // No other variable, and nowhere else.
        for text in ["$HOME/key", "x/$CREDENTIALS_DIRECTORY/key", "$CREDENTIALS_DIRECTORYx/key"] {
            assert_eq!(path(text).beside_config(), Path::new("/etc/forrest").join(text));
        }
    }

    #[test]
    fn absolute_paths_stay_as_they_are() {
        let bases = Bases::of(Path::new("forrest.yaml"), "/work".into());
        assert_eq!(bases.config_dir, Path::new("/work"));
        let path = ConfigPath::new("/srv/x.img", &bases, None);
        assert_eq!(path.beside_config(), Path::new("/srv/x.img"));
        assert_eq!(path.in_working_dir, None);
    }
}
