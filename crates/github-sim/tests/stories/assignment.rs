//! Which job goes to which runner, and what becomes of both.

use std::time::Duration;

use github_sim::model::{Conclusion, JobSpec, Settings, Workflow};
use reqwest::Method;

use crate::client::{GitHub, REPO, Start};
use crate::receiver::Receiver;

const SOON: Duration = Duration::from_secs(20);
const LABELS: [&str; 3] = ["self-hosted", "forrest", "build"];

fn build(name: &str) -> Workflow {
    Workflow::push().job(JobSpec::new(name).runs_on(["Self-Hosted", "BUILD"]).step("true"))
}

#[tokio::test]
async fn any_matching_runner_gets_the_longest_waiting_job() {
    let github = GitHub::start("any_matching_runner_gets_the_longest_waiting_job").await;
    let token = github.token().await;
    let first = github.sim.queue_workflow(REPO, build("first")).expect("queued").job("first");
    let second = github.sim.queue_workflow(REPO, build("second")).expect("queued").job("second");
    let other = github.register(&token, "other", &["self-hosted", "forrest", "test"]).await;
    let other = github.sim.connect_runner(&other).expect("connected");
    let config = github.register(&token, "made-for-second", &LABELS).await;
    let runner = github.sim.connect_runner(&config).expect("connected");
    let job = runner.next_job().await.expect("a job");
    assert_eq!(job.job, first);
    assert!(github.sim.job(first).expect("it").assigned);
    assert_eq!(github.sim.job(first).expect("it").status, "queued");
    runner.pick_up(&job).expect("picked up");
    runner.log(&job, "hello\n");
    runner.complete(&job, Conclusion::Success).expect("done");

    let job = github.sim.wait_completed(first, SOON).await.expect("over");
    assert_eq!(job.runner_name.as_deref(), Some("made-for-second"));
    let times = job.times;
    let order = [
        times.queued,
        times.runner_online,
        times.assigned,
        times.picked_up,
        times.first_log_line,
        times.completed,
    ];
    assert!(order.iter().all(Option::is_some) && order.is_sorted(), "{order:?}");
    assert_eq!(github.sim.job(second).expect("it").status, "queued");
    let names: Vec<_> = github.sim.runners().into_iter().map(|runner| runner.name).collect();
    assert_eq!(names, ["other"], "a just-in-time runner is removed after its job");
    drop(other);
}

#[tokio::test]
async fn a_job_that_is_not_picked_up_goes_to_another_runner() {
    let github = GitHub::start("a_job_that_is_not_picked_up_goes_to_another_runner").await;
    let token = github.token().await;
    let job = github.sim.queue_workflow(REPO, build("a")).expect("queued").job("a");
    let sleepy = github.register(&token, "sleepy", &LABELS).await;
    let sleepy = github.sim.connect_runner(&sleepy).expect("connected");
    let given = sleepy.next_job().await.expect("a job");
    let awake = github.register(&token, "awake", &LABELS).await;
    let awake = github.sim.connect_runner(&awake).expect("connected");

    github.sim.advance(Duration::from_secs(59));
    assert!(github.sim.job(job).expect("it").assigned, "the minute is not over");
    github.sim.advance(Duration::from_secs(1));
    assert!(sleepy.pick_up(&given).is_err(), "too late");
    let done = awake.run_one(Conclusion::Success).await.expect("done");
    assert_eq!(done.job, job);
    let view = github.sim.job(job).expect("it");
    assert_eq!(view.runner_name.as_deref(), Some("awake"));
    assert!(sleepy.next_job().await.is_err(), "its session is over");
}

#[tokio::test]
async fn a_lost_runner_stays_busy_until_its_job_fails() {
    let mut hooks = Receiver::tcp().await;
    let start = Start { hook: Some(hooks.target.clone()), ..Start::default() };
    let github = GitHub::start_with("a_lost_runner_stays_busy", start).await;
    let token = github.token().await;
    let job = github.sim.queue_workflow(REPO, build("a")).expect("queued").job("a");
    let config = github.register(&token, "doomed", &LABELS).await;
    let runner = github.sim.connect_runner(&config).expect("connected");
    let id = runner.id();
    let given = runner.next_job().await.expect("a job");
    runner.pick_up(&given).expect("picked up");
    runner.disconnect();

    let path = format!("/repos/{REPO}/actions/runners/{id}");
    let shown = github.get(&token, &path).await.expect(200);
    assert_eq!((&shown["status"], &shown["busy"]), (&"offline".into(), &true.into()));
    github.ask(Method::DELETE, &path, Some(&token), None).await.expect(422);
    github.sim.advance(Duration::from_secs(15 * 60));
    let view = github.sim.job(job).expect("it");
    assert_eq!((view.status, view.conclusion), ("completed", Some(Conclusion::Failure)));
    github.get(&token, &path).await.expect(404);
    for wanted in [("queued", "queued"), ("in_progress", "in_progress"), ("completed", "completed")]
    {
        let (action, status) = hooks.next_what().await;
        assert_eq!((action.as_str(), status.as_str()), wanted);
    }
}

#[tokio::test]
async fn a_lost_runner_may_come_back() {
    let github = GitHub::start("a_lost_runner_may_come_back").await;
    let token = github.token().await;
    let job = github.sim.queue_workflow(REPO, build("a")).expect("queued").job("a");
    let config = github.register(&token, "back-again", &LABELS).await;
    let runner = github.sim.connect_runner(&config).expect("connected");
    let given = runner.next_job().await.expect("a job");
    runner.pick_up(&given).expect("picked up");
    runner.disconnect();
    let again = github.sim.connect_runner(&config).expect("connected again");
    assert!(github.sim.connect_runner(&config).is_err(), "one connection at a time");
    github.sim.advance(Duration::from_secs(15 * 60));
    assert_eq!(github.sim.job(job).expect("it").status, "in_progress");
    again.complete(&given, Conclusion::Success).expect("done");
    assert_eq!(github.sim.job(job).expect("it").conclusion, Some(Conclusion::Success));
}

#[tokio::test]
async fn runners_and_jobs_do_not_wait_for_ever() {
    let settings = Settings { idle_timeout: Some(Duration::from_secs(600)), ..Settings::default() };
    let start = Start { settings, ..Start::default() };
    let github = GitHub::start_with("runners_and_jobs_do_not_wait_for_ever", start).await;
    let token = github.token().await;
    github.register(&token, "never-connected", &LABELS).await;
    let idle = github.register(&token, "idle", &["other"]).await;
    let idle = github.sim.connect_runner(&idle).expect("connected");
    let job = github.sim.queue_workflow(REPO, build("a")).expect("queued").job("a");
    github.sim.advance(Duration::from_secs(600));
    assert!(idle.next_job().await.is_err(), "idle runners vanish here");
    github.sim.advance(Duration::from_secs(24 * 3600 - 601));
    assert_eq!(github.sim.runners().len(), 1);
    assert_eq!(github.sim.job(job).expect("it").status, "queued");
    github.sim.advance(Duration::from_secs(601));
    assert!(github.sim.runners().is_empty());
    let view = github.sim.job(job).expect("it");
    assert_eq!((view.status, view.conclusion), ("completed", Some(Conclusion::Failure)));
}

#[tokio::test]
async fn cancelling_asks_the_runner_and_then_does_not() {
    let github = GitHub::start("cancelling_asks_the_runner_and_then_does_not").await;
    let token = github.token().await;
    let flow = build("runs").job(JobSpec::new("waits").runs_on(["nobody"]));
    let ids = github.sim.queue_workflow(REPO, flow).expect("queued");
    let config = github.register(&token, "r", &LABELS).await;
    let runner = github.sim.connect_runner(&config).expect("connected");
    let given = runner.next_job().await.expect("a job");
    runner.pick_up(&given).expect("picked up");
    github.sim.cancel(ids.run, false).expect("cancelled");
    assert_eq!(
        github.sim.job(ids.job("waits")).expect("it").conclusion,
        Some(Conclusion::Cancelled)
    );
    assert_eq!(github.sim.job(ids.job("runs")).expect("it").status, "in_progress");
    runner.cancelled().await;
    github.sim.advance(Duration::from_secs(5 * 60));
    assert_eq!(
        github.sim.job(ids.job("runs")).expect("it").conclusion,
        Some(Conclusion::Cancelled)
    );
    assert!(runner.complete(&given, Conclusion::Success).is_err(), "too late");
    assert!(github.sim.cancel(ids.run, true).is_err(), "it is over");
}

#[tokio::test]
async fn a_removed_runner_loses_what_it_did_not_pick_up() {
    let github = GitHub::start("a_removed_runner_loses_what_it_did_not_pick_up").await;
    let token = github.token().await;
    let job = github.sim.queue_workflow(REPO, build("a")).expect("queued").job("a");
    let config = github.register(&token, "r", &LABELS).await;
    let runner = github.sim.connect_runner(&config).expect("connected");
    let given = runner.next_job().await.expect("a job");
    github.sim.remove_runner(runner.id()).expect("removed");
    assert!(runner.pick_up(&given).is_err());
    assert!(!github.sim.job(job).expect("it").assigned);
    assert!(github.sim.connect_runner(&config).is_err(), "its JIT config is worth nothing now");
}
