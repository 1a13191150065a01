//! Agent <-> role, over a SOCK_SEQPACKET pair; both ends are close-on-exec.
//!
//! ```text
//! agent                                     bulkhead-init
//!   | clone3, execveat; plan in a memfd  -->  | builds the container
//!   | <--  Terminal + master                  | when it has one
//!   | <--  Ready                              | only execve is missing
//!   |  go (one byte)                     -->  | execve
//!   | <--  end of file                        | it succeeded ...
//!   | <--  Failed                             | ... or not
//!
//! agent                                     bulkhead-exec
//!   | clone3, execveat; plan in a memfd  -->  | joins the pid namespace
//!   | <--  Process + pidfd                    | cloned the process into it, ends
//!   | <--  Terminal + master                  | the process, when it has one
//!   | <--  end of file, or Failed             | the process, as above
//! ```
//!
//! `Failed` may come at any time. Helper and process of an exec speak
//! independently, so that `Process` may come after the other's messages.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg,
    sendmsg, socketpair,
};
use protocol::agent::AgentError;
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::RoleError;

/// Largest packet; an error message is cut to fit.
const MAX_PACKET: usize = 64 << 10;

/// What a role tells the agent.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromRole {
    /// The process was cloned (pid in the agent's namespace is in its pidfd).
    Process,
    /// The master side of the process's terminal.
    Terminal,
    /// Built; waits for the go.
    Ready,
    /// Nothing comes of it.
    Failed(AgentError),
}

/// A role's end.
#[derive(Debug)]
pub struct Channel(OwnedFd);

/// A pair: the agent's end, the role's end.
///
/// # Errors
/// The kernel's.
pub fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
}

impl Channel {
    /// Takes over the descriptor.
    pub fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Sends a message, with a descriptor.
    ///
    /// # Errors
    /// When the agent is gone.
    pub fn send(&self, message: &FromRole, fd: Option<BorrowedFd>) -> Result<(), RoleError> {
        let mut bytes = serde_json::to_vec(message).map_err(|_| RoleError::Abandoned)?;
        if let (FromRole::Failed(error), true) = (message, bytes.len() > MAX_PACKET) {
            let cut = error.message.chars().take(1000).collect();
            let error = FromRole::Failed(AgentError { message: cut, ..error.clone() });
            bytes = serde_json::to_vec(&error).map_err(|_| RoleError::Abandoned)?;
        }
        let fds: Vec<_> = fd.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let control = if fds.is_empty() { &rights[..0] } else { &rights[..] };
        let parts = [IoSlice::new(&bytes)];
        sendmsg::<()>(self.0.as_raw_fd(), &parts, control, MsgFlags::MSG_NOSIGNAL, None)
            .map_err(|_| RoleError::Abandoned)?;
        Ok(())
    }

    /// Waits for the agent's go.
    ///
    /// # Errors
    /// When the agent hangs up instead.
    pub fn wait_for_go(&self) -> Result<(), RoleError> {
        match nix::unistd::read(&self.0, &mut [0u8; 1]) {
            Ok(1) => Ok(()),
            _ => Err(RoleError::Abandoned),
        }
    }

    /// The descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The agent's end.
#[derive(Debug)]
pub struct RoleHandle(AsyncFd<OwnedFd>);

impl RoleHandle {
    /// Takes over the descriptor.
    ///
    /// # Errors
    /// When it cannot be polled.
    pub fn new(fd: OwnedFd) -> std::io::Result<Self> {
        crate::sys::poll::watch(fd, Interest::READABLE).map(Self)
    }

    /// The next message and its descriptor; `None` at end of file.
    ///
    /// # Errors
    /// A malformed packet or a socket error.
    pub async fn receive(&self) -> std::io::Result<Option<(FromRole, Option<OwnedFd>)>> {
        loop {
            let mut guard = self.0.readable().await?;
            let now = MsgFlags::MSG_DONTWAIT;
            if let Ok(result) = guard.try_io(|fd| receive_as(fd.as_fd(), now)) {
                return result;
            }
        }
    }

    /// Lets the role go on.
    ///
    /// # Errors
    /// When the role is gone.
    pub fn go(&self) -> Result<(), Errno> {
        go(self.0.as_fd())
    }
}

/// Lets the role at the other end of `fd` go on.
///
/// # Errors
/// When the role is gone.
pub fn go(fd: BorrowedFd) -> Result<(), Errno> {
    let parts = [IoSlice::new(&[1])];
    sendmsg::<()>(fd.as_raw_fd(), &parts, &[], MsgFlags::MSG_NOSIGNAL, None).map(drop)
}

/// Waits for the next message of a process that is about to speak, and its descriptor;
/// `None` at end of file.
///
/// # Errors
/// A malformed packet or a socket error.
pub fn receive(fd: BorrowedFd) -> std::io::Result<Option<(FromRole, Option<OwnedFd>)>> {
    receive_as(fd, MsgFlags::empty())
}

fn receive_as(
    fd: BorrowedFd,
    how: MsgFlags,
) -> std::io::Result<Option<(FromRole, Option<OwnedFd>)>> {
    let mut bytes = vec![0; MAX_PACKET];
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let mut space = cmsg_space!([i32; 1]);
    let flags = how | MsgFlags::MSG_CMSG_CLOEXEC;
    let message = match recvmsg::<()>(fd.as_raw_fd(), &mut parts, Some(&mut space), flags) {
        // A role that died with unread bytes: an end all the same.
        Err(Errno::ECONNRESET) => return Ok(None),
        other => other?,
    };
    let mut received = None;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            received = fds.into_iter().map(crate::sys::exec::received).next_back();
        }
    }
    let length = message.bytes;
    if length == 0 {
        return Ok(None);
    }
    Ok(Some((serde_json::from_slice(&bytes[..length])?, received)))
}
