//! One handler per call.

mod create;
mod delete;
mod exec;
mod forget;
mod freeze;
mod grow;
mod phase;
pub mod power_off;
mod processes;
mod resize;
mod set_time;
mod signal;
mod start;
mod stats;
mod update;
mod wait;

use std::rc::Rc;

use protocol::agent::{AgentError, Call, Return};

use crate::state::Agent;

/// Carries out a call.
///
/// # Errors
/// As the host is to see it.
pub async fn call(agent: &Rc<Agent>, call: Call) -> Result<Return, AgentError> {
    match call {
        Call::Create(create) => create::handle(agent, *create).await,
        Call::Start { container } => start::handle(agent, &container).await,
        Call::Exec(exec) => exec::handle(agent, *exec).await,
        Call::Signal { process, signal, all } => signal::handle(agent, &process, signal, all),
        Call::Resize { process, rows, columns } => resize::handle(agent, &process, rows, columns),
        Call::Wait { process } => wait::handle(agent, &process).await,
        Call::Processes { container } => processes::handle(agent, &container),
        Call::Phase { container } => phase::handle(agent, &container),
        Call::Stats { container } => stats::handle(agent, &container),
        Call::Freeze { container, frozen } => freeze::handle(agent, &container, frozen).await,
        Call::Update { container, resources } => update::handle(agent, &container, resources),
        Call::Grow { memory, vcpus } => grow::handle(memory, vcpus).await,
        Call::Network(network) => agent.network.apply(network).map(|()| Return::Done),
        Call::Unplug { device } => crate::network::unplug(device).map(|()| Return::Done),
        Call::Delete { container } => delete::handle(agent, &container).await,
        Call::Forget { shares } => forget::handle(&shares),
        Call::SetTime { nanoseconds } => set_time::handle(nanoseconds),
        Call::PowerOff => power_off::now(),
    }
}
