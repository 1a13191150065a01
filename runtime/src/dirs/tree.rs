//! Removal of a tree that a stranger made.
//!
//! A container may nest directories deeper than any path, any stack and any
//! table of descriptors is long. So the walk is a loop that has two directories
//! open, the current one and a stream of its entries, and goes up by `..`. The
//! directories above are known by device and inode: should one have been moved
//! meanwhile, the walk stops before it touches what it was not asked to remove.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::{UnlinkatFlags, unlinkat};

/// Directories of one directory that are remembered at once.
const BATCH: usize = 1024;

/// A directory on the way from the top to the current one.
struct Level {
    id: (libc::dev_t, libc::ino_t),
    /// Its name in the level above; the top's is not used.
    name: CString,
    /// Directories in it that were seen and not yet entered.
    pending: Vec<CString>,
}

impl Level {
    fn new(directory: BorrowedFd, name: CString) -> nix::Result<Level> {
        Ok(Level { id: id(directory)?, name, pending: Vec::new() })
    }
}

/// Removes what is at `path`, with all that is in it. Links are removed, never
/// followed. What somebody else removes at the same time is no error.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match open(AT_FDCWD, path) {
        Ok(top) => {
            empty(top)?;
            absent_is_fine(unlinkat(AT_FDCWD, path, UnlinkatFlags::RemoveDir))?;
        }
        Err(Errno::ENOENT) => {}
        Err(Errno::ENOTDIR | Errno::ELOOP) => {
            absent_is_fine(unlinkat(AT_FDCWD, path, UnlinkatFlags::NoRemoveDir))?;
        }
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

fn empty(top: OwnedFd) -> io::Result<()> {
    let mut current = top;
    let mut above = Vec::new();
    let mut level = Level::new(current.as_fd(), CString::default())?;
    loop {
        if level.pending.is_empty() {
            level.pending = unlink_files(current.as_fd())?;
        }
        if let Some(name) = level.pending.pop() {
            match open(&current, name.as_c_str()) {
                Ok(child) => {
                    let below = Level::new(child.as_fd(), name)?;
                    above.push(std::mem::replace(&mut level, below));
                    current = child;
                }
                Err(Errno::ENOENT) => {}
                Err(error) => return Err(error.into()),
            }
            continue;
        }
        let Some(parent) = above.pop() else { return Ok(()) };
        current = open(&current, c"..")?;
        if id(current.as_fd())? != parent.id {
            return Err(io::Error::other("it is being moved while it is removed"));
        }
        absent_is_fine(unlinkat(&current, level.name.as_c_str(), UnlinkatFlags::RemoveDir))?;
        level = parent;
    }
}

/// Unlinks all that is no directory, and gives the names of up to [`BATCH`]
/// directories: none means that the directory is empty now.
fn unlink_files(directory: BorrowedFd) -> nix::Result<Vec<CString>> {
    let mut found = Vec::new();
    let mut entries = Dir::openat(directory, c".", flags(), Mode::empty())?;
    for entry in entries.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        // Where the file system does not tell the type, the attempt does.
        let is_directory = entry.file_type() == Some(Type::Directory)
            || match unlinkat(directory, name, UnlinkatFlags::NoRemoveDir) {
                Err(Errno::EISDIR) => true,
                other => absent_is_fine(other).map(|()| false)?,
            };
        if is_directory {
            found.push(name.to_owned());
            if found.len() == BATCH {
                break;
            }
        }
    }
    Ok(found)
}

fn open<P: nix::NixPath + ?Sized>(at: impl AsFd, name: &P) -> nix::Result<OwnedFd> {
    openat(at, name, flags(), Mode::empty())
}

fn flags() -> OFlag {
    OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC
}

fn id(directory: BorrowedFd) -> nix::Result<(libc::dev_t, libc::ino_t)> {
    fstat(directory).map(|stat| (stat.st_dev, stat.st_ino))
}

fn absent_is_fine(result: nix::Result<()>) -> nix::Result<()> {
    match result {
        Err(Errno::ENOENT) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use nix::sys::stat::mkdirat;

    use super::*;

    /// Nests `depth` directories, each with a file, in `top`.
    fn nest(top: &Path, depth: usize) {
        std::fs::create_dir(top).unwrap();
        let mut current = open(AT_FDCWD, top).unwrap();
        for _ in 0..depth {
            let flags = OFlag::O_CREAT | OFlag::O_WRONLY;
            drop(openat(&current, c"file", flags, Mode::S_IRUSR).unwrap());
            mkdirat(&current, c"a-name-of-some-length", Mode::S_IRWXU).unwrap();
            current = open(&current, c"a-name-of-some-length").unwrap();
        }
    }

    #[test]
    fn no_depth_is_too_deep() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("top");
        nest(&top, 6000);
        remove(&top).unwrap();
        assert!(!top.exists());
        // And again, as nothing is there.
        remove(&top).unwrap();
    }

    #[test]
    fn links_are_removed_and_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (top, other) = (dir.path().join("top"), dir.path().join("other"));
        std::fs::create_dir_all(top.join("a/b")).unwrap();
        std::fs::create_dir(&other).unwrap();
        std::fs::write(other.join("kept"), "").unwrap();
        for link in ["link", "a/link", "a/b/link"] {
            symlink(&other, top.join(link)).unwrap();
        }
        symlink("..", top.join("a/b/up")).unwrap();
        symlink("/no/such/file", top.join("dangling")).unwrap();
        symlink(&other, dir.path().join("itself")).unwrap();
        remove(&top).unwrap();
        remove(&dir.path().join("itself")).unwrap();
        assert!(!top.exists() && other.join("kept").exists());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn more_directories_than_a_batch() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("top");
        for number in 0..BATCH * 2 + 1 {
            std::fs::create_dir_all(top.join(number.to_string())).unwrap();
        }
        remove(&top).unwrap();
        assert!(!top.exists());
    }

    #[test]
    fn two_may_remove_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("top");
        nest(&top, 2000);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| remove(&top).unwrap());
            }
        });
        assert!(!top.exists());
    }
}
