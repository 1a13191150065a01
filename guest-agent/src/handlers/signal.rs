//! Signal: to one process, or to all of a container.

use protocol::agent::{AgentError, ErrorKind, ProcessId, Return};

use crate::error::{SystemContext, error};
use crate::state::Agent;

/// Sends it.
pub fn handle(agent: &Agent, id: &ProcessId, signal: i32, all: bool) -> Result<Return, AgentError> {
    if !(0..=64).contains(&signal) {
        return Err(error(ErrorKind::Invalid, format!("{signal} is no signal")));
    }
    let (container, process) = agent.process(id)?;
    if all {
        container.cgroup.signal(signal).map_err(|error| super::create::failed(&error))?;
        return Ok(Return::Done);
    }
    if process.has_ended() {
        return Err(error(ErrorKind::State, "the process has ended"));
    }
    crate::sys::process::signal(process.pidfd(), signal)
        .system(|| format!("sending signal {signal}"))?;
    Ok(Return::Done)
}
