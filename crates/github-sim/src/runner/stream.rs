//! What comes from a runner that runs a job: what its steps print, and between that the runner's own
//! words, each on a line that begins with a mark.

/// The longest line of the runner itself, in bytes.
const MAX_WORDS: usize = 256;

/// A piece of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Something that a step printed.
    Output(Vec<u8>),
    /// Something that the runner said.
    Words(String),
}

/// Takes the stream apart, however it is cut into portions.
#[derive(Debug)]
pub(crate) struct Splitter {
    mark: Vec<u8>,
    rest: Vec<u8>,
}

impl Splitter {
    pub(crate) fn new(nonce: &str) -> Self {
        Self { mark: format!("\x1e{nonce} ").into_bytes(), rest: Vec::new() }
    }

    /// Takes the next portion. What could still become a mark is held back.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Vec<Piece> {
        self.rest.extend_from_slice(bytes);
        let mut pieces = Vec::new();
        loop {
            let Some(start) = find(&self.rest, &self.mark) else {
                let keep = held_back(&self.rest, &self.mark);
                let held = self.rest.split_off(self.rest.len() - keep);
                push_output(&mut pieces, std::mem::replace(&mut self.rest, held));
                return pieces;
            };
            let words = start + self.mark.len();
            match self.rest[words..].iter().position(|b| *b == b'\n') {
                Some(len) => {
                    let text = String::from_utf8_lossy(&self.rest[words..words + len]).into_owned();
                    let tail = self.rest.split_off(words + len + 1);
                    let mut before = std::mem::replace(&mut self.rest, tail);
                    before.truncate(start);
                    push_output(&mut pieces, before);
                    pieces.push(Piece::Words(text));
                }
                None => {
                    // Its end has not come; a "line" without an end is none of the runner's.
                    let open = self.rest.split_off(start);
                    push_output(&mut pieces, std::mem::replace(&mut self.rest, open));
                    if self.rest.len() > MAX_WORDS {
                        push_output(&mut pieces, std::mem::take(&mut self.rest));
                    }
                    return pieces;
                }
            }
        }
    }
}

fn push_output(pieces: &mut Vec<Piece>, bytes: Vec<u8>) {
    if !bytes.is_empty() {
        pieces.push(Piece::Output(bytes));
    }
}

fn find(bytes: &[u8], mark: &[u8]) -> Option<usize> {
    bytes.windows(mark.len()).position(|window| window == mark)
}

/// How many bytes at the end are the beginning of a mark.
fn held_back(bytes: &[u8], mark: &[u8]) -> usize {
    (1..mark.len().min(bytes.len() + 1))
        .rev()
        .find(|len| bytes.ends_with(&mark[..*len]))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_found_however_the_stream_is_cut() {
        let stream = b"one\n\x1eabc step 0 begins\ntwo\x1e\x1eab\x1eabc done success\nthree";
        for cut in 1..=stream.len() {
            let mut splitter = Splitter::new("abc");
            let (mut output, mut words) = (Vec::new(), Vec::new());
            for portion in stream.chunks(cut) {
                for piece in splitter.feed(portion) {
                    match piece {
                        Piece::Output(bytes) => output.extend(bytes),
                        Piece::Words(text) => words.push(text),
                    }
                }
            }
            assert_eq!(output, b"one\ntwo\x1e\x1eabthree", "cut every {cut}");
            assert_eq!(words, ["step 0 begins", "done success"], "cut every {cut}");
        }
    }

    #[test]
    fn a_line_without_end_is_output() {
        let mut splitter = Splitter::new("abc");
        let mut seen = 0;
        for portion in [b"\x1eabc ".as_slice(), &[b'x'; 1000]] {
            for piece in splitter.feed(portion) {
                assert!(matches!(&piece, Piece::Output(_)), "{piece:?}");
                seen += 1;
            }
        }
        assert_eq!(seen, 1);
        assert!(splitter.rest.is_empty());
    }
}
