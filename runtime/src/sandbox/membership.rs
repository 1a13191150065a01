//! A container in a machine that another one began: the joining side of
//! [`super::members`].

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use protocol::machine::Size;
use serde::de::DeserializeOwned;

use super::ShareConfig;
use super::gather::{GatherError, gather};
use super::ids::{Both, High};
use super::members::{Answer, Ask, MAX_MESSAGE, SOCKET, Welcome, parse};
use super::owner::Owner;
use crate::sys::descriptors::{receive_packet, send_packet};

/// Longest wait for an answer, in seconds: longer than the supervisor tries anything.
const PATIENCE: i64 = 90;

/// Why a container cannot join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// There is no supervisor.
    #[error(
        "the machine that the container is to join, of {}, is not there (any more)",
        machine.display()
    )]
    Unreachable {
        /// Its directory.
        machine: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Of another build.
    #[error(
        "the machine was begun by a bulkhead-runtime of another version \
         (its protocol is {theirs}, ours {}): containers that join it must be of the same",
        protocol::PROTOCOL_VERSION
    )]
    Version {
        /// Its protocol.
        theirs: u32,
    },
    /// Fixed when it began.
    #[error(
        "the machine does not have all ids of the host that the container names: containers \
         that join it can have none above 65535 but those of the one that began it"
    )]
    Ids,
    /// The container's files.
    #[error(transparent)]
    Gather(#[from] GatherError),
    /// The VMM did not take them.
    #[error("the machine did not take the container's files: {0}")]
    Refused(String),
    /// The network.
    #[error("{0}")]
    Network(String),
}

/// Why a machine does not become larger.
#[derive(Debug, thiserror::Error)]
pub enum GrowError {
    /// The host has no memory for it.
    #[error(
        "the machine of the container needs {needed} MiB more; this host has {available} MiB \
         available"
    )]
    Host {
        /// MiB.
        needed: u64,
        /// MiB.
        available: u64,
    },
    /// Its supervisor is of an earlier version.
    #[error(
        "the machine was started by an earlier bulkhead-runtime, and cannot grow: \
         start the container anew"
    )]
    Former,
    /// There is no supervisor.
    #[error("the machine cannot be asked to grow")]
    Unreachable(#[source] JoinError),
    /// The VMM or the guest.
    #[error("the machine cannot grow: {0}")]
    Refused(String),
}

/// A connection by which a machine is made larger.
#[derive(Debug)]
pub struct Growth(Membership);

impl Growth {
    /// To the supervisor of the machine in directory `machine`.
    ///
    /// # Errors
    /// When there is none, or it cannot.
    pub fn begin(machine: &Path) -> Result<Growth, GrowError> {
        match Membership::connect(machine) {
            Ok((this, welcome, _)) if welcome.grows => Ok(Growth(this)),
            Ok(_) | Err(JoinError::Version { .. }) => Err(GrowError::Former),
            Err(error) => Err(GrowError::Unreachable(error)),
        }
    }

    /// Makes it as large as `size`, where it is smaller. Returns the size that it has.
    ///
    /// # Errors
    /// When the host or the guest refuses.
    pub fn grow(self, size: Size) -> Result<Size, GrowError> {
        match self.0.ask(&Ask::Grow { size }, None) {
            Ok(Some(size)) => Ok(size),
            Ok(None) => Err(GrowError::Refused("the answer makes no sense".into())),
            Err(JoinError::Refused(why)) => Err(GrowError::Refused(why)),
            Err(error) => Err(GrowError::Unreachable(error)),
        }
    }
}

/// The right to be in a machine. Given back when it is dropped.
#[derive(Debug)]
pub struct Membership {
    socket: OwnedFd,
    machine: PathBuf,
    prefix: String,
}

impl Membership {
    /// Joins the machine in directory `machine` with container `id`, the ids that it
    /// needs, and its shares.
    ///
    /// # Errors
    /// With the reason; nothing is left then.
    pub fn begin(
        machine: &Path,
        id: &str,
        ids: &Both<High>,
        shares: &[ShareConfig],
    ) -> Result<Self, JoinError> {
        let (this, welcome, userns) = Membership::connect(machine)?;
        if !(welcome.ids.uids.contains(&ids.uids) && welcome.ids.gids.contains(&ids.gids)) {
            return Err(JoinError::Ids);
        }
        let owner = Owner::new(userns, welcome.base, &welcome.ids);
        let (shares, mounts) = gather(shares, id, &this.prefix, &owner)?;
        this.ask(&Ask::Join { container: id.into(), shares }, Some(mounts))?;
        Ok(this)
    }

    /// What precedes the names of its shares, with a dash between.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Leaves; nothing of the container is in the machine afterwards.
    ///
    /// # Errors
    /// When the supervisor is gone, and the machine with it.
    pub fn leave(self) -> Result<(), JoinError> {
        self.ask(&Ask::Leave, None).map(drop)
    }

    /// Waits until nothing is left of container `id`, whose monitor has ended.
    pub fn await_end(machine: &Path, id: &str) {
        // An error means that the machine has gone, and all with it.
        if let Ok((this, ..)) = Membership::connect(machine) {
            let _ = this.ask(&Ask::Gone { container: id.into() }, None);
        }
    }

    /// Waits until the guest of the machine in directory `machine` has the network that its
    /// namespace has now.
    ///
    /// # Errors
    /// When the machine, or its guest, does not take it.
    pub fn settle_network(machine: &Path) -> Result<(), JoinError> {
        match Membership::connect(machine) {
            Ok((this, Welcome { settles: true, .. }, _)) => match this.ask(&Ask::Settle, None) {
                Err(JoinError::Refused(why)) => Err(JoinError::Network(why)),
                other => other.map(drop),
            },
            // Begun by an earlier version: it has none.
            Ok(_) => Ok(()),
            Err(JoinError::Version { theirs }) if theirs < protocol::PROTOCOL_VERSION => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn connect(machine: &Path) -> Result<(Membership, Welcome, OwnedFd), JoinError> {
        let unreachable = |source| JoinError::Unreachable { machine: machine.to_owned(), source };
        let open = || -> std::io::Result<OwnedFd> {
            let directory = std::fs::File::open(machine)?;
            let flags = SockFlag::SOCK_CLOEXEC;
            let fd = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
            setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE))?;
            // By descriptor: a socket's path is limited to 108 bytes.
            let path = format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd());
            connect(fd.as_raw_fd(), &UnixAddr::new(path.as_str())?)?;
            Ok(fd)
        };
        let socket = open().map_err(|error| {
            // Who lives and has none began before there was one.
            let never = error.kind() == std::io::ErrorKind::NotFound && machine.is_dir();
            match never {
                true => JoinError::Version { theirs: protocol::OLDEST_AGENT },
                false => unreachable(error),
            }
        })?;
        let mut this = Membership { socket, machine: machine.into(), prefix: String::new() };
        let (welcome, fds): (Welcome, _) = this.hear()?;
        if welcome.version != protocol::PROTOCOL_VERSION {
            return Err(JoinError::Version { theirs: welcome.version });
        }
        let Some(userns) = fds.into_iter().next() else {
            return Err(unreachable(std::io::ErrorKind::InvalidData.into()));
        };
        this.prefix.clone_from(&welcome.prefix);
        Ok((this, welcome, userns))
    }

    fn ask(&self, ask: &Ask, mounts: Option<OwnedFd>) -> Result<Option<Size>, JoinError> {
        let bytes = serde_json::to_vec(ask).map_err(|error| self.lost(error.into()))?;
        if bytes.len() > MAX_MESSAGE {
            let message = format!("{} bytes tell of its shares, of {MAX_MESSAGE}", bytes.len());
            return Err(JoinError::Refused(message));
        }
        let fds: Vec<_> = mounts.iter().map(AsFd::as_fd).collect();
        send_packet(self.socket.as_fd(), &bytes, &fds).map_err(|error| self.lost(error.into()))?;
        drop(mounts);
        let (answer, _): (Answer, _) = self.hear()?;
        answer.map_err(JoinError::Refused)
    }

    fn hear<T: DeserializeOwned>(&self) -> Result<(T, Vec<OwnedFd>), JoinError> {
        let mut buffer = vec![0; MAX_MESSAGE];
        let packet = loop {
            match receive_packet(self.socket.as_fd(), &mut buffer) {
                Err(nix::Error::EINTR) => {}
                other => break other.map_err(|error| self.lost(error.into()))?,
            }
        };
        let message = parse(&buffer, packet).map_err(|error| self.lost(error))?;
        message.ok_or_else(|| self.lost(std::io::ErrorKind::UnexpectedEof.into()))
    }

    fn lost(&self, source: std::io::Error) -> JoinError {
        JoinError::Unreachable { machine: self.machine.clone(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_of_an_earlier_version_takes_no_questions() {
        let dir = tempfile::tempdir().unwrap();
        Membership::settle_network(dir.path()).unwrap();
        assert!(matches!(Growth::begin(dir.path()), Err(GrowError::Former)));
        let gone = dir.path().join("gone");
        let error = Membership::settle_network(&gone).unwrap_err();
        assert!(matches!(error, JoinError::Unreachable { .. }), "{error}");
    }
}
