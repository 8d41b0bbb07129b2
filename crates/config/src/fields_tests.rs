//! The tables, the defaults, the schema, the examples and the documentation say the same.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::*;
use crate::tree::{Content, NodeId, Style, Tree};
use crate::{defaults, duration};

const DOCS: &str = include_str!("../../../docs/config.md");
const EXAMPLE: &str = include_str!("../../../contrib/config/forrest.yaml");
const MINIMAL: &str = include_str!("../../../contrib/config/minimal.yaml");
const DERIVED: &str = include_str!("../../../contrib/config/derived.yaml");

/// Every field with its full name.
fn all() -> BTreeMap<String, &'static Field> {
    let mut all = BTreeMap::new();
    walk(&mut |path, field| {
        all.insert(path.to_owned(), field);
    });
    all
}

/// Whether a field has fields of its own, which are documented instead.
fn is_container(kind: &Kind) -> bool {
    match kind {
        Kind::Object(_) | Kind::Map(..) => true,
        Kind::List(item, _) => is_container(item),
        _ => false,
    }
}

struct Row {
    default: String,
    effect: String,
}

/// The rows of the tables in `docs/config.md`, by the field's full name.
fn documented() -> BTreeMap<String, Row> {
    let mut rows = BTreeMap::new();
    let mut section = "";
    for line in DOCS.lines() {
        if let Some(heading) = line.strip_prefix("### `") {
            section = heading.trim_end_matches('`');
        }
        let Some(row) = line.strip_prefix("| `") else { continue };
        let cells: Vec<&str> = row.trim_end_matches('|').split(" | ").map(str::trim).collect();
        let [name, default, meaning, effect] = cells.as_slice() else {
            panic!("not four cells: {line}");
        };
        assert!(meaning.len() > 10, "{line}");
        let name = format!("{section}.{}", name.trim_end_matches('`'));
        let row = Row { default: (*default).to_owned(), effect: (*effect).to_owned() };
        assert!(rows.insert(name.clone(), row).is_none(), "{name} is there twice");
    }
    rows
}

#[test]
fn the_documentation_has_every_field_and_no_other() {
    let fields: BTreeSet<String> =
        all().into_iter().filter(|(_, f)| !is_container(&f.kind)).map(|(path, _)| path).collect();
    let rows: BTreeSet<String> = documented().into_keys().collect();
    let missing: Vec<_> = fields.difference(&rows).collect();
    let extra: Vec<_> = rows.difference(&fields).collect();
    assert!(missing.is_empty() && extra.is_empty(), "missing: {missing:?}, extra: {extra:?}");
    for (path, field) in all() {
        assert!(DOCS.contains(&format!("`{}", field.name)) || !is_container(&field.kind), "{path}");
    }
}

#[test]
fn the_documentation_has_the_right_defaults_and_effects() {
    let rows = documented();
    for (path, field) in all() {
        let Some(row) = rows.get(&path) else { continue };
        match field.presence {
            Presence::Required => assert_eq!(row.default, "required", "{path}"),
            Presence::Default(text) => assert_eq!(row.default, format!("`{text}`"), "{path}"),
            Presence::Absent(_) => assert_ne!(row.default, "required", "{path}"),
        }
        let effect = match field.reload {
            Reload::Restart => "restart",
            Reload::Live => "at once",
            Reload::NextRun => "next run",
        };
        assert_eq!(row.effect, effect, "{path}");
    }
}

#[test]
fn the_tables_have_the_defaults_that_apply() {
    let all = all();
    let text = |path: &str| match all[path].presence {
        Presence::Default(text) => text,
        other => panic!("{path}: {other:?}"),
    };
    let machine =
        |name: &str| format!("repositories.<owner>.<repository>.machines.<machine>.{name}");
    for (path, span) in [
        ("host.max_overtake", defaults::MAX_OVERTAKE),
        ("host.keep_runs_for", defaults::KEEP_RUNS_FOR),
        ("github.polling_interval", defaults::POLLING_INTERVAL),
        (&machine("boot_timeout"), defaults::BOOT_TIMEOUT),
        (&machine("idle_timeout"), defaults::IDLE_TIMEOUT),
        (&machine("keep_generations_for"), defaults::KEEP_GENERATIONS_FOR),
    ] {
        assert_eq!(duration::parse(text(path)), Ok(span), "{path}");
    }
    assert_eq!(text("host.min_free_disk").parse(), Ok(defaults::MIN_FREE_DISK));
    assert_eq!(text("host.keep_runs").parse(), Ok(defaults::KEEP_RUNS));
    assert_eq!(text("host.vm_uids").parse(), Ok(forrest_core::model::UidRange::DEFAULT));
    assert_eq!(text(&machine("keep_generations")).parse(), Ok(defaults::KEEP_GENERATIONS));
    assert_eq!(text("github.api_url"), defaults::API_URL);
}

#[test]
fn a_restart_is_needed_for_the_fields_that_say_so() {
    let old = crate::Config::parse(MINIMAL.as_bytes(), std::path::Path::new("/x/forrest.yaml"));
    let old = old.unwrap_or_else(|errors| panic!("{errors}")).config;
    let changed = "
host:
  base_dir: /elsewhere
  ram: 17G
  accel: tcg
  cpus: 5
  min_free_disk: 1G
  webhook_listen: 127.0.0.1:1
  webhook_group: www-data
  max_overtake: 1m
  keep_runs: 1
  keep_runs_for: 1d
  vm_uids: 70000-70009
  qemu: q
  network: { filter: off }
github:
  app_id: 1
  jwt_key_file: k
  webhook_secret: other
  polling_interval: 1m
  api_url: https://github.example/api/v3
";
    let (_, repositories) = MINIMAL.split_once("repositories:").expect("a section");
    let new = format!("{changed}repositories:{repositories}");
    let new = crate::Config::parse(new.as_bytes(), std::path::Path::new("/x/forrest.yaml"));
    let changes = new.unwrap_or_else(|errors| panic!("{errors}")).config.diff(&old);
    let fields = |wanted: fn(Reload) -> bool| -> BTreeSet<String> {
        all()
            .into_iter()
            .filter(|(path, f)| {
                !is_container(&f.kind) && !path.starts_with("repositories") && wanted(f.reload)
            })
            // Changes of the secret count, wherever it is.
            .map(|(path, _)| path.replace("webhook_secret_file", "webhook_secret"))
            .collect()
    };
    let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(names(&changes.needs_restart), fields(|reload| reload == Reload::Restart));
    assert_eq!(names(&changes.applied), fields(|reload| reload != Reload::Restart));
}

#[test]
fn the_example_has_every_field() {
    for (path, field) in all() {
        assert!(
            EXAMPLE.lines().any(|line| {
                let line = line.trim_start_matches([' ', '#', '-', '{']);
                line.starts_with(&format!("{}:", field.name))
            }),
            "{path} is not in the annotated example"
        );
    }
}

/// A document as JSON, as an editor sees it.
fn json_of(tree: &Tree, id: NodeId) -> Value {
    match &tree.node(id).content {
        Content::Scalar { text, style: Style::Plain } => match text.as_str() {
            "true" => json!(true),
            "false" => json!(false),
            "null" | "~" | "" => Value::Null,
            text => text.parse::<i64>().map_or_else(|_| json!(text), |n| json!(n)),
        },
        Content::Scalar { text, .. } => json!(text),
        Content::List(items) => items.iter().map(|item| json_of(tree, item.node)).collect(),
        Content::Map { entries, .. } => entries
            .iter()
            // Absent, for Forrest; editors mark it, which is a lesser evil than allowing it anywhere.
            .filter(|e| json_of(tree, e.value.node) != Value::Null)
            .map(|e| (e.key.to_string(), json_of(tree, e.value.node)))
            .collect(),
        Content::Broken => Value::Null,
    }
}

fn valid(text: &str) -> bool {
    let (tree, problems) = Tree::parse(text);
    assert_eq!(problems, []);
    let tree = tree.expect("a document");
    let validator = jsonschema::validator_for(&crate::schema()).expect("a sound schema");
    validator.is_valid(&json_of(&tree, tree.root()))
}

#[test]
fn the_schema_accepts_the_examples() {
    for text in [EXAMPLE, MINIMAL, DERIVED] {
        assert!(valid(text), "{text}");
    }
}

#[test]
fn the_schema_refuses_what_the_loader_refuses() {
    for (right, wrong) in [
        ("ram: 16G", "ram: 16"),
        ("ram: 16G", "rma: 16G"),
        ("cpus: 4", "cpus: 0"),
        ("cpus: 4", "cpus: four"),
        ("disk: 32G", "disk: 32G\n          snapshot: maybe"),
        ("disk: 32G", "disk: 32G\n          use_base: sometimes"),
        ("disk: 32G", "disk: 32G\n          boot_timeout: 5"),
        ("disk: 32G", "disk: 32G\n          labels: yocto"),
        ("disk: 32G", "disk: 32G\n          shared: [{ tga: x }]"),
    ] {
        let text = MINIMAL.replace(right, wrong);
        assert_ne!(text, MINIMAL);
        assert!(!valid(&text), "{wrong}");
        let loaded = crate::Config::parse(text.as_bytes(), std::path::Path::new("/x/forrest.yaml"));
        assert!(loaded.is_err(), "{wrong}");
    }
}

#[test]
fn messages_fit_the_documentation() {
    // The one that docs/config.md shows.
    let text = MINIMAL.replace("base_image:", "base_imag:");
    let errors = crate::Config::parse(text.as_bytes(), std::path::Path::new("/x/forrest.yaml"));
    let shown = errors.expect_err("a misspelt field").to_string();
    for line in
        ["error: the machine type has no field \"base_imag\"", "did you mean \"base_image\"?"]
    {
        assert!(shown.contains(line) && DOCS.contains(line), "{shown}");
    }
    assert_eq!(shown.matches("error:").count(), 1, "{shown}");
}
