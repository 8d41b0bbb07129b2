//! The shim with real Debian guests: needs the guest image (`FORREST_GUEST_IMAGE`, or
//! `target/guest/debian-12.raw`), mtools and qemu-img.

#[path = "fixture/mod.rs"]
#[expect(dead_code, reason = "this file needs only a part")]
mod fixture;

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use fixture::{Run, until};
use forrest_core::model::Bytes;
use forrest_vm::protocol::Happened;
use forrest_vm::run_dir::files;
use forrest_vm::spec::{Boot, Disk, DiskFormat, Layer, SharedDir};
use forrest_vm::{EndReason, JobFiles, Outcome, snapshot};

const RAM: Bytes = Bytes::mib(768);
/// Guests boot one at a time and slowly under emulation on a loaded machine.
const BOOT_TIMEOUT_MS: u64 = 240_000;

/// What the guests of these tests need beside QEMU.
struct Stock {
    qemu: PathBuf,
    image: PathBuf,
    template: PathBuf,
}

fn stock() -> Option<Stock> {
    let qemu = fixture::qemu()?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("a workspace");
    let image = std::env::var_os("FORREST_GUEST_IMAGE")
        .map_or_else(|| root.join("target/guest/debian-12.raw"), PathBuf::from);
    let template = root.join("contrib/templates/generic");
    for path in [&image, &template] {
        if !path.exists() {
            fixture::skip(&format!("{} is missing", path.display()));
            return None;
        }
    }
    Some(Stock { qemu, image, template })
}

fn must(command: &mut Command) {
    let output = command.output().unwrap_or_else(|err| panic!("{command:?}: {err}"));
    assert!(output.status.success(), "{command:?}: {output:?}");
}

/// A FAT image of 2 MiB with these files.
fn fat(path: &Path, label: &str, content: &[(String, Vec<u8>)]) {
    let _ = std::fs::remove_file(path);
    must(Command::new("mkfs.vfat").args(["-C", "-n", label]).arg(path).arg("2048"));
    for (name, bytes) in content {
        let mut copy = Command::new("mcopy");
        copy.arg("-i").arg(path).arg("-").arg(format!("::{name}"));
        let mut child = copy.stdin(std::process::Stdio::piped()).spawn().expect("mcopy runs");
        child.stdin.take().expect("a pipe").write_all(bytes).expect("write");
        assert!(child.wait().expect("mcopy ends").success(), "{name}");
    }
}

/// The generic template's `CIDATA`, with a stand-in for GitHub's runner put in place early.
fn cloud_init(stock: &Stock, path: &Path) {
    let mut content = Vec::new();
    for entry in std::fs::read_dir(stock.template.join("cloud-init")).expect("the template") {
        let entry = entry.expect("an entry");
        let name = entry.file_name().into_string().expect("UTF-8");
        let mut text = std::fs::read_to_string(entry.path()).expect("text");
        text = text.replace("<INSTANCE_ID>", "test").replace("<MACHINE_NAME>", "test");
        if name == "forrest.conf" {
            text.push_str(
                "\nmkdir -p /home/runner/actions-runner\n\
                 echo '#!/bin/sh' >/home/runner/actions-runner/run.sh\n\
                 chmod 755 /home/runner/actions-runner/run.sh\n",
            );
        }
        content.push((name, text.into_bytes()));
    }
    fat(path, "CIDATA", &content);
}

/// Fills the job config image in place, as the daemon may do while QEMU has it open.
fn fill_job_config(run: &Run, job: &str, ports: &str) {
    let scratch = run.dir.join("filled.img");
    let content = [("job.sh", job), ("ports", ports)];
    fat(&scratch, "JOBDATA", &content.map(|(name, text)| (name.to_owned(), text.into())));
    let bytes = std::fs::read(&scratch).expect("read");
    let mut image = std::fs::OpenOptions::new();
    let mut image = image.write(true).open(run.dir.join(files::JOB_CONFIG)).expect("open");
    image.write_all(&bytes).expect("fill");
}

fn read_back(run: &Run, name: &str) -> String {
    let output = Command::new("mtype")
        .arg("-i")
        .arg(run.dir.join(files::JOB_CONFIG))
        .arg(format!("::{name}"))
        .output()
        .expect("mtype runs");
    assert!(output.status.success(), "{name}: {output:?}\n{}", run.console());
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn overlay(backing: &Path, format: &str, disk: &Path) {
    let mut create = Command::new("qemu-img");
    must(create.args(["create", "-q", "-f", "qcow2", "-F", format, "-b"]).arg(backing).arg(disk));
}

/// All files that an overlay of this disk is built on.
fn below(backing: &Path, format: &str) -> Vec<Layer> {
    let output = Command::new("qemu-img")
        .args(["info", "--output=json", "--force-share", "--backing-chain", "-f", format])
        .arg(backing)
        .output()
        .expect("qemu-img runs");
    assert!(output.status.success(), "{output:?}");
    let chain: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let layer = |image: &serde_json::Value| Layer {
        path: image["filename"].as_str().expect("a name").into(),
        format: match image["format"].as_str() {
            Some("qcow2") => DiskFormat::Qcow2,
            _ => DiskFormat::Raw,
        },
    };
    chain.as_array().expect("a list").iter().map(layer).collect()
}

/// A run on an overlay of this disk, with an empty job config.
fn guest(stock: &Stock, backing: &Path, format: &str) -> Run {
    let mut run = Run::of_disk(stock.qemu.clone(), RAM);
    overlay(backing, format, &run.dir.join(files::DISK));
    run.spec.disk = Disk {
        path: files::DISK.into(),
        format: DiskFormat::Qcow2,
        backing: below(backing, format),
        virtual_size: None,
    };
    run.spec.cpus = 2;
    run.spec.boot_timeout_ms = BOOT_TIMEOUT_MS;
    cloud_init(stock, &run.dir.join(files::CLOUD_INIT));
    fat(&run.dir.join(files::JOB_CONFIG), "JOBDATA", &[]);
    run
}

/// The shim's resident memory in KiB.
fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a live process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

fn kinds(events: &[forrest_vm::ShimEvent]) -> Vec<&Happened> {
    events.iter().map(|event| &event.event).collect()
}

/// Leaves what it finds where the test can read it, and mischief in the directory that it may write to.
const JOB: &str = r#"printf 'runner-started\n' >&3
echo hello
echo token >/home/runner/config/persist
mkdir /mnt/ro /mnt/rw
mount -t 9p -o trans=virtio,version=9p2000.L ro /mnt/ro
mount -t 9p -o trans=virtio,version=9p2000.L rw /mnt/rw
{
    cat /mnt/ro/greeting
    touch /mnt/ro/new 2>/dev/null && echo writable || echo read-only
} >/home/runner/config/shared
ln -s /etc/shadow /mnt/rw/link
cp /bin/true /mnt/rw/program
chmod 6755 /mnt/rw/program
. /home/runner/config/ports
exec 4<>/dev/tcp/10.0.2.2/$tcp
head -n 1 <&4 >/home/runner/config/answers
echo question >/dev/udp/10.0.2.2/$udp
exit 7
"#;

/// Services of this host, which the guest reaches through QEMU: one that greets, one that listens.
fn services() -> (TcpListener, UdpSocket, String) {
    let greets = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a service");
    let hears = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("another");
    let port = |address: std::io::Result<SocketAddr>| address.expect("its address").port();
    let ports = format!("tcp={}\nudp={}\n", port(greets.local_addr()), port(hears.local_addr()));
    (greets, hears, ports)
}

/// One directory that the guest can only read, and one that it can write to, which is returned.
fn share_two_directories(run: &mut Run) -> PathBuf {
    let share = |tag: &str, writable| {
        let path = run.dir.join(tag);
        std::fs::create_dir(&path).expect("a directory");
        std::fs::write(path.join("greeting"), "from the host\n").expect("write");
        SharedDir { path, tag: tag.to_owned(), writable }
    };
    run.spec.shared = vec![share("ro", false), share("rw", true)];
    run.dir.join("rw")
}

#[tokio::test]
async fn guest_boots_waits_for_its_job_runs_it_and_shuts_down() {
    let Some(stock) = stock() else { return };
    let mut run = guest(&stock, &stock.image, "raw");
    let shared = share_two_directories(&mut run);
    let shim = run.start().await.pid;
    let mut watch = run.watch().await;
    until(&mut watch, |event| *event == Happened::GuestReady).await;
    let (greets, hears, ports) = services();
    fill_job_config(&run, JOB, &ports);
    let greeted = std::thread::spawn(move || {
        greets.accept().and_then(|(mut guest, _)| guest.write_all(b"good day\n")).expect("greeted");
    });
    let resident = resident_kib(shim);
    run.client().await.attach_job_config(JobFiles::default()).await.expect("attach");
    let events = until(&mut watch, |event| matches!(event, Happened::Exited { .. })).await;
    let expected =
        [Happened::GoSent, Happened::RunnerStarted, Happened::RunnerExited { code: Some(7) }];
    assert_eq!(kinds(&events)[..3], expected.each_ref(), "{}", run.console());
    let outcome = run.outcome().await;
    assert_eq!(outcome.reason, EndReason::GuestShutdown, "{}", run.console());
    assert_eq!(outcome.runner_exit_code, Some(7));
    assert_eq!(read_back(&run, "persist"), "token\n");
    assert_eq!(read_back(&run, "shared"), "from the host\nread-only\n");
    assert_eq!(read_back(&run, "answers"), "good day\n");
    greeted.join().expect("greeted");
    hears.set_read_timeout(Some(fixture::PATIENCE)).expect("a time limit");
    let mut question = [0; 16];
    let len = hears.recv(&mut question).expect("received");
    assert_eq!(question.get(..len), Some(b"question\n".as_slice()));
    let link = shared.join("link").symlink_metadata().expect("what the guest made");
    assert!(link.is_file(), "a guest made a link on the host");
    let program = shared.join("program").metadata().expect("what the guest made");
    assert_eq!(std::os::unix::fs::MetadataExt::mode(&program) & 0o7077, 0, "on the host");
    assert!(run.console().contains("hello"), "the job is not on the console: {}", run.console());
    let booted = outcome.times.ready_at.expect("ready").since(outcome.times.shim_started_at);
    eprintln!("cold boot until ready: {booted:?}; shim: {resident} KiB resident");
}

/// What a clone's job finds, written where the test can read it.
const CLONE_JOB: &str = r#"printf 'runner-started\n' >&3
cd /home/runner/config
date +%s.%N >time
cat /proc/sys/kernel/random/uuid >uuid
head -c 16 /dev/urandom | base64 >random
touch persist
"#;

async fn run_clone(stock: &Stock, template: &Run, boot: &Boot, at: Instant) -> (Run, Outcome) {
    let mut run = guest(stock, &template.dir.join(files::DISK), "qcow2");
    run.spec.boot = boot.clone();
    std::fs::copy(template.dir.join(files::CLOUD_INIT), run.dir.join(files::CLOUD_INIT))
        .expect("copy");
    let prepared = at.elapsed();
    run.start().await;
    let mut watch = run.watch().await;
    fill_job_config(&run, CLONE_JOB, "");
    run.client().await.attach_job_config(JobFiles::default()).await.expect("attach");
    until(&mut watch, |event| *event == Happened::RunnerStarted).await;
    eprintln!("clone prepared after {prepared:?}, its job runs after {:?}", at.elapsed());
    let outcome = run.outcome().await;
    (run, outcome)
}

#[tokio::test]
async fn guest_snapshots_are_built_once_and_restored_many_times() {
    let Some(stock) = stock() else { return };
    let mut template = guest(&stock, &stock.image, "raw");
    let (ram, state) = (template.dir.join("ram"), template.dir.join("state"));
    template.spec.boot = Boot::Template { ram: ram.clone(), state: state.clone() };
    let shim = Path::new(fixture::SHIM);
    let built = snapshot::build(shim, &template.dir, &template.spec).await.expect("a template");
    eprintln!("template: booted in {:?}, saved in {:?}", built.booted_in, built.saved_in);
    let before = std::fs::read(&ram).expect("read the RAM");
    for path in [&ram, &state] {
        let mode = std::os::unix::fs::MetadataExt::mode(&path.metadata().expect("metadata"));
        assert_eq!(mode & 0o777, 0o600, "{}", path.display());
    }
    let boot = Boot::Restored { ram: ram.clone(), state };
    let now = Instant::now();
    let (one, two) = tokio::join!(
        run_clone(&stock, &template, &boot, now),
        run_clone(&stock, &template, &boot, now),
    );
    for (run, outcome) in [&one, &two] {
        assert_eq!(outcome.reason, EndReason::GuestShutdown, "{}", run.console());
        let times = outcome.times;
        eprintln!("{times:?}");
        let time: f64 = read_back(run, "time").trim().parse().expect("a time");
        let [earliest, latest] =
            [times.go_sent_at, times.ended_at].map(|time| time.expect("recorded").as_secs_f64());
        assert!((earliest - 0.1..latest + 0.1).contains(&time), "{earliest} {time} {latest}");
    }
    for name in ["uuid", "random"] {
        assert_ne!(read_back(&one.0, name), read_back(&two.0, name), "clones share their {name}");
    }
    assert!(std::fs::read(&ram).expect("read the RAM") == before, "a clone changed the template");
}

#[tokio::test]
async fn guest_that_cannot_be_restored_says_so_and_never_runs() {
    let Some(stock) = stock() else { return };
    let mut run = guest(&stock, &stock.image, "raw");
    let (ram, state) = (run.dir.join("ram"), run.dir.join("state"));
    std::fs::File::create(&ram).and_then(|file| file.set_len(RAM.0)).expect("a RAM file");
    std::fs::write(&state, b"this is not the state of any machine").expect("a state file");
    run.spec.boot = Boot::Restored { ram, state };
    run.start().await;
    let outcome = run.outcome().await;
    assert_eq!(outcome.reason, EndReason::RestoreFailed, "{}", run.log());
    assert!(outcome.times.vm_started_at.is_none());
    eprintln!("{:?} {:?}", outcome.detail, outcome.stderr);
}
