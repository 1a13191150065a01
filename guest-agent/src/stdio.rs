//! Stdio of processes: pipes and terminals, pumped to the host's streams.
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
use nix::unistd::{pipe2, read, write};
use protocol::agent::{AgentError, ErrorKind, Stdio, Stream};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest};

use crate::error::error;
use crate::sys::poll::watch;

/// Bytes moved at a time: a pipe's capacity.
const BUFFER: usize = 64 << 10;

/// The agent's ends.
#[derive(Debug, Default)]
pub struct Streams(RefCell<HashMap<Stream, End>>);

/// One end. Once attached it belongs to the pump: when that stops, the
/// descriptor is closed, and the process sees it.
#[derive(Debug)]
enum End {
    Waiting(Rc<OwnedFd>),
    Attached(Weak<OwnedFd>),
}

impl Streams {
    /// The pipes that were announced: the agent's ends, and the process's three
    /// descriptors.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open(stdio: Stdio) -> Result<(Self, [OwnedFd; 3])> {
        let streams = Streams::default();
        let pipes = !stdio.terminal;
        let theirs = [
            streams.end(Stream::Stdin, pipes && stdio.stdin)?,
            streams.end(Stream::Stdout, pipes && stdio.stdout)?,
            streams.end(Stream::Stderr, pipes && stdio.stderr)?,
        ];
        Ok((streams, theirs))
    }

    fn end(&self, stream: Stream, announced: bool) -> Result<OwnedFd> {
        if !announced {
            let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
            return Ok(null.into());
        }
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
        let (ours, theirs) =
            if stream == Stream::Stdin { (writer, reader) } else { (reader, writer) };
        self.insert(stream, ours)?;
        Ok(theirs)
    }

    /// Adds an end of the agent's.
    ///
    /// # Errors
    /// The kernel's.
    pub fn insert(&self, stream: Stream, ours: OwnedFd) -> Result<()> {
        fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        self.0.borrow_mut().insert(stream, End::Waiting(Rc::new(ours)));
        Ok(())
    }

    /// Takes an end, to attach it.
    ///
    /// # Errors
    /// When it was not announced, or was attached before.
    pub fn take(&self, stream: Stream) -> std::result::Result<Rc<OwnedFd>, AgentError> {
        let mut ends = self.0.borrow_mut();
        match ends.get_mut(&stream) {
            None => Err(error(ErrorKind::NotFound, format!("{stream:?} was not announced"))),
            Some(end) => {
                let End::Waiting(fd) = &*end else { return Err(attached(stream)) };
                let fd = fd.clone();
                *end = End::Attached(Rc::downgrade(&fd));
                Ok(fd)
            }
        }
    }

    /// The terminal's master side, while it is open.
    pub fn terminal(&self) -> Option<Rc<OwnedFd>> {
        match self.0.borrow().get(&Stream::Terminal)? {
            End::Waiting(fd) => Some(fd.clone()),
            End::Attached(fd) => fd.upgrade(),
        }
    }

    /// Whether any announced stream still waits for the host.
    pub fn any_waiting(&self) -> bool {
        self.0.borrow().values().any(|end| matches!(end, End::Waiting(_)))
    }
}

fn attached(stream: Stream) -> AgentError {
    error(ErrorKind::Exists, format!("{stream:?} was attached before"))
}

/// Pumps one stream until its end.
///
/// # Errors
/// Of the descriptor or of the connection; both are closed then.
pub async fn pump<S>(stream: Stream, ours: Rc<OwnedFd>, connection: S) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    match stream {
        Stream::Stdin => {
            let writer = watch(ours, Interest::WRITABLE | Interest::ERROR)?;
            stdin(writer, connection).await
        }
        Stream::Stdout | Stream::Stderr => {
            output(watch(ours, Interest::READABLE)?, connection).await
        }
        Stream::Terminal => {
            terminal(watch(ours, Interest::READABLE | Interest::WRITABLE)?, connection).await
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
