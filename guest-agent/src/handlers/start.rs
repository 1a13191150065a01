//! Start: lets the container's process execute.

use std::rc::Rc;

use protocol::agent::{AgentError, ErrorKind, Return};

use crate::error::{SystemContext, error};
use crate::roles::channel::FromRole;
use crate::state::{Agent, Phase};

/// Returns once execve succeeded, or with its error.
pub async fn handle(agent: &Rc<Agent>, id: &str) -> Result<Return, AgentError> {
    let container = agent.container(id)?;
    if container.init.has_ended() {
        return Err(error(ErrorKind::State, format!("the process of container {id} has ended")));
    }
    let Phase::Created(role) = container.phase.replace(Phase::Started) else {
        return Err(error(ErrorKind::State, format!("container {id} was started before")));
    };
    role.go().system(|| "starting the container's process".into())?;
    match role.receive().await.system(|| "talking to the container's process".into())? {
        // execve closed the socket. A process that was killed instead closed
        // it as well: that is for Wait to tell.
        None => Ok(Return::Done),
        Some((FromRole::Failed(error), _)) => Err(error),
        Some(_) => Err(error(ErrorKind::System, "the role spoke out of turn")),
    }
}
