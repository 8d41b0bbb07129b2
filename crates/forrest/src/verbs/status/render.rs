//! The status for people, in as many columns as there are.

use std::collections::BTreeMap;

use forrest_core::TakenOut;
use forrest_core::jobs::Phase;
use forrest_core::model::{Job, JobId, Label, Timestamp};
use forrest_core::snapshots::{Snapshot, SnapshotState};
use forrest_core::view::{JobView, MachineView, RunView, View};
use forrest_daemon::control::{DaemonStatus, Status};

use super::{finished, waiting};
use crate::terminal::layout::{pad, pad_left, shorten, shorten_middle, width, wrap};
use crate::terminal::neutral::one_line;
use crate::terminal::paint::Paint;
use crate::words::{ago, counted, size, span};

/// The columns that a continued line is indented by.
const INDENT: usize = 4;
/// The most jobs of each kind that are shown.
const JOBS_MAX: usize = 30;
/// The narrowest column for a name.
const NAME_MIN: usize = 12;

struct Page {
    text: String,
    width: usize,
    paint: Paint,
}

/// The whole status.
pub fn render(status: &Status, width: usize, finished_max: usize, paint: Paint) -> String {
    let mut page = Page { text: String::new(), width, paint };
    let view = &status.view;
    page.daemon(&status.daemon, view);
    page.machines(view);
    page.runs(view);
    page.jobs(view);
    page.finished(view, finished_max);
    page.text
}

impl Page {
    fn line(&mut self, line: &str) {
        self.text.push_str(line.trim_end());
        self.text.push('\n');
    }

    fn heading(&mut self, text: &str) {
        self.text.push('\n');
        let text = self.paint.bold(text);
        self.line(&text);
    }

    /// A paragraph below a row; `paint` colours it.
    fn note(&mut self, text: &str, paint: fn(Paint, &str) -> String) {
        for line in wrap(text, self.width.saturating_sub(INDENT)) {
            let line = paint(self.paint, &line);
            self.line(&format!("{:INDENT$}{line}", ""));
        }
    }

    fn daemon(&mut self, daemon: &DaemonStatus, view: &View) {
        let title = format!("Forrest {}", one_line(&daemon.version));
        let fork = one_line(&daemon.fork);
        let facts = format!(
            "process {}, up {}; {}, QEMU {}, {}",
            daemon.pid,
            span(view.now.since(daemon.started_at)),
            one_line(&daemon.accel),
            one_line(&daemon.qemu),
            // What is in brackets is for the log.
            fork.split(" (").next().unwrap_or_default(),
        );
        let room = self.width.saturating_sub(width(&title) + 2);
        self.line(&format!("{}  {}", self.paint.bold(&title), shorten(&facts, room)));
        let capacity = &view.capacity;
        let mut parts =
            vec![format!("RAM {} of {} held", size(capacity.ram_held), size(capacity.ram))];
        parts.push(match capacity.cpus {
            Some(cpus) => format!("virtual CPUs {} of {cpus} held", capacity.cpus_held),
            None => format!("virtual CPUs {} held", capacity.cpus_held),
        });
        if let Some(free) = capacity.disk_free {
            parts.push(format!(
                "disk {} free, {} of it reserved",
                size(free),
                size(capacity.min_free_disk)
            ));
        }
        for line in wrap(&parts.join("; "), self.width) {
            self.line(&line);
        }
        for missing in &daemon.uncontained {
            self.note(&one_line(missing), |paint, text| paint.yellow(text));
        }
        if view.draining {
            let text =
                self.paint.yellow("DRAINING: no new runs are started until `forrest resume`");
            self.line(&text);
        }
        for repository in &view.repositories {
            if let Some(trouble) = &repository.trouble {
                let since = match repository.polled_at {
                    Some(at) => format!("last asked with success {}", ago(view.now, at)),
                    None => "never asked with success".to_owned(),
                };
                let text = format!("{}: {} ({since})", repository.name, one_line(trouble));
                for line in wrap(&text, self.width) {
                    let line = self.paint.yellow(&line);
                    self.line(&line);
                }
            }
        }
    }

    fn machines(&mut self, view: &View) {
        self.heading(&format!("MACHINE TYPES ({})", view.machines.len()));
        if view.machines.is_empty() {
            self.note("none are configured", Paint::dim);
            return;
        }
        let names: Vec<String> = view.machines.iter().map(|m| m.name.to_string()).collect();
        let room = self.width.saturating_sub(2 + 2 + 6 + 2 + 4 + 2 + 6 + 2 + 4);
        let column = column_width(&names, room).max(width("MACHINE TYPE"));
        let head = format!(
            "  {}  {}  {}  {}  {}",
            pad("MACHINE TYPE", column),
            pad_left("RAM", 6),
            pad_left("CPUS", 4),
            pad_left("QUEUED", 6),
            pad_left("RUNS", 4)
        );
        let head = self.paint.dim(&head);
        self.line(&head);
        for (machine, name) in view.machines.iter().zip(&names) {
            self.line(&format!(
                "  {}  {}  {}  {}  {}",
                pad(&shorten_middle(name, column), column),
                pad_left(&size(machine.ram), 6),
                pad_left(&machine.cpus.to_string(), 4),
                pad_left(&machine.queued.to_string(), 6),
                pad_left(&machine.runs.to_string(), 4)
            ));
            self.machine_notes(machine, view.now);
        }
    }

    fn machine_notes(&mut self, machine: &MachineView, now: Timestamp) {
        let labels: Vec<&str> = machine.labels.iter().map(Label::as_str).collect();
        self.note(&one_line(&format!("labels: {}", labels.join(" "))), Paint::dim);
        if let Some(waits) = &machine.waiting {
            self.note(&format!("waits for {}", waiting::start(waits, now)), Paint::yellow);
        }
        if machine.failures > 0 {
            let trouble = machine.trouble.as_deref().unwrap_or("for a reason that is not known");
            let times = counted(machine.failures as usize, "start", "starts in a row");
            self.note(&format!("{times} failed: {}", one_line(trouble)), Paint::red);
        }
        if let Some(TakenOut { generation, why }) = &machine.taken_out {
            let text = format!("generation {generation} was taken out of use: {}", one_line(why));
            self.note(&text, Paint::red);
        }
        if let Some(snapshot) = &machine.snapshot {
            let paint = if snapshot.trouble.is_some() { Paint::yellow } else { Paint::dim };
            self.note(&snapshot_words(snapshot, now), paint);
        }
    }

    fn runs(&mut self, view: &View) {
        self.heading(&format!("RUNS ({})", view.runs.len()));
        if view.runs.is_empty() {
            self.note("none", Paint::dim);
            return;
        }
        let jobs: BTreeMap<JobId, &Job> =
            view.jobs.iter().map(|job| (job.job.id, &job.job)).collect();
        let names: Vec<String> = view.runs.iter().map(|run| run.runner.to_string()).collect();
        // What is left goes to the job's name.
        let room = self.width.saturating_sub(2 + 2 + 13 + 2 + 6 + 2);
        let column = column_width(&names, room.saturating_sub(NAME_MIN));
        let head = format!(
            "  {}  {}  {}  JOB",
            pad("RUNNER", column),
            pad("STATE", 13),
            pad_left("FOR", 6)
        );
        let head = self.paint.dim(&head);
        self.line(&head);
        for (run, name) in view.runs.iter().zip(&names) {
            let job = match run.job {
                Some(id) => job_name(id, jobs.get(&id).copied()),
                None => String::new(),
            };
            self.line(&format!(
                "  {}  {}  {}  {}",
                pad(&shorten_middle(name, column), column),
                pad(&shorten(&one_line(&run.state), 13), 13),
                pad_left(&span(view.now.since(since(run))), 6),
                shorten(&job, room.saturating_sub(column)),
            ));
            if let Some(paused) = &run.paused {
                self.note(&format!("PAUSED by the host: {}", one_line(paused)), Paint::red);
            }
            if let Some(trouble) = &run.trouble {
                self.note(&format!("says: {}", one_line(trouble)), Paint::yellow);
            }
            if let Some(hindrance) = &run.hindrance {
                self.note(&one_line(hindrance), Paint::yellow);
            }
        }
    }

    fn jobs(&mut self, view: &View) {
        let phase = |phase| view.jobs.iter().filter(move |job| job.phase == phase);
        let mut waiting: Vec<&JobView> = phase(Phase::Queued).chain(phase(Phase::Held)).collect();
        waiting.sort_by_key(|job| (job.queued_at, job.job.id));
        self.heading(&format!("WAITING JOBS ({})", waiting.len()));
        if waiting.is_empty() {
            self.note("none", Paint::dim);
            return;
        }
        for job in waiting.iter().take(JOBS_MAX) {
            let waited = span(view.now.since(job.queued_at));
            let place = match &job.machine {
                Some(machine) => machine.to_string(),
                None => job.job.repository.to_string(),
            };
            let name = job_name(job.job.id, Some(&job.job));
            let room = self.width.saturating_sub(2 + 2 + width(&waited));
            let title = format!("{name}  {}", shorten_middle(&place, room / 2));
            self.line(&format!("  {}  {}", pad(&shorten(&title, room), room.min(70)), waited));
            let why = match &job.waits_for {
                Some(wait) => format!("waits for {}", waiting::job(wait, view.now)),
                None => "waits to be looked at".to_owned(),
            };
            self.note(&why, Paint::yellow);
        }
        if waiting.len() > JOBS_MAX {
            let more = format!("and {} more", waiting.len() - JOBS_MAX);
            self.note(&more, Paint::dim);
        }
    }

    fn finished(&mut self, view: &View, max: usize) {
        if max == 0 || view.finished.is_empty() {
            return;
        }
        self.heading("FINISHED");
        for run in view.finished.iter().rev().take(max) {
            let name = match &run.job {
                Some(job) => job_name(job.id, Some(job)),
                None => run.runner.to_string(),
            };
            let gone = run.times.gone.or(run.times.vm_exited).unwrap_or(run.times.created);
            let when = ago(view.now, gone);
            let room = self.width.saturating_sub(2 + 2 + width(&when));
            let title = format!("{name}  {}", shorten_middle(&run.machine.to_string(), room / 2));
            self.line(&format!("  {}  {}", pad(&shorten(&title, room), room.min(70)), when));
            let (result, good) = finished::result(run);
            let started = if run.restored { "restored from a snapshot" } else { "started cold" };
            let paint = if good { Paint::green } else { Paint::red };
            self.note(&format!("{result}; {started}"), paint);
            let stations = finished::stations(run.job_queued, &run.times);
            let stations: Vec<String> =
                stations.into_iter().map(|(name, time)| format!("{name}\u{a0}{time}")).collect();
            let stations = stations.join(" ");
            self.stations(&stations);
        }
    }

    /// Stations are not broken between name and time.
    fn stations(&mut self, text: &str) {
        let mut line = String::new();
        for station in text.split(' ') {
            if !line.is_empty() && INDENT + width(&line) + 2 + width(station) > self.width {
                let done = self.paint.dim(&line);
                self.line(&format!("{:INDENT$}{done}", ""));
                line.clear();
            }
            if !line.is_empty() {
                line.push_str("  ");
            }
            line.push_str(&station.replace('\u{a0}', " "));
        }
        let done = self.paint.dim(&line);
        self.line(&format!("{:INDENT$}{done}", ""));
    }
}

/// The width of a column for these names: theirs, within what there is.
fn column_width(names: &[String], room: usize) -> usize {
    names.iter().map(|name| width(name)).max().unwrap_or(0).min(room).max(NAME_MIN)
}

/// What the job is called, with its id where it has no name.
fn job_name(id: JobId, job: Option<&Job>) -> String {
    match job.and_then(|job| job.name.as_deref()) {
        Some(name) => one_line(name),
        None => format!("job {id}"),
    }
}

/// Since when the run is in its state, as far as its times tell.
fn since(run: &RunView) -> Timestamp {
    let times = &run.times;
    let latest = [
        times.vm_started,
        times.guest_ready,
        times.runner_online,
        times.in_progress,
        times.completed,
        times.vm_exited,
    ];
    latest.into_iter().flatten().max().unwrap_or(times.created)
}

fn snapshot_words(snapshot: &Snapshot, now: Timestamp) -> String {
    let mut text = match &snapshot.state {
        SnapshotState::Unknown | SnapshotState::Checking => "snapshot: being looked for".to_owned(),
        SnapshotState::Wanted if snapshot.held_back => {
            "snapshot: removed by hand; jobs start cold".to_owned()
        }
        SnapshotState::Wanted => "snapshot: to be built; jobs start cold until then".to_owned(),
        SnapshotState::Building { since, giving_way, .. } => {
            let way = if *giving_way { ", giving way to a job" } else { "" };
            format!(
                "snapshot: being built for {}{way}; jobs start cold until then",
                span(now.since(*since))
            )
        }
        SnapshotState::Ready => "snapshot: ready".to_owned(),
    };
    if snapshot.restored > 0 || snapshot.fallbacks > 0 {
        text.push_str(&format!(
            " ({} restored, {} cold instead)",
            snapshot.restored, snapshot.fallbacks
        ));
    }
    if let Some(trouble) = &snapshot.trouble {
        text.push_str(&format!("; last trouble: {}", one_line(trouble)));
        if snapshot.not_before > now {
            text.push_str(&format!("; next attempt in {}", span(snapshot.not_before.since(now))));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::terminal::neutral::is_harmful;

    fn sample() -> Status {
        serde_json::from_str(include_str!("../../../tests/data/status.json")).expect("a status")
    }

    fn shown(width: usize) -> String {
        render(&sample(), width, 5, Paint::PLAIN)
    }

    #[test]
    fn eighty_columns_are_enough() {
        let text = shown(80);
        for line in text.lines() {
            assert!(width(line) <= 80, "{} columns: {line}", width(line));
        }
        insta::assert_snapshot!(text);
    }

    #[test]
    fn any_width_will_do() {
        for columns in [44, 50, 66, 100, 132, 10_000] {
            for line in shown(columns).lines() {
                assert!(width(line) <= columns, "{} of {columns} columns: {line}", width(line));
            }
        }
    }

    #[test]
    fn strangers_do_not_reach_the_terminal() {
        let text = shown(10_000);
        assert!(!text.chars().any(|c| c != '\n' && is_harmful(c)), "{text:?}");
        // Names are shown, only tamed.
        assert!(text.contains("compile \u{fffd}[2J\u{fffd}evil name"), "{text}");
    }

    #[test]
    fn an_idle_daemon_says_so() {
        let mut status = sample();
        let view = &mut status.view;
        (view.runs, view.jobs, view.finished) = (Vec::new(), Vec::new(), Vec::new());
        (view.machines, view.repositories) = (Vec::new(), Vec::new());
        view.draining = true;
        insta::assert_snapshot!(render(&status, 80, 5, Paint::PLAIN));
    }
}
