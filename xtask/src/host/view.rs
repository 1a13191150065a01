//! A read-only view of this machine's file systems for the throw-away host,
//! in a mount namespace of this process alone: nothing is ever mounted in the
//! machine's own namespace, and all is gone when this process ends.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statvfs::{FsFlags, statvfs};

/// File systems that are the kernel's own: the host has those itself.
const KERNEL_FILE_SYSTEMS: [&str; 22] = [
    "proc",
    "sysfs",
    "devtmpfs",
    "devpts",
    "cgroup",
    "cgroup2",
    "mqueue",
    "hugetlbfs",
    "debugfs",
    "tracefs",
    "securityfs",
    "pstore",
    "bpf",
    "configfs",
    "fusectl",
    "binfmt_misc",
    "autofs",
    "nsfs",
    "efivarfs",
    "rpc_pipefs",
    "selinuxfs",
    "ramfs",
];
/// Directories that the host fills itself.
const OWN_DIRECTORIES: [&str; 4] = ["/dev", "/proc", "/sys", "/run"];

/// Enters a mount namespace of its own and binds / and every other real file
/// system read-only below `target`.
pub fn make(target: &Path) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)
        .context("cannot have a mount namespace of our own; are you root?")?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context("cannot make the mounts private")?;
    fs::create_dir_all(target)?;
    let table =
        fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    for point in shared_mounts(&table) {
        let below = target.join(point.strip_prefix("/").unwrap_or(&point));
        // A file system that cannot be bound (a FUSE mount of another user) is
        // simply not there in the host; without / there is no host.
        let bound = bind_read_only(&point, &below);
        if point == Path::new("/") {
            bound?;
        }
    }
    Ok(())
}

fn bind_read_only(from: &Path, to: &Path) -> Result<()> {
    let none = None::<&str>;
    mount(Some(from), to, none, MsFlags::MS_BIND, none)
        .with_context(|| format!("cannot bind {} to {}", from.display(), to.display()))?;
    // A remount must not drop what the mount was locked with (nosuid, nodev).
    let kept = statvfs(to)?.flags();
    let mut flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    for (bit, flag) in [
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
    ] {
        flags.set(flag, kept.contains(bit));
    }
    mount(none, to, none, flags, none)
        .with_context(|| format!("cannot make {} read-only", to.display()))
}

/// The mount points of mountinfo that are worth sharing, parents first.
fn shared_mounts(table: &str) -> Vec<PathBuf> {
    let mut points: Vec<PathBuf> = Vec::new();
    for line in table.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let (Some(point), Some(kind)) = (left.split(' ').nth(4), right.split(' ').next()) else {
            continue;
        };
        let point = PathBuf::from(unescape(point));
        let own = OWN_DIRECTORIES.iter().any(|dir| point.starts_with(dir));
        if own || KERNEL_FILE_SYSTEMS.contains(&kind) || points.contains(&point) {
            continue;
        }
        points.push(point);
    }
    points.sort();
    points
}

/// mountinfo writes blanks, tabs, newlines and backslashes as octal.
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_real_file_systems_are_shared_and_parents_come_first() {
        let table = "\
30 27 254:16 / /work/some\\040repo rw,relatime - ext4 /dev/vdb rw
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/root rw
24 27 0:6 / /dev rw,relatime - devtmpfs devtmpfs rw
25 24 0:23 / /dev/shm rw,relatime - tmpfs tmpfs rw
26 27 0:24 / /tmp rw,relatime - tmpfs tmpfs rw
28 27 0:25 / /run rw,relatime - tmpfs tmpfs rw
";
        let expected: Vec<PathBuf> = ["/", "/tmp", "/work/some repo"].map(PathBuf::from).to_vec();
        assert_eq!(shared_mounts(table), expected);
    }
}
