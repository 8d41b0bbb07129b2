//! What happened, for programs and as a table.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use forrest_core::model::{ImageRef, Timestamp};
use forrest_core::run::FinishedRun;
use github_sim::model::JobView;
use serde::Serialize;

/// All jobs of the demo, in their order.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// The jobs.
    pub jobs: Vec<JobReport>,
}

/// One job.
#[derive(Debug, Clone, Serialize)]
pub struct JobReport {
    /// Its letter in the story.
    #[serde(skip)]
    pub letter: &'static str,
    /// Its name.
    pub name: String,
    /// The machine type.
    pub machine: String,
    /// What triggered it.
    pub event: String,
    /// How it ended.
    pub conclusion: String,
    /// What its disk was a copy of.
    pub start_image: Image,
    /// The same with all its names.
    #[serde(skip)]
    pub started_from: ImageRef,
    /// What its disk became; `None` when it was removed.
    pub result_image: Option<Image>,
    /// `cold` or `restored`.
    pub started: &'static str,
    /// When it reached which point.
    pub times: Times,
    /// Whether it found the tool that the first job installs.
    #[serde(skip)]
    pub found_tool: bool,
}

/// An image.
#[derive(Debug, Clone, Serialize)]
pub struct Image {
    /// `src` or `machine`.
    pub stage: &'static str,
    /// Its generation; `None` for src.
    pub generation: Option<u32>,
}

/// Unix seconds with fractions.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Times {
    pub queued: Option<f64>,
    pub registered: Option<f64>,
    pub vm_started: Option<f64>,
    pub runner_online: Option<f64>,
    pub in_progress: Option<f64>,
    pub completed: Option<f64>,
    pub gone: Option<f64>,
}

impl JobReport {
    /// What became of a job.
    ///
    /// # Errors
    /// Where the run has no image: it never started.
    pub fn new(
        letter: &'static str,
        event: &str,
        run: FinishedRun,
        job: JobView,
        log: &str,
    ) -> Result<Self> {
        let start = run.start_image.context("the run never started")?;
        let seconds = |at: Option<Timestamp>| at.map(Timestamp::as_secs_f64);
        let times = Times {
            queued: seconds(run.job_queued),
            registered: seconds(run.times.registered),
            vm_started: seconds(run.times.vm_started),
            runner_online: seconds(run.times.runner_online),
            in_progress: seconds(run.times.in_progress),
            completed: seconds(run.times.completed),
            gone: seconds(run.times.gone),
        };
        Ok(Self {
            letter,
            name: job.name,
            machine: run.machine.to_string(),
            event: event.to_owned(),
            // In the words of GitHub's API.
            conclusion: serde_json::to_value(job.conclusion)?.as_str().unwrap_or("none").to_owned(),
            start_image: Image::of(&start.image),
            started_from: start.image,
            result_image: run
                .result
                .map(|generation| Image { stage: "machine", generation: Some(generation.0) }),
            started: if run.restored { "restored" } else { "cold" },
            times,
            found_tool: letter != "a" && log.contains("I was left by job a"),
        })
    }

    /// Seconds from the time it was queued.
    pub fn since_queued(&self, at: Option<f64>) -> Option<f64> {
        Some(at? - self.times.queued?)
    }
}

impl Image {
    fn of(image: &ImageRef) -> Self {
        match image {
            ImageRef::Src { .. } => Self { stage: "src", generation: None },
            ImageRef::Machine { generation, .. } => {
                Self { stage: "machine", generation: Some(generation.0) }
            }
        }
    }
}

impl Report {
    /// Writes it as JSON.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        std::fs::write(path, text + "\n")
            .with_context(|| format!("could not write {}", path.display()))
    }

    /// The times of all jobs, in seconds since each was queued.
    pub fn table(&self) -> String {
        let mut text = String::from(
            "Seconds after the job was queued:\n\n\
             job                 started   registered  VM runs  runner online  in progress  completed  VM gone\n",
        );
        for job in &self.jobs {
            let cell = |at| match job.since_queued(at) {
                Some(seconds) => format!("{seconds:.2}"),
                None => "-".to_owned(),
            };
            let times = job.times;
            let name = format!("({}) {}", job.letter, job.name);
            // Writing into a text does not fail.
            let _ = writeln!(
                text,
                "{name:<19} {:<8} {:>11} {:>8} {:>14} {:>12} {:>10} {:>8}",
                job.started,
                cell(times.registered),
                cell(times.vm_started),
                cell(times.runner_online),
                cell(times.in_progress),
                cell(times.completed),
                cell(times.gone),
            );
        }
        text
    }
}
