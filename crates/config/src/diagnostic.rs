//! What is wrong with a configuration, where, and what to write instead; as text and as JSON.
//!
//! A diagnostic is complete in itself: it carries the source line that it shows, with every secret
//! in it already covered, so it may be logged, printed and sent anywhere.

use std::fmt::{self, Write as _};
use std::path::PathBuf;

use serde::Serialize;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The configuration cannot be used.
    Error,
    /// It can be used, but is probably not what is meant.
    Warning,
}

/// What kind of problem it is; stable, for programs that read the JSON form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// A file cannot be read, or is missing.
    File,
    /// A file that holds a secret can be read by everyone.
    Permissions,
    /// Not YAML, or YAML that is not used here.
    Syntax,
    /// The file asks for more than a stated limit.
    Limit,
    /// A field that does not exist.
    UnknownField,
    /// A field that must be there.
    MissingField,
    /// The same key, tag or label twice.
    Duplicate,
    /// A list where a text belongs, and so on.
    WrongType,
    /// The right type, but not a possible value.
    BadValue,
    /// `base_machine` names nothing, or leads back to itself; or there is no base at all.
    Base,
    /// A machine type that no run of could ever start on this host.
    NeverRuns,
    /// Two settings that exclude each other.
    Conflict,
    /// A setting that has no effect.
    Ignored,
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "file",
            Self::Permissions => "permissions",
            Self::Syntax => "syntax",
            Self::Limit => "limit",
            Self::UnknownField => "unknown-field",
            Self::MissingField => "missing-field",
            Self::Duplicate => "duplicate",
            Self::WrongType => "wrong-type",
            Self::BadValue => "bad-value",
            Self::Base => "base",
            Self::NeverRuns => "never-runs",
            Self::Conflict => "conflict",
            Self::Ignored => "ignored",
        })
    }
}

/// A place in a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Location {
    /// The file, as it was named when it was loaded.
    pub file: PathBuf,
    /// The line, from 1.
    pub line: u32,
    /// The column in characters, from 1.
    pub column: u32,
    /// The source line as shown: secrets covered, control characters replaced, shortened where it
    /// is very long.
    pub text: String,
    /// How many characters of `text` come before the place.
    pub caret: u32,
    /// How many characters the place covers, at least 1.
    pub width: u32,
}

/// Something that helps to understand a diagnostic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Note {
    /// What there is to know.
    pub message: String,
    /// Where.
    pub location: Option<Location>,
}

/// One finding in a configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// What kind of problem it is.
    pub code: Code,
    /// What is wrong, as a lower-case sentence without a full stop.
    pub message: String,
    /// The field's full name (`repositories.owner.repository.machines.build.ram`), where it is one.
    pub field: Option<String>,
    /// Where.
    pub location: Option<Location>,
    /// Places that belong to it.
    pub notes: Vec<Note>,
    /// What to write or do instead.
    pub help: Option<String>,
}

/// What a terminal would act on is replaced: words of the file can be part of a message or of a guess.
fn visible(text: impl Into<String>) -> String {
    let mut text = text.into();
    if text.contains(char::is_control) {
        text = text.replace(char::is_control, "\u{fffd}");
    }
    text
}

impl Note {
    /// Something to know, and where.
    pub fn new(message: impl Into<String>, location: Option<Location>) -> Self {
        Self { message: visible(message), location }
    }
}

/// SGR sequences, or nothing.
struct Paint(bool);

impl Paint {
    fn on(&self, sgr: &'static str) -> &'static str {
        if self.0 { sgr } else { "" }
    }

    fn bold(&self) -> &'static str {
        self.on("\x1b[1m")
    }

    fn blue(&self) -> &'static str {
        self.on("\x1b[1;34m")
    }

    fn severity(&self, severity: Severity) -> &'static str {
        self.on(match severity {
            Severity::Error => "\x1b[1;31m",
            Severity::Warning => "\x1b[1;33m",
        })
    }

    fn off(&self) -> &'static str {
        self.on("\x1b[0m")
    }
}

impl Diagnostic {
    /// A finding without a place.
    pub fn new(severity: Severity, code: Code, message: impl Into<String>) -> Self {
        Self {
            severity,
            code,
            message: visible(message),
            field: None,
            location: None,
            notes: Vec::new(),
            help: None,
        }
    }

    /// Adds what to write or do instead.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(visible(help));
        self
    }

    /// Adds the place.
    #[must_use]
    pub fn at(mut self, location: Option<Location>) -> Self {
        self.location = location;
        self
    }

    /// Adds the field's full name.
    #[must_use]
    pub fn field(mut self, field: impl Into<String>) -> Self {
        self.field = Some(visible(field));
        self
    }

    /// Whether it makes the configuration unusable.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// The finding as text for a terminal or a log, several lines with a line break at the end.
    pub fn render(&self, colour: bool) -> String {
        let paint = Paint(colour);
        let mut out = String::new();
        let label = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        self.write(&mut out, &paint, label);
        out
    }

    fn write(&self, out: &mut String, paint: &Paint, label: &str) {
        // Writing to a String cannot fail.
        let severity = paint.severity(self.severity);
        let (bold, blue, off) = (paint.bold(), paint.blue(), paint.off());
        let _ = writeln!(out, "{severity}{label}{off}{bold}: {}{off}", self.message);
        let lines =
            self.location.iter().chain(self.notes.iter().filter_map(|n| n.location.as_ref()));
        let gutter = lines.map(|l| l.line.to_string().len()).max().unwrap_or(1);
        if let Some(location) = &self.location {
            write_location(out, paint, location, gutter, severity);
        }
        if let Some(field) = &self.field {
            let _ = writeln!(out, "{:gutter$} {blue}={off} in {field}", "");
        }
        for note in &self.notes {
            match &note.location {
                Some(location) => {
                    let _ = writeln!(out, "{:gutter$} {blue}={off} note: {}:", "", note.message);
                    write_location(out, paint, location, gutter, paint.blue());
                }
                None => {
                    let _ = writeln!(out, "{:gutter$} {blue}={off} note: {}", "", note.message);
                }
            }
        }
        if let Some(help) = &self.help {
            let _ = writeln!(out, "{:gutter$} {blue}={off} {bold}help:{off} {help}", "");
        }
    }
}

fn write_location(
    out: &mut String,
    paint: &Paint,
    location: &Location,
    gutter: usize,
    caret: &'static str,
) {
    let (blue, off) = (paint.blue(), paint.off());
    let Location { file, line, column, text, .. } = location;
    let _ = writeln!(out, "{:gutter$}{blue}-->{off} {}:{line}:{column}", "", file.display());
    let _ = writeln!(out, "{:gutter$} {blue}|{off}", "");
    let _ = writeln!(out, "{blue}{line:gutter$} |{off} {text}");
    let indent = usize::try_from(location.caret).unwrap_or(0);
    let carets = "^".repeat(usize::try_from(location.width).unwrap_or(1).max(1));
    let _ = writeln!(out, "{:gutter$} {blue}|{off} {:indent$}{caret}{carets}{off}", "", "");
}

/// One line: place, severity, message. [`Diagnostic::render`] shows everything.
impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Location { file, line, column, .. }) = &self.location {
            write!(f, "{}:{line}:{column}: ", file.display())?;
        }
        f.write_str(match self.severity {
            Severity::Error => "error: ",
            Severity::Warning => "warning: ",
        })?;
        f.write_str(&self.message)
    }
}

/// Every finding as text, with an empty line between them.
pub fn render_all(diagnostics: &[Diagnostic], colour: bool) -> String {
    diagnostics.iter().map(|d| d.render(colour)).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Diagnostic {
        let location = Location {
            file: "forrest.yaml".into(),
            line: 12,
            column: 3,
            text: "  rma: 1G".into(),
            caret: 2,
            width: 3,
        };
        Diagnostic::new(Severity::Error, Code::UnknownField, "there is no field \"rma\" here")
            .at(Some(location))
            .field("host")
            .help("did you mean \"ram\"?")
    }

    #[test]
    fn text_shows_line_caret_and_help() {
        let expected = "\
error: there is no field \"rma\" here
  --> forrest.yaml:12:3
   |
12 |   rma: 1G
   |   ^^^
   = in host
   = help: did you mean \"ram\"?
";
        assert_eq!(sample().render(false), expected);
    }

    #[test]
    fn colour_adds_nothing_but_escape_sequences() {
        let coloured = sample().render(true);
        assert!(coloured.contains("\x1b[1;31merror\x1b[0m"));
        let mut plain = coloured;
        for sgr in ["\x1b[1;31m", "\x1b[1;34m", "\x1b[1m", "\x1b[0m"] {
            plain = plain.replace(sgr, "");
        }
        assert_eq!(plain, sample().render(false));
    }

    #[test]
    fn json_has_stable_names() {
        let json = serde_json::to_value(sample()).expect("plain data");
        assert_eq!(json["severity"], "error");
        assert_eq!(json["code"], "unknown-field");
        assert_eq!(json["location"]["line"], 12);
        assert_eq!(json["location"]["file"], "forrest.yaml");
        assert_eq!(json["help"], "did you mean \"ram\"?");
    }
}
