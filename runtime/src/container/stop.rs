//! `stop`: the stop signal, then SIGKILL, then the end of the machine.

use std::time::{Duration, Instant};

use super::place::Place;
use super::{Container, ContainerError, holder};
use crate::signals::SignalNumber;
use crate::sys::pidfd::PidFd;

/// Time that each step beyond the asked-for one may take.
const STEP: Duration = Duration::from_secs(10);
/// How often a machine that may not be there yet is killed.
const LOOK: Duration = Duration::from_millis(10);

impl Container {
    /// Stops the container. One that does not run is fine.
    ///
    /// # Errors
    /// When it is only starting, or cannot be ended.
    pub async fn stop(&self, limit: Duration) -> Result<(), ContainerError> {
        match self.state()? {
            Some(state) if self.is_starting(&state) => return Err(self.refuse("stop", &state)),
            Some(state) if state.needs_supervisor() => {}
            _ => return Ok(()),
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
}

impl Place {
    /// Kills the machine and waits for its supervisor.
    pub(super) async fn end_machine(&self) -> Result<(), ContainerError> {
        if self.kill_until_gone().await {
            return Ok(());
        }
        // The supervisor hangs.
        self.kill_supervisor();
        if self.kill_until_gone().await {
            return Ok(());
        }
        Err(ContainerError::Immortal { name: self.name(), seconds: 2 * STEP.as_secs() })
    }

    /// Kills what is in the cgroup until the supervisor is gone; false when it
    /// takes too long. Again and again, because a supervisor that is starting
    /// may make its VMM, or the cgroup itself, at any moment.
    async fn kill_until_gone(&self) -> bool {
        let begin = Instant::now();
        while self.has_supervisor() {
            if begin.elapsed() > STEP {
                return false;
            }
            self.kill_machine();
            tokio::time::sleep(LOOK).await;
        }
        true
    }

    /// Kills the process that has the supervisor's lock. state.json does not
    /// name it during a start, and may not be readable.
    fn kill_supervisor(&self) {
        let lock = self.supervisor_file();
        if let Some(pid) = holder::of(&lock)
            && let Ok(process) = PidFd::open(pid)
            // Still so: the number was not another's when it was opened.
            && holder::of(&lock) == Some(pid)
        {
            let _ = process.signal(libc::SIGKILL);
        }
    }
}
