//! `shim.log`: what the shim did and what QEMU wrote to its standard error output, bounded.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use forrest_core::model::foreign_text::harmless;

/// The most that is written to `shim.log`, in bytes.
pub const LOG_LEN_MAX: usize = 128 << 10;
/// The most characters of one line.
const LINE_LEN_MAX: usize = 500;

/// Writes `shim.log`. Never fails: a log is no reason to lose a VM.
#[derive(Debug)]
pub(crate) struct Journal {
    file: Option<File>,
    left: usize,
}

impl Journal {
    /// Goes on with the file that may already have been opened for the shim's own error output.
    pub(crate) fn open(path: &Path) -> Self {
        let file = open(path).ok();
        Self { file, left: LOG_LEN_MAX }
    }

    /// Writes a line with the time.
    pub(crate) fn line(&mut self, text: &str) {
        let Some(file) = &mut self.file else { return };
        let line =
            format!("{:.3} {}\n", super::wall_clock().as_secs_f64(), harmless(text, LINE_LEN_MAX));
        if line.len() > self.left {
            let _ = file.write_all(b"further lines are left out\n");
            self.file = None;
            return;
        }
        self.left -= line.len();
        let _ = file.write_all(line.as_bytes());
    }
}

/// Opens a log file (mode 0600) to append to.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}
