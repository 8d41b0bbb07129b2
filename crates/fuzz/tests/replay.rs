//! Every input of the corpus, in every test run: what the fuzzer once found stays found.

use std::path::{Path, PathBuf};

use forrest_fuzz::TARGETS;

/// The most bytes of all inputs together, so that the repository stays small.
const CORPUS_LEN_MAX: u64 = 2 << 20;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

fn inputs(target: &str) -> Vec<PathBuf> {
    let dir = corpus().join(target);
    let found =
        std::fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut inputs: Vec<_> = found.map(|entry| entry.expect("an entry").path()).collect();
    inputs.sort();
    inputs
}

#[test]
fn the_whole_corpus_does_no_harm() {
    for target in TARGETS {
        let inputs = inputs(target.name);
        assert!(!inputs.is_empty(), "{} has no inputs", target.name);
        for input in inputs {
            let data = std::fs::read(&input).expect("an input");
            // On failure, the output ends with the input that did it.
            println!("{}", input.display());
            (target.run)(&data);
        }
        (target.run)(b"");
    }
}

#[test]
fn the_corpus_is_small_and_belongs_to_targets() {
    let mut len = 0;
    for entry in std::fs::read_dir(corpus()).expect("the corpus") {
        let name = entry.expect("an entry").file_name().into_string().expect("a plain name");
        let target = forrest_fuzz::target(&name);
        let target = target.unwrap_or_else(|| panic!("{name} is no target"));
        for input in inputs(&name) {
            let input_len = input.metadata().expect("metadata").len();
            assert!(input_len <= target.len_max as u64, "{} is too long", input.display());
            len += input_len;
        }
    }
    assert!(
        len <= CORPUS_LEN_MAX,
        "{len} bytes: let the engine minimise it (tools/fuzz --minimise)"
    );
}
