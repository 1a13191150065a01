//! Stdio between descriptors of the host and streams of the guest.
//!
//! ```text
//! host stdin  --- pump "stdin"  ---> |          |
//! host stdout <-- pump "stdout" ---- | the      | process
//! host stderr <-- pump "stderr" ---- | guest's  |
//!    or                              | streams  |
//! terminal    <-> both of the first  |          |
//! ```
//!
//! A pump is a thread that copies with blocking calls: the host's descriptors
//! are shared with whoever started us, so that they must not be made
//! non-blocking, and a slow reader must slow down only its own stream.
//!
//! * End of file of the host's stdin half-closes the stream.
//! * A reader of our stdout that is gone closes the stream, which gives the
//!   process EPIPE; the exit code still arrives.
//! * [`Streams::finish`] waits for the last byte, as long as bytes move or the
//!   host's reader is what we wait for.

pub mod descriptors;
pub mod forward;
mod listener;
mod pump;
pub mod terminal;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use protocol::agent::{Descriptor, ProcessId, Stdio, Stream, StreamHello, StreamReply};
use protocol::frame;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::agent::{AgentError, CALL_TIMEOUT, ConnectError, bounded, connect_port};
use crate::log_file::LogWriter;
use descriptors::Extra;
use listener::Listener;
use pump::Pump;

/// Why a stream could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The guest's port.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The agent refused it.
    #[error("the guest refused the stream: {0}")]
    Refused(protocol::agent::AgentError),
    /// The connection broke or timed out.
    #[error("cannot attach to the process's stdio")]
    Io(#[from] std::io::Error),
    /// The answer is no answer.
    #[error(transparent)]
    Frame(#[from] frame::FrameError),
}

impl From<StreamError> for AgentError {
    fn from(error: StreamError) -> AgentError {
        match error {
            StreamError::Refused(error) => AgentError::Refused(error),
            other => AgentError::Closed(other.to_string().into()),
        }
    }
}

/// Where stdin comes from.
#[derive(Debug, Default)]
pub enum Input {
    /// The process has /dev/null.
    #[default]
    None,
    /// Open, but nothing ever comes.
    Idle,
    /// A descriptor of the host.
    Fd(OwnedFd),
}

/// Where an output goes: any of the two.
#[derive(Default)]
pub struct Output {
    /// A descriptor of the host.
    pub fd: Option<OwnedFd>,
    /// The container's log.
    pub log: Option<LogWriter>,
}

impl Output {
    fn is_used(&self) -> bool {
        self.fd.is_some() || self.log.is_some()
    }
}

/// Stdio of one process as the host has it.
#[derive(Default)]
pub struct HostStdio {
    /// Whether stdin and stdout are one terminal.
    pub terminal: bool,
    /// Standard input.
    pub stdin: Input,
    /// Standard output, or the terminal's.
    pub stdout: Output,
    /// Standard error; unused with a terminal.
    pub stderr: Output,
    /// What follows: 3, 4, ...
    pub descriptors: Vec<Extra>,
}

impl HostStdio {
    /// What the agent must provide.
    pub fn announced(&self) -> Stdio {
        if self.terminal {
            return Stdio { terminal: true, ..Stdio::default() };
        }
        Stdio {
            stdin: !matches!(self.stdin, Input::None),
            stdout: self.stdout.is_used(),
            stderr: self.stderr.is_used(),
            terminal: false,
        }
    }

    /// The same of the further descriptors.
    pub fn announced_descriptors(&self) -> Vec<Descriptor> {
        self.descriptors.iter().map(|extra| extra.kind).collect()
    }
}

/// The pumps of one process.
#[derive(Default)]
pub struct Streams {
    inputs: Vec<Pump>,
    outputs: Vec<Pump>,
    listeners: Vec<Listener>,
    /// A stream that is only held open.
    _idle: Option<std::os::unix::net::UnixStream>,
}

impl Streams {
    /// Attaches to the streams of `process` and starts to copy.
    ///
    /// # Errors
    /// As [`StreamError`]; nothing is attached then.
    pub async fn attach(
        sandbox: &Path,
        process: &ProcessId,
        host: HostStdio,
    ) -> Result<Streams, StreamError> {
        let opener = Opener { sandbox: sandbox.into(), process: process.clone() };
        let announced = host.announced();
        let mut streams = Streams::default();
        for (number, extra) in (0..).zip(host.descriptors) {
            streams.add(&opener, Stream::Descriptor(number), extra).await?;
        }
        if announced.terminal {
            let stream = opener.open(Stream::Terminal).await?;
            let writer = stream.try_clone()?;
            streams.outputs.push(Pump::output("terminal", stream, host.stdout)?);
            match host.stdin {
                Input::Fd(fd) => streams.inputs.push(Pump::input(fd, writer)?),
                Input::Idle | Input::None => streams._idle = Some(writer),
            }
            return Ok(streams);
        }
        // All are opened before the first byte is taken from the host.
        let stdin = if announced.stdin { Some(opener.open(Stream::Stdin).await?) } else { None };
        for (wanted, stream, name, output) in [
            (announced.stdout, Stream::Stdout, "stdout", host.stdout),
            (announced.stderr, Stream::Stderr, "stderr", host.stderr),
        ] {
            if wanted {
                let source = opener.open(stream).await?;
                streams.outputs.push(Pump::output(name, source, output)?);
            }
        }
        match (stdin, host.stdin) {
            (Some(stream), Input::Fd(fd)) => streams.inputs.push(Pump::input(fd, stream)?),
            (stream, _) => streams._idle = stream,
        }
        Ok(streams)
    }

    async fn add(
        &mut self,
        opener: &Opener,
        stream: Stream,
        Extra { kind, fd }: Extra,
    ) -> Result<(), StreamError> {
        match kind {
            Descriptor::Null => {}
            Descriptor::Listener(_) => {
                self.listeners.push(Listener::begin(opener.clone(), stream, fd)?);
            }
            Descriptor::Input => self.inputs.push(Pump::input(fd, opener.open(stream).await?)?),
            Descriptor::Output => {
                let output = Output { fd: Some(fd), log: None };
                let source = opener.open(stream).await?;
                self.outputs.push(Pump::output("a descriptor", source, output)?);
            }
            Descriptor::Socket => {
                let [input, output] = Pump::both_ways(fd, opener.open(stream).await?)?;
                self.inputs.push(input);
                self.outputs.push(output);
            }
        }
        Ok(())
    }

    /// After the process's end: waits for the last bytes of its outputs. An
    /// output that nothing comes from for `grace`, because something else holds
    /// it open or the guest stalls, is closed: the names of those.
    pub async fn finish(mut self, grace: Duration) -> Vec<&'static str> {
        let mut cut = Vec::new();
        for pump in &mut self.outputs {
            if !pump.drain(grace).await {
                cut.push(pump.name);
            }
        }
        // As many as clients like: all of them together get what one output gets.
        let mut connections: Vec<_> = self.listeners.drain(..).flat_map(Listener::end).collect();
        let drained = async {
            for [_, output] in &mut connections {
                output.drain(grace).await;
            }
        };
        if tokio::time::timeout(grace, drained).await.is_err() {
            cut.push("a connection");
        }
        connections.into_iter().flatten().for_each(Pump::abandon);
        cut
    }
}

/// Opens streams of one process.
#[derive(Clone)]
struct Opener {
    sandbox: PathBuf,
    process: ProcessId,
}

impl Opener {
    async fn open(&self, stream: Stream) -> Result<std::os::unix::net::UnixStream, StreamError> {
        let attach = async {
            let port = protocol::vsock::STREAM_PORT;
            let mut connection = connect_port(&self.sandbox, port).await?;
            let hello = StreamHello { process: self.process.clone(), stream };
            greet(&mut connection, &hello).await?;
            let blocking = connection.into_std()?;
            blocking.set_nonblocking(false)?;
            Ok(blocking)
        };
        let late = |_| StreamError::Io(std::io::ErrorKind::TimedOut.into());
        tokio::time::timeout(CALL_TIMEOUT, attach).await.map_err(late)?
    }
}

/// Asks for the stream. What follows the answer belongs to the stream.
async fn greet(connection: &mut UnixStream, hello: &StreamHello) -> Result<(), StreamError> {
    connection.write_all(&frame::encode(hello)?).await?;
    let mut header = [0; frame::HEADER];
    connection.read_exact(&mut header).await?;
    let mut payload = vec![0; frame::payload_len(header)?];
    connection.read_exact(&mut payload).await?;
    frame::decode::<StreamReply>(&payload)?.map_err(|error| StreamError::Refused(bounded(error)))
}

#[cfg(test)]
mod tests;
