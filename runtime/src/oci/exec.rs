//! `exec`: a further process in a running container.
//!
//! In the foreground the verb's own process attends it. Detached, a monitor does,
//! whose pid is the exec's on the host, as `create` has it.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use protocol::agent::{Call, Exec, Exit, ProcessId};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::create::{Helper, Inherited};
use super::handshake::{Channel, Word};
use super::monitor::{Fate, lead_session, leave_stdio, stdio};
use super::preserved::Preserved;
use super::store::{Container, Live, Root, Status};
use super::{OciError, apparmor, console};
use crate::agent::{Agent, AgentError};
use crate::container::chain;
use crate::files::FileError;
use crate::id;
use crate::sandbox::cgroup;
use crate::sandbox::ids::{Both, High};
use crate::streams::forward::{Caught, follow_size};
use crate::streams::terminal::RawTerminal;
use crate::streams::{HostStdio, Input, Output, Streams, descriptors};
use crate::sys::descriptors::{null, own_stdio};

/// How long an output may stay silent after the process's end: its children may
/// hold it open for ever.
const OUTPUT_GRACE: Duration = Duration::from_secs(2);
/// Largest order that is read, in bytes.
const MAX_ORDER: u64 = 16 << 20;

/// What `exec` is asked for.
#[derive(Debug, Default)]
pub struct ExecOptions {
    /// `process` of the runtime specification.
    pub process: Value,
    /// Who gets the terminal.
    pub console_socket: Option<PathBuf>,
    /// As for `create`.
    pub globals: Vec<String>,
    /// As for `create`.
    pub preserved: Preserved,
    /// A cgroup in the guest, below the container's.
    pub cgroup: Option<String>,
}

/// What an exec's monitor is told.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    process: Value,
    #[serde(default)]
    cgroup: Option<String>,
}

/// Runs a process that outlives us; its pid on the host.
///
/// # Errors
/// When the container does not run, or the process cannot be started.
pub fn detached(container: &Container, options: &ExecOptions) -> Result<i32, OciError> {
    running(container)?;
    known(container, &options.process)?;
    let socket = connect(options)?;
    let mut words = options.globals.clone();
    words.push("exec-monitor".into());
    let order = Order { process: options.process.clone(), cgroup: options.cgroup.clone() };
    let order = in_memory(&order).map_err(OciError::io("a file in memory"))?;
    let mut helper = Helper::spawn(words, container.id(), socket, Some(order), &options.preserved)?;
    helper.ready()?;
    let pid = helper.pid();
    helper.release();
    Ok(pid)
}

/// Runs a process and waits for its end.
///
/// # Errors
/// As [`detached`].
pub async fn foreground(container: &Container, options: ExecOptions) -> Result<Fate, OciError> {
    running(container)?;
    known(container, &options.process)?;
    let wants_terminal = options.process["terminal"] == true;
    let (stdio, terminal) = match (connect(&options)?, wants_terminal) {
        (Some(socket), _) => stdio(Some(socket))?,
        (None, true) => own_terminal()?,
        (None, false) => stdio(None)?,
    };
    let stdio = HostStdio { descriptors: descriptors::all(options.preserved.fds)?, ..stdio };
    let order = Order { process: options.process, cgroup: options.cgroup };
    let begun = Attended::begin(container, name()?, order, stdio, terminal).await?;
    begun.attend().await
}

/// The monitor of a detached exec.
///
/// # Errors
/// When it cannot even begin.
pub fn monitor(root: &Root, id: &str, inherited: Inherited) -> Result<Fate, OciError> {
    let Inherited { channel: socket, console, order: Some(order), descriptors: fds } = inherited
    else {
        return Err(OciError::Monitor("`exec-monitor` is started by `exec`, not by people".into()));
    };
    let mut channel = Channel::new(socket);
    let begin = || -> Result<_, OciError> {
        // Before it is in the container's cgroup, as the monitor.
        lead_session();
        null().map_err(OciError::io("/dev/null"))?;
        let name = name()?;
        let order = read_order(order.into())?;
        let container = root.find(id)?;
        let stdio = stdio(console)?;
        cgroup::join(&container.record.plan.cgroup)?;
        let _ = std::env::set_current_dir("/");
        Ok((container, order, stdio, name))
    };
    let (container, order, (stdio, terminal), name) = match begin() {
        Ok(begun) => begun,
        Err(error) => {
            channel.say(&Word::Failed(chain(&error)));
            return Ok(Fate::Failed);
        }
    };
    let runtime = super::event_loop()?;
    let fate = runtime.block_on(async {
        let begun = async {
            let stdio = HostStdio { descriptors: descriptors::all(fds)?, ..stdio };
            Attended::begin(&container, name, order, stdio, terminal).await
        };
        match begun.await {
            Ok(attended) => {
                leave_stdio()?;
                channel.say(&Word::Ready(Box::default()));
                drop(channel);
                attended.attend().await
            }
            Err(error) => {
                channel.say(&Word::Failed(chain(&error)));
                Ok(Fate::Failed)
            }
        }
    });
    runtime.shutdown_background();
    fate
}

fn running(container: &Container) -> Result<(), OciError> {
    match super::settle::status(container, None)?.0 {
        // As runc: the namespaces are there before the process is.
        Status::Live(Live::Running | Live::Created) => Ok(()),
        status => Err(super::verbs::refuse(container, "exec in", status)),
    }
}

/// Refuses ids that the machine does not have: its files would be nobody's.
fn known(container: &Container, process: &Value) -> Result<(), OciError> {
    let plan = &container.record.plan;
    if plan.mappings.is_some() {
        // The container's own user namespace refuses what it does not map.
        return Ok(());
    }
    let user = &process["user"];
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let more = user["additionalGids"].as_array().into_iter().flatten();
    let gids = more.filter_map(id).chain(id(&user["gid"]));
    let high = |ids: &mut dyn Iterator<Item = u32>| High::of(ids.map(|id| (id, 1)));
    let ids = Both { uids: high(&mut id(&user["uid"]).into_iter()), gids: high(&mut { gids }) };
    let machine = container.machine_ids()?;
    let has = |all: &High, some: Result<High, _>| some.is_ok_and(|some: High| all.contains(&some));
    if has(&machine.uids, ids.uids) && has(&machine.gids, ids.gids) {
        return Ok(());
    }
    let reason = "an id above 65535 that the machine was not started with: config.json names it, \
                  as a process's or in mappings, of the container that began the machine";
    Err(super::bundle::field("process.user", reason).into())
}

fn connect(options: &ExecOptions) -> Result<Option<UnixStream>, OciError> {
    match &options.console_socket {
        Some(path) => Ok(Some(console::connect(path)?)),
        None => Ok(None),
    }
}

/// This process's own terminal, made raw.
pub(super) fn own_terminal() -> Result<(HostStdio, Option<RawTerminal>), OciError> {
    let failed = || OciError::io("the terminal");
    let own = |number| own_stdio(number).map_err(failed());
    let host = HostStdio {
        terminal: true,
        stdin: Input::Fd(own(0)?),
        stdout: Output { fd: Some(own(1)?), log: None },
        stderr: Output::default(),
        descriptors: Vec::new(),
    };
    let raw = RawTerminal::enter(own(0)?).map_err(|errno| failed()(errno.into()))?;
    Ok((host, Some(raw)))
}

fn in_memory(order: &Order) -> std::io::Result<OwnedFd> {
    let fd = nix::sys::memfd::memfd_create(c"order", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?;
    let mut file = File::from(fd);
    file.write_all(&serde_json::to_vec(order)?)?;
    file.rewind()?;
    Ok(file.into())
}

fn read_order(file: File) -> Result<Order, OciError> {
    let mut bytes = Vec::new();
    let path = PathBuf::from("a file in memory");
    file.take(MAX_ORDER).read_to_end(&mut bytes).map_err(OciError::io(&path))?;
    Ok(serde_json::from_slice(&bytes).map_err(|source| FileError::Damaged { path, source })?)
}

/// A name for an exec, which no other has.
fn name() -> Result<String, OciError> {
    Ok(id::hex(&id::random::<8>().map_err(OciError::io("/dev/urandom"))?))
}

struct Attended {
    agent: Agent,
    process: ProcessId,
    streams: Streams,
    terminal: Option<RawTerminal>,
    signals: Caught,
}

impl Attended {
    async fn begin(
        container: &Container,
        name: String,
        Order { process: spec, cgroup }: Order,
        stdio: HostStdio,
        terminal: Option<RawTerminal>,
    ) -> Result<Attended, OciError> {
        let signals = Caught::begin().map_err(OciError::io("signals"))?;
        let agent = Agent::connect(&container.machine_dir()).await?;
        let process = ProcessId { container: container.id().to_owned(), exec: Some(name) };
        let exec = Exec {
            process: process.clone(),
            apparmor: apparmor::policies(spec["apparmorProfile"].as_str())?,
            spec,
            stdio: stdio.announced(),
            descriptors: stdio.announced_descriptors(),
            cgroup,
        };
        agent.order(Call::Exec(Box::new(exec))).await?;
        let streams = Streams::attach(&container.machine_dir(), &process, stdio)
            .await
            .map_err(AgentError::from)?;
        Ok(Attended { agent, process, streams, terminal, signals })
    }

    async fn attend(mut self) -> Result<Fate, OciError> {
        let exit: Result<Exit, AgentError> = {
            let resize = follow_size(&self.agent, &self.process, self.terminal.as_ref());
            let signals = self.signals.forward(&self.agent, &self.process);
            tokio::select! {
                exit = self.agent.wait(self.process.clone()) => exit,
                () = resize => Err(AgentError::Closed("the terminal was lost".into())),
                () = signals => Err(AgentError::Closed("signals were lost".into())),
            }
        };
        // One that is cut is nothing to tell: its children live on and hold it.
        let _ = self.streams.finish(OUTPUT_GRACE).await;
        drop(self.terminal);
        match exit {
            Ok(exit) => Ok(Fate::Like(exit)),
            // The container ended, and with it the process.
            Err(AgentError::Closed(_)) => Ok(Fate::Lost),
            Err(error) => Err(error.into()),
        }
    }
}
