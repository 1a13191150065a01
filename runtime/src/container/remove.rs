//! `rm`: a container and all its files.

use super::{Container, ContainerError};

impl Container {
    /// Removes the container; with `force` also a running one. One that removed
    /// itself meanwhile is fine.
    ///
    /// # Errors
    /// When it runs and is not forced, or its files cannot be removed.
    pub async fn remove(&self, force: bool) -> Result<(), ContainerError> {
        let Some(state) = self.state()? else { return Ok(()) };
        if state.needs_supervisor() && !force {
            return Err(ContainerError::StillRunning(self.config.name.clone()));
        }
        if force && self.has_supervisor() {
            self.end_machine().await?;
        } else {
            // It may be about to remove itself.
            self.wait_gone(Some(std::time::Duration::from_secs(5))).await;
        }
        match self.lock() {
            Ok(lock) => {
                if self.has_supervisor() {
                    return Err(ContainerError::StillRunning(self.config.name.clone()));
                }
                self.purge_sandbox();
                self.erase(lock)
            }
            Err(ContainerError::NotFound(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
