//! PID 1: mounts, forks, reaps.
//!
//! The child is the agent. The parent only waits, so that its `waitpid(-1)`,
//! which collects orphans, can never take the exit status of a process that
//! the agent waits for: those are the agent's children, not PID 1's.

use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::{ForkResult, Pid};

use crate::error::chain;
use crate::{boot, kmsg, sys};

/// Boots the machine, then runs `agent` in a child.
pub fn main(agent: fn() -> !) -> ! {
    if let Err(error) = boot::devices() {
        die(&chain(&error));
    }
    kmsg::log(protocol::agent::FIRST_LINE);
    if let Err(error) = boot::machine() {
        die(&chain(&error));
    }
    if let Err(error) = boot::shares() {
        kmsg::log(&chain(&error));
    }
    match sys::process::fork() {
        Ok(ForkResult::Child) => agent(),
        Ok(ForkResult::Parent { child }) => reap(child),
        Err(errno) => die(&format!("forking the agent: {errno}")),
    }
}

fn reap(agent: Pid) -> ! {
    loop {
        match wait() {
            Ok(WaitStatus::Exited(pid, code)) if pid == agent => {
                die(&format!("the agent exited with status {code}"));
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == agent => {
                die(&format!("the agent was killed by {signal}"));
            }
            Err(nix::errno::Errno::ECHILD) => die("the agent is gone"),
            _ => {}
        }
    }
}

/// Says why, and panics the machine: the kernel does when PID 1 ends, and the
/// VMM reports it with the console's last lines.
fn die(reason: &str) -> ! {
    kmsg::log(reason);
    std::process::exit(1)
}
