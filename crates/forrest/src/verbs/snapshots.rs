//! `forrest snapshots`: the saved guests that runs are restored from.

use forrest_core::model::{MachineTypeName, Timestamp};
use forrest_core::snapshots::{Snapshot, SnapshotState};
use forrest_daemon::control::{Client, SnapshotFiles, Status as DaemonStatus};
use serde::Serialize;

use super::{block_on, print, print_json};
use crate::cli::{SnapshotsVerb, Which};
use crate::failure::{Failure, Status};
use crate::find;
use crate::terminal::layout::{output_width, pad, pad_left, shorten_middle, width, wrap};
use crate::terminal::neutral::one_line;
use crate::terminal::paint::Paint;
use crate::words::{ago, now, size, span};

/// The columns that a continued line is indented by.
const INDENT: usize = 4;

/// A machine type's snapshot: what the daemon knows of it, and its files.
#[derive(Debug, Serialize)]
struct Row {
    machine: MachineTypeName,
    #[serde(flatten)]
    snapshot: Option<Snapshot>,
    files: Vec<SnapshotFiles>,
}

/// Does what was asked with snapshots.
pub fn run(verb: SnapshotsVerb) -> Result<Status, Failure> {
    match verb {
        SnapshotsVerb::List { which, json } => list(&which, json),
        SnapshotsVerb::Build { machine, which } => build(&machine, &which),
        SnapshotsVerb::Remove { machine, which } => remove(&machine, &which),
    }
}

fn list(which: &Which, json: bool) -> Result<Status, Failure> {
    let client = Client::new(&find::base_dir(which)?);
    let (status, files) =
        block_on(async { Ok((client.status().await?, client.snapshots().await?)) })?;
    let rows = rows(status, files);
    if json {
        print_json(&rows)?;
    } else {
        let paint = Paint::for_stream(&std::io::stdout());
        print(&render(&rows, now(), output_width(), paint))?;
    }
    Ok(Status::Ok)
}

/// A row for each machine type that is to have a snapshot, and for each that has one all the same.
fn rows(status: DaemonStatus, files: Vec<SnapshotFiles>) -> Vec<Row> {
    let mut rows: Vec<Row> = status
        .view
        .machines
        .into_iter()
        .filter_map(|m| Some(Row { machine: m.name, snapshot: Some(m.snapshot?), files: vec![] }))
        .collect();
    for file in files {
        match rows.iter_mut().find(|row| row.machine == file.machine) {
            Some(row) => row.files.push(file),
            None => {
                rows.push(Row { machine: file.machine.clone(), snapshot: None, files: vec![file] })
            }
        }
    }
    rows
}

fn render(rows: &[Row], now: Timestamp, columns: usize, paint: Paint) -> String {
    if rows.is_empty() {
        return "No machine type is to have a snapshot: `snapshot: true` in its configuration asks \
                for one (docs/instant-start.md).\n"
            .to_owned();
    }
    let longest = rows.iter().map(|row| width(&row.machine.to_string())).max().unwrap_or(0).max(12);
    let column = longest.min(columns.saturating_sub(54));
    let head = format!(
        "{}  STATE     {}  {}  RESTORED  COLD INSTEAD",
        pad("MACHINE TYPE", column),
        pad_left("BUILT", 9),
        pad_left("ROOM", 7),
    );
    let mut text = format!("{}\n", paint.bold(&head));
    for row in rows {
        let newest = row.files.iter().max_by_key(|file| file.built_at);
        let room = row.files.iter().map(|file| file.size).sum();
        let (state, painted) = state(row.snapshot.as_ref(), paint);
        let counts = row.snapshot.as_ref().map(|s| (s.restored, s.fallbacks)).unwrap_or_default();
        text.push_str(&format!(
            "{}  {painted}{}  {}  {}  {}  {}\n",
            pad(&shorten_middle(&row.machine.to_string(), column), column),
            " ".repeat(8usize.saturating_sub(width(state))),
            pad_left(&newest.map(|file| ago(now, file.built_at)).unwrap_or_default(), 9),
            pad_left(&newest.map(|_| size(room)).unwrap_or_default(), 7),
            pad_left(&counts.0.to_string(), 8),
            pad_left(&counts.1.to_string(), 12),
        ));
        for fact in facts(row, newest, now) {
            for line in wrap(&fact, columns.saturating_sub(INDENT)) {
                text.push_str(&format!("{:INDENT$}{}\n", "", paint.dim(&line)));
            }
        }
    }
    text
}

/// A word for the state, plain and painted.
fn state(snapshot: Option<&Snapshot>, paint: Paint) -> (&'static str, String) {
    let Some(snapshot) = snapshot else { return ("unwanted", "unwanted".to_owned()) };
    match snapshot.state {
        SnapshotState::Ready => ("ready", paint.green("ready")),
        SnapshotState::Building { .. } => ("building", "building".to_owned()),
        SnapshotState::Unknown | SnapshotState::Checking => ("checking", "checking".to_owned()),
        SnapshotState::Wanted if snapshot.held_back => ("removed", "removed".to_owned()),
        SnapshotState::Wanted if snapshot.trouble.is_some() => ("failed", paint.red("failed")),
        SnapshotState::Wanted => ("waiting", "waiting".to_owned()),
    }
}

fn facts(row: &Row, newest: Option<&SnapshotFiles>, now: Timestamp) -> Vec<String> {
    let mut facts = Vec::new();
    if let Some(newest) = newest {
        facts.push(format!("of {}", one_line(&newest.image.to_string())));
    }
    let Some(snapshot) = &row.snapshot else {
        facts.push("removed once no run needs it".to_owned());
        return facts;
    };
    if snapshot.held_back {
        facts.push(
            "removed by hand: runs start cold until its image changes, or `forrest snapshots build`"
                .to_owned(),
        );
    } else if snapshot.state == SnapshotState::Wanted && snapshot.trouble.is_none() {
        facts.push("built as soon as there is room and no job waits for it".to_owned());
    }
    if let Some(trouble) = &snapshot.trouble {
        let mut fact = format!("last trouble: {}", one_line(trouble));
        if snapshot.not_before > now {
            fact.push_str(&format!("; next attempt in {}", span(snapshot.not_before.since(now))));
        }
        facts.push(fact);
    }
    facts
}

/// The daemon, and the machine type that is meant.
fn open(name: &str, which: &Which) -> Result<(Client, MachineTypeName), Failure> {
    let client = Client::new(&find::base_dir(which)?);
    let status = block_on(async { Ok(client.status().await?) })?;
    let machines = status.view.machines.into_iter();
    let known: Vec<MachineTypeName> = machines.map(|machine| machine.name).collect();
    let machine = find::one_machine(name, &known)?;
    Ok((client, machine))
}

fn build(name: &str, which: &Which) -> Result<Status, Failure> {
    let (client, machine) = open(name, which)?;
    block_on(async { Ok(client.build_snapshot(&machine).await?) })?;
    print(&format!(
        "A snapshot of {machine} is built as soon as there is room and no job waits for it; its runs \
         start cold until then.\n"
    ))?;
    Ok(Status::Ok)
}

fn remove(name: &str, which: &Which) -> Result<Status, Failure> {
    let (client, machine) = open(name, which)?;
    block_on(async { Ok(client.remove_snapshot(&machine).await?) })?;
    print(&format!(
        "New runs of {machine} start cold; those that were restored go on. A snapshot is built again \
         when its image changes, when the daemon starts again, or by `forrest snapshots build \
         {machine}`. `snapshot: false` in the configuration ends it for good.\n"
    ))?;
    Ok(Status::Ok)
}

#[cfg(test)]
mod tests {
    use forrest_core::model::{Bytes, Generation, ImageRef};

    use super::*;

    fn row(machine: &str, snapshot: Option<Snapshot>, built_at: Option<u64>) -> Row {
        let machine: MachineTypeName = machine.parse().expect("a name");
        let files = built_at.map(|at| SnapshotFiles {
            machine: machine.clone(),
            key: "0".repeat(64),
            image: ImageRef::Machine { machine: machine.clone(), generation: Generation(3) },
            built_at: Timestamp(at),
            size: Bytes(300 << 20),
        });
        Row { machine, snapshot, files: files.into_iter().collect() }
    }

    #[test]
    fn states_are_told_in_eighty_columns() {
        let snapshot = |state| Snapshot { state, ..Snapshot::default() };
        let hour = 3_600_000;
        let rows = [
            row(
                "acme/firmware/build",
                Some(Snapshot { restored: 128, ..snapshot(SnapshotState::Ready) }),
                Some(hour),
            ),
            row(
                "acme/firmware/held",
                Some(Snapshot { held_back: true, ..snapshot(SnapshotState::Wanted) }),
                None,
            ),
            row(
                "acme/firmware/a-machine-type-with-quite-a-long-name-that-does-not-fit",
                Some(Snapshot {
                    trouble: Some("the guest did not say that it is ready in time".to_owned()),
                    not_before: Timestamp(3 * hour),
                    fallbacks: 2,
                    ..snapshot(SnapshotState::Wanted)
                }),
                None,
            ),
            row("acme/firmware/was", None, Some(hour)),
        ];
        let text = render(&rows, Timestamp(2 * hour), 80, Paint::PLAIN);
        assert!(text.lines().all(|line| width(line) <= 80), "{text}");
        insta::assert_snapshot!(text);
    }
}
