//! The stand-in runner packed the way GitHub packs its own: a tar.gz that is the same, byte for byte,
//! whenever and wherever it is made.

use std::sync::OnceLock;

use bytes::Bytes;
use flate2::{Compression, GzBuilder};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// The version that the stand-in gives itself: of the release whose behaviour it imitates.
pub const RUNNER_VERSION: &str = "2.330.0";

/// The architectures it is offered for: it is a shell script.
pub(crate) const ARCHITECTURES: [&str; 3] = ["x64", "arm64", "arm"];

const RUN_SH: &str = include_str!("run.sh");

const README: &str = "This is a stand-in for GitHub's Actions runner. It works with the simulator \
                      github-sim and with nothing else. GitHub's own runner is at \
                      https://github.com/actions/runner\n";

/// The packed runner.
#[derive(Debug, Clone)]
pub struct Tarball {
    /// The tar.gz.
    pub bytes: Bytes,
    /// Its SHA-256 in hexadecimal digits.
    pub sha256: String,
}

/// The file's name for an architecture, `actions-runner-linux-x64-2.330.0.tar.gz`.
pub fn tarball_name(architecture: &str) -> String {
    format!("actions-runner-linux-{architecture}-{RUNNER_VERSION}.tar.gz")
}

/// The stand-in as a file of its own.
pub(crate) fn run_sh() -> String {
    RUN_SH.replace("@VERSION@", RUNNER_VERSION)
}

/// The packed stand-in runner: `run.sh`, a note, and the empty directories and files that it works with.
pub fn runner_tarball() -> &'static Tarball {
    static TARBALL: OnceLock<Tarball> = OnceLock::new();
    TARBALL.get_or_init(|| {
        // Writing to memory does not fail.
        let bytes = pack().unwrap_or_default();
        let sha256 = hex::encode(Sha256::digest(&bytes));
        Tarball { bytes: bytes.into(), sha256 }
    })
}

fn pack() -> std::io::Result<Vec<u8>> {
    let gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
    let mut tar = Builder::new(gzip);
    let run_sh = run_sh();
    let entries: [(&str, EntryType, u32, &[u8]); 9] = [
        ("run.sh", EntryType::Regular, 0o755, run_sh.as_bytes()),
        ("README.txt", EntryType::Regular, 0o644, README.as_bytes()),
        ("_work/", EntryType::Directory, 0o755, &[]),
        ("_work/_temp/", EntryType::Directory, 0o755, &[]),
        ("_work/_temp/env", EntryType::Regular, 0o644, &[]),
        ("_work/_temp/path", EntryType::Regular, 0o644, &[]),
        ("_work/_temp/output", EntryType::Regular, 0o644, &[]),
        ("_work/_temp/summary", EntryType::Regular, 0o644, &[]),
        ("_work/workspace/", EntryType::Directory, 0o755, &[]),
    ];
    for (path, kind, mode, content) in entries {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, path, content)?;
    }
    tar.into_inner()?.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_is_deterministic() {
        let bytes = pack().expect("packed");
        assert_eq!(bytes, pack().expect("packed again"));
        assert_eq!(runner_tarball().bytes, bytes);
        assert_eq!(runner_tarball().sha256.len(), 64);
        assert!(!run_sh().contains("@VERSION@"));
    }
}
