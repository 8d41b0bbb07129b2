//! The configurations that the documentation shows can be used as they are.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use forrest_config::Config;

/// What an excerpt leaves out.
const REST: &str = "
host: { base_dir: /srv/forrest, ram: 64G }
github: { app_id: 1, jwt_key_file: key.pem, webhook_secret: hunter2 }
";

/// The YAML on a page.
fn excerpts(page: &str) -> impl Iterator<Item = &str> {
    page.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next())
}

#[test]
fn examples_on_the_pages_load() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let token = dir.path().join("firmware.token");
    fs::write(&token, "hunter2").expect("a file");
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).expect("a mode");
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let mut loaded = 0;
    for entry in fs::read_dir(docs).expect("the pages") {
        let path = entry.expect("a page").path();
        let page = fs::read_to_string(&path).expect("a page");
        let whole = excerpts(&page)
            .filter(|text| text.starts_with("repositories:") || text.contains("\nrepositories:"));
        for text in whole {
            let rest = if text.contains("github:") { "" } else { REST };
            let text = format!("{rest}{text}");
            let found = Config::parse(text.as_bytes(), &dir.path().join("config.yaml"));
            let found = found.unwrap_or_else(|errors| panic!("{}: {errors}", path.display()));
            assert_eq!(found.warnings, [], "{}", path.display());
            loaded += 1;
        }
    }
    assert_eq!(loaded, 5, "config.md has two, jobs.md and the pages about images one each");
}
