//! Colours, where they are wanted.

use std::io::IsTerminal;

/// Adds colours, or nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paint(bool);

impl Paint {
    /// No colours.
    #[cfg(test)]
    pub const PLAIN: Self = Self(false);

    /// Colours on this stream if it is a terminal that can show them and `NO_COLOR` is not set.
    pub fn for_stream(stream: &impl IsTerminal) -> Self {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self(stream.is_terminal() && !set("NO_COLOR") && !dumb)
    }

    /// Whether there are colours.
    pub fn is_on(self) -> bool {
        self.0
    }

    fn sgr(self, code: &str, text: &str) -> String {
        if self.0 && !text.is_empty() {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    /// For headings.
    pub fn bold(self, text: &str) -> String {
        self.sgr("1", text)
    }

    /// For what matters less.
    pub fn dim(self, text: &str) -> String {
        self.sgr("2", text)
    }

    /// For what went well.
    pub fn green(self, text: &str) -> String {
        self.sgr("32", text)
    }

    /// For what needs a look.
    pub fn yellow(self, text: &str) -> String {
        self.sgr("33", text)
    }

    /// For what went wrong.
    pub fn red(self, text: &str) -> String {
        self.sgr("1;31", text)
    }
}
