//! The few async-signal-safe steps between clone and the agent's own re-exec.
#![allow(unsafe_code)]

use std::convert::Infallible;
use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;

/// First descriptor number that [`replace`] and [`place`] never write to.
pub const FIRST_FREE: RawFd = 16 + protocol::agent::MAX_DESCRIPTORS as RawFd;

/// Duplicates `fd` to a number of at least [`FIRST_FREE`], so that
/// [`replace`] cannot overwrite a source that is still needed.
///
/// # Errors
/// The kernel's, of fcntl(2).
pub fn lift(fd: BorrowedFd) -> Result<OwnedFd, Errno> {
    use std::os::fd::FromRawFd;
    let raw = nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(FIRST_FREE))?;
    // SAFETY: F_DUPFD_CLOEXEC returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Places `fds[i]` at descriptor `i` (inheritable), then replaces the process
/// by `program` with `role` as its only argument and no environment.
///
/// # Errors
/// The kernel's, of dup2(2) or execveat(2); on success it does not return.
pub fn replace(program: BorrowedFd, role: &CStr, fds: &[OwnedFd]) -> Result<Infallible, Errno> {
    for (number, fd) in fds.iter().enumerate() {
        // SAFETY: dup2 onto fixed low numbers: the process is about to be
        // replaced and owns nothing there that it will use again.
        super::check(unsafe { libc::dup2(fd.as_raw_fd(), number as RawFd) }.into())?;
    }
    let argv = [role.as_ptr(), std::ptr::null()];
    let envp = [std::ptr::null::<libc::c_char>()];
    // SAFETY: both arrays are NULL-terminated and live across the call, the
    // empty path is NUL-terminated.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    Err(Errno::last())
}

/// Takes ownership of a descriptor that SCM_RIGHTS brought.
pub fn received(fd: RawFd) -> OwnedFd {
    use std::os::fd::FromRawFd;
    // SAFETY: the kernel installed a new descriptor in this process for the
    // message; the caller turns each number into an owner once.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Takes ownership of a descriptor that this process was started with.
/// `None` when it is not open.
pub fn inherited(fd: RawFd) -> Option<OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: F_SETFD on any number is harmless; it fails when it is not open.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return None;
    }
    // SAFETY: it is open, and called once per number, at the start of a role,
    // before anything else could own it.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes over `count` descriptors from `first` on, to numbers of [`FIRST_FREE`] and more.
///
/// # Errors
/// EBADF when one is not open.
pub fn inherited_from(first: RawFd, count: usize) -> Result<Vec<OwnedFd>, Errno> {
    (first..)
        .take(count)
        .map(|number| inherited(number).ok_or(Errno::EBADF).and_then(|fd| lift(fd.as_fd())))
        .collect()
}

/// Duplicates `fds` to `first` and what follows, inheritable: for a process that
/// executes its program next, whatever it had there.
///
/// # Errors
/// The kernel's, of dup2(2): EBADF above RLIMIT_NOFILE.
pub fn place(fds: &[OwnedFd], first: RawFd) -> Result<(), Errno> {
    for (number, fd) in (first..).zip(fds) {
        // SAFETY: takes numbers. The target may belong to an owner, which uses it no
        // more: what follows is execve or exit.
        super::check(unsafe { libc::dup2(fd.as_raw_fd(), number) }.into())?;
    }
    Ok(())
}

/// Marks every descriptor from `first` on close-on-exec.
///
/// # Errors
/// The kernel's, of close_range(2).
pub fn cloexec_from(first: u32) -> Result<(), Errno> {
    // SAFETY: CLOSE_RANGE_CLOEXEC closes nothing now; descriptors in use stay.
    super::check(unsafe {
        libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)
    })
    .map(drop)
}
