//! Containers as they lie on disk.

use std::ops::Deref;

use super::config::VERSION;
use super::lasting;
use super::list::Listing;
use super::place::{self, Place, VerbLock};
use super::{ContainerConfig, ContainerError, Damaged, State};
use crate::dirs::{self, Dirs};
use crate::files::{read_json, write_json};
use crate::{id, log_file};

/// All containers of this host.
#[derive(Debug, Clone)]
pub struct Containers {
    dirs: Dirs,
}

/// One container: what it is, and where.
#[derive(Debug, Clone)]
pub struct Container {
    /// What it is.
    pub config: ContainerConfig,
    place: Place,
}

/// Most of what verbs do needs no configuration.
impl Deref for Container {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

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
    /// When the directory cannot be read.
    pub fn all(&self) -> Result<Listing<Container>, ContainerError> {
        let mut all = Listing { sound: Vec::new(), damaged: Vec::new() };
        let directory = self.dirs.containers();
        let entries = match std::fs::read_dir(&directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(all),
            other => other.map_err(ContainerError::io(&directory))?,
        };
        for entry in entries {
            let entry = entry.map_err(ContainerError::io(&directory))?;
            match self.load(&entry.file_name().to_string_lossy()) {
                Ok(found) => all.sound.extend(found),
                Err(damaged) => all.damaged.push(damaged),
            }
        }
        all.sound.sort_by_key(|container| container.config.created);
        Ok(all)
    }

    fn load(&self, id: &str) -> Result<Option<Container>, Damaged> {
        let config: Option<ContainerConfig> = read_json(&self.place(id).config_path())
            .map_err(|error| Damaged::new(id, error.into()))?;
        Ok(config.filter(|config| config.version == VERSION).map(|config| self.adopt(config)))
    }

    /// The container with this id, start of an id, or name.
    ///
    /// # Errors
    /// When there is none, or several, or it cannot be read.
    pub fn find(&self, reference: &str) -> Result<Container, ContainerError> {
        if id::is_id(reference)
            && let Some(container) = self.load(reference)?
        {
            return Ok(container);
        }
        let is_start = |id: &str| !reference.is_empty() && id.starts_with(reference);
        let all = self.all()?;
        let mut found = Vec::new();
        for container in all.sound {
            if container.config.name == reference {
                return Ok(container);
            }
            if is_start(container.id()) {
                found.push(Ok(container));
            }
        }
        let damaged = all.damaged.into_iter().filter(|damaged| is_start(&damaged.id));
        found.extend(damaged.map(|damaged| Err(damaged.into())));
        match (found.pop(), found.is_empty()) {
            (None, _) => Err(ContainerError::NotFound(reference.into())),
            (Some(only), true) => only,
            (Some(_), false) => Err(ContainerError::Ambiguous(reference.into())),
        }
    }

    /// Held while a name is looked up and taken.
    pub(super) fn lock_names(&self) -> Result<VerbLock, ContainerError> {
        let directory = self.dirs.containers();
        dirs::make_private(&directory).map_err(ContainerError::io(&directory))?;
        place::lock(&directory.join(NAMES))
    }

    /// The same, if nobody holds it and there ever was a container.
    pub(super) fn try_lock_names(&self) -> Option<VerbLock> {
        place::try_lock(&self.dirs.containers().join(NAMES))
    }

    pub(super) fn adopt(&self, config: ContainerConfig) -> Container {
        let place = Place::new(&config.id, &config.name, self.dirs.clone());
        Container { config, place }
    }

    /// Where the container `id` lies, whether it can be read or not.
    pub(super) fn place(&self, id: &str) -> Place {
        Place::new(id, id::short(id), self.dirs.clone())
    }
}

/// Name of the file that is locked while names are taken.
const NAMES: &str = ".names.lock";

impl Container {
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
        if let Some(state) = read_json(&self.run_dir().join("state.json"))? {
            return Ok(state);
        }
        if let Some(state) = lasting::read(&self.lib_dir())? {
            return Ok(state);
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
        // States without a supervisor outlive a reboot; others must not.
        if state.needs_supervisor() {
            lasting::set_aside(&self.lib_dir())?;
        } else {
            lasting::write(&self.lib_dir(), state)?;
        }
        Ok(write_json(&run.join("state.json"), state)?)
    }
}

#[cfg(test)]
mod tests;
