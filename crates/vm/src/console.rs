//! The guest's console output on disk: bounded in size and rate, readable while it grows.
//!
//! The first [`HEAD_LEN_MAX`] bytes go to `log.txt`. What follows goes to `log.tail.txt`; when that has
//! [`TAIL_LEN_MAX`] bytes it is renamed to `log.tail.old.txt`, in place of the one before, and a new one
//! is begun. So the beginning and at least the newest [`TAIL_LEN_MAX`] bytes stay, and never more than
//! `HEAD_LEN_MAX + 2 · TAIL_LEN_MAX`. Each tail file begins with a line that says how many bytes came
//! before it. [`ConsoleReader`] reads all of it in order and follows.
//!
//! The bytes are the guest's own, escape sequences and all: neutralise them before showing them.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::run_dir::files;

/// The size of `log.txt`, in bytes.
pub const HEAD_LEN_MAX: u64 = 1 << 20;
/// The size of each of the two tail files, in bytes.
pub const TAIL_LEN_MAX: u64 = 2 << 20;
/// How much output is kept in the long run, in bytes a second. What exceeds it is dropped and noted.
pub const RATE_BYTES_PER_S: u64 = 256 << 10;
/// How much output may come at once before the rate counts, in bytes.
pub const BURST_LEN_MAX: u64 = 1 << 20;

/// Writes the console's files.
#[derive(Debug)]
pub(crate) struct ConsoleLog {
    dir: PathBuf,
    file: Option<File>,
    in_tail: bool,
    file_len: u64,
    total: u64,
    budget: u64,
    budget_at: Duration,
    dropped: u64,
}

impl ConsoleLog {
    /// Begins a log, in place of any earlier one.
    pub(crate) fn create(dir: &Path) -> io::Result<Self> {
        for name in [files::CONSOLE_TAIL, files::CONSOLE_TAIL_OLD] {
            match std::fs::remove_file(dir.join(name)) {
                Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(Self {
            dir: dir.to_owned(),
            file: Some(create(&dir.join(files::CONSOLE))?),
            in_tail: false,
            file_len: 0,
            total: 0,
            budget: BURST_LEN_MAX,
            budget_at: Duration::ZERO,
            dropped: 0,
        })
    }

    /// Takes output at a time since some fixed start. Never fails: what cannot be written, for whatever
    /// reason, is dropped and noted as soon as something can be.
    pub(crate) fn write(&mut self, now: Duration, bytes: &[u8]) {
        let earned = now.saturating_sub(self.budget_at).as_millis();
        let earned =
            u64::try_from(earned).unwrap_or(u64::MAX).saturating_mul(RATE_BYTES_PER_S) / 1000;
        self.budget = self.budget.saturating_add(earned).min(BURST_LEN_MAX);
        self.budget_at = now;
        let len = bytes.len() as u64;
        // Less than a whole chunk is not worth a note of its own, so the log waits for some budget.
        let wanted = if self.dropped > 0 { RATE_BYTES_PER_S / 4 } else { 0 }.max(len);
        if self.budget < wanted {
            self.dropped = self.dropped.saturating_add(len);
            return;
        }
        self.budget -= len;
        if self.dropped > 0 {
            let note = format!(
                "\n[forrest: {} bytes of console output were dropped here]\n",
                self.dropped
            );
            if self.append(note.as_bytes()).is_err() {
                self.dropped = self.dropped.saturating_add(len);
                return;
            }
            self.dropped = 0;
        }
        if self.append(bytes).is_err() {
            self.dropped = self.dropped.saturating_add(len);
        }
    }

    fn append(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let len_max = if self.in_tail { TAIL_LEN_MAX } else { HEAD_LEN_MAX };
            if self.file_len >= len_max || self.file.is_none() {
                self.rotate()?;
                continue;
            }
            let space = usize::try_from(len_max - self.file_len).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(bytes.len().min(space));
            if let Some(file) = &mut self.file {
                file.write_all(now)?;
            }
            self.file_len += now.len() as u64;
            self.total = self.total.saturating_add(now.len() as u64);
            bytes = later;
        }
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.file = None;
        let tail = self.dir.join(files::CONSOLE_TAIL);
        if self.in_tail && tail.exists() {
            std::fs::rename(&tail, self.dir.join(files::CONSOLE_TAIL_OLD))?;
        }
        self.in_tail = true;
        let mut file = create(&tail)?;
        let header = format!("[forrest: {} bytes of console output before this]\n", self.total);
        file.write_all(header.as_bytes())?;
        self.file_len = header.len() as u64;
        self.file = Some(file);
        Ok(())
    }
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// Reads a console log from its beginning, and on while it grows.
#[derive(Debug)]
pub struct ConsoleReader {
    dir: PathBuf,
    file: Option<File>,
}

impl ConsoleReader {
    /// A reader for a run directory; the log need not exist yet.
    pub fn new(run_dir: &Path) -> Self {
        Self { dir: run_dir.to_owned(), file: None }
    }

    /// The file after this one, if there is one yet.
    fn after(&self, current: &File) -> io::Result<Option<File>> {
        let current = current.metadata()?.ino();
        let old = self.open(files::CONSOLE_TAIL_OLD)?;
        let tail = self.open(files::CONSOLE_TAIL)?;
        let is_current = |file: &Option<File>| -> io::Result<bool> {
            let Some(file) = file else { return Ok(false) };
            Ok(file.metadata()?.ino() == current)
        };
        Ok(if is_current(&tail)? {
            None
        } else if is_current(&old)? {
            tail
        } else {
            old.or(tail)
        })
    }

    fn open(&self, name: &str) -> io::Result<Option<File>> {
        match File::open(self.dir.join(name)) {
            Ok(file) => Ok(Some(file)),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(err) => Err(err),
        }
    }
}

/// Returns 0 at the present end; more may follow later while the VM lives.
impl Read for ConsoleReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut file = match self.file.take() {
                Some(file) => file,
                None => match self.open(files::CONSOLE)? {
                    Some(file) => file,
                    None => return Ok(0),
                },
            };
            let mut len = file.read(buffer)?;
            let next = if len == 0 { self.after(&file)? } else { None };
            if len == 0 && next.is_some() {
                // Something may have been written to this file before the next one was begun.
                len = file.read(buffer)?;
            }
            match next {
                Some(next) if len == 0 => self.file = Some(next),
                Some(_) | None => {
                    self.file = Some(file);
                    return Ok(len);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(dir: &Path) -> u64 {
        std::fs::read_dir(dir)
            .expect("list")
            .map(|entry| entry.expect("entry").metadata().expect("metadata").len())
            .sum()
    }

    fn read_all(dir: &Path) -> String {
        let mut text = String::new();
        ConsoleReader::new(dir).read_to_string(&mut text).expect("read");
        text
    }

    /// Numbered lines, slowly enough that nothing is dropped.
    fn write_lines(log: &mut ConsoleLog, range: std::ops::Range<u64>) {
        for n in range {
            log.write(Duration::from_secs(n), format!("line {n:059}\n").as_bytes());
        }
    }

    #[test]
    fn little_output_is_all_in_the_first_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut log = ConsoleLog::create(dir.path()).expect("create");
        log.write(Duration::ZERO, b"Hello, ");
        log.write(Duration::ZERO, b"world\n");
        let text = std::fs::read_to_string(dir.path().join(files::CONSOLE)).expect("read");
        assert_eq!(text, "Hello, world\n");
    }

    #[test]
    fn the_beginning_and_the_end_stay_and_the_size_is_bounded() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut log = ConsoleLog::create(dir.path()).expect("create");
        let lines = 20 * TAIL_LEN_MAX / 65;
        write_lines(&mut log, 0..lines);
        assert!(size(dir.path()) <= HEAD_LEN_MAX + 2 * TAIL_LEN_MAX, "{}", size(dir.path()));
        let text = read_all(dir.path());
        assert!(text.starts_with(&format!("line {:059}\n", 0)));
        assert!(text.ends_with(&format!("line {:059}\n", lines - 1)));
        assert!(text.contains("bytes of console output before this]"));
    }

    #[test]
    fn a_reader_that_follows_misses_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut log = ConsoleLog::create(dir.path()).expect("create");
        let mut reader = ConsoleReader::new(dir.path());
        let mut read = String::new();
        let step = 10_000;
        let rounds = 20;
        for round in 0..rounds {
            write_lines(&mut log, round * step..(round + 1) * step);
            reader.read_to_string(&mut read).expect("read");
        }
        let lines: Vec<&str> = read.lines().filter(|line| line.starts_with("line ")).collect();
        // Lines that span two files are interrupted by the header, which is not counted here.
        let interrupted = 2 * read.matches("[forrest:").count() as u64;
        assert!(lines.len() as u64 >= rounds * step - interrupted, "{} lines", lines.len());
        assert!(read.len() as u64 >= rounds * step * 65);
    }

    #[test]
    fn floods_are_cut_and_the_cut_is_noted() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut log = ConsoleLog::create(dir.path()).expect("create");
        let chunk = [b'x'; 4096];
        let mut sent = 0;
        for ms in 0..1000_u64 {
            for _ in 0..10 {
                log.write(Duration::from_millis(ms), &chunk);
                sent += chunk.len() as u64;
            }
        }
        log.write(Duration::from_secs(60), b"the end\n");
        let text = read_all(dir.path());
        let kept = text.bytes().filter(|b| *b == b'x').count() as u64;
        assert!(kept <= BURST_LEN_MAX + RATE_BYTES_PER_S, "{kept} of {sent} were kept");
        assert!(kept >= BURST_LEN_MAX, "{kept} of {sent} were kept");
        let noted: u64 = text
            .lines()
            .filter_map(|line| {
                line.strip_prefix("[forrest: ")?.split_once(" bytes of console output were")
            })
            .map(|(number, _)| number.parse::<u64>().expect("a number"))
            .sum();
        assert_eq!(noted, sent - kept);
        assert!(text.ends_with("the end\n"));
    }
}
