//! The network that the attacks run in: a host with public addresses, and beyond its only cable one who has
//! all other addresses, and listens at each of them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Where somebody listens at each address.
pub const PORT: u16 = 7777;
/// The host's public addresses.
pub const OWN_V4: &str = "203.0.113.7";
pub const OWN_V6: &str = "2606:4700:abcd::7";
/// Its name server, as many have it: at a private address.
pub const NAME_SERVER: &str = "10.99.0.53";
/// Where packets are counted that nobody answers: a port and an address.
pub const SINK: (u16, &str) = (9, "10.99.0.1");
/// The most arrivals that the sink remembers.
const ARRIVALS_MAX: usize = 1 << 20;

/// How often somebody came, by address.
type Came = Arc<Mutex<BTreeMap<SocketAddr, usize>>>;

/// What is outside.
pub struct Outside {
    came: Came,
    arrivals: Arc<Mutex<Vec<Instant>>>,
    /// Holds the far end's network.
    far: Child,
}

impl Drop for Outside {
    fn drop(&mut self) {
        // It ends with its input, too.
        let _ = self.far.kill();
        let _ = self.far.wait();
    }
}

impl Outside {
    /// Makes the calling process's network, which has to be a new one, such a one. Its threads stay in it.
    ///
    /// # Errors
    /// Where a program is missing or the kernel refuses.
    pub fn new(dir: &Path, targets: impl Iterator<Item = (u16, &'static str)>) -> Result<Self> {
        let far = far_network()?;
        let mut by_address: BTreeMap<IpAddr, Vec<u16>> = BTreeMap::new();
        for (port, address) in targets.chain([(53, NAME_SERVER), SINK]) {
            by_address.entry(address.parse()?).or_default().push(port);
        }
        let near = |address: &IpAddr| is(address, OWN_V4) || is(address, OWN_V6);
        // What slirp gives its own meaning to, and what is many.
        let nobodys = |address: &IpAddr| {
            address.is_multicast()
                || address.to_string().starts_with("10.0.2.")
                || address.to_string().starts_with("fec0:")
        };
        let far_addresses: Vec<IpAddr> = by_address
            .keys()
            .filter(|address| !near(address) && !nobodys(address))
            .copied()
            .collect();
        set_up(&far, &far_addresses, dir)?;

        let sink = SocketAddr::new(SINK.1.parse()?, SINK.0);
        let outside = Self { came: Came::default(), arrivals: Arc::default(), far };
        let near: Vec<SocketAddr> = ["127.0.0.1", "::1", OWN_V4, OWN_V6]
            .iter()
            .map(|address| Ok(SocketAddr::new(address.parse()?, PORT)))
            .collect::<Result<_>>()?;
        for address in near {
            listen(address, &outside.came)?;
        }
        let far: Vec<SocketAddr> = far_addresses
            .iter()
            .flat_map(|address| {
                by_address[address].iter().map(|port| SocketAddr::new(*address, *port))
            })
            .filter(|address| *address != sink)
            .collect();
        outside.listen_far(far, sink)?;
        Ok(outside)
    }

    /// Sockets belong to the network that they were made in: a thread makes them there.
    fn listen_far(&self, addresses: Vec<SocketAddr>, sink: SocketAddr) -> Result<()> {
        let network = File::open(format!("/proc/{}/ns/net", self.far.id()))?;
        let (came, arrivals) = (Arc::clone(&self.came), Arc::clone(&self.arrivals));
        let made = std::thread::spawn(move || -> Result<()> {
            move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
            for address in addresses {
                listen(address, &came)?;
            }
            let sink = UdpSocket::bind(sink)?;
            std::thread::spawn(move || {
                let mut buffer = [0; 64];
                while sink.recv(&mut buffer).is_ok() {
                    let mut arrivals = arrivals.lock().unwrap_or_else(PoisonError::into_inner);
                    if arrivals.len() < ARRIVALS_MAX {
                        arrivals.push(Instant::now());
                    }
                }
            });
            Ok(())
        });
        made.join().map_err(|_| anyhow::anyhow!("the listeners' thread panicked"))?
    }

    /// How often somebody came to an address and port, as the guest calls them.
    pub fn came(&self, address: &str, port: u16) -> usize {
        let address = match address {
            super::HOST_V4 => "127.0.0.1",
            super::HOST_V6 => "::1",
            super::NAME_SERVER => NAME_SERVER,
            other => other,
        };
        let came = self.came.lock().unwrap_or_else(PoisonError::into_inner);
        let address = address.parse().ok().map(|address| SocketAddr::new(address, port));
        address.and_then(|address| came.get(&address).copied()).unwrap_or_default()
    }

    /// When packets came to the [`SINK`], from the first one on.
    pub fn arrivals(&self) -> Vec<Instant> {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn is(address: &IpAddr, text: &str) -> bool {
    text.parse().is_ok_and(|other: IpAddr| other == *address)
}

/// A network that lasts as long as this process does.
fn far_network() -> Result<Child> {
    let mut far = Command::new("unshare")
        .args(["--net", "sh", "-c", "echo made; read -r end"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("unshare does not run")?;
    let mut line = String::new();
    let said = far.stdout.take().context("it has no output")?;
    BufReader::new(said).read_line(&mut line)?;
    ensure!(line == "made\n", "network namespaces are not possible here");
    Ok(far)
}

/// The cable, the addresses at its two ends, and the host's name server.
fn set_up(far: &Child, far_addresses: &[IpAddr], dir: &Path) -> Result<()> {
    let resolv_conf = dir.join("resolv.conf");
    std::fs::write(&resolv_conf, format!("nameserver {NAME_SERVER}\n"))?;
    let mut script = format!(
        "mount --make-rprivate /
         mount --bind {} /etc/resolv.conf
         echo '0 2147483647' > /proc/sys/net/ipv4/ping_group_range
         far='nsenter --net=/proc/{}/ns/net'
         ip link set lo up
         ip link add cable type veth peer name far netns {}
         ip link set cable up
         $far ip link set lo up
         $far ip link set far up
         ip address add {OWN_V4}/24 dev cable
         ip address add {OWN_V6}/64 dev cable nodad
         ip route add default dev cable
         ip -6 route add default dev cable
         $far ip route add default dev far
         $far ip -6 route add default dev far\n",
        resolv_conf.display(),
        far.id(),
        far.id()
    );
    for address in far_addresses {
        let how = if address.is_ipv4() { "/32 dev far" } else { "/128 dev far nodad" };
        script.push_str(&format!("$far ip address add {address}{how}\n"));
    }
    let done =
        Command::new("sh").args(["-e", "-c", &script]).output().context("sh does not run")?;
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    ensure!(done.status.success(), "the network could not be set up: {said}");
    Ok(())
}

/// Somebody who answers everybody with its own address, and counts them. Ends with the process.
fn listen(address: SocketAddr, came: &Came) -> Result<()> {
    let text = format!("{}\n", address.ip());
    let count = move |came: &Came| {
        *came.lock().unwrap_or_else(PoisonError::into_inner).entry(address).or_default() += 1;
    };
    let tcp =
        TcpListener::bind(address).with_context(|| format!("nobody can listen at {address}"))?;
    let udp =
        UdpSocket::bind(address).with_context(|| format!("nobody can listen at {address}"))?;
    let (for_tcp, answer) = (Arc::clone(came), text.clone());
    std::thread::spawn(move || {
        for connection in tcp.incoming().flatten() {
            count(&for_tcp);
            // Whoever hangs up has been counted.
            let _ = (&connection).write_all(answer.as_bytes());
        }
    });
    let for_udp = Arc::clone(came);
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((_, from)) = udp.recv_from(&mut buffer) {
            count(&for_udp);
            let _ = udp.send_to(text.as_bytes(), from);
        }
    });
    Ok(())
}
