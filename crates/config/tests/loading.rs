//! What a sound file means: values, defaults, secrets in files, changes between two versions.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use forrest_config::{
    Accel, BUILT_IN_PARAMETERS, Base, Code, Config, Diagnostic, WebhookListen, defaults,
};
use forrest_core::model::{Bytes, Labels, UseBase};

fn contrib(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../contrib/config").join(name)
}

fn load(text: &str) -> Config {
    let loaded = Config::parse(text.as_bytes(), Path::new("/etc/forrest/forrest.yaml"));
    let loaded = loaded.unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(loaded.warnings, [], "{text}");
    loaded.config
}

/// A file with one machine type `o/r/m`.
fn file(host: &str, github: &str, machine: &str) -> String {
    format!(
        "host: {{ base_dir: /srv/forrest, ram: 16G, {host} }}
github: {{ app_id: 1, jwt_key_file: key.pem, webhook_secret: s, {github} }}
repositories:
  o:
    r:
      machines:
        m: {{ setup_template: {{ path: t }}, base_image: d.img, cpus: 2, ram: 2G, disk: 8G, {machine} }}
"
    )
}

#[test]
fn the_annotated_example_loads() {
    let text = fs::read_to_string(contrib("forrest.yaml")).expect("the example");
    let config = load(&text);
    assert_eq!(config.machines().count(), 3);
    let build = config.machine(&"example-owner/example-repository/build".parse().expect("a name"));
    let build = build.expect("a machine type");
    assert!(build.snapshot);
    assert_eq!(build.network.allow.len(), 3);
    assert_eq!(build.labels, ["yocto", "big"]);
    assert_guests_have_a_runner(&config);
}

/// The generic template gets the runner from where its parameters say.
fn assert_guests_have_a_runner(config: &Config) {
    for machine in config.machines() {
        for name in ["RUNNER_VERSION", "RUNNER_URL", "RUNNER_SHA256"] {
            assert!(machine.setup_template.parameters.contains_key(name), "{name}");
        }
    }
}

#[test]
fn the_smaller_examples_load() {
    let minimal = fs::read_to_string(contrib("minimal.yaml")).expect("the example");
    let minimal = load(&minimal);
    assert_eq!(minimal.machines().count(), 1);
    assert_guests_have_a_runner(&minimal);

    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("derived.yaml");
    fs::copy(contrib("derived.yaml"), &path).expect("a copy");
    for secret in ["webhook-secret", "example-repository.token"] {
        fs::write(dir.path().join(secret), "hunter2\n").expect("a file");
        let private = fs::Permissions::from_mode(0o600);
        fs::set_permissions(dir.path().join(secret), private).expect("a mode");
    }
    let loaded = Config::load(&path).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(loaded.warnings, []);
    let config = loaded.config;
    assert_guests_have_a_runner(&config);
    assert_eq!(config.github.webhook_secret.expose(), "hunter2");
    let repository = config.repositories.values().next().expect("a repository");
    assert_eq!(repository.persistence_token.as_ref().map(|t| t.expose()), Some("hunter2"));
    let (build, test) = (&repository.machines["build"], &repository.machines["test"]);
    assert_eq!((build.cpus, build.max_runs), (8, Some(2)));
    assert_eq!(build.job_timeout, Some(Duration::from_secs(3600)));
    assert_eq!((test.cpus, test.job_timeout), (4, None));
    assert_eq!(build.base, Base::Machine(repository.machines["base"].name.clone()));
}

#[test]
fn what_is_absent_has_its_default() {
    let config = load(&file("", "", ""));
    let host = &config.host;
    assert_eq!(host.ram, Bytes::gib(16));
    assert_eq!((host.accel, host.cpus, &host.qemu), (Accel::Auto, None, &None));
    assert_eq!(host.min_free_disk, defaults::MIN_FREE_DISK);
    assert_eq!(host.webhook_listen, WebhookListen::Unix);
    assert_eq!(host.max_overtake, defaults::MAX_OVERTAKE);
    assert_eq!(host.keep_runs, defaults::KEEP_RUNS);
    assert!(host.network_filter);
    assert_eq!(config.github.polling_interval, defaults::POLLING_INTERVAL);
    assert_eq!(config.github.api_url, defaults::API_URL);
    let machine = config.machines().next().expect("a machine type");
    assert_eq!(machine.use_base, UseBase::IfNewer);
    assert_eq!(machine.boot_timeout, defaults::BOOT_TIMEOUT);
    assert_eq!(machine.idle_timeout, defaults::IDLE_TIMEOUT);
    assert_eq!((machine.job_timeout, machine.max_runs), (None, None));
    assert_eq!(machine.keep_generations, defaults::KEEP_GENERATIONS);
    assert!(!machine.snapshot && machine.shared.is_empty() && machine.labels.is_empty());
    assert!(machine.network.filter && machine.network.allow.is_empty());
    assert!(machine.persist_from.allows("push", false));
    assert!(!machine.persist_from.allows("pull_request", true));
}

#[test]
fn what_is_written_counts() {
    let config = load(&file(
        "accel: tcg, cpus: 8, min_free_disk: 0B, webhook_listen: '[::1]:80', max_overtake: 0s, \
         keep_runs: 0, qemu: qemu-kvm, network: { filter: off }",
        "polling_interval: 1h30m, api_url: 'https://github.example:8443/api/v3/'",
        "use_base: never, boot_timeout: 90s, shared: [{ path: /srv/x/, tag: x, writable: true }], \
         network: { allow: [] }, persist_from: [pull_request, forks], max_runs: 3, \
         job_timeout: null",
    ));
    let host = &config.host;
    assert_eq!((host.accel, host.cpus), (Accel::Tcg, Some(8)));
    assert_eq!(host.webhook_listen, WebhookListen::Tcp("[::1]:80".parse().expect("an address")));
    assert_eq!(config.github.api_url, "https://github.example:8443/api/v3");
    assert_eq!(config.github.polling_interval, Duration::from_secs(5400));
    let machine = config.machines().next().expect("a machine type");
    assert_eq!(machine.use_base, UseBase::Never);
    assert_eq!(machine.shared[0].path, Path::new("/srv/x"));
    assert!(machine.shared[0].writable);
    // The host's switch holds where the machine type has none of its own.
    assert!(!machine.network.filter);
    assert!(machine.persist_from.allows("pull_request", true));
    assert!(!machine.persist_from.allows("push", false));
}

#[test]
fn texts_may_look_like_numbers() {
    let text =
        file("", "", "").replace("{ path: t }", "{ path: t, parameters: { V: 1.20, B: no } }");
    let config = load(&text.replace("webhook_secret: s", "webhook_secret: 0123"));
    assert_eq!(config.github.webhook_secret.expose(), "0123");
    assert_eq!(config.github.app_id, "1");
    let machine = config.machines().next().expect("a machine type");
    assert_eq!(machine.setup_template.parameters["V"], "1.20");
    assert_eq!(machine.setup_template.parameters["B"], "no");
}

#[test]
fn machine_types_have_the_labels_that_jobs_ask_for() {
    let types = load(&file("", "", "labels: [Yocto]")).machine_types();
    assert_eq!(types.len(), 1);
    assert_eq!(types[0].name.to_string(), "o/r/m");
    assert_eq!(types[0].base_machine, None);
    let asked: Labels = ["self-hosted", "Linux", "forrest", "m", "yocto"].into_iter().collect();
    assert!(asked.is_subset(&types[0].labels));
    assert_eq!(types[0].labels.iter().count(), 6);
}

#[test]
fn paths_belong_to_the_directory_of_the_file() {
    let config = load(&file("", "", ""));
    assert_eq!(config.github.jwt_key_file.beside_config(), Path::new("/etc/forrest/key.pem"));
    assert_eq!(config.host.base_dir.beside_config(), Path::new("/srv/forrest"));
}

#[test]
fn debug_shows_no_secret() {
    let text = file("", "", "").replace("webhook_secret: s", "webhook_secret: hunter2");
    let text = text.replace("{ path: t }", "{ path: t, parameters: { PASSWORD: hunter2 } }");
    let text = text.replace("      machines:", "      persistence_token: hunter2\n      machines:");
    let shown = format!("{:?}", load(&text));
    assert!(!shown.contains("hunter2") && shown.contains("PASSWORD"), "{shown}");
}

#[test]
fn exposed_secrets_are_a_warning() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("forrest.yaml");
    let codes = |text: &str, mode: u32| -> Vec<Code> {
        fs::write(&path, text).expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("a mode");
        let loaded = Config::load(&path).unwrap_or_else(|errors| panic!("{errors}"));
        loaded.warnings.iter().map(|w| w.code).collect()
    };
    let inline = file("", "", "");
    assert_eq!(codes(&inline, 0o644), [Code::Permissions]);
    assert_eq!(codes(&inline, 0o640), []);

    let secret = dir.path().join("secret");
    fs::write(&secret, "hunter2").expect("a file");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("a mode");
    let elsewhere = inline.replace("webhook_secret: s", "webhook_secret_file: secret");
    assert_eq!(codes(&elsewhere, 0o644), []);
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o644)).expect("a mode");
    assert_eq!(codes(&elsewhere, 0o644), [Code::Permissions]);
}

#[test]
fn a_file_that_cannot_be_read_says_so() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for path in [dir.path().join("missing.yaml"), dir.path().to_owned()] {
        let errors = Config::load(&path).expect_err("no file");
        assert_eq!(errors.errors(), 1);
        assert!(errors.to_string().contains("failed to read the configuration"), "{errors}");
    }
}

#[test]
fn unusable_secret_files_are_errors() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("forrest.yaml");
    let text = file("", "", "").replace("webhook_secret: s", "webhook_secret_file: secret");
    fs::write(&path, text).expect("a file");
    for content in [&b""[..], b" \n\n", b"\xff", &[b'x'; 20_000]] {
        fs::write(dir.path().join("secret"), content).expect("a file");
        let errors = Config::load(&path).expect_err("no secret");
        assert!(errors.to_string().contains("failed to read the secret"), "{errors}");
    }
}

#[test]
fn changes_say_when_they_take_effect() {
    let old = load(&file("", "", ""));
    assert!(old.diff(&old).is_empty());

    let new = load(&file("accel: tcg, cpus: 8", "api_url: https://github.example/api/v3", ""));
    let changes = new.diff(&old);
    assert_eq!(changes.needs_restart, ["host.accel", "github.api_url"]);
    assert_eq!(changes.applied, ["host.cpus"]);
    assert!(changes.changed.is_empty() && !changes.repositories);

    let new = load(&file("", "", "snapshot: true").replace("        m: {", "        n: {"));
    let changes = new.diff(&old);
    assert_eq!(changes.added.len() + changes.removed.len(), 2);
    let changes = load(&file("", "", "snapshot: true")).diff(&old);
    assert_eq!(changes.changed.len(), 1);
    // Lines that only moved are no change.
    let moved = format!("# a comment\n\n{}", file("", "", ""));
    assert!(load(&moved).diff(&old).is_empty());

    let token = file("", "", "").replace("      machines:", "      max_runs: 2\n      machines:");
    assert!(load(&token).diff(&old).repositories);
}

fn codes(found: &[Diagnostic]) -> Vec<(bool, Code)> {
    found.iter().map(|d| (d.is_error(), d.code)).collect()
}

/// A directory with everything that the file of [`file`] names.
fn complete() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let at = |name: &str| dir.path().join(name);
    let body = "A".repeat(64);
    let pem = format!("-----BEGIN RSA PRIVATE KEY-----\n{body}\n-----END RSA PRIVATE KEY-----\n");
    fs::write(at("key.pem"), pem).expect("a file");
    fs::set_permissions(at("key.pem"), fs::Permissions::from_mode(0o600)).expect("a mode");
    fs::create_dir_all(at("t/cloud-init")).expect("a directory");
    fs::create_dir_all(at("t/job-config")).expect("a directory");
    fs::write(at("t/job-config/jitconfig"), "<JITCONFIG>\n").expect("a file");
    fs::write(at("d.img"), "image").expect("a file");
    dir
}

fn check(dir: &Path, text: &str) -> Vec<Diagnostic> {
    let loaded = Config::parse(text.as_bytes(), &dir.join("forrest.yaml"));
    loaded.unwrap_or_else(|errors| panic!("{errors}")).config.check_files()
}

#[test]
fn files_that_are_there_are_fine() {
    let dir = complete();
    assert_eq!(check(dir.path(), &file("", "", "snapshot: true")), []);
}

#[test]
fn files_that_are_missing_are_errors_with_a_place() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let found = check(dir.path(), &file("", "", "shared: [{ path: /nonexistent/x, tag: x }]"));
    assert_eq!(codes(&found), [(true, Code::File); 4]);
    assert!(found.iter().all(|d| d.location.is_some()), "{found:?}");
}

#[test]
fn files_that_are_wrong_are_found() {
    let dir = complete();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("key.pem"), "-----BEGIN PUBLIC KEY-----").expect("a file");
    fs::set_permissions(at("key.pem"), fs::Permissions::from_mode(0o644)).expect("a mode");
    fs::remove_file(at("t/job-config/jitconfig")).expect("no file");
    fs::write(at("t/cloud-init/user-data"), "x: <JITCONFIG>\n").expect("a file");
    fs::write(at("d.img"), "").expect("a file");
    let found = check(dir.path(), &file("", "", "snapshot: true"));
    let expected = [
        (false, Code::Permissions), // key.pem
        (true, Code::File),         // key.pem
        (false, Code::File),        // no <JITCONFIG>
        (true, Code::File),         // <JITCONFIG> in a snapshot
        (true, Code::File),         // an empty image
    ];
    assert_eq!(codes(&found), expected, "{found:#?}");

    // Without a snapshot the JIT config may be in either part.
    let found = check(dir.path(), &file("", "", ""));
    assert_eq!(codes(&found).len(), expected.len() - 1, "{found:#?}");

    fs::remove_dir_all(at("t/cloud-init")).expect("no directory");
    let found = check(dir.path(), &file("", "", ""));
    assert!(found.iter().any(|d| d.message.contains("has no directory cloud-init/")));
}

#[test]
fn links_into_the_host_are_not_shared() {
    let dir = complete();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink("/etc", &link).expect("a link");
    let shared = format!("shared: [{{ path: {}, tag: x }}]", link.display());
    let found = check(dir.path(), &file("", "", &shared));
    assert_eq!(codes(&found), [(true, Code::File)]);
    assert!(found[0].message.contains("leads to /etc"), "{}", found[0].message);

    let keys = dir.path().join("keys");
    fs::create_dir(&keys).expect("a directory");
    fs::rename(dir.path().join("key.pem"), keys.join("key.pem")).expect("a file");
    let shared = format!("shared: [{{ path: {}, tag: x }}]", keys.display());
    let text = file("", "", &shared).replace("key.pem", "keys/key.pem");
    let found = check(dir.path(), &text);
    assert!(found[0].message.contains("one of its secrets"), "{found:?}");
}

#[test]
fn every_name_that_forrest_fills_in_is_refused_as_a_parameter() {
    for name in BUILT_IN_PARAMETERS {
        let text =
            file("", "", "").replace("path: t", &format!("path: t, parameters: {{ {name}: x }}"));
        let errors = Config::parse(text.as_bytes(), Path::new("/x/forrest.yaml"));
        let shown = errors.expect_err(name).to_string();
        assert!(shown.contains("Forrest itself fills this parameter"), "{shown}");
    }
}

#[test]
fn directories_with_a_file_that_holds_a_secret_are_not_shared() {
    let dir = complete();
    let secrets = dir.path().join("secrets/of/forrest");
    fs::create_dir_all(&secrets).expect("a directory");
    let path = secrets.join("secret");
    fs::write(&path, "hunter2").expect("a file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("a mode");
    let above = dir.path().join("secrets");
    let sound = "      machines:";
    for (wanted, instead) in [
        ("webhook_secret: s", "webhook_secret_file: secrets/of/forrest/secret".to_owned()),
        (sound, format!("      persistence_token_file: secrets/of/forrest/secret\n{sound}")),
    ] {
        for shared in [&secrets, &above] {
            let shared = format!("shared: [{{ path: {}, tag: x }}]", shared.display());
            let text = file("", "", &shared);
            assert_eq!(check(dir.path(), &text), [], "{text}");
            assert!(text.contains(wanted), "{text}");
            let found = check(dir.path(), &text.replace(wanted, &instead));
            assert_eq!(codes(&found), [(true, Code::File)], "{found:?}");
            assert!(found[0].message.contains("one of its secrets"), "{found:?}");
        }
    }
}
