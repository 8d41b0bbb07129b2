//! The uses of `qemu-img`: copying an image into another format, and putting an overlay onto another
//! file, with their progress.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::durable::Files;
use crate::error::{ImageError, IoContext};
use crate::format::DiskFormat;
use crate::generations::BackingFile;

/// How much of what `qemu-img` complains about is kept, in bytes.
const STDERR_MAX: u64 = 2048;

/// Told how far a long copy is, from 0 to 1.
pub type Progress<'a> = &'a mut dyn FnMut(f32);

/// Copies the content of an image, with all that it is built on, to a new file `to`. Holes stay holes.
/// Takes as long as reading and writing the data takes; synchronises nothing.
pub(crate) fn convert(
    files: &Files,
    purpose: &'static str,
    from: &Chain<'_>,
    (to, to_format): (&Path, DiskFormat),
    progress: Progress<'_>,
) -> Result<(), ImageError> {
    files.announce_convert(&from.image.path, to)?;
    // An absolute path, so that the file's name is not taken for an option or a protocol.
    let to = std::path::absolute(to).context("find", to)?;
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-p", "-O", to_format.qemu_name()]).arg(from.to_option()?).arg(&to);
    run(command, purpose, from.image.path.clone(), progress)
}

/// Puts a qcow2 overlay onto another file of its chain, and copies what the files between the two hold.
/// Synchronises nothing. Interrupted, it leaves an overlay that reads the same.
///
/// The new backing file's name is all that is not an option: it is what is written to the header. `qemu-img`
/// finds that file among those that it has open by then, as long as the name is the same, and opens no other.
pub(crate) fn rebase(
    files: &Files,
    disk: &Chain<'_>,
    onto: &BackingFile,
    progress: Progress<'_>,
) -> Result<(), ImageError> {
    files.announce_convert(&disk.image.path, &disk.image.path)?;
    let mut command = Command::new("qemu-img");
    command.args(["rebase", "-p", "-F", onto.format.qemu_name(), "-b"]).arg(&onto.path);
    command.arg(disk.to_option()?);
    run(command, "take off its snapshot", disk.image.path.clone(), progress)
}

/// An image with all that it is built on, the nearest file first.
pub(crate) struct Chain<'a> {
    pub(crate) image: &'a BackingFile,
    pub(crate) below: &'a [BackingFile],
}

impl Chain<'_> {
    /// The image as `qemu-img` is to open it: driver, file and backing file of each layer are named, and the
    /// last one's backing file is none, so that neither a header's names nor a file's first bytes decide. A
    /// file with the data cannot be overruled in this way: headers that name one are refused before
    /// ([`crate::disk_check`], [`crate::inspect_src`]).
    ///
    /// `convert` and `rebase` take this; `info` and `snapshot` would refuse options of a backing file, since
    /// they open none.
    fn to_option(&self) -> Result<String, ImageError> {
        let mut node = Value::Null;
        for BackingFile { path, format } in self.below.iter().rev().chain([self.image]) {
            let path = std::path::absolute(path).context("find", path)?;
            let name = path.to_str().ok_or_else(|| {
                ImageError::not_an_image(&path, "its path is not valid UTF-8; rename it")
            })?;
            let file = json!({ "driver": "file", "filename": name });
            node = match format {
                DiskFormat::Raw => json!({ "driver": "raw", "file": file }),
                DiskFormat::Qcow2 => json!({ "driver": "qcow2", "file": file, "backing": node }),
            };
        }
        Ok(format!("json:{node}"))
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn option(files: &[(&str, DiskFormat)]) -> String {
        let file = |(path, format): &(&str, DiskFormat)| BackingFile {
            path: path.into(),
            format: *format,
        };
        let files: Vec<BackingFile> = files.iter().map(file).collect();
        let (image, below) = files.split_first().expect("an image");
        Chain { image, below }.to_option().expect("UTF-8")
    }

    #[test]
    fn every_layer_is_named_with_its_driver() {
        let flat =
            r#"json:{"backing":null,"driver":"qcow2","file":{"driver":"file","filename":"/f"}}"#;
        assert_eq!(option(&[("/f", DiskFormat::Qcow2)]), flat);
        let raw = r#"json:{"driver":"raw","file":{"driver":"file","filename":"/r"}}"#;
        assert_eq!(option(&[("/r", DiskFormat::Raw)]), raw);
        let three = [("/a", DiskFormat::Qcow2), ("/b", DiskFormat::Qcow2), ("/c", DiskFormat::Raw)];
        let expected = json!({
            "driver": "qcow2", "file": { "driver": "file", "filename": "/a" }, "backing": {
                "driver": "qcow2", "file": { "driver": "file", "filename": "/b" }, "backing": {
                    "driver": "raw", "file": { "driver": "file", "filename": "/c" },
                },
            },
        });
        assert_eq!(option(&three), format!("json:{expected}"));
    }

    #[test]
    fn no_file_name_is_anything_else() {
        let strange = "/a,b=c/\"},\"driver\":\"nbd\"/nbd:x?y%41\n.img";
        let option = option(&[(strange, DiskFormat::Raw)]);
        let value: Value =
            serde_json::from_str(option.strip_prefix("json:").expect("a json: name"))
                .expect("JSON");
        let file = json!({ "driver": "file", "filename": strange });
        assert_eq!(value, json!({ "driver": "raw", "file": file }));
        // A relative name is made absolute, so that it has no protocol.
        let option = self::option(&[("nbd:x", DiskFormat::Raw)]);
        assert!(option.contains("/nbd:x\"") && !option.contains("\"nbd:x"), "{option}");
    }
}
