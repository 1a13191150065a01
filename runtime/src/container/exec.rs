//! `exec`: a further process in a running container, from any process.

use std::os::fd::OwnedFd;
use std::time::Duration;

use protocol::agent::{Call, Exec, Exit, ProcessId};

use super::{Container, ContainerError};
use crate::agent::{Agent, AgentError};
use crate::id;
use crate::spec::{ProcessOptions, exec_process};
use crate::streams::forward::{Caught, follow_size};
use crate::streams::terminal::RawTerminal;
use crate::streams::{HostStdio, Streams};
use crate::user::{self, Layers};

/// How long an output may stay silent after the process's end: its children
/// may hold it open for ever.
const OUTPUT_GRACE: Duration = Duration::from_secs(2);

/// What to run and what it is attached to.
#[derive(Default)]
pub struct ExecOptions {
    /// The process.
    pub process: ProcessOptions,
    /// Another user than the container's.
    pub user: Option<String>,
    /// Do not wait for it.
    pub detach: bool,
    /// Its stdio.
    pub stdio: HostStdio,
    /// The person's terminal, to be made raw.
    pub terminal: Option<OwnedFd>,
    /// Signals to pass on.
    pub signals: Option<Caught>,
}

impl Container {
    /// Runs a process and waits for its end; 0 at once if detached.
    ///
    /// # Errors
    /// When the container does not run or the process cannot be started.
    pub async fn exec(&self, options: ExecOptions) -> Result<u8, ContainerError> {
        self.require_running("exec in")?;
        let agent = Agent::connect(&self.sandbox_dir()).await?;
        let spec = self.exec_spec(&options)?;
        let name = id::random::<8>().map_err(ContainerError::io("/dev/urandom"))?;
        let process = ProcessId { container: self.id().into(), exec: Some(id::hex(&name)) };
        let stdio = options.stdio.announced();
        let exec = Exec {
            process: process.clone(),
            spec,
            stdio,
            descriptors: Vec::new(),
            cgroup: None,
            apparmor: Vec::new(),
        };
        agent.order(Call::Exec(Box::new(exec))).await?;
        if options.detach {
            return Ok(0);
        }
        let streams = Streams::attach(&self.sandbox_dir(), &process, options.stdio)
            .await
            .map_err(AgentError::from)?;
        let terminal = options
            .terminal
            .map(RawTerminal::enter)
            .transpose()
            .map_err(|_| ContainerError::NotATerminal)?;
        let exit = attend(&agent, &process, terminal.as_ref(), options.signals).await?;
        // One that is cut is nothing to tell: its children live on and hold it.
        let _ = streams.finish(OUTPUT_GRACE).await;
        Ok(exit.status())
    }

    fn exec_spec(&self, options: &ExecOptions) -> Result<serde_json::Value, ContainerError> {
        let user = match &options.user {
            None => None,
            Some(user) => {
                let layers = Layers::bottom_first(&self.config.layers);
                // Users that were added since are in the writable layer.
                let layers = layers.with_top(self.rw_dir().join("upper"));
                Some(user::resolve(user, &layers)?)
            }
        };
        let base = &self.config.spec.spec["process"];
        Ok(exec_process(base, &options.process, user.as_ref())?)
    }
}

/// Waits for the process's end, passing on signals and sizes meanwhile.
async fn attend(
    agent: &Agent,
    process: &ProcessId,
    terminal: Option<&RawTerminal>,
    mut signals: Option<Caught>,
) -> Result<Exit, AgentError> {
    let forward = async {
        match &mut signals {
            Some(caught) => caught.forward(agent, process).await,
            None => std::future::pending().await,
        }
    };
    let closed = || AgentError::Closed("the connection was given up".into());
    tokio::select! {
        exit = agent.wait(process.clone()) => exit,
        () = follow_size(agent, process, terminal) => Err(closed()),
        () = forward => Err(closed()),
    }
}
