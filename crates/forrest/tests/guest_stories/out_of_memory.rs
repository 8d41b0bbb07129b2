//! The kernel kills a guest's QEMU for want of memory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use forrest_core::event::EndReason;
use forrest_daemon::control::Status;
use forrest_testbed::processes::{self, Process};
use forrest_testbed::{QueuedJob, Testbed};
use github_sim::model::Conclusion;

use crate::scene::{GUEST_LIFE, assert_clean, debian};

const BUILD: &str = "acme/widgets/build";
/// What a QEMU may still take: less than half of what a guest writes while it boots.
const MEMORY: u64 = 32 << 20;

/// A control group with little memory, of either version, until it is dropped. See `cgroups(7)`.
struct SmallMemory {
    dir: PathBuf,
    /// The file that counts the processes that the kernel killed here.
    counter: &'static str,
}

impl SmallMemory {
    /// An error where this host has no control groups for memory, or they are not ours to make.
    fn new(name: &str, limit: u64) -> io::Result<Self> {
        let unified = Path::new("/sys/fs/cgroup");
        let (parent, counter, limits) = if unified.join("cgroup.subtree_control").exists() {
            fs::write(unified.join("cgroup.subtree_control"), "+memory")?;
            (unified.to_owned(), "memory.events", ["memory.max", "memory.swap.max"])
        } else {
            let limits = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"];
            (unified.join("memory"), "memory.oom_control", limits)
        };
        let group = Self { dir: parent.join(name), counter };
        // What a story left that was killed.
        let _ = fs::remove_dir(&group.dir);
        fs::create_dir(&group.dir)?;
        let [memory, swap] = limits.map(|file| group.dir.join(file));
        fs::write(memory, limit.to_string())?;
        // With it, what the kernel swaps out counts too, or is not swapped out.
        let with_swap = if counter == "memory.events" { 0 } else { limit };
        if swap.exists() {
            fs::write(swap, with_swap.to_string())?;
        }
        Ok(group)
    }

    /// From now on, what the process takes is counted here.
    fn take_in(&self, pid: u32) {
        fs::write(self.dir.join("cgroup.procs"), pid.to_string()).expect("it can be moved");
    }

    /// How many processes the kernel has killed here for want of memory.
    fn killed(&self) -> u32 {
        let text = fs::read_to_string(self.dir.join(self.counter)).expect("a counter");
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill ")).expect("a count");
        count.parse().expect("a number")
    }
}

impl Drop for SmallMemory {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.dir);
    }
}

/// The QEMU of the testbed's only guest.
fn qemu(testbed: &Testbed) -> u32 {
    let mut ours = processes::of(&testbed.plan().base_dir()).expect("processes");
    ours.retain(Process::is_qemu);
    let [qemu] = ours.as_slice() else { panic!("not one QEMU: {ours:?}") };
    qemu.pid
}

/// A host's memory does not suffice: the kernel ends the guest. That is the end of its run, whose reason is
/// told; its job, which it had not taken yet, is served by another guest.
#[tokio::test]
async fn a_guest_that_the_kernel_ends_for_want_of_memory_costs_no_job() {
    let small = match SmallMemory::new("forrest-story-out-of-memory", MEMORY) {
        Ok(small) => small,
        Err(error) => {
            let missing =
                format!("control groups for memory need root, and a host with them: {error}");
            assert!(std::env::var_os("CI").is_none(), "{missing}");
            eprintln!("NOT TESTED: {missing}");
            return;
        }
    };
    let Some(mut testbed) = debian("out-of-memory", &[BUILD]).await else { return };
    let job = testbed.queue(BUILD, QueuedJob::push("patient", &["echo served"])).expect("queued");
    let booting = |status: &Status| {
        let run = status.view.runs.iter().find(|run| run.state == "booting")?;
        Some(run.runner.clone())
    };
    let runner = testbed.wait(GUEST_LIFE, "a guest that boots", booting).await.expect("it boots");
    small.take_in(qemu(&testbed));
    let lost = |status: &Status| {
        let run = status.view.finished.iter().find(|run| run.runner == runner)?;
        Some((run.end, run.detail.clone().unwrap_or_default()))
    };
    let (reason, detail) = testbed.wait(GUEST_LIFE, "its end", lost).await.expect("it is told");
    assert_eq!(small.killed(), 1, "the kernel has not ended it: {detail}");
    assert_eq!(reason, EndReason::QemuFailed);
    assert!(detail.contains("out of memory") && detail.contains("host.ram"), "{detail}");

    let run = testbed.finished(job, GUEST_LIFE).await.expect("another one serves the job");
    assert_ne!(run.runner, runner);
    assert_eq!(run.end, EndReason::GuestShutdown);
    let done = testbed.sim.wait_completed(job, GUEST_LIFE).await.expect("the job is over");
    assert_eq!(done.conclusion, Some(Conclusion::Success));
    assert_clean(&testbed).await;
    testbed.stop_daemon().await.expect("it stops");
}
