//! Runs that are restored from a snapshot of their booted guest, and what may go wrong with those.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use forrest_core::event::EndReason;
use forrest_core::model::{Generation, ImageRef};
use forrest_core::run::FinishedRun;
use forrest_core::snapshots::SnapshotState;
use forrest_daemon::control::Status;
use forrest_testbed::{KEEP_DISK, MachinePlan, Plan, QueuedJob, Testbed, processes};
use github_sim::model::{ApiEffect, ApiFault, JobId, When};

use crate::scene::{
    GUEST_LIFE, assert_clean, complete_snapshots, plan, plan_on_xfs, root, snapshot_of, until,
};

const BUILD: &str = "acme/widgets/build";
/// Clones that are made at once.
const CLONES: usize = 4;
/// How long a supervisor that has nothing left to do may take to end, on a busy machine.
const GONE_MAX: Duration = Duration::from_secs(10);
/// How far a clone's clock may be off.
const CLOCK_OFF_MAX_S: f64 = 0.1;

/// Says, one word and its value a line, what must differ between clones or be right in each.
const LOOK_AROUND: &str = r#"
echo "uuid $(cat /proc/sys/kernel/random/uuid)"
echo "urandom $(head -c 16 /dev/urandom | base64)"
echo "key $(openssl genpkey -algorithm ed25519 | sha256sum)"
echo "hostname $(hostname)"
echo "registered $(cat /home/runner/config/hostname)"
echo "sudo $(sudo hostname 2>&1)"
"#;

/// Asks the simulator for the time some times over. Of the quickest answer, says the bounds between which
/// the host's clock minus this one's must be, and what became of a question to the resolver.
const ASK_AROUND: &str = r#"
python3 - "$SIMULATOR" <<'PYTHON'
import json, socket, sys, time, urllib.request
best = None
for _ in range(20):
    before = time.time()
    with urllib.request.urlopen(sys.argv[1] + "/_sim/clock") as answer:
        host = json.load(answer)["unix_us"] / 1e6
    after = time.time()
    if best is None or after - before < best[0]:
        best = (after - before, host - after, host - before)
print("clock", *best[1:])
resolver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
resolver.settimeout(5)
# The name servers of the root: one question, recursion desired, class IN, type NS.
resolver.sendto(b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x01", ("10.0.2.3", 53))
try:
    print("resolver", resolver.recv(512)[:2] == b"\x12\x34")
except TimeoutError:
    print("resolver", False)
PYTHON
"#;

async fn ready(testbed: &Testbed) {
    let ready =
        |status: &Status| (snapshot_of(status, BUILD)?.state == SnapshotState::Ready).then_some(());
    testbed.wait(GUEST_LIFE, "the snapshot", ready).await.expect("it is built");
}

/// Waits for a snapshot that none of the old ones is: that those are outdated may not be known yet.
async fn ready_anew(testbed: &Testbed, old: &BTreeSet<String>) {
    let anew = |status: &Status| {
        let ready = snapshot_of(status, BUILD)?.state == SnapshotState::Ready;
        (ready && !complete_snapshots(testbed).is_subset(old)).then_some(())
    };
    testbed.wait(GUEST_LIFE, "a new snapshot", anew).await.expect("it is built");
}

/// A testbed with one machine type, whose snapshot is there.
async fn with_snapshot(mut plan: Plan, lines: &[&str]) -> Testbed {
    let machine = MachinePlan::new(BUILD).with("snapshot: true");
    plan.machines.push(lines.iter().fold(machine, |machine, line| machine.with(line)));
    let testbed = Testbed::start(plan).await.expect("the testbed starts");
    ready(&testbed).await;
    testbed
}

/// Queues a job, waits for its end, and returns its run and its log.
async fn ran(testbed: &Testbed, name: &str, steps: &[&str]) -> (FinishedRun, String) {
    let job = testbed.queue(BUILD, QueuedJob::push(name, steps)).expect("queued");
    let run = testbed.finished(job, GUEST_LIFE).await.expect("the job ends");
    (run, testbed.sim.job_log(job).expect("a log"))
}

/// The values of a word in a job's log, whose lines begin with a time.
fn said<'l>(log: &'l str, word: &str) -> &'l str {
    let value = |line: &'l str| {
        let (_, text) = line.split_once(' ')?;
        text.strip_prefix(word)?.strip_prefix(' ')
    };
    log.lines().find_map(value).unwrap_or_else(|| panic!("no {word} in\n{log}"))
}

/// Where guests find the simulator.
fn simulator(testbed: &Testbed) -> String {
    testbed.sim.url().replace("127.0.0.1", "10.0.2.2")
}

/// Whether this host's resolver answers the question that [`ASK_AROUND`] asks.
fn resolver_answers() -> bool {
    let conf = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let server =
        conf.lines().find_map(|line| line.strip_prefix("nameserver ")?.trim().parse().ok());
    let Some(server): Option<IpAddr> = server else { return false };
    let local: IpAddr = if server.is_ipv4() { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
    let socket = UdpSocket::bind((local, 0)).expect("a socket");
    socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
    let question = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x01";
    socket.send_to(question, SocketAddr::from((server, 53))).is_ok()
        && socket.recv(&mut [0; 512]).is_ok()
}

/// Clones of one guest that work at the same time: each has a name, random numbers and keys of its own,
/// the right time, and a network that works.
#[tokio::test]
async fn clones_of_one_guest_are_strangers_to_each_other() {
    let Some(plan) = plan("clones") else { return };
    let testbed = with_snapshot(plan, &[]).await;
    let ask = format!("SIMULATOR={}\n{ASK_AROUND}", simulator(&testbed));
    let names: Vec<String> = (0..CLONES).map(|index| format!("clone {index}")).collect();
    let queue = |name: &String| testbed.queue(BUILD, QueuedJob::push(name, &[LOOK_AROUND, &ask]));
    let jobs: Vec<JobId> =
        names.iter().map(queue).collect::<Result<_, _>>().expect("they are queued");
    let mut logs = Vec::new();
    for job in jobs {
        let run = testbed.finished(job, GUEST_LIFE).await.expect("the job ends");
        assert!(run.restored, "{run:?}");
        assert_eq!(run.end, EndReason::GuestShutdown);
        let log = testbed.sim.job_log(job).expect("a log");
        assert_eq!(said(&log, "hostname"), run.runner.as_str());
        logs.push(log);
    }
    for word in ["uuid", "urandom", "key", "hostname"] {
        let all: BTreeSet<&str> = logs.iter().map(|log| said(log, word)).collect();
        assert_eq!(all.len(), CLONES, "clones share their {word}: {all:?}");
    }
    let resolver = if resolver_answers() { "True" } else { "False" };
    for log in &logs {
        let name = said(log, "hostname");
        // The job disk's content is this run's, not what the template's guest may have seen of it.
        assert_eq!(said(log, "registered"), name);
        // `sudo` looks the name up, and complains where that fails.
        assert_eq!(said(log, "sudo"), name);
        assert_eq!(said(log, "resolver"), resolver);
        let bounds = said(log, "clock").split(' ').map(|n| n.parse().expect("a number"));
        let [low, high]: [f64; 2] = bounds.collect::<Vec<_>>().try_into().expect("two numbers");
        assert!(
            low <= CLOCK_OFF_MAX_S && -CLOCK_OFF_MAX_S <= high,
            "the clock is between {low} s and {high} s behind"
        );
    }
    assert_clean(&testbed).await;
}

/// The one file with this name below a directory.
fn only_file(dir: &Path, name: &str) -> PathBuf {
    let entries = std::fs::read_dir(dir).expect("a directory").flatten();
    let mut found = entries.map(|entry| entry.path().join(name)).filter(|path| path.is_file());
    let file = found.next().expect("the file");
    assert_eq!(found.next(), None, "more than one {name}");
    file
}

/// A state file that was damaged: the job runs all the same, from a cold boot, which is counted and shown;
/// and there is a new snapshot for the next one.
#[tokio::test]
async fn a_damaged_snapshot_costs_a_cold_boot_and_no_job() {
    let Some(plan) = plan("damaged-snapshot") else { return };
    let testbed = with_snapshot(plan, &[]).await;
    let state = only_file(&testbed.plan().base_dir().join("snapshots"), "state");
    let len = state.metadata().expect("its size").len();
    std::fs::write(&state, vec![0x55; usize::try_from(len).expect("small")]).expect("damaged");

    let (run, log) = ran(&testbed, "patient", &["echo ran all the same"]).await;
    assert!(log.contains("ran all the same"), "{log}");
    assert_eq!((run.restored, run.end), (false, EndReason::GuestShutdown));
    let status = testbed.client().status().await.expect("a status");
    let failed = status.view.finished.iter().filter(|run| run.end == EndReason::RestoreFailed);
    assert_eq!(failed.count(), 1, "{:?}", status.view.finished);
    let snapshot = snapshot_of(&status, BUILD).expect("it is configured");
    assert!(snapshot.fallbacks >= 1, "{snapshot:?}");

    ready(&testbed).await;
    let (run, _) = ran(&testbed, "quick", &["echo again"]).await;
    assert!(run.restored, "{run:?}");
    assert_clean(&testbed).await;
}

/// A template that changes while a clone of the old one works: the clone goes on, and every later job has
/// the new template, whether it was restored or not.
#[tokio::test]
async fn a_template_may_change_while_clones_work() {
    let Some(mut plan) = plan("changed-template") else { return };
    plan.template = plan.dir.join("template");
    copy_tree(&root().join("contrib/templates/generic"), &plan.template);
    let conf = plan.template.join("cloud-init/forrest.conf");
    let testbed = with_snapshot(plan, &[]).await;
    let old = complete_snapshots(&testbed);

    let simulator = simulator(&testbed);
    let go_on = format!(
        "until curl -sf {simulator}/_sim/jobs | tr '{{' '\\n' | grep '\"after\"' | grep completed
         do sleep 0.5; done
         echo went on"
    );
    let clone = testbed.queue(BUILD, QueuedJob::push("clone", &[&go_on])).expect("queued");
    let works = testbed.sim.wait_for(clone, GUEST_LIFE, |job| job.times.picked_up.is_some());
    works.await.expect("the clone works");
    let changed = std::fs::read_to_string(&conf).expect("the template's settings")
        + "\necho changed >/etc/forrest-story\n";
    std::fs::write(&conf, changed).expect("the template changes");

    let (after, log) = ran(&testbed, "after", &["cat /etc/forrest-story"]).await;
    assert!(log.contains("changed"), "the job had an outdated template:\n{log}");
    assert_eq!(after.end, EndReason::GuestShutdown);
    let clone_run = testbed.finished(clone, GUEST_LIFE).await.expect("the clone ends");
    assert_eq!((clone_run.restored, clone_run.end), (true, EndReason::GuestShutdown));
    assert!(testbed.sim.job_log(clone).expect("a log").contains("went on"));

    ready_anew(&testbed, &old).await;
    let (run, log) = ran(&testbed, "quick", &["cat /etc/forrest-story"]).await;
    assert!(run.restored && log.contains("changed"), "{run:?}\n{log}");
    assert_clean(&testbed).await;
}

fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a directory");
    for entry in std::fs::read_dir(from).expect("a directory").flatten() {
        let (path, copy) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy_tree(&path, &copy);
        } else {
            std::fs::copy(&path, &copy).expect("a copy");
        }
    }
}

/// A job leaves a disk behind whose guest resets as soon as it boots. Building the snapshot finds that out
/// before a job does: the generation is taken out of use, and the one before it is current again. On an XFS,
/// so that it shows snapshots whose disks are reflinks, too.
#[tokio::test]
async fn a_generation_that_does_not_boot_never_meets_a_job() {
    let Some((plan, _xfs)) = plan_on_xfs("broken-generation") else { return };
    let testbed = with_snapshot(plan, &[]).await;
    let (good, _) =
        ran(&testbed, "good", &["echo good | sudo tee /etc/forrest-story", KEEP_DISK]).await;
    assert_eq!(good.result, Some(Generation(1)));
    ready(&testbed).await;

    let spoil =
        "sudo sed -i '/^ *APPEND/ s|$| init=/nowhere panic=1|' /boot/extlinux/extlinux.conf";
    let (bad, log) = ran(&testbed, "bad", &[spoil, KEEP_DISK]).await;
    assert_eq!(bad.result, Some(Generation(2)), "{log}");

    let taken_out = |status: &Status| {
        let machine = status.view.machines.iter().find(|m| m.name.to_string() == BUILD)?;
        (machine.taken_out.as_ref()?.generation == Generation(2)).then_some(())
    };
    testbed.wait(GUEST_LIFE, "the verdict", taken_out).await.expect("status says so");
    let (after, log) = ran(&testbed, "after", &["cat /etc/forrest-story"]).await;
    assert!(log.contains("good"), "{log}");
    let first = ImageRef::Machine {
        machine: BUILD.parse().expect("a machine type"),
        generation: Generation(1),
    };
    assert_eq!(after.start_image.map(|start| start.image), Some(first));
    assert_clean(&testbed).await;
}

/// A guest is restored while its runner is being registered. Where that comes to nothing, the guest goes:
/// with the daemon that registered it, or with the job that it was for. The next ones are none the worse.
#[tokio::test]
async fn a_guest_restored_ahead_of_its_registration_may_be_in_vain() {
    let Some(plan) = plan("restored-in-vain") else { return };
    let mut testbed = with_snapshot(plan, &[]).await;
    let never =
        |effect| ApiFault::new("actions/generate-runner-jitconfig-for-repo", effect, When::Always);

    // The daemon dies over it.
    testbed.sim.api_fault(never(ApiEffect::Hang));
    let served = testbed.queue(BUILD, QueuedJob::push("served", &["echo served"])).expect("queued");
    restored_ahead(&testbed).await;
    let old = testbed.client().status().await.expect("a status").view.runs.remove(0).runner;
    testbed.daemon.take().expect("a daemon").kill().await.expect("killed");
    testbed.sim.clear_faults();
    testbed.start_daemon().await.expect("it starts again");
    let run = testbed.finished(served, GUEST_LIFE).await.expect("the job ends");
    assert!(run.restored && run.runner != old, "{run:?}");
    assert_clean(&testbed).await;
    no_guest_is_left(&testbed).await;

    // The job is cancelled over it.
    testbed.sim.api_fault(never(ApiEffect::Status { status: 500 }));
    let cancelled = testbed.queue(BUILD, QueuedJob::push("cancelled", &["true"])).expect("queued");
    restored_ahead(&testbed).await;
    let of = testbed.sim.job(cancelled).expect("the job").run_id;
    testbed.sim.cancel(of, true).expect("cancelled");
    assert_clean(&testbed).await;
    no_guest_is_left(&testbed).await;

    testbed.sim.clear_faults();
    let (run, log) = ran(&testbed, "quick", &["echo again"]).await;
    assert!(run.restored && log.contains("again"), "{run:?}\n{log}");
    assert_clean(&testbed).await;
}

/// Processes of virtual machines.
fn guests(testbed: &Testbed) -> usize {
    processes::of(&testbed.plan().base_dir()).expect("processes").len()
}

/// Waits until all of them are gone: a supervisor says how its guest ended, and then ends itself.
async fn no_guest_is_left(testbed: &Testbed) {
    until("the end of all guests", GONE_MAX, || guests(testbed) == 0).await;
}

/// Waits until a guest is there, before it has a registration.
async fn restored_ahead(testbed: &Testbed) {
    let there = |status: &Status| {
        let run = status.view.runs.first()?;
        (run.times.registered.is_none() && guests(testbed) >= 2).then_some(())
    };
    testbed.wait(GUEST_LIFE, "a guest without a registration", there).await.expect("restored");
}
