//! The role that puts a further process into a container: clones it into pid
//! namespace and cgroup as a sibling (so that the agent is its parent), tells
//! the agent, and ends. The process joins the other namespaces by itself: seen
//! from those of cgroups and users, the container's cgroup could not be entered.

use nix::sched::{CloneFlags, setns};
use nix::unistd::setsid;
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, OwnedFd};

use super::channel::{Channel, FromRole};
use super::{CGROUP_FD, CONTAINER_FD, Context, RoleError, identity, init, terminal};
use crate::plan::ProcessPlan;
use crate::sys::clone::{Request, Side, clone};
use crate::sys::exec::inherited_from;

/// What the exec role does.
#[derive(Debug, Serialize, Deserialize)]
pub struct ExecPlan {
    /// The process.
    pub process: ProcessPlan,
    /// CLONE_NEW* of the namespaces to join.
    pub namespaces: u64,
    /// How many descriptors the process gets beside its stdio.
    pub descriptors: usize,
}

/// Joins, clones, executes in the child.
///
/// # Errors
/// Names what failed.
pub fn run(plan: ExecPlan, channel: &Channel) -> Result<(), RoleError> {
    let inherited = |fd, what: &str| {
        crate::sys::exec::inherited(fd).ok_or_else(|| RoleError::Unfit(format!("no {what}")))
    };
    let container = inherited(CONTAINER_FD, "pidfd of the container")?;
    let cgroup = inherited(CGROUP_FD, "cgroup of the container")?;
    let descriptors = inherited_from(CGROUP_FD + 1, plan.descriptors)
        .context(|| "taking over descriptors".into())?;
    // Before joining: afterwards a user namespace may forbid it.
    identity::limit(&plan.process, 0)?;
    let namespaces = CloneFlags::from_bits_retain(plan.namespaces as i32);
    let pid = namespaces & CloneFlags::CLONE_NEWPID;
    if !pid.is_empty() {
        setns(&container, pid).context(|| "joining the container's pid namespace".into())?;
    }
    let request = Request { sibling: true, cgroup: Some(cgroup.as_fd()), ..Request::default() };
    match clone(&request).context(|| "cloning the process".into())? {
        Side::Parent(_, pidfd) => channel.send(&FromRole::Process, Some(pidfd.as_fd())),
        Side::Child => {
            become_process(&plan.process, &container, namespaces - pid, channel, &descriptors)
        }
    }
}

fn become_process(
    process: &ProcessPlan,
    container: &OwnedFd,
    namespaces: CloneFlags,
    channel: &Channel,
    descriptors: &[OwnedFd],
) -> Result<(), RoleError> {
    if !namespaces.is_empty() {
        setns(container, namespaces).context(|| "joining the container".into())?;
    }
    if namespaces.contains(CloneFlags::CLONE_NEWUSER) {
        init::become_root_of_namespace()?;
    }
    setsid().context(|| "starting a session".into())?;
    terminal::open_for(process, channel, None)?;
    let path = init::prepare(process)?;
    init::execute(process, &path, descriptors).map(|never| match never {})
}
