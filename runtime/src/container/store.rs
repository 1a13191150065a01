//! Containers as they lie on disk, and their locks.

use std::fs::{File, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::config::VERSION;
use super::{ContainerConfig, ContainerError, State};
use crate::dirs::{self, Dirs};
use crate::{id, log_file};

/// All containers of this host.
#[derive(Debug, Clone)]
pub struct Containers {
    dirs: Dirs,
}

/// One container.
#[derive(Debug, Clone)]
pub struct Container {
    /// What it is.
    pub config: ContainerConfig,
    dirs: Dirs,
}

/// The right to change a container's state. Dropped, it is given back.
#[derive(Debug)]
pub struct VerbLock(#[allow(dead_code)] File);

/// The claim to be a container's supervisor, true as long as this lives.
#[derive(Debug)]
pub struct SupervisorLock(#[allow(dead_code)] File);

impl Containers {
    /// The containers below `dirs`.
    pub fn new(dirs: Dirs) -> Containers {
        Containers { dirs }
    }

    /// Where state lies.
    pub fn dirs(&self) -> &Dirs {
        &self.dirs
    }

    /// All containers, oldest first. One that is being removed or made at this
    /// moment may be missing.
    ///
    /// # Errors
    /// When the directory cannot be read, or a container is damaged.
    pub fn all(&self) -> Result<Vec<Container>, ContainerError> {
        let directory = self.dirs.containers();
        let entries = match std::fs::read_dir(&directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(ContainerError::io(&directory))?,
        };
        let mut all = Vec::new();
        for entry in entries {
            let entry = entry.map_err(ContainerError::io(&directory))?;
            if let Some(container) = self.load(&entry.file_name().to_string_lossy())? {
                all.push(container);
            }
        }
        all.sort_by_key(|container| container.config.created);
        Ok(all)
    }

    fn load(&self, id: &str) -> Result<Option<Container>, ContainerError> {
        let path = self.dirs.container_lib(id).join("config.json");
        let config: Option<ContainerConfig> = read_json(&path)?;
        Ok(config
            .filter(|config| config.version == VERSION)
            .map(|config| Container { config, dirs: self.dirs.clone() }))
    }

    /// The container with this id, start of an id, or name.
    ///
    /// # Errors
    /// When there is none, or several.
    pub fn find(&self, reference: &str) -> Result<Container, ContainerError> {
        let is_id =
            reference.len() == id::ID_LEN && reference.bytes().all(|byte| byte.is_ascii_hexdigit());
        if is_id && let Some(container) = self.load(reference)? {
            return Ok(container);
        }
        let mut found = Vec::new();
        for container in self.all()? {
            if container.config.name == reference {
                return Ok(container);
            }
            if !reference.is_empty() && container.config.id.starts_with(reference) {
                found.push(container);
            }
        }
        match (found.pop(), found.is_empty()) {
            (None, _) => Err(ContainerError::NotFound(reference.into())),
            (Some(container), true) => Ok(container),
            (Some(_), false) => Err(ContainerError::Ambiguous(reference.into())),
        }
    }

    /// Held while a name is looked up and taken.
    pub(super) fn lock_names(&self) -> Result<VerbLock, ContainerError> {
        let directory = self.dirs.containers();
        dirs::make_private(&directory).map_err(ContainerError::io(&directory))?;
        lock(&directory.join(".names.lock")).map(VerbLock)
    }

    pub(super) fn adopt(&self, config: ContainerConfig) -> Container {
        Container { config, dirs: self.dirs.clone() }
    }
}

impl Container {
    /// Its id.
    pub fn id(&self) -> &str {
        &self.config.id
    }

    /// Lasting state.
    pub fn lib_dir(&self) -> PathBuf {
        self.dirs.container_lib(self.id())
    }

    /// Volatile state.
    pub fn run_dir(&self) -> PathBuf {
        self.dirs.container_run(self.id())
    }

    /// Directory of its sandbox.
    pub fn sandbox_dir(&self) -> PathBuf {
        self.dirs.sandbox(self.id())
    }

    /// Directory of its writable layer.
    pub fn rw_dir(&self) -> PathBuf {
        self.lib_dir().join("rw")
    }

    /// Its log.
    pub fn log_path(&self) -> PathBuf {
        self.lib_dir().join("log.json")
    }

    pub(super) fn dirs(&self) -> &Dirs {
        &self.dirs
    }

    /// Opens its log for one stream.
    ///
    /// # Errors
    /// Names the file.
    pub fn open_log(&self, stream: &'static str) -> Result<log_file::LogWriter, ContainerError> {
        let path = self.log_path();
        log_file::LogWriter::open(&path, stream).map_err(ContainerError::io(path))
    }

    /// The state as written. It may need a supervisor that is not there any
    /// more: see [`super::reconcile`].
    ///
    /// # Errors
    /// When the file is damaged.
    pub fn written_state(&self) -> Result<State, ContainerError> {
        // A reboot empties the first place. What ran then is in neither.
        for directory in [self.run_dir(), self.lib_dir()] {
            if let Some(state) = read_json(&directory.join("state.json"))? {
                return Ok(state);
            }
        }
        let error = "the host was restarted while the container ran".to_string();
        Ok(State::Created.stopped(137, false, Some(error)))
    }

    /// Writes the state. The lock proves the right to do so.
    ///
    /// # Errors
    /// When it cannot be written.
    ///
    /// # Panics
    /// In debug builds, when `state` cannot follow the present one.
    pub fn write_state(&self, _: &VerbLock, state: &State) -> Result<(), ContainerError> {
        debug_assert!(
            self.written_state().is_ok_and(|old| old == *state || old.may_become(state)),
            "no transition to {}",
            state.name()
        );
        let run = self.run_dir();
        dirs::make_private(&run).map_err(ContainerError::io(&run))?;
        let bytes = serde_json::to_vec_pretty(state)
            .map_err(|source| ContainerError::Damaged { path: run.clone(), source })?;
        // States without a supervisor outlive a reboot; others must not.
        let lasting = self.lib_dir().join("state.json");
        if state.needs_supervisor() {
            match std::fs::remove_file(&lasting) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(ContainerError::io(lasting)(error));
                }
                _ => {}
            }
        } else {
            dirs::write_atomic(&lasting, &bytes).map_err(ContainerError::io(&lasting))?;
        }
        let path = run.join("state.json");
        dirs::write_atomic(&path, &bytes).map_err(ContainerError::io(path))
    }

    /// Waits for the right to change the state.
    ///
    /// # Errors
    /// When the container was removed meanwhile.
    pub fn lock(&self) -> Result<VerbLock, ContainerError> {
        let lock = VerbLock(lock(&self.lock_file("lock")?)?);
        self.still_there()?;
        Ok(lock)
    }

    /// The right to change the state, if nobody has it.
    ///
    /// # Errors
    /// As [`Container::lock`].
    pub fn try_lock(&self) -> Result<Option<VerbLock>, ContainerError> {
        let path = self.lock_file("lock")?;
        let file = open_lock(&path)?;
        match file.try_lock() {
            Ok(()) => self.still_there().map(|()| Some(VerbLock(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(ContainerError::io(path)(error)),
        }
    }

    /// Becomes the supervisor. The caller holds the verb lock and has seen that
    /// there is none.
    pub(super) fn become_supervisor(&self) -> Result<SupervisorLock, ContainerError> {
        lock(&self.lock_file("supervisor.lock")?).map(SupervisorLock)
    }

    /// Whether its supervisor lives.
    pub fn has_supervisor(&self) -> bool {
        // Shared, so that two who look do not see each other.
        let file = File::open(self.run_dir().join("supervisor.lock"));
        file.is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }

    fn lock_file(&self, name: &str) -> Result<PathBuf, ContainerError> {
        let run = self.run_dir();
        self.still_there()?;
        dirs::make_private(&run).map_err(ContainerError::io(&run))?;
        Ok(run.join(name))
    }

    fn still_there(&self) -> Result<(), ContainerError> {
        if self.lib_dir().join("config.json").exists() {
            return Ok(());
        }
        // A lock file that a late comer made again.
        let _ = dirs::remove_tree(&self.run_dir());
        Err(ContainerError::NotFound(self.config.name.clone()))
    }
}

fn open_lock(path: &Path) -> Result<File, ContainerError> {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options.open(path).map_err(ContainerError::io(path))
}

fn lock(path: &Path) -> Result<File, ContainerError> {
    let file = open_lock(path)?;
    file.lock().map_err(ContainerError::io(path))?;
    Ok(file)
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, ContainerError> {
    let bytes = match std::fs::read(path) {
        Err(error) if is_absent(&error) => return Ok(None),
        other => other.map_err(ContainerError::io(path))?,
    };
    let damaged = |source| ContainerError::Damaged { path: path.into(), source };
    serde_json::from_slice(&bytes).map(Some).map_err(damaged)
}

fn is_absent(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{NotADirectory, NotFound};
    matches!(error.kind(), NotFound | NotADirectory)
}

#[cfg(test)]
mod tests;
