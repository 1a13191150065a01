//! The role that puts a further process into a container: joins it, clones the
//! process as a sibling (so that the agent is its parent), and ends.

use nix::sched::{CloneFlags, setns};
use nix::unistd::setsid;
use serde::{Deserialize, Serialize};
use std::os::fd::AsFd;

use super::channel::{Channel, FromRole};
use super::{CONTAINER_FD, Context, RoleError, identity, init, terminal};
use crate::plan::ProcessPlan;
use crate::sys::clone::{Request, Side, clone};

/// What the exec role does.
#[derive(Debug, Serialize, Deserialize)]
pub struct ExecPlan {
    /// The process.
    pub process: ProcessPlan,
    /// CLONE_NEW* of the namespaces to join.
    pub namespaces: u64,
}

/// Joins, clones, executes in the child.
///
/// # Errors
/// Names what failed.
pub fn run(plan: ExecPlan, channel: &Channel) -> Result<(), RoleError> {
    let container = crate::sys::exec::inherited(CONTAINER_FD)
        .ok_or_else(|| RoleError::Unfit("no pidfd of the container".into()))?;
    // Before joining: afterwards a user namespace may forbid it.
    identity::limit(&plan.process, 0)?;
    setns(container, CloneFlags::from_bits_retain(plan.namespaces as i32))
        .context(|| "joining the container".into())?;
    match clone(&Request { sibling: true, ..Request::default() })
        .context(|| "cloning the process".into())?
    {
        Side::Parent(_, pidfd) => channel.send(&FromRole::Process, Some(pidfd.as_fd())),
        Side::Child => become_process(&plan.process, channel),
    }
}

fn become_process(process: &ProcessPlan, channel: &Channel) -> Result<(), RoleError> {
    setsid().context(|| "starting a session".into())?;
    terminal::open_for(process, channel, None)?;
    let path = init::prepare(process)?;
    init::execute(process, &path).map(|never| match never {})
}
