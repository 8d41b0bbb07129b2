//! Text of strangers, made harmless: what guests print, what jobs are called.
//!
//! Whoever opens a pull request chooses the job's name and owns the guest. A terminal would act on
//! escape sequences in it: hide lines, change the window, type on the operator's behalf.

pub use forrest_core::model::foreign_text::is_harmful;

use super::sequences::{Piece, Scanner};

/// What stands for a character that must not be shown.
const INSTEAD: char = char::REPLACEMENT_CHARACTER;

/// The text in one line, with nothing that a terminal would act on.
pub fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\n' | '\t' | '\r' => ' ',
            c if is_harmful(c) => INSTEAD,
            c => c,
        })
        .collect()
}

/// The text with its line breaks, and nothing else that a terminal would act on.
pub fn lines(text: &str) -> String {
    text.chars().map(|c| if c != '\n' && is_harmful(c) { INSTEAD } else { c }).collect()
}

/// JSON with every harmful character written as `\u….`: the same JSON, safe to look at.
pub fn json(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    let mut units = [0; 2];
    for c in text.chars() {
        // The line breaks between values are JSON's own; those in strings are escaped already.
        if c != '\n' && is_harmful(c) {
            for unit in c.encode_utf16(&mut units) {
                safe.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            safe.push(c);
        }
    }
    safe
}

/// A console's output as plain text, piece by piece: control sequences are left out, each line
/// break becomes one `\n`, and other control characters become U+FFFD.
#[derive(Debug, Default)]
pub struct Console {
    scanner: Scanner,
    /// A carriage return came; a line feed may follow.
    returned: bool,
}

impl Console {
    /// Takes the next bytes and adds what they show to `text`.
    pub fn feed(&mut self, bytes: &[u8], text: &mut String) {
        let Self { scanner, returned } = self;
        scanner.feed(bytes, |piece| show(piece, returned, text));
    }

    /// The end: adds what was held back.
    pub fn finish(&mut self, text: &mut String) {
        let Self { scanner, returned } = self;
        scanner.finish(|piece| show(piece, returned, text));
    }
}

fn show(piece: Piece<'_>, returned: &mut bool, text: &mut String) {
    if std::mem::take(returned) && piece != Piece::Control(b'\n') && piece != Piece::Control(b'\r')
    {
        // To overwrite a line is to hide it.
        text.push('\n');
    }
    match piece {
        Piece::Text(c) => text.push(if is_harmful(c) { INSTEAD } else { c }),
        Piece::Control(b'\r') => *returned = true,
        Piece::Control(b'\n') => text.push('\n'),
        Piece::Control(b'\t') => text.push('\t'),
        // Serial lines are full of them.
        Piece::Control(0) => {}
        Piece::Control(_) => text.push(INSTEAD),
        Piece::Sequence(_) | Piece::String(_) => {}
        Piece::Broken(bytes) => {
            let readable = String::from_utf8_lossy(bytes);
            text.extend(readable.chars().map(|c| if is_harmful(c) { INSTEAD } else { c }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn console(bytes: &[u8]) -> String {
        let mut text = String::new();
        let mut console = Console::default();
        console.feed(bytes, &mut text);
        console.finish(&mut text);
        text
    }

    #[test]
    fn colours_and_cursor_moves_are_left_out() {
        assert_eq!(console(b"[\x1b[0;32m  OK  \x1b[0m] Started\r\n"), "[  OK  ] Started\n");
        assert_eq!(console(b"\x1b]0;evil\x07\x1b[2J\x1b[Hhello"), "hello");
    }

    #[test]
    fn nothing_is_hidden_by_overwriting_or_by_an_endless_sequence() {
        assert_eq!(console(b"evil\rgood\n"), "evil\ngood\n");
        assert_eq!(console(b"a\r\r\nb"), "a\nb");
        assert_eq!(console(b"\x1b]0;hidden\nseen\n"), "\u{fffd}]0;hidden\nseen\n");
    }

    #[test]
    fn names_stay_in_their_line() {
        assert_eq!(one_line("a\nb\x1b[31mc\u{202e}d\u{9b}e"), "a b\u{fffd}[31mc\u{fffd}d\u{fffd}e");
        assert_eq!(one_line("Prüfung 测试"), "Prüfung 测试");
    }

    /// Bytes as a hostile guest would mix them.
    fn hostile() -> impl Strategy<Value = Vec<u8>> {
        let part = prop_oneof![
            Just(b"\x1b[".to_vec()),
            Just(b"\x1b]52;c;".to_vec()),
            Just(b"\x1b\\".to_vec()),
            Just(b"\x07".to_vec()),
            Just("\u{9b}31m".as_bytes().to_vec()),
            Just("\u{202e}".as_bytes().to_vec()),
            Just(b"0;31m\r\n".to_vec()),
            proptest::collection::vec(any::<u8>(), 0..8),
        ];
        proptest::collection::vec(part, 0..40).prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn nothing_harmful_comes_through(bytes in hostile()) {
            let text = console(&bytes);
            prop_assert!(text.chars().all(|c| !is_harmful(c) || c == '\n' || c == '\t'), "{text:?}");
            prop_assert_eq!(console(text.as_bytes()), text.clone(), "not stable");
            let name = one_line(&String::from_utf8_lossy(&bytes));
            prop_assert!(!name.chars().any(is_harmful), "{name:?}");
        }

        #[test]
        fn it_does_not_matter_how_the_bytes_are_cut(bytes in hostile(), at in any::<prop::sample::Index>()) {
            let (one, two) = bytes.split_at(at.index(bytes.len() + 1));
            let mut text = String::new();
            let mut neutral = Console::default();
            neutral.feed(one, &mut text);
            neutral.feed(two, &mut text);
            neutral.finish(&mut text);
            prop_assert_eq!(text, console(&bytes));
        }

        #[test]
        fn plain_text_is_left_alone(text in "[a-zA-Z0-9äöü测 .,:\n\t]*") {
            prop_assert_eq!(console(text.as_bytes()), text);
        }

        #[test]
        fn json_stays_the_same_json(text in any::<String>()) {
            let plain = serde_json::to_string_pretty(&[&text]).expect("JSON");
            let safe = json(&plain);
            prop_assert!(safe.chars().all(|c| !is_harmful(c) || c == '\n'));
            let back: Vec<String> = serde_json::from_str(&safe).expect("still JSON");
            prop_assert_eq!(&back[0], &text);
        }
    }
}
