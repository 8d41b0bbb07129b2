//! `forrest check`: is the configuration sound?

use std::path::Path;

use forrest_config::{Config, Diagnostic, render_all, schema};
use serde::Serialize;

use super::{print, print_json};
use crate::failure::{Failure, Status};
use crate::terminal::neutral;
use crate::terminal::paint::Paint;
use crate::words::counted;

/// What a program gets.
#[derive(Serialize)]
struct Report<'a> {
    /// Whether the configuration can be used.
    sound: bool,
    findings: &'a [Diagnostic],
}

/// Checks the file, or prints the schema.
pub fn run(file: &Path, files: bool, json: bool, want_schema: bool) -> Result<Status, Failure> {
    if want_schema {
        return print_json(&schema()).map(|()| Status::Ok);
    }
    let (config, mut findings) = match Config::load(file) {
        Ok(loaded) => (Some(loaded.config), loaded.warnings),
        Err(errors) => (None, errors.diagnostics),
    };
    if let (true, Some(config)) = (files, &config) {
        findings.extend(config.check_files());
    }
    let errors = findings.iter().filter(|finding| finding.is_error()).count();
    let sound = config.is_some() && errors == 0;
    if json {
        print_json(&Report { sound, findings: &findings })?;
    } else {
        // Findings go where errors go; that all is well is the answer.
        let paint = Paint::for_stream(&std::io::stderr());
        if !findings.is_empty() {
            eprintln!("{}", shown(&findings, paint));
        }
        let warnings = findings.len() - errors;
        match &config {
            Some(config) if sound => print(&summary(file, config, warnings))?,
            _ => {
                let errors = counted(errors, "error", "errors");
                return Err(Failure::failed(format!(
                    "{} cannot be used: {errors}",
                    file.display()
                )));
            }
        }
    }
    Ok(if sound { Status::Ok } else { Status::Failed })
}

/// The findings as text. They quote the file, so colours are added to what is harmless already.
fn shown(findings: &[Diagnostic], paint: Paint) -> String {
    let plain = neutral::lines(&render_all(findings, false));
    if paint.is_on() && plain == render_all(findings, false) {
        return render_all(findings, true);
    }
    plain
}

fn summary(file: &Path, config: &Config, warnings: usize) -> String {
    let machines = counted(config.machines().count(), "machine type", "machine types");
    let repositories = counted(config.repositories.len(), "repository", "repositories");
    let but = match warnings {
        0 => String::new(),
        n => format!(", with {}", counted(n, "warning", "warnings")),
    };
    format!("{} is sound{but}: {machines} in {repositories}\n", file.display())
}
