//! `--console-socket`: a terminal of the host, whose other end the engine gets.

use std::fs::File;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::pty::openpty;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

/// Why there is no terminal.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// The socket.
    #[error("cannot connect to the console socket {}", path.display())]
    Connect {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The terminal.
    #[error("cannot make a terminal")]
    Open(#[source] nix::Error),
    /// Sending it.
    #[error("cannot send the terminal to the console socket")]
    Send(#[source] nix::Error),
}

/// Connects to the engine's socket.
///
/// # Errors
/// When nobody listens there.
pub fn connect(path: &Path) -> Result<UnixStream, ConsoleError> {
    // By the directory's descriptor: a socket's path is limited to 108 bytes.
    let connect = || {
        let name = path.file_name().ok_or(std::io::ErrorKind::InvalidInput)?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let directory = File::open(parent.unwrap_or(Path::new(".")))?;
        let place = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
        UnixStream::connect(place.join(name))
    };
    connect().map_err(|source| ConsoleError::Connect { path: path.into(), source })
}

/// Makes a terminal and sends its master over `socket`; the other end is ours.
///
/// # Errors
/// As [`ConsoleError`].
pub fn open(socket: UnixStream) -> Result<OwnedFd, ConsoleError> {
    let pty = openpty(None, None).map_err(ConsoleError::Open)?;
    let name = nix::unistd::ttyname(&pty.slave).unwrap_or_else(|_| "/dev/ptmx".into());
    let fds = [pty.master.as_raw_fd()];
    let iov = [IoSlice::new(name.as_os_str().as_encoded_bytes())];
    let rights = [ControlMessage::ScmRights(&fds)];
    sendmsg::<()>(socket.as_raw_fd(), &iov, &rights, MsgFlags::MSG_NOSIGNAL, None)
        .map_err(ConsoleError::Send)?;
    Ok(pty.slave)
}

/// Makes `terminal` the controlling one of this process, which must lead a session:
/// changes of its size then arrive as signals.
///
/// # Errors
/// As ioctl(2).
pub fn control(terminal: &OwnedFd) -> nix::Result<()> {
    crate::sys::descriptors::control_terminal(terminal.as_fd())
}
