//! Where below a container's cgroup an executed process begins.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use super::{Cgroup, CgroupError, system};

/// How often a way that changes meanwhile is walked.
const MAX_TRIES: u32 = 100;

impl Cgroup {
    /// The cgroup `below` the container's. When none is named it is the container's own;
    /// but where that hands controllers down to those below it, it cannot have processes
    /// (cgroups(7), "no internal processes" rule): then it is that of its process `init`,
    /// as runc has it. So is a container in which an init system or docker runs.
    ///
    /// # Errors
    /// When there is no such cgroup.
    pub fn place(&self, below: Option<&str>, init: i32) -> Result<OwnedFd, CgroupError> {
        match below {
            Some(below) => self.open(Path::new(below.trim_start_matches('/'))),
            None if self.hands_down() => self.open(&self.of(init)?),
            None => self.open(Path::new("")),
        }
    }

    fn hands_down(&self) -> bool {
        let list = std::fs::read_to_string(self.path.join("cgroup.subtree_control"));
        list.is_ok_and(|list| !list.trim().is_empty())
    }

    /// Path below this one of the cgroup of process `pid`.
    fn of(&self, pid: i32) -> Result<PathBuf, CgroupError> {
        let file = format!("/proc/{pid}/cgroup");
        // A name is what the container makes it, and need not be UTF-8.
        let text = std::fs::read(&file).map_err(super::errno).map_err(system(file.as_str()))?;
        let below = text
            .split(|byte| *byte == b'\n')
            .find_map(|line| line.strip_prefix(b"0::/"))
            .map(|path| Path::new(OsStr::from_bytes(path)))
            .and_then(|path| path.strip_prefix(self.path.file_name()?).ok());
        let elsewhere = || format!("{file}: it is not below {}", self.path.display());
        below.map(Path::to_owned).ok_or(Errno::ENOENT).map_err(system(elsewhere()))
    }

    /// The kernel keeps the way from leading out, also when the container moves things.
    fn open(&self, below: &Path) -> Result<OwnedFd, CgroupError> {
        let path = if below.as_os_str().is_empty() { Path::new(".") } else { below };
        let how = OpenHow::new()
            .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let mut tries = 0;
        loop {
            tries += 1;
            match openat2(self.directory.as_fd(), path, how) {
                // Somebody renames on the way, see openat2(2). He may go on with it.
                Err(Errno::EAGAIN) if tries < MAX_TRIES => {}
                other => {
                    let what = format!("opening cgroup {below:?} below the container's");
                    return other.map_err(system(what));
                }
            }
        }
    }
}
