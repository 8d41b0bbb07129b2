//! The README's diagram, drawn from what happened.

use std::fmt::Write as _;

use crate::report::{JobReport, Report};

/// Draws all jobs in their order.
pub fn draw(report: &Report) -> String {
    let mut text = String::from("src    machine    run\n ╻\n");
    let mut has_machine = false;
    for job in &report.jobs {
        let from_src = job.start_image.stage == "src";
        let left = |has_machine: bool| {
            if has_machine { " ┃        ┃        " } else { " ┃                 " }
        };
        // Writing into a text does not fail.
        let _ = if from_src {
            writeln!(text, " ┣━━━━━━━━━━━━━━━━━┓")
        } else {
            writeln!(text, " ┃        ┣━━━━━━━━┓")
        };
        let margin = left(has_machine);
        for (index, line) in story(job).iter().enumerate() {
            let mark = if index == 0 { "┠─╴" } else { "┃  " };
            let _ = writeln!(text, "{margin}{mark}{line}");
        }
        match &job.result_image {
            Some(image) => {
                let generation = image.generation.unwrap_or_default();
                let _ = writeln!(text, " ┃        ┏━━━━━━━━┛");
                let _ = writeln!(
                    text,
                    " ┃        ┠──────────╴Its disk is generation {generation:06} of the machine image"
                );
                let _ = writeln!(text, " ┃        ┃           of {}.", job.machine);
                has_machine = true;
            }
            None => {
                let _ = writeln!(text, "{margin}┞─╴Its disk is removed.");
            }
        }
        let _ = writeln!(text, "{}", if has_machine { " ┋        ┋" } else { " ┋" });
    }
    text
}

fn story(job: &JobReport) -> Vec<String> {
    let cause = match job.event.as_str() {
        "pull_request" => "a pull request from a fork",
        _ => "the main branch",
    };
    let start = match job.started {
        "restored" => "Restored from a snapshot of the booted guest",
        _ => "Booted",
    };
    let after = job.since_queued(job.times.in_progress).map_or_else(String::new, |seconds| {
        format!("; its job ran {seconds:.1} s after it was queued")
    });
    let mut lines = vec![
        format!("({}) Job {:?} of {cause}, on {}.", job.letter, job.name, job.machine),
        format!("{start}{after}."),
    ];
    if job.found_tool {
        lines.push("It found what job (a) had installed.".to_owned());
    }
    lines.push(match (&job.result_image, job.event.as_str()) {
        (Some(_), _) => "It provided the correct PERSISTENCE_TOKEN.".to_owned(),
        (None, "pull_request") => {
            "It tried to persist, but has no access to the PERSISTENCE_TOKEN.".to_owned()
        }
        (None, _) => "It did not ask to persist.".to_owned(),
    });
    lines
}
