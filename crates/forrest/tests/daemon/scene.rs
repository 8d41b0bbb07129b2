//! Where the stories are set.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use forrest_core::model::RunnerName;
use forrest_daemon::control::Status;
use forrest_testbed::{MachinePlan, Plan, QueuedJob, Testbed, hanging_image};
use github_sim::model::{JobId, WebhookEffect, WebhookFault, When};

/// The machine type of most stories.
pub const BUILD: &str = "acme/widgets/build";
/// How long any step may take on a busy host.
pub const STEP: Duration = Duration::from_secs(60);
/// Pause between two looks at a log, a directory, or what the kernel says.
const LOOK_PAUSE: Duration = Duration::from_millis(20);

/// The repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the repository")
}

/// A machine type of guests that never do anything; a story that fails leaves none behind for long.
pub fn machine(name: &str) -> MachinePlan {
    MachinePlan::new(name).with("ram: 128M").with("disk: 64M").with("boot_timeout: 2m")
}

/// The plan of a story without machine types; `None`, said loudly, where there is no QEMU.
pub fn empty_plan(story: &str) -> Option<Plan> {
    if Command::new("qemu-system-x86_64").arg("--version").output().is_err() {
        let missing = "qemu-system-x86_64 is missing: `make setup` installs it";
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{missing}");
        eprintln!("NOT TESTED: {missing}");
        return None;
    }
    let dir = root().join("target/stories").join(format!("daemon-{story}"));
    if dir.exists() {
        std::fs::remove_dir_all(&dir).expect("the story's directory can be emptied");
    }
    std::fs::create_dir_all(&dir).expect("a directory");
    let mut plan = Plan::new(&root(), &dir, forrest());
    plan.guest_image = dir.join("hangs.raw");
    std::fs::write(&plan.guest_image, hanging_image()).expect("an image");
    Some(plan)
}

/// The plan of a story with one machine type, [`BUILD`].
pub fn plan(story: &str) -> Option<Plan> {
    Some(empty_plan(story)?.with(machine(BUILD)))
}

/// A story with one machine type, [`BUILD`], whose daemon has heard from GitHub.
pub async fn testbed(story: &str) -> Option<Testbed> {
    let testbed = Testbed::start(plan(story)?).await.expect("the testbed starts");
    polled(&testbed).await;
    Some(testbed)
}

/// Waits until GitHub was asked for jobs, so that only webhooks tell of new ones.
pub async fn polled(testbed: &Testbed) {
    let polled = |status: &Status| {
        status.view.repositories.iter().all(|repo| repo.polled_at.is_some()).then_some(())
    };
    testbed.wait(STEP, "the first poll", polled).await.expect("a poll");
}

/// GitHub forgets to send webhooks.
pub fn forget_webhooks(testbed: &Testbed) {
    testbed.sim.webhook_fault(WebhookFault::new("*", WebhookEffect::Forget, When::Always));
}

/// Queues a job for a machine type.
pub fn queue(testbed: &Testbed, machine: &str, name: &str) -> JobId {
    testbed.queue(machine, QueuedJob::push(name, &["true"])).expect("queued")
}

/// Waits until a machine type has a guest that boots.
pub async fn booting(testbed: &Testbed, machine: &str) -> RunnerName {
    let found = |status: &Status| {
        let ours = status.view.runs.iter().filter(|run| run.machine.to_string() == machine);
        ours.filter(|run| run.state == "booting").map(|run| run.runner.clone()).next()
    };
    testbed.wait(STEP, &format!("a booting guest of {machine}"), found).await.expect("it boots")
}

/// Waits until the log has all these words in one line or in lines that belong together.
pub async fn logged(testbed: &Testbed, words: &str) {
    let log = || std::fs::read_to_string(testbed.log()).unwrap_or_default();
    let found = happens(|| log().contains(words)).await;
    assert!(found, "{words:?} is not in the log:\n{}", log());
}

/// Waits until something is so that nobody tells of.
pub async fn until(what: &str, is_so: impl FnMut() -> bool) {
    assert!(happens(is_so).await, "{what} does not happen");
}

/// Whether it is so within a [`STEP`].
async fn happens(mut is_so: impl FnMut() -> bool) -> bool {
    let look = async {
        while !is_so() {
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    };
    tokio::time::timeout(STEP, look).await.is_ok()
}

/// The directory of a run of [`BUILD`].
pub fn run_dir(testbed: &Testbed, runner: &RunnerName) -> PathBuf {
    testbed.plan().base_dir().join("runs").join(BUILD).join(runner.as_str())
}

/// The configuration with some of its text replaced, in force or not.
pub fn reconfigure(testbed: &Testbed, from: &str, to: &str) {
    let text = std::fs::read_to_string(testbed.config()).expect("the configuration");
    assert!(text.contains(from), "{from:?} is not in\n{text}");
    std::fs::write(testbed.config(), text.replace(from, to)).expect("written");
}

/// Runs the program with these arguments until it ends.
pub fn run(arguments: &[&str]) -> Output {
    Command::new(forrest()).args(arguments).output().expect("it runs")
}

/// What a daemon that does not start says about its configuration.
pub fn refusal(config: &Path) -> String {
    let output = run(&["run", "--config", &config.to_string_lossy()]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    said
}

/// Ends the story: its jobs are cancelled, its guests are stopped, and nothing is left.
pub async fn end(mut testbed: Testbed) {
    testbed.sim.clear_faults();
    testbed.client().drain(true).await.expect("drained");
    for job in testbed.sim.jobs().iter().filter(|job| job.status != "completed") {
        testbed.sim.cancel(job.run_id, true).expect("cancelled");
    }
    for run in testbed.client().status().await.expect("a status").view.runs {
        // It may be gone by now.
        let _ = testbed.client().stop(&run.runner).await;
    }
    clean(&testbed).await;
    testbed.stop_daemon().await.expect("it stops");
}

/// Waits until all runs are over, and looks whether anything is left of them.
pub async fn clean(testbed: &Testbed) {
    let idle = |status: &Status| status.view.runs.is_empty().then_some(());
    testbed.wait(STEP, "the end of all runs", idle).await.expect("all runs end");
    assert!(testbed.sim.runners().is_empty(), "runners are left: {:?}", testbed.sim.runners());
    let mut left = Vec::new();
    images(&testbed.plan().base_dir().join("runs"), &mut left);
    assert!(left.is_empty(), "disks are left: {left:?}");
}

fn images(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            images(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "img") {
            found.push(path);
        }
    }
}

fn forrest() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_forrest"))
}
