//! Fields that do not exist: what was probably meant.

use crate::decode::{Decoder, Slot};
use crate::diagnostic::Code;
use crate::fields::{self, Object};
use crate::problem::Problem;
use crate::redact;
use crate::suggest;
use crate::tables::ROOT;
use crate::tree::Entry;

/// Top-level keys that end like this only hold anchors.
const SNIPPETS: &str = "_snippets";

/// Names that other programs use for what is meant here.
const SYNONYMS: [(&str, &str); 12] = [
    ("memory", "ram"),
    ("mem", "ram"),
    ("cores", "cpus"),
    ("vcpus", "cpus"),
    ("image", "base_image"),
    ("base", "base_machine"),
    ("template", "setup_template"),
    ("timeout", "job_timeout"),
    ("shares", "shared"),
    ("readonly", "writable"),
    ("private_key", "jwt_key_file"),
    ("listen", "webhook_listen"),
];

/// Reports an entry of an object that has no such field. Returns the field that was meant, if that
/// can be told.
pub(crate) fn field(
    decoder: &mut Decoder<'_>,
    slot: &Slot,
    object: &'static Object,
    entry: &Entry,
) -> Option<&'static str> {
    let top = std::ptr::eq(object, &ROOT);
    let name: &str = &entry.key;
    if top && name.ends_with(SNIPPETS) {
        return None;
    }
    let names = object.fields.iter().map(|f| f.name);
    let meant = suggest::nearest(name, names.clone()).or_else(|| synonym(name, object));
    let help = if let Some(meant) = meant {
        format!("did you mean \"{meant}\"?")
    } else if let Some(elsewhere) = elsewhere(name) {
        format!("\"{name}\" belongs in {elsewhere}: check the indentation")
    } else if top {
        let names: Vec<&str> = names.collect();
        format!("use {}; or end the name in {SNIPPETS} if it only holds anchors", names.join(", "))
    } else {
        let names: Vec<&str> = names.collect();
        format!("its fields are {}", names.join(", "))
    };
    let message = match redact::shown_key(name) {
        Some(name) => format!("{} has no field {name:?}", object.what),
        None => format!("{} has no field of this name", object.what),
    };
    let problem = Problem::error(Code::UnknownField, entry.key_span, message).help(help);
    decoder.report(slot, problem);
    meant
}

fn synonym(name: &str, object: &Object) -> Option<&'static str> {
    let known = SYNONYMS.iter().filter(|(_, meant)| object.field(meant).is_some());
    let near = suggest::nearest(name, known.map(|(synonym, _)| *synonym))?;
    SYNONYMS.iter().find(|(synonym, _)| *synonym == near).map(|(_, meant)| *meant)
}

/// The object that has a field of this name.
fn elsewhere(name: &str) -> Option<String> {
    let mut found = None;
    fields::walk(&mut |path, field| {
        if field.name == name && found.is_none() {
            found = path.rsplit_once('.').map(|(object, _)| object.to_owned());
        }
    });
    found
}
