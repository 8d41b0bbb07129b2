//! A run that is over: how it ended and where its time went.

use forrest_core::event::EndReason;
use forrest_core::model::{Conclusion, Job, Timestamp};
use forrest_core::run::{FinishedRun, RunTimes};

use crate::terminal::neutral::one_line;
use crate::words::span;

/// The stations that were passed, each with the time since the one before.
///
/// `queued → registered → vm → online → job → completed → gone`. A station that was not passed is left
/// out; the time then belongs to the next one.
pub fn stations(queued: Option<Timestamp>, times: &RunTimes) -> Vec<(&'static str, String)> {
    let mut before = queued.unwrap_or(times.created);
    let passed = [
        ("registered", times.registered),
        ("vm", times.vm_started),
        ("online", times.runner_online),
        ("job", times.in_progress),
        ("completed", times.completed),
        ("gone", times.gone.or(times.vm_exited)),
    ];
    let mut stations = Vec::new();
    for (name, at) in passed {
        let Some(at) = at else { continue };
        stations.push((name, format!("+{}", span(at.since(before)))));
        before = before.max(at);
    }
    stations
}

/// How a run ended, in a few words, and whether that is as it should be.
pub fn result(run: &FinishedRun) -> (String, bool) {
    let (mut text, mut good) = match (&run.job, run.end) {
        (Some(job), EndReason::GuestShutdown) => conclusion(job),
        // Taken away because no job came for it.
        (None, EndReason::GuestShutdown | EndReason::Killed) => ("no job".to_owned(), true),
        (Some(job), end) => (format!("{}, {end}", conclusion(job).0), false),
        (None, end) => (end.to_string(), false),
    };
    if run.end != EndReason::GuestShutdown
        && let Some(detail) = &run.detail
        && !good
    {
        text.push_str(&format!(": {}", one_line(detail)));
    }
    if let Some(generation) = run.result {
        text.push_str(&format!("; became generation {generation}"));
        good = true;
    }
    (text, good)
}

fn conclusion(job: &Job) -> (String, bool) {
    let text = match job.conclusion {
        Some(Conclusion::Success) => return ("success".to_owned(), true),
        Some(Conclusion::Failure) => "failure",
        Some(Conclusion::Cancelled) => "cancelled",
        Some(Conclusion::Skipped) => "skipped",
        Some(Conclusion::TimedOut) => "timed out on GitHub",
        Some(Conclusion::Other) => "ended in a way that this version does not know",
        None => "end not reported yet",
    };
    // A job that fails is the job's own affair.
    (text.to_owned(), true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_times_add_up_and_gaps_are_bridged() {
        let at = |seconds: u64| Some(Timestamp(seconds * 1000));
        let times = RunTimes {
            created: Timestamp(10_000),
            registered: at(11),
            vm_started: at(12),
            in_progress: at(40),
            completed: at(100),
            gone: at(103),
            ..RunTimes::default()
        };
        let list: Vec<String> = stations(at(9), &times)
            .into_iter()
            .map(|(name, time)| format!("{name} {time}"))
            .collect();
        assert_eq!(
            list,
            ["registered +2.0s", "vm +1.0s", "job +28s", "completed +1m00s", "gone +3.0s"]
        );
    }

    #[test]
    fn stations_out_of_order_do_not_count_twice() {
        let times = RunTimes {
            registered: Some(Timestamp(5000)),
            vm_started: Some(Timestamp(4000)),
            gone: Some(Timestamp(6000)),
            ..RunTimes::default()
        };
        let list = stations(Some(Timestamp(0)), &times);
        assert_eq!(list[1], ("vm", "+0s".to_owned()));
        assert_eq!(list[2], ("gone", "+1.0s".to_owned()));
    }
}
