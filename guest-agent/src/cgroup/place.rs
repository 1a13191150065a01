//! Where below a container's cgroup an executed process begins.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use super::{Cgroup, CgroupError, system};

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
            Some(below) => self.open(below),
            None if self.hands_down() => self.open(&self.of(init)),
            None => self.open(""),
        }
    }

    fn hands_down(&self) -> bool {
        let list = std::fs::read_to_string(self.path.join("cgroup.subtree_control"));
        list.is_ok_and(|list| !list.trim().is_empty())
    }

    /// Path below this one of the cgroup of process `pid`; empty when it is elsewhere.
    fn of(&self, pid: i32) -> String {
        let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let path = text.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
        let name = self.path.file_name().unwrap_or_default();
        let below = Path::new(path).strip_prefix(name).unwrap_or(Path::new(""));
        below.to_string_lossy().into_owned()
    }

    /// The kernel keeps the way from leading out, also when the container moves things.
    fn open(&self, below: &str) -> Result<OwnedFd, CgroupError> {
        let path = match below.trim_start_matches('/') {
            "" => ".",
            path => path,
        };
        let how = OpenHow::new()
            .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        loop {
            match openat2(self.directory.as_fd(), path, how) {
                // Somebody renames on the way, see openat2(2).
                Err(Errno::EAGAIN) => {}
                other => {
                    let what = format!("opening cgroup {below:?} below the container's");
                    return other.map_err(system(what));
                }
            }
        }
    }
}
