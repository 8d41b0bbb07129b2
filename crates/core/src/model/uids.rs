//! The users that virtual machines run as.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The most users of a range: far more than VMs fit on a host.
pub const RANGE_LEN_MAX: u32 = 10_000;
/// The lowest user that can be in a range: below are people and services.
pub const UID_MIN: u32 = 60_000;
/// The highest: some programs take users for signed numbers.
pub const UID_MAX: u32 = i32::MAX as u32;

/// A range of users that belong to Forrest's VMs and to nobody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UidRange {
    first: u32,
    last: u32,
}

impl UidRange {
    /// 1000 users in a part of the numbers that systemd's conventions leave to nobody (0x7000_0000 and
    /// above; `systemd.io/UIDS-GIDS`), clear of containers' ranges.
    pub const DEFAULT: Self = Self { first: 1_900_000_000, last: 1_900_000_999 };

    /// The group that all QEMUs run in: what they may all read is readable for it.
    pub const fn group(self) -> u32 {
        self.first
    }

    /// How many VMs can be live at a time.
    pub const fn len(self) -> u32 {
        self.last - self.first + 1
    }

    /// No range is empty.
    pub const fn is_empty(self) -> bool {
        false
    }

    /// Whether the user is one of them.
    pub const fn contains(self, uid: u32) -> bool {
        self.first <= uid && uid <= self.last
    }

    /// All users, in order.
    pub fn iter(self) -> impl Iterator<Item = u32> {
        self.first..=self.last
    }
}

/// Why a text is no range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UidRangeError {
    /// It has another form.
    #[error("{0:?} is not of the form FIRST-LAST")]
    Form(String),
    /// It ends before it begins.
    #[error("the range ends before it begins")]
    Backwards,
    /// It has too many users.
    #[error("the range has more than {RANGE_LEN_MAX} users")]
    TooLong,
    /// It has users that may be somebody's.
    #[error("users from {UID_MIN} to {UID_MAX} are possible")]
    NotFree,
}

impl FromStr for UidRange {
    type Err = UidRangeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            digits.then(|| text.parse::<u32>().ok()).flatten()
        };
        let ends = text.split_once('-').map(|(first, last)| (number(first), number(last)));
        let Some((Some(first), Some(last))) = ends else {
            return Err(UidRangeError::Form(text.to_owned()));
        };
        if last < first {
            return Err(UidRangeError::Backwards);
        }
        if last - first >= RANGE_LEN_MAX {
            return Err(UidRangeError::TooLong);
        }
        // 65534 is nobody and 65535 was "no user" once.
        let reserved = first <= 65_535 && last >= 65_534;
        if first < UID_MIN || last > UID_MAX || reserved {
            return Err(UidRangeError::NotFree);
        }
        Ok(Self { first, last })
    }
}

impl TryFrom<String> for UidRange {
    type Error = UidRangeError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<UidRange> for String {
    fn from(range: UidRange) -> Self {
        range.to_string()
    }
}

impl fmt::Display for UidRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_and_checked() {
        let range: UidRange = "100000-100002".parse().expect("a range");
        assert_eq!((range.group(), range.len()), (100_000, 3));
        assert!(range.contains(100_002) && !range.contains(100_003));
        assert_eq!(range.iter().collect::<Vec<_>>(), [100_000, 100_001, 100_002]);
        assert_eq!(range.to_string().parse(), Ok(range));
        assert_eq!(String::from(range), "100000-100002");
        for text in ["70000-70000", "60000-60001", "2147483646-2147483647", "65536-65537"] {
            assert_eq!(text.parse::<UidRange>().expect(text).to_string(), text);
        }
        assert_eq!(UidRange::DEFAULT.to_string().parse(), Ok(UidRange::DEFAULT));
        let error = |text: &str| text.parse::<UidRange>().expect_err(text);
        for text in ["", "5", "-", "1-", "a-b", "+70000-70001", "70000-70001-70002"] {
            assert_eq!(error(text), UidRangeError::Form(text.to_owned()));
        }
        assert_eq!(error("70001-70000"), UidRangeError::Backwards);
        assert_eq!(error("70000-90000"), UidRangeError::TooLong);
        for text in ["0-10", "59999-60001", "65000-65534", "2147483647-2147483648"] {
            assert_eq!(error(text), UidRangeError::NotFree, "{text}");
        }
    }
}
