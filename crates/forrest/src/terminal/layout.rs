//! Text in columns: how wide it is, how it is shortened, where it is broken into lines.

use std::io::IsTerminal;

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// The narrowest width that is laid out for; on something narrower, lines wrap by themselves.
const WIDTH_MIN: usize = 44;
/// The width where nobody says how wide the output is: nothing is cut for a pipe.
const WIDTH_UNLIMITED: usize = 10_000;

/// How many columns the standard output has: `COLUMNS` where it is set, else the terminal's own
/// width, else as good as no limit.
pub fn output_width() -> usize {
    let stated = std::env::var("COLUMNS").ok().and_then(|text| text.parse::<usize>().ok());
    let width = stated.or_else(|| output_size().map(|(columns, _)| columns));
    width.map_or(WIDTH_UNLIMITED, |width| width.max(WIDTH_MIN))
}

/// The terminal's columns and rows, where the standard output is one.
pub fn output_size() -> Option<(usize, usize)> {
    let stdout = std::io::stdout();
    if !stdout.is_terminal() {
        return None;
    }
    let size = rustix::termios::tcgetwinsize(&stdout).ok()?;
    (size.ws_col > 0 && size.ws_row > 0)
        .then(|| (usize::from(size.ws_col), usize::from(size.ws_row)))
}

/// How many columns the text takes.
pub fn width(text: &str) -> usize {
    text.width()
}

/// The text in at most `columns` columns, with `…` at the end where it was cut.
pub fn shorten(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    let mut short = head(text, columns.saturating_sub(1)).to_owned();
    if columns > 0 {
        short.push('…');
    }
    short
}

/// The text in at most `columns` columns, with `…` in the middle where it was cut: for names whose
/// end tells them apart.
pub fn shorten_middle(text: &str, columns: usize) -> String {
    let all = width(text);
    if all <= columns || columns < 3 {
        return shorten(text, columns);
    }
    let left = columns / 3;
    let begin = head(text, left);
    let room = columns - 1 - width(begin);
    let mut end = text;
    while width(end) > room {
        let first = end.chars().next().map_or(0, char::len_utf8);
        end = &end[first..];
    }
    format!("{begin}…{end}")
}

/// As much of the text's beginning as fits.
fn head(text: &str, columns: usize) -> &str {
    let mut used = 0;
    for (at, c) in text.char_indices() {
        used += c.width().unwrap_or(0);
        if used > columns {
            return &text[..at];
        }
    }
    text
}

/// The text with spaces behind it up to `columns` columns.
pub fn pad(text: &str, columns: usize) -> String {
    format!("{text}{}", " ".repeat(columns.saturating_sub(width(text))))
}

/// The text with spaces before it up to `columns` columns.
pub fn pad_left(text: &str, columns: usize) -> String {
    format!("{}{text}", " ".repeat(columns.saturating_sub(width(text))))
}

/// The text in lines of at most `columns` columns, broken between words where that is possible.
pub fn wrap(text: &str, columns: usize) -> Vec<String> {
    let columns = columns.max(1);
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        let mut word = word;
        if !line.is_empty() && width(&line) + 1 + width(word) > columns {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        while width(&line) + width(word) > columns {
            let room = columns - width(&line);
            let part = head(word, room);
            // A character that is wider than the line still has to go somewhere.
            let part = if part.is_empty() { &word[..first_len(word)] } else { part };
            line.push_str(part);
            word = &word[part.len()..];
            lines.push(std::mem::take(&mut line));
        }
        line.push_str(word);
    }
    if !line.is_empty() {
        lines.push(line);
    }
    lines
}

fn first_len(text: &str) -> usize {
    text.chars().next().map_or(0, char::len_utf8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_keep_their_end() {
        let short = shorten_middle("forrest-build-abcdefghijklmnop", 20);
        assert_eq!(short, "forres…defghijklmnop");
        assert_eq!(shorten_middle("short", 20), "short");
    }

    #[test]
    fn text_is_broken_between_words() {
        assert_eq!(wrap("one two three", 8), ["one two", "three"]);
        assert_eq!(wrap("abcdefghij", 4), ["abcd", "efgh", "ij"]);
        assert!(wrap("  ", 4).is_empty());
    }

    proptest! {
        #[test]
        fn nothing_is_wider_than_asked(text in "[a-z 测ü]{0,60}", columns in 2_usize..40) {
            prop_assert!(width(&shorten(&text, columns)) <= columns);
            prop_assert!(width(&shorten_middle(&text, columns)) <= columns);
            let lines = wrap(&text, columns);
            prop_assert!(lines.iter().all(|line| width(line) <= columns), "{lines:?}");
            let letters = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<String>();
            prop_assert_eq!(letters(&lines.concat()), letters(&text));
        }
    }
}
