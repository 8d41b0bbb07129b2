//! How many signed deliveries the daemon takes in a second, and how soon it answers.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use forrest_testbed::{MachinePlan, Plan, QueuedJob, Testbed};
use github_sim::model::JobAction;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use crate::Place;
use crate::figures::{Figures, percentile};

const MACHINE: &str = "bench/webhooks/machine";
/// Connections that send at the same time: a reverse proxy keeps that many.
const CONNECTIONS: usize = 16;
/// Deliveries over each of them.
const DELIVERIES: usize = 1_000;

/// Measures how many, and how soon they are answered.
///
/// # Errors
/// Where a delivery is not taken.
pub async fn measure(place: &Place, figures: &mut Figures) -> Result<()> {
    println!("Webhooks ...");
    let mut testbed = Testbed::start(plan(place, "webhooks")?).await?;
    let (per_second, mut samples) = flood(&testbed).await?;
    figures.add("webhooks_per_s", per_second);
    figures.add("webhook_answer_ms_p50", percentile(&mut samples, 0.5));
    figures.add("webhook_answer_ms_p99", percentile(&mut samples, 0.99));
    testbed.stop_daemon().await
}

/// A testbed with one machine type.
///
/// # Errors
/// Where its directory cannot be emptied.
pub fn plan(place: &Place, name: &str) -> Result<Plan> {
    let dir = place.scratch(name)?;
    let machine = MachinePlan::new(MACHINE).with("max_runs: 1");
    Ok(Plan::new(&place.root, &dir, &place.forrest).with(machine))
}

/// Sends deliveries as fast as the daemon answers: how many a second, and the answers' times in
/// milliseconds. The daemon runs on one thread, so on one core; the sender has the other.
///
/// # Errors
/// Where a delivery is not taken.
pub async fn flood(testbed: &Testbed) -> Result<(f64, Vec<f64>)> {
    testbed.client().drain(true).await?;
    let job = testbed.queue(MACHINE, QueuedJob::push("job", &["true"]))?;
    let (headers, body) = testbed.sim.sample_webhook(job, JobAction::Queued)?;
    let socket = testbed.plan().base_dir().join("webhook.sock");

    let begun = Instant::now();
    let senders: Vec<_> = (0..CONNECTIONS)
        .map(|_| tokio::spawn(send(socket.clone(), headers.clone(), body.clone())))
        .collect();
    let mut samples = Vec::new();
    for sender in senders {
        samples.extend(sender.await??);
    }
    Ok((samples.len() as f64 / begun.elapsed().as_secs_f64(), samples))
}

/// Sends over one connection; the answers' times in milliseconds.
async fn send(socket: PathBuf, headers: Vec<(String, String)>, body: Bytes) -> Result<Vec<f64>> {
    let stream = UnixStream::connect(&socket).await.context("could not connect")?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let mut samples = Vec::with_capacity(DELIVERIES);
    for _ in 0..DELIVERIES {
        let mut request = hyper::Request::post("/").header("host", "forrest");
        for (name, value) in headers.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("host")) {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(body.clone()))?;
        let begun = Instant::now();
        sender.ready().await?;
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let text = answer.into_body().collect().await?.to_bytes();
        samples.push(begun.elapsed().as_secs_f64() * 1e3);
        if status == hyper::StatusCode::SERVICE_UNAVAILABLE {
            // The inbox is full: what GitHub would do is try again.
            tokio::time::sleep(Duration::from_millis(1)).await;
            continue;
        }
        ensure!(status.is_success(), "{status}: {}", String::from_utf8_lossy(&text));
    }
    connection.abort();
    Ok(samples)
}
