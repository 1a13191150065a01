//! Process attributes for which nix has no safe wrapper.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

/// Gives every signal its default action and unblocks all: a Rust program
/// ignores SIGPIPE, and what is ignored stays so across execve.
pub fn reset_signals() {
    for signal in 1..=64 {
        // SAFETY: SIG_DFL installs no code; invalid numbers fail harmlessly.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    let _ = nix::sys::signal::SigSet::empty().thread_set_mask();
}

/// Sets resource limit `resource` of process `pid` (0: this one).
///
/// # Errors
/// EPERM when a hard limit is raised without CAP_SYS_RESOURCE.
pub fn set_limit(pid: i32, resource: u32, soft: u64, hard: u64) -> Result<(), Errno> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: the new limit outlives the call, the old one is not asked for.
    super::check(
        unsafe { libc::prlimit64(pid, resource, &raw const limit, std::ptr::null_mut()) }.into(),
    )
    .map(drop)
}

/// Sets the NIS domain name of this UTS namespace.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN in its user namespace.
pub fn set_domain_name(name: &str) -> Result<(), Errno> {
    // SAFETY: the kernel reads as many bytes as the string has.
    super::check(unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) }.into()).map(drop)
}

/// The kernel's `struct sched_attr`, first version.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct SchedAttr {
    /// Size of this structure.
    pub size: u32,
    /// SCHED_*.
    pub policy: u32,
    /// SCHED_FLAG_*.
    pub flags: u64,
    /// For SCHED_OTHER and SCHED_BATCH.
    pub nice: i32,
    /// For SCHED_FIFO and SCHED_RR.
    pub priority: u32,
    /// For SCHED_DEADLINE, nanoseconds.
    pub runtime: u64,
    /// For SCHED_DEADLINE, nanoseconds.
    pub deadline: u64,
    /// For SCHED_DEADLINE, nanoseconds.
    pub period: u64,
}

/// Sets the scheduling policy of this process.
///
/// # Errors
/// The kernel's, of sched_setattr(2).
pub fn set_scheduler(mut attributes: SchedAttr) -> Result<(), Errno> {
    attributes.size = size_of::<SchedAttr>() as u32;
    // SAFETY: the structure has the kernel's layout, says its size, and
    // outlives the call.
    super::check(unsafe {
        libc::syscall(libc::SYS_sched_setattr, 0, std::ptr::from_ref(&attributes), 0)
    })
    .map(drop)
}

/// Sets class and level of this process's I/O priority.
///
/// # Errors
/// The kernel's, of ioprio_set(2).
pub fn set_io_priority(class: u32, level: u32) -> Result<(), Errno> {
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    let value = (class << 13) | level;
    // SAFETY: integers only.
    super::check(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, value) })
        .map(drop)
}

/// Sends `signal` to the process of `pidfd`.
///
/// # Errors
/// ESRCH when it is gone, EINVAL when there is no such signal.
pub fn signal(pidfd: BorrowedFd, signal: i32) -> Result<(), Errno> {
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo is documented: the kernel fills it as kill(2).
    super::check(unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, info, 0)
    })
    .map(drop)
}

/// Sends `signal` to process `pid`. (nix knows no real-time signal.)
///
/// # Errors
/// ESRCH when it is gone, EINVAL when there is no such signal.
pub fn kill(pid: i32, signal: i32) -> Result<(), Errno> {
    // SAFETY: kill(2) touches no memory of this process.
    super::check(unsafe { libc::kill(pid, signal) }.into()).map(drop)
}

/// Forks, for PID 1 only: the child is the agent.
///
/// # Errors
/// The kernel's, of fork(2).
pub fn fork() -> Result<nix::unistd::ForkResult, Errno> {
    // SAFETY: called by PID 1 before it starts any thread, so that no lock can
    // be held by a thread which the child lacks.
    unsafe { nix::unistd::fork() }
}

/// How a child ended: its exit code, or the signal that killed it.
pub type Ended = (Option<u8>, Option<i32>);

/// Collects the status of the child behind `pidfd`, if it has ended. (nix's
/// waitid knows no real-time signal, of which a process may die.)
///
/// # Errors
/// ECHILD when it is no child of this process.
pub fn collect(pidfd: BorrowedFd) -> Result<Option<Ended>, Errno> {
    wait(pidfd, libc::WNOHANG)
}

/// The same of one that is about to end, once it has.
///
/// # Errors
/// ECHILD when it is no child of this process.
pub fn reap(pidfd: BorrowedFd) -> Result<(), Errno> {
    loop {
        match wait(pidfd, 0) {
            Err(Errno::EINTR) => {}
            other => return other.map(drop),
        }
    }
}

fn wait(pidfd: BorrowedFd, how: i32) -> Result<Option<Ended>, Errno> {
    // SAFETY: siginfo_t is plain data, for which all zeroes are valid.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let fd = pidfd.as_raw_fd() as libc::id_t;
    let flags = libc::WEXITED | how;
    // SAFETY: waitid writes one siginfo_t, which outlives the call.
    super::check(unsafe { libc::waitid(libc::P_PIDFD, fd, &raw mut info, flags) }.into())?;
    // SAFETY: waitid filled in the fields of SIGCHLD, or left them zero.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    Ok(match (pid, info.si_code) {
        (0, _) => None,
        (_, libc::CLD_EXITED) => Some((Some(status as u8), None)),
        _ => Some((None, Some(status))),
    })
}
