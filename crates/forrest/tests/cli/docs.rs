//! What the documentation says about the command line is so.

use std::path::Path;

use crate::bench::run;

/// Every `forrest VERB` in the documentation exists, and every verb is documented.
#[test]
fn documented_commands_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut pages = vec![root.join("README.md")];
    let docs = std::fs::read_dir(root.join("docs")).expect("docs");
    pages.extend(docs.map(|entry| entry.expect("an entry").path()));
    let mut checked = std::collections::BTreeSet::new();
    for page in pages.iter().filter(|page| page.extension().is_some_and(|e| e == "md")) {
        let text = std::fs::read_to_string(page).expect("a page");
        for (_, rest) in text.match_indices("`forrest ").map(|(at, m)| (at, &text[at + m.len()..]))
        {
            let command = rest.split('`').next().unwrap_or_default();
            let words: Vec<&str> = command
                .split_whitespace()
                .take_while(|word| word.chars().all(|c| c.is_ascii_lowercase() || c == '-'))
                .take_while(|word| !word.starts_with('-'))
                .collect();
            let depth = if words.first() == Some(&"images") { 2 } else { 1 };
            let words: Vec<String> = words.into_iter().take(depth).map(str::to_owned).collect();
            if words.is_empty() || words[0] == "shim" || !checked.insert(words.clone()) {
                continue;
            }
            let args: Vec<&str> = words.iter().map(String::as_str).chain(["--help"]).collect();
            let shown = page.display();
            assert_eq!(run(&args).status.code(), Some(0), "{shown}: `forrest {}`", words.join(" "));
        }
    }
    for verb in ["status", "logs", "shell", "doctor", "images", "stop", "drain", "check"] {
        let documented = checked.iter().any(|words| words[0] == verb);
        assert!(documented, "no page mentions `forrest {verb}`");
    }
}
