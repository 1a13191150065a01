//! Resize: the size of a process's terminal.

use std::os::fd::AsFd;

use protocol::agent::{AgentError, ErrorKind, ProcessId, Return};

use crate::error::{SystemContext, error};
use crate::state::Agent;

/// Sets it; the kernel tells the foreground processes by SIGWINCH.
pub fn handle(
    agent: &Agent,
    id: &ProcessId,
    rows: u16,
    columns: u16,
) -> Result<Return, AgentError> {
    let (_, process) = agent.process(id)?;
    let Some(master) = process.streams.terminal() else {
        return Err(error(ErrorKind::State, "the process has no terminal"));
    };
    crate::sys::tty::resize(master.as_fd(), rows, columns)
        .system(|| "resizing the terminal".into())?;
    Ok(Return::Done)
}
