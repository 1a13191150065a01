//! The tree's FUSE operations: find the share, guard, delegate, number.

use std::ffi::CStr;
use std::io;
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::{
    CreateIn, FsOptions, OpenOptions, SetattrValid, stat64, statvfs64,
};
use fuse_backend_rs::api::filesystem::{
    Context, DirEntry, Entry, FileSystem, GetxattrReply, ListxattrReply, ZeroCopyReader,
    ZeroCopyWriter,
};

use super::pseudo;
use super::share::{ROOT, errno, io_flags};
use super::tree::{Node, ShareTree, wanted};

impl FileSystem for ShareTree {
    type Inode = u64;
    type Handle = u64;

    fn init(&self, capable: FsOptions) -> io::Result<FsOptions> {
        self.reset(Some(capable & wanted()))?;
        Ok(wanted())
    }

    fn destroy(&self) {
        // Without options there is nothing that could fail.
        let _ = self.reset(None);
    }

    fn lookup(&self, ctx: &Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        match self.node(parent)? {
            Node::Pseudo(parent) => self.lookup_pseudo(parent, name),
            Node::Share(index, share, parent) => {
                Ok(self.outward(index, share.lookup(ctx, parent, name)?))
            }
        }
    }

    fn forget(&self, ctx: &Context, inode: u64, count: u64) {
        self.forget_node(ctx, inode, count);
    }

    fn batch_forget(&self, ctx: &Context, requests: Vec<(u64, u64)>) {
        for (inode, count) in requests {
            self.forget(ctx, inode, count);
        }
    }

    fn getattr(
        &self,
        ctx: &Context,
        inode: u64,
        handle: Option<u64>,
    ) -> io::Result<(stat64, Duration)> {
        match self.node(inode)? {
            Node::Pseudo(inode) => Ok(pseudo::attributes(inode)),
            Node::Share(_, share, inner) => {
                let (mut attr, timeout) = share.inner().getattr(ctx, inner, handle)?;
                self.number(&mut attr);
                Ok((attr, timeout))
            }
        }
    }

    fn setattr(
        &self,
        ctx: &Context,
        inode: u64,
        attr: stat64,
        handle: Option<u64>,
        valid: SetattrValid,
    ) -> io::Result<(stat64, Duration)> {
        let (_, share, inner) = self.share(inode)?;
        share.writable()?;
        let (mut attr, timeout) = share.inner().setattr(ctx, inner, attr, handle, valid)?;
        self.number(&mut attr);
        Ok((attr, timeout))
    }

    fn readlink(&self, ctx: &Context, inode: u64) -> io::Result<Vec<u8>> {
        let (_, share, inner) = self.share(inode)?;
        share.readlink(ctx, inner)
    }

    fn symlink(&self, ctx: &Context, to: &CStr, parent: u64, name: &CStr) -> io::Result<Entry> {
        let (index, share, parent) = self.share(parent)?;
        share.change(name)?;
        Ok(self.outward(index, share.inner().symlink(ctx, to, parent, name)?))
    }

    fn mknod(
        &self,
        ctx: &Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        rdev: u32,
        umask: u32,
    ) -> io::Result<Entry> {
        let (index, share, parent) = self.share(parent)?;
        Ok(self.outward(index, share.mknod(ctx, parent, name, (mode, rdev, umask))?))
    }

    fn mkdir(
        &self,
        ctx: &Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        umask: u32,
    ) -> io::Result<Entry> {
        let (index, share, parent) = self.share(parent)?;
        share.change(name)?;
        Ok(self.outward(index, share.inner().mkdir(ctx, parent, name, mode, umask)?))
    }

    fn unlink(&self, ctx: &Context, parent: u64, name: &CStr) -> io::Result<()> {
        let (_, share, parent) = self.share(parent)?;
        share.change(name)?;
        share.inner().unlink(ctx, parent, name)
    }

    fn rmdir(&self, ctx: &Context, parent: u64, name: &CStr) -> io::Result<()> {
        let (_, share, parent) = self.share(parent)?;
        share.change(name)?;
        share.inner().rmdir(ctx, parent, name)
    }

    fn rename(
        &self,
        ctx: &Context,
        from: u64,
        old: &CStr,
        to: u64,
        new: &CStr,
        flags: u32,
    ) -> io::Result<()> {
        let (_, share, from, to) = self.pair(from, to)?;
        share.change(old)?;
        share.change(new)?;
        share.inner().rename(ctx, from, old, to, new, flags)
    }

    fn link(&self, ctx: &Context, inode: u64, parent: u64, name: &CStr) -> io::Result<Entry> {
        let (index, share, inode, parent) = self.pair(inode, parent)?;
        Ok(self.outward(index, share.link(ctx, inode, parent, name)?))
    }

    fn open(
        &self,
        ctx: &Context,
        inode: u64,
        flags: u32,
        fuse_flags: u32,
    ) -> io::Result<(Option<u64>, OpenOptions, Option<u32>)> {
        let (_, share, inner) = self.share(inode)?;
        share.inner().open(ctx, inner, share.open_flags(flags)?, fuse_flags)
    }

    fn create(
        &self,
        ctx: &Context,
        parent: u64,
        name: &CStr,
        mut args: CreateIn,
    ) -> io::Result<(Entry, Option<u64>, OpenOptions, Option<u32>)> {
        let (index, share, parent) = self.share(parent)?;
        share.change(name)?;
        args.flags = share.open_flags(args.flags)? & !(libc::O_DIRECTORY as u32)
            | (libc::O_CLOEXEC | libc::O_NOFOLLOW) as u32;
        let (entry, handle, options, extra) = share.inner().create(ctx, parent, name, args)?;
        Ok((self.outward(index, entry), handle, options, extra))
    }

    fn read(
        &self,
        ctx: &Context,
        inode: u64,
        handle: u64,
        to: &mut dyn ZeroCopyWriter,
        size: u32,
        offset: u64,
        owner: Option<u64>,
        flags: u32,
    ) -> io::Result<usize> {
        let (_, share, inner) = self.share(inode)?;
        share.inner().read(ctx, inner, handle, to, size, offset, owner, io_flags(flags))
    }

    fn write(
        &self,
        ctx: &Context,
        inode: u64,
        handle: u64,
        from: &mut dyn ZeroCopyReader,
        size: u32,
        offset: u64,
        owner: Option<u64>,
        delayed: bool,
        flags: u32,
        fuse_flags: u32,
    ) -> io::Result<usize> {
        let (_, share, inner) = self.share(inode)?;
        share.writable()?;
        let (inner_fs, flags) = (share.inner(), io_flags(flags));
        inner_fs.write(ctx, inner, handle, from, size, offset, owner, delayed, flags, fuse_flags)
    }

    /// Not needed on a local file system: one round trip less for each close(2).
    fn flush(&self, _: &Context, _: u64, _: u64, _: u64) -> io::Result<()> {
        Err(errno(libc::ENOSYS))
    }

    fn fsync(&self, ctx: &Context, inode: u64, data: bool, handle: u64) -> io::Result<()> {
        let (_, share, inner) = self.share(inode)?;
        share.inner().fsync(ctx, inner, data, handle)
    }

    fn fallocate(
        &self,
        ctx: &Context,
        inode: u64,
        handle: u64,
        mode: u32,
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        let (_, share, inner) = self.share(inode)?;
        share.writable()?;
        share.inner().fallocate(ctx, inner, handle, mode, offset, length)
    }

    fn release(
        &self,
        ctx: &Context,
        inode: u64,
        flags: u32,
        handle: u64,
        flush: bool,
        unlock: bool,
        owner: Option<u64>,
    ) -> io::Result<()> {
        let (_, share, inner) = self.share(inode)?;
        share.inner().release(ctx, inner, flags, handle, flush, unlock, owner)
    }

    fn statfs(&self, ctx: &Context, inode: u64) -> io::Result<statvfs64> {
        match self.node(inode)? {
            Node::Share(_, share, inner) => share.inner().statfs(ctx, inner),
            Node::Pseudo(_) => match self.first() {
                Some(share) => share.inner().statfs(ctx, ROOT),
                None => Err(errno(libc::ENOTSUP)),
            },
        }
    }

    fn setxattr(
        &self,
        ctx: &Context,
        inode: u64,
        name: &CStr,
        value: &[u8],
        flags: u32,
    ) -> io::Result<()> {
        let (_, share, inner) = self.share(inode)?;
        share.change_attribute(name)?;
        share.inner().setxattr(ctx, inner, name, value, flags)
    }

    fn getxattr(
        &self,
        ctx: &Context,
        inode: u64,
        name: &CStr,
        size: u32,
    ) -> io::Result<GetxattrReply> {
        match self.node(inode)? {
            Node::Pseudo(_) => Err(errno(libc::ENODATA)),
            Node::Share(_, share, inner) => share.getxattr(ctx, inner, name, size),
        }
    }

    fn listxattr(&self, ctx: &Context, inode: u64, size: u32) -> io::Result<ListxattrReply> {
        match self.node(inode)? {
            Node::Pseudo(_) => Ok(ListxattrReply::Count(0)),
            Node::Share(_, share, inner) => share.listxattr(ctx, inner, size),
        }
    }

    fn removexattr(&self, ctx: &Context, inode: u64, name: &CStr) -> io::Result<()> {
        let (_, share, inner) = self.share(inode)?;
        share.change_attribute(name)?;
        share.inner().removexattr(ctx, inner, name)
    }

    fn opendir(
        &self,
        ctx: &Context,
        inode: u64,
        flags: u32,
    ) -> io::Result<(Option<u64>, OpenOptions)> {
        match self.node(inode)? {
            Node::Pseudo(_) => Ok((Some(0), OpenOptions::CACHE_DIR | OpenOptions::KEEP_CACHE)),
            Node::Share(_, share, inner) => {
                let flags = io_flags(flags) & !(libc::O_ACCMODE | libc::O_TRUNC) as u32;
                share.inner().opendir(ctx, inner, flags)
            }
        }
    }

    fn readdir(
        &self,
        ctx: &Context,
        inode: u64,
        handle: u64,
        size: u32,
        offset: u64,
        add: &mut dyn FnMut(DirEntry) -> io::Result<usize>,
    ) -> io::Result<()> {
        // The library numbers entries by node id here, by st_ino in readdirplus:
        // take the latter for both, and give back the reference that it counts.
        self.list(ctx, (inode, handle), size, offset, &mut |line, entry| {
            let result = add(line);
            if matches!(result, Ok(count) if count > 0) || result.is_err() {
                self.forget(ctx, entry.inode, 1);
            }
            result
        })
    }

    fn readdirplus(
        &self,
        ctx: &Context,
        inode: u64,
        handle: u64,
        size: u32,
        offset: u64,
        add: &mut dyn FnMut(DirEntry, Entry) -> io::Result<usize>,
    ) -> io::Result<()> {
        self.list(ctx, (inode, handle), size, offset, add)
    }

    fn fsyncdir(&self, ctx: &Context, inode: u64, data: bool, handle: u64) -> io::Result<()> {
        match self.node(inode)? {
            Node::Pseudo(_) => Ok(()),
            Node::Share(_, share, inner) => share.inner().fsyncdir(ctx, inner, data, handle),
        }
    }

    fn releasedir(&self, ctx: &Context, inode: u64, flags: u32, handle: u64) -> io::Result<()> {
        match self.node(inode)? {
            Node::Pseudo(_) => Ok(()),
            Node::Share(_, share, inner) => share.inner().releasedir(ctx, inner, flags, handle),
        }
    }

    fn access(&self, _: &Context, _: u64, _: u32) -> io::Result<()> {
        // The guest's kernel decides (default_permissions).
        Err(errno(libc::ENOSYS))
    }

    fn lseek(
        &self,
        ctx: &Context,
        inode: u64,
        handle: u64,
        offset: u64,
        whence: u32,
    ) -> io::Result<u64> {
        let (_, share, inner) = self.share(inode)?;
        match whence as i32 {
            libc::SEEK_DATA | libc::SEEK_HOLE => {
                share.inner().lseek(ctx, inner, handle, offset, whence)
            }
            _ => Err(errno(libc::EINVAL)),
        }
    }
}
