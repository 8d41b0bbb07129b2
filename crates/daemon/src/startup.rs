//! Everything wired together: from a configuration file to a daemon that serves.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use forrest_config::{Accel as WantedAccel, Config, WebhookListen};
use forrest_core::model::Timestamp;
use forrest_github::webhook::Verifier;
use forrest_github::{GitHub, GitHubConfig, GitHubError};
use forrest_images::Store;
use forrest_vm::host::{QEMU_PROGRAM, boot_id, cpu_model, find_qemu, probe_kvm, probe_qemu};
use forrest_vm::spec::Accel;
use secrecy::SecretString;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::clock::now;
use crate::containment::{Containment, log_unfiltered};
use crate::control::{self, DaemonStatus};
use crate::driver::{Driver, INBOX_MAX};
use crate::error::DaemonError;
use crate::executors::{Executors, Host, accel_name};
use crate::ingress::{self, Listener, Strangers, Webhooks};
use crate::reload::Reload;
use crate::{adoption, groups, measure, systemd};

/// Mode of the webhook socket: the reverse proxy's group may connect.
const WEBHOOK_SOCKET_MODE: u32 = 0o660;
/// Mode of the control socket: who can connect can stop runs.
const CONTROL_SOCKET_MODE: u32 = 0o600;
/// The largest private key that is read, in bytes.
const KEY_LEN_MAX: u64 = 64 << 10;

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// The configuration file.
    pub config: PathBuf,
    /// The program that supervises virtual machines: Forrest itself, called as `forrest shim …`.
    pub supervisor: PathBuf,
}

/// Serves until a signal (SIGTERM or SIGINT) ends it. Virtual machines go on after that.
///
/// # Errors
/// [`DaemonError`] where it cannot start; once it serves, nothing but a signal ends it.
pub async fn run(options: Options) -> Result<(), DaemonError> {
    let started_at = now();
    if let Err(error) = forrest_vm::dumps::forbid() {
        tracing::warn!(%error, "core dumps could not be forbidden; one would hold secrets");
    }
    let loaded = Config::load(&options.config)?;
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    let config = Arc::new(loaded.config);
    let host = host(&config, options.supervisor.clone()).await?;
    for missing in host.containment.missing() {
        tracing::warn!("{missing}");
    }
    log_unfiltered(&config);
    let store = Store::open(config.host.base_dir.resolve())?;
    // Blocking work may go on for some time after the end of this function: no other daemon may begin before
    // the end of the process.
    std::mem::forget(lock(store.base_dir())?);
    let github = github(&config)?;
    let (inbox, messages) = mpsc::channel(INBOX_MAX);

    let webhook_listener = webhook_listener(&config, store.base_dir()).await?;
    let control_path = control::socket(store.base_dir());
    let control_listener = Listener::unix(&control_path, CONTROL_SOCKET_MODE, None)
        .map_err(|source| DaemonError::ListenUnix { path: control_path, source })?;
    let status = daemon_status(&options, &store, &host, &webhook_listener, started_at);

    let (verifier, verifiers) = watch::channel(Arc::new(verifier(&config)?));
    let executors = Executors::new(store.clone(), github, inbox.clone(), host, &config);
    let (changed, changes) = watch::channel(());
    let mut driver =
        Driver::new(Arc::clone(&config), seed(), executors.clone(), messages, verifier, changed);
    if let Some(event) = measure::once(&executors).await {
        driver.tell(event);
    }
    executors.clean_up_snapshots().await;
    for run in adoption::adopted(&store) {
        driver.adopt(run);
    }
    driver.start();

    let _reload = Reload::start(&options.config, Arc::clone(&config), inbox.clone())?;
    tokio::spawn(measure::measure(executors, inbox.clone()));
    tracing::info!("Forrest {} serves webhooks on {webhook_listener}", env!("CARGO_PKG_VERSION"));
    let webhooks = Webhooks::new(inbox.clone(), verifiers);
    let webhooks = ingress::router(webhooks);
    tokio::spawn(ingress::serve(webhook_listener, webhooks, Strangers::Expected));
    let control = control::router(inbox, changes, status, store);
    tokio::spawn(ingress::serve(control_listener, control, Strangers::KeptOut));
    systemd::ready("serving");
    driver.run(stop_signal()?).await;
    Ok(())
}

/// What this host offers, or why virtual machines cannot run on it as configured.
async fn host(config: &Config, supervisor: PathBuf) -> Result<Host, DaemonError> {
    let program = match &config.host.qemu {
        Some(program) => program.clone(),
        None => find_qemu().ok_or_else(|| {
            DaemonError::Host(format!(
                "{QEMU_PROGRAM} is not in PATH: install QEMU (Debian: qemu-system-x86), or name the \
                 program in `host.qemu`"
            ))
        })?,
    };
    let qemu = probe_qemu(&program).await?;
    qemu.usable().map_err(DaemonError::Host)?;
    let accel = match config.host.accel {
        WantedAccel::Tcg => Accel::Tcg,
        WantedAccel::Kvm | WantedAccel::Auto => {
            let kvm = probe_kvm();
            if !kvm.usable {
                return Err(DaemonError::Host(format!(
                    "this host has no usable hardware virtualisation: {}. Mend that, or set \
                     `host.accel: tcg` to have guests emulated, many times slower (`forrest doctor` \
                     says more)",
                    kvm.reason
                )));
            }
            Accel::Kvm
        }
    };
    let boot_id = boot_id();
    let snapshots = qemu.snapshots().and(boot_id.as_ref().map(drop).ok_or_else(|| {
        "the host's kernel does not tell when it was booted, so no snapshot can be trusted; jobs \
         start cold"
            .to_owned()
    }));
    Ok(Host {
        version: qemu.version.to_string(),
        snapshots,
        package: qemu.package,
        qemu: qemu.program,
        accel,
        cpu_model: cpu_model(),
        boot_id: boot_id.unwrap_or_default(),
        supervisor,
        containment: Containment::find(config.host.vm_uids).await,
        never_shared: config.never_shared(),
    })
}

fn github(config: &Config) -> Result<GitHub, DaemonError> {
    let path = config.github.jwt_key_file.resolve();
    let read = |path: &Path| {
        let mut text = String::new();
        File::open(path)?.take(KEY_LEN_MAX).read_to_string(&mut text)?;
        Ok(SecretString::from(text))
    };
    let key_pem =
        read(path).map_err(|source| DaemonError::Key { path: path.to_owned(), source })?;
    Ok(GitHub::new(GitHubConfig {
        api_url: config.github.api_url.clone(),
        app_id: config.github.app_id.clone(),
        key_pem,
        user_agent: concat!("forrest/", env!("CARGO_PKG_VERSION")).to_owned(),
        changes_per_minute: GitHubConfig::CHANGES_PER_MINUTE,
    })?)
}

/// What webhooks are verified with under this configuration.
///
/// # Errors
/// Where the secret cannot be used.
pub(crate) fn verifier(config: &Config) -> Result<Verifier, GitHubError> {
    Verifier::new(&[SecretString::from(config.github.webhook_secret.expose())])
}

async fn webhook_listener(config: &Config, base_dir: &Path) -> Result<Listener, DaemonError> {
    match &config.host.webhook_listen {
        WebhookListen::Unix => {
            let path = base_dir.join("webhook.sock");
            let group = config.host.webhook_group.as_deref();
            let group = group.map(groups::number).transpose();
            group
                .and_then(|group| Listener::unix(&path, WEBHOOK_SOCKET_MODE, group))
                .map_err(|source| DaemonError::ListenUnix { path, source })
        }
        WebhookListen::Tcp(address) => Listener::tcp(*address)
            .await
            .map_err(|source| DaemonError::ListenTcp { address: *address, source }),
    }
}

fn daemon_status(
    options: &Options,
    store: &Store,
    host: &Host,
    webhooks: &Listener,
    started_at: Timestamp,
) -> DaemonStatus {
    DaemonStatus {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        started_at,
        config: std::path::absolute(&options.config).unwrap_or_else(|_| options.config.clone()),
        base_dir: store.base_dir().to_owned(),
        webhooks: webhooks.to_string(),
        fork: store.driver().to_string(),
        accel: accel_name(host.accel).to_owned(),
        qemu: host.version.clone(),
        uncontained: host.containment.missing(),
    }
}

/// Keeps a second daemon away from the base directory for as long as it is kept.
fn lock(base_dir: &Path) -> Result<File, DaemonError> {
    let path = base_dir.join("daemon.lock");
    let error = |source| DaemonError::Lock { path: path.clone(), source };
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(error)?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut pid = String::new();
            // Only a hint for people: whatever can be read will do.
            let _ = file.take(32).read_to_string(&mut pid);
            let pid = pid.trim().to_owned();
            return Err(DaemonError::AlreadyRunning { base_dir: base_dir.to_owned(), pid });
        }
        Err(source) => return Err(error(source.into())),
    }
    file.set_len(0).map_err(error)?;
    writeln!(file, "{}", std::process::id()).map_err(error)?;
    Ok(file)
}

/// Different at each start, so that runners' names differ from those of earlier starts.
fn seed() -> u64 {
    let mut bytes = [0; 8];
    let random = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    match random {
        Ok(()) => u64::from_le_bytes(bytes),
        Err(_) => now().0 ^ u64::from(std::process::id()).rotate_left(32),
    }
}

fn stop_signal() -> Result<impl Future<Output = ()>, DaemonError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(DaemonError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(DaemonError::Signals)?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
