//! Destinations that the egress filter lets through: `ADDR[/LEN][:PORT]`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A set of destinations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Destination {
    address: IpAddr,
    prefix: u8,
    port: Option<u16>,
}

/// Why a text is not a destination.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DestinationError {
    /// The address is not one.
    #[error("{0:?} is not an IP address")]
    Address(String),
    /// The prefix length is not a number, or too long.
    #[error("{0:?} is not a prefix length from 0 to {1}")]
    Prefix(String, u8),
    /// The address has bits behind the prefix.
    #[error("the address has bits behind its prefix; the network is {0}")]
    HostBits(Box<Destination>),
    /// The port is not a number from 1 to 65535.
    #[error("{0:?} is not a port from 1 to 65535")]
    Port(String),
    /// Brackets that do not match.
    #[error("the bracket around the address is not closed")]
    Bracket,
}

impl Destination {
    /// The first address of the set.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// How many leading bits of the address count: 32 or 128 for a single one.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The TCP and UDP port; `None` means every port and protocol.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// Whether every address of its family is in the set.
    pub fn is_everything(&self) -> bool {
        self.prefix == 0
    }
}

fn bits(address: &IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The address with everything behind the prefix set to zero.
fn network(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            Ipv4Addr::from_bits(v4.to_bits() & mask).into()
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            Ipv6Addr::from_bits(v6.to_bits() & mask).into()
        }
    }
}

/// The address, the prefix length and the port, as far as they are there.
fn split(text: &str) -> Result<(&str, Option<&str>, Option<&str>), DestinationError> {
    let (address, rest) = match text.strip_prefix('[') {
        Some(inside) => inside.split_once(']').ok_or(DestinationError::Bracket)?,
        // Without brackets, more than one colon means IPv6 without a port.
        None if text.matches(':').count() > 1 => match text.split_once('/') {
            Some((address, prefix)) => return Ok((address, Some(prefix), None)),
            None => return Ok((text, None, None)),
        },
        None => text.split_at(text.find(['/', ':']).unwrap_or(text.len())),
    };
    let (prefix, port) = match rest.split_once(':') {
        Some((prefix, port)) => (prefix, Some(port)),
        None => (rest, None),
    };
    match prefix.strip_prefix('/') {
        Some(prefix) => Ok((address, Some(prefix), port)),
        None if prefix.is_empty() => Ok((address, None, port)),
        None => Err(DestinationError::Address(text.to_owned())),
    }
}

fn number<N: FromStr>(text: &str) -> Option<N> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

impl FromStr for Destination {
    type Err = DestinationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (address, prefix, port) = split(text)?;
        let address: IpAddr =
            address.parse().map_err(|_| DestinationError::Address(address.to_owned()))?;
        let most = bits(&address);
        let prefix = match prefix {
            None => most,
            Some(text) => number(text)
                .filter(|prefix| *prefix <= most)
                .ok_or_else(|| DestinationError::Prefix(text.to_owned(), most))?,
        };
        let port = match port {
            None => None,
            Some(text) => Some(
                number(text)
                    .filter(|port| *port != 0)
                    .ok_or_else(|| DestinationError::Port(text.to_owned()))?,
            ),
        };
        let first = Self { address: network(address, prefix), prefix, port };
        if first.address != address {
            return Err(DestinationError::HostBits(Box::new(first)));
        }
        Ok(first)
    }
}

/// The form that [`FromStr`] reads back.
impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.address, self.port) {
            (IpAddr::V6(v6), Some(_)) => write!(f, "[{v6}]")?,
            (address, _) => write!(f, "{address}")?,
        }
        if self.prefix != bits(&self.address) {
            write!(f, "/{}", self.prefix)?;
        }
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<Destination, DestinationError> {
        text.parse()
    }

    #[test]
    fn every_form_is_read() {
        for (text, prefix, port) in [
            ("10.1.2.3", 32, None),
            ("10.0.0.0/8", 8, None),
            ("10.1.2.3:443", 32, Some(443)),
            ("192.168.0.0/16:80", 16, Some(80)),
            ("0.0.0.0/0", 0, None),
            ("fd00::1", 128, None),
            ("fd00::/8", 8, None),
            ("[fd00::1]:443", 128, Some(443)),
            ("[fd00::]/8:53", 8, Some(53)),
            ("::/0", 0, None),
        ] {
            let destination = parse(text).expect(text);
            assert_eq!((destination.prefix(), destination.port()), (prefix, port), "{text}");
            assert_eq!(destination.to_string(), text);
        }
        assert_eq!(parse("[fd00::1]"), parse("fd00::1"));
    }

    #[test]
    fn what_is_no_destination_is_refused() {
        use DestinationError as E;
        assert_eq!(parse("example.org"), Err(E::Address("example.org".into())));
        assert_eq!(parse(""), Err(E::Address("".into())));
        assert_eq!(parse("10.0.0.0/33"), Err(E::Prefix("33".into(), 32)));
        assert_eq!(parse("10.0.0.0/"), Err(E::Prefix("".into(), 32)));
        assert_eq!(parse("10.0.0.0/+8"), Err(E::Prefix("+8".into(), 32)));
        assert_eq!(parse("10.0.0.1:0"), Err(E::Port("0".into())));
        assert_eq!(parse("10.0.0.1:"), Err(E::Port("".into())));
        assert_eq!(parse("10.0.0.1:99999"), Err(E::Port("99999".into())));
        assert_eq!(parse("[fd00::1"), Err(E::Bracket));
        assert_eq!(parse("[fd00::1]x"), Err(E::Address("[fd00::1]x".into())));
    }

    #[test]
    fn bits_behind_the_prefix_are_a_mistake() {
        let error = parse("10.1.2.3/8:443").expect_err("host bits");
        assert!(error.to_string().ends_with("the network is 10.0.0.0/8:443"), "{error}");
    }

    proptest! {
        #[test]
        fn printing_and_reading_agree(
            bits: u128, v6: bool, prefix in 0u8..=128, port in proptest::option::of(1u16..),
        ) {
            let address: IpAddr = if v6 {
                Ipv6Addr::from_bits(bits).into()
            } else {
                Ipv4Addr::from_bits(bits as u32).into()
            };
            let prefix = prefix.min(super::bits(&address));
            let made = Destination { address: network(address, prefix), prefix, port };
            prop_assert_eq!(parse(&made.to_string()), Ok(made));
        }

        #[test]
        fn nothing_panics(text in "[0-9a-f:./\\[\\]]{0,30}") {
            let _ = parse(&text);
        }
    }
}
