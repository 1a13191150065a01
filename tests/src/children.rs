//! Processes that outlive the verb that made them: to this process, as to an engine.

use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Orphans of the verbs become children of this process.
pub fn adopt() {
    nix::sys::prctl::set_child_subreaper(true).expect("prctl");
}

/// How the container's process `pid` ended, after [`adopt`].
#[track_caller]
pub fn reap(pid: i32) -> WaitStatus {
    waitpid(Pid::from_raw(pid), None).expect("the container's process is our child")
}

/// Those that have ended: only for cases that run alone. From the first [`adopt`] on, orphans of
/// all cases are this process's.
pub fn reap_ended() {
    while !matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(WaitStatus::StillAlive) | Err(_))
    {
    }
}

/// All of them: only for cases that run alone.
pub fn reap_orphans() {
    while waitpid(None, None).is_ok() {}
}
