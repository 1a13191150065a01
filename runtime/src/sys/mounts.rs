//! Detached mounts: open_tree(2), mount_setattr(2), move_mount(2).
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

// <linux/mount.h>
const OPEN_TREE_CLONE: u32 = 1;
const AT_RECURSIVE: u32 = 0x8000;
const OPEN_TREE_CLOEXEC: u32 = libc::O_CLOEXEC as u32;
const MOVE_MOUNT_F_EMPTY_PATH: u32 = 4;
const FSOPEN_CLOEXEC: u32 = 1;
const FSCONFIG_CMD_CREATE: u32 = 6;
const FSMOUNT_CLOEXEC: u32 = 1;
const MOUNT_ATTR_RDONLY: u64 = 0x1;
const MOUNT_ATTR_NOSUID: u64 = 0x2;
const MOUNT_ATTR_NODEV: u64 = 0x4;
const MOUNT_ATTR_NOEXEC: u64 = 0x8;
const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;

/// `struct mount_attr`.
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

/// A private copy of the mount at `path` (an O_PATH descriptor), from there
/// downwards, without what is mounted below it. It is in no namespace and gone
/// with its last descriptor.
///
/// # Errors
/// As open_tree(2).
pub fn clone_detached(path: BorrowedFd) -> nix::Result<OwnedFd> {
    open_tree(path, OPEN_TREE_CLONE)
}

/// [`clone_detached`] with all that is mounted below.
///
/// # Errors
/// As open_tree(2).
pub fn clone_tree(path: BorrowedFd) -> nix::Result<OwnedFd> {
    open_tree(path, OPEN_TREE_CLONE | AT_RECURSIVE)
}

fn open_tree(path: BorrowedFd, flags: u32) -> nix::Result<OwnedFd> {
    let flags = flags | OPEN_TREE_CLOEXEC | libc::AT_EMPTY_PATH as u32;
    // SAFETY: open_tree takes a descriptor, a NUL-terminated string and flags,
    // all of which live over the call.
    let fd = Errno::result(unsafe {
        libc::syscall(libc::SYS_open_tree, path.as_raw_fd(), c"".as_ptr(), flags)
    })?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// A mount of the kernel's own file system `kind`, without options. It is in no
/// namespace and gone with its last descriptor.
///
/// # Errors
/// As fsopen(2), fsconfig(2) and fsmount(2).
pub fn detached(kind: &CStr) -> nix::Result<OwnedFd> {
    // SAFETY: the name lives over the call.
    let context =
        Errno::result(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) })?;
    // SAFETY: the kernel has just made this descriptor for us.
    let context = unsafe { OwnedFd::from_raw_fd(context as i32) };
    let none = std::ptr::null::<libc::c_char>();
    // SAFETY: this command takes neither key nor value.
    Errno::result(unsafe {
        libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), FSCONFIG_CMD_CREATE, none, none, 0)
    })?;
    let attributes = restrictions(true);
    // SAFETY: fsmount takes a descriptor and flags.
    let mount = Errno::result(unsafe {
        libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), FSMOUNT_CLOEXEC, attributes)
    })?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(mount as i32) })
}

/// Maps the ids of a detached mount by the user namespace `userns`, forbids
/// devices, set-uid bits and execution through it, and writes on request.
///
/// # Errors
/// As mount_setattr(2); EINVAL when the file system cannot be id-mapped.
pub fn restrict_and_map(mount: BorrowedFd, userns: BorrowedFd, read_only: bool) -> nix::Result<()> {
    change(mount, MOUNT_ATTR_IDMAP | restrictions(read_only), userns.as_raw_fd() as u64)
}

/// [`restrict_and_map`] of a mount whose ids are mapped below it already.
///
/// # Errors
/// As mount_setattr(2).
pub fn restrict(mount: BorrowedFd, read_only: bool) -> nix::Result<()> {
    change(mount, restrictions(read_only), 0)
}

fn restrictions(read_only: bool) -> u64 {
    let read_only = if read_only { MOUNT_ATTR_RDONLY } else { 0 };
    MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC | read_only
}

fn change(mount: BorrowedFd, set: u64, userns_fd: u64) -> nix::Result<()> {
    let attr = MountAttr { set, clear: 0, propagation: 0, userns_fd };
    // SAFETY: the kernel reads `size_of` bytes of `attr`, which has the layout
    // of its struct mount_attr, and a NUL-terminated string.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    })?;
    Ok(())
}

/// Attaches a detached mount at `path`, in the mount namespace of this thread.
///
/// # Errors
/// As move_mount(2).
pub fn attach(mount: BorrowedFd, path: &CStr) -> nix::Result<()> {
    // SAFETY: move_mount takes descriptors, NUL-terminated strings and flags,
    // all of which live over the call.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            path.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    })?;
    Ok(())
}
