//! The shim with a real QEMU and guests of 512 bytes.

mod boot_sector;
#[path = "../fixture/mod.rs"]
mod fixture;
mod taken_over;

use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use fixture::{PATIENCE, Run, qemu, until};
use forrest_core::model::{Timestamp, UidRange};
use forrest_vm::outcome::QemuExit;
use forrest_vm::protocol::{Happened, PauseReason};
use forrest_vm::run_dir::{RunDirState, classify, connect, files};
use forrest_vm::spec::DiskFormat;
use forrest_vm::{EndReason, JobFiles, ShimClient, VmError, console, spawn_shim};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Timestamp(since.expect("a clock after 1970").as_millis() as u64)
}

/// Runs a guest that ends by itself.
async fn run_to_end(sector: &[u8; 512]) -> Option<(Run, forrest_vm::Outcome)> {
    let mut run = Run::of_boot_sector(qemu()?, sector);
    run.start().await;
    let outcome = run.outcome().await;
    Some((run, outcome))
}

/// A handle on a live process.
fn process(pid: u32) -> OwnedFd {
    let pid = Pid::from_raw(pid as i32).expect("a process id");
    pidfd_open(pid, PidfdFlags::empty()).expect("a live process")
}

async fn end_of(process: OwnedFd) {
    let ended = tokio::task::spawn_blocking(move || {
        let patience = PATIENCE.try_into().expect("a time");
        poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&patience)).expect("poll")
    });
    assert_eq!(ended.await.expect("polled"), 1, "the process does not end");
}

#[tokio::test]
async fn a_guest_that_powers_off_leaves_a_full_record() {
    let began = now();
    let Some((run, outcome)) = run_to_end(&boot_sector::power_off()).await else { return };
    assert_eq!(outcome.reason, EndReason::GuestShutdown, "{}", run.log());
    assert_eq!(outcome.qemu_exit, QemuExit::Status(0));
    assert!(!outcome.requested);
    assert_eq!(outcome.runner, run.spec.runner);
    let times = outcome.times;
    let stations = [
        Some(began),
        Some(times.shim_started_at),
        times.qemu_started_at,
        times.vm_started_at,
        times.ending_at,
        times.ended_at,
        Some(now()),
    ];
    assert!(stations.iter().all(Option::is_some), "{times:?}");
    assert!(stations.is_sorted(), "{times:?}");
    assert_eq!(run.console(), "Hi");
    assert_eq!(classify(&run.dir).expect("classify"), RunDirState::Over(Box::new(outcome)));
    // Nothing but what is documented is left, and all of it is private.
    let mut names: Vec<String> = Vec::new();
    for entry in std::fs::read_dir(&run.dir).expect("list") {
        let entry = entry.expect("an entry");
        let name = entry.file_name().into_string().expect("UTF-8");
        if !name.ends_with(".img") {
            let mode = entry.metadata().expect("metadata").mode() & 0o777;
            assert_eq!(mode, 0o600, "{name}");
            names.push(name);
        }
    }
    names.sort();
    assert_eq!(names, [files::CONSOLE, files::OUTCOME, files::SPEC, files::LOCK, files::SHIM_LOG]);
}

#[tokio::test]
async fn a_reboot_ends_the_run() {
    let Some((run, outcome)) = run_to_end(&boot_sector::reboot()).await else { return };
    assert_eq!(outcome.reason, EndReason::GuestReset, "{}", run.log());
}

#[tokio::test]
async fn a_panic_ends_the_run() {
    let Some((run, outcome)) = run_to_end(&boot_sector::panic()).await else { return };
    assert_eq!(outcome.reason, EndReason::GuestPanicked, "{}", run.log());
}

#[tokio::test]
async fn a_guest_that_never_gets_ready_runs_into_the_boot_timeout() {
    let Some(qemu) = qemu() else { return };
    let mut run = Run::of_boot_sector(qemu, &boot_sector::halt());
    run.spec.boot_timeout_ms = 1_500;
    run.start().await;
    let outcome = run.outcome().await;
    assert_eq!(outcome.reason, EndReason::BootTimeout, "{}", run.log());
    let times = outcome.times;
    let took = times.ending_at.expect("an end").since(times.shim_started_at);
    assert!(took >= Duration::from_millis(1_490), "{took:?}");
}

#[tokio::test]
async fn requests_are_carried_out_and_recorded() {
    let Some(qemu) = qemu() else { return };
    let mut run = Run::of_boot_sector(qemu, &boot_sector::halt());
    run.start().await;
    until_started(&run).await;
    let mut watch = run.watch().await;
    let mut client = run.client().await;
    let refusal = client.resume().await.expect_err("nothing to resume").to_string();
    assert!(refusal.contains("not paused"), "{refusal}");
    client.attach_job_config(JobFiles::default()).await.expect("attach");
    let state = client.status().await.expect("status");
    assert!(state.times.job_config_attached_at.is_some());
    assert!(state.qemu_pid.is_some());
    client.kill("the operator\x1b[2J asked for it").await.expect("kill");
    let events = until(&mut watch, |event| matches!(event, Happened::Exited { .. })).await;
    let recorded = run.outcome().await;
    assert_eq!(recorded.reason, EndReason::Killed, "{}", run.log());
    assert!(recorded.requested);
    assert_eq!(recorded.detail, "the operator\u{fffd}[2J asked for it");
    assert_eq!(recorded.qemu_exit, QemuExit::Status(0), "killed where quitting would have done");
    let Some(Happened::Exited { outcome }) = events.last().map(|event| event.event.clone()) else {
        panic!("{events:?}");
    };
    assert_eq!(*outcome, recorded);
    assert_eq!(watch.next().await.expect("the end"), None);
    let error = ShimClient::connect(&run.dir).await.expect_err("nobody is there");
    assert!(matches!(error, VmError::NoShim { .. }), "{error}");
}

#[tokio::test]
async fn a_guest_that_obeys_the_power_button_has_shut_down_by_itself_on_request() {
    let Some(qemu) = qemu() else { return };
    let mut run = Run::of_boot_sector(qemu, &boot_sector::obey_power_button());
    run.start().await;
    wait_for_console(&run, "Hi").await;
    run.client().await.power_down().await.expect("press the button");
    let outcome = run.outcome().await;
    assert_eq!(outcome.reason, EndReason::GuestShutdown, "{}", run.log());
    assert!(outcome.requested);
    assert!(outcome.times.power_down_requested_at.is_some());
}

/// The only thing that a boot sector can say is on the console; the file is looked at until it is there.
async fn wait_for_console(run: &Run, text: &str) {
    let looked = async {
        while !run.console().contains(text) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, looked).await.expect("the guest speaks");
}

#[tokio::test]
async fn the_job_deadline_is_kept_without_a_daemon() {
    let Some(qemu) = qemu() else { return };
    let mut run = Run::of_boot_sector(qemu, &boot_sector::halt());
    run.start().await;
    until_started(&run).await;
    let mut client = run.client().await;
    client.job_deadline(Some(now())).await.expect("set");
    drop(client);
    let outcome = run.outcome().await;
    assert_eq!(outcome.reason, EndReason::JobTimeout, "{}", run.log());
}

#[tokio::test]
async fn a_job_deadline_can_be_taken_back() {
    let Some(qemu) = qemu() else { return };
    let mut run = Run::of_boot_sector(qemu, &boot_sector::halt());
    run.start().await;
    until_started(&run).await;
    let mut client = run.client().await;
    let soon = now() + Duration::from_millis(200);
    client.job_deadline(Some(soon)).await.expect("set");
    assert_eq!(client.status().await.expect("status").job_deadline, Some(soon));
    client.job_deadline(None).await.expect("take back");
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(classify(&run.dir).expect("classify"), RunDirState::Live);
    client.kill("enough").await.expect("kill");
    assert_eq!(run.outcome().await.reason, EndReason::Killed);
}

async fn until_started(run: &Run) {
    let (state, mut watch) = run.client().await.watch().await.expect("watch");
    if state.times.vm_started_at.is_none() {
        until(&mut watch, |event| *event == Happened::VmStarted).await;
    }
}

#[tokio::test]
async fn a_flood_on_the_console_is_bounded() {
    let Some(qemu) = qemu() else { return };
    let mut run = Run::of_boot_sector(qemu, &boot_sector::flood());
    run.spec.boot_timeout_ms = 4_000;
    run.start().await;
    let outcome = run.outcome().await;
    assert_eq!(outcome.reason, EndReason::BootTimeout, "{}", run.log());
    let len = |name: &str| std::fs::metadata(run.dir.join(name)).map_or(0, |file| file.len());
    let total: u64 =
        [files::CONSOLE, files::CONSOLE_TAIL, files::CONSOLE_TAIL_OLD].into_iter().map(len).sum();
    assert!(len(files::CONSOLE) <= console::HEAD_LEN_MAX);
    let possible = console::BURST_LEN_MAX + 5 * console::RATE_BYTES_PER_S;
    assert!(total <= possible, "{total} bytes in 4 s");
    assert!(total > 1 << 15, "{total} bytes only: the guest does not flood");
}

#[tokio::test]
async fn qemu_dies_with_a_shim_that_is_killed() {
    let Some(qemu) = qemu() else { return };
    let mut run = Run::of_boot_sector(qemu, &boot_sector::halt());
    let shim = run.start().await.pid;
    until_started(&run).await;
    assert_eq!(classify(&run.dir).expect("classify"), RunDirState::Live);
    let mut watch = run.watch().await;
    let qemu = run.client().await.status().await.expect("status").qemu_pid.expect("a QEMU");
    let qemu = process(qemu);
    kill_process(Pid::from_raw(shim as i32).expect("an id"), Signal::KILL).expect("kill the shim");
    end_of(qemu).await;
    assert!(matches!(watch.next().await, Err(VmError::NoShim { .. })));
    assert_eq!(classify(&run.dir).expect("classify"), RunDirState::Lost);
    let error = spawn_shim(Path::new(fixture::SHIM), &run.dir).await.expect_err("a second shim");
    assert!(error.to_string().contains("started before"), "{error}");
}

#[tokio::test]
async fn qemu_killed_from_outside_is_a_failure_of_qemu() {
    let Some(qemu) = qemu() else { return };
    let mut run = Run::of_boot_sector(qemu, &boot_sector::halt());
    run.start().await;
    until_started(&run).await;
    let qemu = run.client().await.status().await.expect("status").qemu_pid.expect("a QEMU");
    kill_process(Pid::from_raw(qemu as i32).expect("an id"), Signal::KILL).expect("kill QEMU");
    let outcome = run.outcome().await;
    assert_eq!(outcome.reason, EndReason::QemuFailed, "{}", run.log());
    assert_eq!(outcome.qemu_exit, QemuExit::Signal(9));
}

#[tokio::test]
async fn a_shim_that_is_told_to_stop_records_that() {
    let Some(qemu) = qemu() else { return };
    let mut run = Run::of_boot_sector(qemu, &boot_sector::halt());
    let shim = run.start().await.pid;
    until_started(&run).await;
    kill_process(Pid::from_raw(shim as i32).expect("an id"), Signal::TERM).expect("signal");
    let outcome = run.outcome().await;
    assert_eq!(outcome.reason, EndReason::Killed, "{}", run.log());
    assert!(outcome.detail.contains("signal"), "{}", outcome.detail);
}

#[tokio::test]
async fn what_qemu_complains_about_is_recorded() {
    let Some(qemu) = qemu() else { return };
    let mut run = Run::of_boot_sector(qemu, &boot_sector::halt());
    run.spec.disk.format = DiskFormat::Qcow2;
    run.start().await;
    let outcome = run.outcome().await;
    assert_eq!(outcome.reason, EndReason::QemuFailed);
    assert_eq!(outcome.qemu_exit, QemuExit::Status(1));
    assert!(outcome.stderr.concat().contains("qcow2"), "{:?}", outcome.stderr);
    assert!(outcome.times.vm_started_at.is_none());
}

#[tokio::test]
async fn a_missing_disk_is_recorded() {
    let Some(qemu) = qemu() else { return };
    let mut run = Run::of_boot_sector(qemu, &boot_sector::halt());
    run.spec.disk.path = "missing.img".into();
    run.start().await;
    let outcome = run.outcome().await;
    assert_eq!(outcome.reason, EndReason::QemuFailed);
    assert_eq!(outcome.qemu_exit, QemuExit::NotStarted);
    assert!(outcome.stderr.concat().contains("missing.img"), "{:?}", outcome.stderr);
}

#[tokio::test]
async fn a_missing_qemu_is_recorded() {
    let mut run = Run::of_boot_sector("/nonexistent/qemu".into(), &boot_sector::halt());
    run.start().await;
    let outcome = run.outcome().await;
    assert_eq!(outcome.reason, EndReason::QemuFailed);
    assert!(outcome.stderr.concat().contains("/nonexistent/qemu"), "{:?}", outcome.stderr);
}

#[tokio::test]
async fn a_shim_without_a_usable_description_says_so_at_once() {
    let run = Run::of_boot_sector("/nonexistent/qemu".into(), &boot_sector::halt());
    std::fs::write(run.dir.join(files::SPEC), "{}").expect("write");
    let error = spawn_shim(Path::new(fixture::SHIM), &run.dir).await.expect_err("no description");
    assert!(error.to_string().contains("run.json"), "{error}");
}

#[tokio::test]
async fn several_clients_come_and_go_and_bad_ones_harm_nobody() {
    let Some(qemu) = qemu() else { return };
    let mut run = Run::of_boot_sector(qemu, &boot_sector::halt());
    run.start().await;
    until_started(&run).await;
    let mut good = run.client().await;
    let mut others = Vec::new();
    for _ in 0..3 {
        others.push(run.watch().await);
    }
    let stream = connect(&run.dir, files::CONTROL_SOCK).await;
    let mut bad = stream.expect("connect");
    let junk = [b"{}\nnonsense\n".to_vec(), vec![b'x'; 1 << 20], b"\n".to_vec()].concat();
    bad.write_all(&junk).await.expect("accepted, in pieces");
    good.status().await.expect("still there");
    drop(others);
    // A daemon that comes back learns everything from the state.
    let (state, mut watch) = run.client().await.watch().await.expect("watch");
    assert!(state.times.vm_started_at.is_some());
    good.kill("enough").await.expect("kill");
    until(&mut watch, |event| matches!(event, Happened::Exited { .. })).await;
    run.outcome().await;
}

#[tokio::test]
async fn a_full_disk_pauses_the_guest_until_there_is_space() {
    let Some(qemu) = qemu() else { return };
    let mut run = Run::of_boot_sector(qemu, &boot_sector::fill_disk());
    let Some(small) = SmallFileSystem::mount(run.dir.join("small")) else { return };
    let disk = small.0.join("disk.img");
    std::fs::copy(run.dir.join(files::DISK), &disk).expect("copy the disk");
    let file = std::fs::OpenOptions::new().write(true).open(&disk).expect("open the disk");
    file.set_len(32 << 20).expect("a disk that is larger than the file system");
    run.spec.disk.path = disk;
    run.start().await;
    let mut watch = run.watch().await;
    let events = until(&mut watch, |event| matches!(event, Happened::Paused { .. })).await;
    let paused = Happened::Paused { reason: PauseReason::NoSpace };
    assert_eq!(events.last().map(|event| &event.event), Some(&paused));
    let mut client = run.client().await;
    let pause = client.status().await.expect("status").paused.expect("a pause");
    assert_eq!(pause.reason, PauseReason::NoSpace);
    small.grow();
    client.resume().await.expect("resume");
    until(&mut watch, |event| *event == Happened::Resumed).await;
    until(&mut watch, |event| matches!(event, Happened::Exited { .. })).await;
    let outcome = run.outcome().await;
    assert_eq!(outcome.reason, EndReason::GuestShutdown, "{}", run.log());
}

#[tokio::test]
async fn a_guest_killed_while_its_disk_cannot_be_written_ended_because_of_that() {
    let Some(qemu) = qemu() else { return };
    let mut run = Run::of_boot_sector(qemu, &boot_sector::fill_disk());
    let Some(small) = SmallFileSystem::mount(run.dir.join("small")) else { return };
    let disk = small.0.join("disk.img");
    std::fs::copy(run.dir.join(files::DISK), &disk).expect("copy the disk");
    let file = std::fs::OpenOptions::new().write(true).open(&disk).expect("open the disk");
    file.set_len(32 << 20).expect("a disk that is larger than the file system");
    run.spec.disk.path = disk;
    run.start().await;
    let mut watch = run.watch().await;
    until(&mut watch, |event| matches!(event, Happened::Paused { .. })).await;
    run.client().await.kill("no space in sight").await.expect("kill");
    let outcome = run.outcome().await;
    assert_eq!(outcome.reason, EndReason::IoError, "{}", run.log());
    assert!(outcome.requested);
}

#[tokio::test]
async fn the_sockets_are_private_and_the_shell_is_behind_one() {
    let Some(qemu) = qemu() else { return };
    let mut run = Run::of_boot_sector(qemu, &boot_sector::flood_shell());
    run.start().await;
    until_started(&run).await;
    for name in [files::CONTROL_SOCK, files::SHELL_SOCK] {
        let mode = run.dir.join(name).metadata().expect("a socket").mode() & 0o777;
        assert_eq!(mode, 0o600, "{name}");
    }
    let mut shell = connect(&run.dir, files::SHELL_SOCK).await.expect("connect");
    let mut byte = [0];
    let read = tokio::time::timeout(PATIENCE, shell.read_exact(&mut byte)).await;
    read.expect("the shell speaks").expect("read");
    assert_eq!(byte, *b"$");
    run.client().await.kill("enough").await.expect("kill");
    run.outcome().await;
}

#[tokio::test]
async fn qemu_takes_shared_directories_with_odd_names() {
    let Some(qemu) = qemu() else { return };
    let mut run = Run::of_boot_sector(qemu, &boot_sector::power_off());
    for (name, writable) in [("read,only", false), ("read write", true)] {
        let path = run.dir.join(name);
        std::fs::create_dir(&path).expect("a directory");
        let tag = format!("tag-{writable}");
        run.spec.shared.push(forrest_vm::spec::SharedDir { path, tag, writable });
    }
    run.start().await;
    assert_eq!(run.outcome().await.reason, EndReason::GuestShutdown, "{}", run.log());
}

#[tokio::test]
async fn qemu_runs_as_another_user_without_privileges_and_still_dies_with_its_shim() {
    let Some(qemu) = qemu() else { return };
    if !rustix::process::geteuid().is_root() {
        return fixture::skip("changing users needs root");
    }
    // No daemon's.
    let users: UidRange = "1800000100-1800000109".parse().expect("a range");
    let mut run = Run::of_boot_sector(qemu, &boot_sector::halt());
    run.spec.confinement.uids = Some(users);
    let shim = run.start().await.pid;
    until_started(&run).await;
    let qemu = run.client().await.status().await.expect("status").qemu_pid.expect("a QEMU");
    let status = std::fs::read_to_string(format!("/proc/{qemu}/status")).expect("a process");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect(name);
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(field("Uid:"), "1800000100 1800000100 1800000100 1800000100");
    assert_eq!(field("Gid:"), "1800000100 1800000100 1800000100 1800000100");
    assert_eq!(field("Groups:"), "");
    for capabilities in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(capabilities), "0000000000000000", "{capabilities}");
    }
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Seccomp:"), "2");
    let limits = std::fs::read_to_string(format!("/proc/{qemu}/limits")).expect("limits");
    let core = limits.lines().find(|line| line.starts_with("Max core file size"));
    assert!(core.is_some_and(|line| line.split_whitespace().nth(4) == Some("1")), "{core:?}");
    let environment = std::fs::read(format!("/proc/{qemu}/environ")).expect("environment");
    let names = environment.split(|byte| *byte == 0).filter(|variable| !variable.is_empty());
    let names =
        names.map(|variable| variable.split(|byte| *byte == b'=').next().unwrap_or_default());
    let names: Vec<_> = names.map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    assert_eq!(names, ["MALLOC_ARENA_MAX", "PATH"]);
    let qemu = process(qemu);
    kill_process(Pid::from_raw(shim as i32).expect("an id"), Signal::KILL).expect("kill the shim");
    end_of(qemu).await;
}

/// A file system of 4 MiB in memory.
struct SmallFileSystem(std::path::PathBuf);

impl SmallFileSystem {
    fn mount(at: std::path::PathBuf) -> Option<Self> {
        std::fs::create_dir(&at).expect("a mount point");
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=4m", "forrest-test"])
            .arg(&at)
            .status()
            .is_ok_and(|status| status.success());
        if !mounted {
            fixture::skip("no tmpfs can be mounted: not root?");
            return None;
        }
        Some(Self(at))
    }

    fn grow(&self) {
        let mut mount = std::process::Command::new("mount");
        let status = mount.args(["-o", "remount,size=512m"]).arg(&self.0).status();
        assert!(status.expect("mount runs").success(), "the file system grows");
    }
}

impl Drop for SmallFileSystem {
    fn drop(&mut self) {
        // Lazily: QEMU may be about to let go of it.
        let _ = std::process::Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}
