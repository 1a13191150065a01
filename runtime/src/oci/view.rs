//! What others see who enter a container's mount namespace by the pid of its monitor,
//! or look at `/proc/PID/root`: podman does for `cp` into a running container, and would
//! write to the host's own files otherwise.
//!
//! The thread that gives the process its pid goes into a mount namespace whose root is
//! the container's root file system, with its volumes; all others stay on the host's
//! side. A guest's tmpfs, and what else is made in there, is not to be seen.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use super::OciError;
use super::plan::Plan;
use crate::sys::mounts;

const NONE: Option<&str> = None;

/// Moves this thread there for good.
///
/// # Errors
/// Names what could not be mounted.
pub(super) fn enter(plan: &Plan) -> Result<(), OciError> {
    let failed = |what: &str| {
        let what = format!("{what}, for those who enter the container's mount namespace");
        move |errno: Errno| OciError::Namespace { what, source: errno.into() }
    };
    unshare(CloneFlags::CLONE_NEWNS).map_err(failed("make a mount namespace"))?;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)
        .map_err(failed("make the mounts private"))?;
    let read_only = plan.shares.first().is_some_and(|share| share.read_only);
    let root = clone(&plan.rootfs, read_only)?;
    let volumes = plan
        .binds()
        .map(|(share, destination)| Ok((clone(&share.source, share.read_only)?, destination)))
        .collect::<Result<Vec<_>, OciError>>()?;
    // Any directory: nobody else sees it, and a moment later nor does this thread.
    let stage = c"/proc";
    mounts::attach(root.as_fd(), stage).map_err(failed("attach the root file system"))?;
    let pivot = || {
        nix::unistd::chdir(stage)?;
        match nix::unistd::pivot_root(".", ".") {
            Ok(()) => umount2(".", MntFlags::MNT_DETACH)?,
            // Out of an initial file system no pivot_root leads: cover it.
            Err(Errno::EINVAL) => {
                mount(Some("."), "/", NONE, MsFlags::MS_MOVE, NONE)?;
                nix::unistd::chroot(".")?;
            }
            Err(errno) => return Err(errno),
        }
        nix::unistd::chdir("/")
    };
    pivot().map_err(failed("enter the root file system"))?;
    // From here on no path leads out, whatever links an image has: which is why there is
    // no /proc. This process is in the host's pid namespace, where /proc/1/root is the
    // host's root.
    for (volume, destination) in volumes {
        let shown = CString::new(destination)
            .map_err(|_| Errno::EINVAL)
            .and_then(|path| mounts::attach(volume.as_fd(), &path));
        if let Err(errno) = shown {
            tracing::debug!("{destination} is not shown to programs of the host: {errno}");
        }
    }
    Ok(())
}

fn clone(path: &Path, read_only: bool) -> Result<OwnedFd, OciError> {
    let mut options = File::options();
    let opened = options.read(true).custom_flags(libc::O_PATH).open(path);
    let copy = |file: File| -> std::io::Result<OwnedFd> {
        let mount = mounts::clone_detached(file.as_fd())?;
        mounts::restrict(mount.as_fd(), read_only)?;
        Ok(mount)
    };
    opened.and_then(copy).map_err(OciError::io(path))
}
