//! Where the programs that use a testbed find what they were built from and with.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// Where Forrest's source is: `make` runs such programs from there.
pub fn repository_root() -> PathBuf {
    std::env::current_dir()
        .ok()
        .filter(|dir| dir.join("contrib/templates/generic").is_dir())
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."))
}

/// The `forrest` that was built together with this program.
///
/// # Errors
/// Where it was not built.
pub fn forrest_program() -> Result<PathBuf> {
    let own = std::env::current_exe().context("where is this program?")?;
    let forrest = own.with_file_name("forrest");
    ensure!(forrest.is_file(), "{} is missing: build it, too", forrest.display());
    Ok(forrest)
}
