//! The agent: serves calls and streams.
//!
//! Generic over the transport: vsock in a machine, Unix sockets in tests.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use protocol::PROTOCOL_VERSION;
use protocol::agent::{AgentError, ErrorKind, Hello, Message, StreamHello, StreamReply};
use protocol::frame::{self, HEADER};
use protocol::vsock::{AGENT_PORT, HOST_CID, READY_PORT, STREAM_PORT};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{JoinSet, LocalSet, spawn_local};
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener, VsockStream};

use crate::error::{chain, error};
use crate::state::Agent;
use crate::{handlers, kmsg, stdio};

/// Calls under way on one connection; the next is read when one returns.
const MAX_CALLS: usize = 1024;
/// Connections for calls: each container of a pod, exec and verb under way has one.
const MAX_CONNECTIONS: usize = 2048;
/// Connections for streams.
const MAX_STREAMS: usize = 4096;
/// How long the host's ready port is dialled.
const DIAL: Duration = Duration::from_secs(10);
/// Between two attempts to accept while descriptors are short.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Runs the agent on vsock; does not return.
pub fn main() -> ! {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let end = match runtime {
        Ok(runtime) => LocalSet::new().block_on(&runtime, serve_vsock()),
        Err(error) => Err(error),
    };
    if let Err(error) = end {
        kmsg::log(&chain(&error));
    }
    handlers::power_off::now()
}

async fn serve_vsock() -> std::io::Result<()> {
    let agent = Agent::new();
    let calls = listen(AGENT_PORT)?;
    let streams = listen(STREAM_PORT)?;
    spawn_local(accept_streams(agent.clone(), streams));
    let ready = dial().await?;
    spawn_local(serve_calls(agent.clone(), ready, true));
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let place = room.clone().acquire_owned().await;
        let connection = match calls.accept().await {
            Ok((connection, _)) => connection,
            // Out of descriptors or memory: others will give some back. It must
            // never be the end of the machine.
            Err(error) => {
                kmsg::log(&format!("accepting a connection: {error}"));
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let agent = agent.clone();
        spawn_local(async move {
            serve_calls(agent, connection, false).await;
            drop(place);
        });
    }
}

fn listen(port: u32) -> std::io::Result<VsockListener> {
    VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port))
        .map_err(|error| std::io::Error::other(format!("listening on vsock port {port}: {error}")))
}

/// Dials the host. Without a vsock device there is none: this machine was not
/// booted by bulkhead-vmm.
async fn dial() -> std::io::Result<VsockStream> {
    let address = VsockAddr::new(HOST_CID as u32, READY_PORT);
    let end = tokio::time::Instant::now() + DIAL;
    loop {
        let error = match VsockStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        let absent = matches!(error.raw_os_error(), Some(libc::ENODEV | libc::EADDRNOTAVAIL));
        if absent || tokio::time::Instant::now() >= end {
            let what = if absent { "there is no vsock device" } else { "the host does not answer" };
            return Err(std::io::Error::other(format!("{what} ({error}); powering off")));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn accept_streams(agent: Rc<Agent>, listener: VsockListener) {
    let room = Arc::new(Semaphore::new(MAX_STREAMS));
    loop {
        let place = room.clone().acquire_owned().await;
        match listener.accept().await {
            Ok((connection, _)) => {
                let agent = agent.clone();
                spawn_local(async move {
                    serve_stream(agent, connection).await;
                    drop(place);
                });
            }
            Err(error) => {
                kmsg::log(&format!("accepting a stream: {error}"));
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// What this agent is.
pub fn hello() -> Hello {
    let kernel = nix::sys::utsname::uname()
        .map(|name| name.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    let up = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map(Duration::from);
    let uptime_us = up.map_or(0, |up| up.as_micros() as u64);
    Hello { version: PROTOCOL_VERSION, kernel, uptime_us }
}

/// Serves calls until the host closes the connection; `events` are sent on it.
pub async fn serve_calls<S>(agent: Rc<Agent>, connection: S, events: bool)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let (mut reader, writer) = tokio::io::split(connection);
    let (sender, receiver) = mpsc::channel(16);
    let mut tasks = JoinSet::new();
    let writing = tasks.spawn_local(write_messages(writer, receiver));
    if sender.send(Message::Hello(hello())).await.is_err() {
        return;
    }
    if events {
        tasks.spawn_local(forward_events(agent.clone(), sender.clone()));
    }
    let room = Arc::new(Semaphore::new(MAX_CALLS));
    loop {
        let Ok(place) = room.clone().acquire_owned().await else { break };
        let (id, call) = match read_message(&mut reader).await {
            Ok(Message::Call { id, call }) => (id, call),
            // Only calls are the host's to send; anything else ends it.
            Ok(_) | Err(_) => break,
        };
        // Ended calls are forgotten; those under way end with the connection.
        while tasks.try_join_next().is_some() {}
        if writing.is_finished() {
            break;
        }
        let (agent, sender) = (agent.clone(), sender.clone());
        tasks.spawn_local(async move {
            let result = handlers::call(&agent, call).await;
            let _ = sender.send(Message::Return { id, result }).await;
            drop(place);
        });
    }
}

async fn write_messages<W: AsyncWrite + Unpin>(mut to: W, mut messages: mpsc::Receiver<Message>) {
    while let Some(message) = messages.recv().await {
        if write_message(&mut to, &bounded(message)).await.is_err() {
            return;
        }
    }
}

/// A return that is too large for a frame becomes an error that says so.
fn bounded(message: Message) -> Message {
    match (frame::encode(&message), message) {
        (Err(cause), Message::Return { id, .. }) => Message::Return {
            id,
            result: Err(error(ErrorKind::System, format!("the answer is too large: {cause}"))),
        },
        (_, message) => message,
    }
}

async fn forward_events(agent: Rc<Agent>, sender: mpsc::Sender<Message>) {
    let mut events = agent.events.subscribe();
    loop {
        match events.recv().await {
            Ok(event) => {
                if sender.send(Message::Event(event)).await.is_err() {
                    return;
                }
            }
            // More events than the host reads: the newest are kept.
            Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {}
            Err(tokio::sync::broadcast::error::RecvError::Closed) => return,
        }
    }
}

/// Serves one stream connection.
pub async fn serve_stream<S>(agent: Rc<Agent>, mut connection: S)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Ok(hello) = read_message::<StreamHello, _>(&mut connection).await else { return };
    let attached = attach(&agent, &hello);
    let reply: StreamReply = attached.as_ref().map(|_| ()).map_err(AgentError::clone);
    if write_message(&mut connection, &reply).await.is_err() {
        return;
    }
    if let Ok(attached) = attached {
        // Its errors are an end of stream to both sides, and no one else's.
        let _ = stdio::pump(attached, connection).await;
    }
}

fn attach(agent: &Agent, hello: &StreamHello) -> Result<stdio::Attached, AgentError> {
    let (_, process) = agent.process(&hello.process)?;
    process.streams.take(hello.stream)
}

/// Reads one frame.
///
/// # Errors
/// Of the connection, or of the peer's bytes.
pub async fn read_message<T, R>(from: &mut R) -> std::io::Result<T>
where
    T: DeserializeOwned,
    R: AsyncRead + Unpin,
{
    let mut header = [0; HEADER];
    from.read_exact(&mut header).await?;
    let length = frame::payload_len(header).map_err(std::io::Error::other)?;
    // Grows as bytes arrive: an announcement alone costs nothing.
    let mut payload = Vec::new();
    from.take(length as u64).read_to_end(&mut payload).await?;
    frame::decode(&payload).map_err(std::io::Error::other)
}

/// Writes one frame.
///
/// # Errors
/// Of the connection.
pub async fn write_message<T, W>(to: &mut W, message: &T) -> std::io::Result<()>
where
    T: Serialize,
    W: AsyncWrite + Unpin,
{
    let bytes = frame::encode(message).map_err(std::io::Error::other)?;
    to.write_all(&bytes).await?;
    to.flush().await
}
