//! The kernel's announcements of changes to its packet filter (`nfnetlink(7)`, group `NFTABLES`).

use std::io;

use rustix::io::Errno;
use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};
use tokio::net::UnixDatagram;

/// The multicast group in which the kernel tells of tables, chains and rules (`NFNLGRP_NFTABLES`, 7).
const GROUP: u32 = 1 << (7 - 1);
/// What messages about nftables have in the upper half of their type (`NFNL_SUBSYS_NFTABLES`).
const SUBSYSTEM: u16 = 10;
/// The attribute that names the table, in every message about a part of one.
const TABLE_NAME: u16 = 1;
/// The length of a message's header (`struct nlmsghdr`), and of what follows it (`struct nfgenmsg`).
const HEADER_LEN: usize = 16;
const FAMILY_LEN: usize = 4;
/// Longer than any datagram that the kernel makes of announcements: it fills a page or two.
const DATAGRAM_LEN_MAX: usize = 64 << 10;

/// A change of a part of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    /// The table's name.
    pub(crate) table: String,
    /// Whose transaction it was: the process id of a program that did not choose another number.
    pub(crate) by: u32,
}

/// The announcements, from the opening on.
#[derive(Debug)]
pub(crate) struct Events {
    /// A netlink socket. What this type does to read a datagram is right for it, too.
    socket: UnixDatagram,
}

impl Events {
    /// Begins to listen; needs `CAP_NET_ADMIN`.
    pub(crate) fn open() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(NETFILTER))?;
        bind(&socket, &SocketAddrNetlink::new(0, GROUP))?;
        Ok(Self { socket: UnixDatagram::from_std(socket.into())? })
    }

    /// The changes of the next datagram; `None` where announcements were lost.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Vec<Change>>> {
        let mut buffer = vec![0_u8; DATAGRAM_LEN_MAX];
        match self.socket.recv(&mut buffer).await {
            // It may have been cut off.
            Ok(len) if len >= DATAGRAM_LEN_MAX => Ok(None),
            Ok(len) => Ok(Some(changes(buffer.get(..len).unwrap_or_default()))),
            Err(err) if err.raw_os_error() == Some(Errno::NOBUFS.raw_os_error()) => Ok(None),
            Err(err) => Err(err),
        }
    }
}

fn changes(mut datagram: &[u8]) -> Vec<Change> {
    let mut found = Vec::new();
    while let Some(len) = number_u32(datagram, 0).and_then(|len| usize::try_from(len).ok()) {
        let Some(message) = datagram.get(..len).filter(|_| len >= HEADER_LEN) else { break };
        found.extend(change(message));
        datagram = datagram.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

fn change(message: &[u8]) -> Option<Change> {
    let kind = number_u16(message, 4)?;
    let by = number_u32(message, 12)?;
    if kind >> 8 != SUBSYSTEM {
        return None;
    }
    let mut attributes = message.get(HEADER_LEN + FAMILY_LEN..)?;
    while let (Some(len), Some(kind)) = (number_u16(attributes, 0), number_u16(attributes, 2)) {
        let len = usize::from(len);
        let value = attributes.get(4..len)?;
        // The upper two bits are flags.
        if kind & 0x3fff == TABLE_NAME {
            let name = value.split(|byte| *byte == 0).next().unwrap_or_default();
            return Some(Change { table: String::from_utf8_lossy(name).into_owned(), by });
        }
        attributes = attributes.get(len.next_multiple_of(4)..)?;
    }
    None
}

fn number_u16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

fn number_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(kind: u16, by: u32, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = vec![1, 0, 0, 0];
        for (kind, value) in attributes {
            body.extend(u16::try_from(4 + value.len()).expect("short").to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(*value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        let mut all = u32::try_from(HEADER_LEN + body.len()).expect("short").to_ne_bytes().to_vec();
        all.extend(kind.to_ne_bytes());
        all.extend([0; 6]);
        all.extend(by.to_ne_bytes());
        all.extend(body);
        all
    }

    #[test]
    fn changes_tell_their_table_and_their_cause() {
        let kind = SUBSYSTEM << 8 | 2;
        let mut datagram = message(kind, 7, &[(2, b"\0\0\0\0"), (1, b"forrest-5\0")]);
        datagram.extend(message(SUBSYSTEM << 8 | 15, 7, &[(1, b"\0\0\0\x01")]));
        datagram.extend(message(3 << 8 | 2, 9, &[(1, b"other subsystem\0")]));
        datagram.extend(message(kind, 8, &[(1, b"filter\0")]));
        let found = changes(&datagram);
        let names: Vec<(&str, u32)> = found.iter().map(|c| (c.table.as_str(), c.by)).collect();
        assert_eq!(names, [("forrest-5", 7), ("", 7), ("filter", 8)]);
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = changes(&bytes);
        }
    }
}
