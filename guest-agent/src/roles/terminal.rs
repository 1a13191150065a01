//! A pseudo-terminal of the container's own devpts.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::{Gid, Uid, dup2_stderr, dup2_stdin, dup2_stdout, fchown};

use super::channel::{Channel, FromRole};
use super::inside::Inside;
use super::{Context, RoleError};
use crate::plan::ProcessPlan;
use crate::sys::{mount::Detached, tty};

/// Opens a terminal, gives its master to the agent and its slave to this
/// process as stdio and controlling terminal. With `console` it is mounted at
/// /dev/console as well.
///
/// # Errors
/// Names the step.
pub fn open_for(
    process: &ProcessPlan,
    channel: &Channel,
    console: Option<&Inside>,
) -> Result<(), RoleError> {
    let Some((rows, columns)) = process.terminal else { return Ok(()) };
    let slave = prepare(process, channel, rows, columns)?;
    if let Some(inside) = console {
        let target = inside.file(Path::new("/dev/console"))?;
        Detached::copy_of_fd(slave.as_fd(), false)
            .and_then(|mount| mount.attach(target.as_fd()))
            .context(|| "mounting /dev/console".into())?;
    }
    let attach = || {
        dup2_stdin(&slave)?;
        dup2_stdout(&slave)?;
        dup2_stderr(&slave)?;
        tty::control(slave.as_fd())
    };
    attach().context(|| "attaching the terminal".into())
}

fn prepare(
    process: &ProcessPlan,
    channel: &Channel,
    rows: u16,
    columns: u16,
) -> Result<OwnedFd, RoleError> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let master = match open("/dev/pts/ptmx", flags, Mode::empty()) {
        Err(Errno::ENOENT) => {
            let reason = "process.terminal: the container has no devpts mounted at /dev/pts";
            return Err(RoleError::Unfit(reason.into()));
        }
        other => other.context(|| "opening /dev/pts/ptmx".into())?,
    };
    let slave = tty::open_slave(master.as_fd()).context(|| "opening the terminal".into())?;
    let own = || {
        if (rows, columns) != (0, 0) {
            tty::resize(master.as_fd(), rows, columns)?;
        }
        let group = Gid::from_raw(fstat(&slave)?.st_gid);
        fchown(&slave, Some(Uid::from_raw(process.uid)), Some(group))
    };
    own().context(|| "preparing the terminal".into())?;
    channel.send(&FromRole::Terminal, Some(master.as_fd()))?;
    Ok(slave)
}
