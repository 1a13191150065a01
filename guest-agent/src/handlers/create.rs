//! Create: builds a container up to the point where only execve is missing.

use std::os::fd::AsFd;
use std::path::Path;
use std::rc::Rc;

use nix::errno::Errno;
use protocol::agent::{AgentError, Create, ErrorKind, Event, Return, Stream};
use tokio::io::Interest;

use crate::cgroup::{Cgroup, CgroupError};
use crate::descriptors;
use crate::error::{SystemContext, chain, error};
use crate::kmsg;
use crate::plan::{Plan, PlanError};
use crate::roles::channel::{FromRole, RoleHandle};
use crate::roles::{self, identity};
use crate::spawn::{Start, spawn};
use crate::state::{Agent, Container, Process};
use crate::stdio::{Streams, Way};

/// Builds it; on failure nothing is left.
pub async fn handle(agent: &Rc<Agent>, create: Create) -> Result<Return, AgentError> {
    let id = create.container.clone();
    agent.reserve(&id)?;
    // Gives the id back on failure, and when the host hangs up meanwhile.
    let reservation = Reservation { agent, id: &id };
    let container = Rc::new(build(agent, &create).await?);
    let pid = container.init.pid;
    std::mem::forget(reservation);
    agent.settle(&id, Some(container.clone()));
    tokio::task::spawn_local(watch_memory(agent.clone(), container));
    Ok(Return::Pid(pid))
}

struct Reservation<'a> {
    agent: &'a Agent,
    id: &'a str,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.agent.settle(self.id, None);
    }
}

async fn build(agent: &Agent, create: &Create) -> Result<Container, AgentError> {
    let (plan, spec) = Plan::new(create).map_err(|error| invalid(&error))?;
    let linux = spec.linux().clone().unwrap_or_default();
    let resources = linux.resources().clone().unwrap_or_default();
    // Before the process is there, whose mounts are a copy of ours.
    let volumes = agent.volumes.take(&create.volumes)?;
    for (path, value) in &plan.network_sysctl {
        std::fs::write(Path::new("/proc/sys").join(path), value)
            .system(|| format!("setting linux.sysctl {path} to {value:?}"))?;
    }
    let cgroup = Cgroup::create(&create.container, &resources).map_err(|error| failed(&error))?;
    let cgroup = Rc::new(cgroup);
    let mut unfinished = Unfinished(Some(cgroup.clone()));
    let built = populate(create, &plan, &cgroup).await;
    unfinished.0 = None;
    let (init, role) = match built {
        Ok(built) => built,
        Err(error) => {
            // Before the answer: the id is then free again, and all is gone.
            let _ = cgroup.remove().await;
            return Err(error);
        }
    };
    let mut container =
        Container::new(create.container.clone(), cgroup, plan.namespaces, init, role);
    container.seccomp = linux.seccomp().clone();
    container.personality = linux.personality().clone();
    container.volumes = volumes;
    Ok(container)
}

/// Starts the role in the cgroup and follows it until only execve is missing.
async fn populate(
    create: &Create,
    plan: &Plan,
    cgroup: &Cgroup,
) -> Result<(Rc<Process>, RoleHandle), AgentError> {
    let (streams, stdio) = Streams::open(create.stdio).system(|| "opening the streams".into())?;
    let descriptors = descriptors::open(&streams, &create.descriptors)?;
    let extra: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    let namespaces = Some(&plan.namespaces);
    let start =
        Start { role: roles::INIT, stdio, extra: &extra, cgroup: Some(cgroup.fd()), namespaces };
    let spawned = spawn(start, plan)?;
    drop(descriptors);
    let init = Process::watch(spawned.pid, spawned.pidfd, streams)
        .system(|| "watching the container's process".into())?;
    until_ready(&spawned.role, &init, cgroup).await?;
    identity::limit(&plan.process, init.pid).map_err(|error| AgentError::from(&error))?;
    Ok((init, spawned.role))
}

/// A cgroup whose container is being built. Dropped when the host hangs up
/// meanwhile, it removes the cgroup in the background.
struct Unfinished(Option<Rc<Cgroup>>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(cgroup) = self.0.take() {
            cgroup.kill();
            tokio::task::spawn_local(async move {
                if let Err(error) = cgroup.remove().await {
                    kmsg::log(&chain(&error));
                }
            });
        }
    }
}

async fn until_ready(role: &RoleHandle, init: &Process, cgroup: &Cgroup) -> Result<(), AgentError> {
    loop {
        match role.receive().await.system(|| "talking to the container's process".into())? {
            Some((FromRole::Ready, _)) => return Ok(()),
            Some((FromRole::Terminal, Some(master))) => {
                init.streams
                    .insert(Stream::Terminal, Way::Terminal, master)
                    .system(|| "keeping the terminal".into())?;
            }
            Some((FromRole::Failed(error), _)) => return Err(error),
            Some(_) => return Err(error(ErrorKind::System, "the role spoke out of turn")),
            None => {
                let exit = init.wait(cgroup).await;
                let how = match (exit.oom, exit.signal) {
                    (true, _) => format!("was killed for want of memory ({})", kmsg::about_oom()),
                    (_, Some(signal)) => format!("was killed by signal {signal}"),
                    _ => format!("exited with status {}", exit.status()),
                };
                let message = format!("the container's process {how} while it was being built");
                return Err(error(ErrorKind::System, message));
            }
        }
    }
}

/// A specification that is not carried out.
pub fn invalid(source: &PlanError) -> AgentError {
    error(ErrorKind::Invalid, chain(source))
}

/// A cgroup that is not as asked.
pub fn failed(source: &CgroupError) -> AgentError {
    let kind = match source {
        CgroupError::Plan(_)
        | CgroupError::System { source: Errno::EINVAL | Errno::ERANGE, .. } => ErrorKind::Invalid,
        CgroupError::System { .. } => ErrorKind::System,
    };
    error(kind, chain(source))
}

/// Tells the host when the OOM killer strikes: the kernel marks the file.
async fn watch_memory(agent: Rc<Agent>, container: Rc<Container>) {
    let Some(file) = container.cgroup.memory_events() else { return };
    let Ok(file) = crate::sys::poll::watch(file, Interest::PRIORITY) else { return };
    let mut seen = 0;
    let mut text = [0; 1024];
    loop {
        // Reading by this descriptor re-arms its notification.
        let _ = nix::sys::uio::pread(file.get_ref(), &mut text, 0);
        let kills = container.cgroup.oom_kills();
        if kills > seen {
            seen = kills;
            let _ = agent.events.send(Event::Oom { container: container.id.clone() });
        }
        let changed = tokio::select! {
            changed = file.ready(Interest::PRIORITY) => changed,
            _ = container.init.wait(&container.cgroup) => {
                if container.cgroup.oom_kills() > seen {
                    let _ = agent.events.send(Event::Oom { container: container.id.clone() });
                }
                return;
            }
        };
        match changed {
            Ok(mut guard) => guard.clear_ready(),
            Err(_) => return,
        }
    }
}
