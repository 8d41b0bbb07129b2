//! `forrest shell`, on a real pseudo-terminal, with a stand-in for the guest.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use crate::bench::{Base, Run, forrest, listen, run, shown, stderr};

const RUNNER: &str = "forrest-build-3kd92mfa81xq7p0z";
/// Longer than any step takes, short of a hang.
const PATIENCE: Duration = Duration::from_secs(60);

/// A terminal: `master` is the person's side, `slave` the program's.
struct Terminal {
    master: File,
    slave: OwnedFd,
}

impl Terminal {
    fn new() -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a pseudo-terminal");
        grantpt(&master).expect("granted");
        unlockpt(&master).expect("unlocked");
        let name = ptsname(&master, Vec::new()).expect("a name");
        let flags = OFlags::RDWR | OFlags::NOCTTY;
        let slave = rustix::fs::open(&name, flags, Mode::empty()).expect("its other end");
        let size = Winsize { ws_row: 40, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&slave, size).expect("a size");
        Self { master: File::from(master), slave }
    }

    fn start(&self, base: &Base, name: &str) -> Child {
        let end = || Stdio::from(self.slave.try_clone().expect("a second handle"));
        forrest()
            .args(["shell", name, "--base-dir", base.arg()])
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .expect("starts")
    }

    fn is_canonical(&self) -> bool {
        tcgetattr(&self.slave).expect("attributes").local_modes.contains(LocalModes::ICANON)
    }

    /// Reads what is shown until it contains `text`.
    fn read_until(&mut self, text: &str) -> String {
        let mut shown = Vec::new();
        let mut buffer = [0; 4096];
        while !String::from_utf8_lossy(&shown).contains(text) {
            let len = self.master.read(&mut buffer).expect("the terminal");
            shown.extend(&buffer[..len]);
        }
        String::from_utf8_lossy(&shown).into_owned()
    }
}

/// A run whose guest is the test.
fn guest(base: &Base) -> (Run, File, std::os::unix::net::UnixListener) {
    let run = base.run("acme/firmware/build", RUNNER);
    let lock = run.live();
    let listener = listen(&run.path.join("shell.sock"));
    (run, lock, listener)
}

fn connected(listener: &std::os::unix::net::UnixListener) -> UnixStream {
    let (stream, _) = listener.accept().expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    stream
}

fn read_exactly(stream: &mut UnixStream, expected: &[u8]) {
    let mut got = vec![0; expected.len()];
    stream.read_exact(&mut got).expect("what was typed");
    assert_eq!(got, expected);
}

#[test]
fn typing_goes_to_the_guest_and_ctrl_bracket_ends_it() {
    let base = Base::with_long_path();
    let (_run, _lock, listener) = guest(&base);
    let mut terminal = Terminal::new();
    assert!(terminal.is_canonical());
    let mut child = terminal.start(&base, "build");
    let mut guest = connected(&listener);
    let greeting = terminal.read_until("size of this terminal");
    assert!(greeting.contains("Ctrl-] to leave"), "{greeting}");
    assert!(greeting.contains("stty cols 120 rows 40"), "{greeting}");
    assert!(!terminal.is_canonical(), "not in raw mode");
    // Ctrl-C belongs to the guest, too.
    terminal.master.write_all(b"ls\r\x03").expect("typed");
    read_exactly(&mut guest, b"ls\r\x03");
    guest.write_all(b"\x1b[1mfile\x1b[0m\x1b]52;c;ZXZpbA==\x07.txt\r\n").expect("printed");
    let shown = terminal.read_until(".txt");
    assert!(shown.contains("\x1b[1mfile\x1b[0m.txt"), "{shown:?}");
    terminal.master.write_all(b"\x1d").expect("typed");
    assert_eq!(child.wait().expect("ends").code(), Some(0));
    assert!(terminal.is_canonical(), "left in raw mode");
    terminal.read_until("its shell goes on");
}

#[test]
fn the_terminal_is_restored_when_the_guest_goes_or_a_signal_comes() {
    let base = Base::new();
    let (_run, _lock, listener) = guest(&base);
    let mut terminal = Terminal::new();
    let mut child = terminal.start(&base, RUNNER);
    let guest = connected(&listener);
    // All of what it says first: what is left unread would be taken for the next one's words.
    terminal.read_until("size of this terminal");
    drop(guest);
    assert_eq!(child.wait().expect("ends").code(), Some(0));
    assert!(terminal.is_canonical(), "left in raw mode by the guest's end");
    for signal in [Signal::TERM, Signal::HUP, Signal::INT] {
        let mut child = terminal.start(&base, RUNNER);
        let _guest = connected(&listener);
        terminal.read_until("size of this terminal");
        assert!(!terminal.is_canonical(), "not in raw mode");
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid")).expect("a pid");
        kill_process(pid, signal).expect("signalled");
        assert_eq!(child.wait().expect("ends").code(), Some(1));
        assert!(terminal.is_canonical(), "left in raw mode by {signal:?}");
    }
}

#[test]
fn a_guest_that_does_not_read_does_not_hold_anybody() {
    let base = Base::new();
    let (_run, _lock, listener) = guest(&base);
    let mut terminal = Terminal::new();
    let mut child = terminal.start(&base, RUNNER);
    let _guest = connected(&listener);
    terminal.read_until("size of this terminal");
    // More than the socket and the program hold together.
    for _ in 0..256 {
        terminal.master.write_all(&[b'x'; 4096]).expect("typed");
    }
    terminal.master.write_all(b"\x1d").expect("typed");
    assert_eq!(child.wait().expect("ends").code(), Some(0));
    assert!(terminal.is_canonical());
}

#[test]
fn pipes_work() {
    let base = Base::new();
    let (_run, _lock, listener) = guest(&base);
    let mut child = forrest()
        .args(["shell", "build", "--wait", "0.2", "--base-dir", base.arg()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut guest = connected(&listener);
    // Ctrl-] means nothing in a pipe.
    child.stdin.take().expect("its input").write_all(b"uname\n\x1d\n").expect("written");
    read_exactly(&mut guest, b"uname\n\x1d\n");
    guest.write_all(b"Linux\x1b[0m\r\n").expect("printed");
    let output = child.wait_with_output().expect("ends");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(output.stdout, b"Linux\x1b[0m\r\n");
}

#[test]
fn a_run_that_is_over_or_not_clear_is_refused() {
    let base = Base::new();
    base.run("acme/firmware/build", RUNNER).over("guest-shutdown", "");
    let output = run(&["shell", "build", "--base-dir", base.arg()]);
    assert_eq!(output.status.code(), Some(4), "{}", shown(&output));
    assert!(stderr(&output).contains(&format!("forrest logs {RUNNER}")), "{}", shown(&output));
    let runs = ["forrest-test-aaaabbbbccccdddd", "forrest-test-aaaaxxxxyyyyzzzz"]
        .map(|runner| base.run("acme/firmware/test", runner));
    let _locks: Vec<File> = runs.iter().map(Run::live).collect();
    let output = run(&["shell", "test", "--base-dir", base.arg()]);
    assert_eq!(output.status.code(), Some(4));
    insta::assert_snapshot!("shell_ambiguous", shown(&output));
    // Its virtual machine lives, and its QEMU has no shell yet.
    let output = run(&["shell", "test-aaaab", "--base-dir", base.arg()]);
    assert_eq!(output.status.code(), Some(4));
    assert!(stderr(&output).contains("no shell to connect to"), "{}", shown(&output));
}
