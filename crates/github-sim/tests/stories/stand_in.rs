//! The stand-in runner, run for real: from the tarball, in a process of its own.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use github_sim::model::{Conclusion, JobSpec, JobView, Settings, StepSpec, Workflow};
use github_sim::runner::runner_tarball;
use github_sim::{Sim, SimConfig};
use tokio::process::{Child, Command};

use crate::client::{GitHub, REPO, Start};

const SOON: Duration = Duration::from_secs(30);
const LABELS: [&str; 2] = ["self-hosted", "x"];

/// Unpacks the runner as a guest would.
fn unpack() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    let tarball = directory.path().join("runner.tar.gz");
    std::fs::write(&tarball, &runner_tarball().bytes).expect("written");
    let status = std::process::Command::new("tar")
        .args(["-xzf", "runner.tar.gz"])
        .current_dir(directory.path())
        .status()
        .expect("tar");
    assert!(status.success());
    directory
}

fn start(directory: &Path, config: &str) -> Child {
    Command::new(directory.join("run.sh"))
        .env("ACTIONS_RUNNER_INPUT_JITCONFIG", config)
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("run.sh starts")
}

/// Runs one job to its end; returns it, its log without times, and what the runner printed.
async fn run(github: &GitHub, workflow: Workflow) -> (JobView, String, String) {
    let token = github.token().await;
    let name = workflow.jobs[0].name.clone();
    let job = github.sim.queue_workflow(REPO, workflow).expect("queued").job(&name);
    let config = github.register(&token, &format!("runner-{job}"), &LABELS).await;
    let directory = unpack();
    let child = start(directory.path(), &config);
    let output = tokio::time::timeout(SOON, child.wait_with_output()).await;
    let output = output.expect("it ends in time").expect("an end");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {printed}{errors}", output.status);
    assert_eq!(errors, "", "run.sh complains");
    let view = github.sim.job(job).expect("the job");
    (view, log(github, job), printed)
}

fn log(github: &GitHub, job: github_sim::model::JobId) -> String {
    let text = github.sim.job_log(job).expect("a log");
    text.lines().map(|line| format!("{}\n", line.split_once(' ').expect("a time").1)).collect()
}

fn job(name: &str) -> JobSpec {
    JobSpec::new(name).runs_on(LABELS)
}

#[tokio::test]
async fn it_runs_a_job_and_ends() {
    let github = GitHub::start("it_runs_a_job_and_ends").await;
    let spec = job("build it")
        .secret("TOKEN", "hunter2")
        .env("ODD", "it's $HOME\nand \"more\" ü")
        .step("echo \"$ODD\"; echo \"token $TOKEN\"; printf 'no newline'")
        .step("echo \"$GITHUB_REPOSITORY $GITHUB_RUN_ID $GITHUB_JOB $RUNNER_NAME $GITHUB_REF\"")
        .step("echo A=1 >> $GITHUB_ENV; printf 'B<<E\\nx\\ny\\nE\\n' >> $GITHUB_ENV")
        .step("echo \"A=$A B=$B\" >&2; pwd; echo $LC_ALL; cat <<'EOF'\nheredoc $x\nEOF\n")
        .step("env | grep -c -e JITCONFIG -e sim_ || true; echo ${#ODD}; cat; echo ü");
    let (view, log, printed) = run(&github, Workflow::push().job(spec)).await;
    assert_eq!(view.conclusion, Some(Conclusion::Success));
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines[..4], ["it's $HOME", "and \"more\" ü", "token ***", "no newline"], "{log}");
    assert_eq!(
        lines[4],
        format!("{REPO} {} build it runner-{} refs/heads/main", view.run_id, view.id)
    );
    assert_eq!(lines[5..7], ["A=1 B=x", "y"]);
    assert!(lines[7].ends_with("/_work/workspace"), "{log}");
    assert_eq!(lines[8..], ["C.UTF-8", "heredoc $x", "0", "23", "ü"], "{log}");
    assert!(printed.contains("Listening for Jobs\n"), "{printed}");
    assert!(printed.contains("Running job: build it\n"), "{printed}");
    assert!(printed.contains("Z: Job build it completed with result: Succeeded\n"), "{printed}");
    assert!(printed.contains("stand-in"), "{printed}");
    let names: Vec<&str> = view.steps.iter().map(|step| step.name.as_str()).collect();
    assert_eq!((names[0], names[6]), ("Set up job", "Complete job"));
    assert!(view.times.first_log_line > view.times.picked_up);
    assert!(github.sim.runners().is_empty());
}

#[tokio::test]
async fn a_failing_step_fails_the_job() {
    let github = GitHub::start("a_failing_step_fails_the_job").await;
    let mut spec = job("a").step("echo one; false; echo not reached").step("echo skipped");
    spec.steps.push(StepSpec { always: true, ..StepSpec::from("echo always") });
    spec.steps.push(StepSpec::from("if broken"));
    let (view, log, printed) = run(&github, Workflow::push().job(spec)).await;
    assert_eq!(view.conclusion, Some(Conclusion::Failure));
    assert_eq!(log, "one\n##[error]Process completed with exit code 1.\nalways\n");
    assert!(printed.contains("completed with result: Failed"), "{printed}");
    let how: Vec<_> = view.steps.iter().filter_map(|step| step.conclusion).collect();
    use Conclusion::{Failure, Skipped, Success};
    assert_eq!(how, [Success, Failure, Skipped, Success, Skipped, Skipped]);
}

#[tokio::test]
async fn a_script_that_is_none_fails() {
    let github = GitHub::start("a_script_that_is_none_fails").await;
    let (view, log, _) = run(&github, Workflow::push().job(job("a").step("if true"))).await;
    assert_eq!(view.conclusion, Some(Conclusion::Failure));
    assert!(log.contains("syntax error"), "{log}");
}

#[tokio::test]
async fn a_lot_of_output_arrives_whole() {
    let github = GitHub::start("a_lot_of_output_arrives_whole").await;
    let spec = job("a").step("seq 1 50000").step("exit 0").step("sleep 600 & echo left behind");
    let (view, log, _) = run(&github, Workflow::push().job(spec)).await;
    assert_eq!(view.conclusion, Some(Conclusion::Success));
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines.len(), 50_001);
    assert!(lines[..50_000].iter().enumerate().all(|(i, line)| *line == (i + 1).to_string()));
}

#[tokio::test]
async fn a_cancelled_job_is_stopped() {
    let github = GitHub::start("a_cancelled_job_is_stopped").await;
    let token = github.token().await;
    let spec = job("a").step("echo started; sleep 600; echo not reached").step("echo skipped");
    let ids = github.sim.queue_workflow(REPO, Workflow::push().job(spec)).expect("queued");
    let config = github.register(&token, "r", &LABELS).await;
    let directory = unpack();
    let child = start(directory.path(), &config);
    let started = |view: &JobView| view.times.first_log_line.is_some();
    github.sim.wait_for(ids.job("a"), SOON, started).await.expect("started");
    github.sim.cancel(ids.run, false).expect("cancelled");
    let view = github.sim.wait_completed(ids.job("a"), SOON).await.expect("over");
    assert_eq!(view.conclusion, Some(Conclusion::Cancelled));
    let output = tokio::time::timeout(SOON, child.wait_with_output()).await;
    let output = output.expect("it ends in time").expect("an end");
    assert!(output.status.success());
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(printed.contains("completed with result: Canceled"), "{printed}");
    assert!(log(&github, ids.job("a")).starts_with("started\n##[error]"));
}

#[tokio::test]
async fn a_killed_runner_is_lost() {
    let github = GitHub::start("a_killed_runner_is_lost").await;
    let token = github.token().await;
    let flow = Workflow::push().job(job("a").step("echo started; sleep 5"));
    let id = github.sim.queue_workflow(REPO, flow).expect("queued").job("a");
    let config = github.register(&token, "r", &LABELS).await;
    let directory = unpack();
    let mut child = start(directory.path(), &config);
    let started = |view: &JobView| view.times.first_log_line.is_some();
    github.sim.wait_for(id, SOON, started).await.expect("started");
    child.kill().await.expect("killed");
    // The step outlives its runner and holds the connection until it ends, too.
    let lost = github.sim.wait_for_runners(|all| all.iter().all(|r| r.status == "offline"));
    tokio::time::timeout(SOON, lost).await.expect("lost");
    assert_eq!(github.sim.job(id).expect("it").status, "in_progress");
    github.sim.advance(Duration::from_secs(15 * 60));
    assert_eq!(github.sim.job(id).expect("it").conclusion, Some(Conclusion::Failure));
}

#[tokio::test]
async fn runners_may_know_the_simulator_by_another_name() {
    let runner_url = "http://localhost:0".to_owned();
    let settings = Settings { runner_url, ..Settings::default() };
    let start = Start { settings, ..Start::default() };
    let github = GitHub::start_with("runners_may_know_the_simulator_by_another_name", start).await;
    let flow = Workflow::push().job(job("a").step("true"));
    assert_eq!(run(&github, flow).await.0.conclusion, Some(Conclusion::Success));
    for wrong in ["https://x:1", "http://x", "http://x:1/path"] {
        let settings = Settings { runner_url: wrong.into(), ..Settings::default() };
        let config = SimConfig { settings, ..SimConfig::default() };
        assert!(Sim::start(config).await.is_err(), "{wrong}");
    }
}

#[tokio::test]
async fn it_waits_for_a_job_and_leaves_when_removed() {
    let github = GitHub::start("it_waits_for_a_job_and_leaves_when_removed").await;
    let token = github.token().await;
    let config = github.register(&token, "r", &LABELS).await;
    let directory = unpack();
    let child = start(directory.path(), &config);
    let online = github.sim.wait_for_runners(|all| all.iter().any(|r| r.status == "online"));
    let runner = tokio::time::timeout(SOON, online).await.expect("online")[0].id;
    github.sim.remove_runner(runner).expect("removed");
    let output = tokio::time::timeout(SOON, child.wait_with_output()).await;
    let output = output.expect("it ends in time").expect("an end");
    assert_eq!(output.status.code(), Some(1));
    let again = start(directory.path(), &config).wait_with_output().await.expect("an end");
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&again.stdout).contains("removed, or never was there"));
    let nonsense =
        start(directory.path(), "bm9uc2Vuc2U=").wait_with_output().await.expect("an end");
    assert!(String::from_utf8_lossy(&nonsense.stderr).contains("not of the simulator"));
}

/// Every program costs a guest under emulation dearly; without a PATH none can be started.
#[tokio::test]
async fn no_program_is_started_for_a_job_of_builtins() {
    let github = GitHub::start("no_program_is_started_for_a_job_of_builtins").await;
    let token = github.token().await;
    let flow = Workflow::push().job(job("a").step("echo $PATH").step("echo two"));
    let id = github.sim.queue_workflow(REPO, flow).expect("queued").job("a");
    let config = github.register(&token, "r", &LABELS).await;
    let directory = unpack();
    let output = Command::new(directory.path().join("run.sh"))
        .args(["--jitconfig", &config])
        .env_clear()
        .env("PATH", "/nowhere")
        .output();
    let output = tokio::time::timeout(SOON, output).await.expect("in time").expect("an end");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert!(output.status.success());
    assert_eq!(log(&github, id), "/nowhere\ntwo\n");
}

#[tokio::test]
async fn the_first_line_comes_quickly() {
    let github = GitHub::start("the_first_line_comes_quickly").await;
    let (view, _, _) = run(&github, Workflow::push().job(job("a").step("echo first"))).await;
    let times = view.times;
    let (online, first) = (times.runner_online.expect("one"), times.first_log_line.expect("one"));
    // Two forks and no exec lie between them; a second is for a loaded machine.
    assert!(first.since(online) < Duration::from_secs(1), "{:?}", first.since(online));
    eprintln!("from connection to first line: {:?}", first.since(online));
}
