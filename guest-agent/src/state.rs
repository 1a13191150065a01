//! What the agent knows: containers and their processes.
//!
//! ```text
//! Create -> Building -> Created -> Start -> Started -> (its process ends) -> Delete
//! ```

use std::cell::RefCell;
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use oci_spec::runtime::{LinuxPersonality, LinuxSeccomp};
use protocol::agent::{AgentError, ErrorKind, Event, Exit, ProcessId};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{broadcast, watch};

use crate::apparmor::Loaded;
use crate::cgroup::Cgroup;
use crate::error::error;
use crate::network::Told;
use crate::plan::Namespaces;
use crate::roles::channel::RoleHandle;
use crate::stdio::Streams;
use crate::sys::{poll, process};
use crate::volumes::{Volume, Volumes};

/// Containers of one machine. More than a pod ever has.
const MAX_CONTAINERS: usize = 1024;
/// Executed processes that a container remembers.
const MAX_EXECS: usize = 1024;

/// All of the agent's state. One thread owns it.
#[derive(Debug)]
pub struct Agent {
    containers: RefCell<HashMap<String, Slot>>,
    /// What containers have in memory.
    pub volumes: Volumes,
    /// AppArmor profiles of the guest's kernel.
    pub apparmor: Loaded,
    /// The network that the host told.
    pub network: Told,
    /// Unasked messages.
    pub events: broadcast::Sender<Event>,
}

#[derive(Debug)]
enum Slot {
    Building,
    Built(Rc<Container>),
}

/// How far a container has come.
#[derive(Debug)]
pub enum Phase {
    /// Waits for the go.
    Created(RoleHandle),
    /// Had it.
    Started,
}

/// A container.
#[derive(Debug)]
pub struct Container {
    /// Its id.
    pub id: String,
    /// Its cgroup.
    pub cgroup: Rc<Cgroup>,
    /// Its namespaces.
    pub namespaces: Namespaces,
    /// Its profile, which executed processes get as well.
    pub seccomp: Option<LinuxSeccomp>,
    /// The same.
    pub personality: Option<LinuxPersonality>,
    /// What it has in memory.
    pub volumes: Vec<Rc<Volume>>,
    /// Its process.
    pub init: Rc<Process>,
    /// How far it has come.
    pub phase: RefCell<Phase>,
    execs: RefCell<HashMap<String, Option<Rc<Process>>>>,
}

/// A process that the agent is the parent of.
#[derive(Debug)]
pub struct Process {
    /// Pid in the agent's namespace.
    pub pid: i32,
    /// Its stdio.
    pub streams: Streams,
    pidfd: Rc<AsyncFd<OwnedFd>>,
    ended: watch::Receiver<Option<Ended>>,
}

/// How a process ended, without what the cgroup knows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ended {
    code: Option<u8>,
    signal: Option<i32>,
}

impl Process {
    /// Watches a child of the agent.
    ///
    /// # Errors
    /// When the pidfd cannot be polled.
    pub fn watch(pid: i32, pidfd: OwnedFd, streams: Streams) -> std::io::Result<Rc<Self>> {
        let pidfd = Rc::new(poll::watch(pidfd, Interest::READABLE)?);
        let (sender, ended) = watch::channel(None);
        let waited = pidfd.clone();
        tokio::task::spawn_local(async move {
            let _ = sender.send(Some(reap(&waited).await));
        });
        Ok(Rc::new(Process { pid, streams, pidfd, ended }))
    }

    /// To signal by.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.get_ref().as_fd()
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        self.ended.borrow().is_some()
    }

    /// Waits for its end.
    pub async fn wait(&self, cgroup: &Cgroup) -> Exit {
        let mut ended = self.ended.clone();
        let ended = ended.wait_for(Option::is_some).await.ok().and_then(|ended| *ended);
        let Ended { code, signal } = ended.unwrap_or(Ended { code: None, signal: None });
        Exit { code, signal, oom: cgroup.oom_kills() > 0 }
    }
}

/// Waits for a child's end by its pidfd and collects its status. Nobody else
/// waits for it: PID 1's children are others.
pub(crate) async fn reap(pidfd: &AsyncFd<OwnedFd>) -> Ended {
    loop {
        let Ok(mut guard) = pidfd.readable().await else {
            return Ended { code: None, signal: None };
        };
        match process::collect(pidfd.get_ref().as_fd()) {
            Ok(Some((code, signal))) => return Ended { code, signal },
            Ok(None) => guard.clear_ready(),
            Err(_) => return Ended { code: None, signal: None },
        }
    }
}

impl Container {
    /// A container that waits for its start.
    pub fn new(
        id: String,
        cgroup: Rc<Cgroup>,
        namespaces: Namespaces,
        init: Rc<Process>,
        role: RoleHandle,
    ) -> Self {
        Container {
            id,
            cgroup,
            namespaces,
            seccomp: None,
            personality: None,
            volumes: Vec::new(),
            init,
            phase: RefCell::new(Phase::Created(role)),
            execs: RefCell::default(),
        }
    }

    /// Reserves an exec id.
    ///
    /// # Errors
    /// When it is taken, or there are too many.
    pub fn reserve_exec(&self, id: &str) -> Result<(), AgentError> {
        let mut execs = self.execs.borrow_mut();
        if execs.contains_key(id) {
            return Err(error(ErrorKind::Exists, format!("exec {id} exists")));
        }
        if execs.len() >= MAX_EXECS {
            // Those that ended and were seen by the host are forgotten.
            execs.retain(|_, process| {
                process.as_ref().is_none_or(|p| !p.has_ended() || p.streams.any_waiting())
            });
        }
        if execs.len() >= MAX_EXECS {
            return Err(error(ErrorKind::State, "the container has too many exec processes"));
        }
        execs.insert(id.to_owned(), None);
        Ok(())
    }

    /// Fills a reservation, or gives it back.
    pub fn settle_exec(&self, id: &str, process: Option<Rc<Process>>) {
        match process {
            Some(process) => self.execs.borrow_mut().insert(id.to_owned(), Some(process)),
            None => self.execs.borrow_mut().remove(id),
        };
    }
}

impl Agent {
    /// No containers yet.
    pub fn new() -> Rc<Self> {
        Rc::new(Agent {
            containers: RefCell::default(),
            volumes: Volumes::default(),
            apparmor: Loaded::default(),
            network: Told::default(),
            events: broadcast::Sender::new(64),
        })
    }

    /// Reserves the id of a container.
    ///
    /// # Errors
    /// When it is invalid or taken.
    pub fn reserve(&self, id: &str) -> Result<(), AgentError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "_+-.".contains(c);
        if id.is_empty() || id.len() > 200 || id.starts_with('.') || !id.chars().all(plain) {
            return Err(error(ErrorKind::Invalid, format!("container id {id:?} is invalid")));
        }
        let mut containers = self.containers.borrow_mut();
        if containers.contains_key(id) {
            return Err(error(ErrorKind::Exists, format!("container {id} exists")));
        }
        if containers.len() >= MAX_CONTAINERS {
            return Err(error(ErrorKind::State, "the machine has too many containers"));
        }
        containers.insert(id.to_owned(), Slot::Building);
        Ok(())
    }

    /// Fills a reservation, or gives it back.
    pub fn settle(&self, id: &str, container: Option<Rc<Container>>) {
        match container {
            Some(container) => {
                self.containers.borrow_mut().insert(id.to_owned(), Slot::Built(container))
            }
            None => self.containers.borrow_mut().remove(id),
        };
    }

    /// A container.
    ///
    /// # Errors
    /// When there is none of this id, or it is being built.
    pub fn container(&self, id: &str) -> Result<Rc<Container>, AgentError> {
        match self.containers.borrow().get(id) {
            Some(Slot::Built(container)) => Ok(container.clone()),
            Some(Slot::Building) => {
                Err(error(ErrorKind::State, format!("container {id} is being created")))
            }
            None => Err(error(ErrorKind::NotFound, format!("there is no container {id}"))),
        }
    }

    /// A process and its container.
    ///
    /// # Errors
    /// When there is none.
    pub fn process(&self, id: &ProcessId) -> Result<(Rc<Container>, Rc<Process>), AgentError> {
        let container = self.container(&id.container)?;
        let process = match &id.exec {
            None => Some(container.init.clone()),
            Some(exec) => container.execs.borrow().get(exec).cloned().flatten(),
        };
        let Some(process) = process else {
            let exec = id.exec.as_deref().unwrap_or_default();
            let message = format!("container {} has no exec {exec}", id.container);
            return Err(error(ErrorKind::NotFound, message));
        };
        Ok((container, process))
    }
}
