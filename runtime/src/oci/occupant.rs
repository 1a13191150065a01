//! Which machine has the network namespace that a new container names by a path.
//!
//! ```text
//! create                                          another one, of the same namespace
//!   | locks the namespace                           | waits for the lock
//!   | nobody has it: begins a machine               |
//!   |   ... its monitor enters the namespace ...    |
//!   | phase.json                                    |
//!   | ends, and the lock with it -----------------> | finds the machine, and joins it
//! ```
//!
//! A machine has the namespace in which the monitor of its first container is: by that, and
//! not by the path, it is found. So it does not matter by which of its paths a namespace is
//! named, and whoever was killed has none. The lock is a byte, at the namespace's number, of a
//! file in the directory of all containers: the namespace's own file is anybody's to lock.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use super::network::{failed, open};
use super::plan::{Identity, Named, Neighbour, hosts_network, network_path};
use super::store::{Container, Root, Status};
use super::{Bundle, OciError};
use crate::dirs;
use crate::sandbox::boot_timeout;

/// How long a machine may take to begin, beside its boot, or to end: engines' hooks run
/// meanwhile, and guests sync.
const CHANGE: Duration = Duration::from_secs(60);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// The namespace of a container that is about to be created.
pub(super) struct Occupancy {
    /// It, if it has a path.
    pub(super) network: Option<Named>,
    /// The right to take it over, where nobody has it.
    pub(super) lock: Option<File>,
}

impl Occupancy {
    /// Of the container in `bundle`. Waits for whoever begins a machine in that namespace, or
    /// ends one.
    ///
    /// # Errors
    /// When there is no namespace, or that takes too long.
    pub(super) fn of(root: &Root, bundle: &Bundle) -> Result<Occupancy, OciError> {
        let linux = bundle.spec.linux().as_ref();
        let Some(path) = linux.and_then(network_path) else {
            return Ok(Occupancy { network: None, lock: None });
        };
        let (_, identity) = open(path)?;
        if hosts_network() == Some(identity) {
            // Nobody gets it, and monitors are in it before they enter theirs.
            let network = Some(Named { identity, occupant: None });
            return Ok(Occupancy { network, lock: None });
        }
        let patience = Patience::of(path);
        let lock = lock(root, identity, &patience)?;
        let occupant = occupant(root, identity, &patience)?;
        // Who joins a machine keeps nobody from doing so.
        let lock = occupant.is_none().then_some(lock);
        Ok(Occupancy { network: Some(Named { identity, occupant }), lock })
    }
}

/// How long others are waited for.
struct Patience<'a> {
    path: &'a Path,
    begin: Instant,
    limit: Duration,
}

impl Patience<'_> {
    fn of(path: &Path) -> Patience<'_> {
        Patience { path, begin: Instant::now(), limit: boot_timeout() + CHANGE }
    }

    /// Waits a moment for `whom`.
    fn pause(&self, whom: impl FnOnce() -> String) -> Result<(), OciError> {
        if self.begin.elapsed() < self.limit {
            std::thread::sleep(PAUSE);
            return Ok(());
        }
        let reason = format!("{}, and is not done after {} s", whom(), self.limit.as_secs());
        let late = std::io::Error::new(std::io::ErrorKind::TimedOut, reason);
        Err(failed("join", self.path)(late))
    }
}

/// The file whose bytes are locked. No container has its name.
fn locks(root: &Root) -> Result<File, OciError> {
    dirs::make_private(root.path()).map_err(OciError::io(root.path()))?;
    let path = root.path().join("@networks.lock");
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options.open(&path).map_err(OciError::io(path))
}

fn lock(root: &Root, namespace: Identity, patience: &Patience) -> Result<File, OciError> {
    let file = locks(root)?;
    let byte = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        // All are of one file system, nsfs, which numbers them from PROC_DYNAMIC_FIRST on.
        l_start: (namespace.1 & i64::MAX as u64) as libc::off_t,
        l_len: 1,
        l_pid: 0,
    };
    loop {
        match fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&byte)) {
            Ok(_) => return Ok(file),
            Err(Errno::EAGAIN | Errno::EACCES) => {
                patience.pause(|| "another container is being created in it".into())?;
            }
            Err(errno) => return Err(failed("lock", patience.path)(errno.into())),
        }
    }
}

/// The container whose machine has the namespace.
fn occupant(
    root: &Root,
    namespace: Identity,
    patience: &Patience,
) -> Result<Option<Neighbour>, OciError> {
    while let Some(container) = root.occupant(namespace)? {
        if let Some(neighbour) = alive(&container)? {
            return Ok(Some(neighbour));
        }
        let id = container.id();
        patience.pause(|| {
            format!(
                "container {id:?} begins or ends its machine there (`delete --force {id}` ends it)"
            )
        })?;
    }
    Ok(None)
}

fn alive(container: &Container) -> Result<Option<Neighbour>, OciError> {
    match (container.status(), container.phase()?) {
        (Ok(Status::Live(_)), Some(phase)) => Ok(Some(container.neighbour(&phase))),
        // It was removed this moment.
        (Ok(_) | Err(OciError::NotFound(_)), _) => Ok(None),
        (Err(error), _) => Err(error),
    }
}
