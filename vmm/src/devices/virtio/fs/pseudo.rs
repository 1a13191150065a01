//! The directories above the shares: a root and one directory for each kind.
//! They exist in no file system and never change.

use std::ffi::CStr;
use std::io;
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::stat64;
use fuse_backend_rs::api::filesystem::Entry;
use protocol::machine::ShareKind;

use super::share::errno;

/// Node id of the root.
pub const ROOT: u64 = 1;
/// Kinds in the order of their node ids, from 2 on.
const KINDS: [ShareKind; 3] = [ShareKind::Immutable, ShareKind::Private, ShareKind::Live];
/// On top of their inode numbers, apart from all files.
const NUMBER: u64 = 255 << 48;
/// They never change.
const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// Whether `inode` is one of them.
pub fn exists(inode: u64) -> bool {
    inode == ROOT || kind(inode).is_some()
}

/// The kind whose directory `inode` is.
pub fn kind(inode: u64) -> Option<ShareKind> {
    KINDS.get(usize::try_from(inode).ok()?.checked_sub(2)?).copied()
}

/// Attributes of one of the directories.
pub fn attributes(inode: u64) -> (stat64, Duration) {
    let mut attr = Entry::default().attr;
    attr.st_ino = NUMBER | inode;
    attr.st_mode = libc::S_IFDIR | 0o755;
    attr.st_nlink = 2;
    attr.st_blksize = 4096;
    (attr, FOR_EVER)
}

fn entry(inode: u64) -> Entry {
    let (attr, attr_timeout) = attributes(inode);
    Entry { inode, attr, attr_timeout, entry_timeout: FOR_EVER, ..Entry::default() }
}

/// What the root contains.
pub fn entries() -> impl Iterator<Item = (&'static str, Entry)> {
    KINDS.iter().zip(2..).map(|(kind, inode)| (kind.dir(), entry(inode)))
}

/// An entry of the root.
///
/// # Errors
/// ENOENT.
pub fn lookup(name: &CStr) -> io::Result<Entry> {
    let found = entries().find(|(own, _)| own.as_bytes() == name.to_bytes());
    found.map(|(_, entry)| entry).ok_or_else(|| errno(libc::ENOENT))
}
