//! What `base_machine` leads to: it must exist, and must not lead back.

use std::collections::{BTreeMap, BTreeSet};

use forrest_core::model::MachineTypeName;

use crate::decode::{Decoder, Slot};
use crate::diagnostic::Code;
use crate::problem::Problem;
use crate::suggest;

/// A machine type with the one that it is based on, even where other parts of it are wrong.
pub(crate) struct Outline {
    pub name: MachineTypeName,
    /// The value of `base_machine`.
    pub base: Option<(MachineTypeName, Slot)>,
}

/// Checks every chain of bases.
pub(crate) fn check(d: &mut Decoder<'_>, outlines: &[Outline]) {
    let all: BTreeMap<&MachineTypeName, &Outline> =
        outlines.iter().map(|outline| (&outline.name, outline)).collect();
    let mut settled: BTreeSet<&MachineTypeName> = BTreeSet::new();
    for outline in outlines {
        let Some((base, slot)) = &outline.base else { continue };
        if !all.contains_key(base) {
            dangling(d, &outline.name, base, slot, outlines);
        }
        follow(d, outline, &all, &mut settled);
    }
}

fn dangling(
    d: &mut Decoder<'_>,
    name: &MachineTypeName,
    base: &MachineTypeName,
    slot: &Slot,
    outlines: &[Outline],
) {
    let names: Vec<String> = outlines.iter().map(|o| o.name.to_string()).collect();
    let others = names.iter().map(String::as_str).filter(|other| *other != name.to_string());
    // A right last part in a wrong repository is nearer than any spelling.
    let same_machine = outlines
        .iter()
        .find(|o| o.name.machine() == base.machine() && o.name != *name)
        .map(|o| o.name.to_string());
    let near = suggest::nearest(&base.to_string(), others).map(str::to_owned).or(same_machine);
    let help = match near {
        Some(near) => format!("did you mean \"{near}\"?"),
        None => "name a machine type of this file: owner/repository/machine".to_owned(),
    };
    let message = format!("there is no machine type {}", d.quote(slot));
    d.report(slot, Problem::error(Code::Base, slot.at, message).help(help));
}

/// Follows one chain of bases until it ends, or reaches a part that was followed before.
fn follow<'a>(
    d: &mut Decoder<'_>,
    start: &'a Outline,
    all: &BTreeMap<&'a MachineTypeName, &'a Outline>,
    settled: &mut BTreeSet<&'a MachineTypeName>,
) {
    let mut chain: Vec<&'a Outline> = Vec::new();
    let mut on_chain: BTreeMap<&'a MachineTypeName, usize> = BTreeMap::new();
    let mut next = Some(start);
    while let Some(outline) = next {
        if let Some(from) = on_chain.get(&outline.name) {
            report_cycle(d, &chain[*from..]);
            break;
        }
        if settled.contains(&outline.name) {
            break;
        }
        on_chain.insert(&outline.name, chain.len());
        chain.push(outline);
        next = outline.base.as_ref().and_then(|(base, _)| all.get(base).copied());
    }
    settled.extend(chain.iter().map(|outline| &outline.name));
}

/// How many machine types of a cycle a message names.
const SHOWN_MAX: usize = 8;

fn report_cycle(d: &mut Decoder<'_>, cycle: &[&Outline]) {
    let Some((_, slot)) = cycle.first().and_then(|first| first.base.as_ref()) else { return };
    let mut path: Vec<String> =
        cycle.iter().take(SHOWN_MAX).map(|outline| outline.name.to_string()).collect();
    if cycle.len() > SHOWN_MAX {
        path.push(format!("({} more)", cycle.len() - SHOWN_MAX));
    }
    path.extend(path.first().cloned());
    let message = format!("the machine type is based on itself: {}", path.join(" -> "));
    let mut problem = Problem::error(Code::Base, slot.at, message)
        .help("give one of them a base_image instead of base_machine");
    for outline in cycle.iter().skip(1).take(SHOWN_MAX) {
        if let Some((base, slot)) = &outline.base {
            problem = problem.note(slot.at, format!("{} is based on {base}", outline.name));
        }
    }
    d.report(slot, problem);
}
