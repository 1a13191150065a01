//! Mount calls that nix does not wrap.

#![allow(unsafe_code)] // Two system calls with nothing but descriptors and paths.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, OwnedFd};

/// Attaches the detached mount `mount` at `target`.
///
/// # Errors
/// As move_mount(2).
pub fn attach(mount: &OwnedFd, target: &CStr) -> nix::Result<()> {
    const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 0x4;
    // SAFETY: both paths are NUL-terminated and outlive the call; the kernel
    // writes nothing to our memory.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    nix::Error::result(result).map(drop)
}

/// prctl(2) with two numbers.
///
/// # Errors
/// As prctl(2).
pub fn prctl(option: libc::c_int, argument: libc::c_ulong) -> nix::Result<()> {
    // SAFETY: callers pass options whose argument is a number, not an address.
    let result = unsafe { libc::prctl(option, argument, 0, 0, 0) };
    nix::Error::result(result).map(drop)
}
