//! Starts a role: clone3 into cgroup and namespaces, then
//! re-execution of the agent's own binary.

use std::ffi::CStr;
use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, setns};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, setresgid, setresuid};
use protocol::agent::{AgentError, ErrorKind};
use serde::Serialize;

use crate::error::{SystemContext, error};
use crate::plan::Namespaces;
use crate::roles::channel::{self, Channel, FromRole, RoleHandle};
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
    let none = Namespaces::default();
    let namespaces = start.namespaces.unwrap_or(&none);
    let new_user = namespaces.owns(libc::CLONE_NEWUSER);
    let request = |sibling| Request { namespaces: namespaces.clone, cgroup: start.cgroup, sibling };
    // Here, and not further out: the child must return from nothing, or there would be
    // two agents.
    let child = || -> ! {
        if new_user {
            let _ = nix::unistd::read(&fds[channel_index()], &mut [0u8; 1]);
        }
        if namespaces.user() {
            // execve takes the capabilities of whoever is not root in the user namespace.
            become_root();
        }
        let _ = replace(program.as_fd(), start.role, &fds);
        crate::sys::clone::exit(127)
    };
    let cloned = || "cloning the container's process".to_owned();
    let (pid, pidfd) = match namespaces.joined(libc::CLONE_NEWUSER) {
        Some(user) => {
            in_user_namespace(user, namespaces, || match clone(&request(true)).system(cloned)? {
                Side::Parent(_, pidfd) => Ok(pidfd),
                Side::Child => child(),
            })?
        }
        None => in_pid_namespace(namespaces, || match clone(&request(false)).system(cloned)? {
            Side::Parent(pid, pidfd) => Ok((pid, pidfd)),
            Side::Child => child(),
        })?,
    };
    let begin = || {
        if new_user {
            map_users(pid, namespaces)?;
            channel::go(ours.as_fd()).system(|| "waking the role".into())?;
        }
        Ok(())
    };
    if let Err(error) = begin() {
        // It waits for what will not come, and nobody else knows of it.
        let _ = crate::sys::process::signal(pidfd.as_fd(), libc::SIGKILL);
        let _ = crate::sys::process::reap(pidfd.as_fd());
        return Err(error);
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
    namespaces: &Namespaces,
    clone: impl FnOnce() -> Result<T, AgentError>,
) -> Result<T, AgentError> {
    let Some(path) = namespaces.joined(libc::CLONE_NEWPID) else { return clone() };
    let what = || format!("joining namespace {}", path.display());
    let own = namespace(Path::new("/proc/self/ns/pid")).system(what)?;
    join(path, CloneFlags::CLONE_NEWPID)?;
    let result = clone();
    setns(own, CloneFlags::CLONE_NEWPID).system(what)?;
    result
}

/// A user namespace is joined for good, and what is to be the container's must be made
/// by somebody in it: a copy of the agent, which ends after the `clone` of a sibling.
fn in_user_namespace(
    user: &Path,
    namespaces: &Namespaces,
    clone: impl FnOnce() -> Result<OwnedFd, AgentError>,
) -> Result<(i32, OwnedFd), AgentError> {
    let (ours, theirs) = channel::pair().system(|| "creating a socket pair".into())?;
    let helper =
        crate::sys::clone::clone(&Request::default()).system(|| "cloning a helper".into())?;
    if let Side::Parent(_, helper) = helper {
        drop(theirs);
        let told = channel::receive(ours.as_fd());
        crate::sys::process::reap(helper.as_fd()).system(|| "reaping a helper".into())?;
        return match told.system(|| "listening to a helper".into())? {
            Some((FromRole::Process, Some(pidfd))) => Ok((pid_of(&pidfd)?, pidfd)),
            Some((FromRole::Failed(error), _)) => Err(error),
            _ => Err(error(ErrorKind::System, "a helper ended without a process")),
        };
    }
    drop(ours);
    let channel = Channel::new(theirs);
    // As for the roles: nobody in the namespace shall reach into a copy of the agent.
    let _ = nix::sys::prctl::set_dumpable(false);
    let joined = || {
        if let Some(pid) = namespaces.joined(libc::CLONE_NEWPID) {
            join(pid, CloneFlags::CLONE_NEWPID)?;
        }
        join(user, CloneFlags::CLONE_NEWUSER)
    };
    let _ = match joined().and_then(|()| clone()) {
        Ok(pidfd) => channel.send(&FromRole::Process, Some(pidfd.as_fd())),
        Err(error) => channel.send(&FromRole::Failed(error), None),
    };
    crate::sys::clone::exit(0)
}

fn join(path: &Path, kind: CloneFlags) -> Result<(), AgentError> {
    let what = || format!("joining namespace {}", path.display());
    setns(namespace(path).system(what)?, kind).system(what)
}

fn namespace(path: &Path) -> Result<OwnedFd, Errno> {
    open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
}

/// The pid behind a pidfd, in the agent's namespace. A process that has ended
/// keeps it until it is reaped, which nobody else does.
///
/// # Errors
/// When there is none.
pub fn pid_of(pidfd: &OwnedFd) -> Result<i32, AgentError> {
    let path = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
    let text = std::fs::read_to_string(path).system(|| "reading a pid".into())?;
    text.lines()
        .find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok())
        .ok_or_else(|| error(ErrorKind::System, "a pidfd without a pid"))
}

/// In the child.
fn become_root() {
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
