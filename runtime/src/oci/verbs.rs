//! The verbs that change or ask a container that is there.

use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use protocol::agent::{Call, ErrorKind, Process, Return};
use serde_json::Value;

use super::create::{start_of, state_json};
use super::monitor::process;
use super::plan::Update;
use super::store::{Container, Live, Lock, Phase, Root, Status};
use super::{OciError, hooks, network, settle};
use crate::agent::{Agent, AgentError};
use crate::dirs;
use crate::files::FileError;
use crate::limits::host_cpus;
use crate::sandbox::membership::Membership;
use crate::sandbox::{cgroup, uids};
use crate::sys::pidfd::PidFd;

/// How long a killed monitor may take to end: the kernel frees a guest's memory.
const DEATH: Duration = Duration::from_secs(20);
/// How long a guest may take to kill a container.
const OBEDIENCE: Duration = Duration::from_secs(10);
/// Longer than anybody waits.
const NO_LIMIT: Duration = Duration::from_secs(86_400 * 365);
/// How long a monitor may take to end by itself after its container's process.
const SHUTDOWN: Duration = Duration::from_secs(30);

/// A refusal of `verb`.
pub(super) fn refuse(container: &Container, verb: &'static str, status: Status) -> OciError {
    OciError::State { verb, id: container.id().into(), status: status.name() }
}

/// The phase of a container that is in one of these.
fn require(
    container: &Container,
    lock: Option<&Lock>,
    verb: &'static str,
    wanted: &[Live],
) -> Result<Phase, OciError> {
    match settle::status(container, lock)? {
        (Status::Live(live), Some(phase)) if wanted.contains(&live) => Ok(phase),
        (status, _) => Err(refuse(container, verb, status)),
    }
}

/// `start`.
///
/// # Errors
/// When it is not created, or its process cannot be executed.
pub fn start(container: &Container) -> Result<(), OciError> {
    let lock = container.lock()?;
    let phase = require(container, Some(&lock), "start", &[Live::Created])?;
    // Some engines set up the network between `create` and this.
    Membership::settle_network(&container.machine_dir())?;
    settle::begin(container, &lock, &phase)?;
    let id = container.id().to_owned();
    let answer = super::event_loop()?.block_on(async {
        let agent = Agent::connect(&container.machine_dir()).await?;
        // A hook in the guest has its own limit, or none.
        let agent = agent.with_timeout(NO_LIMIT);
        tokio::select! {
            answer = agent.order(Call::Start { container: id }) => answer,
            () = gone(container) => Err(AgentError::Closed("the monitor ended".into())),
        }
    });
    if let Err(error) = answer {
        // The mark stays: how far it came is asked of the guest, if that is there.
        return Err(error.into());
    }
    let pid = phase.pid;
    let status = Live::Running;
    container.write_phase(&lock, &Phase { status, started: true, ..phase })?;
    drop(lock);
    let of = container.record.hooks.as_ref();
    let state = state_json(container, "running", pid);
    hooks::run_all("poststart", of.and_then(|hooks| hooks.poststart().as_ref()), &state);
    Ok(())
}

/// Returns when a container has no monitor any more.
async fn gone(container: &Container) {
    while container.has_monitor() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// `state`: status and pid (0 when there is none).
///
/// # Errors
/// When a file cannot be read.
pub fn state(container: &Container) -> Result<(Status, i32), OciError> {
    let (status, phase) = settle::status(container, None)?;
    let pid = match status {
        Status::Live(_) => phase.map_or(0, |phase| phase.pid),
        Status::Creating | Status::Stopped => 0,
    };
    Ok((status, pid))
}

/// `kill`.
///
/// # Errors
/// When it does not live, or the signal cannot be sent.
pub fn kill(container: &Container, signal: i32, all: bool) -> Result<(), OciError> {
    let certain = signal == libc::SIGKILL;
    // This one is obeyed whatever the guest says, which is not asked.
    let status = match certain {
        true => container.status()?,
        false => settle::status(container, None)?.0,
    };
    match status {
        Status::Live(_) => {}
        // As runc: there is nobody left to be killed.
        Status::Stopped if all => return Ok(()),
        Status::Stopped => return Err(OciError::NotRunning),
        Status::Creating => return Err(refuse(container, "kill", status)),
    }
    let sent = super::event_loop()?.block_on(async {
        let machine = container.machine_dir();
        let connect = Agent::connect(&machine);
        let limit = if certain { OBEDIENCE } else { NO_LIMIT };
        let agent = tokio::time::timeout(limit, connect).await.map_err(|_| late("connect"))??;
        let agent = if certain { agent.with_timeout(OBEDIENCE) } else { agent };
        // A frozen process dies of SIGKILL as well (cgroup-v2.rst).
        agent.order(Call::Signal { process: process(container), signal, all }).await
    });
    match sent {
        // Whatever the guest says and is up to, this one is always obeyed.
        Ok(()) if certain => ends_or_is_killed(container),
        Ok(()) => Ok(()),
        Err(_) if container.status()? == Status::Stopped => Err(OciError::NotRunning),
        Err(_) if certain => ends_or_is_killed(container),
        // It ended meanwhile, and its monitor is about to write that down.
        Err(AgentError::Refused(error)) if error.kind == ErrorKind::State => {
            Err(OciError::NotRunning)
        }
        Err(error) => Err(error.into()),
    }
}

/// An [`AgentError`] of one who does not answer.
fn late(what: &'static str) -> AgentError {
    AgentError::TimedOut { what, limit: OBEDIENCE }
}

/// Waits for the end of a container that was killed, and kills its monitor when that
/// takes too long.
fn ends_or_is_killed(container: &Container) -> Result<(), OciError> {
    let begin = Instant::now();
    while container.status()? != Status::Stopped {
        if begin.elapsed() > OBEDIENCE {
            return kill_monitor(container);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// `pause` and `resume`.
///
/// # Errors
/// When it is not in the right status.
pub fn freeze(container: &Container, frozen: bool) -> Result<(), OciError> {
    let lock = container.lock()?;
    let phase = match frozen {
        true => require(container, Some(&lock), "pause", &[Live::Created, Live::Running])?,
        false => require(container, Some(&lock), "resume", &[Live::Paused])?,
    };
    settle::begin(container, &lock, &phase)?;
    call(container, Call::Freeze { container: container.id().to_owned(), frozen })?;
    let status = match (frozen, phase.started) {
        (true, _) => Live::Paused,
        (false, true) => Live::Running,
        (false, false) => Live::Created,
    };
    container.write_phase(&lock, &Phase { status, ..phase })
}

/// `update`: changes limits in the guest, and of the cgroup on the host. The machine
/// grows when it is too small for them; it never shrinks.
///
/// # Errors
/// When it does not live, or a limit is refused.
pub fn update(container: &Container, resources: &Value) -> Result<(), OciError> {
    let lock = container.lock()?;
    require(container, Some(&lock), "update", &[Live::Created, Live::Running, Live::Paused])?;
    let shape = container.shape()?;
    let plan = &container.record.plan;
    let version = cgroup::Version::of_host();
    let Update { settings, size } =
        super::plan::updated(plan, &shape, resources, host_cpus(), version)?;
    if let Some(size) = size {
        super::growth::grow(container, &lock, shape, size)?;
    }
    let id = container.id().to_owned();
    let mut of_guest = resources.clone();
    super::plan::host_resources(&mut of_guest);
    call(container, Call::Update { container: id, resources: of_guest })?;
    let plan = &container.record.plan;
    plan.manager.change(&plan.cgroup, &settings)
}

/// `ps`: processes of the guest.
///
/// # Errors
/// When it does not live.
pub fn processes(container: &Container) -> Result<Vec<Process>, OciError> {
    require(
        container,
        None,
        "list the processes of",
        &[Live::Created, Live::Running, Live::Paused],
    )?;
    match call(container, Call::Processes { container: container.id().to_owned() })? {
        Return::Processes(list) => Ok(list),
        _ => Err(AgentError::Nonsense("processes").into()),
    }
}

/// Pids of the host's processes that stand for those of the container: its monitor,
/// and those of detached execs.
///
/// # Errors
/// When its cgroup cannot be read.
pub fn monitors(container: &Container) -> Result<Vec<i32>, OciError> {
    Ok(cgroup::processes(&container.record.plan.cgroup)?)
}

/// Files of its cgroup in the guest: name -> contents.
///
/// # Errors
/// When it does not live.
pub fn stats(
    container: &Container,
) -> Result<std::collections::BTreeMap<String, String>, OciError> {
    require(container, None, "measure", &[Live::Created, Live::Running, Live::Paused])?;
    match call(container, Call::Stats { container: container.id().to_owned() })? {
        Return::Stats(files) => Ok(files),
        _ => Err(AgentError::Nonsense("stats").into()),
    }
}

fn call(container: &Container, call: Call) -> Result<Return, OciError> {
    let answer = super::event_loop()?
        .block_on(async { Agent::connect(&container.machine_dir()).await?.call(call).await });
    Ok(answer?)
}

/// `delete`.
///
/// # Errors
/// When it lives and `force` is not set.
pub fn delete(root: &Root, id: &str, force: bool) -> Result<(), OciError> {
    let container = match root.find(id) {
        Ok(container) => container,
        Err(OciError::Halfway(_) | OciError::File(FileError::Damaged { .. })) if force => {
            return root.forget(id);
        }
        Err(OciError::NotFound(_)) if force => return Ok(()),
        Err(error) => return Err(error),
    };
    let lock = match container.try_lock() {
        Ok(Some(lock)) => lock,
        // Another one was faster.
        Err(OciError::NotFound(_)) if force => return Ok(()),
        Err(error) => return Err(error),
        Ok(None) => {
            // Whoever has it may be waiting for a guest that does not answer.
            if force {
                kill_monitor(&container)?;
            }
            match container.lock() {
                Err(OciError::NotFound(_)) if force => return Ok(()),
                other => other?,
            }
        }
    };
    // Whoever holds the lock and finds no phase knows that the creator is dead.
    let status = match container.phase()? {
        None => Status::Stopped,
        // No question to a guest that may not answer.
        Some(_) if force => container.status()?,
        Some(_) => match settle::status(&container, Some(&lock))? {
            // It may run, for all that is known.
            (Status::Live(_), Some(Phase { changing: true, .. })) => {
                return Err(OciError::Unsettled(id.into()));
            }
            (status, _) => status,
        },
    };
    match status {
        Status::Stopped if container.phase()?.is_none() => kill_monitor(&container)?,
        Status::Stopped => {}
        // As runc: nothing of the user's runs yet.
        Status::Live(Live::Created) => kill_monitor(&container)?,
        _ if force => kill_monitor(&container)?,
        status => return Err(refuse(&container, "delete", status)),
    }
    wait_for_monitor(&container, SHUTDOWN)?;
    remove_rest(&container);
    let of = container.record.hooks.clone();
    let state = state_json(&container, "stopped", 0);
    container.erase(lock)?;
    let poststop = of.as_ref().and_then(|hooks| hooks.poststop().as_ref());
    hooks::run_all("poststop", poststop, &state);
    Ok(())
}

/// Kills the monitor, and with it the machine.
fn kill_monitor(container: &Container) -> Result<(), OciError> {
    let begin = Instant::now();
    // A file system that hangs can keep a process for as long as it likes.
    while container.has_monitor() {
        // Again each time: it may just be entering its cgroup, or be written down.
        match container.phase()? {
            Some(phase) => kill_process(phase.pid, phase.pid_start)?,
            // It is in the cgroup, with what it started, or about to be.
            None => {
                if let Some((pid, start)) = container.early_monitor() {
                    kill_process(pid, start)?;
                }
                cgroup::kill(&container.record.plan.cgroup)?;
            }
        }
        if begin.elapsed() > DEATH {
            return Err(immortal(container, DEATH));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn kill_process(pid: i32, start: u64) -> Result<(), OciError> {
    let Ok(pidfd) = PidFd::open(pid) else { return Ok(()) };
    // Opened first, then compared: the number cannot change hands any more.
    if start_of(pid) != start {
        return Ok(());
    }
    match pidfd.signal(libc::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(OciError::io("the monitor")(errno.into())),
    }
}

/// Waits until the monitor has gone, and kills it when that takes too long.
fn wait_for_monitor(container: &Container, limit: Duration) -> Result<(), OciError> {
    let begin = Instant::now();
    while container.has_monitor() {
        if begin.elapsed() > limit {
            return kill_monitor(container);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn immortal(container: &Container, limit: Duration) -> OciError {
    OciError::Immortal { id: container.id().into(), seconds: limit.as_secs() }
}

/// Removes everything on the host but the files of the container itself.
pub(super) fn remove_rest(container: &Container) {
    if container.record.plan.machine.is_some() {
        Membership::await_end(&container.machine_dir(), container.id());
    } else {
        let machine = container.machine_cgroup();
        cgroup::purge(&machine);
        network::give_back(container);
        uids::purge(&uids_dir(), &machine.to_string_lossy());
        if let Err(error) = dirs::remove_tree(&container.machine_dir()) {
            tracing::warn!("cannot remove a sandbox's directory: {error}");
        }
    }
    let plan = &container.record.plan;
    // Before that, whoever is in it is somebody else.
    if container.has_cgroup() && plan.cgroup.starts_with(cgroup::ROOT) {
        plan.manager.remove(&plan.cgroup);
    }
    crate::sandbox::clean_overlay(&container.record.plan.rootfs, container.id());
}

/// Where uid ranges of this host are locked.
pub fn uids_dir() -> std::path::PathBuf {
    crate::dirs::Dirs::from_env().uids()
}

/// Writes `pid` to a pid file, whole or not at all.
///
/// # Errors
/// Names the file.
pub fn write_pid_file(path: &Path, pid: i32) -> Result<(), OciError> {
    let temporary = path.with_extension(format!("tmp{}", std::process::id()));
    let write = || {
        std::fs::write(&temporary, pid.to_string())?;
        std::fs::rename(&temporary, path)
    };
    write().map_err(|error| {
        let _ = std::fs::remove_file(&temporary);
        OciError::io(path)(error)
    })
}
