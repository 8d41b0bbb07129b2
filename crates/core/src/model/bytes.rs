//! Sizes of memory and disks.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A number of bytes.
///
/// Written as an integer with one of the suffixes `B`, `K`, `M`, `G` or `T`, in powers of 1024:
/// `16G` is 16 · 1024³ bytes.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Bytes(pub u64);

/// Why a text is not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseBytesError {
    /// The text does not have the form `<integer><suffix>`.
    #[error(
        "{0:?} is not a size: write an integer with B, K, M, G or T behind it (powers of 1024), such as 16G"
    )]
    Form(String),
    /// The size does not fit in 64 bits.
    #[error("{0:?} is too large to be a size in bytes")]
    TooLarge(String),
}

const UNITS: [(char, u32); 5] = [('T', 40), ('G', 30), ('M', 20), ('K', 10), ('B', 0)];

impl Bytes {
    /// `n` MiB. Saturates at the largest size.
    pub const fn mib(n: u64) -> Self {
        Self(n.saturating_mul(1 << 20))
    }

    /// `n` GiB. Saturates at the largest size.
    pub const fn gib(n: u64) -> Self {
        Self(n.saturating_mul(1 << 30))
    }

    /// The sum, or the largest size where it would overflow.
    pub const fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// The difference, or zero where `other` is larger.
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl FromStr for Bytes {
    type Err = ParseBytesError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let form = || ParseBytesError::Form(text.to_owned());
        let (shift, digits) = UNITS
            .iter()
            .find_map(|(unit, shift)| text.strip_suffix(*unit).map(|digits| (*shift, digits)))
            .ok_or_else(form)?;
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(form());
        }
        digits
            .parse::<u64>()
            .ok()
            .and_then(|n| n.checked_mul(1 << shift))
            .map(Self)
            .ok_or_else(|| ParseBytesError::TooLarge(text.to_owned()))
    }
}

/// Prints the shortest exact form that [`FromStr`] reads back (`16G`, `1536M`, `17B`).
impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, shift) = UNITS
            .iter()
            .find(|(_, shift)| self.0 != 0 && self.0.is_multiple_of(1 << shift))
            .unwrap_or(&('B', 0));
        write!(f, "{}{unit}", self.0 >> shift)
    }
}

impl std::iter::Sum for Bytes {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self(0), Self::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        assert_eq!("16G".parse(), Ok(Bytes(16 << 30)));
        assert_eq!("0B".parse(), Ok(Bytes(0)));
        assert_eq!("3T".parse(), Ok(Bytes(3 << 40)));
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "G", "16", "16g", "1.5G", "-1G", "+1G", "16 G", "16GB", "99999999999T"] {
            assert!(text.parse::<Bytes>().is_err(), "{text:?} was taken for a size");
        }
    }

    #[test]
    fn printing_and_reading_agree() {
        for n in [0, 1, 1023, 1024, 1536 << 20, 16 << 30, u64::MAX] {
            assert_eq!(Bytes(n).to_string().parse(), Ok(Bytes(n)));
        }
        assert_eq!(Bytes(1536 << 20).to_string(), "1536M");
    }
}
