//! The host has too little memory for what Forrest runs on it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use forrest_core::event::EndReason;
use forrest_daemon::control::Status;
use forrest_testbed::QueuedJob;
use github_sim::model::Conclusion;

use crate::scene::{GUEST_LIFE, assert_clean, debian};

const BUILD: &str = "acme/widgets/build";
/// What Forrest may take at first: less than half of what a guest writes while it boots.
const LITTLE: u64 = 64 << 20;
/// And then.
const ENOUGH: u64 = 4 << 30;

/// A control group with little memory, of either version, until it is dropped. See `cgroups(7)`.
struct SmallMemory {
    dir: PathBuf,
    /// The files of its limits: without what is swapped out, and of or with that.
    limits: [&'static str; 2],
    /// The file that counts the processes that the kernel killed here.
    counter: &'static str,
}

impl SmallMemory {
    /// An error where this host has no control groups for memory, or they are not ours to make.
    fn new(name: &str) -> io::Result<Self> {
        let unified = Path::new("/sys/fs/cgroup");
        let group = if unified.join("cgroup.subtree_control").exists() {
            fs::write(unified.join("cgroup.subtree_control"), "+memory")?;
            let limits = ["memory.max", "memory.swap.max"];
            Self { dir: unified.join(name), limits, counter: "memory.events" }
        } else {
            let limits = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"];
            Self { dir: unified.join("memory").join(name), limits, counter: "memory.oom_control" }
        };
        // What a story left that was killed.
        let _ = fs::remove_dir(&group.dir);
        fs::create_dir(&group.dir)?;
        let [memory, swap] = group.limits.map(|file| group.dir.join(file));
        fs::write(memory, LITTLE.to_string())?;
        // What the kernel swaps out is not swapped out, or counts too. A host may have neither.
        if swap.exists() {
            fs::write(swap, if group.counter == "memory.events" { 0 } else { LITTLE }.to_string())?;
        }
        Ok(group)
    }

    /// From now on there is memory.
    fn grow(&self) {
        let [memory, swap] = self.limits.map(|file| self.dir.join(file));
        // Version 1 wants the second never to be the smaller one.
        if swap.exists() {
            fs::write(swap, ENOUGH.to_string()).expect("a limit");
        }
        fs::write(memory, ENOUGH.to_string()).expect("a limit");
    }

    /// From now on, what the process takes is counted here, and what those that it will start do.
    fn take_in(&self, pid: u32) {
        fs::write(self.dir.join("cgroup.procs"), pid.to_string()).expect("it can be moved");
    }

    /// How many processes the kernel has killed here for want of memory.
    fn killed(&self) -> usize {
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

/// The kernel may end whom it wants of Forrest: it ends guests, whose runs are over and say why. The daemon and the
/// supervisors go on, and the job, which no guest had taken yet, is served when there is memory.
#[tokio::test]
async fn guests_go_first_where_memory_does_not_suffice_and_no_job_is_lost() {
    let small = match SmallMemory::new("forrest-story-out-of-memory") {
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
    // With it, all supervisors and guests that it will have started.
    let daemon = testbed.daemon.as_ref().and_then(|daemon| daemon.pid()).expect("a daemon");
    small.take_in(daemon);
    let job = testbed.queue(BUILD, QueuedJob::push("patient", &["echo served"])).expect("queued");
    let lost = |status: &Status| {
        let run = status.view.finished.first()?;
        Some((run.runner.clone(), run.end, run.detail.clone().unwrap_or_default()))
    };
    let (runner, reason, detail) = testbed.wait(GUEST_LIFE, "an end", lost).await.expect("told");
    small.grow();
    assert_eq!(reason, EndReason::QemuFailed, "{detail}");
    assert!(detail.contains("out of memory") && detail.contains("host.ram"), "{detail}");

    let run = testbed.finished(job, GUEST_LIFE).await.expect("another one serves the job");
    assert_ne!(run.runner, runner);
    assert_eq!(run.end, EndReason::GuestShutdown);
    let done = testbed.sim.wait_completed(job, GUEST_LIFE).await.expect("the job is over");
    assert_eq!(done.conclusion, Some(Conclusion::Success));
    // Whom the kernel ended were guests, all of them.
    let status = testbed.client().status().await.expect("a status");
    let ended = status.view.finished.iter().filter(|run| run.end == EndReason::QemuFailed).count();
    assert_eq!(small.killed(), ended, "{:#?}", status.view.finished);
    assert_eq!(testbed.daemon.as_ref().and_then(|daemon| daemon.pid()), Some(daemon));
    assert_clean(&testbed).await;
    testbed.stop_daemon().await.expect("it stops");
}
