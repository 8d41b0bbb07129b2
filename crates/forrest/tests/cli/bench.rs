//! What the tests stand on: the program, a base directory with runs in it, a stand-in for the daemon.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::mpsc;

use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;

/// The program with a plain environment.
pub fn forrest() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forrest"));
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.env("COLUMNS", "80");
    command
}

/// Runs the program to its end.
pub fn run(args: &[&str]) -> Output {
    forrest().args(args).output().expect("the program starts")
}

/// Exit status, standard output and standard error as one text.
pub fn shown(output: &Output) -> String {
    format!(
        "exit status {}\n--- stdout\n{}--- stderr\n{}",
        output.status.code().unwrap_or(-1),
        stdout(output),
        stderr(output)
    )
}

/// Standard output.
pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Standard error.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A base directory.
pub struct Base {
    dir: TempDir,
    path: PathBuf,
}

impl Base {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("base");
        fs::create_dir(&path).expect("the base directory");
        Self { dir, path }
    }

    /// One whose path is longer than a socket's address may be.
    pub fn with_long_path() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a".repeat(100)).join("b".repeat(100));
        fs::create_dir_all(&path).expect("the base directory");
        Self { dir, path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn arg(&self) -> &str {
        self.path.to_str().expect("UTF-8")
    }

    /// The path in messages varies.
    pub fn without_path(&self, text: &str) -> String {
        text.replace(self.dir.path().to_str().expect("UTF-8"), "/DIR")
    }

    /// A run's directory.
    pub fn run(&self, machine: &str, runner: &str) -> Run {
        let path = self.path.join("runs").join(machine).join(runner);
        fs::create_dir_all(&path).expect("a run directory");
        Run { path, runner: runner.to_owned() }
    }
}

/// A run's directory.
pub struct Run {
    pub path: PathBuf,
    pub runner: String,
}

impl Run {
    /// Holds the lock that a live supervisor holds, until it is dropped.
    pub fn live(&self) -> File {
        let lock = self.path.join("shim.lock");
        fs::write(&lock, "started\n").expect("the lock file");
        let lock = File::open(lock).expect("the lock file");
        flock(&lock, FlockOperation::LockExclusive).expect("the lock");
        lock
    }

    /// Records how the virtual machine ended.
    pub fn over(&self, reason: &str, detail: &str) {
        let outcome = serde_json::json!({
            "format": 1, "runner": self.runner, "boot": "cold", "reason": reason,
            "requested": false, "detail": detail, "qemu_exit": {"status": 0},
            "times": {"shim_started_at": 1, "ended_at": 2},
        });
        fs::write(self.path.join("outcome.json"), outcome.to_string()).expect("the outcome");
    }

    pub fn console(&self, bytes: &[u8]) {
        let mut file = File::options()
            .create(true)
            .append(true)
            .open(self.path.join("log.txt"))
            .expect("the console log");
        file.write_all(bytes).expect("written");
    }
}

/// Listens on a socket, however long its path is.
pub fn listen(path: &Path) -> UnixListener {
    let dir = File::open(path.parent().expect("a parent")).expect("its directory");
    let name = path.file_name().expect("a name");
    let fd = std::os::fd::AsRawFd::as_raw_fd(&dir);
    UnixListener::bind(Path::new("/proc/self/fd").join(fd.to_string()).join(name))
        .expect("a socket")
}

/// A stand-in for the daemon: answers each request on the control socket as `answer` says, with status
/// and body, and tells which requests came.
pub fn daemon(
    base: &Base,
    answer: impl Fn(&str) -> (u16, String) + Send + 'static,
) -> mpsc::Receiver<String> {
    let listener = listen(&base.path().join("control.sock"));
    let (tell, requests) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let mut reader = BufReader::new(stream.try_clone().expect("a second handle"));
            let mut request = String::new();
            reader.read_line(&mut request).expect("a request");
            let mut header = String::new();
            while reader.read_line(&mut header).expect("a header") > 2 {
                header.clear();
            }
            let request = request.trim_end_matches(" HTTP/1.1\r\n").to_owned();
            let (status, body) = answer(&request);
            let head = format!(
                "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                body.len()
            );
            // The program may have gone by itself.
            let _ = stream.write_all(format!("{head}{body}").as_bytes());
            let _ = tell.send(request);
        }
    });
    requests
}
