//! What a guest reaches over the network, and what not.
//!
//! The attacks run in a network of their own, by a process of its own: there, `outside` plays the Internet,
//! private networks and clouds' metadata services. Each address has somebody who listens, answers, and
//! counts who has come, so that a row of the table has two witnesses: the guest, and whom it must not reach.

mod flush;
mod outside;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use forrest_testbed::{MachinePlan, Plan, Testbed};

use crate::guests;
use crate::report::Report;
use outside::{Outside, PORT};

/// The word that has this program make the attacks, where it is in a network of its own already.
pub const INSIDE: &str = "egress-inside";
/// The machine type that attacks.
const MACHINE: &str = "acme/widgets/egress";
/// What the configuration opens.
const ALLOWED: &str = "10.77.0.1";
/// How slirp calls the host, and the host's name server.
const HOST_V4: &str = "10.0.2.2";
const HOST_V6: &str = "fec0::2";
const NAME_SERVER: &str = "10.0.2.3";
/// Whose pings slirp answers itself, without asking anybody.
const SLIRPS_OWN: [&str; 3] = [HOST_V4, HOST_V6, NAME_SERVER];

/// Destinations of one kind.
struct Kind {
    what: &'static str,
    /// Whether they are to be reached.
    open: bool,
    /// Ports and addresses as the guest calls them.
    targets: &'static [(u16, &'static str)],
    /// By which protocols they are reached where they are open.
    by: &'static [&'static str],
}

const KINDS: &[Kind] = &[
    Kind {
        what: "the Internet",
        open: true,
        targets: &[(PORT, "93.184.215.14"), (PORT, "1.1.1.1")],
        by: &["tcp", "udp", "ping"],
    },
    // User-mode networking knows no pings of IPv6.
    Kind {
        what: "the Internet, IPv6",
        open: true,
        targets: &[(PORT, "2606:2800:21f::1")],
        by: &["tcp", "udp"],
    },
    Kind {
        what: "the host's name server, port 53, at a private address",
        open: true,
        targets: &[(53, NAME_SERVER)],
        by: &["udp"],
    },
    Kind {
        what: "a private address that network.allow names",
        open: true,
        targets: &[(PORT, ALLOWED)],
        by: &["tcp", "udp"],
    },
    Kind {
        what: "services on the host's loopback",
        open: false,
        targets: &[(PORT, HOST_V4), (PORT, HOST_V6)],
        by: &[],
    },
    Kind {
        what: "the host's own public addresses",
        open: false,
        targets: &[(PORT, outside::OWN_V4), (PORT, outside::OWN_V6)],
        by: &[],
    },
    Kind {
        what: "other ports of the host's name server",
        open: false,
        targets: &[(PORT, outside::NAME_SERVER)],
        by: &[],
    },
    Kind {
        what: "private networks",
        open: false,
        targets: &[(PORT, "10.99.0.1"), (PORT, "172.20.0.1"), (PORT, "192.168.50.1")],
        by: &[],
    },
    Kind {
        what: "clouds' metadata services",
        open: false,
        targets: &[
            (PORT, "169.254.169.254"),
            (80, "169.254.169.254"),
            (PORT, "168.63.129.16"),
            (PORT, "100.100.100.200"),
            (PORT, "192.0.0.192"),
            (PORT, "fd00:ec2::254"),
        ],
        by: &[],
    },
    Kind { what: "carrier-grade NAT", open: false, targets: &[(PORT, "100.64.0.9")], by: &[] },
    Kind { what: "IPv6 unique local", open: false, targets: &[(PORT, "fd00:99::1")], by: &[] },
    Kind {
        what: "private networks behind NAT64 and 6to4",
        open: false,
        targets: &[(PORT, "64:ff9b::a63:1"), (PORT, "2002:a63:1::1")],
        by: &[],
    },
    Kind {
        what: "networks for benchmarks",
        open: false,
        targets: &[(PORT, "198.18.0.1")],
        by: &[],
    },
    // Guests have a network each: there is nobody but the host on it.
    Kind {
        what: "another guest, by its address, broadcast and multicast",
        open: false,
        targets: &[(PORT, "10.0.2.16"), (PORT, "10.0.2.255"), (PORT, "224.0.0.251")],
        by: &[],
    },
];

/// Makes the attacks in a network of their own.
///
/// # Errors
/// Where there cannot be one.
pub fn attack(report: &mut Report, root: &Path) -> Result<()> {
    eprintln!("A guest tries to reach what it must not ...");
    let path = report_path(root);
    if path.exists() {
        std::fs::remove_file(&path)?;
    }
    let own = std::env::current_exe().context("where is this program?")?;
    let status = Command::new("unshare")
        .args(["--net", "--mount"])
        .arg(own)
        .arg(INSIDE)
        .current_dir(root)
        .status()
        .context("unshare does not run")?;
    ensure!(
        status.success(),
        "what a guest reaches could not be tried: it takes root and network namespaces"
    );
    report.take(&path)
}

fn report_path(root: &Path) -> PathBuf {
    root.join("target/security/egress.json")
}

/// The same, in there.
///
/// # Errors
/// Where something does not work that should.
pub async fn inside() -> Result<()> {
    let root = forrest_testbed::repository_root();
    let dir = root.join("target/security/egress");
    if dir.exists() {
        std::fs::remove_dir_all(&dir)
            .with_context(|| format!("could not empty {}", dir.display()))?;
    }
    std::fs::create_dir_all(&dir)?;
    let targets = KINDS.iter().flat_map(|kind| kind.targets).copied();
    let outside = Outside::new(&dir, targets)?;
    let forrest = forrest_testbed::forrest_program()?;
    let machine = MachinePlan::new(MACHINE).with("snapshot: true").allowing(ALLOWED);
    let mut testbed = Testbed::start(Plan::new(&root, &dir, &forrest).with(machine)).await?;
    let mut report = Report::default();
    let result = async {
        guests::wait_for_snapshots(&testbed).await?;
        probe(&mut report, &testbed, &outside).await?;
        flush::attack(&mut report, &testbed, &outside).await
    }
    .await;
    testbed.stop_daemon().await?;
    report.write(&report_path(&root))?;
    result
}

/// One guest tries everything.
async fn probe(report: &mut Report, testbed: &Testbed, outside: &Outside) -> Result<()> {
    let targets = KINDS.iter().flat_map(|kind| kind.targets);
    let targets: Vec<String> = targets.map(|(port, to)| format!("{port}/{to}")).collect();
    let script = include_str!("attacks/egress.py").replace("@TARGETS@", &targets.join("\n"));
    let fought = guests::fight(testbed, MACHINE, "what it reaches", &script).await?;
    ensure!(fought.did("egress").is_some(), "it did not try everything:\n{}", fought.log);
    for kind in KINDS {
        let (contained, evidence) = judge(kind, &fought.log, outside);
        let name = match kind.open {
            true => format!("egress: {} (open)", kind.what),
            false => format!("egress: {}", kind.what),
        };
        report.add(name, contained, evidence);
    }
    Ok(())
}

/// What both witnesses say of a kind of destination.
fn judge(kind: &Kind, log: &str, outside: &Outside) -> (bool, String) {
    let (mut tried, mut answered, mut came, mut missing) = (0, 0, 0, Vec::new());
    for (port, address) in kind.targets {
        came += outside.came(address, *port);
        for protocol in ["tcp", "udp", "ping"] {
            if protocol == "ping" && SLIRPS_OWN.contains(address) {
                continue;
            }
            let probe = format!("PROBE {port}/{address} {protocol} ");
            let Some((_, result)) = log.lines().find_map(|line| line.split_once(&probe)) else {
                missing.push(format!("{address} was not tried by {protocol}"));
                continue;
            };
            tried += 1;
            let reached = result.starts_with("answered:");
            answered += usize::from(reached);
            if kind.open && kind.by.contains(&protocol) && !reached {
                missing.push(format!("{address} by {protocol}: {result}"));
            }
            if !kind.open && reached {
                missing.push(format!("{address} REACHED by {protocol}"));
            }
        }
    }
    let mut evidence = format!(
        "{tried} tried, {answered} answered; {came} of them seen by those who listen there"
    );
    for what in &missing {
        evidence.push_str("; ");
        evidence.push_str(what);
    }
    let quiet = kind.open || (answered == 0 && came == 0);
    (missing.is_empty() && quiet, evidence)
}
