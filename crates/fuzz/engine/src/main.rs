//! One program for all targets: `FORREST_FUZZ_TARGET` names the one that libFuzzer works on.

#![no_main]

use std::sync::LazyLock;

use forrest_fuzz::{TARGETS, Target, target};
use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<&'static Target> = LazyLock::new(|| {
    let name = std::env::var("FORREST_FUZZ_TARGET").unwrap_or_default();
    target(&name).unwrap_or_else(|| {
        let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        eprintln!("FORREST_FUZZ_TARGET is {name:?}, not one of: {}", names.join(" "));
        std::process::exit(64)
    })
});

fuzz_target!(|data: &[u8]| (TARGET.run)(data));
