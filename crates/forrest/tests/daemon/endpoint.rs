//! The webhook endpoint, and what strangers may do to it.

use std::time::{Duration, Instant};

use forrest_daemon::control::Status;
use forrest_testbed::{Testbed, WEBHOOK_SECRET, free_port};
use github_sim::model::{JobAction, JobId};
use github_sim::webhooks::sign;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::http::{answer, connect, deliver, exchange, head, post, webhook};
use crate::scene::{
    BUILD, STEP, booting, end, forget_webhooks, logged, machine, plan, polled, queue, testbed,
    until,
};

/// The largest body that GitHub sends.
const BODY_MAX: usize = 25 << 20;

/// The body of the webhook that would tell of a job.
fn sample(testbed: &Testbed, job: JobId) -> Vec<u8> {
    testbed.sim.sample_webhook(job, JobAction::Queued).expect("a sample").1.to_vec()
}

#[tokio::test]
async fn nothing_happens_without_the_right_signature() {
    let Some(testbed) = testbed("signatures").await else { return };
    forget_webhooks(&testbed);
    let job = queue(&testbed, BUILD, "unheard of");
    let body = sample(&testbed, job);
    let sent = |headers: Vec<(&'static str, String)>, body: Vec<u8>| {
        let testbed = &testbed;
        async move {
            let mut all = vec![("X-GitHub-Event", "workflow_job")];
            all.extend(headers.iter().map(|(name, value)| (*name, value.as_str())));
            exchange(connect(testbed).await, &post(&all, &body)).await
        }
    };
    let header = "X-Hub-Signature-256";
    let right = sign(WEBHOOK_SECRET, &body);
    let mut changed = body.clone();
    let last = changed.len() - 1;
    changed[last] = b' ';
    assert_eq!(sent(vec![], body.clone()).await, Some(401));
    assert_eq!(sent(vec![(header, sign("another secret", &body))], body.clone()).await, Some(401));
    assert_eq!(sent(vec![(header, right.clone())], changed).await, Some(401));
    assert_eq!(sent(vec![(header, "sha256=".to_owned())], body.clone()).await, Some(401));
    assert_eq!(sent(vec![(header, right[7..].to_owned())], body.clone()).await, Some(401));
    assert_eq!(sent(vec![("X-Hub-Signature", right.clone())], body.clone()).await, Some(401));
    let view = testbed.client().status().await.expect("a status").view;
    assert!(view.jobs.is_empty() && view.runs.is_empty(), "{view:?}");
    logged(&testbed, "webhook refused").await;

    assert_eq!(sent(vec![(header, right)], body).await, Some(202));
    booting(&testbed, BUILD).await;
    end(testbed).await;
}

#[tokio::test]
async fn odd_requests_get_an_answer() {
    let Some(testbed) = testbed("odd-requests").await else { return };
    let unsigned = |method, length| head(method, length, &[("X-GitHub-Event", "ping")]);
    let send = async |request: &[u8]| exchange(connect(&testbed).await, request).await;
    assert_eq!(send(&unsigned("POST", BODY_MAX + 1)).await, Some(413));
    assert_eq!(send(&unsigned("GET", 0)).await, Some(405));
    assert_eq!(send(&unsigned("PUT", 0)).await, Some(405));
    assert_eq!(send(b"what is this?\r\n\r\n").await, Some(400));
    assert_eq!(deliver(&testbed, "ping", b"{\"zen\": \"Speak like a human.\"}").await, Some(200));
    assert_eq!(deliver(&testbed, "workflow_job", b"{\"action\": \"que").await, Some(400));
    assert_eq!(deliver(&testbed, "workflow_job", b"{}").await, Some(400));
    assert_eq!(deliver(&testbed, "workflow_job", b"[]").await, Some(400));
    assert_eq!(deliver(&testbed, "workflow_job", b"").await, Some(400));
    assert_eq!(deliver(&testbed, "workflow_job", b"\xff\xfe\x00").await, Some(400));
    assert_eq!(deliver(&testbed, "never_heard_of", b"{}").await, Some(200));
    let deep = [vec![b'['; 100_000], vec![b']'; 100_000]].concat();
    assert_eq!(deliver(&testbed, "workflow_job", &deep).await, Some(400));

    // It breaks off in the middle: whether the answer still gets through is the kernel's affair.
    let mut stream = connect(&testbed).await;
    stream.write_all(&unsigned("POST", 100)).await.expect("a head");
    stream.write_all(b"half of it").await.expect("a part of the body");
    stream.shutdown().await.expect("closed");
    assert!(matches!(answer(&mut stream).await, None | Some(400)));
    logged(&testbed, "the body broke off").await;

    queue(&testbed, BUILD, "afterwards");
    booting(&testbed, BUILD).await;
    end(testbed).await;
}

#[tokio::test]
async fn unknown_actions_and_statuses_are_taken() {
    let Some(testbed) = testbed("unknown-status").await else { return };
    forget_webhooks(&testbed);
    let job = queue(&testbed, BUILD, "strange");
    let body = String::from_utf8(sample(&testbed, job)).expect("text");
    let changed = |from: &str, to: &str| {
        assert!(body.contains(from), "{from} is not in {body}");
        body.replace(from, to)
    };
    for strange in [
        changed(r#""action":"queued""#, r#""action":"teleported""#),
        changed(r#""status":"queued""#, r#""status":"pondering""#),
        changed(r#""conclusion":null"#, r#""conclusion":"shrug""#),
    ] {
        assert_eq!(deliver(&testbed, "workflow_job", strange.as_bytes()).await, Some(202));
    }
    assert_eq!(deliver(&testbed, "workflow_job", body.as_bytes()).await, Some(202));
    booting(&testbed, BUILD).await;
    end(testbed).await;
}

#[tokio::test]
async fn a_slow_body_is_cut_off() {
    let Some(testbed) = testbed("slow-body").await else { return };
    let mut stream = connect(&testbed).await;
    let began = Instant::now();
    stream.write_all(&head("POST", 100, &[])).await.expect("a head");
    stream.write_all(b"and then").await.expect("a part of the body");
    assert_eq!(answer(&mut stream).await, Some(408));
    assert!(began.elapsed() >= Duration::from_secs(9), "after {:?}", began.elapsed());
    end(testbed).await;
}

#[tokio::test]
async fn webhooks_come_over_tcp_where_configured() {
    let Some(mut plan) = plan("tcp") else { return };
    let address = format!("127.0.0.1:{}", free_port().expect("a port"));
    plan.host_lines.push(format!("webhook_listen: {address}"));
    let testbed = Testbed::start(plan).await.expect("the testbed starts");
    polled(&testbed).await;
    assert_eq!(testbed.client().status().await.expect("a status").daemon.webhooks, address);
    assert!(!testbed.plan().base_dir().join("webhook.sock").exists());

    forget_webhooks(&testbed);
    let job = queue(&testbed, BUILD, "over tcp");
    let request = webhook("workflow_job", &sample(&testbed, job));
    let stream = TcpStream::connect(&address).await.expect("the endpoint listens");
    assert_eq!(exchange(stream, &request).await, Some(202));
    booting(&testbed, BUILD).await;
    end(testbed).await;
}

#[tokio::test]
async fn connections_are_bounded_and_others_get_their_turn() {
    let Some(testbed) = testbed("many-connections").await else { return };
    let mut held = Vec::new();
    for _ in 0..300 {
        held.push(connect(&testbed).await);
    }
    // All places are taken: one more waits, and the daemon itself is as well as before.
    let mut late = connect(&testbed).await;
    late.write_all(&webhook("ping", b"{}")).await.expect("it can be sent");
    let early = tokio::time::timeout(Duration::from_millis(200), answer(&mut late)).await;
    assert!(early.is_err(), "answered although all places are taken: {early:?}");
    let status = tokio::time::timeout(STEP, testbed.client().status()).await;
    assert!(matches!(status, Ok(Ok(Status { .. }))));

    held.clear();
    assert_eq!(answer(&mut late).await, Some(200));
    end(testbed).await;
}

/// The daemon's memory, in bytes.
fn memory_of(testbed: &Testbed) -> u64 {
    let pid = testbed.daemon.as_ref().and_then(|daemon| daemon.pid()).expect("a daemon");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib << 10
}

/// What the endpoint may hold for all strangers together: bodies, what is read ahead of 256
/// connections, and as much again for what the allocator keeps.
const MEMORY_MAX: u64 = 128 << 20;

#[tokio::test]
async fn large_bodies_fill_no_memory_and_keep_no_webhook_out() {
    let Some(testbed) = testbed("large-bodies").await else { return };
    let before = memory_of(&testbed);
    // Of each body, all but the end: 800 MB in all, if anybody took them.
    let mut floods = tokio::task::JoinSet::new();
    for _ in 0..40 {
        let mut stream = connect(&testbed).await;
        floods.spawn(async move {
            stream.write_all(&head("POST", BODY_MAX, &[])).await?;
            let chunk = vec![b'x'; 1 << 20];
            for _ in 0..20 {
                stream.write_all(&chunk).await?;
            }
            std::future::pending::<std::io::Result<()>>().await
        });
    }
    forget_webhooks(&testbed);
    let job = queue(&testbed, BUILD, "in the flood");
    let body = sample(&testbed, job);
    let began = Instant::now();
    assert_eq!(deliver(&testbed, "workflow_job", &body).await, Some(202));
    assert!(began.elapsed() < Duration::from_secs(5), "after {:?}", began.elapsed());
    booting(&testbed, BUILD).await;
    let grown = memory_of(&testbed).saturating_sub(before);
    assert!(grown < MEMORY_MAX, "{} MiB", grown >> 20);
    floods.shutdown().await;
    end(testbed).await;
}

#[tokio::test]
async fn a_slow_head_is_cut_off() {
    let Some(testbed) = testbed("slow-head").await else { return };
    let mut stream = connect(&testbed).await;
    let began = Instant::now();
    stream.write_all(b"POST / HTTP/1.1\r\nHost: forr").await.expect("a part of a head");
    assert!(matches!(answer(&mut stream).await, None | Some(408)));
    let took = began.elapsed();
    assert!((9..25).contains(&took.as_secs()), "after {took:?}");
    end(testbed).await;
}

/// More connections than there are places, none of which says anything: those that were there longest make room.
#[tokio::test]
async fn connections_that_are_held_for_nothing_keep_no_webhook_out() {
    let Some(testbed) = testbed("crowd").await else { return };
    let mut held = Vec::new();
    for _ in 0..300 {
        held.push(connect(&testbed).await);
    }
    let began = Instant::now();
    assert_eq!(deliver(&testbed, "ping", b"{}").await, Some(200));
    let took = began.elapsed();
    assert!(took < Duration::from_secs(12), "after {took:?}, when they lost their places anyway");
    end(testbed).await;
}

#[tokio::test]
async fn endless_heads_are_refused() {
    let Some(testbed) = testbed("endless-heads").await else { return };
    let mut many = b"POST / HTTP/1.1\r\n".to_vec();
    (0..10_000).for_each(|n| many.extend(format!("x-{n}: y\r\n").bytes()));
    let mut long = b"POST / HTTP/1.1\r\nx: ".to_vec();
    long.resize(1 << 20, b'y');
    for request in [many, long] {
        let answer = exchange(connect(&testbed).await, &request).await;
        assert!(matches!(answer, None | Some(431)), "{answer:?}");
    }
    assert_eq!(deliver(&testbed, "ping", b"{}").await, Some(200));
    end(testbed).await;
}

/// A recorded delivery can be sent again by whoever recorded it: nothing may come of it.
#[tokio::test]
async fn replays_start_nothing() {
    let Some(testbed) = testbed("replays").await else { return };
    forget_webhooks(&testbed);
    let job = queue(&testbed, BUILD, "once");
    let queued = sample(&testbed, job);
    for _ in 0..200 {
        assert_eq!(deliver(&testbed, "workflow_job", &queued).await, Some(202));
    }
    let runner = booting(&testbed, BUILD).await;
    let made = |status: &Status| status.view.runs.len() + status.view.finished.len();
    assert_eq!(made(&testbed.client().status().await.expect("a status")), 1);

    // The job is over, its run is ended, and what was recorded before comes again.
    testbed.sim.cancel(testbed.sim.job(job).expect("the job").run_id, true).expect("cancelled");
    let completed = testbed.sim.sample_webhook(job, JobAction::Completed).expect("a sample").1;
    assert_eq!(deliver(&testbed, "workflow_job", &completed).await, Some(202));
    testbed.client().stop(&runner).await.expect("stopped");
    let gone = |status: &Status| status.view.runs.is_empty().then_some(());
    testbed.wait(STEP, "the end of the run", gone).await.expect("it ends");
    assert_eq!(deliver(&testbed, "workflow_job", &queued).await, Some(202));
    assert_eq!(made(&testbed.client().status().await.expect("a status")), 1, "a replay was heard");
    end(testbed).await;
}

/// A daemon that was started anew knows nothing of jobs that are over: GitHub is asked for one that only an old
/// webhook calls queued.
#[tokio::test]
async fn replays_start_nothing_after_a_restart_either() {
    let Some(mut testbed) = testbed("replays-restart").await else { return };
    testbed.daemon.take().expect("a daemon").kill().await.expect("killed");
    let job = queue(&testbed, BUILD, "over");
    let queued = with_field(&sample(&testbed, job), "created_at", "2020-01-01T00:00:00Z");
    testbed.sim.cancel(testbed.sim.job(job).expect("the job").run_id, true).expect("cancelled");
    testbed.start_daemon().await.expect("it starts again");
    polled(&testbed).await;
    testbed.sim.clear_requests();
    assert_eq!(deliver(&testbed, "workflow_job", &queued).await, Some(202));
    let path = format!("/actions/jobs/{job}");
    let asked = || testbed.sim.requests().iter().any(|request| request.path.ends_with(&path));
    until("a question about the job", asked).await;
    let view = testbed.client().status().await.expect("a status").view;
    assert!(view.runs.is_empty() && view.finished.is_empty(), "a replay was heard: {view:?}");
    end(testbed).await;
}

/// Whoever administers a repository that the App serves can give a runner there any name.
#[tokio::test]
async fn a_runner_of_the_same_name_elsewhere_is_not_taken_for_ours() {
    const OTHER: &str = "acme/gadgets/build";
    let Some(plan) = plan("namesake") else { return };
    let testbed = Testbed::start(plan.with(machine(OTHER))).await.expect("the testbed starts");
    polled(&testbed).await;
    queue(&testbed, BUILD, "ours");
    let runner = booting(&testbed, BUILD).await;
    forget_webhooks(&testbed);
    let job = queue(&testbed, OTHER, "theirs");
    for action in [JobAction::InProgress, JobAction::Completed] {
        let body = testbed.sim.sample_webhook(job, action).expect("a sample").1;
        let body = with_field(&body, "runner_name", runner.as_str());
        assert_eq!(deliver(&testbed, "workflow_job", &body).await, Some(202));
    }
    logged(&testbed, "as somebody may have given its name to a runner there").await;
    logged(&testbed, "job \"theirs\" is over").await;
    assert_eq!(booting(&testbed, BUILD).await, runner);
    end(testbed).await;
}

/// A webhook's body that says something else of its job.
fn with_field(body: &[u8], field: &str, value: &str) -> Vec<u8> {
    let mut body: serde_json::Value = serde_json::from_slice(body).expect("JSON");
    body["workflow_job"][field] = value.into();
    serde_json::to_vec(&body).expect("JSON")
}

#[tokio::test]
async fn a_flood_of_refused_requests_is_a_few_lines_of_log() {
    let Some(testbed) = testbed("refusals").await else { return };
    for _ in 0..500 {
        let request = post(&[("X-GitHub-Event", "workflow_job")], b"{}");
        assert_eq!(exchange(connect(&testbed).await, &request).await, Some(401));
    }
    let log = std::fs::read_to_string(testbed.log()).expect("a log");
    let lines = log.matches("webhook refused").count();
    assert!((1..100).contains(&lines), "{lines} lines");
    end(testbed).await;
}

#[tokio::test]
async fn sockets_are_open_to_nobody_but_the_proxys_group() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let Some(mut plan) = plan("socket-group") else { return };
    // Root may give a file to any group; others to one that they are in.
    let is_root = rustix::process::geteuid().is_root();
    let group = if is_root { 54_321 } else { rustix::process::getegid().as_raw() };
    plan.host_lines.push(format!("webhook_group: \"{group}\""));
    let testbed = Testbed::start(plan).await.expect("the testbed starts");
    let of = |name: &str| {
        std::fs::metadata(testbed.plan().base_dir().join(name)).expect("the socket is there")
    };
    let (webhook, control) = (of("webhook.sock"), of("control.sock"));
    assert_eq!((webhook.permissions().mode() & 0o777, webhook.gid()), (0o660, group));
    assert_eq!(control.permissions().mode() & 0o777, 0o600);
    assert_eq!(control.gid(), rustix::process::getegid().as_raw());
    end(testbed).await;
}
