//! Attacks on the webhook endpoint, over its real socket.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use forrest_testbed::Testbed;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinSet;

use crate::measure::{Seen, mib};
use crate::report::Report;

/// How many connections a flood has: more than the endpoint serves at a time.
const CONNECTIONS: usize = 400;
/// The largest body that GitHub sends.
const BODY_LEN: usize = 25 << 20;
/// What an attack may cost the daemon, in bytes.
const GROWTH_MAX: u64 = 128 << 20;
/// How long a flood lasts.
const FLOOD: Duration = Duration::from_secs(12);

/// All of them.
pub async fn attack(report: &mut Report, testbed: &Testbed) {
    eprintln!("The webhook endpoint is attacked ...");
    report.add_result("webhook: 2000 unsigned requests", unsigned(testbed).await);
    report.add_result("webhook: slow heads on every connection", slow(testbed, false).await);
    report.add_result("webhook: 25 MiB bodies on every connection", slow(testbed, true).await);
}

async fn connect(testbed: &Testbed) -> Result<UnixStream> {
    let socket = testbed.plan().base_dir().join("webhook.sock");
    UnixStream::connect(&socket).await.context("the endpoint does not listen")
}

fn head(len: usize) -> String {
    format!(
        "POST / HTTP/1.1\r\nHost: forrest\r\nContent-Type: application/json\r\n\
         X-GitHub-Event: workflow_job\r\nX-GitHub-Delivery: 1\r\nContent-Length: {len}\r\n\r\n"
    )
}

async fn status(stream: &mut UnixStream) -> Option<u16> {
    let mut start = [0; "HTTP/1.1 200".len()];
    stream.read_exact(&mut start).await.ok()?;
    std::str::from_utf8(&start).ok()?.split(' ').nth(1)?.parse().ok()
}

async fn unsigned(testbed: &Testbed) -> Result<(bool, String)> {
    let before = Seen::now(testbed).await?;
    let log = || std::fs::metadata(testbed.log()).map_or(0, |log| log.len());
    let (log_before, mut refused) = (log(), 0);
    for _ in 0..2000 {
        let mut stream = connect(testbed).await?;
        stream.write_all(format!("{}{{}}", head(2)).as_bytes()).await?;
        refused += usize::from(status(&mut stream).await == Some(401));
    }
    let after = Seen::now(testbed).await?;
    let growth = after.daemon.saturating_sub(before.daemon);
    let logged = log().saturating_sub(log_before);
    let runs = testbed.client().status().await?.view.runs.len();
    let contained = refused == 2000 && growth < GROWTH_MAX && logged < 1 << 20 && runs == 0;
    let evidence = format!(
        "{refused} answered 401, no run was made, the daemon grew by {}, its log by {} KiB",
        mib(growth),
        logged.div_ceil(1 << 10)
    );
    Ok((contained, evidence))
}

/// Connections that send the beginning of a request, or of a large body, and then nothing.
async fn slow(testbed: &Testbed, bodies: bool) -> Result<(bool, String)> {
    let before = Seen::now(testbed).await?;
    let mut flood = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let Ok(mut stream) = connect(testbed).await else { continue };
        flood.spawn(async move {
            if bodies {
                stream.write_all(head(BODY_LEN).as_bytes()).await?;
                let chunk = vec![b'x'; 256 << 10];
                for _ in 0..BODY_LEN / chunk.len() - 1 {
                    stream.write_all(&chunk).await?;
                }
            } else {
                stream.write_all(b"POST / HTTP/1.1\r\nHost: forr").await?;
            }
            std::future::pending::<std::io::Result<()>>().await
        });
    }
    let connections = flood.len();
    let (began, mut peak) = (Instant::now(), before);
    while began.elapsed() < FLOOD {
        peak = peak.max(Seen::now(testbed).await?);
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    // Its turn comes although nobody has hung up: the places are taken away from the slow ones.
    let mut stream = connect(testbed).await?;
    stream.write_all(format!("{}{{}}", head(2)).as_bytes()).await?;
    let waited = Instant::now();
    let answer = tokio::time::timeout(Duration::from_secs(40), status(&mut stream)).await;
    let waited = waited.elapsed();
    flood.shutdown().await;
    let growth = peak.daemon.saturating_sub(before.daemon);
    let answered = matches!(answer, Ok(Some(401)));
    let evidence = format!(
        "{connections} connections; the daemon grew by {} at most and said how it is within {} ms; \
         {} after {:.1} s",
        mib(growth),
        peak.answer.as_millis(),
        if answered { "the next request was answered" } else { "the next request got NO answer" },
        waited.as_secs_f64()
    );
    Ok((answered && growth < GROWTH_MAX, evidence))
}
