//! Terminal ioctls. TIOCGPTPEER opens the slave side from the master's
//! descriptor: no path of the container is trusted on the way.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

/// Unlocks the slave of `master` and opens it.
///
/// # Errors
/// ENOTTY when `master` is not a pseudo-terminal.
pub fn open_slave(master: BorrowedFd) -> Result<OwnedFd, Errno> {
    let unlock: libc::c_int = 0;
    let master = master.as_raw_fd();
    // SAFETY: TIOCSPTLCK reads one int, which outlives the call.
    super::check(unsafe { libc::ioctl(master, libc::TIOCSPTLCK, &raw const unlock) }.into())?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes flags by value and returns a new descriptor.
    let fd = super::check(unsafe { libc::ioctl(master, libc::TIOCGPTPEER, flags) }.into())?;
    // SAFETY: as above; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Sets the window size.
///
/// # Errors
/// ENOTTY when `terminal` is none.
pub fn resize(terminal: BorrowedFd, rows: u16, columns: u16) -> Result<(), Errno> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize, which outlives the call.
    super::check(
        unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }.into(),
    )
    .map(drop)
}

/// Makes `slave` the controlling terminal of this session.
///
/// # Errors
/// The kernel's.
pub fn control(slave: BorrowedFd) -> Result<(), Errno> {
    // SAFETY: TIOCSCTTY takes an integer by value.
    super::check(unsafe { libc::ioctl(slave.as_raw_fd(), libc::TIOCSCTTY, 0) }.into()).map(drop)
}
