//! Labels: those that every machine type has, and those that the configuration adds.

use std::collections::HashMap;

use forrest_core::model::{Labels, MachineTypeName};

use crate::decode::{Decoder, Slot};
use crate::diagnostic::Code;
use crate::problem::Problem;
use crate::source::Span;

/// The longest label, in characters.
const LABEL_MAX: usize = 100;

/// The labels of every runner that say nothing about its machine type. `architecture` as Rust names
/// it.
fn common(architecture: &str) -> [&str; 4] {
    // As GitHub's runner names them; it knows these three.
    let architecture = match architecture {
        "x86_64" => "x64",
        "aarch64" => "arm64",
        "arm" => "arm",
        other => other,
    };
    ["self-hosted", "forrest", "linux", architecture]
}

/// Every label that the runners of a machine type register.
pub(crate) fn all(machine: &str, extra: &[String], architecture: &str) -> Labels {
    let common = common(architecture);
    common.into_iter().chain([machine]).chain(extra.iter().map(String::as_str)).collect()
}

/// Warns of a machine type that jobs for other ones would ask for as well.
pub(crate) fn check_name(d: &mut Decoder<'_>, slot: &Slot, machine: &str) {
    let known = ["self-hosted", "forrest", "linux", "x64", "arm64", "arm"];
    if known.contains(&machine.to_lowercase().as_str()) {
        let message = "every job that asks for a Forrest runner has this label";
        let problem = Problem::warning(Code::BadValue, slot.key, message)
            .help("choose a name that says what the machine type is for");
        d.report(slot, problem);
    }
}

/// Reads the labels that the configuration adds.
pub(crate) fn decode(
    d: &mut Decoder<'_>,
    slot: &Slot,
    name: Option<&MachineTypeName>,
) -> Option<Vec<String>> {
    let mut seen: HashMap<String, Span> = HashMap::new();
    let mut labels = Vec::new();
    let mut sound = true;
    for item in d.list(slot)? {
        let Some(text) = d.text(&item) else {
            sound = false;
            continue;
        };
        let visible = text.chars().all(|c| !c.is_control() && c != ',');
        if !visible || text.chars().count() > LABEL_MAX || text.trim() != text {
            let message = format!("{} cannot be a label", d.quote(&item));
            let help = format!(
                "use up to {LABEL_MAX} characters, no comma, and no white space at either end"
            );
            d.bad(&item, message, help);
            sound = false;
            continue;
        }
        let key = text.to_lowercase();
        let automatic = common(std::env::consts::ARCH).contains(&key.as_str())
            || name.is_some_and(|name| name.machine().to_lowercase() == key);
        let problem = if let Some(first) = seen.insert(key, item.at) {
            Some(
                Problem::warning(Code::Duplicate, item.at, "the label is there twice")
                    .note(first, "the first one is here")
                    .help("remove one; GitHub compares labels without case"),
            )
        } else if automatic {
            let message = "every runner of this machine type has this label anyway";
            Some(Problem::warning(Code::Ignored, item.at, message).help("remove it"))
        } else {
            labels.push(text);
            None
        };
        if let Some(problem) = problem {
            d.report(&item, problem);
        }
    }
    sound.then_some(labels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use forrest_core::model::Label;

    #[test]
    fn jobs_find_the_machine_type() {
        let labels = all("build", &["Yocto".to_owned()], "x86_64");
        for asked in [
            vec!["self-hosted", "forrest", "build"],
            vec!["self-hosted", "forrest", "build", "Linux", "X64"],
            vec!["yocto", "build"],
        ] {
            let asked: Labels = asked.into_iter().collect();
            assert!(asked.is_subset(&labels), "{asked:?}");
        }
        assert!(!labels.contains(&Label::from("arm64")));
        assert!(all("build", &[], "aarch64").contains(&Label::from("ARM64")));
    }
}
