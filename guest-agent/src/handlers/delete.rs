//! Delete: kills what is left of a container and forgets it. Its mounts live
//! in its own namespace and end with its last process.

use std::rc::Rc;

use protocol::agent::{AgentError, Return};

use crate::state::Agent;

/// Returns once its processes and its cgroup are gone.
pub async fn handle(agent: &Rc<Agent>, id: &str) -> Result<Return, AgentError> {
    let container = agent.container(id)?;
    container.cgroup.kill();
    container.init.wait(&container.cgroup).await;
    container.cgroup.remove().await.map_err(|error| super::create::failed(&error))?;
    agent.settle(id, None);
    Ok(Return::Done)
}
