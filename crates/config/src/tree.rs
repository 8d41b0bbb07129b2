//! A YAML document as a tree in which every part knows its place.
//!
//! Aliases are references to the node that they name, not copies, so the tree is never larger than
//! the file. Merge keys are resolved here: a mapping's entries are its own ones followed by those
//! that it takes over. What fields mean is none of this module's business; `decode.rs` reads the
//! tree.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use granit_parser::{Event, Parser, ScalarStyle, Tag};

use crate::diagnostic::Code;
use crate::problem::Problem;
use crate::redact::{self, Suspicion};
use crate::source::Span;
use crate::syntax;

/// The most nodes that a file may have. A machine type needs about 40.
pub(crate) const NODES_MAX: usize = 100_000;

/// The most entries that all merge keys together may take over.
pub(crate) const MERGED_ENTRIES_MAX: usize = 200_000;

/// How deep lists and mappings may be nested.
pub(crate) const DEPTH_MAX: usize = 64;

/// A node's number in its tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct NodeId(usize);

/// How a scalar is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// Without quotes: may be a number, a truth value or nothing at all.
    Plain,
    /// In quotes or as a block: a text.
    Quoted,
}

/// What a node is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Content {
    /// A text, number, truth value or nothing.
    Scalar {
        /// The text, escapes resolved.
        text: String,
        /// Whether it can be anything but a text.
        style: Style,
    },
    /// A list.
    List(Vec<Child>),
    /// A mapping.
    Map {
        /// Its own entries, then those from merge keys.
        entries: Vec<Entry>,
        /// Whether all that it merges is there; what is not has been reported.
        complete: bool,
    },
    /// Something whose problem has been reported already.
    Broken,
}

/// A value where it is used.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Child {
    /// The value.
    pub node: NodeId,
    /// Where it is used: the alias, if it is one.
    pub written: Span,
}

/// A key with its value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    /// The key's text.
    pub key: Rc<str>,
    /// Where the key is.
    pub key_span: Span,
    /// The value.
    pub value: Child,
}

/// A part of the document.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    /// What it is.
    pub content: Content,
    /// Where it is written.
    pub span: Span,
}

/// A document.
#[derive(Debug)]
pub(crate) struct Tree {
    nodes: Vec<Node>,
    root: NodeId,
}

impl Tree {
    /// Reads a document.
    ///
    /// Returns it with the problems found so far; without it where there is none to work on.
    pub(crate) fn parse(text: &str) -> (Option<Self>, Vec<Problem>) {
        let mut builder = Builder::new(text);
        let root = builder.run(text);
        let problems = std::mem::take(&mut builder.problems);
        (root.map(|root| Self { nodes: builder.nodes, root }), problems)
    }

    pub(crate) fn root(&self) -> NodeId {
        self.root
    }

    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }

    /// Where the values are that belong to a key that names a secret, also by alias and merge.
    pub(crate) fn secret_spans(&self) -> Vec<Span> {
        let entries = self.nodes.iter().filter_map(|node| match &node.content {
            Content::Map { entries, .. } => Some(entries),
            _ => None,
        });
        let secret = entries.flatten().filter(|e| match redact::suspicion(&e.key) {
            Some(Suspicion::Field) => true,
            None if redact::shown_key(&e.key).is_some() => false,
            // A telltale, or no name at all: something went wrong with it.
            Some(Suspicion::Telltale) | None => {
                !matches!(self.node(e.value.node).content, Content::Map { .. })
            }
        });
        let mut pending: Vec<NodeId> = Vec::new();
        let mut spans = Vec::new();
        for entry in secret {
            pending.push(entry.value.node);
            // With anchors and tags, which are no part of the value; less the colon.
            spans.push(Span { start: entry.key_span.end + 1, end: entry.value.written.end });
        }
        let mut seen: HashSet<NodeId> = HashSet::new();
        while let Some(id) = pending.pop() {
            if !seen.insert(id) {
                continue;
            }
            let node = self.node(id);
            spans.push(node.span);
            match &node.content {
                Content::List(items) => pending.extend(items.iter().map(|item| item.node)),
                Content::Map { entries, .. } => {
                    spans.extend(entries.iter().map(|e| e.key_span));
                    pending.extend(entries.iter().map(|e| e.value.node));
                }
                Content::Scalar { .. } | Content::Broken => {}
            }
        }
        spans
    }
}

/// A list or mapping whose end has not come yet.
struct Open {
    start: usize,
    anchor: usize,
    kind: OpenKind,
}

enum OpenKind {
    List(Vec<Child>),
    Map { entries: Vec<Entry>, merges: Vec<(Span, Child)>, key: Option<Key> },
}

/// A mapping's key whose value has not come yet.
struct Key {
    text: Rc<str>,
    span: Span,
    plain: bool,
    /// Whether it can be used as a key.
    sound: bool,
}

struct Builder<'t> {
    text: &'t str,
    nodes: Vec<Node>,
    open: Vec<Open>,
    /// What each anchor names; `None` while that list or mapping is still open.
    anchors: HashMap<usize, Option<NodeId>>,
    merged: usize,
    problems: Vec<Problem>,
    root: Option<NodeId>,
    documents: usize,
}

/// Reading cannot go on.
struct Stop;

impl<'t> Builder<'t> {
    fn new(text: &'t str) -> Self {
        Self {
            text,
            nodes: Vec::new(),
            open: Vec::new(),
            anchors: HashMap::new(),
            merged: 0,
            problems: Vec::new(),
            root: None,
            documents: 0,
        }
    }

    fn run(&mut self, text: &'t str) -> Option<NodeId> {
        let options = granit_parser::options! {
            emit_unresolved_aliases: true,
            flow_nesting_limit: DEPTH_MAX,
            block_nesting_limit: DEPTH_MAX,
        };
        for next in Parser::new_from_str_with_options(text, options) {
            let (event, span) = match next {
                Ok(next) => next,
                Err(error) => {
                    self.problems.push(syntax::problem(text, &error));
                    return None;
                }
            };
            let span = syntax::span(text, &span);
            if self.event(event, span).is_err() {
                return None;
            }
        }
        self.root
    }

    fn event(&mut self, event: Event<'_>, span: Span) -> Result<(), Stop> {
        match event {
            Event::DocumentStart(..) => {
                self.documents += 1;
                if self.documents > 1 {
                    let message = "a second YAML document begins here";
                    let help = "keep everything in one document: remove this \"---\"";
                    self.problems.push(Problem::error(Code::Syntax, span, message).help(help));
                    return Err(Stop);
                }
            }
            Event::Scalar(text, style, anchor, tag) => {
                let style = self.scalar_style(style, tag.as_deref(), span);
                // The parser writes a tilde for a value that is not there.
                let absent = style == Style::Plain && span.is_empty();
                let text = if absent { String::new() } else { text.into_owned() };
                let content = Content::Scalar { text, style };
                let id = self.add(content, span)?;
                self.name(anchor, Some(id));
                self.place(id, span)?;
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.collection_tag(tag.as_deref(), span);
                self.name(anchor, None);
                self.begin(span, anchor, OpenKind::List(Vec::new()));
            }
            Event::MappingStart(_, anchor, tag) => {
                self.collection_tag(tag.as_deref(), span);
                self.name(anchor, None);
                let kind = OpenKind::Map { entries: Vec::new(), merges: Vec::new(), key: None };
                self.begin(span, anchor, kind);
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(span)?,
            Event::Alias(anchor) => self.alias(anchor, span)?,
            Event::UnresolvedAlias(name) => {
                // Not quoted: an unquoted secret may begin with an asterisk.
                let message = "no anchor of this name is defined above";
                let help = self.anchor_help(&name);
                self.problems.push(Problem::error(Code::Syntax, span, message).help(help));
                let id = self.add(Content::Broken, span)?;
                self.place(id, span)?;
            }
            // The stream's own events; and those that the options leave out.
            _ => {}
        }
        Ok(())
    }

    fn anchor_help(&self, name: &str) -> String {
        let anchors: Vec<&str> = self
            .text
            .match_indices('&')
            .map(|(at, _)| {
                let rest = &self.text[at + 1..];
                let end = rest.find(|c: char| c.is_whitespace() || ",[]{}".contains(c));
                &rest[..end.unwrap_or(rest.len())]
            })
            .filter(|anchor| !anchor.is_empty())
            .collect();
        if anchors.contains(&name) {
            return "move the anchor's definition above its first use".to_owned();
        }
        match crate::suggest::nearest(name, anchors) {
            Some(near) => format!("did you mean \"*{near}\"?"),
            None => "define it above: put &name in front of the value that it names; quote a text \
                     that begins with an asterisk"
                .to_owned(),
        }
    }

    fn scalar_style(&mut self, style: ScalarStyle, tag: Option<&Tag>, span: Span) -> Style {
        let by_style = if style == ScalarStyle::Plain { Style::Plain } else { Style::Quoted };
        let Some(tag) = tag else { return by_style };
        match tag.core_suffix() {
            Some("str") => Style::Quoted,
            Some("int" | "bool" | "null") => by_style,
            _ => {
                self.foreign_tag(span);
                by_style
            }
        }
    }

    fn collection_tag(&mut self, tag: Option<&Tag>, span: Span) {
        match tag {
            Some(tag) if !matches!(tag.core_suffix(), Some("map" | "seq")) => {
                self.foreign_tag(span);
            }
            _ => {}
        }
    }

    // The tag is not quoted: an unquoted secret may begin with an exclamation mark.
    fn foreign_tag(&mut self, span: Span) {
        let message = "this value has a tag that means nothing here";
        let help = "remove the tag; quote a text that begins with an exclamation mark";
        self.problems.push(Problem::error(Code::Syntax, span, message).help(help));
    }

    fn add(&mut self, content: Content, span: Span) -> Result<NodeId, Stop> {
        if self.nodes.len() >= NODES_MAX {
            let message = format!("the file has more than {NODES_MAX} values");
            let help = "use anchors and merge keys for what machine types have in common";
            self.problems.push(Problem::error(Code::Limit, span, message).help(help));
            return Err(Stop);
        }
        self.nodes.push(Node { content, span });
        Ok(NodeId(self.nodes.len() - 1))
    }

    fn name(&mut self, anchor: usize, id: Option<NodeId>) {
        if anchor != 0 {
            self.anchors.insert(anchor, id);
        }
    }

    fn alias(&mut self, anchor: usize, span: Span) -> Result<(), Stop> {
        let target = self.anchors.get(&anchor).copied().flatten();
        let id = match target {
            Some(id) => id,
            None => {
                let message = "this alias stands inside the value that it names";
                let help = "an anchor can be used only after the end of its value";
                self.problems.push(Problem::error(Code::Syntax, span, message).help(help));
                self.add(Content::Broken, span)?
            }
        };
        self.place(id, span)
    }

    fn begin(&mut self, span: Span, anchor: usize, kind: OpenKind) {
        self.open.push(Open { start: span.start, anchor, kind });
    }

    fn end(&mut self, end: Span) -> Result<(), Stop> {
        // The parser balances starts and ends.
        let Some(Open { start, anchor, kind }) = self.open.pop() else { return Err(Stop) };
        let (content, last) = match kind {
            OpenKind::List(items) => {
                let last = items.last().map(|item| item.written.end);
                (Content::List(items), last)
            }
            OpenKind::Map { entries, merges, .. } => {
                let ends = entries.iter().map(|e| e.value.written.end.max(e.key_span.end));
                let last = ends.chain(merges.iter().map(|(_, c)| c.written.end)).max();
                (self.merge(entries, merges)?, last)
            }
        };
        // A block's end event comes at the next token, which may be many lines further down; a
        // flow collection's covers its bracket.
        let end = if end.is_empty() { last.unwrap_or(end.end).max(start) } else { end.end };
        let span = Span { start, end };
        let id = self.add(content, span)?;
        self.name(anchor, Some(id));
        self.place(id, span)
    }

    /// Puts a finished value where it belongs.
    fn place(&mut self, id: NodeId, written: Span) -> Result<(), Stop> {
        let child = Child { node: id, written };
        let Some(top) = self.open.last_mut() else {
            self.root = Some(id);
            return Ok(());
        };
        match &mut top.kind {
            OpenKind::List(items) => items.push(child),
            OpenKind::Map { entries, merges, key } => match key.take() {
                None => {
                    *key = Some(match &self.nodes[id.0].content {
                        Content::Scalar { text, style } => Key {
                            text: text.as_str().into(),
                            span: written,
                            plain: *style == Style::Plain,
                            sound: true,
                        },
                        Content::Broken => {
                            Key { text: "".into(), span: written, plain: false, sound: false }
                        }
                        Content::List(_) | Content::Map { .. } => {
                            let message = "a list or mapping cannot be the name of a field";
                            let help = "write a name in front of the colon; quote texts that \
                                        begin with [ or {";
                            let problem = Problem::error(Code::WrongType, written, message);
                            self.problems.push(problem.help(help));
                            Key { text: "".into(), span: written, plain: false, sound: false }
                        }
                    });
                }
                Some(Key { sound: false, .. }) => {}
                Some(key) if key.plain && &*key.text == "<<" => {
                    if let Some((first, _)) = merges.first() {
                        let problem =
                            Problem::error(Code::Duplicate, key.span, "a second merge key \"<<\"")
                                .note(*first, "the first one is here")
                                .help("write one merge key with a list: <<: [*first, *second]");
                        self.problems.push(problem);
                    }
                    merges.push((key.span, child));
                }
                Some(key) => {
                    let Key { text, span, .. } = key;
                    entries.push(Entry { key: text, key_span: span, value: child });
                }
            },
        }
        Ok(())
    }

    /// A mapping's own entries, then those of its merge keys that are not overridden.
    fn merge(&mut self, own: Vec<Entry>, merges: Vec<(Span, Child)>) -> Result<Content, Stop> {
        let mut known: HashMap<Rc<str>, Span> = HashMap::new();
        let mut entries = Vec::with_capacity(own.len());
        for entry in own {
            if let Some(first) = known.get(&entry.key) {
                let message = match redact::shown_key(&entry.key) {
                    Some(key) => format!("{key:?} is there twice"),
                    None => "this field is there twice".to_owned(),
                };
                let problem = Problem::error(Code::Duplicate, entry.key_span, message)
                    .note(*first, "the first one is here")
                    .help("remove one of the two");
                self.problems.push(problem);
                continue;
            }
            known.insert(Rc::clone(&entry.key), entry.key_span);
            entries.push(entry);
        }
        let mut complete = true;
        for (_, value) in merges {
            let sources = match &self.nodes[value.node.0].content {
                Content::List(items) => items.clone(),
                Content::Map { .. } | Content::Scalar { .. } | Content::Broken => vec![value],
            };
            for source in sources {
                let taken = match &self.nodes[source.node.0].content {
                    Content::Map { entries, complete: whole } => {
                        complete &= whole;
                        entries.clone()
                    }
                    Content::Broken => {
                        complete = false;
                        continue;
                    }
                    Content::List(_) | Content::Scalar { .. } => {
                        let message = "only mappings can be merged";
                        let help = "write <<: *name, or <<: [*first, *second] for several";
                        let problem = Problem::error(Code::WrongType, source.written, message);
                        self.problems.push(problem.help(help));
                        complete = false;
                        continue;
                    }
                };
                self.merged = self.merged.saturating_add(taken.len());
                if self.merged > MERGED_ENTRIES_MAX {
                    let message =
                        format!("the merge keys take over more than {MERGED_ENTRIES_MAX} entries");
                    let help = "merge only what the machine types really have in common";
                    let problem = Problem::error(Code::Limit, source.written, message);
                    self.problems.push(problem.help(help));
                    return Err(Stop);
                }
                for entry in taken {
                    if !known.contains_key(&entry.key) {
                        known.insert(Rc::clone(&entry.key), entry.key_span);
                        entries.push(entry);
                    }
                }
            }
        }
        Ok(Content::Map { entries, complete })
    }
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
