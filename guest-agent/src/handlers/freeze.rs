//! Freeze: stops or continues all processes of a container.

use std::rc::Rc;

use protocol::agent::{AgentError, ErrorKind, Return};

use crate::error::error;
use crate::state::Agent;

/// Returns once the kernel has done so.
pub async fn handle(agent: &Rc<Agent>, id: &str, frozen: bool) -> Result<Return, AgentError> {
    let container = agent.container(id)?;
    if container.init.has_ended() {
        return Err(error(ErrorKind::State, format!("the process of container {id} has ended")));
    }
    container.cgroup.freeze(frozen).await.map_err(|error| super::create::failed(&error))?;
    Ok(Return::Done)
}
