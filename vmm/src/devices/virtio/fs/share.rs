//! One share: fuse-backend-rs's `PassthroughFs`, guarded.
//!
//! The guard checks what a hostile or merely newer guest sends before the
//! library turns it into system calls, refuses changes of read-only shares, and
//! does right what the library does not (each place says why).

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use fuse_backend_rs::abi::virtio_fs::RemovemappingOne;
use fuse_backend_rs::api::filesystem::{
    Context, DirEntry, Entry, FileSystem, GetxattrReply, ListxattrReply,
};
use fuse_backend_rs::passthrough::PassthroughFs;
use fuse_backend_rs::transport::FsCacheReqHandler;
use nix::fcntl::AtFlags;
use protocol::machine::ShareKind;

use super::policy::ShareConfig;
use crate::event_loop::borrow;

/// Node id of a share's root within the share.
pub const ROOT: u64 = 1;

/// Largest value or list of extended attributes (XATTR_SIZE_MAX of Linux).
const MAX_XATTR: u32 = 64 << 10;

/// What a guest may say at open. The rest is dropped: O_PATH would follow
/// symbolic links, O_DIRECT wants aligned buffers, O_NONBLOCK and O_ASYNC make no
/// sense here, O_NOATIME is refused for files of others (overlayfs always asks).
const OPEN_FLAGS: u32 = (libc::O_ACCMODE
    | libc::O_APPEND
    | libc::O_TRUNC
    | libc::O_EXCL
    | libc::O_DIRECTORY
    | libc::O_LARGEFILE
    | libc::O_DSYNC
    | libc::O_SYNC) as u32;

/// See the module.
pub struct Share {
    config: ShareConfig,
    inner: PassthroughFs,
}

/// How `readdirplus` gives entries.
pub type AddEntry<'a> = &'a mut dyn FnMut(DirEntry, Entry) -> io::Result<usize>;

impl Share {
    /// Opens the share's root.
    ///
    /// # Errors
    /// When it does not exist, or /proc is not mounted.
    pub fn open(config: ShareConfig) -> io::Result<Share> {
        let settings = config.passthrough().ok_or_else(|| errno(libc::EILSEQ))?;
        let inner = PassthroughFs::new(settings)?;
        inner.import()?;
        Ok(Share { config, inner })
    }

    /// The library's file system, for what needs no guard.
    pub fn inner(&self) -> &PassthroughFs {
        &self.inner
    }

    /// The settings.
    pub fn config(&self) -> &ShareConfig {
        &self.config
    }

    /// The root as an entry of its parent.
    ///
    /// # Errors
    /// As fstat(2).
    pub fn root(&self) -> io::Result<Entry> {
        let (attr, attr_timeout) = self.inner.getattr(&Context::default(), ROOT, None)?;
        let timeout = self.config.timeout();
        let entry_timeout = if self.config.passing { Duration::ZERO } else { timeout };
        Ok(Entry { inode: ROOT, attr, attr_timeout, entry_timeout, ..Entry::default() })
    }

    /// Refuses changes of a read-only share.
    ///
    /// # Errors
    /// EROFS.
    pub fn writable(&self) -> io::Result<()> {
        if self.config.refuses_changes() { Err(errno(libc::EROFS)) } else { Ok(()) }
    }

    /// Checks a change of `name`.
    ///
    /// # Errors
    /// EROFS, or EINVAL for what is not one component.
    pub fn change(&self, name: &CStr) -> io::Result<()> {
        self.writable()?;
        component(name)
    }

    /// The flags for open(2) and fcntl(2); EROFS for changes.
    ///
    /// # Errors
    /// EROFS.
    pub fn open_flags(&self, flags: u32) -> io::Result<u32> {
        let writes = flags & libc::O_ACCMODE as u32 != libc::O_RDONLY as u32
            || flags & libc::O_TRUNC as u32 != 0;
        if writes {
            self.writable()?;
        }
        Ok(io_flags(flags))
    }

    /// Looks a name up. Absence is an entry as well where it may be cached; the
    /// library never says so.
    ///
    /// # Errors
    /// As openat(2).
    pub fn lookup(&self, ctx: &Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        // The library lets ".." out of any directory but the root.
        component(name)?;
        match (self.inner.lookup(ctx, parent, name), self.config.absence()) {
            (Err(error), Some(entry_timeout)) if error.raw_os_error() == Some(libc::ENOENT) => {
                Ok(Entry { entry_timeout, ..Entry::default() })
            }
            (result, _) => result,
        }
    }

    /// Lists a directory with its entries' attributes. When the host removes an
    /// entry between getdents and its lookup, the library fails, or, after "."
    /// and "..", says that the directory ends: look again.
    ///
    /// # Errors
    /// As getdents64(2).
    pub fn readdirplus(
        &self,
        ctx: &Context,
        (inode, handle): (u64, u64),
        size: u32,
        offset: u64,
        add: AddEntry,
    ) -> io::Result<()> {
        // Nobody else changes the other kinds.
        let mut tries = if self.config.kind == ShareKind::Live { 3 } else { 1 };
        loop {
            let mut added = false;
            let mut add = |line: DirEntry, entry: Entry| {
                added = true;
                add(line, entry)
            };
            let result = self.inner.readdirplus(ctx, inode, handle, size, offset, &mut add);
            let gone = result.as_ref().is_err_and(|e| e.raw_os_error() == Some(libc::ENOENT));
            tries -= 1;
            if tries == 0 || added || result.is_err() && !gone {
                return result;
            }
        }
    }

    /// Makes a node. Devices belong to nobody in here, save 0:0, which is an
    /// overlay's whiteout.
    ///
    /// # Errors
    /// EPERM, or as mknodat(2).
    pub fn mknod(
        &self,
        ctx: &Context,
        parent: u64,
        name: &CStr,
        (mode, rdev, umask): (u32, u32, u32),
    ) -> io::Result<Entry> {
        self.change(name)?;
        match mode & libc::S_IFMT {
            libc::S_IFREG | libc::S_IFIFO | libc::S_IFSOCK => {}
            libc::S_IFCHR if rdev == 0 => {}
            _ => return Err(errno(libc::EPERM)),
        }
        self.inner.mknod(ctx, parent, name, mode, rdev, umask)
    }

    /// Makes a hard link. The library's linkat(AT_EMPTY_PATH) needs
    /// CAP_DAC_READ_SEARCH in the initial user namespace, which we never have.
    ///
    /// # Errors
    /// As linkat(2).
    pub fn link(&self, ctx: &Context, inode: u64, parent: u64, name: &CStr) -> io::Result<Entry> {
        self.change(name)?;
        let directory = self.borrow_file(parent)?;
        match self.borrow_file(inode) {
            Ok(file) => {
                let path = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
                let follow = AtFlags::AT_SYMLINK_FOLLOW;
                nix::unistd::linkat(nix::fcntl::AT_FDCWD, path.as_c_str(), &directory, name, follow)
            }
            // Symbolic links and special files cannot be opened, so that only
            // their path is left. Whatever it leads to by now lies on the same
            // mount, or linkat says EXDEV.
            Err(_) => {
                let path = self.inner.readlinkat_proc_file(inode)?;
                let flags = AtFlags::empty();
                nix::unistd::linkat(nix::fcntl::AT_FDCWD, &path, &directory, name, flags)
            }
        }?;
        self.inner.lookup(ctx, parent, name)
    }

    /// A descriptor of a regular file or directory. `setupmapping` is the one
    /// way in which the library gives one away.
    fn borrow_file(&self, inode: u64) -> io::Result<OwnedFd> {
        let mut caught = Catch(None);
        let ctx = Context::default();
        self.inner.setupmapping(&ctx, inode, 0, 0, 0, 0, 0, &mut caught)?;
        caught.0.ok_or_else(|| errno(libc::EBADF))
    }

    /// Reads an extended attribute.
    ///
    /// # Errors
    /// As getxattr(2).
    pub fn getxattr(&self, ctx: &Context, inode: u64, name: &CStr, size: u32) -> Got {
        attribute(name)?;
        // The library allocates what the guest says.
        self.inner.getxattr(ctx, inode, name, size.min(MAX_XATTR))
    }

    /// Lists the extended attributes.
    ///
    /// # Errors
    /// As listxattr(2).
    pub fn listxattr(&self, ctx: &Context, inode: u64, size: u32) -> io::Result<ListxattrReply> {
        let all = match self.inner.listxattr(ctx, inode, MAX_XATTR)? {
            ListxattrReply::Names(names) => names,
            count => return Ok(count),
        };
        let mut names = Vec::with_capacity(all.len());
        for name in all.split_inclusive(|&byte| byte == 0) {
            if CStr::from_bytes_with_nul(name).is_ok_and(|name| attribute(name).is_ok()) {
                names.extend_from_slice(name);
            }
        }
        match size {
            0 => Ok(ListxattrReply::Count(names.len() as u32)),
            size if (size as usize) < names.len() => Err(errno(libc::ERANGE)),
            _ => Ok(ListxattrReply::Names(names)),
        }
    }

    /// Checks a change of the extended attribute `name`.
    ///
    /// # Errors
    /// EROFS or EOPNOTSUPP.
    pub fn change_attribute(&self, name: &CStr) -> io::Result<()> {
        self.writable()?;
        attribute(name)
    }

    /// Reads a symbolic link.
    ///
    /// # Errors
    /// As readlinkat(2).
    pub fn readlink(&self, ctx: &Context, inode: u64) -> io::Result<Vec<u8>> {
        self.inner.readlink(ctx, inode)
    }
}

/// What `getxattr` gives.
pub type Got = io::Result<GetxattrReply>;

/// Keeps a duplicate of the descriptor that `setupmapping` shows.
struct Catch(Option<OwnedFd>);

impl FsCacheReqHandler for Catch {
    fn map(&mut self, _: u64, _: u64, _: u64, _: u64, fd: RawFd) -> io::Result<()> {
        self.0 = Some(nix::unistd::dup(borrow(fd))?);
        Ok(())
    }

    fn unmap(&mut self, _: Vec<RemovemappingOne>) -> io::Result<()> {
        Ok(())
    }
}

/// Flags that stay when a file is read or written. The library passes them to
/// fcntl(F_SETFL) whenever they differ from those of open.
pub fn io_flags(flags: u32) -> u32 {
    flags & OPEN_FLAGS
}

/// One path component and nothing else.
fn component(name: &CStr) -> io::Result<()> {
    match name.to_bytes() {
        b"" | b"." | b".." => Err(errno(libc::EINVAL)),
        name if name.contains(&b'/') => Err(errno(libc::EINVAL)),
        _ => Ok(()),
    }
}

/// Attributes that mean the same on both sides of the wall. `trusted.*` needs a
/// capability of the initial namespace; POSIX ACLs would be kept but enforced by
/// nobody, and it is better to say so.
fn attribute(name: &CStr) -> io::Result<()> {
    let name = name.to_bytes();
    let known = name.starts_with(b"user.") || name == b"security.capability";
    if known { Ok(()) } else { Err(errno(libc::EOPNOTSUPP)) }
}

/// An error by number.
pub fn errno(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}
