//! Carries out the mounts of a plan, inside the container's root.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{SFlag, fstat};
use protocol::agent::SeedFile;

use super::inside::Inside;
use super::{Context, RoleError, rootfs};
use crate::boot::CGROUPS;
use crate::plan::{MountPlan, Plan, Source};
use crate::sys::mount::{Attributes, Context as Filesystem, Detached, open_path};

/// All mounts of `plan`, in order.
///
/// # Errors
/// Names the mount that failed.
pub fn all(inside: &Inside, plan: &Plan) -> Result<(), RoleError> {
    for mount in &plan.mounts {
        one(inside, plan, mount)?;
    }
    plan.files.iter().enumerate().try_for_each(|(index, file)| seed(inside, index, file))
}

fn one(inside: &Inside, plan: &Plan, mount: &MountPlan) -> Result<(), RoleError> {
    let what = || format!("mounts[{}]", mount.destination.display());
    let detached = make(plan, mount).context(what)?;
    let is_directory = fstat(detached.fd())
        .is_ok_and(|stat| SFlag::from_bits_truncate(stat.st_mode & libc::S_IFMT) == SFlag::S_IFDIR);
    let target = if is_directory {
        inside.directory(&mount.destination)?
    } else {
        inside.file(&mount.destination)?
    };
    let flags = |flags: crate::plan::mounts::Flags| Attributes {
        set: flags.set,
        clear: flags.clear,
        ..Attributes::default()
    };
    if mount.copy_up {
        copy_up(inside, &mount.destination, &detached).context(what)?;
    }
    if mount.flags != Default::default() {
        detached.set(&flags(mount.flags), false).context(what)?;
    }
    if mount.recursive != Default::default() {
        detached.set(&flags(mount.recursive), true).context(what)?;
    }
    for (propagation, recursive) in &mount.propagation {
        let attributes = Attributes { propagation: *propagation, ..Attributes::default() };
        detached.set(&attributes, *recursive).context(what)?;
    }
    detached.attach(target.as_fd()).context(what)
}

fn make(plan: &Plan, mount: &MountPlan) -> Result<Detached, Errno> {
    match &mount.source {
        Source::Bind { path, recursive } => {
            Detached::copy_of_fd(open_path(path)?.as_fd(), *recursive)
        }
        // In a cgroup namespace the container's cgroup is the root of a new
        // mount; without one, a new mount would show the whole tree.
        Source::Cgroup if plan.namespaces.owns(libc::CLONE_NEWCGROUP) => {
            Filesystem::new("cgroup2")?.mount(0)
        }
        Source::Cgroup => Detached::copy_of_fd(
            open_path(&Path::new(CGROUPS).join(&plan.container))?.as_fd(),
            false,
        ),
        Source::New { kind, source, options } => match new(kind, source, options) {
            // sysfs belongs to the network namespace's owner, which is not the
            // container's user namespace: it sees the machine's.
            Err(Errno::EPERM) if kind == "sysfs" && plan.namespaces.user() => {
                Detached::copy_of_fd(open_path(Path::new("/sys"))?.as_fd(), true)
            }
            other => other,
        },
    }
}

fn new(kind: &str, source: &str, options: &[(String, Option<String>)]) -> Result<Detached, Errno> {
    let filesystem = Filesystem::new(kind)?;
    filesystem.set("source", Some(source))?;
    for (key, value) in options {
        filesystem.set(key, value.as_deref())?;
    }
    filesystem.mount(0)
}

/// Writes a seed file beside the root and mounts it over its place.
fn seed(inside: &Inside, index: usize, file: &SeedFile) -> Result<(), RoleError> {
    let what = || format!("writing {}", file.path);
    let path = rootfs::seeds().join(index.to_string());
    std::fs::write(&path, &file.contents).context(what)?;
    let detached =
        open_path(&path).and_then(|fd| Detached::copy_of_fd(fd.as_fd(), false)).context(what)?;
    let target = inside.file(Path::new(&file.path))?;
    detached.attach(target.as_fd()).context(what)
}

/// Hides `linux.maskedPaths`: directories under an empty read-only tmpfs, files
/// under a null device each. What does not exist needs no hiding.
///
/// # Errors
/// Names the path.
pub fn mask(inside: &Inside, nulls: Vec<Detached>, paths: &[String]) -> Result<(), RoleError> {
    for (path, null) in paths.iter().zip(nulls) {
        let what = || format!("masking {path}");
        let Some(target) = existing(inside, path).context(what)? else { continue };
        let is_directory = fstat(&target).context(what)?.st_mode & libc::S_IFMT == libc::S_IFDIR;
        let mask = if is_directory { empty_directory().context(what)? } else { null };
        mask.attach(target.as_fd()).context(what)?;
    }
    Ok(())
}

fn empty_directory() -> Result<Detached, Errno> {
    let tmpfs = Filesystem::new("tmpfs")?;
    tmpfs.set("nr_blocks", Some("1"))?;
    tmpfs.set("nr_inodes", Some("1"))?;
    tmpfs.mount(libc::MOUNT_ATTR_RDONLY)
}

/// Makes `linux.readonlyPaths` read-only, each by a mount of itself.
///
/// # Errors
/// Names the path.
pub fn read_only(inside: &Inside, paths: &[String]) -> Result<(), RoleError> {
    for path in paths {
        let what = || format!("making {path} read-only");
        let Some(target) = existing(inside, path).context(what)? else { continue };
        let copy = Detached::copy_of_fd(target.as_fd(), true).context(what)?;
        let attributes = Attributes { set: libc::MOUNT_ATTR_RDONLY, ..Attributes::default() };
        copy.set(&attributes, true).and_then(|()| copy.attach(target.as_fd())).context(what)?;
    }
    Ok(())
}

fn existing(inside: &Inside, path: &str) -> Result<Option<OwnedFd>, Errno> {
    match inside.open(Path::new(path), OFlag::O_PATH) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// tmpcopyup: copies what the image has at `destination` into the new tmpfs.
fn copy_up(inside: &Inside, destination: &Path, tmpfs: &Detached) -> std::io::Result<()> {
    let from = inside.open(destination, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
    copy_directory(&from, tmpfs.fd(), 0)
}

/// Directories, files and links, with owners and modes. Descriptors all the
/// way: a link of the image is copied, never followed.
fn copy_directory(
    from: &OwnedFd,
    to: std::os::fd::BorrowedFd,
    depth: usize,
) -> std::io::Result<()> {
    use nix::dir::Dir;
    use nix::fcntl::{AtFlags, openat, readlinkat};
    use nix::sys::stat::{FchmodatFlags, Mode, fchmodat, fstatat, mkdirat};
    use nix::unistd::{Gid, Uid, fchownat, symlinkat};
    const MAX_DEPTH: usize = 100;
    if depth > MAX_DEPTH {
        return Err(Errno::ELOOP.into());
    }
    let names: Vec<_> = Dir::from_fd(from.try_clone()?)?
        .iter()
        .filter_map(|entry| entry.ok().map(|entry| entry.file_name().to_owned()))
        .filter(|name| name.as_bytes() != b"." && name.as_bytes() != b"..")
        .collect();
    for name in names {
        let name = name.as_c_str();
        let stat = fstatat(from, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let read = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match stat.st_mode & libc::S_IFMT {
            libc::S_IFLNK => symlinkat(readlinkat(from, name)?.as_os_str(), to, name)?,
            libc::S_IFDIR => {
                mkdirat(to, name, Mode::from_bits_truncate(0o700))?;
                let below = openat(from, name, read | OFlag::O_DIRECTORY, Mode::empty())?;
                let new = openat(to, name, read | OFlag::O_DIRECTORY, Mode::empty())?;
                copy_directory(&below, new.as_fd(), depth + 1)?;
            }
            libc::S_IFREG => {
                let write = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
                let source = openat(from, name, read, Mode::empty())?;
                let target = openat(to, name, write, Mode::from_bits_truncate(0o600))?;
                std::io::copy(&mut std::fs::File::from(source), &mut std::fs::File::from(target))?;
            }
            // Sockets, pipes and devices are not carried over, as in runc.
            _ => continue,
        }
        let owner = (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)));
        fchownat(to, name, owner.0, owner.1, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        if stat.st_mode & libc::S_IFMT != libc::S_IFLNK {
            let mode = Mode::from_bits_truncate(stat.st_mode & 0o7777);
            fchmodat(to, name, mode, FchmodatFlags::FollowSymlink)?;
        }
    }
    Ok(())
}
