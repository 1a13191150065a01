//! The role that becomes a container's process: a flat recipe, each step in
//! the place where the ones before make it possible.

use std::convert::Infallible;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid, setsid};

use super::channel::{Channel, FromRole};
use super::inside::Inside;
use super::{
    CONTAINER_FD, Context, RoleError, devices, hooks, identity, mounts, program, rootfs, terminal,
};
use crate::plan::{Namespaces, Plan, ProcessPlan};
use crate::sys::exec::{cloexec_from, inherited_from, place};
use crate::sys::mount::{Detached, open_path};

/// Builds the container, waits for the go, executes.
///
/// # Errors
/// Names what failed; on success it does not return.
pub fn run(plan: Plan, channel: &Channel) -> Result<(), RoleError> {
    let descriptors = inherited_from(CONTAINER_FD, plan.descriptors)
        .context(|| "taking over descriptors".into())?;
    setsid().context(|| "starting a session".into())?;
    namespaces(&plan.namespaces)?;
    rootfs::make_private()?;
    if plan.namespaces.user() {
        become_root_of_namespace()?;
    }
    names(&plan)?;
    sysctl(&plan)?;

    let root = rootfs::mount_root(&plan.root)?;
    let inside = Inside::new(root.try_clone().context(|| "duplicating the root".into())?);
    // While the machine's own is in reach: the image's may be anything.
    let nulls = copies_of_null(plan.masked_paths.len())?;
    mounts::all(&inside, &plan)?;
    devices::all(&inside, &plan.devices)?;
    working_directory(&inside, &plan.process)?;

    rootfs::enter(&root)?;
    terminal::open_for(&plan.process, channel, Some(&inside))?;
    mounts::mask(&inside, nulls, &plan.masked_paths)?;
    mounts::read_only(&inside, &plan.readonly_paths)?;
    rootfs::finish(plan.root_propagation, plan.root_readonly)?;
    drop((root, inside));

    let path = prepare(&plan.process)?;
    channel.send(&FromRole::Ready, None)?;
    channel.wait_for_go()?;
    hooks::run(&plan.start_hooks, &plan.state)?;
    execute(&plan.process, &path, &descriptors).map(|never| match never {})
}

/// A detached mount can be attached once, and not copied.
fn copies_of_null(count: usize) -> Result<Vec<Detached>, RoleError> {
    let null = open_path(Path::new("/dev/null")).context(|| "opening /dev/null".into())?;
    let copy = |_| Detached::copy_of_fd(null.as_fd(), false);
    (0..count).map(copy).collect::<Result<_, _>>().context(|| "copying /dev/null".into())
}

/// The last steps of both roles, up to the go: who the process is and what it
/// will execute.
///
/// # Errors
/// Names the field, or says why the command cannot be executed.
pub fn prepare(process: &ProcessPlan) -> Result<String, RoleError> {
    identity::assume(process)?;
    program::enter_cwd(process)?;
    Ok(program::find(&process.args[0], &process.env)?)
}

/// From the go on.
///
/// # Errors
/// Names the field, or says why the command cannot be executed.
pub fn execute(
    process: &ProcessPlan,
    path: &str,
    descriptors: &[OwnedFd],
) -> Result<Infallible, RoleError> {
    let env = program::environment(process, &program::read_passwd());
    cloexec_from(3).context(|| "marking descriptors".into())?;
    place(descriptors, 3).context(|| "placing descriptors (is RLIMIT_NOFILE too low?)".into())?;
    identity::confine(process)?;
    Ok(program::execute(path, &process.args, &env)?)
}

fn namespaces(namespaces: &Namespaces) -> Result<(), RoleError> {
    for (kind, path) in &namespaces.join {
        // Whoever cloned us had joined these.
        if *kind == libc::CLONE_NEWPID as u64 || *kind == libc::CLONE_NEWUSER as u64 {
            continue;
        }
        let what = || format!("joining namespace {}", path.display());
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let file = open(path, flags, Mode::empty()).context(what)?;
        setns(file, CloneFlags::from_bits_truncate(*kind as i32)).context(what)?;
    }
    let flags = CloneFlags::from_bits_retain(namespaces.unshare as i32);
    unshare(flags).context(|| "creating cgroup and time namespaces".into())?;
    for (clock, seconds, nanos) in &namespaces.time_offsets {
        let line = format!("{clock} {seconds} {nanos}\n");
        std::fs::write("/proc/self/timens_offsets", line)
            .context(|| format!("setting linux.timeOffsets[{clock}]"))?;
    }
    Ok(())
}

/// Takes the ids that its owner has in a user namespace: those from outside of it are
/// nobody's in there.
///
/// # Errors
/// The kernel's.
pub fn become_root_of_namespace() -> Result<(), RoleError> {
    let become_root = || {
        setgroups(&[])?;
        setresgid(Gid::from_raw(0), Gid::from_raw(0), Gid::from_raw(0))?;
        setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0))
    };
    become_root().context(|| "becoming root of the user namespace".into())
}

fn names(plan: &Plan) -> Result<(), RoleError> {
    if let Some(name) = &plan.hostname {
        nix::unistd::sethostname(name).context(|| "setting the host name".into())?;
    }
    if let Some(name) = &plan.domainname {
        crate::sys::process::set_domain_name(name).context(|| "setting the domain name".into())?;
    }
    Ok(())
}

/// By the machine's own /proc, which no image can have prepared; these files
/// act on the namespaces of the one who writes.
fn sysctl(plan: &Plan) -> Result<(), RoleError> {
    plan.sysctl.iter().try_for_each(|(path, value)| {
        let written = match path.as_str() {
            // The file is for root of the machine alone, the call is not.
            "kernel/domainname" => crate::sys::process::set_domain_name(value).map_err(Into::into),
            _ => std::fs::write(Path::new("/proc/sys").join(path), value),
        };
        written.context(|| format!("setting linux.sysctl {path} to {value:?}"))
    })
}

/// runc makes a missing working directory, and images rely on it.
fn working_directory(inside: &Inside, process: &ProcessPlan) -> Result<(), RoleError> {
    match inside.directory(Path::new(&process.cwd)) {
        Ok(_) => Ok(()),
        // What is there but no directory is chdir's to report.
        Err(RoleError::System { source: nix::errno::Errno::ENOTDIR, .. }) => Ok(()),
        Err(error) => Err(error),
    }
}
