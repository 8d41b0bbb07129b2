//! What the user sees for every kind of mistake: `tests/errors/<case>.yaml` is loaded, and what is
//! printed is compared with `<case>.txt` beside it. `UPDATE_EXPECTED=1` writes the latter anew.

#![expect(clippy::unwrap_used, reason = "a test may fail like this")]

use std::fs;
use std::path::Path;

use forrest_config::{Config, render_all};

fn shown(case: &Path) -> datatest_stable::Result<()> {
    let text = fs::read(case)?;
    // Named without a directory, so that the output is the same on every machine.
    let name = Path::new(case.file_name().unwrap());
    let shown = match Config::parse(&text, name) {
        Ok(loaded) => format!("usable\n\n{}", render_all(&loaded.warnings, false)),
        Err(errors) => {
            let count = errors.errors();
            let noun = if count == 1 { "error" } else { "errors" };
            format!("{count} {noun}\n\n{}", errors.render(false))
        }
    };
    let expected = case.with_extension("txt");
    if std::env::var_os("UPDATE_EXPECTED").is_some() {
        fs::write(&expected, &shown)?;
    }
    let wanted = fs::read_to_string(&expected).unwrap_or_default();
    if shown == wanted {
        return Ok(());
    }
    Err(format!("{} differs. Now:\n{shown}", expected.display()).into())
}

datatest_stable::harness! {
    { test = shown, root = "tests/errors", pattern = r"\.yaml$" },
}
