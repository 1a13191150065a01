//! What a sandbox occupies on the host besides its process.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use super::cgroup::{self, Cgroup};
use super::uids::UidRange;
use super::{LaunchError, Privileges, SandboxConfig};
use crate::dirs;
use crate::rootless::is_rootless;

/// Name of the vsock socket in the sandbox's directory.
pub const SOCKET: &str = "vsock.sock";

/// Freed in this order, after the process.
#[derive(Debug)]
pub(super) struct Resources {
    cgroup: Option<Cgroup>,
    directory: Directory,
    uids: Option<UidRange>,
}

#[derive(Debug)]
struct Directory {
    path: PathBuf,
    listener: UnixListener,
}

impl Resources {
    pub(super) fn acquire(config: &SandboxConfig) -> Result<Resources, LaunchError> {
        let Privileges::Root { uids, cgroup } = &config.privileges else {
            let directory = Directory::create(config.directory.clone())?;
            return Ok(Resources { cgroup: None, directory, uids: None });
        };
        if is_rootless() {
            return Err(LaunchError::NotRoot);
        }
        let owner = cgroup.path.to_string_lossy();
        let alive = |owner: &str| cgroup::populated(Path::new(owner));
        let uids = UidRange::take(uids, &owner, alive)?;
        let directory = Directory::create(config.directory.clone())?;
        let cgroup = Cgroup::create(cgroup)?;
        Ok(Resources { cgroup: Some(cgroup), directory, uids: Some(uids) })
    }

    /// Its own, if it has one.
    pub(super) fn cgroup(&self) -> Option<&Cgroup> {
        self.cgroup.as_ref()
    }

    /// First of its ids, as this process's namespace numbers them.
    pub(super) fn uid_base(&self) -> u32 {
        self.uids.as_ref().map_or(0, UidRange::base)
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory.path
    }

    pub(super) fn listener(&self) -> BorrowedFd<'_> {
        self.directory.listener.as_fd()
    }
}

impl Directory {
    fn create(path: PathBuf) -> Result<Directory, LaunchError> {
        let make = || -> std::io::Result<UnixListener> {
            // What an earlier sandbox of this id left when it was killed.
            dirs::remove_tree(&path)?;
            dirs::make_private(&path)?;
            let mut options = std::fs::File::options();
            let directory = options.read(true).custom_flags(libc::O_DIRECTORY).open(&path)?;
            // By descriptor: a socket's path is limited to 108 bytes.
            UnixListener::bind(format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd()))
        };
        match make() {
            Ok(listener) => Ok(Directory { path, listener }),
            Err(source) => {
                let _ = dirs::remove_tree(&path);
                Err(LaunchError::Directory { path, source })
            }
        }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = dirs::remove_tree(&self.path) {
            tracing::warn!("cannot remove a sandbox's directory: {error}");
        }
    }
}
