//! A network of a test's own, and probes in it.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::net::{
    AddressFamily, SendFlags, SocketFlags, SocketType, connect, ipproto, sendto, socket_with,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, LinkNameSpaceType, Uid, move_into_link_name_space,
    set_capabilities, set_thread_uid,
};

/// The host's public addresses here.
pub const OWN_V4: &str = "203.0.113.7";
pub const OWN_V6: &str = "2606:4700:abcd::7";
/// The number of the interface that they are on; not one of the first, which the kernel gives.
pub const OUTSIDE: u32 = 7;
/// The host's address on that link. One that the kernel chooses cannot be used for the first second
/// or two, while it is checked for duplicates.
const LINK_LOCAL: &str = "fe80::7";
/// How long an answer is waited for that does not come: nobody is out there.
const NO_ANSWER: Duration = Duration::from_millis(200);

/// Says why a test is left out. Fails it in CI, where nothing may be left out.
pub fn skip(reason: &str) {
    eprintln!("SKIPPED, NOT TESTED: {reason}");
    assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "not testable in CI: {reason}");
}

/// How something is tried to be reached.
#[derive(Debug, Clone, Copy)]
pub enum Probe {
    Tcp,
    Udp,
    Ping,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Somebody answered.
    Answered,
    /// It left the host, and nobody answered.
    LetThrough,
    /// The filter refused it: its counters say so.
    Refused,
    /// It failed, and not because of the filter.
    Failed(std::io::ErrorKind),
}

/// The network that the calling thread, and with it its children, is in.
pub struct Namespace {
    listeners: [TcpListener; 3],
}

impl Namespace {
    /// Moves the calling thread into a new network; `None`, said loudly, where that is not possible.
    pub fn enter() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            skip("a network namespace needs root");
            return None;
        }
        if forrest_confine::filter::find_nft().is_err() {
            skip("nft is missing: `make setup` installs it");
            return None;
        }
        let mut maker = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo made; read -r end"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare runs");
        let mut line = String::new();
        let said = maker.stdout.take().expect("its output");
        BufReader::new(said).read_line(&mut line).expect("a line");
        if line != "made\n" {
            maker.wait().expect("its end");
            skip("network namespaces are not possible here");
            return None;
        }
        let network =
            std::fs::File::open(format!("/proc/{}/ns/net", maker.id())).expect("a network");
        let network_only = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(network.as_fd(), network_only).expect("entered");
        let script = format!(
            "ip link set lo up
             ip link add outside index {OUTSIDE} arp off type veth peer name far
             ip link set outside addrgenmode none
             ip link set far up
             ip link set outside up
             ip address add {OWN_V4}/24 dev outside
             ip address add {OWN_V6}/64 dev outside nodad
             ip address add {LINK_LOCAL}/64 dev outside nodad
             ip route add default dev outside
             ip -6 route add default dev outside
             echo '0 2147483647' > /proc/sys/net/ipv4/ping_group_range"
        );
        // The network stays for as long as this thread is in it.
        drop(maker.stdin.take());
        maker.wait().expect("its end");
        let set_up = Command::new("sh").args(["-e", "-c", &script]).status().expect("sh runs");
        assert!(set_up.success(), "the network cannot be set up");
        let everywhere = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a listener");
        let port = everywhere.local_addr().expect("its address").port();
        let listeners = [
            TcpListener::bind((Ipv6Addr::LOCALHOST, port)).expect("a listener"),
            everywhere,
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a listener"),
        ];
        Some(Self { listeners })
    }

    /// Where a service of the host listens, on its public addresses and on the loopback.
    pub fn port(&self) -> u16 {
        self.listeners[1].local_addr().expect("its address").port()
    }

    /// Where another one listens, on the loopback only.
    pub fn other_port(&self) -> u16 {
        self.listeners[2].local_addr().expect("its address").port()
    }

    /// Tries to reach an address as this user.
    pub fn probe(&self, uid: u32, probe: Probe, address: &str) -> Verdict {
        let address: SocketAddr = address.parse().expect(address);
        let refused_before = self.refused();
        // Users are the kernel's threads' own; this one is new and ends with the probe.
        let probed = std::thread::spawn(move || {
            set_thread_uid(Uid::from_raw(uid)).expect("another user");
            match probe {
                Probe::Tcp => TcpStream::connect_timeout(&address, NO_ANSWER).map(|_| true),
                Probe::Udp => datagram(address).map(|()| false),
                Probe::Ping => ping(address).map(|()| false),
            }
        });
        let result = probed.join().expect("the probe ends");
        let refused = self.refused() > refused_before;
        match result {
            Ok(true) => Verdict::Answered,
            _ if refused => Verdict::Refused,
            Ok(false) => Verdict::LetThrough,
            Err(error) if error.kind() == std::io::ErrorKind::TimedOut => Verdict::LetThrough,
            Err(error) => Verdict::Failed(error.kind()),
        }
    }

    /// Begins connections to an address as this user, and waits for none of them.
    pub fn begin_connections(&self, uid: u32, address: &str, count: u32) {
        let address: SocketAddr = address.parse().expect(address);
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let begun = std::thread::spawn(move || {
            set_thread_uid(Uid::from_raw(uid)).expect("another user");
            for _ in 0..count {
                let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
                let socket =
                    socket_with(family, SocketType::STREAM, flags, None).expect("a socket");
                // It is under way.
                let _ = connect(&socket, &address);
            }
        });
        begun.join().expect("they are begun");
    }

    /// How many packets all filters have refused.
    pub fn refused(&self) -> u64 {
        let rules = self.nft("list ruleset");
        let mut words = rules.split_whitespace();
        let mut sum = 0;
        while let Some(word) = words.next() {
            if word == "packets" {
                sum += words.next().and_then(|count| count.parse::<u64>().ok()).unwrap_or(0);
            }
        }
        sum
    }

    /// Runs `nft` and returns what it prints.
    pub fn nft(&self, arguments: &str) -> String {
        let nft = forrest_confine::filter::find_nft().expect("nft");
        let output = Command::new(nft).args(arguments.split(' ')).output().expect("nft runs");
        assert!(output.status.success(), "{arguments}: {output:?}");
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// All tables, one a line.
    pub fn tables(&self) -> String {
        self.nft("list tables")
    }

    /// The rules for a user's packets, without their counts; empty where there are none.
    pub fn rules(&self, uid: u32) -> String {
        let table = forrest_confine::rules::table(uid);
        if self.tables().lines().any(|line| line == format!("table inet {table}")) {
            // It may go in between.
            let nft = forrest_confine::filter::find_nft().expect("nft");
            let listed = Command::new(nft).args(["-s", "list", "table", "inet", &table]).output();
            String::from_utf8_lossy(&listed.expect("nft runs").stdout).into_owned()
        } else {
            String::new()
        }
    }

    /// The calling thread cannot do anything any more that takes privileges.
    pub fn drop_privileges(&self) {
        let none = CapabilitySet::empty();
        let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
        set_capabilities(None, sets).expect("renounced");
    }
}

fn datagram(address: SocketAddr) -> std::io::Result<()> {
    let any: SocketAddr = if address.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let socket = UdpSocket::bind(any)?;
    if address.is_ipv4() {
        socket.set_broadcast(true)?;
    }
    socket.send_to(b"hello", address).map(drop)
}

/// As user-mode networking pings: with the kernel's ICMP sockets.
fn ping(address: SocketAddr) -> std::io::Result<()> {
    let (family, protocol, echo_request) = match address {
        SocketAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP, 8),
        SocketAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6, 128),
    };
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::DGRAM, flags, Some(protocol))?;
    let message = [echo_request, 0, 0, 0, 0, 0, 0, 1];
    sendto(&socket, &message, SendFlags::empty(), &address)?;
    Ok(())
}
