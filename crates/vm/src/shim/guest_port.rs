//! What the guest says on its virtio-serial port, and what it is told.
//!
//! Newline-delimited text. From the guest: `ready`, `time?`, `files?`, `runner-started`,
//! `runner-exited [CODE]`, `error TEXT`. To the guest: `go UNIX_TIME_NANOSECONDS`, once the job config is in
//! place, upon which the guest mounts `JOBDATA`; `time UNIX_TIME_NANOSECONDS`, at once, where it asks for
//! that. A guest that was just restored reads `go` a fifth of a second late: to set its clock, it had better
//! ask. `files [NAME=TEXT]...` is the answer to `files?`: what is on `JOBDATA`, for a guest that does not
//! want to wait until it has mounted that.
//!
//! The guest may be a stranger's: lines are bounded, and reading slows down to a fixed rate, beyond
//! which the guest itself has to wait.

use forrest_core::model::foreign_text::harmless;
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::mpsc;

use crate::lines::{BoundedLines, Line, Pace};

/// The longest line from the guest, in bytes.
pub const LINE_LEN_MAX: usize = 1 << 10;
/// How many lines a guest may send in the long run, a second.
pub const LINES_PER_S_MAX: u32 = 50;
/// How many lines a guest may send at once before the rate counts.
pub const LINES_BURST: u32 = 100;
/// The most characters that are kept of a guest's complaint.
pub const ERROR_LEN_MAX: usize = 300;
const READ_BUFFER_LEN: usize = 512;

/// Something that the guest said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestLine {
    /// It has booted and waits for its job.
    Ready,
    /// It wants to know what time it is.
    TimeWanted,
    /// It wants to know what is on the disk with its job configuration.
    FilesWanted,
    /// Its runner has started.
    RunnerStarted,
    /// Its runner has exited.
    RunnerExited {
        /// With this status, where it says so.
        code: Option<i32>,
    },
    /// It has something to complain about.
    Error {
        /// At most [`ERROR_LEN_MAX`] characters, none of which a terminal would act on.
        text: String,
    },
    /// Not understood, or too long.
    Nonsense,
}

impl GuestLine {
    /// Reads a line, without its line feed. Whatever it is, it is something.
    pub fn parse(line: &[u8]) -> Self {
        let Ok(line) = std::str::from_utf8(line) else { return Self::Nonsense };
        let line = line.trim_end_matches('\r');
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match (word, rest.trim()) {
            ("ready", "") => Self::Ready,
            ("time?", "") => Self::TimeWanted,
            ("files?", "") => Self::FilesWanted,
            ("runner-started", "") => Self::RunnerStarted,
            ("runner-exited", "") => Self::RunnerExited { code: None },
            ("runner-exited", code) => match code.parse() {
                Ok(code) => Self::RunnerExited { code: Some(code) },
                Err(_) => Self::Nonsense,
            },
            ("error", text) => Self::Error { text: harmless(text, ERROR_LEN_MAX) },
            _ => Self::Nonsense,
        }
    }
}

/// Reads until the port closes or nobody listens any more.
pub(crate) async fn read(port: OwnedReadHalf, said: mpsc::Sender<GuestLine>) {
    let mut lines = BoundedLines::new(port, LINE_LEN_MAX, READ_BUFFER_LEN);
    let mut pace = Pace::new(LINES_PER_S_MAX, LINES_BURST);
    while let Ok(Some(line)) = lines.next().await {
        let line = match line {
            Line::Text(line) => GuestLine::parse(&line),
            Line::TooLong => GuestLine::Nonsense,
        };
        if said.send(line).await.is_err() {
            return;
        }
        pace.keep().await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use tokio::io::AsyncWriteExt;
    use tokio::net::UnixStream;
    use tokio::time::Instant;

    #[test]
    fn the_documented_words_are_understood() {
        let parse = |line: &str| GuestLine::parse(line.as_bytes());
        assert_eq!(parse("ready"), GuestLine::Ready);
        assert_eq!(parse("ready\r"), GuestLine::Ready);
        assert_eq!(parse("runner-started"), GuestLine::RunnerStarted);
        assert_eq!(parse("runner-exited 137"), GuestLine::RunnerExited { code: Some(137) });
        assert_eq!(parse("runner-exited"), GuestLine::RunnerExited { code: None });
        let text = "no space left".to_owned();
        assert_eq!(parse("error no space left"), GuestLine::Error { text });
    }

    #[test]
    fn everything_else_is_nonsense_and_texts_are_made_harmless() {
        for line in ["", "go 1", "READY", "ready or not", "runner-exited x", "\0"] {
            assert_eq!(GuestLine::parse(line.as_bytes()), GuestLine::Nonsense, "{line:?}");
        }
        assert_eq!(GuestLine::parse(b"error \xff"), GuestLine::Nonsense);
        let hostile = format!("error \u{1b}]0;pwned\u{7}\u{202e}{}", "x".repeat(1000));
        let GuestLine::Error { text } = GuestLine::parse(hostile.as_bytes()) else {
            panic!("an error is an error");
        };
        assert_eq!(text.chars().count(), ERROR_LEN_MAX);
        assert!(text.starts_with("\u{fffd}]0;pwned\u{fffd}\u{fffd}x"), "{text}");
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_break_the_parser(line: Vec<u8>) {
            if let GuestLine::Error { text } = GuestLine::parse(&line) {
                assert!(!text.chars().any(char::is_control));
            }
        }
    }

    /// Time stands still but for what the code itself waits for.
    #[tokio::test(start_paused = true)]
    async fn a_flood_waits_for_its_turn() {
        let (ours, mut theirs) = UnixStream::pair().expect("a socket pair");
        let (said, mut heard) = mpsc::channel(1);
        tokio::spawn(async move { theirs.write_all("x\n".repeat(400).as_bytes()).await });
        tokio::spawn(read(ours.into_split().0, said));
        let began = Instant::now();
        let mut lines = 0;
        while heard.recv().await.is_some() {
            lines += 1;
        }
        assert_eq!(lines, 400);
        let least = Duration::from_secs(1) * (400 - LINES_BURST - 1) / LINES_PER_S_MAX;
        assert!(began.elapsed() >= least, "{:?} for {lines} lines", began.elapsed());
    }
}
