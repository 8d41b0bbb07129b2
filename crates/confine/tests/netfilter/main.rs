//! The filter in the kernel, in a network namespace of each test's own: what a VM's user reaches and
//! what not, by every protocol; that the filter comes back when it is taken away, and goes with its VM.
//!
//! The namespace has no other end: "the Internet" is a dummy device, beyond which nobody is. A packet
//! that is let through vanishes there; one that is refused is refused at once. Both can be told apart.

mod namespace;

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use forrest_confine::{Claim, Destination, Filter, filter, rules};
use forrest_core::model::UidRange;
use namespace::{Namespace, OUTSIDE, Probe, Verdict};

/// How long the kernel's word takes at most to be heard and acted upon, on a busy host.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a filter is watched that has nothing to do any more: ten times its pause.
const AFTERWARDS: Duration = Duration::from_millis(500);

/// Users of one test: tests run side by side.
fn users(first: u32) -> UidRange {
    format!("{first}-{}", first + 9).parse().expect("a range")
}

fn to(text: &str, port: Option<u16>) -> Destination {
    let (address, prefix) = text.split_once('/').unwrap_or((text, ""));
    let address: IpAddr = address.parse().expect("an address");
    let most = if address.is_ipv4() { 32 } else { 128 };
    Destination { address, prefix: prefix.parse().unwrap_or(most), port }
}

/// Where no guest may get to: what is the host's own, private, local or reserved.
fn not_the_internet(port: u16, other: u16) -> Vec<String> {
    vec![
        format!("127.0.0.1:{other}"),
        format!("[::1]:{port}"),
        format!("[::ffff:127.0.0.1]:{other}"),
        // The host's own addresses, also the public ones.
        format!("{}:{port}", namespace::OWN_V4),
        format!("[{}]:{port}", namespace::OWN_V6),
        "0.0.0.0:80".to_owned(),
        "10.0.0.1:80".to_owned(),
        "100.64.0.1:80".to_owned(),
        "100.100.100.200:80".to_owned(),
        "127.9.9.9:80".to_owned(),
        "168.63.129.16:80".to_owned(),
        "169.254.169.254:80".to_owned(),
        "172.31.255.255:80".to_owned(),
        "192.0.0.192:80".to_owned(),
        "192.0.2.1:80".to_owned(),
        "192.168.1.1:80".to_owned(),
        "198.18.0.1:80".to_owned(),
        "198.51.100.1:80".to_owned(),
        "203.0.113.1:80".to_owned(),
        "240.0.0.1:80".to_owned(),
        "[::ffff:10.0.0.1]:80".to_owned(),
        "[::ffff:169.254.169.254]:80".to_owned(),
        "[64:ff9b::10.0.0.1]:80".to_owned(),
        "[64:ff9b::169.254.169.254]:80".to_owned(),
        "[64:ff9b:1::1]:80".to_owned(),
        "[2001:0:1::1]:80".to_owned(),
        "[2002:a00:1::1]:80".to_owned(),
        "[fd00:ec2::254]:80".to_owned(),
        "[fd00:1::1]:80".to_owned(),
        "[fc00::1]:80".to_owned(),
        "[fec0::1]:80".to_owned(),
        format!("[fe80::1%{OUTSIDE}]:80"),
        "[100::1]:80".to_owned(),
    ]
}

#[tokio::test(flavor = "current_thread")]
async fn what_a_guest_reaches_and_what_not() {
    let Some(here) = Namespace::enter() else { return };
    let uid = 1_810_000_000;
    let allow = vec![
        to("127.0.0.1", Some(here.port())),
        to("10.20.0.0/16", None),
        to("fd00:1::1", Some(443)),
    ];
    let filter = Filter::put_in_place(uid, allow).await.expect("in place");
    let port = here.port();
    let other = here.other_port();
    // Its own exceptions.
    assert_eq!(here.probe(uid, Probe::Tcp, &format!("127.0.0.1:{port}")), Verdict::Answered);
    assert_eq!(here.probe(uid, Probe::Udp, "10.20.3.4:9"), Verdict::LetThrough);
    assert_eq!(here.probe(uid, Probe::Tcp, "10.20.3.4:9"), Verdict::LetThrough);
    assert_eq!(here.probe(uid, Probe::Udp, "[fd00:1::1]:443"), Verdict::LetThrough);
    // The Internet.
    for address in
        ["93.184.215.14:80", "1.1.1.1:53", "[2606:2800:21f::1]:443", "[64:ff9b::101:101]:80"]
    {
        assert_eq!(here.probe(uid, Probe::Tcp, address), Verdict::LetThrough, "{address}");
        assert_eq!(here.probe(uid, Probe::Udp, address), Verdict::LetThrough, "{address}");
    }
    assert_eq!(here.probe(uid, Probe::Ping, "93.184.215.14:0"), Verdict::LetThrough);
    assert_eq!(here.probe(uid, Probe::Ping, "[2606:2800:21f::1]:0"), Verdict::LetThrough);
    // Everything else.
    let refused = not_the_internet(port, other);
    for address in &refused {
        for probe in [Probe::Tcp, Probe::Udp, Probe::Ping] {
            // ICMPv6 knows no IPv4 addresses.
            if matches!(probe, Probe::Ping) && address.contains("::ffff:") {
                continue;
            }
            let verdict = here.probe(uid, probe, address);
            assert_eq!(verdict, Verdict::Refused, "{probe:?} to {address}");
        }
    }
    let many = format!("[ff02::fb%{OUTSIDE}]:5353");
    for address in ["224.0.0.251:5353", "239.1.2.3:1", "255.255.255.255:67", &many] {
        assert_eq!(here.probe(uid, Probe::Udp, address), Verdict::Refused, "{address}");
    }
    // Nobody else is concerned.
    let neighbour = uid + 1;
    let answered = here.probe(neighbour, Probe::Tcp, &format!("127.0.0.1:{other}"));
    assert_eq!(answered, Verdict::Answered);
    assert_eq!(here.probe(neighbour, Probe::Udp, "192.168.1.1:80"), Verdict::LetThrough);
    filter.remove().await.expect("removed");
    assert_eq!(here.tables(), "");
}

#[tokio::test(flavor = "current_thread")]
async fn a_guest_that_begins_connections_without_end_is_slowed_down() {
    let Some(here) = Namespace::enter() else { return };
    let uid = 1_810_000_500;
    let allow = vec![to("10.20.0.0/16", None)];
    let _filter = Filter::put_in_place(uid, allow).await.expect("in place");
    let burst = rules::CONNECTIONS_BURST;
    here.begin_connections(uid, "93.184.215.14:80", burst);
    assert_eq!(here.refused(), 0);
    // The rate lets some more through, but it would take this long for all of them.
    here.begin_connections(uid, "[2606:2800:21f::1]:443", 15 * rules::CONNECTIONS_PER_S_MAX);
    assert!(here.refused() > 0, "{}", here.rules(uid));
    // What is allowed does not count.
    let refused = here.refused();
    here.begin_connections(uid, "10.20.3.4:9", 2 * burst);
    assert_eq!(here.refused(), refused);
}

#[tokio::test(flavor = "current_thread")]
async fn the_hosts_name_servers_can_be_asked() {
    let Some(here) = Namespace::enter() else { return };
    let resolvers = forrest_confine::resolvers::configured();
    let Some(resolver) = resolvers.first() else {
        return namespace::skip("this host has no name server");
    };
    let uid = 1_810_000_100;
    let _filter = Filter::put_in_place(uid, Vec::new()).await.expect("in place");
    let at = |port| SocketAddr::new(*resolver, port).to_string();
    let verdict = here.probe(uid, Probe::Udp, &at(53));
    assert_ne!(verdict, Verdict::Refused, "{resolver}");
    if resolver.to_string().starts_with("10.") {
        assert_eq!(here.probe(uid, Probe::Udp, &at(54)), Verdict::Refused, "{resolver}");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_filter_that_somebody_takes_away_comes_back_by_itself() {
    let Some(here) = Namespace::enter() else { return };
    let uid = 1_810_000_200;
    let mut filter = Filter::put_in_place(uid, Vec::new()).await.expect("in place");
    let before = here.rules(uid);
    assert!(before.contains("fib daddr type"), "{before}");
    let table = rules::table(uid);
    let attacks = [
        "flush ruleset".to_owned(),
        format!("delete table inet {table}"),
        format!("flush chain inet {table} guest"),
        format!("insert rule inet {table} guest accept"),
        // The same twice: it comes back for as long as the VM lives.
        "flush ruleset".to_owned(),
    ];
    let told = RefCell::new(Vec::new());
    let restored = async |attack: &str| {
        let as_before = async {
            while here.rules(uid) != before {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let in_time = tokio::time::timeout(PATIENCE, as_before).await;
        in_time.unwrap_or_else(|_| panic!("{attack}: not restored"));
    };
    let watched = async {
        for attack in &attacks {
            here.nft(attack);
            restored(attack).await;
            let verdict = here.probe(uid, Probe::Udp, "192.168.1.1:80");
            assert_eq!(verdict, Verdict::Refused, "{attack}");
        }
        tokio::time::sleep(AFTERWARDS).await;
        let seen = told.borrow().len();
        // Each attack is a few changes, each of which may be heard of by itself; what was done about
        // it is none.
        assert!(seen <= 3 * attacks.len(), "put back {seen} times: {told:?}");
        // Two changes before it can look. What it does about the first one is heard of only when it
        // has seen to the second one, and is not taken for somebody else's even then.
        here.nft("flush ruleset");
        here.nft(&format!("add table inet {table}"));
        restored("two at once").await;
        tokio::time::sleep(AFTERWARDS).await;
        let put_back = told.borrow().len() - seen;
        assert!(put_back <= 2, "it was put back {put_back} times");
    };
    tokio::select! {
        lost = filter.keep(|what| told.borrow_mut().push(what.to_owned())) => panic!("{lost}"),
        () = watched => {}
    }
    let told = told.into_inner();
    assert!(
        !told.is_empty() && told.iter().all(|what| what.contains("in place again")),
        "{told:?}"
    );
    filter.remove().await.expect("removed");
    assert_eq!(here.tables(), "");
}

#[tokio::test(flavor = "current_thread")]
async fn filters_of_killed_supervisors_are_swept_and_others_are_not() {
    let Some(here) = Namespace::enter() else { return };
    let range = users(1_810_000_300);
    let live = Claim::any(range).expect("a user");
    // A supervisor that was killed: its filter stays, its claim does not.
    let dead = live.uid() + 1;
    for uid in [live.uid(), dead] {
        Filter::put_in_place(uid, Vec::new()).await.expect("in place");
    }
    here.nft("add table inet somebody-elses");
    assert_eq!(filter::sweep(range).await.expect("swept"), 1);
    let tables = here.tables();
    assert!(tables.contains(&rules::table(live.uid())) && tables.contains("somebody-elses"));
    assert!(!tables.contains(&rules::table(dead)), "{tables}");
}

#[tokio::test(flavor = "current_thread")]
async fn a_rehearsal_changes_nothing_and_tells_why_it_fails() {
    let Some(here) = Namespace::enter() else { return };
    let range = users(1_810_000_400);
    filter::rehearse(range).await.expect("possible");
    assert_eq!(here.tables(), "");
    here.drop_privileges();
    let refusal = filter::rehearse(range).await.expect_err("without privileges").to_string();
    assert!(refusal.contains("could not watch the kernel's packet filter"), "{refusal}");
}
