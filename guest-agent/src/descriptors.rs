//! What processes have beside their stdio: pipes, connected and listening sockets,
//! each with an end that the host attaches to.

use std::io::Result;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, getsockname, listen,
    socket,
};
use protocol::agent::{AgentError, Descriptor, ErrorKind, Family, MAX_DESCRIPTORS, Stream};
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes};
use tokio::net::{TcpStream, UnixStream};

use crate::error::{SystemContext, error};
use crate::stdio::{BUFFER, Streams, Way};

/// Connections that wait for a process to accept them.
const BACKLOG: i32 = 128;
/// Between two attempts to connect while that many wait.
const PAUSE: Duration = Duration::from_millis(10);
/// How often that is attempted.
const ATTEMPTS: usize = 3000;

/// Where a listening socket of ours is found.
#[derive(Debug, Clone)]
pub enum Address {
    /// A name in the abstract namespace of AF_UNIX.
    Unix(UnixAddr),
    /// On the loopback interface.
    Tcp(SocketAddr),
}

/// Makes them; the process's ends. Ours are kept in `streams`.
///
/// # Errors
/// Too many of them, or the kernel's.
pub fn open(
    streams: &Streams,
    descriptors: &[Descriptor],
) -> std::result::Result<Vec<OwnedFd>, AgentError> {
    if descriptors.len() > MAX_DESCRIPTORS {
        let message = format!("{} descriptors, of at most {MAX_DESCRIPTORS}", descriptors.len());
        return Err(error(ErrorKind::Invalid, message));
    }
    (0..).zip(descriptors).map(|(number, kind)| one(streams, number, *kind)).collect()
}

fn one(
    streams: &Streams,
    number: u32,
    kind: Descriptor,
) -> std::result::Result<OwnedFd, AgentError> {
    let stream = Stream::Descriptor(number);
    let opened = match kind {
        Descriptor::Null => Streams::null(),
        Descriptor::Input => streams.pipe(stream, Way::In),
        Descriptor::Output => streams.pipe(stream, Way::Out),
        Descriptor::Socket => StdUnixStream::pair().and_then(|(ours, theirs)| {
            streams.insert(stream, Way::Both, ours.into())?;
            Ok(theirs.into())
        }),
        Descriptor::Listener(family) => listener(family).map(|(theirs, address)| {
            streams.listen(stream, address);
            theirs
        }),
    };
    opened.system(|| format!("making descriptor {}", number + 3))
}

fn listener(family: Family) -> Result<(OwnedFd, Address)> {
    let loopback: (std::net::IpAddr, u16) = match family {
        Family::Unix => {
            let kind = SockType::Stream;
            let fd = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None)?;
            // Without a name the kernel chooses one, see unix(7), "Autobind".
            bind(fd.as_raw_fd(), &UnixAddr::new_unnamed())?;
            listen(&fd, Backlog::new(BACKLOG)?)?;
            let address = getsockname::<UnixAddr>(fd.as_raw_fd())?;
            return Ok((fd, Address::Unix(address)));
        }
        Family::Ipv4(port) => (Ipv4Addr::LOCALHOST.into(), port),
        Family::Ipv6(port) => (Ipv6Addr::LOCALHOST.into(), port),
    };
    let listener = TcpListener::bind(loopback).or_else(|_| TcpListener::bind((loopback.0, 0)))?;
    let address = listener.local_addr()?;
    Ok((listener.into(), Address::Tcp(address)))
}

/// Connects `connection` to the listening socket at `address`, until both ways end.
///
/// # Errors
/// When nobody listens any more, or one of the two breaks.
pub async fn relay<S>(address: &Address, mut connection: S) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    match address {
        Address::Unix(address) => both_ways(&mut dial(address).await?, &mut connection).await,
        Address::Tcp(address) => {
            both_ways(&mut TcpStream::connect(address).await?, &mut connection).await
        }
    }
}

/// Copies until both ways have ended.
///
/// # Errors
/// When one of the two breaks.
pub async fn both_ways<A, B>(a: &mut A, b: &mut B) -> Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    copy_bidirectional_with_sizes(a, b, BUFFER, BUFFER).await.map(drop)
}

async fn dial(address: &UnixAddr) -> Result<UnixStream> {
    for _ in 0..ATTEMPTS {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        match connect(fd.as_raw_fd(), address) {
            Ok(()) => return UnixStream::from_std(fd.into()),
            Err(Errno::EAGAIN) => tokio::time::sleep(PAUSE).await,
            Err(errno) => return Err(errno.into()),
        }
    }
    Err(Errno::ETIMEDOUT.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test(flavor = "current_thread")]
    async fn a_connection_reaches_whoever_listens() {
        for family in [Family::Unix, Family::Ipv4(0), Family::Ipv6(0)] {
            let Ok((theirs, address)) = listener(family) else {
                // A machine without IPv6.
                assert!(matches!(family, Family::Ipv6(_)));
                continue;
            };
            let server = std::thread::spawn(move || match family {
                Family::Unix => {
                    let listener = std::os::unix::net::UnixListener::from(theirs);
                    echo(listener.accept().unwrap().0);
                }
                _ => echo(TcpListener::from(theirs).accept().unwrap().0),
            });
            let (mut ours, other) = UnixStream::pair().unwrap();
            let relayed = tokio::join!(relay(&address, other), async {
                ours.write_all(b"there").await.unwrap();
                ours.shutdown().await.unwrap();
                let mut text = String::new();
                ours.read_to_string(&mut text).await.unwrap();
                assert_eq!(text, "there and back");
            });
            relayed.0.unwrap();
            server.join().unwrap();
        }
    }

    fn echo(mut stream: impl Read + Write) {
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        stream.write_all(format!("{text} and back").as_bytes()).unwrap();
    }

    #[test]
    fn too_many_are_refused() {
        let many = vec![Descriptor::Null; MAX_DESCRIPTORS + 1];
        assert_eq!(open(&Streams::default(), &many).unwrap_err().kind, ErrorKind::Invalid);
        assert_eq!(open(&Streams::default(), &many[1..]).unwrap().len(), MAX_DESCRIPTORS);
    }
}
