//! `rm`: a container and all its files.

use std::time::{Duration, Instant};

use super::place::Place;
use super::{Container, ContainerError, Containers, Damaged};

/// How long an end may take that has begun by itself.
const ENDING: Duration = Duration::from_secs(5);
/// How often a container that somebody else changes is looked at.
const LOOK: Duration = Duration::from_millis(10);

impl Containers {
    /// Removes a container; with `force` also one that runs or cannot be read,
    /// and one that is not there is fine.
    ///
    /// # Errors
    /// As [`Container::remove`].
    pub async fn remove(&self, reference: &str, force: bool) -> Result<(), ContainerError> {
        match self.find(reference) {
            Err(ContainerError::Unreadable(Damaged { id, .. })) if force => {
                self.place(&id).take_away(true).await
            }
            found => found?.remove(force).await,
        }
    }
}

impl Container {
    /// Removes the container; with `force` also a running one. One that removed
    /// itself meanwhile is fine.
    ///
    /// # Errors
    /// When it runs and is not forced, or its files cannot be removed.
    pub async fn remove(&self, force: bool) -> Result<(), ContainerError> {
        if !force {
            let Some(state) = self.state()? else { return Ok(()) };
            if state.needs_supervisor() || self.is_starting(&state) {
                return Err(ContainerError::StillRunning(self.name()));
            }
        }
        self.take_away(force).await
    }
}

impl Place {
    /// Removes it once it has no supervisor. Whoever holds the lock meanwhile
    /// may be starting it, so that this never just waits for the lock.
    async fn take_away(&self, force: bool) -> Result<(), ContainerError> {
        let begin = Instant::now();
        loop {
            if self.has_supervisor() {
                if force {
                    self.end_machine().await?;
                } else if begin.elapsed() > ENDING {
                    return Err(ContainerError::StillRunning(self.name()));
                }
            }
            match self.try_lock() {
                // With the lock held, none can come any more.
                Ok(Some(lock)) if !self.has_supervisor() => {
                    self.purge_sandbox();
                    return self.erase(lock);
                }
                Ok(_) => tokio::time::sleep(LOOK).await,
                Err(ContainerError::NotFound(_)) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}
