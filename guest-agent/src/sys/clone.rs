//! clone3(2): no wrapper crate offers CLONE_INTO_CGROUP or CLONE_PIDFD.
//!
//! The unsafety of a raw clone without CLONE_VM is that of fork: the child is a
//! copy in which only the calling thread exists. The agent and its roles are
//! single-threaded processes (tokio's current_thread runtime without blocking
//! pool), so no lock can be held by a thread that is gone, and the child may
//! run ordinary code. glibc's cached thread id is stale in the child, which
//! matters to pthread functions only, none of which are called there.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

/// libc's constant has the wrong width.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Namespaces that clone3 creates.
pub type Namespaces = u64;

/// What to clone.
#[derive(Debug, Default)]
pub struct Request<'a> {
    /// CLONE_NEW* flags.
    pub namespaces: Namespaces,
    /// Directory of the cgroup v2 in which the child begins.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// Make the child a sibling: the caller's parent becomes its parent.
    pub sibling: bool,
}

/// Which side of the clone this is.
#[derive(Debug)]
pub enum Side {
    /// The new process.
    Child,
    /// The caller, with the child's pid and pidfd.
    Parent(i32, OwnedFd),
}

/// Clones the process.
///
/// # Errors
/// The kernel's, of clone3(2).
pub fn clone(request: &Request) -> Result<Side, Errno> {
    let mut pidfd: RawFd = -1;
    let mut flags = request.namespaces | libc::CLONE_PIDFD as u64;
    // A zeroed clone_args is the documented "nothing special".
    // SAFETY: clone_args is plain integers, for which all zeroes are valid.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.pidfd = &raw mut pidfd as u64;
    if request.sibling {
        flags |= libc::CLONE_PARENT as u64;
    } else {
        args.exit_signal = libc::SIGCHLD as u64;
    }
    if let Some(cgroup) = &request.cgroup {
        flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    args.flags = flags;
    // SAFETY: args is valid for its size and outlives the call, no memory is
    // shared with the child (no CLONE_VM), and the process has one thread (see
    // the module's head).
    let pid = super::check(unsafe {
        libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>())
    })?;
    if pid == 0 {
        return Ok(Side::Child);
    }
    // SAFETY: CLONE_PIDFD stored a new descriptor that nobody else owns.
    Ok(Side::Parent(pid as i32, unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

/// Ends a cloned child without running the parent's exit handlers.
pub fn exit(code: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}
