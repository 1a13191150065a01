//! The control socket: packets of JSON with descriptors beside them.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::cmsg_space;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use protocol::machine::{CONTROL_FD, Command, Event, FromVmm, MAX_FDS, MAX_PACKET, Reply};

/// Why the runtime cannot be understood or reached.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Descriptor 3 is not a socket.
    #[error(
        "descriptor {CONTROL_FD} is not a control socket: bulkhead-vmm is started by \
         bulkhead's runtime, never by hand"
    )]
    NotStarted,
    /// The other end is gone.
    #[error("the runtime closed the control socket")]
    Closed,
    /// recvmsg or sendmsg failed.
    #[error("the control socket failed")]
    Socket(#[from] nix::Error),
    /// The packet is not a command.
    #[error("the runtime sent a command that cannot be understood")]
    Json(#[from] serde_json::Error),
    /// The packet did not fit.
    #[error("the runtime sent a packet of more than {MAX_PACKET} bytes or {MAX_FDS} descriptors")]
    Truncated,
}

/// This process's end.
pub struct Control(OwnedFd);

impl Control {
    /// Takes over the inherited descriptor. Once per process, before anything
    /// else is opened.
    ///
    /// # Errors
    /// [`ControlError::NotStarted`] when there is none.
    pub fn inherit() -> Result<Control, ControlError> {
        let stat = nix::sys::stat::fstat(crate::event_loop::borrow(CONTROL_FD))
            .map_err(|_| ControlError::NotStarted)?;
        if stat.st_mode & libc::S_IFMT != libc::S_IFSOCK {
            return Err(ControlError::NotStarted);
        }
        #[allow(unsafe_code)]
        // SAFETY: the descriptor is open (fstat succeeded) and nothing else in
        // this process owns it: it was inherited, and this runs once.
        let fd = unsafe { OwnedFd::from_raw_fd(CONTROL_FD) };
        Ok(Control(fd))
    }

    /// For tests: any socket.
    pub fn from_fd(fd: OwnedFd) -> Control {
        Control(fd)
    }

    /// For epoll.
    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Waits for the next command.
    ///
    /// # Errors
    /// When the runtime is gone or unintelligible.
    pub fn receive(&self) -> Result<(Command, Vec<OwnedFd>), ControlError> {
        let mut packet = vec![0u8; MAX_PACKET];
        let mut space = cmsg_space!([RawFd; MAX_FDS]);
        let mut iov = [IoSliceMut::new(&mut packet)];
        let message = loop {
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            match recvmsg::<()>(self.0.as_raw_fd(), &mut iov, Some(&mut space), flags) {
                Err(nix::Error::EINTR) => {}
                other => break other?,
            }
        };
        let mut fds = Vec::new();
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = control {
                for fd in raw {
                    #[allow(unsafe_code)]
                    // SAFETY: the kernel just installed this descriptor for us.
                    fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
                }
            }
        }
        let truncated = MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC;
        let (bytes, flags) = (message.bytes, message.flags);
        if flags.intersects(truncated) {
            return Err(ControlError::Truncated);
        }
        if bytes == 0 {
            return Err(ControlError::Closed);
        }
        Ok((serde_json::from_slice(&packet[..bytes])?, fds))
    }

    /// Answers a command.
    ///
    /// # Errors
    /// When the runtime is gone.
    pub fn reply(&self, id: u64, reply: Result<Reply, String>) -> Result<(), ControlError> {
        self.send(&FromVmm::Reply { id, reply }, &[], MsgFlags::empty())
    }

    /// Tells of an event.
    ///
    /// # Errors
    /// When the runtime is gone.
    pub fn event(&self, event: Event) -> Result<(), ControlError> {
        self.send(&FromVmm::Event(event), &[], MsgFlags::empty())
    }

    /// Hands over the host's end of a connection that the guest made. Called
    /// from a device's thread, so it never waits for the runtime.
    ///
    /// # Errors
    /// EAGAIN when the runtime does not keep up, or when it is gone.
    pub fn guest_connect(&self, port: u32, stream: OwnedFd) -> Result<(), ControlError> {
        let event = FromVmm::Event(Event::GuestConnect { port });
        self.send(&event, &[stream.as_raw_fd()], MsgFlags::MSG_DONTWAIT)
    }

    fn send(&self, message: &FromVmm, fds: &[RawFd], flags: MsgFlags) -> Result<(), ControlError> {
        let packet = serde_json::to_vec(message)?;
        let rights = [ControlMessage::ScmRights(fds)];
        let control = if fds.is_empty() { &[][..] } else { &rights[..] };
        loop {
            let flags = flags | MsgFlags::MSG_NOSIGNAL;
            match sendmsg::<()>(self.0.as_raw_fd(), &[IoSlice::new(&packet)], control, flags, None)
            {
                Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error.into()),
                Ok(_) => return Ok(()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use protocol::machine::Request;

    fn pair() -> (OwnedFd, Control) {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .unwrap();
        (ours, Control::from_fd(theirs))
    }

    fn send(fd: &OwnedFd, bytes: &[u8]) {
        nix::sys::socket::send(fd.as_raw_fd(), bytes, MsgFlags::empty()).unwrap();
    }

    #[test]
    fn commands_arrive_and_a_closed_peer_is_told_apart() {
        let (runtime, control) = pair();
        let command = Command { id: 3, request: Request::Pause };
        send(&runtime, &serde_json::to_vec(&command).unwrap());
        assert_eq!(control.receive().unwrap().0, command);
        send(&runtime, b"nonsense");
        assert!(matches!(control.receive(), Err(ControlError::Json(_))));
        send(&runtime, &vec![b' '; MAX_PACKET + 1]);
        assert!(matches!(control.receive(), Err(ControlError::Truncated)));
        drop(runtime);
        assert!(matches!(control.receive(), Err(ControlError::Closed)));
    }
}
