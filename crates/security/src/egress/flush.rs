//! Somebody on the host takes the filters away, while a guest sends all the time to where it must not.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use forrest_testbed::{QueuedJob, Testbed};
use github_sim::model::JobId;

use super::MACHINE;
use super::outside::{Outside, SINK};
use crate::guests::step;
use crate::report::Report;

/// How often.
const FLUSHES: u32 = 5;
/// How long a guest may be without its filter.
const GAP_MAX: Duration = Duration::from_secs(1);
/// After this long without a packet, none is on its way any more.
const QUIET: Duration = Duration::from_millis(500);
/// How long each step may take, emulated on a busy host.
const PATIENCE: Duration = Duration::from_secs(5 * 60);
/// Pause between two looks.
const LOOK_PAUSE: Duration = Duration::from_millis(2);

/// Takes the filters away some times over.
///
/// # Errors
/// Where the guest does not send, or nft does not run.
pub async fn attack(report: &mut Report, testbed: &Testbed, outside: &Outside) -> Result<()> {
    eprintln!("The filters are taken away ...");
    let (port, address) = SINK;
    let script = include_str!("../attacks/unfiltered.py")
        .replace("@ADDRESS@", address)
        .replace("@PORT@", &port.to_string());
    let job = testbed.queue(MACHINE, QueuedJob::pull_request("unfiltered", &[&step(&script)]))?;
    says(testbed, job, "SENDING").await?;
    let before = outside.arrivals().len();
    let (mut longest, mut through) = (Duration::ZERO, 0);
    for _ in 0..FLUSHES {
        let seen = outside.arrivals().len();
        let began = Instant::now();
        nft(&["flush", "ruleset"])?;
        until("the filter was not put back", || Ok(nft(&["list", "tables"])?.contains("forrest-")))
            .await?;
        // Those on their way got through, too.
        let last = quiet(outside).await?;
        longest = longest.max(last.map(|last| last.duration_since(began)).unwrap_or_default());
        through += outside.arrivals().len() - seen;
    }
    let after = outside.arrivals().len();
    says(testbed, job, "DID unfiltered=").await?;
    let late = outside.arrivals().len() - after;
    let evidence = format!(
        "{before} packets got through before, {through} in {FLUSHES} flushes, for {} ms at most, {late} \
         afterwards",
        longest.as_millis()
    );
    let contained = before == 0 && late == 0 && longest < GAP_MAX;
    report.add("egress: the host's packet filter is flushed", contained, evidence);
    testbed.finished(job, PATIENCE).await.map(drop)
}

/// Waits until nothing comes through any more; when the last packet came.
async fn quiet(outside: &Outside) -> Result<Option<Instant>> {
    let mut last = None;
    until("packets get through although the filter is back", || {
        last = outside.arrivals().last().copied();
        Ok(last.is_none_or(|last| last.elapsed() > QUIET))
    })
    .await?;
    Ok(last)
}

async fn says(testbed: &Testbed, job: JobId, what: &str) -> Result<()> {
    until(&format!("the guest never said {what:?}"), || {
        Ok(testbed.sim.job_log(job)?.contains(what))
    })
    .await
}

async fn until(trouble: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !is_so()? {
        ensure!(began.elapsed() < PATIENCE, "{trouble}");
        tokio::time::sleep(LOOK_PAUSE).await;
    }
    Ok(())
}

fn nft(arguments: &[&str]) -> Result<String> {
    let output = Command::new("nft").args(arguments).output().context("nft does not run")?;
    ensure!(output.status.success(), "nft: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
