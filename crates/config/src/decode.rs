//! Reads typed values out of a tree by the field tables, and collects everything that is wrong.
//!
//! A value that cannot be used is reported and read as `None`; reading goes on, so that one look at
//! the file finds all its errors. What the fields mean together is checked elsewhere.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use crate::diagnostic::{Code, Location};
use crate::fields::{Field, Kind, Object, Presence};
use crate::problem::Problem;
use crate::source::{Source, Span};
use crate::tree::{Content, Node, NodeId, Style, Tree};
use crate::{redact, unknown};

/// The most values that are read from one file, counted as often as aliases repeat them. A machine
/// type has about 20, so this is for some 5,000 of them.
pub(crate) const VALUES_MAX: usize = 100_000;

/// How much of a wrong value a message repeats, in characters.
const QUOTED_MAX: usize = 60;

/// A machine type that values are read for, to say who uses a bad value of a shared snippet.
struct Owner {
    name: String,
    key: Span,
    /// The part of the file that is its own.
    extent: Span,
}

/// A value at the place where it is used.
#[derive(Clone)]
pub(crate) struct Slot {
    node: NodeId,
    /// Its full name.
    pub path: String,
    /// Its key; the list item itself in a list.
    pub key: Span,
    /// The value, or the key where the value is empty.
    pub at: Span,
    pub kind: &'static Kind,
    owner: Option<Rc<Owner>>,
}

/// A text with its name.
pub(crate) type Parameter = (Rc<str>, Slot, Option<String>);

/// Reads one file.
pub(crate) struct Decoder<'t> {
    tree: &'t Tree,
    source: &'t Source,
    /// Places that were asked for: snippets are used many times.
    places: HashMap<Span, Location>,
    secrets: HashSet<Span>,
    problems: Vec<Problem>,
    values: usize,
}

/// An object whose fields have been checked for being known and complete.
pub(crate) struct Reader {
    fields: Vec<(&'static Field, Slot)>,
    excused: Vec<&'static str>,
    complete: bool,
}

impl<'t> Decoder<'t> {
    pub(crate) fn new(tree: &'t Tree, source: &'t Source, problems: Vec<Problem>) -> Self {
        let secrets = tree.secret_spans().into_iter().collect();
        Self { tree, source, places: HashMap::new(), secrets, problems, values: 0 }
    }

    pub(crate) fn into_problems(self) -> Vec<Problem> {
        self.problems
    }

    /// The whole document as a value.
    pub(crate) fn root(&self, kind: &'static Kind) -> Slot {
        let node = self.tree.root();
        let start = Span { start: 0, end: 0 };
        let at = self.tree.node(node).span;
        Slot { node, path: String::new(), key: start, at, kind, owner: None }
    }

    /// Where a value is.
    pub(crate) fn locate(&mut self, slot: &Slot) -> Location {
        let source = self.source;
        self.places.entry(slot.at).or_insert_with(|| source.locate(slot.at)).clone()
    }

    pub(crate) fn node(&self, slot: &Slot) -> &'t Node {
        self.tree.node(slot.node)
    }

    /// Adds a finding about a value, with its name and who uses it.
    pub(crate) fn report(&mut self, slot: &Slot, problem: Problem) {
        let mut problem = problem.field(slot.path.clone());
        if let (Some(owner), Some(span)) = (&slot.owner, problem.span())
            && !owner.extent.contains(span)
        {
            problem = problem.used_by(owner.key, owner.name.clone());
        }
        self.problems.push(problem);
    }

    /// Reports that a value is no possible one.
    pub(crate) fn bad(&mut self, slot: &Slot, message: String, help: impl Into<String>) {
        self.report(slot, Problem::error(Code::BadValue, slot.at, message).help(help));
    }

    /// Says that values of this slot belong to a machine type.
    pub(crate) fn own(&self, slot: &mut Slot, written: Span) {
        let extent = Span { start: slot.key.start, end: slot.key.end.max(written.end) };
        slot.owner = Some(Rc::new(Owner { name: slot.path.clone(), key: slot.key, extent }));
    }

    fn count(&mut self, slot: &Slot) -> bool {
        self.values = self.values.saturating_add(1);
        if self.values == VALUES_MAX {
            let message =
                format!("the aliases of this file multiply to more than {VALUES_MAX} values");
            let help = "remove aliases that stand for large parts of the file";
            self.problems.push(Problem::error(Code::Limit, slot.key, message).help(help));
        }
        self.values < VALUES_MAX
    }

    /// A value as a message may repeat it. One of several lines is not repeated: it may have run
    /// into the next field's, where that is a secret.
    pub(crate) fn quote(&self, slot: &Slot) -> String {
        let span = self.node(slot).span;
        let shown = !self.secrets.contains(&span) && self.source.is_on_one_line(span);
        match &self.node(slot).content {
            Content::Scalar { text, .. } if shown => {
                let mut shown: String = text.chars().take(QUOTED_MAX).collect();
                if shown.len() < text.len() {
                    shown.push_str("...");
                }
                format!("{shown:?}")
            }
            Content::Scalar { .. } | Content::List(_) | Content::Map { .. } | Content::Broken => {
                "this value".to_owned()
            }
        }
    }

    pub(crate) fn wrong_type(&mut self, slot: &Slot, expected: &str, help: &str) {
        let found = match &self.node(slot).content {
            Content::Broken => return,
            Content::List(_) => "a list",
            Content::Map { .. } => "a mapping",
            Content::Scalar { text, style } => scalar_type(text, *style),
        };
        let at = match self.node(slot).content {
            // The caret under the first of many lines says less than one under the name.
            Content::List(_) | Content::Map { .. } if !slot.path.ends_with(']') => slot.key,
            _ => slot.at,
        };
        let message = format!("expected {expected}, found {found}");
        self.report(slot, Problem::error(Code::WrongType, at, message).help(help));
    }

    /// Checks a mapping with fixed fields.
    pub(crate) fn object(&mut self, slot: &Slot, object: &'static Object) -> Option<Reader> {
        let Content::Map { entries, complete } = &self.node(slot).content else {
            let names: Vec<&str> = object.fields.iter().map(|f| f.name).collect();
            let help = format!("its fields are {}", names.join(", "));
            self.wrong_type(slot, &format!("the fields of {}", object.what), &help);
            return None;
        };
        let mut fields = Vec::new();
        // Those that are there in a way that has been reported.
        let mut excused: Vec<&str> = Vec::new();
        for entry in entries {
            let Some(field) = object.field(&entry.key) else {
                excused.extend(unknown::field(self, slot, object, entry));
                continue;
            };
            let mut inner = self.child(slot, entry.key_span, entry.value.node, &field.kind);
            inner.path = join(&slot.path, field.name);
            if !self.count(&inner) {
                return None;
            }
            if self.is_null(&inner) {
                excused.push(field.name);
                self.null(&inner, field);
            } else {
                fields.push((field, inner));
            }
        }
        let reader = Reader { fields, excused, complete: *complete };
        let missing: Vec<&'static Field> = object
            .fields
            .iter()
            .filter(|f| f.presence == Presence::Required && reader.lacks(f.name))
            .collect();
        if !missing.is_empty() {
            let names: Vec<String> = missing.iter().map(|f| format!("{:?}", f.name)).collect();
            let examples: Vec<String> = missing.iter().map(|f| example(f)).collect();
            let message = format!("{} lacks {}", object.what, listed(&names));
            let help = format!("add {}", listed(&examples));
            // On the object itself, even where all its content came by merge.
            let problem = Problem::error(Code::MissingField, slot.key, message).help(help);
            self.problems.push(problem.field(slot.path.clone()));
        }
        Some(reader)
    }

    fn null(&mut self, slot: &Slot, field: &'static Field) {
        let name = field.name;
        let written =
            matches!(&self.node(slot).content, Content::Scalar { text, .. } if !text.is_empty());
        if field.presence == Presence::Required || matches!(field.kind, Kind::Secret) && !written {
            let message = format!("{name:?} has no value");
            let help = match field.presence {
                Presence::Required => "write a value behind the colon",
                _ => "write a value behind the colon, or null for none",
            };
            self.report(slot, Problem::error(Code::MissingField, slot.key, message).help(help));
        } else if !written {
            let message = format!("{name:?} has no value and counts as absent");
            let help = "remove it, or write null to say so";
            self.report(slot, Problem::warning(Code::Ignored, slot.key, message).help(help));
        }
    }

    fn child(&self, parent: &Slot, key: Span, node: NodeId, kind: &'static Kind) -> Slot {
        let span = self.tree.node(node).span;
        let at = if span.is_empty() { key } else { span };
        Slot { node, path: parent.path.clone(), key, at, kind, owner: parent.owner.clone() }
    }

    fn is_null(&self, slot: &Slot) -> bool {
        match &self.node(slot).content {
            Content::Scalar { text, style } => is_null(text, *style),
            _ => false,
        }
    }

    /// The entries of a mapping whose keys the user chooses: key, value, where the value is written.
    pub(crate) fn map(&mut self, slot: &Slot) -> Option<Vec<(Rc<str>, Slot, Span)>> {
        let Kind::Map(key, kind) = slot.kind else { return None };
        let Content::Map { entries, .. } = &self.node(slot).content else {
            let help = format!("write one line per {key}: its name and a colon");
            self.wrong_type(slot, &format!("a mapping from {key} to its settings"), &help);
            return None;
        };
        let mut found = Vec::with_capacity(entries.len());
        for entry in entries {
            let mut inner = self.child(slot, entry.key_span, entry.value.node, kind);
            inner.path = join(&slot.path, &entry.key);
            if !self.count(&inner) {
                return None;
            }
            found.push((Rc::clone(&entry.key), inner, entry.value.written));
        }
        Some(found)
    }

    /// The items of a list.
    pub(crate) fn list(&mut self, slot: &Slot) -> Option<Vec<Slot>> {
        let Kind::List(kind, most) = slot.kind else { return None };
        let Content::List(items) = &self.node(slot).content else {
            self.wrong_type(
                slot,
                "a list",
                "write [first, second], or each item on a line that begins with \"- \"",
            );
            return None;
        };
        if items.len() > *most {
            let message =
                format!("{} items are more than the {most} that are allowed", items.len());
            self.report(slot, Problem::error(Code::Limit, slot.key, message));
            return None;
        }
        let mut found = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            let mut inner = self.child(slot, item.written, item.node, kind);
            inner.path = format!("{}[{index}]", slot.path);
            if !self.count(&inner) {
                return None;
            }
            found.push(inner);
        }
        Some(found)
    }

    /// Texts by name, for [`Kind::Parameters`]; `None` in place of one that is wrong.
    pub(crate) fn parameters(&mut self, slot: &Slot) -> Option<Vec<Parameter>> {
        let Content::Map { entries, .. } = &self.node(slot).content else {
            self.wrong_type(slot, "a mapping from name to text", "write NAME: text lines");
            return None;
        };
        let mut found = Vec::with_capacity(entries.len());
        for entry in entries {
            let mut inner = self.child(slot, entry.key_span, entry.value.node, slot.kind);
            inner.path = join(&slot.path, &entry.key);
            if !self.count(&inner) {
                return None;
            }
            let text = match &self.node(&inner).content {
                Content::Scalar { text, style } if !is_null(text, *style) => Some(text.clone()),
                _ => {
                    let help = "write a text; quote an empty one: \"\"";
                    self.wrong_type(&inner, "a text", help);
                    None
                }
            };
            found.push((Rc::clone(&entry.key), inner, text));
        }
        Some(found)
    }
}

impl Reader {
    /// The field's value, if it is there.
    pub(crate) fn slot(&self, name: &str) -> Option<&Slot> {
        self.fields.iter().find(|(field, _)| field.name == name).map(|(_, slot)| slot)
    }

    /// Whether a field is missing, and nothing has been reported that explains it: a misspelt name,
    /// a missing value, a broken merge.
    pub(crate) fn lacks(&self, name: &str) -> bool {
        self.complete && self.slot(name).is_none() && !self.excused.contains(&name)
    }

    /// Reads a field that must be there. `None`: it is not, or is wrong; that has been reported.
    pub(crate) fn required<T>(
        &self,
        name: &str,
        read: impl FnOnce(&Slot) -> Option<T>,
    ) -> Option<T> {
        self.slot(name).and_then(read)
    }

    /// Reads a field that may be absent. Outer `None`: it is wrong.
    pub(crate) fn optional<T>(
        &self,
        name: &str,
        read: impl FnOnce(&Slot) -> Option<T>,
    ) -> Option<Option<T>> {
        match self.slot(name) {
            None => Some(None),
            Some(slot) => read(slot).map(Some),
        }
    }
}

fn join(path: &str, name: &str) -> String {
    let name = redact::shown_key(name).unwrap_or("?");
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// Whether a scalar stands for nothing.
pub(crate) fn is_null(text: &str, style: Style) -> bool {
    style == Style::Plain && matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

fn scalar_type(text: &str, style: Style) -> &'static str {
    match (style, text) {
        (Style::Quoted, _) => "a quoted text",
        (_, text) if is_null(text, style) => "nothing",
        (_, "true" | "false" | "True" | "False" | "TRUE" | "FALSE") => "a truth value",
        (_, text) if text.parse::<f64>().is_ok() => "a number",
        _ => "a text",
    }
}

/// A line that defines a field.
fn example(field: &Field) -> String {
    let value = match &field.kind {
        Kind::Size { .. } => "4G",
        Kind::Integer { .. } => "4",
        Kind::Path => "<path>",
        Kind::Object(_) | Kind::Map(..) | Kind::Parameters => "{...}",
        Kind::List(..) => "[...]",
        Kind::Text { .. } | Kind::Secret | Kind::Duration { .. } | Kind::Bool | Kind::OneOf(_) => {
            "<text>"
        }
    };
    format!("{}: {value}", field.name)
}

/// Some things in one sentence: "a, b and c".
fn listed(parts: &[String]) -> String {
    match parts {
        [] => String::new(),
        [one] => one.clone(),
        [most @ .., last] => format!("{} and {last}", most.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a list of a hundred items over and over.
    #[test]
    fn no_more_values_are_read_than_the_limit() {
        static LIST: Kind = Kind::List(&Kind::Bool, 100);
        let text = format!("[{}]", "true,".repeat(100));
        let (tree, _) = Tree::parse(&text);
        let tree = tree.expect("a document");
        let source = Source::new(std::path::Path::new("f"), text);
        let mut decoder = Decoder::new(&tree, &source, Vec::new());
        let root = decoder.root(&LIST);
        let read = (0..2 * VALUES_MAX / 100).filter(|_| decoder.list(&root).is_some()).count();
        assert!((VALUES_MAX / 100 - 1..=VALUES_MAX / 100).contains(&read), "{read}");
        assert_eq!(decoder.into_problems().len(), 1);
    }
}
