//! Whether a restored guest works as fast as a cold one: its RAM is copied on write, page by page.
//!
//! The work is that of a compiler: Python parses and compiles the modules of its own library and keeps
//! all that it made of them, so that memory is what it needs most.

use anyhow::{Context, Result, ensure};
use forrest_testbed::{MachinePlan, Plan, QueuedJob, Testbed};
use github_sim::model::{Conclusion, Moment};

use crate::Place;
use crate::figures::{Figures, percentile};
use crate::guests::{JOB, snapshot_is_ready};

const COLD: &str = "bench/compile/cold";
const RESTORED: &str = "bench/compile/restored";
/// Jobs of each kind, by turns.
const JOBS: usize = 5;
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
    let (mut cold, mut restored) = (Vec::new(), Vec::new());
    for _ in 0..JOBS {
        cold.push(work(&testbed, COLD).await?);
        restored.push(work(&testbed, RESTORED).await?);
    }
    let (cold, restored) = (percentile(&mut cold, 0.5), percentile(&mut restored, 0.5));
    figures.add("compile_cold_s_p50", cold);
    figures.add("compile_restored_s_p50", restored);
    figures.add("restored_vs_cold_compile_ratio", restored / cold);
    testbed.stop_daemon().await
}

/// Seconds from the job's first line to its end.
async fn work(testbed: &Testbed, machine: &str) -> Result<f64> {
    let job = testbed.queue(machine, QueuedJob::push("compile", &[STEP]))?;
    testbed.finished(job, JOB).await?;
    let job = testbed.sim.job(job)?;
    ensure!(
        job.conclusion == Some(Conclusion::Success),
        "the work failed on {machine}: {:?}",
        job.conclusion
    );
    let times = job.times;
    let at = |moment: Option<Moment>| moment.map(Moment::as_secs_f64).context("a time is missing");
    Ok(at(times.completed)? - at(times.first_log_line)?)
}
