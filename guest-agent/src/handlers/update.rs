//! Update: new limits for a container.

use oci_spec::runtime::LinuxResources;
use protocol::agent::{AgentError, Return};
use serde::Deserialize;

use super::create::{failed, invalid};
use crate::plan::PlanError;
use crate::state::Agent;

/// Applies them.
pub fn handle(agent: &Agent, id: &str, resources: serde_json::Value) -> Result<Return, AgentError> {
    let container = agent.container(id)?;
    let resources = LinuxResources::deserialize(&resources)
        .map_err(|error| invalid(&PlanError::Json(error)))?;
    container.cgroup.apply(&resources, false).map_err(|error| failed(&error))?;
    Ok(Return::Done)
}
