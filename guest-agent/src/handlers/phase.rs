//! Phase: how far a container is, for a host that lost count.

use protocol::agent::{AgentError, Return};

use crate::state::{Agent, Phase};

/// Looks it up.
pub fn handle(agent: &Agent, id: &str) -> Result<Return, AgentError> {
    let container = agent.container(id)?;
    let started = matches!(*container.phase.borrow(), Phase::Started);
    Ok(Return::Phase { started, frozen: container.cgroup.is_frozen() })
}
