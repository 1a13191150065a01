//! Where everything lies, and files that are written whole or not at all.

mod tree;

use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::rootless;

/// The two roots of bulkhead's state.
///
/// ```text
/// run/                      gone with a reboot, as all that it describes; without root
///                           below lib/, where it is taken for the past's
///   containers/<id>/        state.json, lock, supervisor.lock
///   sandboxes/<id>/         vsock.sock
///   uids/<n>                locked while the range of host uids is in use
///   leases/<network>/       addresses that are taken, as CNI's host-local notes them
/// lib/
///   containers/<id>/        config.json, state.json (state.spare while it runs), rw/,
///                           log.json; with a network: attached.json while it is in it,
///                           etc/
///   networks/<name>.conflist
///   ...                     the image store (of the crate `images`)
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dirs {
    /// Volatile state.
    pub run: PathBuf,
    /// Lasting state.
    pub lib: PathBuf,
}

impl Default for Dirs {
    fn default() -> Dirs {
        Dirs { run: "/run/bulkhead".into(), lib: "/var/lib/bulkhead".into() }
    }
}

impl Dirs {
    /// `BULKHEAD_RUN_DIR` and `BULKHEAD_LIB_DIR`, or the defaults: the user's own without root.
    pub fn from_env() -> Dirs {
        let dir = |name, default| std::env::var_os(name).map_or(default, PathBuf::from);
        let Dirs { run, lib } = match rootless::is_rootless() {
            true => {
                let (run, lib) = rootless::directories();
                Dirs { run, lib }
            }
            false => Dirs::default(),
        };
        Dirs { run: dir("BULKHEAD_RUN_DIR", run), lib: dir("BULKHEAD_LIB_DIR", lib) }
    }

    /// Volatile state of a container.
    pub fn container_run(&self, id: &str) -> PathBuf {
        self.containers_run().join(id)
    }

    /// Volatile state of all containers.
    pub fn containers_run(&self) -> PathBuf {
        self.run.join("containers")
    }

    /// Lasting state of all containers.
    pub fn containers(&self) -> PathBuf {
        self.lib.join("containers")
    }

    /// Lasting state of a container.
    pub fn container_lib(&self, id: &str) -> PathBuf {
        self.containers().join(id)
    }

    /// Directory of a sandbox.
    pub fn sandbox(&self, id: &str) -> PathBuf {
        self.run.join("sandboxes").join(id)
    }

    /// Descriptions of networks.
    pub fn networks(&self) -> PathBuf {
        self.lib.join("networks")
    }

    /// Locks of the uid ranges.
    pub fn uids(&self) -> PathBuf {
        self.run.join("uids")
    }
}

/// Makes a directory and its parents, for root alone.
///
/// # Errors
/// Names the directory.
pub fn make_private(path: &Path) -> io::Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|error| at(path, &error))
}

/// Replaces the contents of `path`: readers see the old or the new file, also
/// after a crash.
///
/// # Errors
/// Names the file.
pub fn write_atomic(path: &Path, contents: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension(format!("tmp{}", std::process::id()));
    let write = || -> io::Result<()> {
        let mut options = File::options();
        let mut file =
            options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(contents)?;
        file.sync_data()?;
        std::fs::rename(&temporary, path)
    };
    write().map_err(|error| {
        let _ = std::fs::remove_file(&temporary);
        at(path, &error)
    })
}

/// Removes a directory with all that is in it, however deep; its absence is no
/// error.
///
/// # Errors
/// Names the directory.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    tree::remove(path).map_err(|error| at(path, &error))
}

/// `error` with the path that it is about.
pub(crate) fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn atomic_write_replaces_and_leaves_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        write_atomic(&path, b"one").unwrap();
        write_atomic(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        let error = write_atomic(&dir.path().join("no/such/file"), b"").unwrap_err();
        assert!(error.to_string().contains("no/such/file"));
    }
}
