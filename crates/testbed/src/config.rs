//! The configuration of a testbed's daemon.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use github_sim::SimConfig;
use github_sim::runner::{RUNNER_VERSION, runner_tarball, tarball_name};

use crate::{PERSISTENCE_TOKEN, WEBHOOK_SECRET};

/// What a testbed consists of.
#[derive(Debug, Clone)]
pub struct Plan {
    /// A directory of its own: configuration, keys, and the daemon's base directory.
    pub dir: PathBuf,
    /// The `forrest` program.
    pub forrest: PathBuf,
    /// What the guests boot.
    pub guest_image: PathBuf,
    /// The setup template; `contrib/templates/generic` by default.
    pub template: PathBuf,
    /// RAM that may be handed to virtual machines, as in the configuration.
    pub ram: String,
    /// Further lines of `host:`, such as `cpus: 2`.
    pub host_lines: Vec<String>,
    /// How often GitHub is polled.
    pub polling_interval: String,
    /// The machine types.
    pub machines: Vec<MachinePlan>,
    /// How the simulator behaves; where it listens is decided when it starts.
    pub sim: SimConfig,
}

/// A machine type.
#[derive(Debug, Clone)]
pub struct MachinePlan {
    /// `owner/repository/machine`.
    pub name: String,
    /// The machine type whose image it starts from; without one it is the guest image.
    pub base_machine: Option<String>,
    /// Further lines, such as `snapshot: true`.
    pub lines: Vec<String>,
    /// What its guests may reach beside the Internet and the simulator.
    pub allow: Vec<String>,
}

impl MachinePlan {
    /// A machine type that starts from the guest image.
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), base_machine: None, lines: Vec::new(), allow: Vec::new() }
    }

    /// A machine type that starts from another one's machine image.
    pub fn based_on(name: &str, base_machine: &str) -> Self {
        Self { base_machine: Some(base_machine.to_owned()), ..Self::new(name) }
    }

    /// The same with a further line of configuration.
    #[must_use]
    pub fn with(mut self, line: &str) -> Self {
        self.lines.push(line.to_owned());
        self
    }

    /// The same with a destination that its guests may reach although it is not the Internet.
    #[must_use]
    pub fn allowing(mut self, destination: &str) -> Self {
        self.allow.push(destination.to_owned());
        self
    }
}

impl Plan {
    /// A plan with the usual settings. `repository_root` is that of Forrest's own source.
    pub fn new(repository_root: &Path, dir: &Path, forrest: &Path) -> Self {
        let guest_image = std::env::var_os("FORREST_GUEST_IMAGE")
            .map_or_else(|| repository_root.join("target/guest/debian-12.raw"), PathBuf::from);
        Self {
            dir: dir.to_owned(),
            forrest: forrest.to_owned(),
            guest_image,
            template: repository_root.join("contrib/templates/generic"),
            ram: "4G".to_owned(),
            host_lines: Vec::new(),
            polling_interval: "15m".to_owned(),
            machines: Vec::new(),
            sim: SimConfig::default(),
        }
    }

    /// The same with one more machine type.
    #[must_use]
    pub fn with(mut self, machine: MachinePlan) -> Self {
        self.machines.push(machine);
        self
    }

    /// Where the daemon keeps its images, runs and sockets.
    pub fn base_dir(&self) -> PathBuf {
        self.dir.join("base")
    }

    /// Whether the plan itself says how guests are filtered.
    pub(crate) fn sets_network(&self) -> bool {
        self.host_lines.iter().any(|line| line.starts_with("network:"))
    }

    /// The repositories of the machine types.
    pub(crate) fn repositories(&self) -> Vec<(&str, &str)> {
        let mut all: Vec<_> =
            self.machines.iter().map(|m| split(&m.name)).map(|n| (n.0, n.1)).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// The configuration file's text. `sim_port` is where the simulator listens, `app_id` whom the
    /// daemon acts as.
    ///
    /// `filtered`: whether guests are kept away from everything but the Internet and the simulator.
    pub(crate) fn config(&self, sim_port: u16, app_id: u64, filtered: bool) -> String {
        let mut text = String::new();
        let mut line = |line: std::fmt::Arguments<'_>| {
            // Writing into a text does not fail.
            let _ = writeln!(text, "{line}");
        };
        line(format_args!("host:"));
        line(format_args!("  base_dir: {}", self.base_dir().display()));
        line(format_args!("  ram: {}", self.ram));
        let has = |field: &str| self.host_lines.iter().any(|line| line.starts_with(field));
        if !has("min_free_disk:") {
            line(format_args!("  min_free_disk: 1G"));
        }
        for extra in &self.host_lines {
            line(format_args!("  {extra}"));
        }
        if !has("accel:") {
            line(format_args!("  accel: {}", accel()));
        }
        if !filtered && !self.sets_network() {
            line(format_args!("  network: {{ filter: off }}"));
        }
        line(format_args!("github:"));
        line(format_args!("  app_id: {app_id}"));
        line(format_args!("  jwt_key_file: app-key.pem"));
        line(format_args!("  webhook_secret: {WEBHOOK_SECRET}"));
        line(format_args!("  api_url: http://127.0.0.1:{sim_port}"));
        line(format_args!("  polling_interval: {}", self.polling_interval));
        line(format_args!("repositories:"));
        let mut before = "";
        for (owner, repository) in self.repositories() {
            if std::mem::replace(&mut before, owner) != owner {
                line(format_args!("  {owner}:"));
            }
            line(format_args!("    {repository}:"));
            line(format_args!("      persistence_token: {PERSISTENCE_TOKEN}"));
            line(format_args!("      machines:"));
            let ours = |m: &&MachinePlan| {
                let (o, r, _) = split(&m.name);
                (o, r) == (owner, repository)
            };
            for machine in self.machines.iter().filter(ours) {
                self.machine(machine, sim_port, filtered, &mut line);
            }
        }
        text
    }

    fn machine(
        &self,
        machine: &MachinePlan,
        sim_port: u16,
        filtered: bool,
        line: &mut impl FnMut(std::fmt::Arguments<'_>),
    ) {
        let tarball = runner_tarball();
        line(format_args!("        {}:", split(&machine.name).2));
        line(format_args!("          setup_template:"));
        line(format_args!("            path: {}", self.template.display()));
        line(format_args!("            parameters:"));
        line(format_args!("              RUNNER_VERSION: \"{RUNNER_VERSION}-stand-in\""));
        line(format_args!(
            "              RUNNER_URL: http://10.0.2.2:{sim_port}/_sim/runner/{}",
            tarball_name("x64")
        ));
        line(format_args!("              RUNNER_SHA256: {}", tarball.sha256));
        match &machine.base_machine {
            Some(base) => line(format_args!("          base_machine: {base}")),
            None => line(format_args!("          base_image: {}", self.guest_image.display())),
        }
        let has = |field: &str| machine.lines.iter().any(|l| l.starts_with(&format!("{field}:")));
        for (field, value) in [("cpus", "1"), ("ram", "512M"), ("disk", "4G")] {
            if !has(field) {
                line(format_args!("          {field}: {value}"));
            }
        }
        // The guests' way to the simulator, which listens on the host's loopback.
        if filtered && !has("network") {
            let simulator = std::iter::once(format!("127.0.0.1:{sim_port}"));
            let allow: Vec<String> =
                simulator.chain(machine.allow.clone()).map(|to| format!("{to:?}")).collect();
            line(format_args!("          network: {{ allow: [{}] }}", allow.join(", ")));
        }
        for extra in &machine.lines {
            line(format_args!("          {extra}"));
        }
    }
}

/// Hardware virtualisation where it can be used, emulation elsewhere: said aloud in the
/// configuration, since Forrest never falls back by itself.
fn accel() -> &'static str {
    if forrest_daemon::kvm_is_usable() { "kvm" } else { "tcg" }
}

fn split(name: &str) -> (&str, &str, &str) {
    let mut parts = name.split('/');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(owner), Some(repository), Some(machine)) => (owner, repository, machine),
        _ => panic!("{name:?} is not owner/repository/machine"),
    }
}
