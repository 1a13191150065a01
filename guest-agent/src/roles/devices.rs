//! /dev of the container.

use std::os::fd::AsFd;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, makedev, mknodat};
use nix::unistd::{Gid, Uid, fchownat, symlinkat};

use super::inside::Inside;
use super::{Context, RoleError};
use crate::plan::DeviceNode;
use crate::sys::mount::{Detached, open_path};

const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Nodes and links.
///
/// # Errors
/// Names the node.
pub fn all(inside: &Inside, nodes: &[DeviceNode]) -> Result<(), RoleError> {
    nodes.iter().try_for_each(|device| node(inside, device))?;
    let dev = inside.directory(Path::new("/dev"))?;
    for (name, target) in LINKS {
        match symlinkat(target, &dev, name) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(errno).context(|| format!("linking /dev/{name}")),
        }
    }
    Ok(())
}

fn node(inside: &Inside, device: &DeviceNode) -> Result<(), RoleError> {
    let what = || format!("creating device {}", device.path.display());
    let (Some(directory), Some(name)) = (device.path.parent(), device.path.file_name()) else {
        return Err(RoleError::Unfit(format!("{} is no path of a device", device.path.display())));
    };
    let parent = inside.directory(directory)?;
    let kind = SFlag::from_bits_truncate(device.mode & libc::S_IFMT);
    let mode = Mode::from_bits_truncate(device.mode & 0o7777);
    match mknodat(&parent, name, kind, mode, makedev(device.major, device.minor)) {
        Ok(()) => {}
        // The image brought it: a node that is the same stays, another does not.
        Err(Errno::EEXIST) => return same(inside, device).context(what),
        // A user namespace, or a file server without the privilege: the
        // machine's own node is mounted there.
        Err(Errno::EPERM) => return bind(inside, device),
        Err(errno) => return Err(errno).context(what),
    }
    // mknod obeyed the umask.
    fchmodat(&parent, name, mode, FchmodatFlags::FollowSymlink).context(what)?;
    let (uid, gid) = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
    fchownat(&parent, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW).context(what)
}

fn same(inside: &Inside, device: &DeviceNode) -> Result<(), Errno> {
    let there = inside.open(&device.path, OFlag::O_PATH | OFlag::O_NOFOLLOW)?;
    let stat = nix::sys::stat::fstat(&there)?;
    let number = makedev(device.major, device.minor);
    let kind = |mode: u32| mode & libc::S_IFMT;
    if kind(stat.st_mode) == kind(device.mode) && stat.st_rdev == number {
        return Ok(());
    }
    bind(inside, device).map_err(|_| Errno::EEXIST)
}

fn bind(inside: &Inside, device: &DeviceNode) -> Result<(), RoleError> {
    let what = || format!("binding device {}", device.path.display());
    let source = open_path(&device.path).context(what)?;
    let target = inside.file(&device.path)?;
    Detached::copy_of_fd(source.as_fd(), false)
        .and_then(|mount| mount.attach(target.as_fd()))
        .context(what)
}
