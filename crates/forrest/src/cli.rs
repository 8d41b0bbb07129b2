//! The command line: verbs, options, help texts. What the verbs do is in [`crate::verbs`].

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueHint};
use clap_complete::Shell;
use forrest_core::model::{Generation, MachineTypeName};

/// Where the configuration is when nobody says.
pub const DEFAULT_CONFIG: &str = "/etc/forrest/config.yaml";

const EXIT_STATUS: &str = "\
Exit status:
  0  done; nothing wrong was found
  1  it failed, or problems were found
  2  the command line makes no sense
  3  no daemon answers
  4  no such run, machine type or image, or the name fits several";

const ROOT_EXAMPLES: &str = "\
Examples:
  forrest check config.yaml             is the configuration sound?
  forrest doctor --config config.yaml   is this host? is GitHub?
  forrest run --config config.yaml      serve jobs
  forrest status --watch                what runs, what waits, and for what
  forrest logs -f build                 the console of the newest run of \"build\"
  forrest shell build                   a root shell in its guest

The other commands find the daemon by --base-dir, --config, the variable FORREST_CONFIG, or \
/etc/forrest/config.yaml.";

/// A GitHub Actions runner runner: each job in a virtual machine of its own.
#[derive(Debug, Parser)]
#[command(
    name = "forrest",
    version,
    args_conflicts_with_subcommands = true,
    arg_required_else_help = true,
    after_help = format!("{ROOT_EXAMPLES}\n\n{EXIT_STATUS}"),
    max_term_width = 100,
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub verb: Option<Verb>,
    /// Serve with this configuration file, like `forrest run --config FILE`.
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: Option<PathBuf>,
    #[command(flatten)]
    pub logging: Logging,
}

/// What the daemon says of itself.
#[derive(Debug, Args)]
pub struct Logging {
    /// What to log: error, warn, info, debug or trace, or a filter such as
    /// `info,forrest_github=debug`.
    #[arg(
        long,
        value_name = "FILTER",
        env = "FORREST_LOG",
        hide_env_values = true,
        default_value = "info"
    )]
    pub log: String,
}

/// Which daemon is meant.
#[derive(Debug, Args)]
pub struct Which {
    /// The configuration file of the daemon.
    #[arg(long, value_name = "FILE", env = "FORREST_CONFIG", hide_env_values = true, value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// The daemon's base directory; the configuration is not needed then.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub base_dir: Option<PathBuf>,
}

/// The configuration file that `run` and `doctor` work with.
#[derive(Debug, Args)]
pub struct ConfigFile {
    /// The configuration file.
    #[arg(
        long,
        value_name = "FILE",
        env = "FORREST_CONFIG",
        hide_env_values = true,
        default_value = DEFAULT_CONFIG,
        value_hint = ValueHint::FilePath
    )]
    pub config: PathBuf,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Serve jobs until a signal ends it; virtual machines go on after that.
    #[command(after_help = "\
Examples:
  forrest run --config config.yaml
  forrest config.yaml                   the same
  forrest run --log debug               with /etc/forrest/config.yaml, talkative

The configuration is read again when it changes. Virtual machines outlive the daemon: the next \
start takes them over.")]
    Run {
        #[command(flatten)]
        config: ConfigFile,
        #[command(flatten)]
        logging: Logging,
    },
    /// Check a configuration file, without looking at this host.
    #[command(after_help = "\
Examples:
  forrest check config.yaml
  forrest check --files config.yaml     also the files that it names
  forrest check --json config.yaml      the findings for a program
  forrest check --schema > schema.json  for your editor

Exit status: 0 when it can be used (warnings included), 1 when it cannot.")]
    Check {
        /// The configuration file.
        #[arg(
            value_name = "FILE",
            env = "FORREST_CONFIG",
            hide_env = true,
            default_value = DEFAULT_CONFIG,
            value_hint = ValueHint::FilePath
        )]
        file: PathBuf,
        /// Also look at the files that it names: key, templates, images, shared directories.
        #[arg(long)]
        files: bool,
        /// Print the findings as JSON.
        #[arg(long)]
        json: bool,
        /// Print the JSON schema of the configuration file instead.
        #[arg(long, conflicts_with_all = ["files", "json"])]
        schema: bool,
    },
    /// Find out whether this host, the configuration and GitHub are fit, and what to do if not.
    #[command(after_help = "\
Examples:
  forrest doctor --config config.yaml
  sudo forrest doctor                   with /etc/forrest/config.yaml
  forrest doctor --offline              leave GitHub out

A daemon that runs is asked what it has been given to keep guests inside. Without one, this is about \
whoever runs the command: an ordinary user lacks what the service's unit gives the daemon.

Exit status: 0 when nothing but warnings was found, 1 with problems.")]
    Doctor {
        #[command(flatten)]
        config: ConfigFile,
        /// Leave out what needs a network.
        #[arg(long)]
        offline: bool,
        /// Print the findings as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show machines, jobs and what they wait for, runs, and where the time went.
    #[command(after_help = "\
Examples:
  forrest status
  forrest status --watch
  forrest status --json | jq '.jobs[] | {name: .job.name, waits_for}'
  forrest status --finished 50")]
    Status {
        #[command(flatten)]
        which: Which,
        /// Print everything as JSON; with --watch, one line for each change.
        #[arg(long)]
        json: bool,
        /// Go on, once a second, until interrupted.
        #[arg(long, short)]
        watch: bool,
        /// How many finished runs to show.
        #[arg(long, value_name = "N", default_value_t = 5)]
        finished: usize,
    },
    /// Open the root shell of a run's guest.
    #[command(after_help = "\
Examples:
  forrest shell build                          the live run of this machine type
  forrest shell forrest-build-3kd9             the run whose name begins so
  echo 'dmesg | tail' | forrest shell build    pipes work, too

Ctrl-] ends the session; the guest's shell goes on. One session at a time: a second one waits \
for the first to end. What the guest prints reaches your terminal, except for sequences that \
reach beyond the screen (clipboard, title). RUNNER is a run's name or the beginning of it, with \
or without \"forrest-\", or the name of its machine type.")]
    Shell {
        /// Which run: its name, the beginning of it, or its machine type.
        #[arg(value_name = "RUNNER")]
        runner: String,
        #[command(flatten)]
        which: Which,
        /// With piped input: how long after its end, and without output, the session ends.
        #[arg(long, value_name = "SECONDS", default_value_t = 2.0, value_parser = seconds)]
        wait: f64,
    },
    /// Show the console output of a run's guest.
    #[command(after_help = "\
Examples:
  forrest logs build          the newest run of this machine type, finished or not
  forrest logs -f build       and what follows, until the run ends
  forrest logs --raw build    with escape sequences, from guests that you trust

The beginning (1 MiB) and the end (at least 2 MiB) of the output are kept; a line says how much \
is missing in between.")]
    Logs {
        /// Which run: its name, the beginning of it, or its machine type.
        #[arg(value_name = "RUNNER")]
        runner: String,
        #[command(flatten)]
        which: Which,
        /// Go on until the run ends.
        #[arg(long, short)]
        follow: bool,
        /// Do not neutralise escape sequences: the guest controls your terminal then.
        #[arg(long)]
        raw: bool,
    },
    /// Show machine images and where they come from; go back to an earlier one.
    Images {
        #[command(subcommand)]
        verb: ImagesVerb,
    },
    /// Show the saved guests that runs are restored from; have them built or removed.
    Snapshots {
        #[command(subcommand)]
        verb: SnapshotsVerb,
    },
    /// End a run, with the job that it may have.
    #[command(after_help = "\
Examples:
  forrest stop forrest-build-3kd9
  forrest stop --yes build

This kills the virtual machine at once. A job that runs in it fails on GitHub, and its disk is \
removed. Forrest never does this by itself. To stop starting new runs, use `forrest drain`.")]
    Stop {
        /// Which run: its name, the beginning of it, or its machine type.
        #[arg(value_name = "RUNNER")]
        runner: String,
        #[command(flatten)]
        which: Which,
        /// Do not ask.
        #[arg(long, short)]
        yes: bool,
    },
    /// Start no new runs; those that run go on. Until `forrest resume` or a restart.
    Drain {
        #[command(flatten)]
        which: Which,
    },
    /// Start runs again after `forrest drain`.
    Resume {
        #[command(flatten)]
        which: Which,
    },
    /// Print a completion script for a shell.
    #[command(after_help = "\
Examples:
  forrest completions bash > /etc/bash_completion.d/forrest
  forrest completions zsh > ~/.zfunc/_forrest
  forrest completions fish > ~/.config/fish/completions/forrest.fish")]
    Completions {
        /// Which shell.
        shell: Shell,
    },
    /// Print the manual page, or write one for each command.
    #[command(after_help = "\
Examples:
  forrest man | man -l -
  forrest man --dir /usr/local/share/man/man1")]
    Man {
        /// Write a page for each command to this directory.
        #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
        dir: Option<PathBuf>,
    },
}

/// What to do with images.
#[derive(Debug, Subcommand)]
pub enum ImagesVerb {
    /// List the machine types that have images.
    List {
        #[command(flatten)]
        which: Which,
        /// Print the list as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show the generations of a machine type's image: parent, job, commit, time, size.
    #[command(after_help = "\
Examples:
  forrest images history acme/firmware/build
  forrest images history build --json")]
    History {
        /// Which machine type: owner/repository/machine, or the machine's own name where that is enough.
        #[arg(value_name = "MACHINE")]
        machine: String,
        #[command(flatten)]
        which: Which,
        /// Print the generations as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Let new runs start from an earlier generation again.
    #[command(after_help = "\
Examples:
  forrest images roll-back acme/firmware/build    the one before the current one
  forrest images roll-back build 7                this one; a later one will do, too

Nothing is removed: runs that are under way keep their disks, later generations stay and can be \
gone back to, and the next job that persists its disk makes a new generation. Works with and \
without a running daemon, as the user that the images belong to.")]
    RollBack {
        /// Which machine type: owner/repository/machine, or the machine's own name where that is enough.
        #[arg(value_name = "MACHINE")]
        machine: String,
        /// Which generation, as `forrest images history` numbers them; the one before the current one
        /// where it is left out.
        #[arg(value_name = "GENERATION", value_parser = generation)]
        generation: Option<Generation>,
        #[command(flatten)]
        which: Which,
        /// Do not ask.
        #[arg(long, short)]
        yes: bool,
    },
}

/// What to do with snapshots.
#[derive(Debug, Subcommand)]
pub enum SnapshotsVerb {
    /// List the machine types that are to have a snapshot, and how that goes.
    List {
        #[command(flatten)]
        which: Which,
        /// Print the list as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Have a snapshot built, again where there is one.
    #[command(after_help = "\
Examples:
  forrest snapshots build acme/firmware/build
  forrest snapshots build build

Forrest builds snapshots by itself; this is for one that was removed, whose next attempt is far away, or \
that is not to be trusted any more. The machine type's runs start cold until it is there.")]
    Build {
        /// Which machine type: owner/repository/machine, or the machine's own name where that is enough.
        #[arg(value_name = "MACHINE")]
        machine: String,
        #[command(flatten)]
        which: Which,
    },
    /// Have a snapshot removed: runs start cold then.
    #[command(after_help = "\
Examples:
  forrest snapshots remove build

Runs that were restored from it go on. It is built again when its image changes, when the daemon starts \
again, or by `forrest snapshots build`.")]
    Remove {
        /// Which machine type: owner/repository/machine, or the machine's own name where that is enough.
        #[arg(value_name = "MACHINE")]
        machine: String,
        #[command(flatten)]
        which: Which,
    },
}

fn generation(text: &str) -> Result<Generation, String> {
    match text.parse() {
        Ok(number) if number > 0 => Ok(Generation(number)),
        _ => Err("generations are numbered from 1".to_owned()),
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=86_400.0).contains(&seconds) => Ok(seconds),
        _ => Err("write a number of seconds from 0 to 86400".to_owned()),
    }
}

/// Whether a text names this machine type: in full, or by its own name.
pub fn names_machine(text: &str, machine: &MachineTypeName) -> bool {
    text == machine.machine() || text == machine.to_string()
}
