//! `start`: from Created to Stopped, in the process that has the sandbox.
//!
//! ```text
//! Supervisor::begin   locks; nothing runs
//!   .launch           sandbox up, container built, streams attached   -> Ready
//!   .start            the process runs; the verb lock is given back   -> Running
//!   .wait             its end, or the machine's
//!   .finish           last bytes, power-off, state written, --rm      -> Stopped
//! ```

use std::os::fd::OwnedFd;
use std::time::Duration;

use protocol::agent::{Call, Event, Exit};

use super::place::{SupervisorLock, VerbLock};
use super::state::Machine;
use super::{Container, ContainerError, Containers, State, chain};
use crate::agent::AgentError;
use crate::network::{Network, Policy};
use crate::networks::{self, Attached, Counts, Joining, Refused, Telling};
use crate::rootless::is_rootless;
use crate::sandbox::assets::Assets;
use crate::sandbox::ids::Both;
use crate::sandbox::{
    CgroupConfig, LaunchError, LaunchTimings, Privileges, Sandbox, SandboxConfig, boot_timeout,
};
use crate::streams::forward::{Caught, follow_size};
use crate::streams::terminal::RawTerminal;
use crate::streams::{HostStdio, Streams};
use crate::time::Timestamp;

/// How long an output may stay silent after its container's end.
const OUTPUT_GRACE: Duration = Duration::from_secs(5);
/// How long a guest may take to sync and power off.
const POWER_OFF: Duration = Duration::from_secs(10);
/// How long a broken connection may precede the news that the VMM ended.
const POST_MORTEM: Duration = Duration::from_secs(5);

/// What the container is attached to.
#[derive(Default)]
pub struct Attachment {
    /// Its stdio.
    pub stdio: HostStdio,
    /// The person's terminal, to be made raw.
    pub terminal: Option<OwnedFd>,
    /// Signals to pass on.
    pub signals: Option<Caught>,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Exit code as shells count.
    pub exit_code: u8,
    /// Whether the guest's OOM killer struck.
    pub oom: bool,
    /// Why, when not by itself.
    pub error: Option<String>,
    /// Outputs that were closed before their end.
    pub cut: Vec<&'static str>,
}

impl Outcome {
    /// What to tell of outputs that were cut.
    pub fn cut_note(&self) -> Option<String> {
        let (what, seconds) = (self.cut.join(" and "), OUTPUT_GRACE.as_secs());
        (!self.cut.is_empty()).then(|| {
            format!(
                "the output may be incomplete: {what} stayed open after the container's end, \
                 and was cut as nothing came from it for {seconds} s"
            )
        })
    }
}

/// The right to run a container.
struct Supervisor<'a> {
    container: &'a Container,
    verb: VerbLock,
    alive: SupervisorLock,
}

/// A process that runs.
struct Running<'a> {
    container: &'a Container,
    alive: SupervisorLock,
    network: Option<Attached>,
    telling: Option<Telling>,
    sandbox: Sandbox,
    streams: Streams,
    terminal: Option<RawTerminal>,
    signals: Option<Caught>,
}

/// Runs the container to its end. `started` is called once its process runs.
///
/// # Errors
/// When it cannot be started; the state then says so, and nothing is left
/// running. What happens later is an [`Outcome`].
pub async fn run(
    container: &Container,
    attachment: Attachment,
    started: impl FnOnce(),
) -> Result<Outcome, ContainerError> {
    let supervisor = Supervisor::begin(container)?;
    let mut running = supervisor.start(attachment).await?;
    started();
    let outcome = running.wait().await;
    running.finish(outcome).await
}

impl<'a> Supervisor<'a> {
    fn begin(container: &'a Container) -> Result<Supervisor<'a>, ContainerError> {
        let verb = container.lock()?;
        let state = container.written_state()?;
        if container.has_supervisor() || state.needs_supervisor() {
            return Err(container.refuse("start", &state));
        }
        let alive = container.become_supervisor()?;
        if state != State::Created {
            container.write_state(&verb, &State::Created)?;
        }
        Ok(Supervisor { container, verb, alive })
    }

    async fn start(self, attachment: Attachment) -> Result<Running<'a>, ContainerError> {
        let Supervisor { container, verb, alive } = self;
        // Signals wait for the plugins: what these have begun can then be undone.
        let (network, live) = match join_network(container) {
            Ok(network) => {
                let live = bring_up(container, &verb, attachment, network.as_ref()).await;
                (network, live)
            }
            Err(error) => (None, Err(error)),
        };
        match live {
            Ok((sandbox, streams, terminal, signals)) => {
                let telling = network.as_ref().and_then(|network| tell_counts(&sandbox, network));
                Ok(Running {
                    container,
                    alive,
                    network,
                    telling,
                    sandbox,
                    streams,
                    terminal,
                    signals,
                })
            }
            Err(error) => {
                leave_network(container, network, None);
                let state = container.written_state()?;
                let why = Some(chain(&error));
                container.write_state(&verb, &state.stopped(error.exit_code(), false, why))?;
                drop(alive);
                if container.config.auto_remove {
                    container.erase(verb)?;
                }
                Err(error)
            }
        }
    }
}

fn join_network(container: &Container) -> Result<Option<Attached>, ContainerError> {
    let config = &container.config;
    let Some(options) = &config.network else { return Ok(None) };
    let joining = Joining {
        dirs: container.dirs(),
        id: &config.id,
        name: &config.name,
        hostname: config.spec.spec["hostname"].as_str().unwrap_or_default(),
        auto_remove: config.auto_remove,
        options,
        reconcile: |dirs, id| {
            // One that is gone meanwhile, or that cannot be read, is another's concern.
            if let Ok(other) = Containers::new(dirs.clone()).find(id) {
                let _ = other.state();
            }
        },
    };
    Ok(Some(networks::attach(&joining)?))
}

/// The machine is gone, and its interface with it; `counted` is what it had refused.
fn leave_network(container: &Container, network: Option<Attached>, counted: Option<Refused>) {
    let Some(network) = network else { return };
    match network.leave() {
        Ok(()) => container.leave_network(Some(&network), counted),
        // Left to whoever looks next, from the host's namespace.
        Err(error) => tracing::warn!("{}", chain(&error)),
    }
}

/// What the VMM refuses, for those who inspect the container.
fn tell_counts(sandbox: &Sandbox, network: &Attached) -> Option<Telling> {
    let telling = Counts::of(sandbox.vmm().requests(), network).tell(sandbox.directory());
    // No reason to end a container that runs.
    telling.map_err(|error| tracing::warn!("{}", chain(&error))).ok()
}

type Live = (Sandbox, Streams, Option<RawTerminal>, Option<Caught>);

/// From nothing to a running process. What exists when it fails or is dropped
/// frees itself.
async fn bring_up(
    container: &Container,
    verb: &VerbLock,
    mut attachment: Attachment,
    network: Option<&Attached>,
) -> Result<Live, ContainerError> {
    let mut signals = attachment.signals.take();
    let interrupted = async {
        let Some(caught) = &mut signals else { return std::future::pending().await };
        loop {
            let signal = caught.next().await;
            if [libc::SIGINT, libc::SIGTERM, libc::SIGHUP].contains(&signal) {
                return signal;
            }
        }
    };
    let (sandbox, streams, terminal) = tokio::select! {
        live = build(container, verb, attachment, network) => live?,
        signal = interrupted => return Err(ContainerError::Interrupted(signal)),
    };
    Ok((sandbox, streams, terminal, signals))
}

async fn build(
    container: &Container,
    verb: &VerbLock,
    attachment: Attachment,
    network: Option<&Attached>,
) -> Result<(Sandbox, Streams, Option<RawTerminal>), ContainerError> {
    let config = &container.config;
    let assets = Assets::find().and_then(|assets| assets.open()).map_err(LaunchError::from)?;
    let network = match network {
        Some(attached) => {
            attached.enter()?;
            let limits = config.network.as_ref().and_then(|asked| asked.bandwidth.limits());
            let policy = Policy { guard: true, limits };
            Some(Network::open(config.shape.vcpus, policy).map_err(LaunchError::from)?)
        }
        None => None,
    };
    let sandbox = SandboxConfig {
        id: config.id.clone(),
        directory: container.sandbox_dir(),
        privileges: privileges(container),
        shape: config.shape,
        max_vcpus: config.shape.vcpus,
        ids: Both::default(),
        shares: config.shares(&container.rw_dir()),
        cmdline: Vec::new(),
        // No profile is ever named here.
        apparmor: false,
        boot_timeout: boot_timeout(),
    };
    let mut sandbox = Sandbox::launch(&sandbox, &assets, network).await?;
    let agent = sandbox.agent().clone();
    let create = config.create_call(attachment.stdio.announced());
    let started = async {
        agent.order(Call::Create(Box::new(create))).await?;
        let directory = sandbox.directory().to_owned();
        let process = container.process();
        Streams::attach(&directory, &process, attachment.stdio).await.map_err(AgentError::from)
    };
    let streams = match started.await {
        Ok(streams) => streams,
        Err(error) => return Err(or_lost(error, &sandbox).await),
    };
    let created_us = Some(sandbox.age_us());
    let mut machine = Machine {
        supervisor: std::process::id() as i32,
        vmm: sandbox.vmm().pid(),
        uid_base: sandbox.uid_base(),
        kernel: sandbox.greeting().hello.kernel.clone(),
        timings: LaunchTimings { created_us, ..sandbox.timings().clone() },
    };
    container.write_state(verb, &State::Ready { machine: machine.clone() })?;
    let not_a_terminal = |_| ContainerError::NotATerminal;
    let terminal =
        attachment.terminal.map(RawTerminal::enter).transpose().map_err(not_a_terminal)?;
    if let Some((rows, columns)) = terminal.as_ref().and_then(RawTerminal::size) {
        // Before the start, so that the process never sees another size.
        let process = container.process();
        let _ = agent.order(Call::Resize { process, rows, columns }).await;
    }
    if let Err(error) = agent.order(Call::Start { container: config.id.clone() }).await {
        return Err(or_lost(error, &sandbox).await);
    }
    machine.timings.started_us = Some(sandbox.age_us());
    let state = State::Running { machine, started: Timestamp::now() };
    container.write_state(verb, &state)?;
    Ok((sandbox, streams, terminal))
}

fn privileges(container: &Container) -> Privileges {
    let Container { config, .. } = container;
    if is_rootless() {
        return Privileges::User;
    }
    let cgroup = CgroupConfig::of(&config.id, &config.shape);
    Privileges::Root { uids: container.dirs().uids(), cgroup }
}

/// The machine's end, where that is why the agent does not answer.
async fn or_lost(error: AgentError, sandbox: &Sandbox) -> ContainerError {
    match sandbox.end_behind(&error).await {
        Some(end) => ContainerError::Lost(end),
        None => error.into(),
    }
}

impl Running<'_> {
    /// Waits for the process's end, passing on signals and sizes meanwhile.
    async fn wait(&mut self) -> Outcome {
        let agent = self.sandbox.agent().clone();
        let process = self.container.process();
        let mut oom_seen = false;
        let result = {
            let vmm_end = self.sandbox.vmm().ended();
            let resize = follow_size(&agent, &process, self.terminal.as_ref());
            let signals = async {
                match &mut self.signals {
                    Some(caught) => caught.forward(&agent, &process).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                exit = agent.wait(process.clone()) => exit.map_err(Some),
                _ = vmm_end => Err(None),
                () = resize => Err(None),
                () = signals => Err(None),
            }
        };
        while let Ok(event) = self.sandbox.greeting().events.try_recv() {
            oom_seen |= matches!(event, Event::Oom { .. });
        }
        match result {
            Ok(exit) => of_exit(exit, oom_seen),
            Err(error) => self.lost(error).await,
        }
    }

    async fn lost(&self, error: Option<AgentError>) -> Outcome {
        let end = tokio::time::timeout(POST_MORTEM, self.sandbox.vmm().ended()).await;
        let why = match (end, error) {
            (Ok(end), _) => chain(&ContainerError::Lost(end)),
            (Err(_), Some(error)) => chain(&error),
            (Err(_), None) => "the machine of the container was lost".into(),
        };
        Outcome { exit_code: 137, oom: false, error: Some(why), cut: Vec::new() }
    }

    /// Takes everything down and writes the end.
    async fn finish(self, mut outcome: Outcome) -> Result<Outcome, ContainerError> {
        let Running { container, alive, network, telling, sandbox, streams, terminal, signals } =
            self;
        outcome.cut = streams.finish(OUTPUT_GRACE).await;
        drop((terminal, signals, telling));
        let counted = match &network {
            Some(network) => Some(Counts::of(sandbox.vmm().requests(), network).refused().await),
            None => None,
        };
        sandbox.shutdown(POWER_OFF).await;
        leave_network(container, network, counted);
        let lock = container.lock()?;
        let state = container.written_state()?;
        let stopped = state.stopped(outcome.exit_code, outcome.oom, outcome.error.clone());
        container.write_state(&lock, &stopped)?;
        drop(alive);
        if container.config.auto_remove {
            container.erase(lock)?;
        }
        Ok(outcome)
    }
}

fn of_exit(exit: Exit, oom_seen: bool) -> Outcome {
    Outcome { exit_code: exit.status(), oom: exit.oom || oom_seen, error: None, cut: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_that_were_cut_are_named() {
        let mut outcome = Outcome { exit_code: 0, oom: false, error: None, cut: Vec::new() };
        assert_eq!(outcome.cut_note(), None);
        outcome.cut = vec!["stdout", "stderr"];
        let note = outcome.cut_note().unwrap();
        assert!(note.contains(": stdout and stderr stayed open") && note.ends_with("for 5 s"));
    }
}
