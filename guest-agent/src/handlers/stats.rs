//! Stats: figures of the container's cgroup.

use protocol::agent::{AgentError, Return};

use crate::state::Agent;

/// Reads them.
pub fn handle(agent: &Agent, id: &str) -> Result<Return, AgentError> {
    Ok(Return::Stats(agent.container(id)?.cgroup.stats()))
}
