//! The process that stands for a container on the host: the supervisor of its
//! machine, the end of its stdio, and the one that engines wait for.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use protocol::agent::{Call, Event, Exit, ProcessId, Return};
use protocol::apparmor::Policy;

use super::create::Inherited;
use super::handshake::{Built, Channel, Word};
use super::store::{Container, Ended, MonitorLock, Root};
use super::{OciError, apparmor, console, network, view};
use crate::agent::{Agent, AgentError};
use crate::container::chain;
use crate::network::Network;
use crate::sandbox::assets::{Assets, OpenAssets};
use crate::sandbox::membership::Membership;
use crate::sandbox::{
    CgroupConfig, LaunchError, LaunchTimings, Privileges, Sandbox, SandboxConfig, boot_timeout,
    cgroup,
};
use crate::streams::forward::{Caught, follow_size};
use crate::streams::terminal::RawTerminal;
use crate::streams::{HostStdio, Input, Output, Streams, descriptors};
use crate::sys::descriptors::{leave_stdio as leave, null, own_stdio};
use crate::time::Timestamp;

/// How long an output may stay silent after its container's end.
const OUTPUT_GRACE: Duration = Duration::from_secs(5);
/// How long a guest may take to sync and power off.
const POWER_OFF: Duration = Duration::from_secs(10);

/// How this process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// As the container's process did.
    Like(Exit),
    /// The machine was lost.
    Lost,
    /// There never was a process; the verb knows why.
    Failed,
}

/// The monitor of container `id`.
///
/// # Errors
/// When it cannot even begin.
pub fn run(root: &Root, id: &str, uids: &Path, inherited: Inherited) -> Result<Fate, OciError> {
    let Inherited { channel: socket, console, descriptors, .. } = inherited;
    let mut channel = Channel::new(socket);
    let container = root.find(id)?;
    let alive = container.become_monitor()?;
    let opened = match open(&container, console) {
        Ok(opened) => opened,
        Err(error) => {
            channel.say(&Word::Failed(chain(&error)));
            return Ok(Fate::Failed);
        }
    };
    channel.say(&Word::Opened);
    if !channel.await_go() {
        return Ok(Fate::Failed);
    }
    if let Err(error) = prepare(&container) {
        channel.say(&Word::Failed(chain(&error)));
        return Ok(Fate::Failed);
    }
    channel.say(&Word::Namespaces);
    if !channel.await_go() {
        return Ok(Fate::Failed);
    }
    // This thread is the one by which others know the process: it shows them the
    // container's files, and another one does the work.
    let (asks, asked) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let show = Show(asks);
        let begin = Begin { opened, descriptors, uids, show };
        let worker = scope.spawn(|| work(&container, alive, channel, begin));
        if let Ok(Asked(answer)) = asked.recv() {
            let _ = answer.send(view::enter(&container.record.plan));
        }
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Asks the process's first thread to show the container's files.
struct Show(std::sync::mpsc::Sender<Asked>);

struct Asked(std::sync::mpsc::Sender<Result<(), OciError>>);

impl Show {
    fn ask(self) -> Result<(), OciError> {
        let gone = || OciError::Monitor("the first thread of a monitor is gone".into());
        let (answer, answered) = std::sync::mpsc::channel();
        self.0.send(Asked(answer)).map_err(|_| gone())?;
        answered.recv().map_err(|_| gone())?
    }
}

fn work(
    container: &Container,
    alive: MonitorLock,
    mut channel: Channel,
    begin: Begin,
) -> Result<Fate, OciError> {
    let runtime = super::event_loop()?;
    let fate = runtime.block_on(async {
        let begun = Monitor::begin(container, alive, begin).await;
        match begun {
            Ok((monitor, built)) => {
                leave_stdio()?;
                channel.say(&Word::Ready(Box::new(built)));
                // Killed before it wrote us down, the verb leaves nobody who knows of
                // the machine: it ends with us.
                if !channel.await_go() {
                    return Ok(Fate::Failed);
                }
                drop(channel);
                monitor.attend().await
            }
            Err(error) => {
                channel.say(&Word::Failed(chain(&error)));
                Ok(Fate::Failed)
            }
        }
    });
    // A pump that waits for the host's reader cannot be joined; we end anyway.
    runtime.shutdown_background();
    fate
}

/// The container's streams have copies of the standard ones, and close them at their
/// end, which others wait for: this process must not hold them open.
pub(super) fn leave_stdio() -> Result<(), OciError> {
    leave().map_err(OciError::io("/dev/null"))
}

/// What a monitor opens before all else.
struct Opened {
    stdio: (HostStdio, Option<RawTerminal>),
    /// What a machine is made of; none in one that it joins.
    assets: Option<OpenAssets>,
    /// The network namespace that this process is in, for a machine of its own.
    network: Option<Network>,
    apparmor: Vec<Policy>,
}

/// Opens all devices, before this process is in the container's cgroup: podman's of a
/// pod forbids them. Those of taps belong to the network namespace in which they are opened.
fn open(container: &Container, console: Option<UnixStream>) -> Result<Opened, OciError> {
    lead_session();
    null().map_err(OciError::io("/dev/null"))?;
    let assets = match container.record.plan.machine {
        Some(_) => None,
        None => {
            let assets = Assets::find().and_then(|assets| assets.open());
            Some(assets.map_err(LaunchError::from)?)
        }
    };
    let plan = &container.record.plan;
    let network = network::enter(container)?;
    let apparmor = apparmor::policies(plan.apparmor_profile())?;
    Ok(Opened { stdio: stdio(console)?, assets, network, apparmor })
}

/// A terminal is a session's.
pub(super) fn lead_session() {
    // EPERM: it leads one already.
    let _ = nix::unistd::setsid();
    let _ = nix::sys::prctl::set_name(c"bulkhead");
}

/// Makes this process the container's.
fn prepare(container: &Container) -> Result<(), OciError> {
    let plan = &container.record.plan;
    cgroup::join(&plan.cgroup)?;
    if let Some(score) = plan.spec["process"]["oomScoreAdj"].as_i64() {
        // The VMM, which has all of the container's memory, inherits it.
        let file = Path::new("/proc/self/oom_score_adj");
        std::fs::write(file, score.to_string()).map_err(OciError::io(file))?;
    }
    // No directory shall be busy because of us.
    let _ = std::env::set_current_dir("/");
    Ok(())
}

/// What a monitor begins with, beside the container.
struct Begin<'a> {
    opened: Opened,
    descriptors: Vec<OwnedFd>,
    uids: &'a Path,
    show: Show,
}

/// Where the container is.
enum Machine {
    /// In a machine that it began, and that ends with it.
    Own(Box<Sandbox>),
    /// In one that another container began.
    Joined { agent: Agent, membership: Membership },
}

impl Machine {
    async fn begin(
        container: &Container,
        uids: &Path,
        assets: Option<OpenAssets>,
        network: Option<Network>,
    ) -> Result<Machine, OciError> {
        let plan = &container.record.plan;
        let Some(assets) = assets else {
            let directory = container.machine_dir();
            let id = container.id();
            let membership = Membership::begin(&directory, id, &plan.ids, &plan.shares)?;
            return Ok(Machine::Joined { agent: Agent::connect(&directory).await?, membership });
        };
        let config = SandboxConfig {
            id: container.id().to_owned(),
            directory: container.machine_dir(),
            privileges: Privileges::Root {
                uids: uids.to_owned(),
                cgroup: CgroupConfig { path: container.machine_cgroup(), limits: Vec::new() },
            },
            shape: plan.shape,
            max_vcpus: plan.max_vcpus,
            ids: plan.ids.clone(),
            shares: plan.shares.clone(),
            cmdline: Vec::new(),
            apparmor: apparmor::enabled(),
            boot_timeout: boot_timeout(),
        };
        let mut sandbox = Sandbox::launch(&config, &assets, network).await?;
        sandbox.welcome().map_err(OciError::io(sandbox.directory()))?;
        Ok(Machine::Own(Box::new(sandbox)))
    }

    fn agent(&self) -> &Agent {
        match self {
            Machine::Own(sandbox) => sandbox.agent(),
            Machine::Joined { agent, .. } => agent,
        }
    }

    fn prefix(&self) -> Option<&str> {
        match self {
            Machine::Own(_) => None,
            Machine::Joined { membership, .. } => Some(membership.prefix()),
        }
    }

    /// How long it took until now.
    fn timings(&self) -> LaunchTimings {
        match self {
            Machine::Own(sandbox) => {
                let created_us = Some(sandbox.age_us());
                LaunchTimings { created_us, ..sandbox.timings().clone() }
            }
            Machine::Joined { .. } => LaunchTimings::default(),
        }
    }

    /// Returns when it has ended, if that is to be known otherwise than by the agent.
    async fn ended(&self) {
        match self {
            Machine::Own(sandbox) => drop(sandbox.vmm().ended().await),
            Machine::Joined { .. } => std::future::pending().await,
        }
    }

    /// Whether the OOM killer struck since it was asked for.
    fn oom(&mut self) -> bool {
        let Machine::Own(sandbox) = self else { return false };
        let mut oom = false;
        while let Ok(event) = sandbox.greeting().events.try_recv() {
            oom |= matches!(event, Event::Oom { .. });
        }
        oom
    }

    /// The machine's end, where that is why the agent does not answer.
    async fn or_lost(&self, error: AgentError, container: &Container) -> OciError {
        match (self, &error, &container.record.plan.machine) {
            (Machine::Own(sandbox), ..) => match sandbox.end_behind(&error).await {
                Some(end) => OciError::Lost(end),
                None => error.into(),
            },
            (_, AgentError::Closed(_), Some(other)) => OciError::Gone(other.clone()),
            _ => error.into(),
        }
    }

    /// Ends it, or what the container has in it.
    async fn leave(self) {
        match self {
            Machine::Own(sandbox) => sandbox.shutdown(POWER_OFF).await,
            Machine::Joined { membership, .. } => {
                // An error means that the machine has gone, and all with it.
                let _ = membership.leave();
            }
        }
    }
}

struct Monitor<'a> {
    container: &'a Container,
    alive: MonitorLock,
    machine: Machine,
    streams: Streams,
    terminal: Option<RawTerminal>,
    signals: Caught,
}

impl<'a> Monitor<'a> {
    /// Launches the machine and builds the container in it.
    async fn begin(
        container: &'a Container,
        alive: MonitorLock,
        begin: Begin<'_>,
    ) -> Result<(Monitor<'a>, Built), OciError> {
        let Begin { opened, descriptors, uids, show } = begin;
        let Opened { stdio: (stdio, terminal), assets, network, apparmor } = opened;
        let plan = &container.record.plan;
        let signals = Caught::begin().map_err(OciError::io("signals"))?;
        // Before the machine is begun, which takes longer.
        let descriptors = descriptors::all(descriptors)?;
        let mut machine = Machine::begin(container, uids, assets, network).await?;
        let stdio = HostStdio { descriptors, ..stdio };
        let create = plan.create_call(container.id(), machine.prefix(), &stdio, apparmor);
        let built = async {
            let Return::Pid(pid) = machine.agent().call(Call::Create(Box::new(create))).await?
            else {
                return Err(AgentError::Nonsense("create"));
            };
            let (directory, process) = (container.machine_dir(), process(container));
            Ok((pid, Streams::attach(&directory, &process, stdio).await?))
        };
        let (guest_pid, streams) = match built.await {
            Ok(built) => built,
            Err(error) => return Err(machine.or_lost(error, container).await),
        };
        // Now that all mount points are there.
        show.ask()?;
        let built = Built { timings: machine.timings(), guest_pid };
        machine.oom();
        Ok((Monitor { container, alive, machine, streams, terminal, signals }, built))
    }

    /// Waits for the end of the process, and takes everything down.
    async fn attend(mut self) -> Result<Fate, OciError> {
        let (result, oom) = self.wait().await;
        let (exit, error) = match result {
            Ok(exit) => (Some(Exit { oom: exit.oom || oom, ..exit }), None),
            Err(error) => (None, Some(chain(&error))),
        };
        let ended = Ended { exit, error: error.clone(), at: Timestamp::now() };
        // From here on it is stopped, for whoever asks.
        let written = self.container.write_end(&self.alive, &ended);
        if let Some(error) = error {
            tracing::error!("{error}");
        }
        if let Machine::Joined { agent, .. } = &self.machine {
            // Its other processes would go on, and keep its output open.
            let process = process(self.container);
            let kill = Call::Signal { process, signal: libc::SIGKILL, all: true };
            let _ = agent.clone().with_timeout(POWER_OFF).order(kill).await;
        }
        let cut = self.streams.finish(OUTPUT_GRACE).await;
        if !cut.is_empty() {
            tracing::warn!("the output may be incomplete: {} was cut", cut.join(" and "));
        }
        drop((self.terminal, self.signals));
        self.machine.leave().await;
        if exit.is_some_and(|exit| exit.oom)
            && let Err(error) = super::oom::tell(&self.container.record.plan.cgroup)
        {
            tracing::warn!("the guest's OOM kill could not be told: {}", chain(&error));
        }
        written?;
        Ok(exit.map_or(Fate::Lost, Fate::Like))
    }

    async fn wait(&mut self) -> (Result<Exit, OciError>, bool) {
        let agent = self.machine.agent().clone();
        let process = process(self.container);
        let result = {
            let machine_end = self.machine.ended();
            let resize = follow_size(&agent, &process, self.terminal.as_ref());
            let signals = self.signals.forward(&agent, &process);
            tokio::select! {
                exit = agent.wait(process.clone()) => exit,
                () = machine_end => Err(AgentError::Closed("the machine ended".into())),
                () = resize => Err(AgentError::Closed("the terminal was lost".into())),
                () = signals => Err(AgentError::Closed("signals were lost".into())),
            }
        };
        let oom = self.machine.oom();
        match result {
            Ok(exit) => (Ok(exit), oom),
            Err(error) => (Err(self.machine.or_lost(error, self.container).await), oom),
        }
    }
}

/// The container's own process.
pub(super) fn process(container: &Container) -> ProcessId {
    ProcessId { container: container.id().to_owned(), exec: None }
}

/// What this process was given as its stdio, for the container.
pub(super) fn stdio(
    console: Option<UnixStream>,
) -> Result<(HostStdio, Option<RawTerminal>), OciError> {
    let failed = || OciError::io("standard streams");
    let Some(socket) = console else {
        let own = own_stdio;
        let output = |number| own(number).map(|fd| Output { fd: Some(fd), log: None });
        let host = HostStdio {
            terminal: false,
            stdin: own(0).map_or(Input::None, Input::Fd),
            stdout: output(1).unwrap_or_default(),
            stderr: output(2).unwrap_or_default(),
            descriptors: Vec::new(),
        };
        return Ok((host, None));
    };
    let terminal = console::open(socket)?;
    // Without it, sizes would have to be asked for again and again.
    console::control(&terminal).map_err(|errno| failed()(errno.into()))?;
    let copy =
        || -> Result<OwnedFd, OciError> { terminal.as_fd().try_clone_to_owned().map_err(failed()) };
    let host = HostStdio {
        terminal: true,
        stdin: Input::Fd(copy()?),
        stdout: Output { fd: Some(copy()?), log: None },
        stderr: Output::default(),
        descriptors: Vec::new(),
    };
    let raw = RawTerminal::enter(terminal).map_err(|errno| failed()(errno.into()))?;
    Ok((host, Some(raw)))
}

/// Ends this process as the container's process ended.
pub fn meet(fate: Fate) -> i32 {
    match fate {
        Fate::Like(Exit { code: Some(code), .. }) => code.into(),
        // The guest's word: a signal that only stops would leave this process for ever.
        Fate::Like(Exit { signal: Some(signal), .. }) => match signal {
            libc::SIGSTOP | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU => 128 + signal,
            1..=64 => die_by(signal),
            _ => die_by(libc::SIGKILL),
        },
        Fate::Like(_) | Fate::Lost => die_by(libc::SIGKILL),
        Fate::Failed => 1,
    }
}

/// Dies by `signal`, without a core: it is not this program that went wrong.
fn die_by(signal: i32) -> i32 {
    use nix::sys::resource::{Resource, setrlimit};
    use nix::sys::signal::{SigSet, SigmaskHow, Signal, raise, sigprocmask};
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    // The limit does not hold for a core that is piped to a program.
    let _ = nix::sys::prctl::set_dumpable(false);
    if let Ok(signal) = Signal::try_from(signal) {
        if !matches!(signal, Signal::SIGKILL | Signal::SIGSTOP) {
            let _ = crate::sys::process::default_action(signal);
        }
        let mut set = SigSet::empty();
        set.add(signal);
        let _ = sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&set), None);
        let _ = raise(signal);
    }
    // A real-time signal, or one that is ignored by default.
    128 + signal
}
