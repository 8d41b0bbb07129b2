//! The field tables: every field of the configuration with its type, range, default and meaning.

use forrest_core::model::Bytes;
use forrest_core::policy::POLLING_INTERVAL_MIN;

use crate::fields::{Field, Kind, Object, Presence, Reload};

use Presence::{Absent, Default, Required};
use Reload::{Live, NextRun, Restart};

const fn field(
    name: &'static str,
    kind: Kind,
    presence: Presence,
    reload: Reload,
    doc: &'static str,
) -> Field {
    Field { name, kind, presence, reload, doc }
}

const SECONDS_PER_DAY: u64 = 24 * 60 * 60;

/// The most virtual CPUs of one guest: what QEMU's q35 machine takes without an IOMMU.
pub const CPUS_MAX: u32 = 255;

/// The most virtual CPUs that all guests together can be allowed: more than hosts have.
const HOST_CPUS_MAX: u32 = 4096;

/// The most shared directories of one guest: each takes a PCI slot.
pub const SHARED_MAX: usize = 8;

/// The shortest polling interval, in seconds.
const POLLING_INTERVAL_MIN_S: u64 = POLLING_INTERVAL_MIN.as_secs();

/// Longer lists are mistakes; the egress filter and QEMU's arguments grow with them.
const LIST_MAX: usize = 256;

const CPUS: Kind = Kind::Integer { min: 1, max: CPUS_MAX };
const HOST_CPUS: Kind = Kind::Integer { min: 1, max: HOST_CPUS_MAX };
const COUNT: Kind = Kind::Integer { min: 1, max: 1_000_000 };
const FILTER: Kind = Kind::OneOf(&["on", "off"]);

const fn duration(min_s: u64, max_s: u64) -> Kind {
    Kind::Duration { min_s, max_s }
}

const fn ram(min: Bytes) -> Kind {
    Kind::Size { min, max: Bytes::gib(64 << 10), step: Bytes::mib(1) }
}

/// The whole file.
pub(crate) static ROOT: Object = Object {
    what: "the configuration",
    fields: &[
        field("host", Kind::Object(&HOST), Required, Live, "The computer that runs the machines."),
        field("github", Kind::Object(&GITHUB), Required, Live, "How to reach GitHub."),
        field(
            "repositories",
            Kind::Map("owner", &Kind::Map("repository", &Kind::Object(&REPOSITORY))),
            Required,
            Live,
            "Whose jobs run here: machine types by owner and repository.",
        ),
    ],
};

/// `host`
pub(crate) static HOST: Object = Object {
    what: "the section host",
    fields: &[
        field(
            "base_dir",
            Kind::Path,
            Required,
            Restart,
            "Where images, runs, snapshots and sockets live.",
        ),
        field("ram", ram(Bytes::mib(64)), Required, Live, "RAM that may be handed to machines."),
        field(
            "accel",
            Kind::OneOf(&["auto", "kvm", "tcg"]),
            Default("auto"),
            Restart,
            "Hardware virtualisation (kvm) or emulation (tcg). auto is kvm: where that is unusable, Forrest \
             does not start.",
        ),
        field(
            "cpus",
            HOST_CPUS,
            Absent("no limit"),
            Live,
            "Virtual CPUs that may be in use at a time.",
        ),
        field(
            "min_free_disk",
            Kind::Size { min: Bytes(0), max: Bytes::gib(1 << 20), step: Bytes(1) },
            Default("5G"),
            Live,
            "Disk space below base_dir that runs must leave free.",
        ),
        field(
            "webhook_listen",
            Kind::Text { what: "\"unix\" or ADDR:PORT" },
            Default("unix"),
            Restart,
            "Where webhooks come in: unix is the socket <base_dir>/webhook.sock; or ADDR:PORT.",
        ),
        field(
            "webhook_group",
            Kind::Text { what: "a group's name or number" },
            Absent("Forrest's own group"),
            Restart,
            "The group that may connect to the socket webhook.sock: one for the reverse proxy only.",
        ),
        field(
            "max_overtake",
            duration(0, 7 * SECONDS_PER_DAY),
            Default("10m"),
            Live,
            "How long a waiting job can be overtaken by smaller ones.",
        ),
        field(
            "keep_runs",
            Kind::Integer { min: 0, max: 100_000 },
            Default("200"),
            Live,
            "How many finished runs' logs and records are kept, the newest ones.",
        ),
        field(
            "keep_runs_for",
            duration(0, 3650 * SECONDS_PER_DAY),
            Default("30d"),
            Live,
            "How long they are kept.",
        ),
        field(
            "qemu",
            Kind::Text { what: "a program" },
            Absent("qemu-system-x86_64 from PATH"),
            Restart,
            "The QEMU program: an absolute path, or a name that is looked up in PATH.",
        ),
        field(
            "vm_uids",
            Kind::Text { what: "FIRST-LAST" },
            Default("1900000000-1900000999"),
            Restart,
            "The users that machines run as, one each, and the group of them all: the first number. \
             Nobody and nothing else may have them.",
        ),
        field(
            "network",
            Kind::Object(&HOST_NETWORK),
            Absent("filter is on"),
            NextRun,
            "What holds for every machine's network.",
        ),
    ],
};

/// `host.network`
pub(crate) static HOST_NETWORK: Object = Object {
    what: "the section host.network",
    fields: &[field(
        "filter",
        FILTER,
        Default("on"),
        NextRun,
        "Whether guests are kept away from the host and from private networks, where the machine \
         type does not say.",
    )],
};

/// `github`
pub(crate) static GITHUB: Object = Object {
    what: "the section github",
    fields: &[
        field(
            "app_id",
            Kind::Text { what: "the App's id" },
            Required,
            Restart,
            "The GitHub App's id (a number) or client id.",
        ),
        field(
            "jwt_key_file",
            Kind::Path,
            Required,
            Restart,
            "The App's private key, a PEM file as downloaded from GitHub.",
        ),
        field(
            "webhook_secret",
            Kind::Secret,
            Absent("webhook_secret_file must be there"),
            Live,
            "The webhook secret that was given to the GitHub App.",
        ),
        field(
            "webhook_secret_file",
            Kind::Path,
            Absent("webhook_secret must be there"),
            Live,
            "A file with the webhook secret.",
        ),
        field(
            "polling_interval",
            duration(POLLING_INTERVAL_MIN_S, 7 * SECONDS_PER_DAY),
            Default("15m"),
            Live,
            "How often GitHub is asked for jobs whose webhook never came.",
        ),
        field(
            "api_url",
            Kind::Text { what: "an https URL" },
            Default("https://api.github.com"),
            Restart,
            "The API's URL, for GitHub Enterprise Server. Its path is kept.",
        ),
    ],
};

/// `repositories.<owner>.<repository>`
pub(crate) static REPOSITORY: Object = Object {
    what: "the repository",
    fields: &[
        field(
            "persistence_token",
            Kind::Secret,
            Absent("no job can change a machine image"),
            NextRun,
            "What a job must leave behind for its disk to become the machine image.",
        ),
        field(
            "persistence_token_file",
            Kind::Path,
            Absent("no job can change a machine image"),
            NextRun,
            "A file with the persistence token.",
        ),
        field("max_runs", COUNT, Absent("no limit"), Live, "The most runs at a time."),
        field(
            "machines",
            Kind::Map("machine", &Kind::Object(&MACHINE)),
            Required,
            Live,
            "Machine types by name; a job asks for one in runs-on.",
        ),
    ],
};

/// `repositories.<owner>.<repository>.machines.<machine>`
pub(crate) static MACHINE: Object = Object {
    what: "the machine type",
    fields: &[
        field(
            "setup_template",
            Kind::Object(&TEMPLATE),
            Required,
            NextRun,
            "What sets the guest up and starts the runner.",
        ),
        field(
            "base_image",
            Kind::Path,
            Absent("base_machine must be there"),
            NextRun,
            "The operating system image that runs start from, raw or qcow2.",
        ),
        field(
            "base_machine",
            Kind::Text { what: "owner/repository/machine" },
            Absent("base_image must be there"),
            NextRun,
            "The machine type whose image runs start from, owner/repository/machine. Wins over \
             base_image.",
        ),
        field(
            "use_base",
            Kind::OneOf(&["if_newer", "always", "never"]),
            Default("if_newer"),
            NextRun,
            "When a run starts from the base: if_newer than the machine image, always, or never \
             once there is a machine image.",
        ),
        field("cpus", CPUS, Required, NextRun, "Virtual CPUs of the guest."),
        field("ram", ram(Bytes::mib(64)), Required, NextRun, "RAM of the guest."),
        field(
            "disk",
            Kind::Size { min: Bytes::mib(16), max: Bytes::gib(1 << 20), step: Bytes::mib(1) },
            Required,
            NextRun,
            "The size that the disk is grown to.",
        ),
        field(
            "shared",
            Kind::List(&Kind::Object(&SHARED), SHARED_MAX),
            Absent("nothing is shared"),
            NextRun,
            "Host directories that the guest can mount (9p).",
        ),
        field(
            "snapshot",
            Kind::Bool,
            Default("false"),
            NextRun,
            "Whether runs start from a snapshot of the booted guest.",
        ),
        field(
            "boot_timeout",
            duration(1, SECONDS_PER_DAY),
            Default("10m"),
            NextRun,
            "How long the guest may take until it is ready.",
        ),
        field(
            "idle_timeout",
            duration(1, SECONDS_PER_DAY),
            Default("5m"),
            NextRun,
            "How long a runner waits for a job before it is taken away again.",
        ),
        field(
            "job_timeout",
            duration(1, 30 * SECONDS_PER_DAY),
            Absent("as long as GitHub lets it"),
            NextRun,
            "How long a job may run before its machine is stopped.",
        ),
        field(
            "keep_generations",
            Kind::Integer { min: 1, max: 1000 },
            Default("3"),
            Live,
            "How many machine images are kept, the current one included.",
        ),
        field(
            "keep_generations_for",
            duration(0, 3650 * SECONDS_PER_DAY),
            Default("90d"),
            Live,
            "How long a machine image is kept after another one has replaced it.",
        ),
        field("max_runs", COUNT, Absent("no limit"), Live, "The most runs at a time."),
        field(
            "labels",
            Kind::List(&Kind::Text { what: "a label" }, 64),
            Absent("none"),
            NextRun,
            "Labels that jobs may ask for in addition.",
        ),
        field(
            "persist_from",
            Kind::List(&Kind::Text { what: "an event's name" }, 64),
            Absent("every event, but no pull request from a fork"),
            NextRun,
            "Events whose jobs may change the machine image, if they have the token.",
        ),
        field(
            "network",
            Kind::Object(&NETWORK),
            Absent("as the host's filter says, with no exception"),
            NextRun,
            "Which destinations the guest can reach.",
        ),
    ],
};

/// `….setup_template`
pub(crate) static TEMPLATE: Object = Object {
    what: "the setup template",
    fields: &[
        field(
            "path",
            Kind::Path,
            Required,
            NextRun,
            "A directory with cloud-init/ and job-config/.",
        ),
        field(
            "parameters",
            Kind::Parameters,
            Absent("none"),
            NextRun,
            "What <NAME> is replaced by in the template's files.",
        ),
    ],
};

/// `….shared[]`
pub(crate) static SHARED: Object = Object {
    what: "the shared directory",
    fields: &[
        field(
            "path",
            Kind::Text { what: "an absolute path" },
            Required,
            NextRun,
            "The directory on the host, an absolute path.",
        ),
        field(
            "tag",
            Kind::Text { what: "a mount tag" },
            Required,
            NextRun,
            "The name that the guest mounts it by.",
        ),
        field(
            "writable",
            Kind::Bool,
            Default("false"),
            NextRun,
            "Whether the guest may change it.",
        ),
    ],
};

/// `….network`
pub(crate) static NETWORK: Object = Object {
    what: "the section network",
    fields: &[
        field(
            "filter",
            FILTER,
            Absent("host.network.filter"),
            NextRun,
            "Whether guests are kept away from the host and from private networks.",
        ),
        field(
            "allow",
            Kind::List(&Kind::Text { what: "ADDR[/LEN][:PORT]" }, LIST_MAX),
            Absent("no exceptions"),
            NextRun,
            "Destinations that the filter lets through, ADDR[/LEN][:PORT].",
        ),
    ],
};
