//! Descriptors beside stdio that a process is to have: what each of the host's is, and
//! what carries it into the machine.
//!
//! | of the host | in the guest |
//! |---|---|
//! | reading end of a pipe, file that is read | reading end of a pipe |
//! | writing end of a pipe, file that is written | writing end of a pipe |
//! | connected stream socket | connected AF_UNIX stream socket |
//! | listening stream socket | listening socket of its family, on the loopback address |
//! | /dev/null | /dev/null |
//!
//! All else has a state that two kernels cannot share, and is refused.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{AddressFamily, SockType, SockaddrLike, SockaddrStorage};
use nix::sys::socket::{getpeername, getsockname, getsockopt, sockopt};
use nix::sys::stat::{SFlag, fstat, major, minor};
use protocol::agent::{Descriptor, Family};

/// Why a descriptor is not passed on.
#[derive(Debug, thiserror::Error)]
pub enum DescriptorError {
    /// The kernel does not say what it is.
    #[error("descriptor {number}")]
    Look {
        /// Its number in the process.
        number: usize,
        /// The kernel's answer.
        source: Errno,
    },
    /// A machine cannot have it.
    #[error(
        "descriptor {number} is {what}, which cannot be passed into a machine: pipes, stream \
         sockets and files that are only read or only written can"
    )]
    Unfit {
        /// Its number in the process.
        number: usize,
        /// What it is.
        what: &'static str,
    },
}

/// One of them.
#[derive(Debug)]
pub struct Extra {
    /// What the process gets.
    pub(super) kind: Descriptor,
    /// What the host has.
    pub(super) fd: OwnedFd,
}

/// Sees what `fds` are; the process has them from number 3 on.
///
/// # Errors
/// Names the first that cannot be passed on.
pub fn all(fds: Vec<OwnedFd>) -> Result<Vec<Extra>, DescriptorError> {
    let one = |(number, fd): (usize, OwnedFd)| Ok(Extra { kind: kind(number, fd.as_fd())?, fd });
    (3..).zip(fds).map(one).collect()
}

fn kind(number: usize, fd: BorrowedFd) -> Result<Descriptor, DescriptorError> {
    let look = |source| DescriptorError::Look { number, source };
    let unfit = |what| Err(DescriptorError::Unfit { number, what });
    let stat = fstat(fd).map_err(look)?;
    let mode = fcntl(fd, FcntlArg::F_GETFL).map_err(look)?;
    let mode = OFlag::from_bits_retain(mode) & OFlag::O_ACCMODE;
    let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
    if kind == SFlag::S_IFSOCK {
        return socket(number, fd);
    }
    if kind == SFlag::S_IFCHR && (major(stat.st_rdev), minor(stat.st_rdev)) == (1, 3) {
        return Ok(Descriptor::Null);
    }
    if kind != SFlag::S_IFIFO && kind != SFlag::S_IFREG {
        return unfit(match kind {
            SFlag::S_IFDIR => "a directory",
            SFlag::S_IFCHR | SFlag::S_IFBLK => "a device",
            _ => "neither a file nor a socket",
        });
    }
    match mode {
        OFlag::O_RDONLY => Ok(Descriptor::Input),
        OFlag::O_WRONLY => Ok(Descriptor::Output),
        _ => unfit("a file that is read and written"),
    }
}

fn socket(number: usize, fd: BorrowedFd) -> Result<Descriptor, DescriptorError> {
    let look = |source| DescriptorError::Look { number, source };
    let unfit = |what| Err(DescriptorError::Unfit { number, what });
    if getsockopt(&fd, sockopt::SockType).map_err(look)? != SockType::Stream {
        return unfit("a socket of datagrams or packets");
    }
    if !getsockopt(&fd, sockopt::AcceptConn).map_err(look)? {
        return match getpeername::<SockaddrStorage>(fd.as_raw_fd()) {
            Ok(_) => Ok(Descriptor::Socket),
            Err(Errno::ENOTCONN) => unfit("a socket without a peer"),
            Err(errno) => Err(look(errno)),
        };
    }
    let address = getsockname::<SockaddrStorage>(fd.as_raw_fd()).map_err(look)?;
    let port4 = address.as_sockaddr_in().map(nix::sys::socket::SockaddrIn::port);
    let port6 = address.as_sockaddr_in6().map(nix::sys::socket::SockaddrIn6::port);
    match (address.family(), port4, port6) {
        (Some(AddressFamily::Unix), ..) => Ok(Descriptor::Listener(Family::Unix)),
        (_, Some(port), _) => Ok(Descriptor::Listener(Family::Ipv4(port))),
        (_, _, Some(port)) => Ok(Descriptor::Listener(Family::Ipv6(port))),
        _ => unfit("a listening socket of an unknown family"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

    fn of(fd: impl Into<OwnedFd>) -> Result<Descriptor, String> {
        kind(3, fd.into().as_fd()).map_err(|error| error.to_string())
    }

    #[test]
    fn each_is_seen_for_what_it_is() {
        let (reader, writer) = std::io::pipe().unwrap();
        assert_eq!(of(reader), Ok(Descriptor::Input));
        assert_eq!(of(writer), Ok(Descriptor::Output));
        assert_eq!(of(File::open("/dev/null").unwrap()), Ok(Descriptor::Null));
        assert_eq!(of(File::open("/proc/self/exe").unwrap()), Ok(Descriptor::Input));
        assert_eq!(of(UnixStream::pair().unwrap().0), Ok(Descriptor::Socket));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        assert_eq!(of(client), Ok(Descriptor::Socket));
        assert_eq!(of(listener), Ok(Descriptor::Listener(Family::Ipv4(port))));
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("socket")).unwrap();
        assert_eq!(of(listener), Ok(Descriptor::Listener(Family::Unix)));
    }

    #[test]
    fn what_two_kernels_cannot_share_is_refused() {
        assert!(of(File::open("/").unwrap()).unwrap_err().contains("a directory"));
        assert!(of(File::open("/dev/zero").unwrap()).unwrap_err().contains("a device"));
        assert!(of(UnixDatagram::unbound().unwrap()).unwrap_err().contains("datagrams"));
        assert!(of(tempfile::tempfile().unwrap()).unwrap_err().contains("read and written"));
        let event = nix::sys::eventfd::EventFd::new().unwrap();
        let event = event.as_fd().try_clone_to_owned().unwrap();
        assert!(of(event).unwrap_err().contains("neither"));
    }
}
