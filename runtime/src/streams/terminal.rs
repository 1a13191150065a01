//! The person's terminal: raw while a process has it, and restored.

use std::os::fd::{AsFd, OwnedFd};

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

use crate::sys::descriptors::window_size;

/// A terminal in raw mode. Dropped, it is as before.
pub struct RawTerminal {
    fd: OwnedFd,
    before: Termios,
}

impl RawTerminal {
    /// Makes the terminal `fd` raw: keys go to the process as they are typed.
    ///
    /// # Errors
    /// ENOTTY when it is none.
    pub fn enter(fd: OwnedFd) -> nix::Result<RawTerminal> {
        let before = tcgetattr(&fd)?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(&fd, SetArg::TCSANOW, &raw)?;
        Ok(RawTerminal { fd, before })
    }

    /// (rows, columns); `None` while the terminal does not know them.
    pub fn size(&self) -> Option<(u16, u16)> {
        window_size(self.fd.as_fd()).ok().filter(|&(rows, columns)| rows > 0 && columns > 0)
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = tcsetattr(&self.fd, SetArg::TCSADRAIN, &self.before);
    }
}
