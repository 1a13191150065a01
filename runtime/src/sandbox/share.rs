//! Directories and files of the host as detached, id-mapped mounts.

use std::fs::{File, Metadata};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use protocol::machine::{FdIndex, Share};

use super::ShareConfig;
use super::ids::Both;
use super::overlay::{self, OverlayError};
use super::owner::{MapError, Owner, ShareIds};
use crate::sys::mounts;

/// Why a path cannot be shared.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// It cannot be opened.
    #[error("cannot share {}", path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Neither a directory nor a file.
    #[error("cannot share {}: only directories and regular files can be shared", .0.display())]
    Kind(PathBuf),
    /// The file system cannot be id-mapped.
    #[error(
        "cannot share {}: its file system ({fs}) does not support id-mapped mounts; \
         use a path on ext4, xfs, btrfs or (since Linux 6.3) tmpfs",
        path.display()
    )]
    NotMappable {
        /// Which.
        path: PathBuf,
        /// Type of its file system.
        fs: String,
    },
    /// Ids of its own, without root.
    #[error(
        "cannot share {} with ids of its own: only root can map those of a mount",
        .0.display()
    )]
    Rootless(PathBuf),
    /// Mounts below it, without root.
    #[error(
        "cannot share {}: something is mounted below it, and only root can leave that out; share \
         a directory that has no other file system in it",
        .0.display()
    )]
    Covered(PathBuf),
    /// Its owners cannot be mapped.
    #[error("cannot map the owners of {}", path.display())]
    Map {
        /// Which.
        path: PathBuf,
        /// Why.
        source: MapError,
    },
    /// An overlay whose layers cannot be mounted once more.
    #[error("cannot share {}, which is on an overlay", path.display())]
    Overlay {
        /// Which.
        path: PathBuf,
        /// Why.
        source: OverlayError,
    },
    /// Another failure of the mount calls.
    #[error("cannot make a private mount of {} ({fs})", path.display())]
    Mount {
        /// Which.
        path: PathBuf,
        /// Type of its file system.
        fs: String,
        /// Why.
        source: nix::Error,
    },
}

/// The mount of a share of sandbox `id` for `owner`. Its [`FdIndex`] is still open.
pub(super) fn detach(
    config: &ShareConfig,
    id: &str,
    owner: &Owner,
) -> Result<(Share, OwnedFd), ShareError> {
    let path = &config.source;
    let open = |source| ShareError::Open { path: path.clone(), source };
    let mut options = File::options();
    let file = options.read(true).custom_flags(libc::O_PATH).open(path).map_err(open)?;
    let metadata = file.metadata().map_err(open)?;
    if !metadata.is_dir() && !metadata.is_file() {
        return Err(ShareError::Kind(path.clone()));
    }
    let share = |mount| {
        let share = Share {
            name: config.name.clone(),
            kind: config.kind,
            mount: FdIndex(u32::MAX),
            file: metadata.is_file(),
            read_only: config.read_only,
        };
        (share, mount)
    };
    if !owner.maps() {
        return unmapped(config, &file, &metadata).map(share);
    }
    let mapper = owner
        .mapper(&config.ids)
        .map_err(|source| ShareError::Map { path: path.clone(), source })?;
    let mount = mounts::clone_detached(file.as_fd()).and_then(|mount| {
        mounts::restrict_and_map(mount.as_fd(), (*mapper).as_fd(), config.read_only)?;
        Ok(mount)
    });
    let mount = mount.or_else(|source| {
        let (path, fs) = (path.clone(), fs_type(metadata.dev()));
        match source {
            Errno::EINVAL if fs == "overlay" => overlay::remount(config, id, owner)
                .map_err(|source| ShareError::Overlay { path, source }),
            Errno::EINVAL => Err(ShareError::NotMappable { path, fs }),
            _ => Err(ShareError::Mount { path, fs, source }),
        }
    })?;
    Ok(share(mount))
}

/// The mount of a machine whose ids are those of this process's namespace.
fn unmapped(config: &ShareConfig, file: &File, metadata: &Metadata) -> Result<OwnedFd, ShareError> {
    let path = &config.source;
    if config.ids != ShareIds::Machine {
        return Err(ShareError::Rootless(path.clone()));
    }
    let mount = mounts::clone_detached(file.as_fd());
    let mount = mount.and_then(|mount| {
        mounts::restrict(mount.as_fd(), config.read_only)?;
        Ok(mount)
    });
    mount.map_err(|source| match source {
        // has_locked_children in fs/namespace.c: it would show what is below them.
        Errno::EINVAL => ShareError::Covered(path.clone()),
        _ => ShareError::Mount { path: path.clone(), fs: fs_type(metadata.dev()), source },
    })
}

/// Makes a mount of `path` as a sandbox would, and throws it away.
///
/// # Errors
/// As for a sandbox.
pub fn try_share(path: &Path, userns: BorrowedFd) -> Result<(), ShareError> {
    let config = ShareConfig {
        name: "try".into(),
        kind: protocol::machine::ShareKind::Immutable,
        source: path.into(),
        read_only: true,
        ids: ShareIds::Machine,
    };
    let userns = userns
        .try_clone_to_owned()
        .map_err(|source| ShareError::Open { path: path.into(), source })?;
    let owner = Owner::new(userns, super::uids::FIRST, &Both::default());
    detach(&config, "try", &owner).map(drop)
}

/// Type of the file system on device `dev`.
fn fs_type(dev: u64) -> String {
    let info = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let device = format!("{}:{}", nix::sys::stat::major(dev), nix::sys::stat::minor(dev));
    type_in(&info, &device).unwrap_or("unknown").to_owned()
}

fn type_in<'a>(info: &'a str, device: &str) -> Option<&'a str> {
    let line = info.lines().find(|line| line.split(' ').nth(2) == Some(device))?;
    line.split_once(" - ")?.1.split(' ').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_type_is_found_by_device() {
        let info = "22 1 0:21 / /sys rw,nosuid shared:7 - sysfs sysfs rw\n\
                    29 1 253:0 / / rw,relatime - ext4 /dev/vda rw\n";
        assert_eq!(type_in(info, "253:0"), Some("ext4"));
        assert_eq!(type_in(info, "253:1"), None);
    }

    #[test]
    fn what_cannot_be_shared_is_named() {
        let null = File::open("/dev/null").unwrap();
        let error = try_share(Path::new("/no/such"), null.as_fd()).unwrap_err();
        assert_eq!(error.to_string(), "cannot share /no/such");
        let error = try_share(Path::new("/dev/null"), null.as_fd()).unwrap_err();
        assert!(matches!(error, ShareError::Kind(_)));
    }
}
