//! `stop`: the stop signal, then SIGKILL, then the end of the machine.

use std::time::Duration;

use super::{Container, ContainerError, State};
use crate::signals::SignalNumber;

/// Time that each step beyond the asked-for one may take.
const STEP: Duration = Duration::from_secs(10);

impl Container {
    /// Stops the container. One that does not run is fine.
    ///
    /// # Errors
    /// When it cannot be ended.
    pub async fn stop(&self, limit: Duration) -> Result<(), ContainerError> {
        if !self.state()?.is_some_and(|state| state.needs_supervisor()) {
            return Ok(());
        }
        let asked = SignalNumber(self.config.stop_signal);
        for (signal, limit) in [(asked, limit), (SignalNumber(libc::SIGKILL), STEP)] {
            let sent = self.signal(signal).await;
            if let Err(error) = &sent {
                tracing::debug!("signal {} was not delivered: {error}", signal.0);
            }
            // There is nothing to wait for when the guest is unreachable.
            if sent.is_ok() && self.wait_gone(Some(limit)).await {
                return Ok(());
            }
        }
        self.end_machine().await
    }

    /// Kills the machine and waits for its supervisor.
    pub(super) async fn end_machine(&self) -> Result<(), ContainerError> {
        self.kill_machine();
        if self.wait_gone(Some(STEP)).await {
            return Ok(());
        }
        // The supervisor hangs, or has not yet or no more a machine.
        if let Some(State::Ready { machine } | State::Running { machine, .. }) = self.state()?
            && self.has_supervisor()
            && let Ok(supervisor) = crate::sys::pidfd::PidFd::open(machine.supervisor)
            // Still the same process: the lock is held by nobody else.
            && self.has_supervisor()
        {
            let _ = supervisor.signal(nix::sys::signal::Signal::SIGKILL);
        }
        if self.wait_gone(Some(STEP)).await {
            return Ok(());
        }
        let name = self.config.name.clone();
        Err(ContainerError::Immortal { name, seconds: 2 * STEP.as_secs() })
    }
}
