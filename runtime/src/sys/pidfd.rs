//! A process by descriptor: its number cannot be reused under our hands.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};

/// A child process.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl PidFd {
    /// Takes ownership of a process descriptor.
    pub fn new(fd: OwnedFd) -> PidFd {
        PidFd(fd)
    }

    /// Opens the descriptor of a process that the caller has not reaped yet.
    ///
    /// # Errors
    /// As pidfd_open(2).
    pub fn open(pid: i32) -> nix::Result<PidFd> {
        // SAFETY: pidfd_open takes two numbers.
        let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0u32) })?;
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(PidFd(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
    }

    /// Sends a signal, which may be a real-time one. A process that has ended is no error.
    ///
    /// # Errors
    /// As pidfd_send_signal(2).
    pub fn signal(&self, signal: i32) -> nix::Result<()> {
        let info = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: a null siginfo is allowed and stands for what kill(2) sends;
        // the descriptor is owned by self.
        let result = Errno::result(unsafe {
            libc::syscall(libc::SYS_pidfd_send_signal, self.0.as_raw_fd(), signal, info, 0u32)
        });
        match result {
            Ok(_) | Err(Errno::ESRCH) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Reaps the child if it has ended.
    ///
    /// # Errors
    /// As waitid(2); ECHILD when it was reaped before.
    pub fn try_wait(&self) -> nix::Result<Option<WaitStatus>> {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
        match waitid(Id::PIDFd(self.0.as_fd()), flags)? {
            WaitStatus::StillAlive => Ok(None),
            status => Ok(Some(status)),
        }
    }

    /// Reaps the child, waiting for its end.
    ///
    /// # Errors
    /// As waitid(2).
    pub fn wait(&self) -> nix::Result<WaitStatus> {
        loop {
            match waitid(Id::PIDFd(self.0.as_fd()), WaitPidFlag::WEXITED) {
                Err(Errno::EINTR) => {}
                other => return other,
            }
        }
    }

    /// The same, with its status as a shell tells it: 128 and the number of the signal
    /// that killed it, which may be a real-time one (nix knows none).
    ///
    /// # Errors
    /// As waitid(2).
    pub fn wait_code(&self) -> nix::Result<u8> {
        // SAFETY: siginfo_t is plain data, for which all zeroes are valid.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let id = self.0.as_raw_fd() as libc::id_t;
        loop {
            // SAFETY: waitid writes one siginfo_t, which outlives the call.
            let result = unsafe { libc::waitid(libc::P_PIDFD, id, &raw mut info, libc::WEXITED) };
            match Errno::result(result) {
                Err(Errno::EINTR) => {}
                other => {
                    other?;
                    break;
                }
            }
        }
        // SAFETY: waitid filled in what is of a child.
        let status = unsafe { info.si_status() } as u8;
        Ok(if info.si_code == libc::CLD_EXITED { status } else { status.saturating_add(128) })
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for PidFd {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}
