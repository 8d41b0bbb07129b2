//! What is fuzzed: one function for every parser of bytes that strangers send, with what must be true
//! whatever they send.
//!
//! A target panics where it is not. `tests/replay.rs` gives each target its files of `corpus/` in every
//! test run; `engine/` is a package of its own, outside of the workspace, that puts them under libFuzzer
//! (`tools/fuzz`). What the fuzzer finds is fixed, and its input goes into the
//! corpus.

mod disks;
mod github;
mod guests;
mod operator;
mod terminal;

/// One parser, or several that the same bytes can reach.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Also the name of its directory in `corpus/`.
    pub name: &'static str,
    /// Whose bytes these are, and what reads them.
    pub what: &'static str,
    /// The longest input that makes sense, in bytes.
    pub len_max: usize,
    /// Panics where something is wrong.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target {
        name: "webhook",
        what: "anybody's HTTP request: headers, form, JSON, signed or not",
        len_max: 16 << 10,
        run: github::webhook,
    },
    Target {
        name: "signature",
        what: "anybody's X-Hub-Signature-256",
        len_max: 512,
        run: github::signature,
    },
    Target {
        name: "registration",
        what: "GitHub's answer with a JIT configuration",
        len_max: 8 << 10,
        run: github::registration,
    },
    Target {
        name: "answers",
        what: "GitHub's other answers and their headers",
        len_max: 8 << 10,
        run: github::answers,
    },
    Target {
        name: "names",
        what: "GitHub's names of repositories, runners and labels",
        len_max: 512,
        run: github::names,
    },
    Target {
        name: "fat",
        what: "a guest's job-config disk, byte by byte",
        len_max: 32 << 10,
        run: disks::fat,
    },
    Target {
        name: "fat-damage",
        what: "a guest's job-config disk: sound FAT12, FAT16 and FAT32 with some bytes changed",
        len_max: 256,
        run: disks::fat_damage,
    },
    Target {
        name: "qcow2",
        what: "the header of an image that somebody made",
        len_max: 4 << 10,
        run: disks::qcow2,
    },
    Target {
        name: "qmp",
        what: "a QEMU that a guest has broken into",
        len_max: 16 << 10,
        run: guests::qmp,
    },
    Target {
        name: "guest-port",
        what: "a guest's lines on its virtio-serial port",
        len_max: 8 << 10,
        run: guests::guest_port,
    },
    Target {
        name: "shim",
        what: "requests and answers on a shim's socket, and its files",
        len_max: 8 << 10,
        run: guests::shim,
    },
    Target {
        name: "console",
        what: "a guest's console, as `forrest logs` shows it",
        len_max: 8 << 10,
        run: guests::console,
    },
    Target {
        name: "shell",
        what: "a guest's shell, as `forrest shell` shows it",
        len_max: 8 << 10,
        run: guests::shell,
    },
    Target {
        name: "config",
        what: "a configuration file",
        len_max: 8 << 10,
        run: operator::config,
    },
];

/// The target of this name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

/// Takes inputs apart: what is left of them is empty at their end.
pub(crate) struct Cut<'a>(&'a [u8]);

impl<'a> Cut<'a> {
    pub(crate) fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    /// The next byte, 0 at the end.
    pub(crate) fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                *first
            }
            None => 0,
        }
    }

    /// What comes before the next zero byte.
    pub(crate) fn field(&mut self) -> &'a [u8] {
        let end = self.0.iter().position(|byte| *byte == 0).unwrap_or(self.0.len());
        let (field, rest) = self.0.split_at(end);
        self.0 = rest.get(1..).unwrap_or_default();
        field
    }

    /// Everything that is left.
    pub(crate) fn rest(self) -> &'a [u8] {
        self.0
    }
}
