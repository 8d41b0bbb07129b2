//! The uses of `qemu-img`: copying an image into another format, and putting an overlay onto another
//! file, with their progress.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::durable::Files;
use crate::error::{ImageError, IoContext};
use crate::format::DiskFormat;

/// How much of what `qemu-img` complains about is kept, in bytes.
const STDERR_MAX: u64 = 2048;

/// Told how far a long copy is, from 0 to 1.
pub type Progress<'a> = &'a mut dyn FnMut(f32);

/// Copies the content of `from`, with all that it is built on, to a new file `to`. Holes stay holes.
/// Takes as long as reading and writing the data takes; synchronises nothing.
pub(crate) fn convert(
    files: &Files,
    purpose: &'static str,
    (from, from_format): (&Path, DiskFormat),
    (to, to_format): (&Path, DiskFormat),
    progress: Progress<'_>,
) -> Result<(), ImageError> {
    files.announce_convert(from, to)?;
    // Absolute paths, so that no file name is taken for an option or a protocol.
    let from = std::path::absolute(from).context("find", from)?;
    let to = std::path::absolute(to).context("find", to)?;
    let mut command = Command::new("qemu-img");
    command
        .args(["convert", "-p", "-f", from_format.qemu_name(), "-O", to_format.qemu_name()])
        .arg(&from)
        .arg(&to);
    run(command, purpose, from, progress)
}

/// Puts a qcow2 overlay onto another file, one that it is built on already, and copies what the files
/// between the two hold. Synchronises nothing. Interrupted, it leaves an overlay that reads the same.
pub(crate) fn rebase(
    files: &Files,
    disk: &Path,
    (backing, backing_format): (&Path, DiskFormat),
    progress: Progress<'_>,
) -> Result<(), ImageError> {
    files.announce_convert(disk, disk)?;
    let disk = std::path::absolute(disk).context("find", disk)?;
    let mut command = Command::new("qemu-img");
    command.args(["rebase", "-p", "-f", DiskFormat::Qcow2.qemu_name()]);
    command.args(["-F", backing_format.qemu_name(), "-b"]).arg(backing).arg(&disk);
    run(command, "take off its snapshot", disk, progress)
}

fn run(
    mut command: Command,
    purpose: &'static str,
    path: PathBuf,
    progress: Progress<'_>,
) -> Result<(), ImageError> {
    let mut child = command
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => ImageError::NoQemuImg { purpose },
            _ => ImageError::Io { action: "start qemu-img for", path: path.clone(), source },
        })?;
    let stderr = drain_stderr(&mut child);
    report_progress(&mut child, progress);
    let status = child.wait().context("wait for qemu-img with", &path)?;
    let stderr = stderr.and_then(|thread| thread.join().ok()).unwrap_or_default();
    if status.success() {
        return Ok(());
    }
    let stderr = match stderr.trim() {
        "" => format!("it ended with {status}"),
        text => text.to_owned(),
    };
    Err(ImageError::QemuImg { purpose, path, stderr })
}

fn drain_stderr(child: &mut Child) -> Option<std::thread::JoinHandle<String>> {
    let mut pipe = child.stderr.take()?;
    Some(std::thread::spawn(move || {
        let mut kept = Vec::new();
        // A failure to read leaves the exit status, which says enough.
        let _ = pipe.by_ref().take(STDERR_MAX).read_to_end(&mut kept);
        let _ = io::copy(&mut pipe, &mut io::sink());
        String::from_utf8_lossy(&kept).into_owned()
    }))
}

/// Reads `    (12.34/100%)\r` until the end.
fn report_progress(child: &mut Child, progress: Progress<'_>) {
    let Some(mut pipe) = child.stdout.take() else { return };
    let mut chunk = [0; 256];
    let mut field = String::new();
    while let Ok(len @ 1..) = pipe.read(&mut chunk) {
        for &b in &chunk[..len] {
            match b {
                b'(' => field.clear(),
                b'/' => {
                    if let Ok(percent) = field.parse::<f32>() {
                        progress((percent / 100.0).clamp(0.0, 1.0));
                    }
                    field.clear();
                }
                _ if field.len() < 16 => field.push(char::from(b)),
                _ => {}
            }
        }
    }
}
