//! The share tree as one file system: a root, a directory for each kind, and the
//! shares below.
//!
//! ```text
//! node id:   63        56 55                                    0
//!            | share + 1 | node id within the share (root: 1)   |
//!            |     0     | 1: root, 2: immutable, 3: private, 4: live |
//! ```
//!
//! Shares may come and go while the guest runs. The number of one that went is not
//! given to another before the guest has forgotten all nodes of the first: its kernel
//! would take the new ones for those that it knows, and for what it has cached of them.
//!
//! Inode numbers (st_ino) are those of the host, with the number of the host
//! device on top, so that they stay small and unique as long as all shares lie
//! on one host file system.

use std::ffi::CStr;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock, RwLockReadGuard};

use fuse_backend_rs::abi::fuse_abi::{FsOptions, stat64};
use fuse_backend_rs::api::filesystem::{Context, DirEntry, Entry, FileSystem};
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
    slots: RwLock<Vec<Slot>>,
    /// By their number.
    devices: Mutex<Vec<Option<u64>>>,
    /// What the guest's kernel was told, once it has mounted the tree.
    options: Mutex<Option<FsOptions>>,
}

/// A share's number.
#[derive(Default)]
struct Slot {
    share: Option<Arc<Share>>,
    /// References to its nodes that the guest has, also of a share that went.
    held: AtomicU64,
    /// Keeps the mounts of a share that came later.
    _mounts: Option<Arc<OwnedFd>>,
}

impl Slot {
    fn is_free(&self) -> bool {
        self.share.is_none() && self.held.load(Ordering::Relaxed) == 0
    }

    fn is(&self, kind: ShareKind, name: &str) -> bool {
        let config = self.share.as_ref().map(|share| share.config());
        config.is_some_and(|config| config.kind == kind && config.name == name)
    }
}

/// Where a node id leads.
pub(super) enum Node {
    Pseudo(u64),
    Share(usize, Arc<Share>, u64),
}

impl ShareTree {
    /// Opens all shares.
    ///
    /// # Errors
    /// When a share cannot be opened, a name is not one component or taken, or
    /// there are more than [`MAX_SHARES`].
    pub fn open(configs: &[ShareConfig]) -> io::Result<ShareTree> {
        let tree = ShareTree {
            slots: RwLock::default(),
            devices: Mutex::default(),
            options: Mutex::default(),
        };
        tree.insert(configs, None)?;
        Ok(tree)
    }

    /// Adds shares whose mounts `mounts` keeps: all, or none.
    ///
    /// # Errors
    /// As [`ShareTree::open`].
    pub fn add(&self, configs: &[ShareConfig], mounts: OwnedFd) -> io::Result<()> {
        self.insert(configs, Some(Arc::new(mounts)))
    }

    fn insert(&self, configs: &[ShareConfig], mounts: Option<Arc<OwnedFd>>) -> io::Result<()> {
        let mut opened = Vec::with_capacity(configs.len());
        let options = *self.options.lock().expect("not poisoned");
        for config in configs {
            let share = Share::open(config.clone()).map_err(|error| {
                io::Error::new(error.kind(), format!("share {:?}: {error}", config.path))
            })?;
            if let Some(options) = options {
                share.inner().init(options)?;
            }
            opened.push(Arc::new(share));
        }
        let mut slots = self.slots.write().expect("not poisoned");
        for (index, config) in configs.iter().enumerate() {
            let (kind, name) = (config.kind, &config.name);
            let plain = !matches!(name.as_str(), "" | "." | "..") && !name.contains(['/', '\0']);
            let twin = |other: &ShareConfig| other.kind == kind && other.name == *name;
            let taken =
                slots.iter().any(|slot| slot.is(kind, name)) || configs[..index].iter().any(twin);
            if !plain || taken {
                return Err(io::Error::other(format!("bad share name {name:?}")));
            }
        }
        let free = slots.iter().filter(|slot| slot.is_free()).count();
        if opened.len() > MAX_SHARES - slots.len() + free {
            return Err(io::Error::other(format!("more than {MAX_SHARES} shares")));
        }
        for share in opened {
            let slot = Slot { share: Some(share), held: 0.into(), _mounts: mounts.clone() };
            match slots.iter_mut().find(|slot| slot.is_free()) {
                Some(place) => *place = slot,
                None => slots.push(slot),
            }
        }
        Ok(())
    }

    /// Takes shares away, whatever the guest has open of them. Names that are not
    /// there are no error.
    pub fn remove(&self, names: &[String]) {
        for slot in self.slots.write().expect("not poisoned").iter_mut() {
            let named = |share: &Arc<Share>| names.contains(&share.config().name);
            if slot.share.as_ref().is_some_and(named) {
                let held = AtomicU64::new(*slot.held.get_mut());
                *slot = Slot { held, ..Slot::default() };
            }
        }
        self.prune_devices();
    }

    // Only a panic could poison the locks, and that ends the process.
    fn slots(&self) -> RwLockReadGuard<'_, Vec<Slot>> {
        self.slots.read().expect("not poisoned")
    }

    /// A guest kernel that starts anew knows none of the old nodes.
    pub(super) fn reset(&self, options: Option<FsOptions>) -> io::Result<()> {
        *self.options.lock().expect("not poisoned") = options;
        for slot in self.slots().iter() {
            slot.held.store(0, Ordering::Relaxed);
            if let Some(share) = &slot.share {
                share.inner().destroy();
                if let Some(options) = options {
                    share.inner().init(options)?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn first(&self) -> Option<Arc<Share>> {
        self.slots().iter().find_map(|slot| slot.share.clone())
    }

    pub(super) fn node(&self, id: u64) -> io::Result<Node> {
        let inner = id & ((1 << SHARE_SHIFT) - 1);
        match number(id) {
            None if pseudo::exists(inner) => Ok(Node::Pseudo(inner)),
            None => Err(errno(libc::ESTALE)),
            Some(index) => {
                let share = self.slots().get(index).and_then(|slot| slot.share.clone());
                let share = share.ok_or_else(|| errno(libc::ESTALE))?;
                Ok(Node::Share(index, share, inner))
            }
        }
    }

    /// The share of a node; the directories above them belong to nobody.
    pub(super) fn share(&self, id: u64) -> io::Result<(usize, Arc<Share>, u64)> {
        match self.node(id)? {
            Node::Share(index, share, inner) => Ok((index, share, inner)),
            Node::Pseudo(_) => Err(errno(libc::EROFS)),
        }
    }

    /// The guest gives references to a node back.
    pub(super) fn forget_node(&self, ctx: &Context, id: u64, count: u64) {
        self.release(id, count);
        if let Ok(Node::Share(_, share, inner)) = self.node(id) {
            share.inner().forget(ctx, inner, count);
        }
    }

    /// Counts references that the guest does not have.
    fn release(&self, id: u64, count: u64) {
        if let Some(index) = number(id)
            && let Some(slot) = self.slots().get(index)
        {
            let less = |held: u64| Some(held.saturating_sub(count));
            let _ = slot.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        }
    }

    /// Two nodes of one share.
    pub(super) fn pair(&self, one: u64, other: u64) -> io::Result<(usize, Arc<Share>, u64, u64)> {
        let (index, share, one) = self.share(one)?;
        let (second, _, other) = self.share(other)?;
        if index == second { Ok((index, share, one, other)) } else { Err(errno(libc::EXDEV)) }
    }

    /// Makes an entry of a share one of the tree, to which the guest gets a reference.
    pub(super) fn outward(&self, index: usize, mut entry: Entry) -> Entry {
        if entry.inode != 0 {
            entry.inode |= (index as u64 + 1) << SHARE_SHIFT;
            if let Some(slot) = self.slots().get(index) {
                slot.held.fetch_add(1, Ordering::Relaxed);
            }
            self.number(&mut entry.attr);
        }
        entry
    }

    pub(super) fn number(&self, attr: &mut stat64) {
        // Only a panic could poison it, and that ends the process.
        let mut devices = self.devices.lock().expect("not poisoned");
        let known = devices.iter().position(|&device| device == Some(attr.st_dev));
        let number = known.unwrap_or_else(|| {
            let free = devices.iter().position(Option::is_none).unwrap_or(devices.len());
            match devices.get_mut(free) {
                Some(place) => *place = Some(attr.st_dev),
                None if free < MAX_DEVICES => devices.push(Some(attr.st_dev)),
                None => return MAX_DEVICES - 1,
            }
            free
        });
        attr.st_ino ^= (number as u64) << DEVICE_SHIFT;
    }

    /// Gives the numbers of devices free that no share is on. (One with several devices
    /// gets new numbers for the others.)
    fn prune_devices(&self) {
        let shares: Vec<_> = self.slots().iter().filter_map(|slot| slot.share.clone()).collect();
        let used: Vec<u64> =
            shares.iter().filter_map(|share| Some(share.root().ok()?.attr.st_dev)).collect();
        for place in self.devices.lock().expect("not poisoned").iter_mut() {
            *place = place.filter(|device| used.contains(device));
        }
    }

    fn of_kind(&self, kind: ShareKind) -> Vec<(usize, Arc<Share>)> {
        let slots = self.slots();
        let shares = slots.iter().enumerate();
        let shares = shares.filter_map(|(index, slot)| Some((index, slot.share.clone()?)));
        shares.filter(|(_, share)| share.config().kind == kind).collect()
    }

    pub(super) fn lookup_pseudo(&self, parent: u64, name: &CStr) -> io::Result<Entry> {
        if parent == pseudo::ROOT {
            return pseudo::lookup(name);
        }
        let kind = pseudo::kind(parent).ok_or_else(|| errno(libc::ESTALE))?;
        let named = |share: &Share| share.config().name.as_bytes() == name.to_bytes();
        let found = self.of_kind(kind).into_iter().find(|(_, share)| named(share));
        let (index, share) = found.ok_or_else(|| errno(libc::ENOENT))?;
        Ok(self.outward(index, share.root()?))
    }

    fn list_pseudo(
        &self,
        inode: u64,
        offset: u64,
        add: &mut dyn FnMut(DirEntry, Entry) -> io::Result<usize>,
    ) -> io::Result<()> {
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        let line = |at: usize, name: &str, entry: &Entry| {
            let type_ = (entry.attr.st_mode & libc::S_IFMT) >> 12;
            (entry.attr.st_ino, at as u64 + 1, type_, name.to_owned())
        };
        let mut add = |(ino, offset, type_, name): (u64, u64, u32, String), entry| {
            add(DirEntry { ino, offset, type_, name: name.as_bytes() }, entry)
        };
        let Some(kind) = pseudo::kind(inode) else {
            for (at, (name, entry)) in pseudo::entries().enumerate().skip(skip) {
                if add(line(at, name, &entry), entry)? == 0 {
                    break;
                }
            }
            return Ok(());
        };
        for (at, (index, share)) in self.of_kind(kind).into_iter().enumerate().skip(skip) {
            let entry = self.outward(index, share.root()?);
            let inode = entry.inode;
            if add(line(at, &share.config().name, &entry), entry)? == 0 {
                self.release(inode, 1);
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
                    let inode = entry.inode;
                    line.ino = entry.attr.st_ino;
                    let result = add(line, entry);
                    if matches!(result, Ok(0)) {
                        // It did not fit; the library forgets its own.
                        self.release(inode, 1);
                    }
                    result
                };
                share.readdirplus(ctx, (inner, handle), size, offset, &mut outward)
            }
        }
    }
}

/// Which share's node it is; `None` for the directories above them.
fn number(id: u64) -> Option<usize> {
    ((id >> SHARE_SHIFT) as usize).checked_sub(1)
}
