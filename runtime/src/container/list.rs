//! `ps`: all containers with their states.

use super::{Container, ContainerError, Containers, Damaged, State};

/// What lies in the directory of containers.
#[derive(Debug)]
pub struct Listing<T> {
    /// Those that can be read.
    pub sound: Vec<T>,
    /// The others.
    pub damaged: Vec<Damaged>,
}

impl Containers {
    /// Containers and their true states, newest first. Removes what is left of
    /// those whose creation or removal was killed.
    ///
    /// # Errors
    /// When the directory cannot be read or a state not be corrected.
    pub fn list(&self) -> Result<Listing<(Container, State)>, ContainerError> {
        // Somebody who creates one at this moment sweeps as well.
        if let Some(names) = self.try_lock_names() {
            self.sweep(names);
        }
        let Listing { sound: containers, mut damaged } = self.all()?;
        let mut sound = Vec::new();
        for container in containers {
            match container.state() {
                Ok(Some(state)) => sound.push((container, state)),
                Ok(None) => {}
                Err(ContainerError::Unreadable(error)) => damaged.push(error),
                Err(error) => return Err(error),
            }
        }
        sound.reverse();
        Ok(Listing { sound, damaged })
    }
}
