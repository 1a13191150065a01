//! A container's directories and locks: all that can be known of it by its id,
//! and all that its removal needs, even when none of its files can be read.

use std::fs::{File, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::ContainerError;
use crate::dirs::{self, Dirs};

/// Where a container lies.
#[derive(Debug, Clone)]
pub struct Place {
    id: String,
    /// What messages call it.
    name: String,
    dirs: Dirs,
}

/// The right to change a container's state. Dropped, it is given back.
#[derive(Debug)]
pub struct VerbLock(#[allow(dead_code)] File);

/// The claim to be a container's supervisor, true as long as this lives.
#[derive(Debug)]
pub struct SupervisorLock(#[allow(dead_code)] File);

/// Name of the file that the supervisor locks.
const SUPERVISOR: &str = "supervisor.lock";

impl Place {
    pub(super) fn new(id: &str, name: &str, dirs: Dirs) -> Place {
        Place { id: id.into(), name: name.into(), dirs }
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What messages call it.
    pub(super) fn name(&self) -> String {
        self.name.clone()
    }

    /// Where all containers lie.
    pub fn dirs(&self) -> &Dirs {
        &self.dirs
    }

    /// Lasting state.
    pub fn lib_dir(&self) -> PathBuf {
        self.dirs.container_lib(&self.id)
    }

    /// Volatile state.
    pub fn run_dir(&self) -> PathBuf {
        self.dirs.container_run(&self.id)
    }

    /// Directory of its sandbox.
    pub fn sandbox_dir(&self) -> PathBuf {
        self.dirs.sandbox(&self.id)
    }

    /// Directory of its writable layer.
    pub fn rw_dir(&self) -> PathBuf {
        self.lib_dir().join("rw")
    }

    /// Its log.
    pub fn log_path(&self) -> PathBuf {
        self.lib_dir().join("log.json")
    }

    /// Waits for the right to change the state.
    ///
    /// # Errors
    /// When the container was removed meanwhile.
    pub fn lock(&self) -> Result<VerbLock, ContainerError> {
        let path = self.lock_file("lock")?;
        let lock = lock(&path).or_else(|error| self.still_there().and(Err(error)))?;
        self.still_there()?;
        Ok(lock)
    }

    /// The right to change the state, if nobody has it.
    ///
    /// # Errors
    /// As [`Place::lock`].
    pub fn try_lock(&self) -> Result<Option<VerbLock>, ContainerError> {
        let path = self.lock_file("lock")?;
        let file = open_lock(&path).or_else(|error| self.still_there().and(Err(error)))?;
        match file.try_lock() {
            Ok(()) => self.still_there().map(|()| Some(VerbLock(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(ContainerError::io(path)(error)),
        }
    }

    /// Becomes the supervisor. The caller holds the verb lock and has seen that
    /// there is none.
    pub(super) fn become_supervisor(&self) -> Result<SupervisorLock, ContainerError> {
        let VerbLock(file) = lock(&self.lock_file(SUPERVISOR)?)?;
        Ok(SupervisorLock(file))
    }

    /// Whether its supervisor lives.
    pub fn has_supervisor(&self) -> bool {
        self.is_held(SUPERVISOR)
    }

    /// The file that its supervisor, if it lives, has locked.
    pub(super) fn supervisor_file(&self) -> PathBuf {
        self.run_dir().join(SUPERVISOR)
    }

    /// Whether it is the rest of a container: one without config.json, which
    /// nobody is working on. Only true for certain under the lock of names, as
    /// creation looks the same until its end.
    pub(super) fn is_orphan(&self) -> bool {
        let config = std::fs::symlink_metadata(self.config_path());
        config.is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
            && !self.is_held("lock")
            && !self.has_supervisor()
    }

    pub(super) fn config_path(&self) -> PathBuf {
        self.lib_dir().join("config.json")
    }

    fn is_held(&self, name: &str) -> bool {
        // Shared, so that two who look do not see each other.
        let file = File::open(self.run_dir().join(name));
        file.is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }

    fn lock_file(&self, name: &str) -> Result<PathBuf, ContainerError> {
        let run = self.run_dir();
        self.still_there()?;
        dirs::make_private(&run).map_err(ContainerError::io(&run))?;
        Ok(run.join(name))
    }

    fn still_there(&self) -> Result<(), ContainerError> {
        if self.config_path().exists() {
            return Ok(());
        }
        // A lock file that a late comer made again.
        let _ = dirs::remove_tree(&self.run_dir());
        Err(ContainerError::NotFound(self.name()))
    }
}

fn open_lock(path: &Path) -> Result<File, ContainerError> {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options.open(path).map_err(ContainerError::io(path))
}

/// Waits for the lock of a file, which is made if need be.
pub(super) fn lock(path: &Path) -> Result<VerbLock, ContainerError> {
    let file = open_lock(path)?;
    file.lock().map_err(ContainerError::io(path))?;
    Ok(VerbLock(file))
}

/// The lock of a file, if that exists and nobody has it.
pub(super) fn try_lock(path: &Path) -> Option<VerbLock> {
    let file = File::open(path).ok()?;
    file.try_lock().ok().map(|()| VerbLock(file))
}
