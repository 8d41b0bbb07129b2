use super::*;

struct Fixture {
    dir: tempfile::TempDir,
}

impl Fixture {
    fn new(files: &[(&str, &[u8])]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for part in Part::ALL {
            std::fs::create_dir(dir.path().join(part.dir_name())).expect("a new directory");
        }
        for (name, content) in files {
            let path = dir.path().join(name);
            let parent = path.parent().expect("a file is in a directory");
            std::fs::create_dir_all(parent).expect("a writable directory");
            std::fs::write(&path, content).expect("a writable directory");
        }
        Self { dir }
    }

    fn load(&self, parameters: &[(&str, &str)]) -> Result<Template, ImageError> {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Template::load(self.dir.path(), &parameters.iter().map(own).collect())
    }

    fn refusal(&self) -> String {
        self.load(&[]).expect_err("an unusable template").to_string()
    }
}

fn machine() -> MachineTypeName {
    "octo/cat/build".parse().expect("a sound name")
}

fn render(template: &Template, part: Part, file: &str) -> String {
    let runner = RunnerName::from_random(&machine(), [0; 16]);
    let jit_config = SecretString::from("c2VjcmV0<MACHINE_NAME>");
    let run = RunValues { runner: &runner, jit_config: &jit_config };
    let replacements = Replacements { machine: &machine(), instance_id: "i-1", run: Some(run) };
    let files = template.render(part, &replacements).expect("everything is known");
    String::from_utf8(files.0[file].to_vec()).expect("text")
}

#[test]
fn patterns_are_replaced_everywhere() {
    let text =
        b"<REPO_OWNER>/<REPO_NAME>/<MACHINE_NAME> <RUNNER_NAME> <INSTANCE_ID>\n<COLOUR><COLOUR>";
    let fixture = Fixture::new(&[("job-config/sub/x.txt", text)]);
    let template = fixture.load(&[("COLOUR", "red")]).expect("a sound template");
    assert_eq!(
        render(&template, Part::JobConfig, "sub/x.txt"),
        "octo/cat/build forrest-build-aaaaaaaaaaaaaaaa i-1\nredred"
    );
}

#[test]
fn nothing_is_replaced_within_a_replaced_value() {
    let fixture =
        Fixture::new(&[("job-config/jit", b"<JITCONFIG> <A>"), ("cloud-init/x", b"<<A>>")]);
    let template = fixture.load(&[("A", "<B>"), ("B", "<A>")]).expect("a sound template");
    assert_eq!(render(&template, Part::JobConfig, "jit"), "c2VjcmV0<MACHINE_NAME> <B>");
    assert_eq!(render(&template, Part::CloudInit, "x"), "<<B>>");
}

#[test]
fn what_is_no_pattern_stays() {
    let text = "a < b > c <<EOF <> <A B> <html> <ü> <TYPO> <\u{fc}A> < A> <A";
    let fixture = Fixture::new(&[("job-config/x", text.as_bytes())]);
    let template = fixture.load(&[("A", "1")]).expect("a sound template");
    assert_eq!(render(&template, Part::JobConfig, "x"), text);
}

#[test]
fn misspelt_patterns_are_reported() {
    let fixture = Fixture::new(&[
        ("job-config/x", b"<TYPO> <html> <TYPO> <JITCONFIG>"),
        ("cloud-init/sub/y", b"<A> <b> <C-D>"),
    ]);
    let template = fixture.load(&[("A", "1")]).expect("a sound template");
    let found: Vec<String> = template.unknown_patterns().iter().map(ToString::to_string).collect();
    assert_eq!(found, ["<TYPO> in job-config/x"]);
}

#[test]
fn values_of_a_run_in_cloud_init_are_reported_and_refused_without_a_run() {
    let fixture = Fixture::new(&[("cloud-init/user-data", b"<JITCONFIG> <RUNNER_NAME>")]);
    let template = fixture.load(&[]).expect("a sound template");
    let names: Vec<String> =
        template.run_values_in_cloud_init().into_iter().map(|found| found.name).collect();
    assert_eq!(names, [JITCONFIG, RUNNER_NAME]);
    let replacements = Replacements { machine: &machine(), instance_id: "i", run: None };
    let error = template.render(Part::CloudInit, &replacements).expect_err("no run");
    assert!(error.to_string().contains("user-data"), "{error}");
    assert!(template.render(Part::JobConfig, &replacements).is_ok());
}

#[test]
fn the_hash_changes_with_everything_that_a_guest_could_see() {
    let hash = |files: &[(&str, &[u8])], parameters: &[(&str, &str)]| {
        Fixture::new(files).load(parameters).expect("a sound template").content_hash()
    };
    let reference = hash(&[("job-config/x", b"1")], &[("A", "1")]);
    assert_eq!(reference, hash(&[("job-config/x", b"1")], &[("A", "1")]));
    assert_eq!(reference.len(), 64);
    for other in [
        hash(&[("job-config/x", b"2")], &[("A", "1")]),
        hash(&[("job-config/y", b"1")], &[("A", "1")]),
        hash(&[("cloud-init/x", b"1")], &[("A", "1")]),
        hash(&[("job-config/x", b"1")], &[("A", "2")]),
        hash(&[("job-config/x", b"1")], &[]),
    ] {
        assert_ne!(reference, other);
    }
}

#[test]
fn unusable_templates_are_refused_with_the_file_at_fault() {
    let no_dir = tempfile::tempdir().expect("a temporary directory");
    let error = Template::load(no_dir.path(), &BTreeMap::new()).expect_err("no directories");
    assert!(error.to_string().contains("no directory cloud-init/"), "{error}");

    let fixture = Fixture::new(&[("job-config/logo.png", b"one\n\xff\xfe")]);
    assert!(fixture.refusal().contains("logo.png is unusable: it is not UTF-8 text (line 2)"));

    let fixture = Fixture::new(&[("job-config/big", &vec![b'x'; MAX_FILE_LEN + 1])]);
    assert!(fixture.refusal().contains("longer than 1M"));

    let big = vec![b'x'; MAX_FILE_LEN];
    let files = ["job-config/1", "job-config/2", "job-config/3", "job-config/4"];
    assert!(Fixture::new(&files.map(|name| (name, &big[..]))).refusal().contains("more than 3M"));

    let names: Vec<String> = (0..=MAX_FILES).map(|n| format!("job-config/{n}")).collect();
    let files: Vec<(&str, &[u8])> = names.iter().map(|name| (&name[..], &b""[..])).collect();
    assert!(Fixture::new(&files).refusal().contains("more than 256 files"));

    let fixture = Fixture::new(&[("job-config/a:b", b"")]);
    assert!(fixture.refusal().contains("a:b"));

    let fixture = Fixture::new(&[("job-config/a", b""), ("job-config/A", b"")]);
    assert!(fixture.refusal().contains("upper and lower case"));

    let fixture = Fixture::new(&[("job-config/1/2/3/4/5/6/7/8/9", b"")]);
    assert!(fixture.refusal().contains("nested deeper"));
}

#[test]
fn a_loop_of_links_ends() {
    let fixture = Fixture::new(&[]);
    let link = fixture.dir.path().join("cloud-init/loop");
    std::os::unix::fs::symlink("..", &link).expect("a link");
    assert!(fixture.load(&[]).is_err());
}

#[test]
fn parameters_cannot_take_the_place_of_built_in_ones() {
    let fixture = Fixture::new(&[]);
    for name in ["JITCONFIG", "", "a b", "<A>"] {
        assert!(fixture.load(&[(name, "x")]).is_err(), "{name:?}");
    }
}

#[test]
fn nothing_secret_is_printed() {
    let fixture = Fixture::new(&[("job-config/x", b"<P>")]);
    let template = fixture.load(&[("P", "hunter2")]).expect("a sound template");
    assert!(!format!("{template:?}").contains("hunter2"));
    let replacements = Replacements { machine: &machine(), instance_id: "i", run: None };
    let files = template.render(Part::JobConfig, &replacements).expect("nothing of a run");
    assert!(!format!("{files:?}").contains("hunter2"));
}
