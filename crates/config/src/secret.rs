//! Texts that must not be shown.

use std::fmt;
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};

/// A secret: never shown by `Debug`, wiped from memory when it is dropped.
#[derive(Clone)]
pub struct Secret {
    text: SecretString,
    file: Option<PathBuf>,
}

impl Secret {
    /// Wraps a text.
    pub fn new(text: String) -> Self {
        Self { text: SecretString::from(text), file: None }
    }

    /// The text that was read from this file.
    pub(crate) fn read_from(file: &Path, text: String) -> Self {
        Self { file: Some(file.to_owned()), ..Self::new(text) }
    }

    /// The file that it was read from; `None` where it is in the configuration itself.
    pub(crate) fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// The text itself, for the one place that needs it.
    pub fn expose(&self) -> &str {
        self.text.expose_secret()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(hidden)")
    }
}

/// For comparing two configurations of one operator; not for checking what a stranger sent. Where the secret
/// was read from does not matter.
impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.expose() == other.expose()
    }
}

impl Eq for Secret {}

#[cfg(test)]
mod tests {
    use super::Secret;

    #[test]
    fn debug_does_not_show_it() {
        let secret = Secret::new("hunter2".into());
        assert!(!format!("{secret:?}").contains("hunter2"));
        assert_eq!(secret.expose(), "hunter2");
        assert_eq!(secret, Secret::new("hunter2".into()));
        assert_ne!(secret, Secret::new("hunter3".into()));
    }
}
