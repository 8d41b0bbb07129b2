//! Whether QEMU's files become longer than a guest can make them.
//!
//! The kernel bounds what QEMU writes by one length for all its files ([`super::limits`]): the job-config disk
//! could become as long as the disk, and where a guest may write to shared directories, there is no bound at
//! all. A guest cannot write beyond its disks' ends, so whoever does has taken QEMU over, and the VM ends.
//!
//! Lengths, not the room that is taken: file systems set more aside for a file that grows.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::mpsc;

use super::limits::disk_len_max;
use super::machine::Input;
use super::supervise::Note;
use crate::spec::RunSpec;

/// How often the files are looked at. A disk that is fast takes some gigabytes in that time.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Files, and how long each may be, in bytes.
#[derive(Debug)]
pub(super) struct Overgrowth(Vec<(PathBuf, u64)>);

impl Overgrowth {
    /// The files of a VM whose QEMU does not run yet.
    pub(super) fn of(spec: &RunSpec, dir: &Path) -> Self {
        let disk = disk_len_max(spec).map(|most| (dir.join(&spec.disk.path), most));
        let job_config = dir.join(&spec.job_config);
        // Nothing of it is known where it cannot be looked at; QEMU cannot have it either, then.
        let fixed = len(&job_config).map(|len| (job_config, len));
        Self(disk.into_iter().chain(fixed).collect())
    }

    /// Looks until one has become too long, and has the VM ended then.
    pub(super) async fn watch(self, notes: mpsc::Sender<Note>) {
        let found = loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if let Some(found) = self.found() {
                break found;
            }
        };
        let _ = notes.send(Note::Input(Input::NotContained(found))).await;
    }

    fn found(&self) -> Option<String> {
        let mut longer = self.0.iter().filter_map(|(path, most)| {
            let len = len(path).filter(|len| len > most)?;
            Some(format!(
                "QEMU made {} {len} bytes long, which no guest can, for {most} is the most: look at what \
                 that job ran",
                path.display()
            ))
        });
        longer.next()
    }
}

fn len(path: &Path) -> Option<u64> {
    std::fs::metadata(path).ok().map(|found| found.len())
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use forrest_core::model::Bytes;

    use super::*;
    use crate::spec::tests::example;

    #[test]
    fn a_file_that_is_longer_than_a_guest_can_make_it_is_found() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut spec = example();
        spec.disk.virtual_size = Some(Bytes::gib(1));
        let file = |path: &Path| File::create(dir.path().join(path)).expect("a file");
        let (disk, job_config) = (file(&spec.disk.path), file(&spec.job_config));
        job_config.set_len(4096).expect("its length");
        let files = Overgrowth::of(&spec, dir.path());
        assert_eq!(files.found(), None);
        // An overlay is longer than its disk.
        disk.set_len((1 << 30) + (64 << 20)).expect("its length");
        assert_eq!(files.found(), None);
        disk.set_len((1 << 30) + (64 << 20) + 1).expect("its length");
        assert!(files.found().expect("too long").contains("disk.img"));
        disk.set_len(0).expect("its length");
        job_config.set_len(4097).expect("its length");
        assert!(files.found().expect("too long").contains("4097 bytes"));
    }
}
