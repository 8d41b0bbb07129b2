//! What a guest may send to the operator's own terminal in `forrest shell`.
//!
//! A shell has to be able to move the cursor, so unlike [`super::neutral`] this lets control sequences
//! through. Held back is what reaches beyond the screen: control strings (clipboard, window title,
//! device control) and sequences whose answers the terminal would type, of which the operator's own
//! shell might get the rest after the end of the session. The question for the cursor's position
//! passes: `resize` asks it.

use super::sequences::{Piece, Scanner};

/// The guard, with what the guest left switched on.
#[derive(Debug, Default)]
pub struct Guard {
    scanner: Scanner,
    alternate_screen: bool,
}

impl Guard {
    /// Takes the guest's next bytes and adds what may pass to `out`.
    pub fn feed(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let Self { scanner, alternate_screen } = self;
        scanner.feed(bytes, |piece| pass(piece, alternate_screen, out));
    }

    /// What brings the terminal back to where the guest may have moved it from.
    pub fn farewell(&self) -> Vec<u8> {
        // Single characters, character set, colours, cursor, mouse and paste reports.
        let mut bytes = b"\x0f\x1b(B\x1b[0m\x1b[?25h\x1b[?1l\x1b>\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1004l\x1b[?1006l\x1b[?2004l".to_vec();
        if self.alternate_screen {
            bytes.extend(b"\x1b[?1049l");
        }
        bytes
    }
}

fn pass(piece: Piece<'_>, alternate_screen: &mut bool, out: &mut Vec<u8>) {
    match piece {
        // C1 controls in UTF-8 are sequences in disguise.
        Piece::Text(c) if c.is_control() => {}
        Piece::Text(c) => out.extend(c.encode_utf8(&mut [0; 4]).as_bytes()),
        // ENQ makes terminals send their answerback message.
        Piece::Control(0x05) => {}
        Piece::Control(byte) => out.push(byte),
        Piece::Sequence(bytes) => {
            match bytes {
                b"\x1b[?1049h" | b"\x1b[?1047h" | b"\x1b[?47h" => *alternate_screen = true,
                b"\x1b[?1049l" | b"\x1b[?1047l" | b"\x1b[?47l" => *alternate_screen = false,
                _ => {}
            }
            if !asks(bytes) {
                out.extend(bytes);
            }
        }
        Piece::String(_) | Piece::Broken(_) => {}
    }
}

/// Whether the terminal would answer with more than the cursor's position or its own kind, or the
/// sequence works on the window.
fn asks(sequence: &[u8]) -> bool {
    match sequence {
        // XTWINOPS; DECREQTPARM, DECRQCRA and relatives; DECRQM, XTSMGRAPHICS.
        [b'\x1b', b'[', .., b't' | b'x' | b'y'] => true,
        [b'\x1b', b'[', middle @ .., b'p' | b'w'] => {
            middle.contains(&b'$') || middle.contains(&b'\'')
        }
        [b'\x1b', b'[', b'?', .., b'S'] => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn guarded(bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        Guard::default().feed(bytes, &mut out);
        out
    }

    #[test]
    fn a_shell_works_as_usual() {
        for bytes in [
            &b"root@guest:~# ls\r\n"[..],
            b"\x1b[0;34mdir\x1b[0m",
            b"\x1b[2J\x1b[H",
            b"\x1b[6n",
            "Gr\u{fc}\u{df}e\x08 \x08".as_bytes(),
        ] {
            assert_eq!(guarded(bytes), bytes);
        }
    }

    #[test]
    fn clipboard_titles_and_questions_do_not_pass() {
        for bytes in [
            &b"\x1b]52;c;ZXZpbA==\x07"[..],
            b"\x1b]0;title\x1b\\",
            b"\x1b[21t",
            b"\x1bP$qm\x1b\\",
            b"\x1b[?1$p",
            b"\x05",
            "\u{9d}52;c;x\u{9c}".as_bytes(),
        ] {
            let out = guarded(bytes);
            assert!(out.iter().all(|b| (0x20..0x7f).contains(b)), "{out:?} came through");
        }
    }

    #[test]
    fn the_screen_is_given_back() {
        let mut guard = Guard::default();
        guard.feed(b"\x1b[?1049h", &mut Vec::new());
        assert!(guard.farewell().ends_with(b"\x1b[?1049l"));
        guard.feed(b"\x1b[?1049l", &mut Vec::new());
        assert!(!guard.farewell().ends_with(b"\x1b[?1049l"));
    }

    proptest! {
        #[test]
        fn no_control_string_ever_comes_through(bytes in proptest::collection::vec(
            prop_oneof![Just(0x1b), Just(b']'), Just(b'P'), Just(b'['), Just(b'\\'), any::<u8>()],
            0..200,
        )) {
            let out = guarded(&bytes);
            let mut again = Scanner::default();
            let mut strings = 0;
            again.feed(&out, |piece| strings += usize::from(matches!(piece, Piece::String(_))));
            prop_assert_eq!(strings, 0);
            prop_assert!(!out.windows(2).any(|pair| matches!(pair, [0x1b, b']' | b'P' | b'X' | b'^' | b'_'])));
        }
    }
}
