//! The simulator as a program of its own.

use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use github_sim::model::{Hook, HookContent, HookTarget, Settings};
use github_sim::{AppKey, AppSpec, HELP, Sim, SimConfig, SimError};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

/// A stand-in for GitHub: REST API, webhooks, job assignment, and a stand-in runner.
#[derive(Debug, Parser)]
#[command(version, about, after_long_help = HELP)]
struct Options {
    /// Where to listen; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0", value_name = "ADDR:PORT")]
    listen: SocketAddr,
    /// Where webhooks are sent: http://HOST:PORT/PATH or unix:SOCKET[:/PATH].
    #[arg(long, value_name = "URL")]
    webhook_url: Option<HookTarget>,
    /// The secret that signs webhooks.
    #[arg(long, value_name = "SECRET", requires = "webhook_url")]
    webhook_secret: Option<String>,
    /// Sends webhooks form-encoded instead of as JSON.
    #[arg(long)]
    webhook_form: bool,
    /// How many webhooks are under way at a time; with 1 they arrive in order.
    #[arg(long, default_value_t = 1, value_name = "N")]
    webhook_concurrency: usize,
    /// A repository to make; may be given several times.
    #[arg(long, value_name = "OWNER/NAME")]
    repo: Vec<String>,
    /// The App's private key; by default a new one is made.
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Where the App's private key is written, for the client; readable by its owner only.
    #[arg(long, value_name = "FILE")]
    key_out: Option<PathBuf>,
    /// Where runners connect to, if it differs from --listen (http://10.0.2.2:0 from a VM with
    /// user-mode networking; port 0 stands for the simulator's own).
    #[arg(long, value_name = "URL")]
    runner_url: Option<String>,
    /// What chance is made of.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// After how many seconds a job fails whose runner lost its connection.
    #[arg(long, default_value_t = 900, value_name = "SECONDS")]
    lost_timeout: u64,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into()),
        )
        .with_writer(std::io::stderr)
        .init();
    match run(Options::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("github-sim: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: Options) -> Result<(), SimError> {
    let settings = Settings {
        runner_url: options.runner_url.unwrap_or_default(),
        lost_timeout: Duration::from_secs(options.lost_timeout),
        ..Settings::default()
    };
    let sim = Sim::start(SimConfig {
        listen: options.listen,
        seed: options.seed,
        webhook_concurrency: options.webhook_concurrency,
        settings,
    })
    .await?;
    let key = match &options.key {
        Some(path) => AppKey::from_pem(&std::fs::read_to_string(path).map_err(file(path))?)?,
        None => AppKey::generate()?,
    };
    let content = if options.webhook_form { HookContent::Form } else { HookContent::Json };
    let secret = options.webhook_secret;
    let hook = options.webhook_url.map(|target| Hook { target, secret, content });
    let app = sim.add_app(AppSpec { key: Some(key), hook, ..AppSpec::default() })?;
    for repo in &options.repo {
        let (owner, name) = repo
            .split_once('/')
            .filter(|(owner, name)| !owner.is_empty() && !name.is_empty() && !name.contains('/'))
            .ok_or_else(|| SimError::UnknownRepository(repo.clone()))?;
        sim.add_repository(owner, name);
    }
    if let Some(path) = &options.key_out {
        write_key(path, &app.private_key_pem).map_err(file(path))?;
    }
    // One line for scripts: when it is there, everything above has happened.
    println!(
        "{}",
        json!({
            "url": sim.url(),
            "app_id": app.id,
            "client_id": app.client_id,
            "repositories": options.repo,
            "key_file": options.key_out,
        })
    );
    until_stopped().await;
    Ok(())
}

fn file(path: &Path) -> impl Fn(std::io::Error) -> SimError {
    let path = path.to_owned();
    move |source| SimError::File { path: path.clone(), source }
}

fn write_key(path: &Path, pem: &str) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(path)?.write_all(pem.as_bytes())
}

async fn until_stopped() {
    let (Ok(mut term), Ok(mut int)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}
