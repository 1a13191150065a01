//! The file tree that the process ends up in.

use std::ffi::CString;
use std::os::fd::OwnedFd;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;
use nix::unistd::{chdir, mkdir, pivot_root};
use protocol::machine::{Share, ShareKind};

use super::{JailError, SHARES, step, sys};

/// A directory that every Linux host has, to mount the new root on; it is seen
/// by this process only.
const SCAFFOLD: &str = "/proc";
const NONE: Option<&str> = None;

/// Builds the tree from detached mounts and pivots into it.
pub fn build(shares: &[(Share, OwnedFd)]) -> Result<(), JailError> {
    // Nothing propagates to or from the host.
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)
        .map_err(step("cannot make the mounts private"))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("bulkhead"), SCAFFOLD, Some("tmpfs"), flags, Some("size=1m,mode=0755"))
        .map_err(step("cannot mount the jail's root"))?;
    chdir(SCAFFOLD).map_err(step("cannot enter the jail's root"))?;
    directory("proc")?;
    directory("shares")?;
    for kind in [ShareKind::Immutable, ShareKind::Private, ShareKind::Live] {
        directory(&format!("shares/{}", kind.dir()))?;
    }
    for (share, detached) in shares {
        attach(share, detached)?;
    }
    // The host's /proc must still be in sight when a new one is mounted: the
    // kernel demands a visible instance.
    // Read-only: /proc/self/mem must not be written by who writes files.
    mount(Some("proc"), "proc", Some("proc"), flags | MsFlags::MS_RDONLY, Some("subset=pid"))
        .map_err(step("cannot mount the jail's /proc"))?;
    // The old root lands on top of the new one and is taken away at once.
    pivot_root(".", ".").map_err(step("cannot pivot into the jail"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(step("cannot detach the host's root"))?;
    chdir("/").map_err(step("cannot enter the jail"))?;
    let read_only = flags | MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    mount(NONE, "/", NONE, read_only, NONE).map_err(step("cannot make the jail's root read-only"))
}

fn directory(path: &str) -> Result<(), JailError> {
    mkdir(path, Mode::from_bits_truncate(0o755))
        .map_err(step(format!("cannot make {path} in the jail")))
}

fn attach(share: &Share, detached: &OwnedFd) -> Result<(), JailError> {
    let target = format!(".{SHARES}/{}/{}", share.kind.dir(), share.name);
    if share.file {
        std::fs::File::create(&target)
            .map_err(|error| nix::Error::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))
            .map_err(step(format!("cannot make {target} in the jail")))?;
    } else {
        directory(&target)?;
    }
    let path = CString::new(target.clone()).map_err(|_| JailError::Name(share.name.clone()))?;
    sys::attach(detached, &path).map_err(step(format!("cannot attach the share {target}")))
}
