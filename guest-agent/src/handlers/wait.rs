//! Wait: answers once a process has ended.

use std::rc::Rc;

use protocol::agent::{AgentError, ProcessId, Return};

use crate::state::{Agent, Process};

/// Waits. A process of an exec ends with the host's process that stands for it: when
/// the connection of its waiter breaks, nobody else would ever end it.
pub async fn handle(agent: &Agent, id: &ProcessId) -> Result<Return, AgentError> {
    let (container, process) = agent.process(id)?;
    let mut attended = Attended(id.exec.is_some().then(|| process.clone()));
    let exit = process.wait(&container.cgroup).await;
    attended.0 = None;
    Ok(Return::Exit(exit))
}

/// Dropped while it still holds a process, it kills it.
struct Attended(Option<Rc<Process>>);

impl Drop for Attended {
    fn drop(&mut self) {
        if let Some(process) = &self.0 {
            // ESRCH: it ended this moment.
            let _ = crate::sys::process::signal(process.pidfd(), libc::SIGKILL);
        }
    }
}
