//! Secrets, and where they must not be: in nothing that is left behind, in nothing that others can see.
//!
//! They are found by what they are: the testbed's own by their text, those that the simulator makes up by
//! how all of their kind begin. GitHub's real ones begin alike.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::Path;

use memchr::memmem;
use rustix::fs::SeekFrom;

use crate::{PERSISTENCE_TOKEN, WEBHOOK_SECRET, processes};

/// How a JIT configuration begins, after the address in those of the simulator: `{".runner":"` in base64.
const JIT_CONFIG: &str = "eyIucnVubmVyIjoi";
/// How an App's own token begins: the header `{"typ":"JWT","alg":"RS256"}` in base64.
const APP_TOKEN: &str = "eyJ0eXAiOiJKV1QiLCJhbGciOiJSUzI1NiJ9";
/// How an installation token begins; at least [`TOKEN_LEN_MIN`] letters and digits follow.
const INSTALLATION_TOKEN: &str = "ghs_";
const TOKEN_LEN_MIN: usize = 30;
/// What is read at a time.
const CHUNK_LEN: usize = 1 << 20;
/// No needle is longer.
const OVERLAP: usize = 128;

/// What is looked for.
#[derive(Debug)]
pub struct Secrets {
    needles: Vec<(&'static str, Vec<u8>)>,
}

/// A secret where it must not be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Leak {
    /// Which kind of secret.
    pub secret: &'static str,
    /// Where.
    pub place: String,
}

impl Secrets {
    /// The secrets of a testbed whose App has this private key.
    pub fn new(app_key_pem: &str) -> Self {
        let mut needles = vec![
            ("the webhook secret", WEBHOOK_SECRET.as_bytes().to_vec()),
            ("the persistence token", PERSISTENCE_TOKEN.as_bytes().to_vec()),
            ("a JIT configuration", JIT_CONFIG.as_bytes().to_vec()),
            ("a token of the App", APP_TOKEN.as_bytes().to_vec()),
            ("an installation token", INSTALLATION_TOKEN.as_bytes().to_vec()),
        ];
        // Any line of the key will do. The first ones have numbers that are not secret.
        let lines = app_key_pem.lines().filter(|line| line.len() >= 60 && !line.starts_with('-'));
        needles
            .extend(lines.skip(8).take(2).map(|line| ("the App's key", line.as_bytes().to_vec())));
        Self { needles }
    }

    /// Searches bytes from a place.
    pub fn in_bytes(&self, place: &str, bytes: &[u8]) -> BTreeSet<Leak> {
        let found = self.needles.iter().filter(|(_, needle)| is_in(needle, bytes));
        found.map(|(secret, _)| Leak { secret, place: place.to_owned() }).collect()
    }

    /// Searches all files below a directory, disks of virtual machines included. Holes are skipped.
    ///
    /// # Errors
    /// Where something cannot be read.
    pub fn in_files(&self, dir: &Path) -> io::Result<BTreeSet<Leak>> {
        let mut leaks = BTreeSet::new();
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            let path = entry.path();
            if kind.is_dir() {
                leaks.extend(self.in_files(&path)?);
            } else if kind.is_file() {
                leaks.extend(self.in_file(&path)?);
            }
            leaks.extend(self.in_bytes("a file's name", entry.file_name().as_encoded_bytes()));
        }
        Ok(leaks)
    }

    /// Searches one file.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn in_file(&self, path: &Path) -> io::Result<BTreeSet<Leak>> {
        let mut file = File::open(path)?;
        let place = path.display().to_string();
        let mut leaks = BTreeSet::new();
        let mut at = 0;
        loop {
            at = match rustix::fs::seek(&file, SeekFrom::Data(at)) {
                Ok(data) => data,
                // Nothing but a hole follows.
                Err(rustix::io::Errno::NXIO) => return Ok(leaks),
                Err(error) => return Err(error.into()),
            };
            file.seek(io::SeekFrom::Start(at))?;
            let mut chunk = Vec::with_capacity(CHUNK_LEN);
            Read::by_ref(&mut file).take(CHUNK_LEN as u64).read_to_end(&mut chunk)?;
            leaks.extend(self.in_bytes(&place, &chunk));
            if chunk.len() < CHUNK_LEN {
                return Ok(leaks);
            }
            at += (CHUNK_LEN - OVERLAP) as u64;
        }
    }

    /// Searches the arguments and the environment of all processes that work in this directory, and of
    /// their children.
    ///
    /// # Errors
    /// Where there is no list of processes. One that ends meanwhile is left out.
    pub fn in_processes(&self, base_dir: &Path) -> io::Result<(usize, BTreeSet<Leak>)> {
        let (mut looked_at, mut leaks) = (0, BTreeSet::new());
        for process in processes::of(base_dir)? {
            looked_at += 1;
            let pid = process.pid;
            let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let arguments_of = format!("the arguments of process {pid}");
            leaks.extend(self.in_bytes(&arguments_of, process.arguments.as_bytes()));
            let environment_of = format!("the environment of process {pid}");
            leaks.extend(self.in_bytes(&environment_of, &environment));
        }
        Ok((looked_at, leaks))
    }
}

fn is_in(needle: &[u8], bytes: &[u8]) -> bool {
    if needle != INSTALLATION_TOKEN.as_bytes() {
        return memmem::find(bytes, needle).is_some();
    }
    memmem::find_iter(bytes, needle).any(|at| {
        let token = bytes.get(at + needle.len()..at + needle.len() + TOKEN_LEN_MIN);
        token.is_some_and(|token| token.iter().all(u8::is_ascii_alphanumeric))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_secret_is_found_wherever_it_is() {
        let line = "k".repeat(64);
        let key = format!(
            "-----BEGIN-----\n{}{line}\n-----END-----\n",
            format!("{}\n", "n".repeat(64)).repeat(8)
        );
        let secrets = Secrets::new(&key);
        let dir = tempfile::tempdir().expect("a directory");
        let token = format!("ghs_{}", "A1".repeat(18));
        let all = [WEBHOOK_SECRET, PERSISTENCE_TOKEN, JIT_CONFIG, APP_TOKEN, &token, &line];
        for (n, secret) in all.iter().enumerate() {
            // Across the border of two chunks, behind a hole.
            let file = File::create(dir.path().join("disk.img")).expect("a file");
            let at = (64 << 20) + CHUNK_LEN as u64 - 10;
            std::os::unix::fs::FileExt::write_all_at(&file, &[1; 4096], 64 << 20).expect("data");
            std::os::unix::fs::FileExt::write_all_at(&file, &vec![1; CHUNK_LEN], at - 5000)
                .expect("data");
            std::os::unix::fs::FileExt::write_all_at(&file, secret.as_bytes(), at).expect("data");
            let leaks = secrets.in_files(dir.path()).expect("it can be read");
            assert_eq!(leaks.len(), 1, "secret {n}: {leaks:?}");
        }
        assert_eq!(secrets.in_bytes("here", b"ghs_short and eyIucnVu").len(), 0);
    }
}
