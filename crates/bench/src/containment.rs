//! What containment costs: start times and throughput with it and without, side by side.
//!
//! Two daemons take turns, so that whatever else the machine does meets both. The one filters its guests'
//! traffic, as is the default; the other has `network.filter: off`. Users, capabilities, system calls and
//! files are confined in both: there is no way to turn that off.

use anyhow::Result;
use forrest_testbed::{MachinePlan, Plan, Testbed};

use crate::figures::{Figures, percentile};
use crate::{Place, daemon, guests, webhooks};

const MACHINE: &str = "bench/containment/machine";
/// Turns of each.
const TO_QEMU: usize = 15;
const RESTORED: usize = 10;
const FLOODS: usize = 3;

/// Measures each of the two, one after the other, again and again.
///
/// # Errors
/// Where a daemon does not do what it should.
pub async fn measure(place: &Place, figures: &mut Figures) -> Result<()> {
    println!("Containment, with and without ...");
    let mut both = pair(|name| daemon::plan(place, name)).await?;
    let mut samples = [Vec::new(), Vec::new()];
    for index in 0..TO_QEMU {
        for (testbed, samples) in both.iter().zip(&mut samples) {
            samples.push(daemon::one_job(testbed, index).await?.0);
        }
    }
    add(figures, "webhook_to_qemu_ms_p50", samples);
    stop(&mut both).await?;

    let mut both = pair(|name| webhooks::plan(place, name)).await?;
    let mut samples = [Vec::new(), Vec::new()];
    for _ in 0..FLOODS {
        for (testbed, samples) in both.iter().zip(&mut samples) {
            samples.push(webhooks::flood(testbed).await?.0);
        }
    }
    add(figures, "webhooks_per_s", samples);
    stop(&mut both).await?;

    let machine = || MachinePlan::new(MACHINE).with("snapshot: true");
    let plan = |name: &str| {
        Ok(Plan::new(&place.root, &place.scratch(name)?, &place.forrest).with(machine()))
    };
    let mut both = pair(plan).await?;
    for testbed in &both {
        guests::snapshot_is_ready(testbed, MACHINE).await?;
    }
    let mut samples = [Vec::new(), Vec::new()];
    for index in 0..RESTORED {
        for (testbed, samples) in both.iter().zip(&mut samples) {
            samples.push(guests::way(testbed, MACHINE, index).await?.whole);
        }
    }
    add(figures, "queued_to_step_restored_s_p50", samples);
    stop(&mut both).await
}

/// Two testbeds: one with filters, one without.
async fn pair(plan: impl Fn(&str) -> Result<Plan>) -> Result<[Testbed; 2]> {
    let filtered = plan("filtered")?;
    let mut open = plan("unfiltered")?;
    open.host_lines.push("network: { filter: off }".to_owned());
    Ok([Testbed::start(filtered).await?, Testbed::start(open).await?])
}

async fn stop(both: &mut [Testbed; 2]) -> Result<()> {
    for testbed in both {
        testbed.stop_daemon().await?;
    }
    Ok(())
}

fn add(figures: &mut Figures, name: &str, samples: [Vec<f64>; 2]) {
    let [filtered, open] = samples.map(|mut samples| percentile(&mut samples, 0.5));
    figures.add(&format!("filtered_{name}"), filtered);
    figures.add(&format!("unfiltered_{name}"), open);
    figures.add(&format!("filtered_over_unfiltered_{name}"), filtered / open);
}
