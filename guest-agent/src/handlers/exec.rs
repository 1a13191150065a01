//! Exec: runs a further process in a container.

use std::os::fd::AsFd;
use std::rc::Rc;

use oci_spec::runtime::Process as ProcessSpec;
use protocol::agent::{AgentError, ErrorKind, Exec, Return, Stream};
use serde::Deserialize;

use super::create::invalid;
use crate::descriptors;
use crate::error::{SystemContext, error};
use crate::plan::{PlanError, ProcessPlan};
use crate::roles::channel::FromRole;
use crate::roles::{self, exec::ExecPlan};
use crate::spawn::{Spawned, Start, pid_of, spawn};
use crate::state::{Agent, Container, Process};
use crate::stdio::{Streams, Way};

/// Returns once execve succeeded, or with its error.
pub async fn handle(agent: &Rc<Agent>, exec: Exec) -> Result<Return, AgentError> {
    let container = agent.container(&exec.process.container)?;
    let Some(id) = &exec.process.exec else {
        return Err(error(ErrorKind::Invalid, "the exec has no id"));
    };
    // One that waits for its start has all its namespaces, which is enough.
    if container.init.has_ended() {
        let message = format!("container {} is not running", container.id);
        return Err(error(ErrorKind::State, message));
    }
    if container.cgroup.is_frozen() {
        return Err(error(ErrorKind::State, format!("container {} is paused", container.id)));
    }
    container.reserve_exec(id)?;
    let reservation = Reservation { container: &container, id };
    agent.apparmor.load(&exec.apparmor)?;
    let process = run(&container, &exec).await?;
    std::mem::forget(reservation);
    let pid = process.pid;
    container.settle_exec(id, Some(process));
    Ok(Return::Pid(pid))
}

struct Reservation<'a> {
    container: &'a Container,
    id: &'a str,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.container.settle_exec(self.id, None);
    }
}

async fn run(container: &Container, exec: &Exec) -> Result<Rc<Process>, AgentError> {
    let spec = ProcessSpec::deserialize(&exec.spec).map_err(|e| invalid(&PlanError::Json(e)))?;
    let (seccomp, personality) = (container.seccomp.as_ref(), &container.personality);
    let process = ProcessPlan::new(&spec, seccomp, personality, &exec.apparmor)
        .map_err(|error| invalid(&error))?;
    if process.terminal.is_some() != exec.stdio.terminal {
        let message = "process.terminal: disagrees with the announced streams";
        return Err(error(ErrorKind::Invalid, message));
    }
    let (streams, stdio) = Streams::open(exec.stdio).system(|| "opening the streams".into())?;
    let descriptors = descriptors::open(&streams, &exec.descriptors)?;
    let init = container.init.pidfd().try_clone_to_owned();
    let init = init.system(|| "duplicating a descriptor".into())?;
    let cgroup = container.cgroup.place(exec.cgroup.as_deref(), container.init.pid);
    let cgroup = cgroup.map_err(|error| super::create::failed(&error))?;
    let mut extra = vec![init.as_fd(), cgroup.as_fd()];
    extra.extend(descriptors.iter().map(AsFd::as_fd));
    let start = Start {
        role: roles::EXEC,
        stdio,
        extra: &extra,
        // Outside of the container: what ends all that runs in there must not
        // end the helper between its clone and its word of it.
        cgroup: None,
        namespaces: None,
    };
    let plan = ExecPlan {
        process,
        namespaces: container.namespaces.all(),
        descriptors: descriptors.len(),
    };
    let spawned = spawn(start, &plan)?;
    drop(descriptors);
    follow(spawned, streams).await
}

/// Follows the role until the process executes.
async fn follow(spawned: Spawned, streams: Streams) -> Result<Rc<Process>, AgentError> {
    let Spawned { pid, pidfd, role } = spawned;
    // The helper is the agent's child as well, and is reaped by its watcher.
    let helper = Process::watch(pid, pidfd, Streams::default())
        .system(|| "watching the exec helper".into())?;
    let mut streams = Some(streams);
    let mut process: Option<Rc<Process>> = None;
    let (mut terminal, mut failed) = (None, None);
    loop {
        match role.receive().await.system(|| "talking to the process".into())? {
            Some((FromRole::Process, Some(fd))) => {
                let pid = pid_of(&fd)?;
                let streams = streams.take().unwrap_or_default();
                let watched = Process::watch(pid, fd, streams);
                process = Some(watched.system(|| "watching the process".into())?);
            }
            // Helper and process speak independently: this may come first.
            Some((FromRole::Terminal, Some(master))) => terminal = Some(master),
            // Of the process as well, whose pidfd may be yet to come: a process
            // that nobody reaps keeps its pid namespace from ending.
            Some((FromRole::Failed(error), _)) => failed = Some(error),
            Some(_) => return Err(error(ErrorKind::System, "the role spoke out of turn")),
            None => break,
        }
    }
    drop(helper);
    if let Some(error) = failed {
        return Err(error);
    }
    let process = process
        .ok_or_else(|| error(ErrorKind::System, "the exec helper ended without a process"))?;
    if let Some(master) = terminal {
        process
            .streams
            .insert(Stream::Terminal, Way::Terminal, master)
            .system(|| "keeping the terminal".into())?;
    }
    Ok(process)
}
