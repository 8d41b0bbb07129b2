//! The configuration file, the files that it names, and the setup templates.

use std::collections::BTreeSet;
use std::path::Path;

use forrest_config::{Config, Diagnostic};
use forrest_images::template::Template;

use super::{Area, Findings};

/// The configuration, where it can be used.
pub(super) fn examine(path: &Path, findings: &mut Findings) -> Option<Config> {
    let loaded = match Config::load(path) {
        Ok(loaded) => loaded,
        Err(errors) => {
            for diagnostic in &errors.diagnostics {
                report(diagnostic, findings);
            }
            return None;
        }
    };
    let machines = loaded.config.machines().count();
    let repositories = loaded.config.repositories.len();
    findings.ok(
        Area::Configuration,
        format!(
            "{} is sound: {} in {}",
            path.display(),
            counted(machines, "machine type", "machine types"),
            counted(repositories, "repository", "repositories"),
        ),
    );
    let files = loaded.config.check_files();
    if files.is_empty() {
        findings.ok(Area::Configuration, "the files that it names are there");
    }
    for diagnostic in loaded.warnings.iter().chain(&files) {
        report(diagnostic, findings);
    }
    if !files.iter().any(Diagnostic::is_error) {
        templates(&loaded.config, findings);
    }
    Some(loaded.config)
}

fn report(diagnostic: &Diagnostic, findings: &mut Findings) {
    let what = match &diagnostic.location {
        Some(place) => {
            format!("{} ({}:{})", diagnostic.message, place.file.display(), place.line)
        }
        None => diagnostic.message.clone(),
    };
    let advice = diagnostic.help.clone().unwrap_or_else(|| {
        "`forrest check` shows the place in the file; docs/config.md explains every field"
            .to_owned()
    });
    if diagnostic.is_error() {
        findings.problem(Area::Configuration, what, advice);
    } else {
        findings.warning(Area::Configuration, what, advice);
    }
}

/// Whether each setup template can be loaded, and what in it is never replaced.
fn templates(config: &Config, findings: &mut Findings) {
    let mut seen = BTreeSet::new();
    let mut sound = 0;
    for machine in config.machines() {
        let template = &machine.setup_template;
        let dir = template.path.resolve();
        if !seen.insert((dir.to_owned(), template.parameters.clone())) {
            continue;
        }
        let loaded = match Template::load(dir, &template.parameters) {
            Ok(loaded) => loaded,
            Err(error) => {
                let advice = "mend the template; contrib/templates/generic is one that works";
                findings.problem(Area::Configuration, error.to_string(), advice);
                continue;
            }
        };
        sound += 1;
        if machine.snapshot {
            for run_value in loaded.run_values_in_cloud_init() {
                findings.problem(
                    Area::Configuration,
                    format!(
                        "{} has snapshot: true, and its template has {run_value}",
                        machine.name
                    ),
                    "a snapshot is taken before there is a job: move it to job-config/",
                );
            }
        }
        let unknown: Vec<String> =
            loaded.unknown_patterns().iter().map(ToString::to_string).collect();
        if !unknown.is_empty() {
            findings.warning(
                Area::Configuration,
                format!(
                    "the setup template {} has {}, and nothing replaces that",
                    dir.display(),
                    unknown.join(", ")
                ),
                "name it below setup_template.parameters, unless the template works without it",
            );
        }
    }
    if sound > 0 {
        let templates = counted(sound, "setup template", "setup templates");
        findings.ok(Area::Configuration, format!("{templates} can be used"));
    }
}

/// `1 thing`, `2 things`.
pub(super) fn counted(n: usize, one: &str, many: &str) -> String {
    if n == 1 { format!("1 {one}") } else { format!("{n} {many}") }
}
