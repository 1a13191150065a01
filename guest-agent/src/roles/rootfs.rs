//! The container's root: built on a tmpfs that only its own mount namespace
//! sees, so that the namespace's end leaves nothing behind.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, fchdir, pivot_root};

use super::{Context, RoleError};
use crate::boot::STAGE;
use crate::plan::{RootPlan, UpperPlan};
use crate::sys::mount::{Attributes, Context as Filesystem, Detached, open_path};

/// Makes this mount namespace's events its own.
///
/// # Errors
/// The kernel's.
pub fn make_private() -> Result<(), RoleError> {
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)
        .context(|| "making the mount namespace private".into())
}

/// Where seed files wait for their bind mounts.
pub fn seeds() -> PathBuf {
    Path::new(STAGE).join("files")
}

/// Mounts the root file system; the descriptor is its root directory.
///
/// # Errors
/// Names what could not be mounted.
pub fn mount_root(plan: &RootPlan) -> Result<OwnedFd, RoleError> {
    let size = match plan {
        RootPlan::Overlay { upper: UpperPlan::Memory(size), .. } => *size,
        _ => None,
    };
    stage(size).context(|| "mounting the container's tmpfs".into())?;
    let root = Path::new(STAGE).join("root");
    for directory in [&root, &seeds()] {
        std::fs::create_dir(directory).context(|| format!("creating {}", directory.display()))?;
    }
    let detached = match plan {
        RootPlan::Overlay { layers, upper } => overlay(layers, upper)?,
        RootPlan::Directory(path) => {
            let here = std::fs::File::open("/").context(|| "opening /".into())?;
            Detached::copy_of(here.as_fd(), path.as_path(), true)
                .context(|| format!("binding the root file system {}", path.display()))?
        }
    };
    detached.attach_at(&root).context(|| "attaching the root file system".into())?;
    // Opened again by path: the descriptor must be on top of the mount.
    open_path(&root).context(|| "opening the root file system".into())
}

fn stage(size: Option<u64>) -> Result<(), Errno> {
    let tmpfs = Filesystem::new("tmpfs")?;
    tmpfs.set("mode", Some("0711"))?;
    if let Some(size) = size {
        tmpfs.set("size", Some(&size.to_string()))?;
    }
    tmpfs.mount(0)?.attach_at(Path::new(STAGE))
}

fn overlay(layers: &[PathBuf], upper: &UpperPlan) -> Result<Detached, RoleError> {
    let writable = match upper {
        UpperPlan::Memory(_) => PathBuf::from(STAGE),
        UpperPlan::Directory(path) => path.clone(),
    };
    let (upper, work) = (writable.join("upper"), writable.join("work"));
    if let (Some(top), false) = (layers.last(), upper.exists()) {
        upper_like(&upper, top).context(|| format!("creating {}", upper.display()))?;
    }
    if !work.exists() {
        std::fs::create_dir(&work).context(|| format!("creating {}", work.display()))?;
    }
    configure(layers, &upper, &work).context(|| {
        let missing = layers.iter().find(|layer| !layer.is_dir());
        match missing {
            Some(layer) => format!("mounting the overlay: layer {} is missing", layer.display()),
            None => format!("mounting the overlay of {} layers", layers.len()),
        }
    })
}

/// The merged root directory has the attributes of the upper one: they are
/// those of the image's topmost layer.
fn upper_like(upper: &Path, top: &Path) -> std::io::Result<()> {
    std::fs::create_dir(upper)?;
    let like = std::fs::metadata(top)?;
    std::os::unix::fs::chown(upper, Some(like.uid()), Some(like.gid()))?;
    std::fs::set_permissions(upper, std::fs::Permissions::from_mode(like.mode() & 0o7777))
}

/// `userxattr`: the file server has no right to trusted.* on the host. The
/// others are off because the layers come from several file systems of one
/// virtio-fs device, whose inode numbers and file handles are not stable.
fn configure(layers: &[PathBuf], upper: &Path, work: &Path) -> Result<Detached, Errno> {
    let overlay = Filesystem::new("overlay")?;
    overlay.set("source", Some("bulkhead"))?;
    for layer in layers.iter().rev() {
        overlay.set("lowerdir+", Some(&layer.to_string_lossy()))?;
    }
    overlay.set("upperdir", Some(&upper.to_string_lossy()))?;
    overlay.set("workdir", Some(&work.to_string_lossy()))?;
    overlay.set("userxattr", None)?;
    for option in ["index", "xino", "metacopy"] {
        overlay.set(option, Some("off"))?;
    }
    overlay.mount(0)
}

/// Makes `root` the root of this mount namespace; nothing of the old one stays
/// reachable.
///
/// # Errors
/// The kernel's.
pub fn enter(root: &OwnedFd) -> Result<(), RoleError> {
    let pivot = || {
        fchdir(root)?;
        // "." twice: the old root ends up mounted over the new one, from where
        // it is detached; no directory of the image is needed for it.
        pivot_root(".", ".")?;
        umount2(".", MntFlags::MNT_DETACH)?;
        chdir("/")
    };
    pivot().context(|| "changing the root".into())
}

/// `linux.rootfsPropagation` and `root.readonly`.
///
/// # Errors
/// The kernel's.
pub fn finish(propagation: Option<(u64, bool)>, readonly: bool) -> Result<(), RoleError> {
    let root = open_path(Path::new("/")).context(|| "opening /".into())?;
    if let Some((propagation, recursive)) = propagation {
        let attributes = Attributes { propagation, ..Attributes::default() };
        crate::sys::mount::set_attributes(root.as_fd(), &attributes, recursive)
            .context(|| "setting linux.rootfsPropagation".into())?;
    }
    if readonly {
        let attributes = Attributes { set: libc::MOUNT_ATTR_RDONLY, ..Attributes::default() };
        crate::sys::mount::set_attributes(root.as_fd(), &attributes, false)
            .context(|| "making the root read-only".into())?;
    }
    Ok(())
}
