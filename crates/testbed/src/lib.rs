//! A whole Forrest on loopback, for the demo, the end-to-end tests and the benchmarks: the GitHub
//! simulator in this process, the real daemon as a process of its own, a directory for both.
//!
//! Nothing here is a stand-in but the simulator and the runner that it serves.

mod config;
mod daemon;
mod place;
pub mod processes;
pub mod secrets;
mod xfs;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use forrest_core::model::UidRange;
use forrest_core::run::FinishedRun;
use forrest_daemon::control::{Client, Status};
use github_sim::model::{
    Hook, HookContent, HookTarget, JobId, JobSpec, Settings, StepSpec, Workflow,
};
use github_sim::{AppSpec, Sim, SimConfig, WorkflowIds};

pub use config::{MachinePlan, Plan};
pub use daemon::Daemon;
pub use place::{forrest_program, repository_root};
pub use xfs::Xfs;

/// The secret that signs the testbed's webhooks.
pub const WEBHOOK_SECRET: &str = "webhook-secret-of-the-testbed";
/// The persistence token of every repository of the testbed.
pub const PERSISTENCE_TOKEN: &str = "persistence-token-of-the-testbed";
/// The step that asks for the disk to be kept, as `docs/jobs.md` shows it.
pub const KEEP_DISK: &str = "printf '%s' \"$PERSISTENCE_TOKEN\" > /home/runner/config/persist";

/// The simulator and the daemon.
#[derive(Debug)]
pub struct Testbed {
    /// The stand-in for GitHub.
    pub sim: Sim,
    /// The daemon; `None` while it does not run.
    pub daemon: Option<Daemon>,
    plan: Plan,
}

impl Testbed {
    /// Starts the simulator and the daemon.
    ///
    /// # Errors
    /// Whatever keeps them from starting, with the daemon's own words.
    pub async fn start(plan: Plan) -> Result<Self> {
        let mut testbed = Self::prepare(plan).await?;
        testbed.start_daemon().await?;
        Ok(testbed)
    }

    /// Starts the simulator and writes the configuration, without the daemon.
    ///
    /// # Errors
    /// Whatever keeps it from starting.
    pub async fn prepare(plan: Plan) -> Result<Self> {
        std::fs::create_dir_all(plan.base_dir())
            .with_context(|| format!("could not create {}", plan.base_dir().display()))?;
        // Guests reach the host's loopback as 10.0.2.2, so the port has to be known beforehand.
        let port = free_port()?;
        let runner_url = format!("http://10.0.2.2:{port}");
        let settings = Settings { runner_url, ..plan.sim.settings.clone() };
        let listen = SocketAddr::from(([127, 0, 0, 1], port));
        let sim = Sim::start(SimConfig { listen, settings, ..plan.sim.clone() }).await?;
        let hook = Hook {
            target: HookTarget::Unix {
                socket: plan.base_dir().join("webhook.sock"),
                path: "/".to_owned(),
            },
            secret: Some(WEBHOOK_SECRET.to_owned()),
            content: HookContent::Json,
        };
        let app = sim.add_app(AppSpec { hook: Some(hook), ..AppSpec::default() })?;
        for (owner, repository) in plan.repositories() {
            sim.add_repository(owner, repository);
        }
        let testbed = Self { sim, daemon: None, plan };
        write_private(&testbed.plan.dir.join("app-key.pem"), &app.private_key_pem)?;
        let config = testbed.plan.config(port, app.id.0, filtered(&testbed.plan).await);
        write_private(&testbed.config(), &config)?;
        Ok(testbed)
    }

    /// Starts the daemon, or starts it again.
    ///
    /// # Errors
    /// Whatever keeps it from starting, with its own words.
    pub async fn start_daemon(&mut self) -> Result<()> {
        let forrest = self.plan.forrest.clone();
        self.start_daemon_from(&forrest).await
    }

    /// Starts the daemon from another program file, as after an upgrade.
    ///
    /// # Errors
    /// As [`Testbed::start_daemon`].
    pub async fn start_daemon_from(&mut self, forrest: &Path) -> Result<()> {
        let (config, log) = (self.config(), self.log());
        self.daemon = Some(Daemon::start(forrest, &config, &self.plan.base_dir(), &log).await?);
        Ok(())
    }

    /// Stops the daemon in order. Virtual machines go on.
    ///
    /// # Errors
    /// Where it does not stop in time.
    pub async fn stop_daemon(&mut self) -> Result<()> {
        match self.daemon.take() {
            Some(daemon) => daemon.stop().await,
            None => Ok(()),
        }
    }

    /// What the testbed consists of.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The daemon's configuration file.
    pub fn config(&self) -> PathBuf {
        self.plan.dir.join("config.yaml")
    }

    /// The daemon's log.
    pub fn log(&self) -> PathBuf {
        self.plan.dir.join("daemon.log")
    }

    /// A way to the daemon.
    pub fn client(&self) -> Client {
        Client::new(&self.plan.base_dir())
    }

    /// The secrets of this testbed, to be looked for where they must not be.
    ///
    /// # Errors
    /// Where the App's key cannot be read.
    pub fn secrets(&self) -> Result<secrets::Secrets> {
        let key = self.plan.dir.join("app-key.pem");
        let text = std::fs::read_to_string(&key)
            .with_context(|| format!("could not read {}", key.display()))?;
        Ok(secrets::Secrets::new(&text))
    }

    /// Triggers a workflow of one job on a machine type.
    ///
    /// # Errors
    /// Where the simulator does not know the repository.
    pub fn queue(&self, machine: &str, job: QueuedJob<'_>) -> Result<JobId> {
        let ids = self.queue_workflow(machine, job)?;
        ids.jobs.first().map(|(_, id)| *id).context("the workflow has no job")
    }

    fn queue_workflow(&self, machine: &str, job: QueuedJob<'_>) -> Result<WorkflowIds> {
        let (repository, label) =
            machine.rsplit_once('/').context("a machine type has three parts")?;
        let spec = JobSpec {
            name: job.name.to_owned(),
            runs_on: ["self-hosted", "forrest", label].map(str::to_owned).to_vec(),
            steps: job.steps.iter().map(|step| StepSpec::from(*step)).collect(),
            secrets: [("PERSISTENCE_TOKEN".to_owned(), PERSISTENCE_TOKEN.to_owned())].into(),
            timeout_minutes: 360,
            ..JobSpec::default()
        };
        let workflow = Workflow {
            name: "CI".to_owned(),
            event: job.event.to_owned(),
            branch: job.branch.to_owned(),
            sha: None,
            from_fork: job.from_fork,
            jobs: vec![spec],
        };
        Ok(self.sim.queue_workflow(repository, workflow)?)
    }

    /// Waits until the daemon's state satisfies `wanted`.
    ///
    /// # Errors
    /// Where that takes longer than `timeout`, or the daemon goes away, with the end of its log.
    pub async fn wait<T>(
        &self,
        timeout: Duration,
        what: &str,
        mut wanted: impl FnMut(&Status) -> Option<T>,
    ) -> Result<T> {
        let found = async {
            let mut watch = self.client().watch().await?;
            while let Some(status) = watch.next().await? {
                if let Some(found) = wanted(&status) {
                    return Ok(found);
                }
            }
            bail!("the daemon went away")
        };
        match tokio::time::timeout(timeout, found).await {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(error)) => {
                Err(error.context(format!("waiting for {what}:\n{}", daemon::tail(&self.log()))))
            }
            Err(_) => bail!(
                "{what} did not happen within {} s; the daemon's log ends with\n{}",
                timeout.as_secs(),
                daemon::tail(&self.log())
            ),
        }
    }

    /// Waits until the run that had this job is settled.
    ///
    /// # Errors
    /// As [`Testbed::wait`].
    pub async fn finished(&self, job: JobId, timeout: Duration) -> Result<FinishedRun> {
        let wanted = |status: &Status| {
            let of_job = |run: &&FinishedRun| run.job.as_ref().is_some_and(|j| j.id.0 == job.0);
            status.view.finished.iter().find(of_job).cloned()
        };
        self.wait(timeout, &format!("the end of job {job}"), wanted).await
    }
}

/// Whether guests can be filtered, said aloud where not: Forrest never leaves that out by itself.
async fn filtered(plan: &Plan) -> bool {
    if plan.sets_network() {
        return true;
    }
    match forrest_daemon::filter_possible(UidRange::DEFAULT).await {
        Ok(()) => true,
        Err(why) => {
            eprintln!("NOT FILTERED: guests reach whatever this host reaches: {why}");
            false
        }
    }
}

/// A job to be queued.
#[derive(Debug, Clone, Copy)]
pub struct QueuedJob<'a> {
    /// Its name.
    pub name: &'a str,
    /// What triggers it: `push`, `pull_request`, …
    pub event: &'a str,
    /// Its branch.
    pub branch: &'a str,
    /// Whether it is a pull request from a stranger's fork: it gets no secrets then.
    pub from_fork: bool,
    /// Its steps, scripts for bash.
    pub steps: &'a [&'a str],
}

impl<'a> QueuedJob<'a> {
    /// A job of the main branch.
    pub fn push(name: &'a str, steps: &'a [&'a str]) -> Self {
        Self { name, event: "push", branch: "main", from_fork: false, steps }
    }

    /// A job of a pull request from a fork.
    pub fn pull_request(name: &'a str, steps: &'a [&'a str]) -> Self {
        Self { name, event: "pull_request", branch: "patch-1", from_fork: true, steps }
    }
}

/// A machine image of 1 MiB whose boot sector switches interrupts off and stops: a guest that never
/// does anything, for everything that needs QEMU but no operating system.
pub fn hanging_image() -> Vec<u8> {
    let mut disk = vec![0; 1 << 20];
    // cli; hlt; jmp back to the hlt.
    disk[..4].copy_from_slice(&[0xfa, 0xf4, 0xeb, 0xfd]);
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk
}

/// One whose boot sector writes its whole disk, 32 KiB at a time by the firmware's extended write, and
/// then powers off.
pub fn filling_image() -> Vec<u8> {
    /// Where the packet is that tells the firmware what to write.
    const PACKET: usize = 0x100;
    // xor ax, ax; mov ds, ax; loop: mov ax, 0x4300; mov si, packet; int 0x13; jc end;
    // add dword [packet + 8], 64; jmp loop; end: mov dx, 0x604; mov ax, 0x2000; out dx, ax; hlt
    let code = [
        0x31, 0xc0, 0x8e, 0xd8, 0xb8, 0x00, 0x43, 0xbe, 0x00, 0x7d, 0xcd, 0x13, 0x72, 0x08, 0x66,
        0x83, 0x06, 0x08, 0x7d, 0x40, 0xeb, 0xee, 0xba, 0x04, 0x06, 0xb8, 0x00, 0x20, 0xef, 0xf4,
    ];
    let mut disk = hanging_image();
    disk[..code.len()].copy_from_slice(&code);
    // Its size, the number of sectors, where the data comes from (this very code), the first sector.
    let packet = [0x10, 0, 64, 0, 0x00, 0x00, 0xc0, 0x07, 1, 0, 0, 0, 0, 0, 0, 0];
    disk[PACKET..PACKET + packet.len()].copy_from_slice(&packet);
    disk
}

/// What the guest of [`obedient_image`] writes to its console when it minds the power button.
pub const OBEYS: &str = "obeys";

/// One whose boot sector waits for the power button, says so, and powers off when it is pressed.
pub fn obedient_image() -> Vec<u8> {
    // mov dx, 0x602; mov ax, 0x100; out dx, ax; mov dx, 0x3f8
    let mut code = vec![0xba, 0x02, 0x06, 0xb8, 0x00, 0x01, 0xef, 0xba, 0xf8, 0x03];
    for byte in OBEYS.bytes().chain([b'\n']) {
        // mov al, byte; out dx, al
        code.extend([0xb0, byte, 0xee]);
    }
    // mov dx, 0x600; loop: in ax, dx; test ah, 1; jz loop; mov dx, 0x604; mov ax, 0x2000; out dx, ax; hlt
    code.extend([
        0xba, 0x00, 0x06, 0xed, 0xf6, 0xc4, 0x01, 0x74, 0xfa, 0xba, 0x04, 0x06, 0xb8, 0x00, 0x20,
        0xef, 0xf4,
    ]);
    let mut disk = hanging_image();
    disk[..code.len()].copy_from_slice(&code);
    disk
}

/// A TCP port of the loopback that nobody listens on.
///
/// # Errors
/// Where the operating system has none.
pub fn free_port() -> Result<u16> {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).context("no free port")?;
    Ok(listener.local_addr()?.port())
}

fn write_private(path: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let file =
        std::fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("could not write {}", path.display()))
}
