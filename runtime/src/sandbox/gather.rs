//! Shares of a container that joins a running machine, as one detached tree of
//! mounts: a tmpfs in which each has its name. One descriptor stands for all, and
//! with its last copy they are gone.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use protocol::machine::{FdIndex, Share};

use super::ShareConfig;
use super::owner::Owner;
use super::share::{self, ShareError};
use crate::sys::mounts;

/// Why they cannot be gathered.
#[derive(Debug, thiserror::Error)]
pub enum GatherError {
    /// One of them.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// The tree.
    #[error("cannot {what}")]
    System {
        /// What failed.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
}

/// The shares of container `id` for `owner`; in the guest, `prefix` and a dash precede
/// their names.
pub(super) fn gather(
    configs: &[ShareConfig],
    id: &str,
    prefix: &str,
    owner: &Owner,
) -> Result<(Vec<Share>, OwnedFd), GatherError> {
    let mut shares = Vec::with_capacity(configs.len());
    let mut detached = Vec::with_capacity(configs.len());
    for config in configs {
        let (share, mount) = share::detach(config, id, owner)?;
        let name = format!("{prefix}-{}", share.name);
        shares.push(Share { name, mount: FdIndex(0), ..share });
        detached.push(mount);
    }
    let tree = std::thread::scope(|scope| scope.spawn(|| plant(&shares, &detached)).join());
    // It has no way to panic, but for a lack of memory.
    let tree =
        tree.unwrap_or_else(|_| Err(system("gather the shares")(std::io::ErrorKind::Other.into())));
    Ok((shares, tree?))
}

fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> GatherError {
    move |source| GatherError::System { what, source }
}

/// In a thread of its own: leaves the mount namespace of the process, and its
/// working directory.
fn plant(shares: &[Share], detached: &[OwnedFd]) -> Result<OwnedFd, GatherError> {
    let errno = |what| move |errno: nix::Error| system(what)(errno.into());
    unshare(CloneFlags::CLONE_NEWNS).map_err(errno("make a mount namespace"))?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .map_err(errno("make the mounts private"))?;
    // Anywhere: nobody else sees it, and no path is needed any more.
    let stage = "/proc";
    let options = Some("size=1m,mode=0755");
    mount(Some("bulkhead"), stage, Some("tmpfs"), MsFlags::empty(), options)
        .map_err(errno("mount a tmpfs"))?;
    nix::unistd::chdir(stage).map_err(errno("enter the tmpfs"))?;
    for (share, mount) in shares.iter().zip(detached) {
        let made = match share.file {
            true => File::create(&share.name).map(drop),
            false => std::fs::create_dir(&share.name),
        };
        made.map_err(system("make a mount point"))?;
        let name = CString::new(share.name.as_str())
            .map_err(|_| system("name a mount point")(std::io::ErrorKind::InvalidInput.into()))?;
        mounts::attach(mount.as_fd(), &name).map_err(errno("attach a share"))?;
    }
    let here = File::open(".").map_err(system("open the tmpfs"))?;
    let tree = mounts::clone_tree(here.as_fd()).map_err(errno("clone the tree of shares"))?;
    mounts::restrict(tree.as_fd(), true).map_err(errno("make the tree read-only"))?;
    Ok(tree)
}
