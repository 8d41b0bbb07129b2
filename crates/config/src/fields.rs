//! What a field table says of a field.
//!
//! The tables themselves are in `tables.rs`. Everything else goes by them: the decoder's checks and
//! suggestions, the JSON schema, and the test that compares `docs/config.md` with them.

use forrest_core::model::Bytes;

use crate::tables::ROOT;

/// What a field holds.
#[derive(Debug)]
pub(crate) enum Kind {
    /// Any text; `what` names it in messages.
    Text {
        /// What kind of text, with its article.
        what: &'static str,
    },
    /// A text that is never shown.
    Secret,
    /// A path.
    Path,
    /// A number of bytes.
    Size {
        /// The least.
        min: Bytes,
        /// The most.
        max: Bytes,
        /// What it must be a multiple of.
        step: Bytes,
    },
    /// A time span, both limits in seconds.
    Duration {
        /// The least.
        min_s: u64,
        /// The most.
        max_s: u64,
    },
    /// An integer.
    Integer {
        /// The least.
        min: u32,
        /// The most.
        max: u32,
    },
    /// `true` or `false`.
    Bool,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// A list of at most this many.
    List(&'static Kind, usize),
    /// A mapping with fixed fields.
    Object(&'static Object),
    /// A mapping whose keys the user chooses; the text names a key.
    Map(&'static str, &'static Kind),
    /// Texts by name.
    Parameters,
}

/// Whether a field must be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Presence {
    /// It must.
    Required,
    /// Where it is absent, this applies.
    Default(&'static str),
    /// Where it is absent, this sentence says what happens.
    Absent(&'static str),
}

/// When a change of a field takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reload {
    /// With the next start of the daemon.
    Restart,
    /// At once, for what is decided from then on.
    Live,
    /// For runs that are created from then on.
    NextRun,
}

/// One field.
#[derive(Debug)]
pub(crate) struct Field {
    pub name: &'static str,
    pub kind: Kind,
    pub presence: Presence,
    pub reload: Reload,
    pub doc: &'static str,
}

/// A mapping with fixed fields.
#[derive(Debug)]
pub(crate) struct Object {
    /// What it is, with its article: the subject of messages.
    pub what: &'static str,
    pub fields: &'static [Field],
}

impl Object {
    pub(crate) fn field(&self, name: &str) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.name == name)
    }
}

/// Calls `visit` for every field with its full name, keys that the user chooses as `<…>`.
pub(crate) fn walk(visit: &mut dyn FnMut(&str, &'static Field)) {
    walk_object("", &ROOT, visit);
}

fn walk_object(prefix: &str, object: &Object, visit: &mut dyn FnMut(&str, &'static Field)) {
    for field in object.fields {
        let path = if prefix.is_empty() {
            field.name.to_owned()
        } else {
            format!("{prefix}.{}", field.name)
        };
        visit(&path, field);
        walk_kind(&path, &field.kind, visit);
    }
}

fn walk_kind(path: &str, kind: &Kind, visit: &mut dyn FnMut(&str, &'static Field)) {
    match kind {
        Kind::Object(object) => walk_object(path, object, visit),
        Kind::Map(key, value) => walk_kind(&format!("{path}.<{key}>"), value, visit),
        Kind::List(item, _) => walk_kind(&format!("{path}[]"), item, visit),
        Kind::Text { .. }
        | Kind::Secret
        | Kind::Path
        | Kind::Size { .. }
        | Kind::Duration { .. }
        | Kind::Integer { .. }
        | Kind::Bool
        | Kind::OneOf(_)
        | Kind::Parameters => {}
    }
}

#[cfg(test)]
#[path = "fields_tests.rs"]
mod tests;
