//! What the YAML parser objects to, in words for somebody who writes a configuration.

use granit_parser::{ErrorKind, ScanError};

use crate::diagnostic::Code;
use crate::problem::Problem;
use crate::source::Span;

/// A range of the parser as bytes of the text.
pub(crate) fn span(text: &str, span: &granit_parser::Span) -> Span {
    match span.byte_range() {
        Some(range) => Span { start: range.start, end: range.end.max(range.start) },
        None => {
            let start = nth(text, span.start.index());
            Span { start, end: nth(text, span.end.index()).max(start) }
        }
    }
}

fn nth(text: &str, index: usize) -> usize {
    text.char_indices().nth(index).map_or(text.len(), |(at, _)| at)
}

/// The parser's error as a located problem.
pub(crate) fn problem(text: &str, error: &ScanError) -> Problem {
    let marker = error.marker();
    let mut start =
        marker.byte_offset().unwrap_or_else(|| nth(text, marker.index())).min(text.len());
    let kind = error.kind();
    if is_tab(kind) {
        start = indenting_tab(text, start).unwrap_or(start);
    }
    let at = Span { start, end: start + 1 };
    let code =
        if matches!(kind, ErrorKind::RecursionLimitExceeded) { Code::Limit } else { Code::Syntax };
    Problem::error(code, at, format!("this is not YAML: {}", message(kind))).help(help(kind))
}

fn is_tab(kind: &ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::TabNotAllowed
            | ErrorKind::TabInBlockIndentation
            | ErrorKind::TabInIndentation
            | ErrorKind::TabInPlainScalar
            | ErrorKind::TabAtBlockScalarStart
    )
}

/// The first tab that indents a line, from the place on at which the parser was.
fn indenting_tab(text: &str, from: usize) -> Option<usize> {
    let before = text.get(..from)?;
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    let mut at = line_start;
    for line in text.get(line_start..)?.split_inclusive('\n') {
        let blank = line.len() - line.trim_start_matches([' ', '\t']).len();
        if let Some(tab) = line[..blank].find('\t').filter(|tab| at + tab >= from) {
            return Some(at + tab);
        }
        at += line.len();
    }
    None
}

fn message(kind: &ErrorKind) -> String {
    match kind {
        kind if is_tab(kind) => "there is a tab where YAML wants spaces".to_owned(),
        ErrorKind::MappingValueNotAllowed | ErrorKind::InvalidColonPlacement => {
            "a colon does not belong here".to_owned()
        }
        ErrorKind::SimpleKeyExpected | ErrorKind::ExpectedBlockMappingKey => {
            "a field's name with a colon is expected here".to_owned()
        }
        ErrorKind::UnclosedQuotedScalar => "a quoted text does not end".to_owned(),
        ErrorKind::UnclosedFlowCollection { open } => format!("this {open:?} is never closed"),
        ErrorKind::MismatchedFlowCollectionEnd { open, close } => {
            format!("a {open:?} is closed by {close:?}")
        }
        ErrorKind::RecursionLimitExceeded => "it is nested too deeply".to_owned(),
        // Not quoted: it may be the first character of a secret.
        ErrorKind::UnexpectedCharacter { .. } => {
            "a text without quotes cannot begin like this".to_owned()
        }
        kind => kind.to_string(),
    }
}

fn help(kind: &ErrorKind) -> &'static str {
    match kind {
        kind if is_tab(kind) => "replace the tab by spaces",
        ErrorKind::MappingValueNotAllowed
        | ErrorKind::InvalidColonPlacement
        | ErrorKind::UnexpectedCharacter { .. } => {
            "put texts with special characters in quotes, and check the indentation"
        }
        ErrorKind::SimpleKeyExpected
        | ErrorKind::ExpectedBlockMappingKey
        | ErrorKind::InvalidIndentation => {
            "write \"name: value\", and give all fields of one mapping the same indentation"
        }
        ErrorKind::UnclosedQuotedScalar
        | ErrorKind::InvalidTrailingSingleQuotedScalar
        | ErrorKind::InvalidTrailingDoubleQuotedScalar => "check the quotes on this line",
        ErrorKind::UnclosedFlowCollection { .. }
        | ErrorKind::MismatchedFlowCollectionEnd { .. }
        | ErrorKind::ExpectedFlowMappingSeparator
        | ErrorKind::ExpectedFlowSequenceSeparator => {
            "check the brackets and commas on this line and above it"
        }
        ErrorKind::ExpectedBlockSequenceEntry => {
            "put texts that begin with [ in quotes, such as \"[::1]:443\", and check the indentation"
        }
        ErrorKind::RecursionLimitExceeded => "no field of the configuration needs such depth",
        _ => "check this line and the one above it",
    }
}
