//! Whether a disk is still what the store made, after a guest had it.
//!
//! A run's disk file is handed to its QEMU open for writing. A QEMU that its guest has taken over can write
//! anything there, the header of a qcow2 overlay included: the name of another backing file, of a file with
//! the data, a protocol such as `nbd:` or `json:`. `qemu-img`, which runs as Forrest's user, would open what
//! the header names, and so would whoever starts from the image later. So before `qemu-img` opens a disk, and
//! before a disk becomes an image, its header and those of all files that it is built on are compared with
//! the store's records. Nothing in a header is allowed that the store, or `qemu-img` on its behalf, does not
//! write.
//!
//! Between the comparison and the use nobody changes the file: disks are looked at when their supervisor has
//! recorded the outcome, which it does after it has waited for QEMU's end, and QEMU can start no other
//! process that would keep the file open. Files below a disk are handed to QEMU for reading only.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use forrest_core::model::Bytes;
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::chain::Layer;
use crate::error::{ImageError, IoContext};
use crate::format::DiskFormat;
use crate::generations::BackingFile;
use crate::qcow2::{self, Fields, extension};
use crate::run_disk::DiskRecord;
use crate::runs::RunDir;
use crate::store::Store;

/// How much of a name is repeated in a message, in characters.
const SHOWN_MAX: usize = 200;

/// What to do about a run's own disk.
const OF_THE_RUN: &str = "No guest can change that, but a QEMU that one has taken over: look at what \
                          that job ran. The next job starts from the current image";

/// What to do about a file below it.
const OF_AN_IMAGE: &str = "Somebody changed that image, or a QEMU that was taken over made it: roll back \
                           to a generation that does not need it";

/// What is not as recorded.
#[derive(Debug, PartialEq, Eq)]
struct Mismatch {
    field: &'static str,
    found: String,
    expected: String,
}

impl Store {
    /// Compares the run's disk and all that it is built on with the records.
    ///
    /// # Errors
    /// [`ImageError::DiskChanged`]; those of [`Store::layers_below`]; [`ImageError::Io`].
    pub(crate) fn check_disk(&self, run: &RunDir, record: &DiskRecord) -> Result<(), ImageError> {
        let file = BackingFile { path: run.disk(), format: record.format };
        let below = self.layers_below(&file.path, record.backing.as_ref())?;
        let mut layers = vec![Layer { file, virtual_size: Some(record.virtual_size) }];
        layers.extend(below);
        for (i, layer) in layers.iter().enumerate() {
            let backing = layers.get(i + 1).map(|below| &below.file);
            if let Err(Mismatch { field, found, expected }) = check_layer(layer, backing)? {
                return Err(ImageError::DiskChanged {
                    runner: run.runner().clone(),
                    path: layer.file.path.clone(),
                    field,
                    found: format!("{found}, and {expected} by Forrest's records"),
                    advice: if i == 0 { OF_THE_RUN } else { OF_AN_IMAGE },
                });
            }
        }
        Ok(())
    }

    /// The file that a run's overlay names as the one that it is built on, or that it names none; `None`
    /// where there is no such header. For a choice between the store's own records, never to open it.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub(crate) fn named_backing(
        &self,
        run: &RunDir,
    ) -> Result<Option<Option<PathBuf>>, ImageError> {
        let path = run.disk();
        let Ok(file) = open(&path)? else { return Ok(None) };
        let fields = qcow2::read_fields(&file).context("read", &path)?;
        Ok(fields.ok().map(|fields| fields.backing))
    }
}

fn check_layer(
    layer: &Layer,
    backing: Option<&BackingFile>,
) -> Result<Result<(), Mismatch>, ImageError> {
    let path = &layer.file.path;
    let file = match open(path)? {
        Ok(file) => file,
        Err(kind) => return Ok(differs("kind", kind, "an ordinary file")),
    };
    match layer.file.format {
        // Its content is nobody's header: it is opened as raw, whatever it looks like.
        DiskFormat::Raw => {
            let len = Bytes(file.metadata().context("measure", path)?.len());
            Ok(check_size("length", len, layer.virtual_size))
        }
        DiskFormat::Qcow2 => Ok(match qcow2::read_fields(&file).context("read", path)? {
            Ok(fields) => check_fields(&fields, layer.virtual_size, backing),
            Err(why) => differs("header", format!("unusable ({why})"), "the one of an overlay"),
        }),
    }
}

/// Opens a disk without following a link or waiting for a pipe; or says what else is in its place.
fn open(path: &Path) -> Result<Result<File, &'static str>, ImageError> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = match File::options().read(true).custom_flags(flags.bits() as i32).open(path) {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::LOOP) => {
            return Ok(Err("a link"));
        }
        result => result.context("open", path)?,
    };
    let is_file = file.metadata().context("open", path)?.is_file();
    Ok(if is_file { Ok(file) } else { Err("something else") })
}

fn check_size(field: &'static str, found: Bytes, expected: Option<Bytes>) -> Result<(), Mismatch> {
    let bytes = |size: Bytes| format!("{} bytes", size.0);
    match expected {
        Some(expected) if expected != found => differs(field, bytes(found), bytes(expected)),
        Some(_) | None => Ok(()),
    }
}

fn check_fields(
    fields: &Fields,
    virtual_size: Option<Bytes>,
    backing: Option<&BackingFile>,
) -> Result<(), Mismatch> {
    let numbers = [
        ("version", u64::from(fields.version), 3),
        // Among them: the data are in another file.
        ("set of incompatible features", fields.incompatible, 0),
        ("set of compatible features", fields.compatible, 0),
        ("set of autoclear features", fields.autoclear, 0),
        ("encryption method", u64::from(fields.encryption), 0),
        ("number of internal snapshots", u64::from(fields.snapshots), 0),
    ];
    for (field, found, expected) in numbers {
        if found != expected {
            return differs(field, format!("{found:#x}"), format!("{expected:#x}"));
        }
    }
    let ours = [extension::BACKING_FORMAT, extension::FEATURE_NAMES];
    if let Some(other) = fields.extensions.iter().find(|kind| !ours.contains(kind)) {
        return differs("kind of a header extension", format!("{other:#x}"), "a known one");
    }
    // Byte by byte: for paths, `/a//b` equals `/a/b`.
    let named = fields.backing.as_ref().map(|path| path.as_os_str());
    let recorded = backing.map(|file| file.path.as_os_str());
    if named != recorded {
        let shown = |name: Option<&OsStr>| quoted(name.map(OsStr::to_string_lossy).as_deref());
        return differs("backing file", shown(named), shown(recorded));
    }
    let format = backing.map(|file| file.format.qemu_name());
    if fields.backing_format.as_deref() != format {
        let found = quoted(fields.backing_format.as_deref());
        return differs("format of the backing file", found, quoted(format));
    }
    check_size("virtual size", fields.virtual_size, virtual_size)
}

/// In quotes, with what a terminal would not show escaped.
fn quoted(text: Option<&str>) -> String {
    let Some(text) = text else { return "none".to_owned() };
    let start: String = text.chars().take(SHOWN_MAX).collect();
    let more = if start.len() < text.len() { "..." } else { "" };
    format!("{start:?}{more}")
}

fn differs(
    field: &'static str,
    found: impl Into<String>,
    expected: impl Into<String>,
) -> Result<(), Mismatch> {
    Err(Mismatch { field, found: found.into(), expected: expected.into() })
}
