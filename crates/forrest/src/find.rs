//! Which daemon, which run, which machine type is meant.

use std::path::{Path, PathBuf};

use forrest_config::Config;
use forrest_core::model::{MachineTypeName, RunnerName};
use forrest_daemon::inspect::InspectError;

use crate::cli::{DEFAULT_CONFIG, Which, names_machine};
use crate::failure::Failure;

/// The most candidates that are listed when a name fits several.
const CANDIDATES_MAX: usize = 20;
/// The shortest beginning of a run's random part that is taken for its name.
const RANDOM_LEN_MIN: usize = 3;

/// The base directory of the daemon that is meant.
///
/// # Errors
/// Where there is no configuration to learn it from, or that cannot be used.
pub fn base_dir(which: &Which) -> Result<PathBuf, Failure> {
    if let Some(base_dir) = &which.base_dir {
        return Ok(base_dir.clone());
    }
    let config = match &which.config {
        Some(config) => config.clone(),
        None if Path::new(DEFAULT_CONFIG).exists() => PathBuf::from(DEFAULT_CONFIG),
        None => {
            return Err(Failure::usage(format!(
                "which Forrest is meant? There is no {DEFAULT_CONFIG}; say --config FILE or \
                 --base-dir DIR, or set FORREST_CONFIG"
            )));
        }
    };
    match Config::load(&config) {
        Ok(loaded) => Ok(loaded.config.host.base_dir.resolve().to_owned()),
        Err(errors) => {
            let shown = config.display();
            let first = errors.diagnostics.iter().find(|diagnostic| diagnostic.is_error());
            let first = first.map(ToString::to_string).unwrap_or_default();
            Err(Failure::failed(format!(
                "could not learn the base directory from {shown}: {first}; mend that (`forrest \
                 check {shown}` shows all of it), or say --base-dir DIR"
            )))
        }
    }
}

/// Something that has a run's name and machine type.
pub trait Named {
    /// The run's name.
    fn runner(&self) -> &RunnerName;
    /// Its machine type.
    fn machine(&self) -> &MachineTypeName;
}

impl Named for forrest_daemon::inspect::runs::FoundRun {
    fn runner(&self) -> &RunnerName {
        &self.runner
    }

    fn machine(&self) -> &MachineTypeName {
        &self.machine
    }
}

impl Named for forrest_core::view::RunView {
    fn runner(&self) -> &RunnerName {
        &self.runner
    }

    fn machine(&self) -> &MachineTypeName {
        &self.machine
    }
}

/// Every run that the text fits best: the one of that name; else those of that machine type; else
/// those whose name, with or without `forrest-`, or whose random part begins so.
pub fn matching<'a, R: Named>(text: &str, runs: &'a [R]) -> Vec<&'a R> {
    let ways: [&dyn Fn(&R) -> bool; 4] = [
        &|run| run.runner().as_str() == text,
        &|run| names_machine(text, run.machine()),
        &|run| {
            let name = run.runner().as_str();
            name.starts_with(text)
                || name.strip_prefix("forrest-").is_some_and(|n| n.starts_with(text))
        },
        &|run| {
            let random = run.runner().as_str().rsplit('-').next().unwrap_or_default();
            text.len() >= RANDOM_LEN_MIN && random.starts_with(text)
        },
    ];
    if text.is_empty() {
        return Vec::new();
    }
    let fits = ways.iter().map(|fits| runs.iter().filter(|run| fits(run)).collect::<Vec<_>>());
    fits.into_iter().find(|found| !found.is_empty()).unwrap_or_default()
}

/// The one run that is meant. `kind` says what is looked for, such as "a live run".
///
/// # Errors
/// Where none fits, or several do; the message lists the candidates.
pub fn one_run<'a, R: Named>(text: &str, runs: &'a [R], kind: &str) -> Result<&'a R, Failure> {
    let found = matching(text, runs);
    match found.as_slice() {
        [one] => Ok(one),
        [] if runs.is_empty() => {
            Err(Failure::not_found(format!("{text:?} names no run: there is not {kind} at all")))
        }
        [] => {
            let all: Vec<&R> = runs.iter().collect();
            let all = list(&all);
            Err(Failure::not_found(format!("{text:?} does not name {kind}; there are:\n{all}")))
        }
        several => Err(Failure::not_found(format!(
            "{text:?} fits more than one run; say more of the name:\n{}",
            list(several)
        ))),
    }
}

fn list<R: Named>(runs: &[&R]) -> String {
    let mut lines: Vec<String> = runs
        .iter()
        .take(CANDIDATES_MAX)
        .map(|run| format!("  {}  ({})", run.runner(), run.machine()))
        .collect();
    if runs.len() > CANDIDATES_MAX {
        lines.push(format!("  and {} more", runs.len() - CANDIDATES_MAX));
    }
    lines.join("\n")
}

/// The machine type that is meant, by its full name or, where only one has it, by its own.
///
/// # Errors
/// Where none of `known` fits, or several do.
pub fn one_machine(text: &str, known: &[MachineTypeName]) -> Result<MachineTypeName, Failure> {
    let found: Vec<&MachineTypeName> =
        known.iter().filter(|machine| names_machine(text, machine)).collect();
    let list = |machines: &[&MachineTypeName]| {
        let lines: Vec<String> =
            machines.iter().take(CANDIDATES_MAX).map(|m| format!("  {m}")).collect();
        lines.join("\n")
    };
    match found.as_slice() {
        [one] => Ok((*one).clone()),
        [] if known.is_empty() => {
            Err(Failure::not_found(format!("{text:?} has no images: there are none at all yet")))
        }
        [] => Err(Failure::not_found(format!(
            "no machine type called {text:?} has images; these have:\n{}",
            list(&known.iter().collect::<Vec<_>>())
        ))),
        several => Err(Failure::not_found(format!(
            "{text:?} fits more than one machine type; write owner/repository/machine:\n{}",
            list(several)
        ))),
    }
}

/// A failure to look at something.
impl From<InspectError> for Failure {
    fn from(error: InspectError) -> Self {
        match error {
            InspectError::NoBaseDir { .. } => Self::not_found(error.to_string()),
            _ => Self::failed(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Run(RunnerName, MachineTypeName);

    impl Named for Run {
        fn runner(&self) -> &RunnerName {
            &self.0
        }

        fn machine(&self) -> &MachineTypeName {
            &self.1
        }
    }

    fn runs() -> Vec<Run> {
        let run = |runner: &str, machine: &str| {
            Run(runner.parse().expect("a runner"), machine.parse().expect("a machine type"))
        };
        vec![
            run("forrest-build-aaaabbbbccccdddd", "o/r/build"),
            run("forrest-build-aaaaxxxxyyyyzzzz", "o/other/build"),
            run("forrest-test-1111222233334444", "o/r/test"),
            run("forrest-test-big-5555222233334444", "o/r/test-big"),
        ]
    }

    fn found(text: &str) -> Vec<String> {
        matching(text, &runs()).iter().map(|run| run.0.to_string()).collect()
    }

    #[test]
    fn names_beginnings_and_machine_types_are_understood() {
        let first = ["forrest-build-aaaabbbbccccdddd"];
        for text in [
            "forrest-build-aaaabbbbccccdddd",
            "forrest-build-aaaab",
            "build-aaaab",
            "o/r/build",
            "aaaab",
        ] {
            assert_eq!(found(text), first, "{text}");
        }
        // The machine type comes before the beginning of a name.
        assert_eq!(found("test"), ["forrest-test-1111222233334444"]);
        assert_eq!(found("build").len(), 2);
        assert!(found("nothing").is_empty());
        assert!(found("").is_empty());
    }

    #[test]
    fn candidates_are_listed() {
        let runs = runs();
        let error = one_run("build", &runs, "a run").err().expect("two fit").to_string();
        assert!(error.contains("aaaaxxxxyyyyzzzz") && error.contains("o/r/build"), "{error}");
        assert!(one_run("test-big", &runs, "a run").is_ok());
        let error = one_run("x", &runs[..0], "a run").err().expect("none").to_string();
        assert!(error.contains("there is not a run at all"), "{error}");
    }
}
