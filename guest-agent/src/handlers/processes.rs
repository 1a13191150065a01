//! Processes: what runs in a container.

use protocol::agent::{AgentError, Process, Return};

use crate::state::Agent;

/// Bytes of a command line that are told.
const MAX_COMMAND: usize = 4096;

/// Lists them.
pub fn handle(agent: &Agent, id: &str) -> Result<Return, AgentError> {
    let pids = agent.container(id)?.cgroup.pids();
    // Those that end meanwhile are left out.
    Ok(Return::Processes(pids.into_iter().filter_map(describe).collect()))
}

fn describe(pid: i32) -> Option<Process> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let value = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        line.split_whitespace().next()
    };
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words = command.split(|byte| *byte == 0).filter(|word| !word.is_empty());
    let words: Vec<_> = words.map(String::from_utf8_lossy).collect();
    let command = match words.is_empty() {
        true => format!("[{}]", value("Name:")?),
        false => words.join(" ").chars().take(MAX_COMMAND).collect(),
    };
    Some(Process {
        pid,
        ppid: value("PPid:")?.parse().ok()?,
        uid: value("Uid:")?.parse().ok()?,
        command,
    })
}
