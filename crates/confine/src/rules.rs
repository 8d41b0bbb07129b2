//! The filter's rules, as `nft` reads them. Pure: the same guest gives the same text.
//!
//! ```text
//! a packet of the host's own ── another user's ──▶ accepted here
//!        │ this VM's user's
//!        ├── to what `network.allow` names, or port 53 of a name server of the host ──▶ accepted
//!        ├── to the host itself, or to many at a time (by the routing table) ─────────▶ refused
//!        ├── to private, local, reserved or metadata addresses ───────────────────────▶ refused
//!        ├── to the Internet, as one of too many new TCP connections ─────────────────▶ dropped
//!        └── to the rest of the Internet ─────────────────────────────────────────────▶ accepted
//! ```
//!
//! Each VM has a table of its own, so that its filter comes, is mended and goes in one transaction that
//! concerns no other VM, and no other program's rules. What another table accepts, this one still
//! refuses.
//!
//! IPv6 addresses that lead to IPv4 ones: mapped ones (`::ffff:0:0/96`) leave the host as IPv4 and are
//! judged so; 6to4 and Teredo are refused; of NAT64's well-known prefix, refused is what is refused of
//! IPv4, and all of its local-use prefix.
//!
//! Refusals are told to the sender at once, by a reset or an error: a job that tries fails instead of
//! waiting.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// What the tables' names begin with; the VM's user follows.
pub const TABLE_PREFIX: &str = "forrest-";

/// IPv4 destinations that are not the Internet, with the reason (RFC 6890 and its registry, unless it
/// says otherwise).
pub const REFUSED_V4: [(&str, &str); 16] = [
    ("0.0.0.0/8", "this host"),
    ("10.0.0.0/8", "private"),
    ("100.64.0.0/10", "carrier-grade NAT"),
    ("127.0.0.0/8", "loopback"),
    ("168.63.129.16/32", "Azure's metadata and DNS, a public address"),
    ("169.254.0.0/16", "link-local, most clouds' metadata"),
    ("172.16.0.0/12", "private"),
    ("192.0.0.0/24", "protocol assignments, some clouds' metadata"),
    ("192.0.2.0/24", "documentation"),
    ("192.88.99.0/24", "6to4 relays"),
    ("192.168.0.0/16", "private"),
    ("198.18.0.0/15", "benchmarks"),
    ("198.51.100.0/24", "documentation"),
    ("203.0.113.0/24", "documentation"),
    ("224.0.0.0/4", "multicast"),
    ("240.0.0.0/4", "reserved, broadcast"),
];

/// IPv6 destinations within the global unicast space that are not the Internet.
pub const REFUSED_V6: [(&str, &str); 3] = [
    ("2001::/32", "Teredo, leads to IPv4"),
    ("2001:db8::/32", "documentation"),
    ("2002::/16", "6to4, leads to IPv4"),
];

/// The only IPv6 destinations that are the Internet: global unicast, and IPv4 behind NAT64.
const INTERNET_V6: &str = "2000::/3, 64:ff9b::/96";

/// TCP connections to the Internet that a guest may begin in the long run, a second. The host, and whatever
/// stands between it and the Internet, may keep an entry for each of them for two minutes, among some
/// ten thousand. Datagrams are bounded by the files that QEMU may have open.
pub const CONNECTIONS_PER_S_MAX: u32 = 200;
/// How many it may begin at once before the rate counts. Those beyond it are tried again by the host's TCP, a
/// second later.
pub const CONNECTIONS_BURST: u32 = 1000;

/// A set of destinations that a guest may reach nevertheless.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Destination {
    /// The first address; nothing behind the prefix is set.
    pub address: IpAddr,
    /// How many leading bits of the address count.
    pub prefix: u8,
    /// The TCP and UDP port; `None`: everything.
    pub port: Option<u16>,
}

/// The filter of one VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestRules {
    /// The user that its QEMU runs as.
    pub uid: u32,
    /// What it may reach although it is not the Internet.
    pub allow: Vec<Destination>,
    /// The host's name servers.
    pub resolvers: Vec<IpAddr>,
}

/// The name of a VM's table, in the family `inet`.
pub fn table(uid: u32) -> String {
    format!("{TABLE_PREFIX}{uid}")
}

/// The user whose table has this name.
pub fn user_of_table(name: &str) -> Option<u32> {
    name.strip_prefix(TABLE_PREFIX)?.parse().ok()
}

/// A transaction after which the filter is in place as described. What was there before is emptied and not
/// removed: a table that goes and comes leaves a moment in between in which packets get through.
pub fn put_in_place(guest: &GuestRules) -> String {
    let table = table(guest.uid);
    format!("add table inet {table}\nflush table inet {table}\n{}", whole(guest))
}

/// As [`put_in_place`], whatever was there before: somebody may have left chains of another kind.
pub fn replace(guest: &GuestRules) -> String {
    remove(guest.uid) + &whole(guest)
}

/// The table with its chains.
fn whole(guest: &GuestRules) -> String {
    let (uid, table) = (guest.uid, table(guest.uid));
    // Asked so that what has no socket any more, and thus no user, is left alone: the host's own last
    // words on closed connections, and its answers to pings.
    format!(
        "table inet {table} {{\n\
         \tchain output {{\n\
         \t\ttype filter hook output priority filter; policy accept;\n\
         \t\tmeta skuid {uid} jump guest\n\
         \t}}\n\
         {}}}\n",
        chains(guest)
    )
}

/// A transaction after which there is no filter for this user, whether or not there was one.
pub fn remove(uid: u32) -> String {
    let table = table(uid);
    format!("add table inet {table}\ndelete table inet {table}\n")
}

/// A transaction that changes nothing, and that the kernel refuses where it would refuse a real one.
pub fn rehearsal(guest: &GuestRules) -> String {
    let real = put_in_place(guest);
    format!("{real}delete table inet {}\n", table(guest.uid))
}

/// The chains that see only the guest's packets.
fn chains(guest: &GuestRules) -> String {
    let mut text = "\tchain guest {\n".to_owned();
    // Writing into a text does not fail.
    for destination in &guest.allow {
        let _ = writeln!(text, "\t\t{} accept", matches(destination));
    }
    for address in &guest.resolvers {
        let prefix = if address.is_ipv4() { 32 } else { 128 };
        let dns = Destination { address: *address, prefix, port: Some(53) };
        let _ = writeln!(text, "\t\t{} accept", matches(&dns));
    }
    let list = |all: &[(&str, &str)]| {
        all.iter().map(|(net, _)| (*net).to_owned()).collect::<Vec<_>>().join(", ")
    };
    let nat64 = REFUSED_V4.map(|(net, _)| nat64(net)).join(", ");
    // The routing table knows best what is the host itself, broadcast, multicast or nowhere.
    let _ = write!(
        text,
        "\t\tfib daddr type != unicast jump refused\n\
         \t\tip daddr {{ {} }} jump refused\n\
         \t\tip6 daddr {{ {}, {nat64} }} jump refused\n\
         \t\ttcp flags & (syn | ack) == syn limit rate over {CONNECTIONS_PER_S_MAX}/second burst \
         {CONNECTIONS_BURST} packets counter drop\n\
         \t\tmeta nfproto ipv4 accept\n\
         \t\tip6 daddr {{ {INTERNET_V6} }} accept\n\
         \t\tjump refused\n\
         \t}}\n\
         \tchain refused {{\n\
         \t\tmeta l4proto tcp counter reject with tcp reset\n\
         \t\tcounter reject with icmpx type admin-prohibited\n\
         \t\tdrop\n\
         \t}}\n",
        list(&REFUSED_V4),
        list(&REFUSED_V6),
    );
    text
}

/// What a destination looks like to a packet.
fn matches(destination: &Destination) -> String {
    let Destination { address, prefix, port } = destination;
    let (family, bits) = if address.is_ipv4() { ("ip", 32) } else { ("ip6", 128) };
    let mut text = match prefix {
        0 if address.is_ipv4() => "meta nfproto ipv4".to_owned(),
        0 => "meta nfproto ipv6".to_owned(),
        prefix if *prefix == bits => format!("{family} daddr {address}"),
        prefix => format!("{family} daddr {address}/{prefix}"),
    };
    if let Some(port) = port {
        let _ = write!(text, " meta l4proto {{ tcp, udp }} th dport {port}");
    }
    text
}

/// Where NAT64's well-known prefix (RFC 6052) puts an IPv4 network.
fn nat64(v4: &str) -> String {
    let (address, prefix) = v4.split_once('/').unwrap_or((v4, "32"));
    let prefix: u8 = prefix.parse().unwrap_or(32);
    let address: Ipv4Addr = address.parse().unwrap_or(Ipv4Addr::UNSPECIFIED);
    // nft does not know the notation with dots.
    let [a, b, c, d] = address.octets();
    let pair = |high: u8, low: u8| u16::from_be_bytes([high, low]);
    let embedded = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, pair(a, b), pair(c, d));
    format!("{embedded}/{}", 96 + prefix.min(32))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest() -> GuestRules {
        let to = |address: &str, prefix, port| Destination {
            address: address.parse().expect("an address"),
            prefix,
            port,
        };
        GuestRules {
            uid: 1_900_000_007,
            allow: vec![
                to("127.0.0.1", 32, Some(8080)),
                to("10.1.0.0", 16, None),
                to("fd00::", 8, Some(443)),
                to("::", 0, None),
                to("0.0.0.0", 0, Some(80)),
            ],
            resolvers: vec![
                "127.0.0.53".parse().expect("an address"),
                "fe80::1".parse().expect("an address"),
            ],
        }
    }

    #[test]
    fn the_filter_of_a_guest() {
        insta::assert_snapshot!(put_in_place(&guest()));
    }

    #[test]
    fn what_comes_goes_and_is_rehearsed_is_one_table() {
        let table = "inet forrest-1900000007";
        let rules = guest();
        assert_eq!(remove(rules.uid), format!("add table {table}\ndelete table {table}\n"));
        let emptied = format!("add table {table}\nflush table {table}\n");
        assert!(put_in_place(&rules).starts_with(&emptied));
        assert_eq!(replace(&rules), put_in_place(&rules).replace(&emptied, &remove(rules.uid)));
        assert!(rehearsal(&rules).ends_with(&format!("}}\ndelete table {table}\n")));
        assert_eq!(user_of_table("forrest-1900000007"), Some(1_900_000_007));
        assert_eq!(user_of_table("forrest-x"), None);
        assert_eq!(user_of_table("filter"), None);
    }

    #[test]
    fn nat64_embeds_networks() {
        assert_eq!(nat64("10.0.0.0/8"), "64:ff9b::a00:0/104");
        assert_eq!(nat64("168.63.129.16/32"), "64:ff9b::a83f:8110/128");
    }
}
