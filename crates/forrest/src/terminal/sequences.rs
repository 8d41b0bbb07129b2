//! Takes what is written to a terminal apart: text, control characters, control sequences.
//!
//! Follows ECMA-48 as far as terminals agree on it. Whatever a stream does, what is held back is
//! bounded, and nothing is lost: a sequence that is not completed is reported as [`Piece::Broken`].

/// The longest control sequence, in bytes; real ones have a few dozen.
const SEQUENCE_LEN_MAX: usize = 128;
/// The longest control string (window titles and the like), in bytes.
const STRING_LEN_MAX: usize = 2048;

const ESC: u8 = 0x1b;
const BEL: u8 = 0x07;

/// A part of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Piece<'a> {
    /// A character of text; U+FFFD for bytes that are no UTF-8. May be a C1 control in UTF-8.
    Text(char),
    /// A C0 control character or DEL.
    Control(u8),
    /// A complete control sequence: `ESC [` … final byte, or `ESC` … final byte.
    Sequence(&'a [u8]),
    /// A complete control string, from `ESC ]`, `P`, `X`, `^` or `_` to its terminator.
    String(&'a [u8]),
    /// A sequence or string that was begun and not completed; starts with `ESC`.
    Broken(&'a [u8]),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    #[default]
    Ground,
    Escape,
    Csi,
    String,
    /// In a string, after `ESC`.
    StringEscape,
}

/// The state between two pieces of input.
#[derive(Debug, Default)]
pub(crate) struct Scanner {
    state: State,
    held: Vec<u8>,
    utf8: Vec<u8>,
}

impl Scanner {
    /// Takes bytes and hands out what they complete, in order.
    pub(crate) fn feed(&mut self, bytes: &[u8], mut out: impl FnMut(Piece<'_>)) {
        for byte in bytes {
            self.byte(*byte, &mut out);
        }
    }

    /// The end of the stream: hands out what was held back.
    pub(crate) fn finish(&mut self, mut out: impl FnMut(Piece<'_>)) {
        self.end_utf8(&mut out);
        if self.state != State::Ground {
            self.break_off(&mut out);
        }
    }

    fn byte(&mut self, byte: u8, out: &mut impl FnMut(Piece<'_>)) {
        match self.state {
            State::Ground => self.ground(byte, out),
            State::Escape => match byte {
                b'[' => self.hold(byte, State::Csi),
                b']' | b'P' | b'X' | b'^' | b'_' if self.held.len() == 1 => {
                    self.hold(byte, State::String);
                }
                0x20..=0x2f if self.held.len() < SEQUENCE_LEN_MAX => self.hold(byte, State::Escape),
                0x30..=0x7e => self.complete(byte, out),
                _ => self.break_at(byte, out),
            },
            State::Csi => match byte {
                0x20..=0x3f if self.held.len() < SEQUENCE_LEN_MAX => self.hold(byte, State::Csi),
                0x40..=0x7e => self.complete(byte, out),
                _ => self.break_at(byte, out),
            },
            State::String => match byte {
                BEL => self.complete_string(byte, out),
                ESC => self.hold(byte, State::StringEscape),
                // A string that swallows lines would hide them.
                b'\n' | b'\r' | 0x18 | 0x1a => self.break_at(byte, out),
                _ if self.held.len() >= STRING_LEN_MAX => self.break_at(byte, out),
                _ => self.hold(byte, State::String),
            },
            State::StringEscape => {
                if byte == b'\\' {
                    self.complete_string(byte, out);
                } else {
                    self.held.pop();
                    self.break_off(out);
                    self.byte(ESC, out);
                    self.byte(byte, out);
                }
            }
        }
    }

    fn ground(&mut self, byte: u8, out: &mut impl FnMut(Piece<'_>)) {
        if byte >= 0x80 {
            self.utf8.push(byte);
            self.take_utf8(out);
            return;
        }
        self.end_utf8(out);
        match byte {
            ESC => self.hold(byte, State::Escape),
            0x00..=0x1f | 0x7f => out(Piece::Control(byte)),
            _ => out(Piece::Text(char::from(byte))),
        }
    }

    /// Hands out what the bytes held so far prove.
    fn take_utf8(&mut self, out: &mut impl FnMut(Piece<'_>)) {
        while !self.utf8.is_empty() {
            let bad = match std::str::from_utf8(&self.utf8) {
                Ok(text) => {
                    text.chars().for_each(|c| out(Piece::Text(c)));
                    self.utf8.len()
                }
                Err(error) => match error.error_len() {
                    // More bytes may complete it.
                    None => return,
                    Some(len) => {
                        out(Piece::Text(char::REPLACEMENT_CHARACTER));
                        len
                    }
                },
            };
            self.utf8.drain(..bad);
        }
    }

    fn end_utf8(&mut self, out: &mut impl FnMut(Piece<'_>)) {
        if !self.utf8.is_empty() {
            self.utf8.clear();
            out(Piece::Text(char::REPLACEMENT_CHARACTER));
        }
    }

    fn hold(&mut self, byte: u8, state: State) {
        self.held.push(byte);
        self.state = state;
    }

    fn complete(&mut self, byte: u8, out: &mut impl FnMut(Piece<'_>)) {
        self.held.push(byte);
        out(Piece::Sequence(&self.held));
        self.reset();
    }

    fn complete_string(&mut self, byte: u8, out: &mut impl FnMut(Piece<'_>)) {
        self.held.push(byte);
        out(Piece::String(&self.held));
        self.reset();
    }

    fn break_off(&mut self, out: &mut impl FnMut(Piece<'_>)) {
        out(Piece::Broken(&self.held));
        self.reset();
    }

    /// What was held is no sequence; the byte stands for itself.
    fn break_at(&mut self, byte: u8, out: &mut impl FnMut(Piece<'_>)) {
        self.break_off(out);
        self.ground(byte, out);
    }

    fn reset(&mut self) {
        self.held.clear();
        self.state = State::Ground;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(bytes: &[u8]) -> Vec<String> {
        let mut list = Vec::new();
        let show = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace('\x1b', "^");
        let mut scanner = Scanner::default();
        let mut note = |piece: Piece<'_>| {
            list.push(match piece {
                Piece::Text(c) => format!("text {c}"),
                Piece::Control(byte) => format!("control {byte:02x}"),
                Piece::Sequence(bytes) => format!("sequence {}", show(bytes)),
                Piece::String(bytes) => format!("string {}", show(bytes)),
                Piece::Broken(bytes) => format!("broken {}", show(bytes)),
            });
        };
        scanner.feed(bytes, &mut note);
        scanner.finish(&mut note);
        list
    }

    #[test]
    fn sequences_are_told_from_text() {
        assert_eq!(pieces(b"a\x1b[0;32mb"), ["text a", "sequence ^[0;32m", "text b"]);
        assert_eq!(pieces(b"\x1b(B\x1bc"), ["sequence ^(B", "sequence ^c"]);
        assert_eq!(pieces("ü\t".as_bytes()), ["text ü", "control 09"]);
    }

    #[test]
    fn strings_end_at_either_terminator() {
        assert_eq!(pieces(b"\x1b]0;t\x07x"), ["string ^]0;t\x07", "text x"]);
        assert_eq!(pieces(b"\x1bPq\x1b\\x"), ["string ^Pq^\\", "text x"]);
    }

    #[test]
    fn what_is_not_completed_is_reported_and_the_rest_goes_on() {
        assert_eq!(pieces(b"\x1b]0;t\nx"), ["broken ^]0;t", "control 0a", "text x"]);
        assert_eq!(pieces(b"\x1b]a\x1b[1mx"), ["broken ^]a", "sequence ^[1m", "text x"]);
        assert_eq!(pieces(b"\x1b[1\x1b[2m"), ["broken ^[1", "sequence ^[2m"]);
        assert_eq!(pieces(b"\x1b"), ["broken ^"]);
        assert_eq!(pieces(b"\xff\xe2\x82"), ["text \u{fffd}", "text \u{fffd}"]);
    }

    #[test]
    fn what_is_held_back_is_bounded() {
        let mut scanner = Scanner::default();
        for start in [&b"\x1b]"[..], b"\x1b[", b"\x1b "] {
            scanner.feed(start, |_| {});
            for _ in 0..10_000 {
                scanner.feed(b" ", |_| {});
                assert!(scanner.held.len() <= STRING_LEN_MAX + 1);
            }
            scanner.finish(|_| {});
        }
    }
}
