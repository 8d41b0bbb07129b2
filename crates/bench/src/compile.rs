//! Whether a restored guest works as fast as a cold one: its RAM is copied on write, page by page.
//!
//! The work is that of a compiler: Python parses and compiles the modules of its own library and keeps
//! all that it made of them, so that memory is what it needs most.
//!
//! Copying a page is work of the host's kernel for QEMU, so it shows as QEMU's system time. Under emulation a restored
//! guest does something else for the first time, too: its code has to be translated, which a cold one's boot has done
//! for some of it. That shows as user time, and is no matter of memory.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use forrest_testbed::{MachinePlan, Plan, QueuedJob, Testbed};
use forrest_vm::ShimClient;
use github_sim::model::{Conclusion, JobId, Moment};

use crate::Place;
use crate::figures::{Figures, percentile};
use crate::guests::{JOB, run_dir, snapshot_is_ready};

const COLD: &str = "bench/compile/cold";
const RESTORED: &str = "bench/compile/restored";
/// Jobs of each kind, by turns.
const JOBS: usize = 5;
/// How often QEMU's share of the processors is read.
const LOOK_PAUSE: Duration = Duration::from_millis(20);
/// The unit of processor time in `/proc`, the same on all processors that Linux runs on here: a hundredth of a second.
const TICKS_PER_S: f64 = 100.0;
/// Some 200 MiB of syntax trees and code.
const STEP: &str = r#"echo begin
python3 - <<'END'
import ast, glob
kept = []
for path in sorted(glob.glob("/usr/lib/python3.*/*.py"))[:60]:
    tree = ast.parse(open(path, "rb").read())
    kept.append((tree, compile(tree, path, "exec"), ast.unparse(tree)))
print("modules:", len(kept))
END
"#;

/// Runs the work by turns in cold and in restored guests.
///
/// # Errors
/// Where a job does not run.
pub async fn measure(place: &Place, figures: &mut Figures) -> Result<()> {
    println!("The same work in cold and in restored guests ...");
    let dir = place.scratch("compile")?;
    let plan = Plan::new(&place.root, &dir, &place.forrest)
        .with(MachinePlan::new(COLD).with("ram: 1G"))
        .with(MachinePlan::new(RESTORED).with("ram: 1G").with("snapshot: true"));
    let mut testbed = Testbed::start(plan).await?;
    snapshot_is_ready(&testbed, RESTORED).await?;
    let (mut cold, mut restored) = (Samples::default(), Samples::default());
    for _ in 0..JOBS {
        cold.work(&testbed, COLD).await?;
        restored.work(&testbed, RESTORED).await?;
    }
    let cold = cold.report("cold", figures);
    let restored = restored.report("restored", figures);
    figures.add("restored_vs_cold_compile_ratio", restored / cold);
    testbed.stop_daemon().await
}

/// What the jobs of one kind took, in seconds.
#[derive(Default)]
struct Samples {
    whole: Vec<f64>,
    user: Vec<f64>,
    system: Vec<f64>,
}

impl Samples {
    async fn work(&mut self, testbed: &Testbed, machine: &str) -> Result<()> {
        let id = testbed.queue(machine, QueuedJob::push("compile", &[STEP]))?;
        let (user, system) = times_of_qemu(testbed, machine, id).await?;
        testbed.finished(id, JOB).await?;
        let job = testbed.sim.job(id)?;
        ensure!(
            job.conclusion == Some(Conclusion::Success),
            "the work failed on {machine}: {:?}",
            job.conclusion
        );
        let times = job.times;
        let at =
            |moment: Option<Moment>| moment.map(Moment::as_secs_f64).context("a time is missing");
        self.whole.push(at(times.completed)? - at(times.first_log_line)?);
        self.user.push(user);
        self.system.push(system);
        Ok(())
    }

    /// Adds the figures of one kind, and returns the median of the whole.
    fn report(&mut self, kind: &str, figures: &mut Figures) -> f64 {
        let whole = percentile(&mut self.whole, 0.5);
        figures.add(&format!("compile_{kind}_s_p50"), whole);
        figures.add(&format!("compile_{kind}_user_s_p50"), percentile(&mut self.user, 0.5));
        figures.add(&format!("compile_{kind}_system_s_p50"), percentile(&mut self.system, 0.5));
        whole
    }
}

/// The processor time that QEMU takes from the job's first line until it is gone, in seconds: its own, guest included,
/// and the kernel's for it.
async fn times_of_qemu(testbed: &Testbed, machine: &str, job: JobId) -> Result<(f64, f64)> {
    let works = testbed.sim.wait_for(job, JOB, |job| job.times.first_log_line.is_some());
    works.await.context("the job does not run")?;
    let status = testbed.client().status().await?;
    let run = status.view.runs.iter().find(|run| run.machine.to_string() == machine);
    let run = run.context("the run is gone already")?;
    let dir = run_dir(&testbed.plan().base_dir(), machine, run.runner.as_str());
    let state = ShimClient::connect(&dir).await?.status().await?;
    let pid = state.qemu_pid.context("QEMU is gone already")?;
    let stat = PathBuf::from(format!("/proc/{pid}/stat"));
    let read = || std::fs::read_to_string(&stat).ok().and_then(|stat| times(&stat));
    let began = read().context("QEMU is gone already")?;
    let mut last = began;
    while let Some(now) = read() {
        last = now;
        tokio::time::sleep(LOOK_PAUSE).await;
    }
    Ok((last.0 - began.0, last.1 - began.1))
}

/// User and system time in seconds, see proc_pid_stat(5).
fn times(stat: &str) -> Option<(f64, f64)> {
    // The name, in parentheses, may have spaces.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let mut next = || Some(fields.next()?.parse::<f64>().ok()? / TICKS_PER_S);
    Some((next()?, next()?))
}
