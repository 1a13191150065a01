//! `ps`: all containers with their states.

use super::{Container, ContainerError, Containers, Damaged, State, Uncertain};

/// What lies in the directory of containers.
#[derive(Debug)]
pub struct Listing<T> {
    /// Those that can be read.
    pub sound: Vec<T>,
    /// The others.
    pub damaged: Vec<Damaged>,
}

/// Containers with their states.
#[derive(Debug)]
pub struct States {
    /// Those whose state is known, newest first.
    pub known: Vec<(Container, State)>,
    /// Those whose state is not as it is written, and could not be corrected.
    pub uncertain: Vec<Uncertain>,
    /// Those that cannot be read.
    pub damaged: Vec<Damaged>,
}

impl Containers {
    /// Containers and their true states. Removes what is left of those whose creation or
    /// removal was killed.
    ///
    /// # Errors
    /// When the directory cannot be read. What is wrong with one container hides no other.
    pub fn list(&self) -> Result<States, ContainerError> {
        // Somebody who creates one at this moment sweeps as well.
        if let Some(names) = self.try_lock_names() {
            self.sweep(names);
        }
        let Listing { sound, mut damaged } = self.all()?;
        let (mut known, mut uncertain) = (Vec::new(), Vec::new());
        for container in sound.into_iter().rev() {
            match container.state() {
                Ok(Some(state)) => known.push((container, state)),
                Ok(None) => {}
                Err(ContainerError::Unreadable(error)) => damaged.push(error),
                Err(error) => uncertain.push(Uncertain::new(container.name(), error)),
            }
        }
        Ok(States { known, uncertain, damaged })
    }
}
