//! Lines of bounded length from a stream of bytes that somebody else controls.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::time::{Instant, sleep_until};

/// What was read.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// A line without its line feed.
    Text(Vec<u8>),
    /// A line longer than the bound; it was skipped.
    TooLong,
}

/// Reads lines of at most `len_max` bytes and holds at most that much.
#[derive(Debug)]
pub struct BoundedLines<R> {
    reader: BufReader<R>,
    line: Vec<u8>,
    skipping: bool,
    len_max: usize,
}

impl<R: AsyncRead + Unpin> BoundedLines<R> {
    /// Lines of `reader`. `buffer_len`: how many bytes are read at a time.
    pub fn new(reader: R, len_max: usize, buffer_len: usize) -> Self {
        let reader = BufReader::with_capacity(buffer_len, reader);
        Self { reader, line: Vec::new(), skipping: false, len_max }
    }

    /// The next line; `None` at the end. What follows the last line feed is dropped.
    ///
    /// Dropping the future loses nothing.
    ///
    /// # Errors
    /// The reader's own.
    pub async fn next(&mut self) -> io::Result<Option<Line>> {
        loop {
            let bytes = self.reader.fill_buf().await?;
            if bytes.is_empty() {
                return Ok(None);
            }
            let end = bytes.iter().position(|b| *b == b'\n');
            let part = &bytes[..end.unwrap_or(bytes.len())];
            if self.line.len() + part.len() > self.len_max {
                self.skipping = true;
                self.line = Vec::new();
            } else if !self.skipping {
                self.line.extend_from_slice(part);
            }
            let used = part.len() + usize::from(end.is_some());
            self.reader.consume(used);
            if end.is_some() {
                let line = std::mem::take(&mut self.line);
                let skipped = std::mem::take(&mut self.skipping);
                return Ok(Some(if skipped { Line::TooLong } else { Line::Text(line) }));
            }
        }
    }
}

/// A rate that somebody who is not trusted is read at: beyond it, he has to wait.
#[derive(Debug)]
pub struct Pace {
    share: Duration,
    burst: u32,
    /// Each line moves this forward by its share of a second.
    allowed_at: Instant,
}

impl Pace {
    /// As many lines a second in the long run, and as many at once before that counts.
    pub fn new(per_s: u32, burst: u32) -> Self {
        let share = Duration::from_secs(1) / per_s.max(1);
        Self { share, burst, allowed_at: Instant::now() }
    }

    /// Counts a line, and waits where there were too many.
    pub async fn keep(&mut self) {
        self.allowed_at = self.allowed_at.max(Instant::now()) + self.share;
        // Before the clock began: certainly not ahead.
        if let Some(at) = self.allowed_at.checked_sub(self.share * self.burst) {
            sleep_until(at).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn all(bytes: &[u8], len_max: usize, buffer_len: usize) -> Vec<Line> {
        let mut lines = BoundedLines::new(bytes, len_max, buffer_len);
        let mut read = Vec::new();
        while let Some(line) = lines.next().await.expect("reading memory") {
            read.push(line);
        }
        read
    }

    #[tokio::test]
    async fn long_lines_are_skipped_and_the_next_one_is_whole() {
        let text = |text: &str| Line::Text(text.as_bytes().to_vec());
        for buffer_len in [1, 2, 3, 64] {
            let lines = all(b"ab\n\nabcde\nabcdef\nxyz\nhalf", 5, buffer_len).await;
            let expected = [text("ab"), text(""), text("abcde"), Line::TooLong, text("xyz")];
            assert_eq!(lines, expected, "with a buffer of {buffer_len}");
        }
    }
}
