//! A job's log: lines with the time at which they arrived, secrets masked, bounded.

use super::time::Moment;

/// The most that is kept of one job's log, in bytes; the rest is counted only.
pub const MAX_LOG_BYTES: usize = 4 << 20;
/// The longest line; longer ones are cut up.
pub const MAX_LINE_BYTES: usize = 64 << 10;

/// A job's log.
#[derive(Debug, Default)]
pub(crate) struct JobLog {
    text: String,
    /// The last line, while its end has not arrived.
    partial: Vec<u8>,
    masks: Vec<String>,
    dropped: u64,
}

impl JobLog {
    /// A log that hides these values.
    pub(crate) fn masking(secrets: impl Iterator<Item = String>) -> Self {
        // As on GitHub: an empty secret hides nothing, one of several lines is hidden line by line.
        let mut masks: Vec<String> = secrets
            .flat_map(|secret| secret.lines().map(str::to_owned).collect::<Vec<_>>())
            .filter(|line| !line.trim().is_empty())
            .collect();
        // Longest first, so that a secret inside another one does not leave the rest of it open.
        masks.sort_by_key(|mask| std::cmp::Reverse(mask.len()));
        Self { masks, ..Self::default() }
    }

    /// Takes what a step printed, in any portions.
    pub(crate) fn append(&mut self, bytes: &[u8], now: Moment) {
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|b| *b == b'\n') {
            self.partial.extend_from_slice(&rest[..end]);
            self.end_line(now);
            rest = &rest[end + 1..];
        }
        self.partial.extend_from_slice(rest);
        while self.partial.len() > MAX_LINE_BYTES {
            let tail = self.partial.split_off(MAX_LINE_BYTES);
            self.end_line(now);
            self.partial = tail;
        }
    }

    /// Ends a line that has no end of its own.
    pub(crate) fn flush(&mut self, now: Moment) {
        if !self.partial.is_empty() {
            self.end_line(now);
        }
    }

    fn end_line(&mut self, now: Moment) {
        let line = std::mem::take(&mut self.partial);
        if self.text.len() + line.len() > MAX_LOG_BYTES {
            self.dropped += line.len() as u64 + 1;
            return;
        }
        let mut line = String::from_utf8_lossy(&line).into_owned();
        for mask in &self.masks {
            if line.contains(mask.as_str()) {
                line = line.replace(mask.as_str(), "***");
            }
        }
        self.text.push_str(&now.iso_micros());
        self.text.push(' ');
        self.text.push_str(line.trim_end_matches('\r'));
        self.text.push('\n');
    }

    /// The log so far, each line behind its time.
    pub(crate) fn text(&self) -> String {
        let mut text = self.text.clone();
        if self.dropped > 0 {
            text.push_str(&format!("(the log is full: {} more bytes dropped)\n", self.dropped));
        }
        text
    }

    /// How much is kept, in bytes.
    pub(crate) fn len(&self) -> usize {
        self.text.len() + self.partial.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Moment = Moment(1_700_000_000_000_000);

    #[test]
    fn lines_may_arrive_in_pieces() {
        let mut log = JobLog::default();
        log.append(b"on", NOW);
        log.append(b"e\ntwo\nthr", NOW);
        log.flush(NOW);
        let lines: Vec<_> =
            log.text().lines().map(|l| l.split_once(' ').expect("a time").1.to_owned()).collect();
        assert_eq!(lines, ["one", "two", "thr"]);
    }

    #[test]
    fn secrets_are_masked_whole() {
        let mut log =
            JobLog::masking(["abc", "abcdef", "", "x1\nx2"].map(str::to_owned).into_iter());
        log.append(b"<abcdef> <abc> x2\n", NOW);
        assert!(log.text().ends_with(" <***> <***> ***\n"), "{}", log.text());
    }

    #[test]
    fn a_log_is_bounded() {
        let mut log = JobLog::default();
        let chunk = vec![b'x'; 1 << 20];
        for _ in 0..64 {
            log.append(&chunk, NOW);
        }
        log.append(b"\n", NOW);
        assert!(log.len() < MAX_LOG_BYTES + (1 << 20), "{}", log.len());
        assert!(log.text().ends_with("bytes dropped)\n"));
    }
}
