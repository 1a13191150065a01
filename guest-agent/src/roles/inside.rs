//! Paths of the container, resolved inside its root by the kernel
//! (RESOLVE_IN_ROOT): the image is hostile, and its links lead nowhere else.

use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2, readlinkat};
use nix::sys::stat::{Mode, mkdirat};

use super::{Context, RoleError};

/// Dangling links followed while creating a path.
const MAX_LINKS: usize = 16;

/// A root directory within which paths are resolved.
#[derive(Debug)]
pub struct Inside {
    root: OwnedFd,
}

impl Inside {
    /// Paths are resolved below `root`.
    pub fn new(root: OwnedFd) -> Self {
        Self { root }
    }

    /// Opens `path`, which must exist.
    ///
    /// # Errors
    /// The kernel's, of openat2(2).
    pub fn open(&self, path: &Path, flags: OFlag) -> Result<OwnedFd, Errno> {
        self.open_mode(path, flags, Mode::empty())
    }

    fn open_mode(&self, path: &Path, flags: OFlag, mode: Mode) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).mode(mode).resolve(resolve);
        openat2(&self.root, path, how)
    }

    /// The directory `path`, made with its parents when it is missing.
    ///
    /// # Errors
    /// Names the path that could not be made.
    pub fn directory(&self, path: &Path) -> Result<OwnedFd, RoleError> {
        self.directory_within(path, MAX_LINKS)
            .context(|| format!("creating directory {} in the container", path.display()))
    }

    fn directory_within(&self, path: &Path, links: usize) -> Result<OwnedFd, Errno> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        match self.open(path, flags) {
            Err(Errno::ENOENT) => {}
            other => return other,
        }
        let mut walked = PathBuf::from("/");
        for component in path.components() {
            if matches!(component, Component::RootDir | Component::CurDir) {
                continue;
            }
            let parent = self.open(&walked, flags)?;
            walked.push(component);
            match self.open(&walked, flags) {
                Err(Errno::ENOENT) => {}
                other => {
                    other?;
                    continue;
                }
            }
            let name = component.as_os_str();
            match mkdirat(&parent, name, Mode::from_bits_truncate(0o755)) {
                Err(Errno::EEXIST) if links > 0 => {
                    // A dangling link: make what it points to.
                    let target = readlinkat(&parent, name)?;
                    walked.pop();
                    walked.push(target);
                    self.directory_within(&walked, links - 1)?;
                }
                other => other?,
            }
        }
        self.open(path, flags)
    }

    /// What `path` is, made as an empty file when it is missing.
    ///
    /// # Errors
    /// Names the path that could not be made.
    pub fn file(&self, path: &Path) -> Result<OwnedFd, RoleError> {
        match self.open(path, OFlag::O_PATH) {
            Err(Errno::ENOENT) => {}
            other => return other.context(|| format!("{} in the container", path.display())),
        }
        self.directory(path.parent().unwrap_or(Path::new("/")))?;
        let flags = OFlag::O_CREAT | OFlag::O_WRONLY | OFlag::O_NONBLOCK;
        self.open_mode(path, flags, Mode::from_bits_truncate(0o644))
            .and_then(|_| self.open(path, OFlag::O_PATH))
            .context(|| format!("creating file {} in the container", path.display()))
    }
}
