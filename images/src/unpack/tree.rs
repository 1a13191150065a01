//! The directory a layer is written into.
//!
//! Parents are opened with `RESOLVE_BENEATH`, not `RESOLVE_IN_ROOT`: a
//! relative link inside the layer (`lib -> usr/lib`) is followed as docker
//! does, while a link that leads out (`/etc`, `../..`) is refused. Only
//! hand-made archives write through such links - layers that come from a file
//! system name the real directories - and reinterpreting `/etc` as the layer's
//! own would quietly turn an attack into something that looks like success.
//! Links themselves are kept as they are, wherever they point: the guest
//! resolves them in its own root.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, futimens, makedev, mkdirat};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::Refusal;
use super::name::EntryName;
use super::tar::{Entry, Kind, TarError, TarReader};
use super::{place, policy};

/// What can go wrong with one entry, before its name is attached.
#[derive(Debug)]
pub(super) enum Fault {
    Refused(Refusal),
    Read(TarError),
    Os(&'static str, io::Error),
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<TarError> for Fault {
    fn from(error: TarError) -> Self {
        Self::Read(error)
    }
}

pub(super) const SET_XATTR: &str = "set an extended attribute of";

pub(super) fn os(action: &'static str) -> impl Fn(Errno) -> Fault {
    move |errno| Fault::Os(action, errno.into())
}

/// An open layer directory.
pub(super) struct Tree {
    root: OwnedFd,
    /// The parent opened last: entries of one directory come in a row.
    /// Forgotten when something is removed: it may have been this.
    cache: Option<(PathBuf, OwnedFd)>,
    removals: u64,
    /// Times of directories, set at the end: writing into them changes them.
    dir_times: Vec<(PathBuf, (i64, u32))>,
    opaque_root: bool,
    buffer: Vec<u8>,
}

impl Tree {
    pub(super) fn open(root: &Path) -> Result<Self, Fault> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let root = nix::fcntl::open(root, flags, Mode::empty()).map_err(os("open"))?;
        Ok(Self {
            root,
            cache: None,
            removals: 0,
            dir_times: Vec::new(),
            opaque_root: false,
            buffer: vec![0; 256 << 10],
        })
    }

    pub(super) fn opaque_root(&self) -> bool {
        self.opaque_root
    }

    /// Puts one entry into the tree. `link` is a hard link's parsed target.
    pub(super) fn apply<R: Read>(
        &mut self,
        name: &EntryName,
        link: Option<&EntryName>,
        entry: &Entry,
        data: &mut TarReader<R>,
    ) -> Result<(), Fault> {
        let Some((dir, base)) = name.split() else {
            return self.root_entry(entry);
        };
        match Whiteout::of(dir, base)? {
            Whiteout::Opaque => {
                self.opaque_root |= dir.as_os_str().is_empty();
                return self.with_dir(dir, |_, fd| place::set_opaque(fd));
            }
            Whiteout::Of(hidden) => return self.with_dir(dir, |_, fd| place::whiteout(fd, hidden)),
            Whiteout::Ignored => return Ok(()),
            Whiteout::No => {}
        }
        self.with_dir(dir, |tree, parent| match entry.kind {
            Kind::File => tree.file(parent, base, entry, data),
            Kind::Directory => tree.directory(parent, base, name, entry),
            Kind::Symlink => tree.symlink(parent, base, entry),
            Kind::HardLink => {
                let target = link.ok_or(Refusal::HardLinkMissing)?;
                tree.hard_link(parent, base, target)
            }
            Kind::Fifo => tree.node(parent, base, entry, SFlag::S_IFIFO, 0),
            Kind::Device { block, major, minor } => {
                policy::check_device(block, major, minor)?;
                let kind = if block { SFlag::S_IFBLK } else { SFlag::S_IFCHR };
                let number = makedev(major.into(), minor.into());
                tree.node(parent, base, entry, kind, number)
            }
            Kind::Unknown(byte) => Err(Refusal::UnknownType(byte.into()).into()),
        })
    }

    /// Sets the directories' times.
    pub(super) fn finish(&mut self) -> Result<(), Fault> {
        self.cache = None;
        for (path, mtime) in std::mem::take(&mut self.dir_times) {
            // A later entry may have put something else there.
            if let Ok(dir) = self.resolve(&path) {
                futimens(&dir, &TimeSpec::UTIME_OMIT, &place::time(mtime))
                    .map_err(os("set the time of"))?;
            }
        }
        Ok(())
    }

    fn root_entry(&mut self, entry: &Entry) -> Result<(), Fault> {
        if entry.kind != Kind::Directory {
            return Err(Refusal::RootNotDirectory.into());
        }
        self.dir_times.push((PathBuf::new(), entry.mtime));
        place::dress_open(&self.root, entry)
    }

    /// Runs `act` on the open directory `dir`, which is made if missing.
    fn with_dir<T>(
        &mut self,
        dir: &Path,
        act: impl FnOnce(&mut Self, &OwnedFd) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let fd = match self.cache.take() {
            Some((path, fd)) if path == dir => fd,
            _ => self.open_or_make(dir)?,
        };
        let before = self.removals;
        let result = act(self, &fd);
        if self.removals == before {
            self.cache = Some((dir.to_owned(), fd));
        }
        result
    }

    fn resolve(&self, dir: &Path) -> nix::Result<OwnedFd> {
        let path = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        let how =
            OpenHow::new().flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC).resolve(
                ResolveFlag::RESOLVE_BENEATH
                    | ResolveFlag::RESOLVE_NO_MAGICLINKS
                    | ResolveFlag::RESOLVE_NO_XDEV,
            );
        loop {
            match openat2(&self.root, path, how) {
                // A rename elsewhere on the host made the kernel unsure.
                Err(Errno::EAGAIN) => {}
                other => return other,
            }
        }
    }

    fn open_or_make(&mut self, dir: &Path) -> Result<OwnedFd, Fault> {
        match self.resolve(dir) {
            Ok(fd) => Ok(fd),
            Err(Errno::EXDEV) => Err(Refusal::LinkEscape.into()),
            Err(Errno::ELOOP) => Err(Refusal::LinkNowhere.into()),
            Err(Errno::ENOENT | Errno::ENOTDIR) => self.make_parents(dir),
            Err(errno) => Err(os("open the parent of")(errno)),
        }
    }

    /// Makes `dir`, and what is missing above it, as root-owned 0755.
    fn make_parents(&mut self, dir: &Path) -> Result<OwnedFd, Fault> {
        let mut path = PathBuf::new();
        let mut parent = self.resolve(&path).map_err(os("open the parent of"))?;
        for component in dir.components() {
            let base = component.as_os_str();
            path.push(base);
            parent = match self.resolve(&path) {
                Ok(fd) => fd,
                Err(Errno::EXDEV) => return Err(Refusal::LinkEscape.into()),
                Err(Errno::ELOOP) => return Err(Refusal::LinkNowhere.into()),
                Err(Errno::ENOENT | Errno::ENOTDIR) => {
                    self.make_parent(&parent, base)?;
                    self.resolve(&path).map_err(os("open the parent of"))?
                }
                Err(errno) => return Err(os("open the parent of")(errno)),
            };
        }
        Ok(parent)
    }

    fn make_parent(&mut self, parent: &OwnedFd, base: &OsStr) -> Result<(), Fault> {
        let was_whiteout = match place::stat(parent, base)? {
            None => false,
            Some(stat) if place::is_whiteout(&stat) => {
                self.remove(parent, base, &stat)?;
                true
            }
            Some(stat) if place::kind_of(&stat) == SFlag::S_IFLNK => {
                return Err(Refusal::LinkNowhere.into());
            }
            Some(_) => return Err(Refusal::ParentNotDirectory.into()),
        };
        let mode = Mode::from_bits_truncate(0o755);
        mkdirat(parent, base, mode).map_err(os("make the parent of"))?;
        let dir = place::open_dir(parent, base)?;
        fchmod(&dir, mode).map_err(os("make the parent of"))?;
        if was_whiteout {
            place::set_opaque(&dir)?;
        }
        Ok(())
    }

    /// Removes what is there, so that something else can take its place.
    pub(super) fn remove(
        &mut self,
        parent: &OwnedFd,
        base: &OsStr,
        stat: &FileStat,
    ) -> Result<(), Fault> {
        self.removals += 1;
        if place::kind_of(stat) == SFlag::S_IFDIR {
            let path = place::proc_path(parent, base);
            return std::fs::remove_dir_all(path).map_err(|e| Fault::Os("replace", e));
        }
        unlinkat(parent, base, UnlinkatFlags::NoRemoveDir).map_err(os("replace"))
    }

    /// The open parent of a hard link's target, if there is one.
    pub(super) fn existing(&self, dir: &Path) -> Result<Option<OwnedFd>, Fault> {
        match self.resolve(dir) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::EXDEV) => Err(Refusal::LinkEscape.into()),
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(None),
            Err(errno) => Err(os("open the target of")(errno)),
        }
    }

    pub(super) fn remember_time(&mut self, dir: &Path, mtime: (i64, u32)) {
        self.dir_times.push((dir.to_owned(), mtime));
    }

    pub(super) fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }
}

/// What a name says about lower layers (OCI image spec, "Whiteouts").
enum Whiteout<'a> {
    No,
    /// `.wh..wh..opq`: nothing of the directory below shows through.
    Opaque,
    /// `.wh.NAME`: NAME is gone.
    Of(&'a OsStr),
    /// AUFS's own bookkeeping, which docker drops as well.
    Ignored,
}

impl<'a> Whiteout<'a> {
    fn of(dir: &Path, base: &'a OsStr) -> Result<Self, Refusal> {
        let meta = |part: &OsStr| part.as_bytes().starts_with(b".wh..wh.");
        if base == ".wh..wh..opq" {
            return Ok(Self::Opaque);
        }
        if meta(base) || dir.iter().any(meta) {
            return Ok(Self::Ignored);
        }
        match base.as_bytes().strip_prefix(b".wh.") {
            None => Ok(Self::No),
            Some(b"" | b"." | b"..") => Err(Refusal::EmptyWhiteout),
            Some(hidden) => Ok(Self::Of(OsStr::from_bytes(hidden))),
        }
    }
}
