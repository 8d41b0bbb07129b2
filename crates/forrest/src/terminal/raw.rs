//! A terminal in raw mode, and back: whatever happens in between, short of SIGKILL.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};

/// A terminal in raw mode; dropping this restores it.
#[derive(Debug)]
pub struct RawMode {
    terminal: OwnedFd,
    before: Termios,
}

impl RawMode {
    /// Switches a terminal to raw mode; `None` where it is none.
    ///
    /// # Errors
    /// Where the terminal does not let itself be switched.
    pub fn enter(terminal: impl AsFd) -> io::Result<Option<Self>> {
        if !isatty(&terminal) {
            return Ok(None);
        }
        let terminal = terminal.as_fd().try_clone_to_owned()?;
        let before = tcgetattr(&terminal)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&terminal, OptionalActions::Drain, &raw)?;
        Ok(Some(Self { terminal, before }))
    }
}

/// Also runs while a panic unwinds. Input that nobody has read is thrown away: it may be a
/// terminal's answer to a question of the guest, and the operator's shell must not get it.
impl Drop for RawMode {
    fn drop(&mut self) {
        // Nothing can be done about a terminal that is gone.
        let _ = tcsetattr(&self.terminal, OptionalActions::Flush, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{Mode, OFlags};
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    use rustix::termios::LocalModes;

    fn terminal() -> (OwnedFd, OwnedFd) {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a pseudo-terminal");
        grantpt(&master).expect("granted");
        unlockpt(&master).expect("unlocked");
        let name = ptsname(&master, Vec::new()).expect("a name");
        let flags = OFlags::RDWR | OFlags::NOCTTY;
        let slave = rustix::fs::open(&name, flags, Mode::empty()).expect("its other end");
        (master, slave)
    }

    fn is_canonical(terminal: &OwnedFd) -> bool {
        tcgetattr(terminal).expect("attributes").local_modes.contains(LocalModes::ICANON)
    }

    #[test]
    fn a_panic_restores_the_terminal() {
        let (_master, slave) = terminal();
        assert!(is_canonical(&slave));
        let result = std::panic::catch_unwind(|| {
            let _raw = RawMode::enter(&slave).expect("raw mode").expect("a terminal");
            assert!(!is_canonical(&slave), "not in raw mode");
            panic!("on purpose");
        });
        let message = result.expect_err("it panicked");
        assert_eq!(message.downcast_ref::<&str>(), Some(&"on purpose"));
        assert!(is_canonical(&slave), "left in raw mode");
    }

    #[test]
    fn what_is_no_terminal_is_left_alone() {
        let file = tempfile::tempfile().expect("a file");
        assert!(RawMode::enter(&file).expect("no error").is_none());
    }
}
