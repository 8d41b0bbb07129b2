//! The name servers of the host, which guests may ask: user-mode networking forwards what a guest asks
//! its own name server (10.0.2.3, fec0::3) to the host's, and reads the same file to find it.

use std::io::Read;
use std::net::IpAddr;
use std::path::Path;

/// Where the host's name servers are written.
pub const PATH: &str = "/etc/resolv.conf";
/// The most of the file that is read, in bytes.
const LEN_MAX: u64 = 64 << 10;
/// The most name servers that count; programs use the first three.
pub const RESOLVERS_MAX: usize = 8;

/// The host's name servers now; none where the file cannot be read.
pub fn configured() -> Vec<IpAddr> {
    let mut text = String::new();
    let read = std::fs::File::open(Path::new(PATH))
        .and_then(|file| file.take(LEN_MAX).read_to_string(&mut text));
    if read.is_err() {
        return Vec::new();
    }
    parse(&text)
}

/// The addresses of a `resolv.conf(5)`, in order, without scopes.
pub fn parse(text: &str) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        let word = words.next().unwrap_or_default();
        let address = word.split_once('%').map_or(word, |(address, _)| address);
        if let Ok(address) = address.parse::<IpAddr>()
            && !found.contains(&address)
            && found.len() < RESOLVERS_MAX
        {
            found.push(address);
        }
    }
    found
}

/// Those of now, and then those of before that are not among them.
pub(crate) fn with_former(now: Vec<IpAddr>, before: &[IpAddr]) -> Vec<IpAddr> {
    let mut all = now;
    for address in before {
        if !all.contains(address) {
            all.push(*address);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn former_ones_come_last_and_once() {
        let list = |text: &str| -> Vec<IpAddr> {
            text.split_whitespace().map(|word| word.parse().expect("an address")).collect()
        };
        let both = with_former(list("10.1.1.1 10.0.0.2"), &list("10.0.0.1 10.0.0.2"));
        assert_eq!(both, list("10.1.1.1 10.0.0.2 10.0.0.1"));
        assert_eq!(with_former(both.clone(), &both), both);
    }

    #[test]
    fn addresses_are_found_in_order_and_once() {
        let text = "# made by hand\nsearch example.org\nnameserver 127.0.0.53\n nameserver\t9.9.9.9\n\
                    nameserver fe80::1%eth0\nnameserver 9.9.9.9\nnameserver nonsense\nnameserver\n\
                    options edns0\n; nameserver 1.1.1.1\n#nameserver 8.8.8.8\n";
        let found: Vec<String> = parse(text).iter().map(IpAddr::to_string).collect();
        assert_eq!(found, ["127.0.0.53", "9.9.9.9", "fe80::1"]);
        let many: String = (0..100).map(|n| format!("nameserver 9.9.9.{n}\n")).collect();
        assert_eq!(parse(&many).len(), RESOLVERS_MAX);
    }
}
