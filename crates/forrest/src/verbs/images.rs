//! `forrest images`: machine images, where they come from, and the way back.

use forrest_core::model::{Generation, MachineTypeName};
use forrest_daemon::inspect::images::{GenerationView, MachineImages, MachineSummary};
use serde::Serialize;

use super::{print, print_json};
use crate::cli::{ImagesVerb, Which};
use crate::failure::{Failure, Status};
use crate::find;
use crate::terminal::confirm::confirm;
use crate::terminal::layout::{output_width, pad, pad_left, shorten_middle, width, wrap};
use crate::terminal::neutral::one_line;
use crate::terminal::paint::Paint;
use crate::words::{ago, counted, date, now, size};

/// How much of a commit's id is shown.
const COMMIT_LEN: usize = 12;
/// The columns that a continued line is indented by.
const INDENT: usize = 10;

/// Does what was asked with images.
pub fn run(verb: ImagesVerb) -> Result<Status, Failure> {
    match verb {
        ImagesVerb::List { which, json } => list(&which, json),
        ImagesVerb::History { machine, which, json } => history(&machine, &which, json),
        ImagesVerb::RollBack { machine, generation, which, yes } => {
            roll_back(&machine, generation, &which, yes)
        }
    }
}

fn list(which: &Which, json: bool) -> Result<Status, Failure> {
    let machines = match MachineImages::open(&find::base_dir(which)?)? {
        Some(images) => images.list()?,
        None => Vec::new(),
    };
    if json {
        print_json(&machines)?;
    } else {
        let paint = Paint::for_stream(&std::io::stdout());
        print(&render_list(&machines, output_width(), paint))?;
    }
    Ok(Status::Ok)
}

fn render_list(machines: &[MachineSummary], columns: usize, paint: Paint) -> String {
    if machines.is_empty() {
        return "There are no machine images yet: a job makes one by leaving the persistence token \
                (docs/jobs.md).\n"
            .to_owned();
    }
    let names: Vec<String> = machines.iter().map(|m| m.machine.to_string()).collect();
    let longest = names.iter().map(|name| width(name)).max().unwrap_or(0).max(12);
    let column = longest.min(columns.saturating_sub(42));
    let head = format!(
        "{}  CURRENT  {}  KEPT  {}",
        pad("MACHINE TYPE", column),
        pad_left("PROMOTED", 9),
        pad_left("ROOM", 7)
    );
    let mut text = format!("{}\n", paint.bold(&head));
    let now = now();
    for (machine, name) in machines.iter().zip(&names) {
        let current = machine.current.as_ref();
        let generation = current.map_or_else(|| "none".to_owned(), |c| c.generation.to_string());
        let promoted = current.and_then(|c| c.promoted_at).map(|at| ago(now, at));
        let broken = match machine.broken {
            0 => String::new(),
            n => paint.red(&format!("  {n} broken")),
        };
        text.push_str(&format!(
            "{}  {}  {}  {}  {}{broken}\n",
            pad(&shorten_middle(name, column), column),
            pad(&generation, 7),
            pad_left(&promoted.unwrap_or_default(), 9),
            pad_left(&machine.generations.to_string(), 4),
            pad_left(&size(machine.size), 7),
        ));
    }
    text
}

/// The images and the machine type that are meant.
fn open(name: &str, which: &Which) -> Result<(MachineImages, MachineTypeName), Failure> {
    let base_dir = find::base_dir(which)?;
    let Some(images) = MachineImages::open(&base_dir)? else {
        return Err(Failure::not_found(format!(
            "there are no machine images in {} yet: a job makes one by leaving the persistence token",
            base_dir.display()
        )));
    };
    let known: Vec<MachineTypeName> = images.list()?.into_iter().map(|m| m.machine).collect();
    let machine = find::one_machine(name, &known)?;
    Ok((images, machine))
}

fn history(name: &str, which: &Which, json: bool) -> Result<Status, Failure> {
    #[derive(Serialize)]
    struct History<'a> {
        machine: &'a MachineTypeName,
        generations: &'a [GenerationView],
    }
    let (images, machine) = open(name, which)?;
    let generations = images.history(&machine)?;
    if json {
        print_json(&History { machine: &machine, generations: &generations })?;
    } else {
        let paint = Paint::for_stream(&std::io::stdout());
        print(&render_history(&machine, &generations, output_width(), paint))?;
    }
    Ok(Status::Ok)
}

/// The generations, the newest first.
fn render_history(
    machine: &MachineTypeName,
    generations: &[GenerationView],
    columns: usize,
    paint: Paint,
) -> String {
    let count = counted(generations.len(), "generation", "generations");
    let mut text = format!("{}\n", paint.bold(&format!("{machine}: {count}")));
    for generation in generations.iter().rev() {
        let (mark, state) = match (generation.current, &generation.broken, generation.has_record) {
            (true, _, _) => ("*", paint.green("current")),
            (_, Some(_), _) => (" ", paint.red("broken ")),
            (_, None, false) => (" ", paint.red("unknown")),
            (false, None, true) => (" ", "       ".to_owned()),
        };
        let promoted = generation.promoted_at.map_or_else(|| "?".to_owned(), date);
        text.push_str(&format!(
            "{mark} {}  {state}  {}  {}\n",
            generation.generation,
            pad(&promoted, 20),
            pad_left(&size(generation.size), 7)
        ));
        for fact in facts(machine, generation) {
            for line in wrap(&fact, columns.saturating_sub(INDENT)) {
                text.push_str(&format!("{:INDENT$}{}\n", "", paint.dim(&line)));
            }
        }
    }
    text
}

/// What is known of where a generation of this machine type comes from.
fn facts(machine: &MachineTypeName, generation: &GenerationView) -> Vec<String> {
    let mut facts = Vec::new();
    if let Some(why) = &generation.broken {
        facts.push(format!("broken: {}", one_line(why)));
    }
    if !generation.has_record {
        facts.push("its record is missing or cannot be read, so it is never used".to_owned());
    }
    if let Some(parent) = &generation.parent {
        facts.push(format!("started from {}", one_line(&parent.to_string())));
    }
    let mut job = Vec::new();
    match (&generation.job_name, generation.job) {
        (Some(name), Some(id)) => job.push(format!("job \"{}\" ({id})", one_line(name))),
        (None, Some(id)) => job.push(format!("job {id}")),
        (Some(name), None) => job.push(format!("job \"{}\"", one_line(name))),
        (None, None) => {}
    }
    if let Some(run) = generation.workflow_run {
        let attempt = generation.run_attempt.filter(|attempt| *attempt > 1);
        let attempt = attempt.map(|attempt| format!(", attempt {attempt}")).unwrap_or_default();
        job.push(format!("workflow run {run}{attempt}"));
    }
    // Renamed or moved since, where it is another one than the machine type's.
    if let Some(repository) = generation.repository.as_ref().filter(|r| *r != machine.repository())
    {
        job.push(format!("repository {repository}"));
    }
    if !job.is_empty() {
        facts.push(format!("left behind by {}", job.join(", ")));
    }
    let mut commit = Vec::new();
    if let Some(sha) = &generation.head_sha {
        commit.push(format!(
            "commit {}",
            one_line(&sha.chars().take(COMMIT_LEN).collect::<String>())
        ));
    }
    if let Some(branch) = &generation.head_branch {
        commit.push(format!("branch {}", one_line(branch)));
    }
    if let Some(event) = &generation.event {
        commit.push(format!("event {}", one_line(event)));
    }
    if !commit.is_empty() {
        facts.push(commit.join(", "));
    }
    facts
}

fn roll_back(
    name: &str,
    to: Option<Generation>,
    which: &Which,
    yes: bool,
) -> Result<Status, Failure> {
    let (images, machine) = open(name, which)?;
    let current = images.history(&machine)?.into_iter().find(|generation| generation.current);
    if let (Some(to), Some(current)) = (to, &current)
        && to == current.generation
    {
        print(&format!("{machine} starts from generation {to} already.\n"))?;
        return Ok(Status::Ok);
    }
    let Some(target) = images.target(&machine, to)? else {
        let what = match to {
            Some(to) => format!("{machine} has no generation {to}"),
            None => format!("{machine} has no earlier generation that can be used"),
        };
        return Err(Failure::not_found(format!(
            "{what}; `forrest images history {machine}` lists those that there are"
        )));
    };
    if !yes {
        eprint!("{}", effect(&machine, current.as_ref(), &target));
        confirm(&format!("roll back {machine}"), "Do that?")?;
    }
    // By number: what is asked for is what was shown.
    let generation = images.roll_back(&machine, Some(target.generation))?;
    print(&format!("New runs of {machine} start from generation {generation}.\n"))?;
    Ok(Status::Ok)
}

/// What a roll-back does, before it is done.
fn effect(
    machine: &MachineTypeName,
    current: Option<&GenerationView>,
    target: &GenerationView,
) -> String {
    let instead = match current {
        Some(current) => format!("instead of {}", current.generation),
        None => "instead of the base".to_owned(),
    };
    let mut text = format!(
        "New runs of {machine} will start from generation {} {instead}:\n",
        target.generation
    );
    if let Some(at) = target.promoted_at {
        text.push_str(&format!("  promoted {}\n", date(at)));
    }
    for fact in facts(machine, target) {
        text.push_str(&format!("  {fact}\n"));
    }
    text.push_str(
        "Nothing is removed. Runs that are under way keep their disks, and the next job that persists\n\
         its disk makes a new generation. With `use_base: if_newer`, a base that is newer than this\n\
         generation is still preferred to it.\n",
    );
    text
}
