//! How long a fork takes, by size of the image and by file system.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use forrest_core::model::{Bytes, MachineTypeName, RunnerName};
use forrest_images::{Driver, Store, StoreOptions};
use forrest_testbed::Xfs;

use crate::Place;
use crate::figures::{Figures, percentile};

/// Forks per figure.
const FORKS: u8 = 20;
/// Data in each image, in pieces spread over it.
const PIECES: u64 = 64;
const PIECE_LEN: usize = 1 << 20;
/// Size of the file system for reflinks: it holds one image after the other.
const XFS_GIB: u64 = 8;

/// Forks images of 1, 10 and 50 GB, by reflink on XFS and as qcow2 overlay where Forrest is built.
///
/// # Errors
/// Where images cannot be made; without root, reflinks are left out and the table lacks them.
pub fn measure(place: &Place, figures: &mut Figures) -> Result<()> {
    println!("Forks ...");
    let scratch = place.scratch("forks")?;
    match Xfs::mount(&scratch, XFS_GIB) {
        Ok(xfs) => {
            for gib in [1, 10, 50] {
                let ms = forks(xfs.path(), Driver::Reflink, gib)?;
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
