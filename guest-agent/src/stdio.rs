//! Streams of processes: pipes, terminals and sockets, pumped to the host's.
//!
//! Each stream is a connection of its own. A slow reader fills first the
//! connection, then the pipe, then blocks the process: nothing is buffered
//! without bound, nothing is lost, and no call is delayed.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::{ErrorKind as Io, Result};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::{Rc, Weak};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{pipe2, read, write};
use protocol::agent::{AgentError, ErrorKind, Stdio, Stream};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest};
use tokio::net::UnixStream;

use crate::descriptors::{Address, both_ways, relay};
use crate::error::error;
use crate::sys::poll::watch;

/// Bytes moved at a time: a pipe's capacity.
pub const BUFFER: usize = 64 << 10;

/// The agent's ends.
#[derive(Debug, Default)]
pub struct Streams(RefCell<HashMap<Stream, End>>);

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Host to process, through a pipe.
    In,
    /// Process to host, through a pipe.
    Out,
    /// Both, through a terminal.
    Terminal,
    /// Both, through a stream socket.
    Both,
}

/// One end. Once attached it belongs to the pump: when that stops, the
/// descriptor is closed, and the process sees it.
#[derive(Debug)]
enum End {
    Waiting(Way, Rc<OwnedFd>),
    Attached(Weak<OwnedFd>),
    /// Attached to as often as the host likes.
    Listener(Address),
}

/// What a connection of the host is attached to.
#[derive(Debug)]
pub enum Attached {
    /// To an end of ours.
    End(Way, Rc<OwnedFd>),
    /// To a socket that the process listens on.
    Listener(Address),
}

impl Streams {
    /// The pipes that were announced: the agent's ends, and the process's three
    /// descriptors.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open(stdio: Stdio) -> Result<(Self, [OwnedFd; 3])> {
        let streams = Streams::default();
        let end = |stream, way, announced: bool| {
            if announced && !stdio.terminal { streams.pipe(stream, way) } else { Self::null() }
        };
        let theirs = [
            end(Stream::Stdin, Way::In, stdio.stdin)?,
            end(Stream::Stdout, Way::Out, stdio.stdout)?,
            end(Stream::Stderr, Way::Out, stdio.stderr)?,
        ];
        Ok((streams, theirs))
    }

    /// A process's end of nothing.
    ///
    /// # Errors
    /// The kernel's.
    pub fn null() -> Result<OwnedFd> {
        Ok(std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?.into())
    }

    /// Makes a pipe; the process's end.
    ///
    /// # Errors
    /// The kernel's.
    pub fn pipe(&self, stream: Stream, way: Way) -> Result<OwnedFd> {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
        let (ours, theirs) = if way == Way::In { (writer, reader) } else { (reader, writer) };
        // Whoever the process is, it may open it again as /dev/stdout.
        fchmod(&theirs, Mode::from_bits_truncate(0o666))?;
        self.insert(stream, way, ours)?;
        Ok(theirs)
    }

    /// Adds an end of the agent's.
    ///
    /// # Errors
    /// The kernel's.
    pub fn insert(&self, stream: Stream, way: Way, ours: OwnedFd) -> Result<()> {
        fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        self.0.borrow_mut().insert(stream, End::Waiting(way, Rc::new(ours)));
        Ok(())
    }

    /// Adds a socket that the process listens on.
    pub fn listen(&self, stream: Stream, address: Address) {
        self.0.borrow_mut().insert(stream, End::Listener(address));
    }

    /// Takes an end, to attach it.
    ///
    /// # Errors
    /// When it was not announced, or was attached before.
    pub fn take(&self, stream: Stream) -> std::result::Result<Attached, AgentError> {
        let mut ends = self.0.borrow_mut();
        let (way, fd) = match ends.get(&stream) {
            Some(End::Waiting(way, fd)) => (*way, fd.clone()),
            Some(End::Listener(address)) => return Ok(Attached::Listener(address.clone())),
            Some(End::Attached(_)) => {
                return Err(error(ErrorKind::Exists, format!("{stream:?} was attached before")));
            }
            None => {
                return Err(error(ErrorKind::NotFound, format!("{stream:?} was not announced")));
            }
        };
        ends.insert(stream, End::Attached(Rc::downgrade(&fd)));
        Ok(Attached::End(way, fd))
    }

    /// The terminal's master side, while it is open.
    pub fn terminal(&self) -> Option<Rc<OwnedFd>> {
        match self.0.borrow().get(&Stream::Terminal)? {
            End::Waiting(_, fd) => Some(fd.clone()),
            End::Attached(fd) => fd.upgrade(),
            End::Listener(_) => None,
        }
    }

    /// Whether any announced stream still waits for the host.
    pub fn any_waiting(&self) -> bool {
        self.0.borrow().values().any(|end| matches!(end, End::Waiting(..)))
    }
}

/// Pumps one stream until its end.
///
/// # Errors
/// Of the descriptor or of the connection; both are closed then.
pub async fn pump<S>(attached: Attached, mut connection: S) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (way, ours) = match attached {
        Attached::Listener(address) => return relay(&address, connection).await,
        Attached::End(way, ours) => (way, ours),
    };
    match way {
        Way::In => {
            let writer = watch(ours, Interest::WRITABLE | Interest::ERROR)?;
            stdin(writer, connection).await
        }
        Way::Out => output(watch(ours, Interest::READABLE)?, connection).await,
        Way::Terminal => {
            terminal(watch(ours, Interest::READABLE | Interest::WRITABLE)?, connection).await
        }
        Way::Both => {
            // Nobody else has it: it is no terminal.
            let Ok(socket) = Rc::try_unwrap(ours) else { return Err(Io::Other.into()) };
            both_ways(&mut UnixStream::from_std(socket.into())?, &mut connection).await
        }
    }
}

async fn stdin<S: AsyncRead + AsyncWrite + Unpin>(
    writer: AsyncFd<Rc<OwnedFd>>,
    mut connection: S,
) -> Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let count = tokio::select! {
            count = connection.read(&mut buffer) => count?,
            // The last reader is gone: the host is told by a closed stream.
            _ = closed(&writer) => 0,
        };
        if count == 0 || write_all(&writer, &buffer[..count]).await.is_err() {
            drop(writer);
            let _ = connection.shutdown().await;
            return Ok(());
        }
    }
}

async fn closed(writer: &AsyncFd<Rc<OwnedFd>>) {
    while let Ok(mut guard) = writer.ready(Interest::ERROR).await {
        if guard.ready().is_error() {
            return;
        }
        guard.clear_ready();
    }
}

async fn output<S: AsyncRead + AsyncWrite + Unpin>(
    reader: AsyncFd<Rc<OwnedFd>>,
    connection: S,
) -> Result<()> {
    let (mut from_host, mut to_host) = tokio::io::split(connection);
    let mut buffer = vec![0; BUFFER];
    let mut unexpected = [0; 64];
    loop {
        let count = tokio::select! {
            count = read_some(&reader, &mut buffer) => count?,
            // The host sends nothing here: its end of file means that it
            // closed the stream, and the process gets EPIPE.
            count = from_host.read(&mut unexpected) => match count {
                Ok(count) if count > 0 => continue,
                _ => return Ok(()),
            },
        };
        if count == 0 {
            return to_host.shutdown().await;
        }
        to_host.write_all(&buffer[..count]).await?;
    }
}

/// Both ways. The host's end of file ends the input only: a terminal has no
/// half-close, and what the process still says is wanted.
async fn terminal<S: AsyncRead + AsyncWrite + Unpin>(
    master: AsyncFd<Rc<OwnedFd>>,
    connection: S,
) -> Result<()> {
    let (mut from_host, mut to_host) = tokio::io::split(connection);
    let input = async {
        let mut buffer = vec![0; 4096];
        loop {
            match from_host.read(&mut buffer).await {
                Ok(count) if count > 0 => write_all(&master, &buffer[..count]).await?,
                _ => return std::future::pending::<Result<()>>().await,
            }
        }
    };
    let output = async {
        let mut buffer = vec![0; BUFFER];
        loop {
            match read_some(&master, &mut buffer).await {
                Ok(count) if count > 0 => to_host.write_all(&buffer[..count]).await?,
                // EIO: the last process that had the terminal open is gone.
                _ => return to_host.shutdown().await,
            }
        }
    };
    tokio::pin!(input, output);
    tokio::select! {
        result = &mut output => result,
        // A write to the master fails only when it is gone as well.
        _ = &mut input => output.await,
    }
}

async fn read_some(reader: &AsyncFd<Rc<OwnedFd>>, buffer: &mut [u8]) -> Result<usize> {
    loop {
        let mut guard = reader.readable().await?;
        match guard.try_io(|fd| Ok(read(fd.as_fd(), buffer)?)) {
            Err(_would_block) => {}
            Ok(Err(error)) if error.kind() == Io::Interrupted => {}
            Ok(result) => return result,
        }
    }
}

async fn write_all(writer: &AsyncFd<Rc<OwnedFd>>, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        let mut guard = writer.writable().await?;
        match guard.try_io(|fd| Ok(write(fd.as_fd(), bytes)?)) {
            Err(_would_block) => {}
            Ok(Err(error)) if error.kind() == Io::Interrupted => {}
            Ok(result) => bytes = &bytes[result?..],
        }
    }
    Ok(())
}
