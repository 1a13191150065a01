//! Wait: answers once a process has ended.

use protocol::agent::{AgentError, ProcessId, Return};

use crate::state::Agent;

/// Waits.
pub async fn handle(agent: &Agent, id: &ProcessId) -> Result<Return, AgentError> {
    let (container, process) = agent.process(id)?;
    Ok(Return::Exit(process.wait(&container.cgroup).await))
}
