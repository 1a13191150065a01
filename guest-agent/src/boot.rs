//! The machine's file systems, mounted by PID 1.
//!
//! The initial root is the kernel's rootfs, out of which pivot_root(2) does not
//! lead: it has no parent mount. So a tmpfs is mounted, moved over `/` and
//! entered; containers pivot out of that, and what they leave behind is
//! detached for good. The rootfs below keeps only `/init`, and is read-only, so
//! that no container can write to the agent's binary by way of /proc/PID/exe.

use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{chdir, chroot};

/// Descriptors of a process: docker's limit, and the kernel's default maximum.
const DESCRIPTORS: u64 = 1 << 20;

/// Where the share tree is mounted.
pub const SHARES: &str = "/run/bulkhead/shares";
/// Where each container's namespace mounts its own tmpfs.
pub const STAGE: &str = "/run/bulkhead/stage";
/// Where volumes in memory are mounted.
pub const VOLUMES: &str = "/run/bulkhead/memory";
/// The cgroup tree.
pub const CGROUPS: &str = "/sys/fs/cgroup";

/// Why the machine is not as the agent needs it.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct BootError {
    what: &'static str,
    source: Errno,
}

fn attempt(what: &'static str) -> impl FnOnce(Errno) -> BootError {
    move |source| BootError { what, source }
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

fn mkdir(path: &str) -> Result<(), Errno> {
    std::fs::create_dir_all(path).map_err(errno)
}

fn mount_new(kind: &str, at: &str, flags: MsFlags, options: &str) -> Result<(), Errno> {
    mkdir(at)?;
    mount(Some(kind), at, Some(kind), flags, Some(options))
}

/// /dev, so that there is a kmsg to speak to.
///
/// # Errors
/// The kernel's.
pub fn devices() -> Result<(), BootError> {
    match mount_new("devtmpfs", "/dev", MsFlags::MS_NOSUID, "mode=755") {
        Err(Errno::EBUSY) => Ok(()), // the kernel did it (CONFIG_DEVTMPFS_MOUNT)
        other => other.map_err(attempt("mounting /dev")),
    }
}

/// Everything else.
///
/// # Errors
/// Names the mount.
pub fn machine() -> Result<(), BootError> {
    // The kernel's 4096 are few for the agent's streams, and containers expect
    // what docker gives; a specification's own limit comes on top.
    setrlimit(Resource::RLIMIT_NOFILE, DESCRIPTORS, DESCRIPTORS)
        .map_err(attempt("raising the limit of descriptors"))?;
    new_root().map_err(attempt("moving to a new root"))?;
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount_new("proc", "/proc", safe, "").map_err(attempt("mounting /proc"))?;
    mount_new("sysfs", "/sys", safe, "").map_err(attempt("mounting /sys"))?;
    let options = "nsdelegate,memory_recursiveprot";
    mount_new("cgroup2", CGROUPS, safe, options).map_err(attempt("mounting cgroups"))?;
    controllers().map_err(attempt("enabling cgroup controllers"))?;
    let options = "mode=0620,ptmxmode=0666,gid=5";
    let devpts = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount_new("devpts", "/dev/pts", devpts, options).map_err(attempt("mounting /dev/pts"))?;
    for directory in [SHARES, STAGE, VOLUMES] {
        mkdir(directory).map_err(attempt("creating /run/bulkhead"))?;
    }
    crate::sys::link::loopback_up().map_err(attempt("bringing the loopback interface up"))
}

/// The share tree. A machine without shares can only be a test's.
///
/// # Errors
/// The kernel's; ENODEV or EINVAL without the device.
pub fn shares() -> Result<(), BootError> {
    let none = None::<&str>;
    mount(Some(protocol::machine::FS_TAG), SHARES, Some("virtiofs"), MsFlags::empty(), none)
        .map_err(attempt("mounting the share tree"))
}

fn new_root() -> Result<(), Errno> {
    const NEW: &str = "/newroot";
    mount_new("tmpfs", NEW, MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=755")?;
    let none = None::<&str>;
    mkdir("/newroot/dev")?;
    mount(Some("/dev"), "/newroot/dev", none, MsFlags::MS_MOVE, none)?;
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    mount(none, "/", none, read_only, none)?;
    chdir(NEW)?;
    mount(Some("."), "/", none, MsFlags::MS_MOVE, none)?;
    chroot(".")?;
    chdir("/")
}

fn controllers() -> Result<(), Errno> {
    let root = Path::new(CGROUPS);
    let names = std::fs::read_to_string(root.join("cgroup.controllers")).map_err(errno)?;
    for name in names.split_whitespace() {
        // One at a time: one that cannot be delegated does not stop the others.
        let _ = std::fs::write(root.join("cgroup.subtree_control"), format!("+{name}"));
    }
    Ok(())
}
