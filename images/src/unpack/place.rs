//! Puts one thing - a file, directory, link or node - into an open directory.
//!
//! Every call takes the directory's descriptor and a single component, so
//! that no link is ever followed here.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{
    FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, fstatat, futimens,
    major, minor, mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown, fchownat, linkat, symlinkat};

use super::name::EntryName;
use super::tar::{Entry, TarReader};
use super::tree::{Fault, SET_XATTR, Tree, os};
use super::{Refusal, policy, sys};

/// Both spellings: guests mount with `userxattr`, and the unprivileged file
/// server of the VMM cannot read `trusted.*`; tools on the host look there.
const OPAQUE: [&[u8]; 2] = [b"user.overlay.opaque", b"trusted.overlay.opaque"];
/// Zeros of this size and alignment become holes.
const HOLE: usize = 4096;
static ZEROS: [u8; HOLE] = [0; HOLE];

impl Tree {
    pub(super) fn file<R: Read>(
        &mut self,
        parent: &OwnedFd,
        base: &OsStr,
        entry: &Entry,
        data: &mut TarReader<R>,
    ) -> Result<(), Fault> {
        let flags =
            OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let open = || openat(parent, base, flags, Mode::from_bits_truncate(0o600));
        let fd = match open() {
            Err(Errno::EEXIST) => {
                self.make_room(parent, base)?;
                open()
            }
            other => other,
        };
        let file = File::from(fd.map_err(os("create"))?);
        self.fill(&file, entry, data)?;
        dress_open(&file, entry)?;
        futimens(&file, &TimeSpec::UTIME_OMIT, &time(entry.mtime)).map_err(os("set the time of"))
    }

    /// Writes a file's data, holes left out.
    fn fill<R: Read>(
        &mut self,
        file: &File,
        entry: &Entry,
        data: &mut TarReader<R>,
    ) -> Result<(), Fault> {
        let whole = [(0, entry.stored_size)];
        let segments = match &entry.sparse {
            Some(sparse) => &sparse.segments[..],
            None => &whole,
        };
        let mut end = 0; // of what is written
        for (offset, length) in segments {
            let mut done = 0;
            while done < *length {
                let at = offset + done;
                // Whole holes need aligned chunks.
                let aligned = self.buffer().len() - (at % HOLE as u64) as usize;
                let want = (length - done).min(aligned as u64) as usize;
                let chunk = &mut self.buffer()[..want];
                data.read_exact_data(chunk)?;
                let written = write_chunk(file, at, chunk).map_err(|e| Fault::Os("write", e))?;
                end = written.unwrap_or(end);
                done += want as u64;
            }
        }
        // Only a hole at the end needs it: one call less for most files.
        let size = entry.apparent_size();
        if size > end {
            file.set_len(size).map_err(|e| Fault::Os("write", e))?;
        }
        Ok(())
    }

    pub(super) fn directory(
        &mut self,
        parent: &OwnedFd,
        base: &OsStr,
        name: &EntryName,
        entry: &Entry,
    ) -> Result<(), Fault> {
        let make = || mkdirat(parent, base, Mode::from_bits_truncate(0o700));
        let mut hides_lower = false;
        if let Err(errno) = make() {
            if errno != Errno::EEXIST {
                return Err(os("create")(errno));
            }
            match stat(parent, base)? {
                Some(found) if kind_of(&found) == SFlag::S_IFDIR => {}
                Some(found) => {
                    // Deleted below and made anew here: nothing of the old
                    // directory may show through.
                    hides_lower = is_whiteout(&found);
                    self.remove(parent, base, &found)?;
                    make().map_err(os("create"))?;
                }
                None => make().map_err(os("create"))?,
            }
        }
        let dir = open_dir(parent, base)?;
        if hides_lower {
            set_opaque(&dir)?;
        }
        self.remember_time(name.path(), entry.mtime);
        dress_open(&dir, entry)
    }

    pub(super) fn symlink(
        &mut self,
        parent: &OwnedFd,
        base: &OsStr,
        entry: &Entry,
    ) -> Result<(), Fault> {
        if entry.link.is_empty() || entry.link.len() > 4095 || entry.link.contains(&0) {
            return Err(Refusal::BadName("the link's target is empty or too long").into());
        }
        self.make_room(parent, base)?;
        symlinkat(OsStr::from_bytes(&entry.link), parent, base).map_err(os("create"))?;
        dress_named(parent, base, entry, true)
    }

    pub(super) fn hard_link(
        &mut self,
        parent: &OwnedFd,
        base: &OsStr,
        target: &EntryName,
    ) -> Result<(), Fault> {
        let (dir, target) = target.split().ok_or(Refusal::HardLinkTarget("a directory"))?;
        let dir = self.existing(dir)?.ok_or(Refusal::HardLinkMissing)?;
        let found = stat(&dir, target)?.ok_or(Refusal::HardLinkMissing)?;
        if kind_of(&found) == SFlag::S_IFDIR {
            return Err(Refusal::HardLinkTarget("a directory").into());
        }
        if is_whiteout(&found) {
            return Err(Refusal::HardLinkTarget("a whiteout").into());
        }
        if let Some(there) = stat(parent, base)? {
            if (there.st_dev, there.st_ino) == (found.st_dev, found.st_ino) {
                // Itself, or a link made before: nothing to do but to refuse
                // the first, which Linux could not make either.
                return match target == base && same_dir(parent, &dir)? {
                    true => Err(Refusal::HardLinkTarget("itself").into()),
                    false => Ok(()),
                };
            }
            self.remove(parent, base, &there)?;
        }
        match linkat(&dir, target, parent, base, AtFlags::empty()) {
            // It was inside the directory that had to make room.
            Err(Errno::ENOENT) => Err(Refusal::HardLinkMissing.into()),
            other => other.map_err(os("create")),
        }
    }

    pub(super) fn node(
        &mut self,
        parent: &OwnedFd,
        base: &OsStr,
        entry: &Entry,
        kind: SFlag,
        device: u64,
    ) -> Result<(), Fault> {
        self.make_room(parent, base)?;
        let mode = Mode::from_bits_truncate(0o600);
        match mknodat(parent, base, kind, mode, device) {
            // In a user namespace nobody makes one. A guest has its own in /dev; elsewhere
            // there is nothing then, of the layers below neither.
            Err(Errno::EPERM) if kind == SFlag::S_IFCHR && in_user_namespace() => {
                let number = format!("{}:{}", major(device), minor(device));
                let name = base.display();
                tracing::info!("the layer's device node {name} ({number}) needs root: left out");
                whiteout(parent, base)
            }
            Err(errno) => Err(os("create")(errno)),
            Ok(()) => dress_named(parent, base, entry, false),
        }
    }

    fn make_room(&mut self, parent: &OwnedFd, base: &OsStr) -> Result<(), Fault> {
        match stat(parent, base)? {
            Some(found) => self.remove(parent, base, &found),
            None => Ok(()),
        }
    }
}

/// Writes the parts of `chunk` that are not whole blocks of zeros. Returns
/// where the last of them ends in the file, if there are any.
fn write_chunk(file: &File, at: u64, chunk: &[u8]) -> io::Result<Option<u64>> {
    let mut written = None;
    let mut write = |start: usize, end: usize| -> io::Result<()> {
        if start < end {
            file.write_all_at(&chunk[start..end], at + start as u64)?;
            written = Some(at + end as u64);
        }
        Ok(())
    };
    let lead = (HOLE - (at % HOLE as u64) as usize) % HOLE;
    let mut start = 0; // of the run of data not written yet
    let mut end = lead.min(chunk.len());
    while end < chunk.len() {
        let next = (end + HOLE).min(chunk.len());
        if chunk[end..next] == ZEROS[..next - end] {
            write(start, end)?;
            start = next;
        }
        end = next;
    }
    write(start, end)?;
    Ok(written)
}

/// Whether this process is in a user namespace of somebody's.
fn in_user_namespace() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map");
    map.is_ok_and(|map| map.split_whitespace().ne(["0", "0", "4294967295"]))
}

/// Hides `base` of the layers below. What this layer itself has there stays
/// (the image spec: whiteouts apply to lower layers only), but then it must
/// not let the lower one shine through.
pub(super) fn whiteout(parent: &OwnedFd, base: &OsStr) -> Result<(), Fault> {
    match stat(parent, base)? {
        None => mknodat(parent, base, SFlag::S_IFCHR, Mode::empty(), 0)
            .map_err(os("create the whiteout for")),
        Some(found) if kind_of(&found) == SFlag::S_IFDIR => set_opaque(&open_dir(parent, base)?),
        Some(_) => Ok(()),
    }
}

/// Marks a directory as hiding the ones below.
pub(super) fn set_opaque(dir: &OwnedFd) -> Result<(), Fault> {
    for name in OPAQUE {
        match sys::fsetxattr(dir.as_fd(), name, b"y") {
            // Without CAP_SYS_ADMIN the second spelling has to be missing.
            Err(e) if name.starts_with(b"trusted.") && e.raw_os_error() == Some(libc::EPERM) => {}
            other => other.map_err(|e| Fault::Os(SET_XATTR, e))?,
        }
    }
    Ok(())
}

/// Owner, mode and attributes of an open file or directory. The order
/// matters: a change of owner clears the setuid bits and the capabilities.
pub(super) fn dress_open(fd: &impl AsFd, entry: &Entry) -> Result<(), Fault> {
    let (uid, gid) = owner(entry)?;
    fchown(fd.as_fd(), Some(uid), Some(gid)).map_err(os("set the owner of"))?;
    let mode = Mode::from_bits_truncate(entry.mode);
    fchmod(fd.as_fd(), mode).map_err(os("set the mode of"))?;
    set_xattrs(entry, true, |name, value| sys::fsetxattr(fd.as_fd(), name, value))
}

/// The same for what cannot or must not be opened, and its time.
fn dress_named(
    parent: &OwnedFd,
    base: &OsStr,
    entry: &Entry,
    is_symlink: bool,
) -> Result<(), Fault> {
    let (uid, gid) = owner(entry)?;
    fchownat(parent, base, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)
        .map_err(os("set the owner of"))?;
    if !is_symlink {
        // Follows links in general; this is none, and nobody else is here.
        let mode = Mode::from_bits_truncate(entry.mode);
        fchmodat(parent, base, mode, FchmodatFlags::FollowSymlink)
            .map_err(os("set the mode of"))?;
    }
    set_xattrs(entry, false, |name, value| {
        sys::lsetxattrat(parent.as_fd(), Path::new(base), name, value)
    })?;
    utimensat(
        parent,
        base,
        &TimeSpec::UTIME_OMIT,
        &time(entry.mtime),
        UtimensatFlags::NoFollowSymlink,
    )
    .map_err(os("set the time of"))
}

fn owner(entry: &Entry) -> Result<(Uid, Gid), Refusal> {
    // The highest id means "leave it" to chown.
    let id = |id: u64| u32::try_from(id).ok().filter(|id| *id != u32::MAX);
    match (id(entry.uid), id(entry.gid)) {
        (Some(uid), Some(gid)) => Ok((Uid::from_raw(uid), Gid::from_raw(gid))),
        _ => Err(Refusal::Owner),
    }
}

fn set_xattrs(
    entry: &Entry,
    is_file_or_dir: bool,
    set: impl Fn(&[u8], &[u8]) -> io::Result<()>,
) -> Result<(), Fault> {
    for (name, value) in &entry.xattrs {
        if name.contains(&0) || !policy::keeps_xattr(name, is_file_or_dir) {
            continue;
        }
        match set(name, value) {
            // A file system without user attributes: the file is still good.
            Err(error)
                if error.raw_os_error() == Some(libc::ENOTSUP) && name.starts_with(b"user.") =>
            {
                tracing::warn!(
                    attribute = %name.escape_ascii(),
                    entry = %super::printable(&entry.path),
                    "the file system keeps no user attributes; dropped"
                );
            }
            other => other.map_err(|e| Fault::Os(SET_XATTR, e))?,
        }
    }
    Ok(())
}

/// Clamped to what the kernel takes; ext4 clamps further.
pub(super) fn time((seconds, nanos): (i64, u32)) -> TimeSpec {
    TimeSpec::new(seconds, i64::from(nanos))
}

/// What is there, links not followed.
pub(super) fn stat(dir: &OwnedFd, base: &OsStr) -> Result<Option<FileStat>, Fault> {
    match fstatat(dir, base, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(os("look at")(errno)),
    }
}

fn same_dir(a: &OwnedFd, b: &OwnedFd) -> Result<bool, Fault> {
    let a = nix::sys::stat::fstat(a).map_err(os("look at"))?;
    let b = nix::sys::stat::fstat(b).map_err(os("look at"))?;
    Ok((a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
}

pub(super) fn kind_of(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

/// overlayfs's form of "deleted": character device 0:0.
pub(super) fn is_whiteout(stat: &FileStat) -> bool {
    kind_of(stat) == SFlag::S_IFCHR && stat.st_rdev == 0
}

pub(super) fn open_dir(parent: &OwnedFd, base: &OsStr) -> Result<OwnedFd, Fault> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(parent, base, flags, Mode::empty()).map_err(os("open"))
}

/// A path to `base` that starts at the open directory.
pub(super) fn proc_path(dir: &OwnedFd, base: &OsStr) -> PathBuf {
    Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(base)
}
