//! How long a fork takes, by size of the image and by file system.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use forrest_core::model::{Bytes, MachineTypeName, RunnerName};
use forrest_images::{Driver, Store, StoreOptions};

use crate::Place;
use crate::figures::{Figures, percentile};

/// Forks per figure.
const FORKS: u8 = 20;
/// Data in each image, in pieces spread over it.
const PIECES: u64 = 64;
const PIECE_LEN: usize = 1 << 20;

/// Forks images of 1, 10 and 50 GB, by reflink on XFS and as qcow2 overlay where Forrest is built.
///
/// # Errors
/// Where images cannot be made; without root, reflinks are left out and the table lacks them.
pub fn measure(place: &Place, figures: &mut Figures) -> Result<()> {
    println!("Forks ...");
    let scratch = place.scratch("forks")?;
    match Xfs::mount(&scratch) {
        Ok(xfs) => {
            for gib in [1, 10, 50] {
                let ms = forks(&xfs.mounted, Driver::Reflink, gib)?;
                figures.add(&format!("fork_reflink_{gib}g_ms"), ms);
            }
        }
        Err(error) => eprintln!("NOT MEASURED: forks by reflink need an XFS: {error:#}"),
    }
    for gib in [1, 10, 50] {
        let ms = forks(&scratch.join("overlay"), Driver::Qcow2Overlay, gib)?;
        figures.add(&format!("fork_qcow2_{gib}g_ms"), ms);
    }
    Ok(())
}

/// The median of forking an image of this size.
fn forks(dir: &Path, driver: Driver, gib: u64) -> Result<f64> {
    let dir = dir.join(format!("{gib}g"));
    std::fs::create_dir_all(&dir)?;
    let image = dir.join("src.raw");
    make_image(&image, gib)?;
    let options = StoreOptions { driver: Some(driver), ..StoreOptions::default() };
    let store = Store::open_with(&dir.join("base"), options)?;
    let start = store.src_image(&image)?;
    store.prepare_src(&image, &mut |_| {})?;
    let machine: MachineTypeName = "bench/forks/machine".parse()?;
    let mut samples = Vec::new();
    for fork in 0..FORKS {
        let runner = RunnerName::from_random(&machine, [fork; 16]);
        let run = store.create_run_dir(&runner, &machine)?;
        let begun = Instant::now();
        store.fork(&start, &run, Bytes::gib(gib))?;
        samples.push(begun.elapsed().as_secs_f64() * 1e3);
        store.remove_run_dir(&run)?;
    }
    std::fs::remove_file(image)?;
    Ok(percentile(&mut samples, 0.5))
}

/// A sparse image with data all over it.
fn make_image(path: &Path, gib: u64) -> Result<()> {
    let mut file = File::create(path)?;
    file.set_len(gib << 30)?;
    let piece: Vec<u8> = (0..PIECE_LEN).map(|i| (i % 251) as u8).collect();
    for index in 0..PIECES {
        file.seek(SeekFrom::Start(index * ((gib << 30) / PIECES)))?;
        file.write_all(&piece)?;
    }
    file.sync_all()?;
    Ok(())
}

/// An XFS in a file, mounted for as long as it is kept.
struct Xfs {
    mounted: PathBuf,
}

impl Xfs {
    fn mount(scratch: &Path) -> Result<Self> {
        let (image, mounted) = (scratch.join("xfs.img"), scratch.join("xfs"));
        File::create(&image)?.set_len(8 << 30)?;
        std::fs::create_dir_all(&mounted)?;
        must(Command::new("mkfs.xfs").arg("-q").arg(&image))?;
        must(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&mounted))?;
        Ok(Self { mounted })
    }
}

impl Drop for Xfs {
    fn drop(&mut self) {
        if let Err(error) = must(Command::new("umount").arg(&self.mounted)) {
            eprintln!("{} is still mounted: {error:#}", self.mounted.display());
        }
    }
}

fn must(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("could not run {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
