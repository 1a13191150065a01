//! `ps`: all containers with their states.

use super::{Container, ContainerError, Containers, State};

impl Containers {
    /// Containers and their true states, newest first.
    ///
    /// # Errors
    /// When files cannot be read.
    pub fn list(&self) -> Result<Vec<(Container, State)>, ContainerError> {
        let mut list = Vec::new();
        for container in self.all()? {
            if let Some(state) = container.state()? {
                list.push((container, state));
            }
        }
        list.reverse();
        Ok(list)
    }
}
