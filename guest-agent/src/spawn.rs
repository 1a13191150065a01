//! Starts a role: clone3 into cgroup and namespaces, then
//! re-execution of the agent's own binary.

use std::ffi::CStr;
use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, setns};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, setresgid, setresuid};
use protocol::agent::AgentError;
use serde::Serialize;

use crate::error::SystemContext;
use crate::plan::Namespaces;
use crate::roles::channel::{self, RoleHandle};
use crate::sys::clone::{Request, Side, clone};
use crate::sys::exec::{lift, replace};

/// A role that is under way.
#[derive(Debug)]
pub struct Spawned {
    /// Pid in the agent's namespace.
    pub pid: i32,
    /// To wait by.
    pub pidfd: OwnedFd,
    /// To talk by.
    pub role: RoleHandle,
}

/// What a role is started with.
#[derive(Debug)]
pub struct Start<'a> {
    /// Its `argv[0]`.
    pub role: &'static CStr,
    /// stdin, stdout, stderr.
    pub stdio: [OwnedFd; 3],
    /// Further descriptors, from [`crate::roles::CONTAINER_FD`] on.
    pub extra: &'a [BorrowedFd<'a>],
    /// Where it begins, if not where the agent is.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// In which namespaces.
    pub namespaces: Option<&'a Namespaces>,
}

/// Starts a role with `plan`.
///
/// # Errors
/// What the kernel refused.
pub fn spawn<P: Serialize>(start: Start, plan: &P) -> Result<Spawned, AgentError> {
    let memfd = plan_file(plan).system(|| "writing the plan".into())?;
    let (ours, theirs) = channel::pair().system(|| "creating a socket pair".into())?;
    let program = open("/proc/self/exe", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
        .system(|| "opening the agent's binary".into())?;
    let program = lift(program.as_fd()).system(|| "duplicating a descriptor".into())?;
    let [stdin, stdout, stderr] = &start.stdio;
    let sources = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd(), theirs.as_fd(), memfd.as_fd()];
    let fds: Vec<_> = sources
        .into_iter()
        .chain(start.extra.iter().copied())
        .map(lift)
        .collect::<Result<_, _>>()
        .system(|| "duplicating descriptors".into())?;
    let user = start.namespaces.is_some_and(Namespaces::user);
    let request = Request {
        namespaces: start.namespaces.map_or(0, |namespaces| namespaces.clone),
        cgroup: start.cgroup,
        sibling: false,
    };
    let (pid, pidfd) = in_pid_namespace(start.namespaces, || {
        match clone(&request).system(|| "cloning the container's process".into())? {
            Side::Parent(pid, pidfd) => Ok((pid, pidfd)),
            // Here, and not further out: the child must return from nothing,
            // or there would be two agents.
            Side::Child => {
                if user {
                    wait_for_maps(&fds[channel_index()]);
                }
                let _ = replace(program.as_fd(), start.role, &fds);
                crate::sys::clone::exit(127)
            }
        }
    })?;
    if let Some(namespaces) = start.namespaces.filter(|_| user) {
        map_users(pid, namespaces)?;
        channel::go(ours.as_fd()).system(|| "waking the role".into())?;
    }
    let role = RoleHandle::new(ours).system(|| "watching a socket".into())?;
    Ok(Spawned { pid, pidfd, role })
}

const fn channel_index() -> usize {
    crate::roles::CHANNEL_FD as usize
}

fn plan_file<P: Serialize>(plan: &P) -> std::io::Result<OwnedFd> {
    let mut file = File::from(memfd_create("plan", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(&serde_json::to_vec(plan)?)?;
    file.rewind()?;
    Ok(file.into())
}

/// A pid namespace is joined by children only, so that the agent enters it for
/// the moment of the clone.
fn in_pid_namespace<T>(
    namespaces: Option<&Namespaces>,
    clone: impl FnOnce() -> Result<T, AgentError>,
) -> Result<T, AgentError> {
    let pid = libc::CLONE_NEWPID as u64;
    let joined = namespaces.and_then(|n| n.join.iter().find(|(kind, _)| *kind == pid));
    let Some((_, path)) = joined else { return clone() };
    let what = || format!("joining namespace {}", path.display());
    let file =
        |path: &std::path::Path| open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty());
    let own = file(std::path::Path::new("/proc/self/ns/pid")).system(what)?;
    setns(file(path).system(what)?, CloneFlags::CLONE_NEWPID).system(what)?;
    let result = clone();
    setns(own, CloneFlags::CLONE_NEWPID).system(what)?;
    result
}

/// In the child: execve takes the capabilities of whoever is not root in the
/// user namespace, so that it must be root first, which needs the maps.
fn wait_for_maps(channel: &OwnedFd) {
    let _ = nix::unistd::read(channel, &mut [0u8; 1]);
    let _ = setresgid(Gid::from_raw(0), Gid::from_raw(0), Gid::from_raw(0));
    let _ = setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0));
}

fn map_users(pid: i32, namespaces: &Namespaces) -> Result<(), AgentError> {
    for (file, map, field) in [
        ("uid_map", &namespaces.uid_map, "linux.uidMappings"),
        ("gid_map", &namespaces.gid_map, "linux.gidMappings"),
    ] {
        std::fs::write(format!("/proc/{pid}/{file}"), map).system(|| format!("setting {field}"))?;
    }
    Ok(())
}
