//! A look into every machine image that is left: is its file system clean, and does it hold what the jobs
//! before it left behind?

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use forrest_images::{GenerationInfo, Store};

use crate::ground::run;
use crate::jobs::LEDGER;

/// What was found.
#[derive(Debug, Default)]
pub struct Found {
    /// Images that were looked into.
    pub checked: u64,
    /// Those that are damaged, and how.
    pub broken: Vec<String>,
}

/// Looks into all images of a store that nobody else uses. `scratch` is for copies.
///
/// # Errors
/// Where the store cannot be opened or listed.
pub fn check(base: &Path, scratch: &Path) -> Result<Found> {
    let store = Store::open(base)?;
    let mut found = Found::default();
    for machine in store.machines()? {
        let history = store.history(&machine)?;
        ensure!(history.iter().any(|one| one.current), "{machine} has no current generation");
        for one in history {
            found.checked += 1;
            if let Err(error) = look_into(&one, scratch) {
                found.broken.push(format!("{machine}, generation {}: {error:#}", one.generation));
            }
        }
    }
    Ok(found)
}

fn look_into(image: &GenerationInfo, scratch: &Path) -> Result<()> {
    let lineage = image.lineage.as_ref().context("it has no lineage")?;
    if let Some(mark) = &image.broken {
        anyhow::bail!("it was marked broken: {}", mark.why);
    }
    let flat = scratch.join("flat.raw");
    let format = lineage.format.qemu_name();
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-f", format, "-O", "raw"]).args([&image.path, &flat]);
    let checked = run(&mut convert).and_then(|_| {
        // Without a change, so that a journal that would have to be replayed is an error, too: the guest
        // was shut down.
        run(Command::new("e2fsck").arg("-fn").arg(&flat))?;
        let read = format!("cat {LEDGER}");
        run(Command::new("debugfs").args(["-R", &read]).arg(&flat))
    });
    std::fs::remove_file(&flat).context("could not remove the copy")?;
    let ledger = checked?;
    let names: Vec<&str> = ledger.lines().collect();
    let own = lineage.origin.job_name.as_deref();
    // GitHub may not have said whose disk it is.
    ensure!(
        own.is_none() || names.last().copied() == own,
        "its ledger ends with {:?}, and it was left by {own:?}",
        names.last()
    );
    let mut sorted = names.clone();
    sorted.sort_unstable();
    sorted.dedup();
    ensure!(sorted.len() == names.len(), "a job is twice in its ledger: {names:?}");
    Ok(())
}
