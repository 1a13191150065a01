//! What the agent re-executes itself as, to become a container's process.
//!
//! A role is single-threaded, gets its plan in a memfd and talks to the agent
//! over a socket pair ([`channel`] draws the handshake).

pub mod channel;
mod devices;
pub mod exec;
mod hooks;
pub mod identity;
mod init;
mod inside;
mod mounts;
pub mod program;
mod rootfs;
mod terminal;

use std::ffi::{CStr, OsStr};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use protocol::agent::{AgentError, ErrorKind};
use serde::de::DeserializeOwned;

use crate::sys;
use channel::{Channel, FromRole};

/// `argv[0]` of the process that becomes a container's init.
pub const INIT: &CStr = c"bulkhead-init";
/// `argv[0]` of the process that puts another into a container.
pub const EXEC: &CStr = c"bulkhead-exec";

/// Descriptor of the socket to the agent.
pub const CHANNEL_FD: i32 = 3;
/// Descriptor of the memfd with the plan.
pub const PLAN_FD: i32 = 4;
/// Descriptor of the container's pidfd (exec role); the first of those for the process
/// (init role).
pub const CONTAINER_FD: i32 = 5;
/// Descriptor of the container's cgroup (exec role); those for the process follow.
pub const CGROUP_FD: i32 = 6;

/// Why a role failed.
#[derive(Debug, thiserror::Error)]
pub enum RoleError {
    /// The kernel refused something.
    #[error("{what}")]
    System {
        /// What was attempted.
        what: String,
        /// The kernel's answer.
        source: Errno,
    },
    /// The program cannot be executed.
    #[error(transparent)]
    Program(#[from] program::ProgramError),
    /// The agent hung up: the container is being deleted.
    #[error("the agent hung up")]
    Abandoned,
    /// The container's file system is not as the plan needs it.
    #[error("{0}")]
    Unfit(String),
}

impl From<&RoleError> for AgentError {
    fn from(error: &RoleError) -> Self {
        let kind = match error {
            RoleError::Program(error) => error.kind(),
            RoleError::Unfit(_) => ErrorKind::Invalid,
            RoleError::System { .. } | RoleError::Abandoned => ErrorKind::System,
        };
        AgentError { kind, message: crate::error::chain(error) }
    }
}

/// Says what was attempted.
pub trait Context<T> {
    /// Names the attempt that failed.
    fn context(self, what: impl FnOnce() -> String) -> Result<T, RoleError>;
}

impl<T> Context<T> for Result<T, Errno> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T, RoleError> {
        self.map_err(|source| RoleError::System { what: what(), source })
    }
}

impl<T> Context<T> for std::io::Result<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T, RoleError> {
        self.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))
            .context(what)
    }
}

/// Plays the role that `argv0` names. Returns when it names none.
pub fn dispatch(argv0: &OsStr) {
    let argv0 = argv0.as_encoded_bytes();
    if argv0 == INIT.to_bytes() {
        play(init::run);
    }
    if argv0 == EXEC.to_bytes() {
        play(exec::run);
    }
}

fn play<P: DeserializeOwned>(role: fn(P, &Channel) -> Result<(), RoleError>) -> ! {
    let (Some(channel), Some(plan)) =
        (sys::exec::inherited(CHANNEL_FD), sys::exec::inherited(PLAN_FD))
    else {
        let _ = writeln!(std::io::stderr(), "bulkhead-agent: this role is not for people to start");
        std::process::exit(2);
    };
    // Out of the way of the descriptors that the process gets.
    let channel = Channel::new(sys::exec::lift(channel.as_fd()).unwrap_or(channel));
    sys::process::reset_signals();
    // What the container's processes could do to a helper in their midst
    // (ptrace, /proc/PID/exe) they cannot do to an undumpable one.
    let _ = nix::sys::prctl::set_dumpable(false);
    let result = read_plan(plan).and_then(|plan| role(plan, &channel));
    match result {
        Ok(()) => std::process::exit(0),
        Err(RoleError::Abandoned) => {}
        Err(error) => {
            let _ = channel.send(&FromRole::Failed(AgentError::from(&error)), None);
        }
    }
    std::process::exit(1)
}

fn read_plan<P: DeserializeOwned>(memfd: OwnedFd) -> Result<P, RoleError> {
    use std::io::Read;
    let mut bytes = Vec::new();
    std::fs::File::from(memfd).read_to_end(&mut bytes).context(|| "reading the plan".into())?;
    serde_json::from_slice(&bytes).map_err(|error| RoleError::Unfit(format!("the plan: {error}")))
}
