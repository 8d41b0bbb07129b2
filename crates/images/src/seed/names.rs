//! Directory entries: short names, long names, the volume label.

use std::collections::BTreeSet;

use super::geometry::ENTRY;

/// 1 January 1980, the first day that FAT knows: the same files give the same bytes.
const DATE: u16 = 0x0021;
/// UTF-16 units in one entry of a long name.
const LONG_PART: usize = 13;
/// The longest name, in UTF-16 units.
const LONG_MAX: usize = 255;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attribute {
    File = 0x20,
    Directory = 0x10,
}

const LABEL: u8 = 0x08;
const LONG_NAME: u8 = 0x0f;

type ShortName = [u8; 11];

/// Why FAT cannot hold the name.
pub(super) fn unusable(name: &str) -> Option<&'static str> {
    let forbidden = |c: char| c < ' ' || "\"*/:<>?\\|\u{7f}".contains(c);
    match name {
        "" => Some("a part of it is empty"),
        _ if name.ends_with(['.', ' ']) => Some("it ends in a dot or a space"),
        _ if name.starts_with(' ') => Some("it starts with a space"),
        _ if name.contains(forbidden) => Some("it has a character that FAT does not allow"),
        _ if name.encode_utf16().count() > LONG_MAX => Some("it is too long"),
        _ => None,
    }
}

/// How many directory entries a name takes.
pub(super) fn entry_count(name: &str) -> usize {
    match as_short(name) {
        Some(short) if spelled(&short) == name => 1,
        _ => 1 + name.encode_utf16().count().div_ceil(LONG_PART),
    }
}

/// Gives each name of a directory its own short name.
pub(super) struct ShortNames {
    taken: BTreeSet<ShortName>,
}

impl ShortNames {
    /// Names that are short but for their case keep theirs.
    pub(super) fn new<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        Self { taken: names.filter_map(as_short).collect() }
    }

    /// The name's directory entries: the parts of the long name, last part first, then the short one.
    pub(super) fn entries(
        &mut self,
        name: &str,
        attribute: Attribute,
        cluster: u16,
        len: u32,
    ) -> Vec<u8> {
        let short = as_short(name).unwrap_or_else(|| self.invent(name));
        let mut bytes = Vec::new();
        if entry_count(name) > 1 {
            let units: Vec<u16> = name.encode_utf16().collect();
            let parts = units.chunks(LONG_PART).enumerate().rev();
            for (i, part) in parts {
                let is_last = (i + 1) * LONG_PART >= units.len();
                bytes.extend(long_entry(i as u8 + 1, is_last, part, checksum(&short)));
            }
        }
        bytes.extend(entry(&short, attribute as u8, cluster, len));
        bytes
    }

    /// A short name with a number that makes it the directory's only one.
    fn invent(&mut self, name: &str) -> ShortName {
        let (base, extension) = match name.trim_start_matches('.').rsplit_once('.') {
            Some((base, extension)) => (base, extension),
            None => (name, ""),
        };
        let clean = |text: &str, len: usize| -> Vec<u8> {
            let characters = text.chars().filter(|c| !matches!(c, '.' | ' ')).take(len);
            characters.map(|c| short_byte(c.to_ascii_uppercase()).unwrap_or(b'_')).collect()
        };
        // Each number is tried once; a directory holds far fewer names than there are numbers.
        for number in 1..1_000_000_u32 {
            let tail = format!("~{number}");
            let mut short = [b' '; 11];
            let start = clean(base, 8 - tail.len());
            short[..start.len()].copy_from_slice(&start);
            short[start.len()..start.len() + tail.len()].copy_from_slice(tail.as_bytes());
            let end = clean(extension, 3);
            short[8..8 + end.len()].copy_from_slice(&end);
            if self.taken.insert(short) {
                return short;
            }
        }
        unreachable!("a seed disk has room for fewer than a million names")
    }
}

/// The byte of a character that a short name may have.
fn short_byte(c: char) -> Option<u8> {
    let allowed = c.is_ascii_uppercase() || c.is_ascii_digit() || "!#$%&'()-@^_`{}~".contains(c);
    allowed.then_some(c as u8)
}

/// The name as a short one, where it is one but for its case.
fn as_short(name: &str) -> Option<ShortName> {
    let (base, extension) = name.split_once('.').unwrap_or((name, ""));
    let has_empty_extension = name.contains('.') && extension.is_empty();
    if base.is_empty() || base.len() > 8 || extension.len() > 3 || has_empty_extension {
        return None;
    }
    let mut short = [b' '; 11];
    for (slot, c) in short.iter_mut().zip(base.chars()) {
        *slot = short_byte(c.to_ascii_uppercase())?;
    }
    for (slot, c) in short[8..].iter_mut().zip(extension.chars()) {
        *slot = short_byte(c.to_ascii_uppercase())?;
    }
    Some(short)
}

/// How a short name reads.
fn spelled(short: &ShortName) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    match text(&short[8..]) {
        extension if extension.is_empty() => text(&short[..8]),
        extension => format!("{}.{extension}", text(&short[..8])),
    }
}

fn checksum(short: &ShortName) -> u8 {
    short.iter().fold(0_u8, |sum, b| sum.rotate_right(1).wrapping_add(*b))
}

fn long_entry(number: u8, is_last: bool, part: &[u16], checksum: u8) -> [u8; ENTRY] {
    let mut bytes = [0; ENTRY];
    bytes[0] = if is_last { number | 0x40 } else { number };
    bytes[11] = LONG_NAME;
    bytes[13] = checksum;
    let places = [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30];
    for (i, at) in places.into_iter().enumerate() {
        // A zero ends the name, all ones fill what is left.
        let unit = match part.get(i) {
            Some(unit) => *unit,
            None if i == part.len() => 0,
            None => 0xffff,
        };
        bytes[at..at + 2].copy_from_slice(&unit.to_le_bytes());
    }
    bytes
}

fn entry(name: &ShortName, attribute: u8, cluster: u16, len: u32) -> [u8; ENTRY] {
    let mut bytes = [0; ENTRY];
    bytes[..11].copy_from_slice(name);
    bytes[11] = attribute;
    for at in [16, 18, 24] {
        bytes[at..at + 2].copy_from_slice(&DATE.to_le_bytes());
    }
    bytes[26..28].copy_from_slice(&cluster.to_le_bytes());
    bytes[28..32].copy_from_slice(&len.to_le_bytes());
    bytes
}

pub(super) fn padded_label(label: &str) -> ShortName {
    let mut padded = [b' '; 11];
    for (slot, b) in padded.iter_mut().zip(label.bytes()) {
        *slot = b;
    }
    padded
}

pub(super) fn label_entry(label: &str) -> [u8; ENTRY] {
    entry(&padded_label(label), LABEL, 0, 0)
}

pub(super) fn dot_entry(name: &ShortName, cluster: u16) -> [u8; ENTRY] {
    entry(name, Attribute::Directory as u8, cluster, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_short_ones() {
        assert_eq!(as_short("job.sh").as_ref(), Some(b"JOB     SH "));
        assert_eq!(as_short("PERSIST").as_ref(), Some(b"PERSIST    "));
        for long in ["user-data", "a.b.c", ".hidden", "x.long", "a b", "ü", "a."] {
            assert_eq!(as_short(long), None, "{long}");
        }
        let mut names = ShortNames::new(std::iter::empty());
        assert_eq!(&names.invent("user-data"), b"USER-D~1   ");
        assert_eq!(&names.invent("user-data-2"), b"USER-D~2   ");
        assert_eq!(&names.invent("a b.config"), b"AB~1    CON");
    }

    #[test]
    fn a_name_in_upper_case_needs_no_long_one() {
        assert_eq!(entry_count("JOB.SH"), 1);
        assert_eq!(entry_count("job.sh"), 2);
        assert_eq!(entry_count(&"x".repeat(26)), 3);
        assert_eq!(entry_count(&"x".repeat(27)), 4);
    }
}
