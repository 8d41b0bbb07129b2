//! The job configuration's files as words, for guests that ask for them instead of mounting their disk.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// The most that is handed to a guest, in bytes of its line. A JIT configuration has some 6 KiB.
pub const LEN_MAX: usize = 32 << 10;

/// What is on the job-config disk, where all of it can be said in one line; otherwise nothing.
///
/// The JIT configuration is among it: it is shown to nobody but the guest.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobFiles(BTreeMap<String, String>);

impl JobFiles {
    /// The files as words: empty where one of them is none, or they are too long together.
    pub fn new<'a>(files: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Self {
        let word =
            |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        let mut words = BTreeMap::new();
        for (name, content) in files {
            let content = std::str::from_utf8(content).unwrap_or_default().trim();
            if !word(name) || name.contains('=') || !word(content) {
                return Self::default();
            }
            words.insert(name.to_owned(), content.to_owned());
        }
        let files = Self(words);
        if files.line().len() > LEN_MAX { Self::default() } else { files }
    }

    /// The line that the guest gets, without its end: `files [NAME=TEXT]...`.
    pub(crate) fn line(&self) -> String {
        let words = self.0.iter().map(|(name, text)| format!(" {name}={text}"));
        std::iter::once("files".to_owned()).chain(words).collect()
    }
}

impl fmt::Debug for JobFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_words_are_handed_over_and_nobody_else_sees_them() {
        let files = JobFiles::new([("jitconfig", &b"c2VjcmV0=\n"[..]), ("hostname", b"forrest-x")]);
        assert_eq!(files.line(), "files hostname=forrest-x jitconfig=c2VjcmV0=");
        assert!(!format!("{files:?}").contains("c2Vj"), "{files:?}");
        let long = vec![b'x'; LEN_MAX];
        for bad in [&b"#!/bin/sh\nexit"[..], b"two words", b"", b"\xff", &long] {
            let files = JobFiles::new([("jitconfig", &b"x"[..]), ("job.sh", bad)]);
            assert_eq!(files, JobFiles::default());
        }
        assert_eq!(JobFiles::new([("a=b", &b"x"[..])]).line(), "files");
    }
}
