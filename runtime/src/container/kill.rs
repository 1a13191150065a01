//! `kill`: a signal for the container's process.

use std::time::Duration;

use protocol::agent::{Call, ErrorKind, ProcessId};

use super::place::Place;
use super::{Container, ContainerError, State, holder};
use crate::agent::{Agent, AgentError};
use crate::rootless::is_rootless;
use crate::sandbox::cgroup;
use crate::signals::SignalNumber;
use crate::sys::pidfd::PidFd;
use crate::sys::process;

/// Longest wait for a guest that shall only pass on a signal.
const PATIENCE: Duration = Duration::from_secs(10);

impl Container {
    /// The process's name for the agent.
    pub fn process(&self) -> ProcessId {
        ProcessId { container: self.id().into(), exec: None }
    }

    /// Fails unless its process runs.
    pub(super) fn require_running(&self, verb: &'static str) -> Result<(), ContainerError> {
        match self.state()? {
            Some(State::Running { .. } | State::Paused { .. }) => Ok(()),
            Some(state) => Err(self.refuse(verb, &state)),
            None => Err(ContainerError::NotFound(self.name())),
        }
    }

    /// Sends a signal to the container's process. SIGKILL also ends a machine
    /// whose guest does not answer.
    ///
    /// # Errors
    /// When it does not run, or the guest does not answer.
    pub async fn kill(&self, signal: SignalNumber) -> Result<(), ContainerError> {
        self.require_running("kill")?;
        match self.signal(signal).await {
            Err(_) if signal.0 == libc::SIGKILL && self.has_supervisor() => {
                self.kill_machine();
                Ok(())
            }
            other => Ok(other?),
        }
    }

    /// Asks the agent to send a signal. A process that has just ended is fine.
    pub(super) async fn signal(&self, signal: SignalNumber) -> Result<(), AgentError> {
        let sandbox = self.sandbox_dir();
        let send = async {
            let agent = Agent::connect(&sandbox).await?;
            let process = self.process();
            agent.order(Call::Signal { process, signal: signal.0, all: false }).await
        };
        let late = |_| AgentError::TimedOut { what: "signal", limit: PATIENCE };
        match tokio::time::timeout(PATIENCE, send).await.map_err(late)? {
            Err(AgentError::Refused(error)) if error.kind == ErrorKind::State => Ok(()),
            other => other,
        }
    }
}

/// Whether a child of a supervisor's is one that ends with the machine: passt executes the
/// best of its builds, `passt.avx2` for one.
fn is_ours(name: &str) -> bool {
    name == "bulkhead-vmm" || name.split('.').next() == Some("passt")
}

impl Place {
    /// Ends the machine without asking the guest. Its supervisor, if it lives,
    /// writes down the end.
    pub(super) fn kill_machine(&self) {
        // Whoever waits for its end tells when it does not come.
        if is_rootless() {
            self.kill_children();
        } else {
            let _ = cgroup::kill(&cgroup::path_of(self.id()));
        }
    }

    /// Kills what the supervisor has begun, where no cgroup tells what that is: the VMM and
    /// passt, by their names. Who executed us may have had other children.
    fn kill_children(&self) {
        let Some(supervisor) = holder::of(&self.supervisor_file()) else { return };
        for child in process::children(supervisor) {
            // Opened, it is this process for good; and still the supervisor's, if it was so
            // after that.
            if let Ok(opened) = PidFd::open(child)
                && process::children(supervisor).contains(&child)
                && process::name(child).is_some_and(|name| is_ours(&name))
            {
                let _ = opened.signal(libc::SIGKILL);
            }
        }
    }

    /// Waits until the supervisor has written down the end and is gone; false
    /// when `limit` passes before.
    pub async fn wait_gone(&self, limit: Option<Duration>) -> bool {
        let gone = async {
            while self.has_supervisor() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        match limit {
            None => {
                gone.await;
                true
            }
            Some(limit) => tokio::time::timeout(limit, gone).await.is_ok(),
        }
    }
}
