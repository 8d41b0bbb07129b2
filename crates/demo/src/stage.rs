//! What is seen while the demo runs: a live line per job on terminals, plain lines elsewhere.

use std::cell::{Cell, RefCell};
use std::io::IsTerminal;
use std::time::Duration;

use forrest_core::run::RunTimes;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::report::JobReport;

/// How often a live line moves.
const TICK: Duration = Duration::from_millis(100);
/// The points of a job's way that are shown.
const POINTS: u64 = 7;

/// Where the demo is shown.
#[derive(Debug)]
pub struct Stage {
    bars: MultiProgress,
    live: bool,
}

impl Stage {
    /// Standard error output.
    pub fn open() -> Self {
        Self { bars: MultiProgress::new(), live: std::io::stderr().is_terminal() }
    }

    /// A sentence.
    pub fn say(&self, text: &str) {
        if !self.live || self.bars.println(text).is_err() {
            eprintln!("{text}");
        }
    }

    /// The line of a job.
    pub fn job(&self, letter: &str, name: &str, machine: &str, event: &str) -> Line<'_> {
        let title = format!("({letter}) {name}, {event}, on {machine}");
        if !self.live {
            eprintln!("{title}");
        }
        self.line(title, POINTS)
    }

    /// The line of something else that takes time.
    pub fn work(&self, title: &str) -> Line<'_> {
        if !self.live {
            eprintln!("{title} ...");
        }
        self.line(title.to_owned(), 1)
    }

    /// No line moves any more.
    pub fn close(&self) {
        self.bars.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }

    fn line(&self, title: String, steps: u64) -> Line<'_> {
        let bar = self.bars.add(ProgressBar::new(steps));
        let template = "{spinner} {elapsed_precise} [{bar:14}] {prefix}: {msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("━╸ "));
        }
        bar.set_prefix(title);
        bar.enable_steady_tick(TICK);
        Line { stage: self, bar, shown: Cell::new(0), text: RefCell::default() }
    }
}

/// A line that follows something.
#[derive(Debug)]
pub struct Line<'a> {
    stage: &'a Stage,
    bar: ProgressBar,
    /// Points reached.
    shown: Cell<u64>,
    text: RefCell<String>,
}

impl Line<'_> {
    /// How far a job's run has come.
    pub fn reached(&self, times: &RunTimes, restored: bool) {
        let start = if restored { "restored" } else { "booting" };
        let points = [
            (Some(times.created), "preparing"),
            (times.registered, "runner registered"),
            (times.vm_started, start),
            (times.guest_ready, "guest ready"),
            (times.runner_online, "runner online"),
            (times.in_progress, "job runs"),
            (times.completed, "job done, settling"),
        ];
        let reached = points.iter().filter(|(at, _)| at.is_some()).count() as u64;
        let last = points.iter().rev().find(|(at, _)| at.is_some());
        let Some((at, text)) = last.filter(|_| reached > self.shown.get()) else { return };
        self.shown.set(reached);
        self.bar.set_position(reached);
        self.bar.set_message((*text).to_owned());
        if !self.stage.live {
            let seconds = at.map_or(0.0, |at| at.since(times.created).as_secs_f64());
            eprintln!("    {seconds:6.2} s  {text}");
        }
    }

    /// How much of something is there.
    pub fn progress(&self, done: usize, all: usize) {
        let text = format!("{done} of {all}");
        if *self.text.borrow() != text {
            self.bar.set_length(all as u64);
            self.bar.set_position(done as u64);
            self.bar.set_message(text.clone());
            self.text.replace(text);
        }
    }

    /// The job is over.
    pub fn over(&self, job: &JobReport) {
        let seconds = job.since_queued(job.times.gone).unwrap_or_default();
        let end = match &job.result_image {
            Some(image) => {
                format!("disk kept as generation {:06}", image.generation.unwrap_or_default())
            }
            None => "disk removed".to_owned(),
        };
        self.done(&format!(
            "{}, {} start, {end}, {seconds:.1} s in all",
            job.conclusion, job.started
        ));
    }

    /// The last word.
    pub fn done(&self, text: &str) {
        self.bar.set_position(self.bar.length().unwrap_or(POINTS));
        self.bar.finish_with_message(text.to_owned());
        if !self.stage.live {
            eprintln!("    {text}");
        }
    }
}
