//! The share tree as one file system: a root, a directory for each kind, and the
//! shares below.
//!
//! ```text
//! node id:   63        56 55                                    0
//!            | share + 1 | node id within the share (root: 1)   |
//!            |     0     | 1: root, 2: immutable, 3: private, 4: live |
//! ```
//!
//! Inode numbers (st_ino) are those of the host, with the number of the host
//! device on top, so that they stay small and unique as long as all shares lie
//! on one host file system.

use std::ffi::CStr;
use std::io;
use std::sync::Mutex;

use fuse_backend_rs::abi::fuse_abi::{FsOptions, stat64};
use fuse_backend_rs::api::filesystem::{Context, DirEntry, Entry};
use protocol::machine::ShareKind;

use super::policy::ShareConfig;
use super::pseudo;
use super::share::{Share, errno};

/// Shift of the share's number in a node id.
const SHARE_SHIFT: u32 = 56;
/// Most shares of a tree.
pub const MAX_SHARES: usize = 254;
/// Shift of the device's number in an inode number.
const DEVICE_SHIFT: u32 = 48;
/// Most host devices that are told apart.
const MAX_DEVICES: usize = 250;

/// What we ask of the guest's kernel. Not asked for, and why: POSIX_LOCKS and
/// FLOCK_LOCKS (one guest: its own locks do), POSIX_ACL (a request per file for
/// what nearly nobody sets), WRITEBACK_CACHE, NO_OPEN_SUPPORT (see
/// [`super::policy`]), AUTO_INVAL_DATA (it would drop a private file's pages
/// after each write of the guest itself), DONT_MASK (the guest applies umask).
pub(super) fn wanted() -> FsOptions {
    FsOptions::ASYNC_READ
        | FsOptions::BIG_WRITES
        | FsOptions::MAX_PAGES
        | FsOptions::PARALLEL_DIROPS
        | FsOptions::ASYNC_DIO
        | FsOptions::DO_READDIRPLUS
        | FsOptions::READDIRPLUS_AUTO
        | FsOptions::CACHE_SYMLINKS
        | FsOptions::HANDLE_KILLPRIV_V2
}

/// See the module.
pub struct ShareTree {
    pub(super) shares: Vec<Share>,
    devices: Mutex<Vec<u64>>,
}

/// Where a node id leads.
pub(super) enum Node<'a> {
    Pseudo(u64),
    Share(usize, &'a Share, u64),
}

impl ShareTree {
    /// Opens all shares.
    ///
    /// # Errors
    /// When a share cannot be opened, a name is not one component or taken, or
    /// there are more than [`MAX_SHARES`].
    pub fn open(configs: &[ShareConfig]) -> io::Result<ShareTree> {
        if configs.len() > MAX_SHARES {
            return Err(io::Error::other(format!("more than {MAX_SHARES} shares")));
        }
        let mut shares: Vec<Share> = Vec::with_capacity(configs.len());
        for config in configs {
            let plain = !matches!(config.name.as_str(), "" | "." | "..")
                && !config.name.contains(['/', '\0']);
            let taken = shares.iter().any(|share| {
                share.config().kind == config.kind && share.config().name == config.name
            });
            if !plain || taken {
                return Err(io::Error::other(format!("bad share name {:?}", config.name)));
            }
            shares.push(Share::open(config.clone()).map_err(|error| {
                io::Error::new(error.kind(), format!("share {:?}: {error}", config.path))
            })?);
        }
        Ok(ShareTree { shares, devices: Mutex::default() })
    }

    pub(super) fn node(&self, id: u64) -> io::Result<Node<'_>> {
        let number = (id >> SHARE_SHIFT) as usize;
        let inner = id & ((1 << SHARE_SHIFT) - 1);
        match number.checked_sub(1) {
            None if pseudo::exists(inner) => Ok(Node::Pseudo(inner)),
            None => Err(errno(libc::ESTALE)),
            Some(index) => {
                let share = self.shares.get(index).ok_or_else(|| errno(libc::ESTALE))?;
                Ok(Node::Share(index, share, inner))
            }
        }
    }

    /// The share of a node; the directories above them belong to nobody.
    pub(super) fn share(&self, id: u64) -> io::Result<(usize, &Share, u64)> {
        match self.node(id)? {
            Node::Share(index, share, inner) => Ok((index, share, inner)),
            Node::Pseudo(_) => Err(errno(libc::EROFS)),
        }
    }

    /// Two nodes of one share.
    pub(super) fn pair(&self, one: u64, other: u64) -> io::Result<(usize, &Share, u64, u64)> {
        let (index, share, one) = self.share(one)?;
        let (second, _, other) = self.share(other)?;
        if index == second { Ok((index, share, one, other)) } else { Err(errno(libc::EXDEV)) }
    }

    /// Makes an entry of a share one of the tree.
    pub(super) fn outward(&self, index: usize, mut entry: Entry) -> Entry {
        if entry.inode != 0 {
            entry.inode |= (index as u64 + 1) << SHARE_SHIFT;
            self.number(&mut entry.attr);
        }
        entry
    }

    pub(super) fn number(&self, attr: &mut stat64) {
        // Only a panic could poison it, and that ends the process.
        let mut devices = self.devices.lock().expect("not poisoned");
        let known = devices.iter().position(|&device| device == attr.st_dev);
        let device = known.unwrap_or_else(|| {
            if devices.len() < MAX_DEVICES {
                devices.push(attr.st_dev);
            }
            devices.len() - 1
        });
        attr.st_ino ^= (device as u64) << DEVICE_SHIFT;
    }

    fn of_kind(&self, kind: ShareKind) -> impl Iterator<Item = (usize, &Share)> {
        self.shares.iter().enumerate().filter(move |(_, share)| share.config().kind == kind)
    }

    pub(super) fn lookup_pseudo(&self, parent: u64, name: &CStr) -> io::Result<Entry> {
        if parent == pseudo::ROOT {
            return pseudo::lookup(name);
        }
        let kind = pseudo::kind(parent).ok_or_else(|| errno(libc::ESTALE))?;
        let found = self.of_kind(kind).find(|(_, s)| s.config().name.as_bytes() == name.to_bytes());
        let (index, share) = found.ok_or_else(|| errno(libc::ENOENT))?;
        Ok(self.outward(index, share.root()?))
    }

    fn list_pseudo(
        &self,
        inode: u64,
        offset: u64,
        add: &mut dyn FnMut(DirEntry, Entry) -> io::Result<usize>,
    ) -> io::Result<()> {
        let entries: Vec<(&str, Entry)> = match pseudo::kind(inode) {
            None => pseudo::entries().collect(),
            Some(kind) => self
                .of_kind(kind)
                .map(|(index, share)| {
                    let root = share.root()?;
                    Ok((share.config().name.as_str(), self.outward(index, root)))
                })
                .collect::<io::Result<_>>()?,
        };
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        for (at, (name, entry)) in entries.into_iter().enumerate().skip(skip) {
            let type_ = (entry.attr.st_mode & libc::S_IFMT) >> 12;
            let offset = at as u64 + 1;
            let line = DirEntry { ino: entry.attr.st_ino, offset, type_, name: name.as_bytes() };
            if add(line, entry)? == 0 {
                break;
            }
        }
        Ok(())
    }

    pub(super) fn list(
        &self,
        ctx: &Context,
        (inode, handle): (u64, u64),
        size: u32,
        offset: u64,
        add: &mut dyn FnMut(DirEntry, Entry) -> io::Result<usize>,
    ) -> io::Result<()> {
        match self.node(inode)? {
            Node::Pseudo(inode) => self.list_pseudo(inode, offset, add),
            Node::Share(index, share, inner) => {
                let mut outward = |mut line: DirEntry, entry| {
                    let entry = self.outward(index, entry);
                    line.ino = entry.attr.st_ino;
                    add(line, entry)
                };
                share.readdirplus(ctx, (inner, handle), size, offset, &mut outward)
            }
        }
    }
}
