//! An XFS in a file, for the store's reflink driver on hosts whose own file system has none.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// A mounted file system; dropping it unmounts it.
#[derive(Debug)]
pub struct Xfs {
    mounted: PathBuf,
}

impl Xfs {
    /// Makes `xfs.img` of this (sparse) size in a directory and mounts it there as `xfs`.
    ///
    /// # Errors
    /// Without root, loop devices or `mkfs.xfs`, with the words of the program that failed.
    pub fn mount(dir: &Path, size_gib: u64) -> Result<Self> {
        let (image, mounted) = (dir.join("xfs.img"), dir.join("xfs"));
        std::fs::create_dir_all(&mounted)
            .with_context(|| format!("could not create {}", mounted.display()))?;
        File::create(&image)
            .and_then(|file| file.set_len(size_gib << 30))
            .with_context(|| format!("could not create {}", image.display()))?;
        must(Command::new("mkfs.xfs").arg("-q").arg(&image))?;
        must(Command::new("mount").args(["-t", "xfs", "-o", "loop"]).arg(&image).arg(&mounted))?;
        Ok(Self { mounted })
    }

    /// Unmounts what a process that was killed left mounted in a directory.
    pub fn unmount_left(dir: &Path) {
        let mounted = dir.join("xfs");
        if mounted.is_dir() {
            // Where nothing is mounted there, that is what is wanted.
            let _ = must(Command::new("umount").arg("--lazy").arg(&mounted));
        }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mounted
    }
}

impl Drop for Xfs {
    fn drop(&mut self) {
        let unmounted = must(Command::new("umount").arg(&self.mounted))
            // A process that just ended may hold it for a moment longer.
            .or_else(|_| must(Command::new("umount").arg("--lazy").arg(&self.mounted)));
        if let Err(error) = unmounted {
            eprintln!("{} is still mounted: {error:#}", self.mounted.display());
        }
    }
}

fn must(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("could not run {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
