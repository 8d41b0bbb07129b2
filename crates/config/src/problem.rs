//! A problem while a file is being read: what becomes a [`Diagnostic`] once everything is known.

use crate::diagnostic::{Code, Diagnostic, Note, Severity};
use crate::source::{Source, Span};

/// A finding whose places are still byte ranges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    severity: Severity,
    code: Code,
    span: Option<Span>,
    message: String,
    field: Option<String>,
    notes: Vec<(Span, String)>,
    help: Option<String>,
    /// Which machine type came by it through an anchor or a merge key.
    used_by: Option<(Span, String)>,
}

/// The most diagnostics that are reported for one file.
pub(crate) const DIAGNOSTICS_MAX: usize = 100;

impl Problem {
    fn new(severity: Severity, code: Code, span: Span, message: impl Into<String>) -> Self {
        Self {
            severity,
            code,
            span: Some(span),
            message: message.into(),
            field: None,
            notes: Vec::new(),
            help: None,
            used_by: None,
        }
    }

    pub(crate) fn error(code: Code, span: Span, message: impl Into<String>) -> Self {
        Self::new(Severity::Error, code, span, message)
    }

    pub(crate) fn warning(code: Code, span: Span, message: impl Into<String>) -> Self {
        Self::new(Severity::Warning, code, span, message)
    }

    /// A finding about the file as a whole.
    pub(crate) fn without_place(mut self) -> Self {
        self.span = None;
        self
    }

    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    pub(crate) fn note(mut self, span: Span, message: impl Into<String>) -> Self {
        self.notes.push((span, message.into()));
        self
    }

    pub(crate) fn field(mut self, field: impl Into<String>) -> Self {
        let field = field.into();
        self.field = (!field.is_empty()).then_some(field);
        self
    }

    pub(crate) fn used_by(mut self, span: Span, machine: impl Into<String>) -> Self {
        self.used_by = Some((span, machine.into()));
        self
    }

    pub(crate) fn span(&self) -> Option<Span> {
        self.span
    }

    fn same(&self, other: &Self) -> bool {
        (self.severity, self.code, self.span) == (other.severity, other.code, other.span)
            && self.message == other.message
    }

    fn into_diagnostic(self, source: &Source, others: usize) -> Diagnostic {
        let mut diagnostic = Diagnostic::new(self.severity, self.code, self.message)
            .at(self.span.map(|span| source.locate(span)));
        if let Some(field) = self.field {
            diagnostic = diagnostic.field(field);
        }
        if let Some(help) = self.help {
            diagnostic = diagnostic.help(help);
        }
        let note = |(span, message)| Note::new(message, Some(source.locate(span)));
        diagnostic.notes = self.notes.into_iter().map(note).collect();
        if let Some((span, machine)) = self.used_by {
            let message = match others {
                0 => format!("{machine} takes it over here"),
                1 => format!("{machine} and 1 more take it over, the first one here"),
                n => format!("{machine} and {n} more take it over, the first one here"),
            };
            diagnostic.notes.push(note((span, message)));
        }
        diagnostic
    }
}

/// Turns problems into diagnostics: in the order of the file, the same one in a shared snippet only
/// once, and not more than [`DIAGNOSTICS_MAX`], errors before warnings.
pub(crate) fn report(problems: Vec<Problem>, source: &Source) -> Vec<Diagnostic> {
    let mut distinct: Vec<(Problem, usize)> = Vec::new();
    let mut seen: std::collections::HashMap<(Severity, Code, Option<Span>), Vec<usize>> =
        std::collections::HashMap::new();
    for problem in problems {
        let bucket = seen.entry((problem.severity, problem.code, problem.span)).or_default();
        match bucket.iter().find(|at| distinct[**at].0.same(&problem)) {
            Some(at) => {
                let (first, others) = &mut distinct[*at];
                if first.used_by != problem.used_by {
                    *others += 1;
                }
            }
            None => {
                bucket.push(distinct.len());
                distinct.push((problem, 0));
            }
        }
    }
    distinct.sort_by_key(|(problem, _)| (problem.severity, problem.span));
    let left_out = distinct.len().saturating_sub(DIAGNOSTICS_MAX);
    distinct.truncate(DIAGNOSTICS_MAX);
    distinct.sort_by_key(|(problem, _)| problem.span);
    let mut diagnostics: Vec<Diagnostic> = distinct
        .into_iter()
        .map(|(problem, others)| problem.into_diagnostic(source, others))
        .collect();
    if left_out > 0 {
        let message = format!("{left_out} more findings are not shown");
        diagnostics.push(Diagnostic::new(Severity::Warning, Code::Limit, message));
    }
    diagnostics
}
