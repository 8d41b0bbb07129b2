//! The text of a configuration file, and places in it.

use std::path::{Path, PathBuf};

use crate::diagnostic::Location;
use crate::redact::{self, Cover};

/// A range of bytes of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Span {
    /// Where it begins.
    pub start: usize,
    /// Where it ends, not included.
    pub end: usize,
}

impl Span {
    pub(crate) fn is_empty(self) -> bool {
        self.start >= self.end
    }

    pub(crate) fn contains(self, other: Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }
}

/// Where each line begins.
pub(crate) fn line_starts(text: &str) -> Vec<usize> {
    let breaks = text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(at, _)| at + 1);
    std::iter::once(0).chain(breaks).collect()
}

/// A text by lines.
pub(crate) struct Lines<'a> {
    pub text: &'a str,
    /// Where each line begins.
    pub starts: &'a [usize],
}

impl<'a> Lines<'a> {
    /// The line without its end; empty where there is none.
    pub(crate) fn get(&self, index: usize) -> &'a str {
        let start = self.starts.get(index).copied().unwrap_or(self.text.len());
        let end = self.starts.get(index + 1).copied().unwrap_or(self.text.len());
        self.text.get(start..end).unwrap_or_default().trim_end_matches(['\n', '\r'])
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &'a str> {
        (0..self.starts.len()).map(|index| self.get(index))
    }
}

/// How many characters of a long line are shown.
const SHOWN_MAX: usize = 160;

/// Longer lines are not shown at all, so that covering their secrets takes no time to speak of.
const LINE_MAX: usize = 4096;

/// How many characters are shown before the place that matters, where a line is shortened.
const SHOWN_BEFORE: usize = 60;

/// A configuration file's text.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    file: PathBuf,
    text: String,
    line_starts: Vec<usize>,
    secrets: Vec<Span>,
    /// Whether the text's structure is unknown.
    is_unsure: bool,
}

impl Source {
    pub(crate) fn new(file: &Path, text: String) -> Self {
        let line_starts = line_starts(&text);
        Self { file: file.to_owned(), text, line_starts, secrets: Vec::new(), is_unsure: false }
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Says which ranges hold secrets, for all locations asked for from now on.
    pub(crate) fn set_secrets(&mut self, secrets: Vec<Span>) {
        self.secrets = secrets;
    }

    /// Says that the text's structure is unknown, so that nothing is shown near a secret.
    pub(crate) fn set_unsure(&mut self) {
        self.is_unsure = true;
    }

    fn lines(&self) -> Lines<'_> {
        Lines { text: &self.text, starts: &self.line_starts }
    }

    /// Whether a range has no line break in it.
    pub(crate) fn is_on_one_line(&self, span: Span) -> bool {
        self.text.get(span.start..span.end).is_some_and(|text| !text.contains('\n'))
    }

    /// The place of a range: its first line, with the part of the range that is on it.
    pub(crate) fn locate(&self, span: Span) -> Location {
        let start = self.floor(span.start);
        let index = self.line_starts.partition_point(|s| *s <= start).saturating_sub(1);
        let line = self.lines().get(index);
        let line_start = self.line_starts.get(index).copied().unwrap_or(0);
        let chars = |from: usize, to: usize| {
            let (from, to) = (self.floor(from), self.floor(to));
            self.text.get(from..to).map_or(0, |t| t.chars().count())
        };
        let line_end = line_start + line.len();
        let column = chars(line_start, start.min(line_end));
        let width = chars(start, span.end.min(line_end)).max(1);
        let (text, caret, width) = if line.len() > LINE_MAX {
            (format!("(a line of {} bytes)", line.len()), 0, 1)
        } else {
            shorten(&self.covered(index, line_start), column, width)
        };
        Location {
            file: self.file.clone(),
            line: small(index + 1),
            column: small(column + 1),
            text,
            caret: small(caret),
            width: small(width),
        }
    }

    /// The line with its secrets covered.
    fn covered(&self, index: usize, line_start: usize) -> String {
        let line = self.lines().get(index);
        let mut cover = Cover::of_line(&self.lines(), index);
        if self.is_unsure && redact::is_near_a_secret(&self.lines(), index) {
            cover.hide(0, usize::MAX);
        }
        let line_end = line_start + line.len();
        for secret in self.secrets.iter().filter(|s| s.start < line_end && s.end > line_start) {
            let column = |at: usize| {
                let at = self.floor(at.clamp(line_start, line_end));
                self.text.get(line_start..at).map_or(0, |t| t.chars().count())
            };
            cover.hide(column(secret.start), column(secret.end));
        }
        cover.apply(line)
    }

    /// The last character boundary at or before a byte offset.
    fn floor(&self, at: usize) -> usize {
        let mut at = at.min(self.text.len());
        while !self.text.is_char_boundary(at) {
            at -= 1;
        }
        at
    }
}

fn small(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Cuts a window out of a long line. Returns the text, the caret's column and its width in it.
fn shorten(line: &str, column: usize, width: usize) -> (String, usize, usize) {
    let length = line.chars().count();
    if length <= SHOWN_MAX {
        return (line.trim_end().to_owned(), column, width);
    }
    let from = column.saturating_sub(SHOWN_BEFORE);
    let (lead, from) = if from == 0 { ("", 0) } else { ("...", from) };
    let window: String = line.chars().skip(from).take(SHOWN_MAX).collect();
    let trail = if from + SHOWN_MAX < length { "..." } else { "" };
    let caret = column - from + lead.len();
    let width = width.min((SHOWN_MAX + lead.len()).saturating_sub(caret)).max(1);
    (format!("{lead}{}{trail}", window.trim_end()), caret, width)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        Source::new(Path::new("f.yaml"), text.to_owned())
    }

    #[test]
    fn places_are_counted_in_characters_from_one() {
        let text = "a: 1\nbü: ä\r\nc: 3";
        let location = source(text).locate(Span { start: 10, end: 12 });
        assert_eq!((location.line, location.column, location.width), (2, 5, 1));
        assert_eq!(location.text, "bü: ä");
        let end = source(text).locate(Span { start: 99, end: 99 });
        assert_eq!((end.line, end.column, end.width), (3, 5, 1));
    }

    #[test]
    fn ranges_of_several_lines_are_shown_to_the_end_of_the_first() {
        let location = source("a:\n  - b\n").locate(Span { start: 0, end: 8 });
        assert_eq!((location.line, location.caret, location.width), (1, 0, 2));
    }

    #[test]
    fn long_lines_are_cut_around_the_place() {
        let text = format!("{}X{}", "a".repeat(500), "b".repeat(500));
        let location = source(&text).locate(Span { start: 500, end: 501 });
        assert_eq!(location.column, 501);
        assert_eq!(location.text.chars().nth(location.caret as usize), Some('X'));
        assert!(location.text.len() <= SHOWN_MAX + 6);
    }

    #[test]
    fn very_long_lines_are_not_shown() {
        let location = source(&"a".repeat(LINE_MAX + 1)).locate(Span { start: 500, end: 501 });
        assert_eq!((location.column, location.text.as_str()), (501, "(a line of 4097 bytes)"));
    }

    #[test]
    fn known_secrets_are_covered() {
        let mut source = source("a: &x hunter2\n");
        source.set_secrets(vec![Span { start: 6, end: 13 }]);
        assert_eq!(source.locate(Span { start: 0, end: 1 }).text, "a: &x *******");
    }

    #[test]
    fn empty_text_has_a_place() {
        assert_eq!(source("").locate(Span::default()).line, 1);
    }
}
