use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> Tree {
    let (tree, problems) = Tree::parse(text);
    assert_eq!(problems, [], "{text}");
    tree.expect("a document")
}

/// The codes and places of what is wrong.
fn problems(text: &str) -> Vec<(usize, String)> {
    let (_, problems) = Tree::parse(text);
    let source = crate::source::Source::new(std::path::Path::new("f"), text.to_owned());
    let found = crate::problem::report(problems, &source).into_iter();
    found.map(|d| (d.location.map_or(0, |l| l.line as usize), d.message)).collect()
}

/// The tree without places, aliases and merge keys.
#[derive(Debug, Clone, PartialEq)]
enum Plain {
    Scalar(String),
    List(Vec<Plain>),
    Map(BTreeMap<String, Plain>),
    Broken,
}

fn plain(tree: &Tree, id: NodeId) -> Plain {
    match &tree.node(id).content {
        Content::Scalar { text, .. } => Plain::Scalar(text.clone()),
        Content::List(items) => Plain::List(items.iter().map(|i| plain(tree, i.node)).collect()),
        Content::Map { entries, .. } => Plain::Map(
            entries.iter().map(|e| (e.key.to_string(), plain(tree, e.value.node))).collect(),
        ),
        Content::Broken => Plain::Broken,
    }
}

fn value(text: &str) -> Plain {
    let tree = parse(text);
    plain(&tree, tree.root())
}

#[test]
fn merge_keys_work_in_both_forms() {
    let text = "
a: &a { x: a, y: a, z: a }
b: &b { y: b, z: b, w: b }
one: { <<: *a, y: own }
two: { z: own, <<: [*b, *a] }
";
    let Plain::Map(map) = value(text) else { panic!("not a mapping") };
    assert_eq!(map["one"], value("{ x: a, y: own, z: a }"));
    assert_eq!(map["two"], value("{ w: b, x: a, y: b, z: own }"));
}

#[test]
fn a_quoted_merge_key_is_an_ordinary_one() {
    assert_eq!(value("a: &a { x: 1 }\nb: { '<<': *a }"), value("{a: {x: 1}, b: {'<<': {x: 1}}}"));
}

#[test]
fn values_know_their_places() {
    let text = "a:\n  b: &x  text\n  c: [1, 22]\nd: *x\n";
    let tree = parse(text);
    let Content::Map { entries: top, .. } = &tree.node(tree.root()).content else { panic!("map") };
    let at = |span: Span| &text[span.start..span.end];
    let Content::Map { entries, .. } = &tree.node(top[0].value.node).content else { panic!("map") };
    assert_eq!(at(entries[0].key_span), "b");
    assert_eq!(at(tree.node(entries[0].value.node).span), "text");
    let Content::List(items) = &tree.node(entries[1].value.node).content else { panic!("list") };
    assert_eq!(at(items[1].written), "22");
    assert_eq!(at(top[1].value.written), "*x");
    assert_eq!(at(tree.node(top[1].value.node).span), "text");
    // Not up to the next token.
    assert_eq!(at(tree.node(top[0].value.node).span), "b: &x  text\n  c: [1, 22]");
}

#[test]
fn absent_values_are_empty() {
    assert_eq!(value("a:\nb: ~\nc: ''"), {
        let text = |t: &str| Plain::Scalar(t.to_owned());
        Plain::Map([("a", ""), ("b", "~"), ("c", "")].map(|(k, t)| (k.to_owned(), text(t))).into())
    });
}

#[test]
fn everything_wrong_is_found_in_one_go() {
    let found = problems("a: 1\na: 2\nb: *nowhere\nc: !odd x\nd: {<<: 3}\n[x]: 4\n");
    let lines: Vec<usize> = found.iter().map(|(line, _)| *line).collect();
    assert_eq!(lines, [2, 3, 4, 5, 6], "{found:?}");
}

#[test]
fn an_alias_inside_its_own_value_is_no_loop() {
    let found = problems("a: &a [1, *a]\nb: &b { c: { <<: *b } }\n");
    assert_eq!(found.len(), 2, "{found:?}");
}

#[test]
fn depth_is_bounded() {
    let flow = format!("a: {}{}", "[".repeat(10_000), "]".repeat(10_000));
    let block: String = (0..1000).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
    for text in [flow, block] {
        let found = problems(&text);
        assert_eq!(found.len(), 1);
        assert!(found[0].1.contains("nested too deeply"), "{found:?}");
    }
}

#[test]
fn size_is_bounded() {
    let list = format!("[{}]", "x,".repeat(NODES_MAX + 1));
    assert!(problems(&list)[0].1.contains("more than 100000 values"));

    let mut merges = String::from("a0: &a0 {");
    for n in 0..1000 {
        merges.push_str(&format!("k{n}: 1, "));
    }
    merges.push_str("}\n");
    for n in 1..=300 {
        merges.push_str(&format!("a{n}: &a{n} {{ <<: *a{} }}\n", n - 1));
    }
    assert!(problems(&merges)[0].1.contains("merge keys take over more than"));
}

#[test]
fn aliases_of_aliases_cost_nothing_here() {
    let mut text = String::from("a0: &a0 x\n");
    for n in 1..100 {
        let alias = format!("*a{}", n - 1);
        text.push_str(&format!("a{n}: &a{n} [{}]\n", [alias.as_str(); 9].join(", ")));
    }
    let tree = parse(&text);
    assert!(tree.nodes.len() < 500);
    assert!(tree.secret_spans().is_empty());
}

#[test]
fn secrets_are_found_through_anchors_and_merges() {
    let text = "t: &t hunter2\nm: &m { persistence_token: *t }\nx: { <<: *m, api-token: [a, b] }";
    let mut found: Vec<&str> =
        parse(text).secret_spans().iter().map(|s| &text[s.start..s.end]).collect();
    found.sort_unstable();
    found.dedup();
    assert_eq!(found, [" *t", " [a, b]", "[a, b]", "a", "b", "hunter2"]);
}

#[test]
fn a_repository_with_a_suspicious_name_is_no_secret() {
    let tree = parse("tokens: { machines: { m: 1 } }\nwebhook_secret: { x: hunter2 }");
    assert_eq!(tree.secret_spans().len(), 4);
}

/// A mapping of a generated document: its own keys, and which earlier mappings it merges.
#[derive(Debug, Clone)]
struct Mapping {
    own: BTreeMap<u8, u8>,
    merges: Vec<usize>,
    as_list: bool,
    merge_first: bool,
    block: bool,
}

fn mappings() -> impl Strategy<Value = Vec<Mapping>> {
    let one = (
        prop::collection::btree_map(0u8..6, any::<u8>(), 0..5),
        prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        any::<[bool; 3]>(),
    );
    prop::collection::vec(one, 1..8).prop_map(|all| {
        type Parts = (BTreeMap<u8, u8>, Vec<prop::sample::Index>, [bool; 3]);
        let build = |(at, parts): (usize, Parts)| {
            let (own, merges, [as_list, merge_first, block]) = parts;
            let merges: Vec<usize> =
                if at == 0 { Vec::new() } else { merges.iter().map(|m| m.index(at)).collect() };
            Mapping { own, as_list: as_list || merges.len() > 1, merges, merge_first, block }
        };
        all.into_iter().enumerate().map(build).collect()
    })
}

fn write(all: &[Mapping]) -> String {
    let mut text = String::new();
    for (at, mapping) in all.iter().enumerate() {
        let mut parts: Vec<String> =
            mapping.own.iter().map(|(key, value)| format!("k{key}: {value}")).collect();
        let aliases: Vec<String> = mapping.merges.iter().map(|m| format!("*m{m}")).collect();
        let merge = match aliases.as_slice() {
            [] => None,
            [one] if !mapping.as_list => Some(format!("<<: {one}")),
            several => Some(format!("<<: [{}]", several.join(", "))),
        };
        let position = if mapping.merge_first { 0 } else { parts.len() };
        if let Some(merge) = merge {
            parts.insert(position, merge);
        }
        if mapping.block && !parts.is_empty() {
            text.push_str(&format!("m{at}: &m{at}\n"));
            for part in parts {
                text.push_str(&format!("  {part}\n"));
            }
        } else {
            text.push_str(&format!("m{at}: &m{at} {{ {} }}\n", parts.join(", ")));
        }
    }
    text
}

/// What a mapping means, in the simplest way: from the last merge to the first, then its own.
fn meaning(all: &[Mapping], at: usize) -> BTreeMap<u8, u8> {
    let mut map = BTreeMap::new();
    for merged in all[at].merges.iter().rev() {
        map.extend(meaning(all, *merged));
    }
    map.extend(&all[at].own);
    map
}

fn values() -> impl Strategy<Value = Plain> {
    let text = proptest::string::string_regex("[ -~äß€\u{1F600}\n]{0,12}").expect("a pattern");
    let leaf = text.prop_map(Plain::Scalar);
    leaf.prop_recursive(4, 40, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Plain::List),
            prop::collection::btree_map("[a-z<]{1,4}", inner, 0..5).prop_map(Plain::Map),
        ]
    })
}

/// As JSON, which is YAML too.
fn json(value: &Plain) -> serde_json::Value {
    match value {
        Plain::Scalar(text) => text.clone().into(),
        Plain::List(items) => items.iter().map(json).collect(),
        Plain::Map(map) => map.iter().map(|(k, v)| (k.clone(), json(v))).collect(),
        Plain::Broken => serde_json::Value::Null,
    }
}

proptest! {
    #[test]
    fn merging_means_what_it_says(all in mappings()) {
        let text = write(&all);
        let Plain::Map(found) = value(&text) else { panic!("not a mapping") };
        for at in 0..all.len() {
            let expected: BTreeMap<String, Plain> = meaning(&all, at)
                .iter()
                .map(|(k, v)| (format!("k{k}"), Plain::Scalar(v.to_string())))
                .collect();
            prop_assert_eq!(&found[&format!("m{at}")], &Plain::Map(expected), "{}", text);
        }
    }

    #[test]
    fn values_come_back_as_they_were_written(made in values()) {
        let text = json(&made).to_string();
        prop_assert_eq!(value(&text), made, "{}", text);
    }

    #[test]
    fn no_text_makes_it_panic(text in "[a-c:&*<>{}\\[\\], \n\t#!|'\"~%@`?-]{0,80}") {
        let _ = Tree::parse(&text);
    }
}
