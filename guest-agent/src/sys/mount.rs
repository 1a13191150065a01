//! The mount API of file descriptors (fsopen, open_tree, mount_setattr,
//! move_mount): a mount is made and given its flags before it is anywhere to
//! be seen, and is attached to a descriptor, never to a path that a hostile
//! image could turn aside. Its options are separate strings, so that a hundred
//! overlay layers do not have to fit into mount(2)'s one page.
#![allow(unsafe_code)]

use std::ffi::{CString, c_int, c_uint};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use nix::NixPath;
use nix::errno::Errno;

const FSCONFIG_SET_FLAG: c_uint = 0;
const FSCONFIG_SET_STRING: c_uint = 1;
const FSCONFIG_CMD_CREATE: c_uint = 6;
const FSOPEN_CLOEXEC: c_uint = 1;
const FSMOUNT_CLOEXEC: c_uint = 1;
const OPEN_TREE_CLONE: c_uint = 1;
const MOVE_MOUNT_F_EMPTY_PATH: c_uint = 4;
const MOVE_MOUNT_T_EMPTY_PATH: c_uint = 0x40;

/// A file system that is being configured.
#[derive(Debug)]
pub struct Context(OwnedFd);

/// A mount that is attached nowhere yet.
#[derive(Debug)]
pub struct Detached(OwnedFd);

fn owned(result: libc::c_long) -> Result<OwnedFd, Errno> {
    let fd = super::check(result)?;
    // SAFETY: the calls of this module return new descriptors, owned by no one.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as c_int) })
}

fn c_string(text: &str) -> Result<CString, Errno> {
    CString::new(text).map_err(|_| Errno::EINVAL)
}

impl Context {
    /// A context for file-system type `kind`.
    ///
    /// # Errors
    /// ENODEV when the kernel has no such type.
    pub fn new(kind: &str) -> Result<Self, Errno> {
        let kind = c_string(kind)?;
        // SAFETY: the string is NUL-terminated and outlives the call.
        owned(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) }).map(Self)
    }

    /// Sets option `key`, to `value` or as a flag.
    ///
    /// # Errors
    /// EINVAL when the file system does not know it.
    pub fn set(&self, key: &str, value: Option<&str>) -> Result<(), Errno> {
        let key = c_string(key)?;
        let value = value.map(c_string).transpose()?;
        let (command, pointer) = match &value {
            Some(value) => (FSCONFIG_SET_STRING, value.as_ptr()),
            None => (FSCONFIG_SET_FLAG, std::ptr::null()),
        };
        let fd = self.0.as_raw_fd();
        // SAFETY: both strings are NUL-terminated and outlive the call; a flag
        // takes a null value.
        super::check(unsafe {
            libc::syscall(libc::SYS_fsconfig, fd, command, key.as_ptr(), pointer, 0)
        })
        .map(drop)
    }

    /// Creates the file system and a mount of it with MOUNT_ATTR_* `attributes`.
    ///
    /// # Errors
    /// The file system's.
    pub fn mount(self, attributes: u64) -> Result<Detached, Errno> {
        let fd = self.0.as_raw_fd();
        let null = std::ptr::null::<libc::c_char>();
        // SAFETY: FSCONFIG_CMD_CREATE takes null key and value.
        super::check(unsafe {
            libc::syscall(libc::SYS_fsconfig, fd, FSCONFIG_CMD_CREATE, null, null, 0)
        })?;
        // SAFETY: integers only.
        owned(unsafe {
            libc::syscall(libc::SYS_fsmount, fd, FSMOUNT_CLOEXEC, attributes as c_uint)
        })
        .map(Detached)
    }
}

/// Changes that mount_setattr(2) makes.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Attributes {
    /// MOUNT_ATTR_* to set.
    pub set: u64,
    /// MOUNT_ATTR_* to clear.
    pub clear: u64,
    /// MS_SHARED, MS_PRIVATE, MS_SLAVE or MS_UNBINDABLE; 0 leaves it.
    pub propagation: u64,
    /// For MOUNT_ATTR_IDMAP: the user namespace.
    pub userns: u64,
}

/// Changes the mount that `fd` is the root of.
///
/// # Errors
/// The kernel's.
pub fn set_attributes(
    fd: BorrowedFd,
    attributes: &Attributes,
    recursive: bool,
) -> Result<(), Errno> {
    let mut flags = libc::AT_EMPTY_PATH;
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: the structure has the kernel's layout (mount_attr), its size is
    // given, and path is an empty NUL-terminated string.
    super::check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            c"".as_ptr(),
            flags as c_uint,
            std::ptr::from_ref(attributes),
            size_of::<Attributes>(),
        )
    })
    .map(drop)
}

impl Detached {
    /// A copy of the mount at `path` relative to `dir` (bind mount).
    ///
    /// # Errors
    /// The kernel's, of open_tree(2).
    pub fn copy_of<P: NixPath + ?Sized>(
        dir: BorrowedFd,
        path: &P,
        recursive: bool,
    ) -> Result<Self, Errno> {
        let mut flags = OPEN_TREE_CLONE | libc::O_CLOEXEC as c_uint | libc::AT_EMPTY_PATH as c_uint;
        if recursive {
            flags |= libc::AT_RECURSIVE as c_uint;
        }
        let result = path.with_nix_path(|path| {
            // SAFETY: the path is NUL-terminated and outlives the call.
            unsafe { libc::syscall(libc::SYS_open_tree, dir.as_raw_fd(), path.as_ptr(), flags) }
        })?;
        owned(result).map(Self)
    }

    /// A copy of the mount (or file) that `fd` refers to.
    ///
    /// # Errors
    /// The kernel's, of open_tree(2).
    pub fn copy_of_fd(fd: BorrowedFd, recursive: bool) -> Result<Self, Errno> {
        Self::copy_of(fd, c"", recursive)
    }

    /// Changes flags or propagation.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set(&self, attributes: &Attributes, recursive: bool) -> Result<(), Errno> {
        set_attributes(self.0.as_fd(), attributes, recursive)
    }

    /// Attaches the mount over what `target` refers to.
    ///
    /// # Errors
    /// The kernel's, of move_mount(2).
    pub fn attach(&self, target: BorrowedFd) -> Result<(), Errno> {
        let flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH;
        let empty = c"".as_ptr();
        // SAFETY: both paths are empty NUL-terminated strings.
        super::check(unsafe {
            libc::syscall(
                libc::SYS_move_mount,
                self.0.as_raw_fd(),
                empty,
                target.as_raw_fd(),
                empty,
                flags,
            )
        })
        .map(drop)
    }

    /// Attaches the mount at a path of the agent's own, trusted tree.
    ///
    /// # Errors
    /// The kernel's, of open(2) and move_mount(2).
    pub fn attach_at(&self, path: &Path) -> Result<(), Errno> {
        self.attach(open_path(path)?.as_fd())
    }

    /// The root of the mount.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// An O_PATH descriptor of `path`.
///
/// # Errors
/// The kernel's, of open(2).
pub fn open_path(path: &Path) -> Result<OwnedFd, Errno> {
    use nix::fcntl::{OFlag, open};
    open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, nix::sys::stat::Mode::empty())
}
