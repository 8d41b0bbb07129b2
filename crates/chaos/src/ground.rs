//! The file systems that it is played on.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde::Serialize;

use crate::victims::end_all;

/// The size of the XFS, in bytes; sparse.
const XFS_LEN: u64 = 32 << 30;

/// How disks are forked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// As qcow2 overlays: what the build directory's file system offers, where that has no reflinks.
    Overlay,
    /// As reflink copies, on an XFS in a file.
    Reflink,
}

/// A directory whose `base` is on the right file system, until it is dropped: then nothing is left that
/// runs or is mounted there.
#[derive(Debug)]
pub struct Ground {
    /// The directory, empty otherwise.
    pub dir: PathBuf,
    /// How disks are forked there.
    pub driver: Driver,
    mounted: bool,
}

impl Ground {
    /// Empties the driver's directory below `dir` and mounts what has to be.
    ///
    /// # Errors
    /// Where there is no such file system: it needs root and `mkfs.xfs`.
    pub fn prepare(dir: &Path, driver: Driver) -> Result<Self> {
        let dir = dir.join(match driver {
            Driver::Overlay => "overlay",
            Driver::Reflink => "reflink",
        });
        let mut ground = Self { dir, driver, mounted: false };
        // What an earlier one has left that was killed itself.
        end_all(&ground.dir)?;
        if is_mounted(&ground.base()) {
            unmount(&ground.base());
        }
        if ground.dir.exists() {
            std::fs::remove_dir_all(&ground.dir)
                .with_context(|| format!("could not empty {}", ground.dir.display()))?;
        }
        std::fs::create_dir_all(ground.base())
            .with_context(|| format!("could not create {}", ground.base().display()))?;
        if driver == Driver::Reflink {
            ground.mount()?;
        }
        Ok(ground)
    }

    /// The daemon's base directory.
    pub fn base(&self) -> PathBuf {
        self.dir.join("base")
    }

    fn mount(&mut self) -> Result<()> {
        ensure!(rustix::process::geteuid().is_root(), "mounting an XFS needs root");
        let file = self.dir.join("xfs.img");
        File::create(&file)
            .and_then(|made| made.set_len(XFS_LEN))
            .with_context(|| format!("could not create {}", file.display()))?;
        run(Command::new("mkfs.xfs").arg("-q").arg(&file))?;
        run(Command::new("mount").args(["-t", "xfs", "-o", "loop"]).arg(&file).arg(self.base()))?;
        self.mounted = true;
        Ok(())
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        if let Err(error) = end_all(&self.dir) {
            eprintln!("{error:#}");
        }
        if self.mounted {
            unmount(&self.base());
        }
    }
}

fn is_mounted(path: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let path = path.canonicalize().unwrap_or_default();
    mounts.lines().any(|line| line.split(' ').nth(1).map(Path::new) == Some(&path))
}

fn unmount(path: &Path) {
    // A process that has just ended may still hold it: detached, it goes when that does.
    let result = run(Command::new("umount").arg(path));
    if let Err(error) = result.or_else(|_| run(Command::new("umount").arg("-l").arg(path))) {
        eprintln!("{} is still mounted: {error:#}", path.display());
    }
}

/// Runs a program to its end.
///
/// # Errors
/// Where it does not start or fails, with its words.
pub fn run(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("could not start {name}"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name} failed ({}): {said}{errors}", output.status);
    Ok(said)
}
