//! Client of the guest agent.
//!
//! ```text
//! Agent (handle, clone freely)          driver (one task per connection)
//!   call() --- (call, reply slot) --->    id -> slot; frames out
//!   <-------- result -----------------    frames in; unknown ids ignored
//! ```
//!
//! The peer is the guest, so it is not trusted: a frame is bounded before it is
//! allocated, every wait but that for a process's end has a time limit, a
//! message that makes no sense ends the connection, and its end fails all calls
//! that are under way.

mod connect;
mod driver;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use protocol::agent::{Call, Event, Exit, Hello, Message, ProcessId, Return};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};

pub use connect::{ConnectError, connect_port};
pub(crate) use driver::bounded;

/// Longest wait for the answer to a call that does not wait for a process.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Calls that may wait for their turn on the connection.
const QUEUE: usize = 64;

/// Why a call failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AgentError {
    /// The agent did what it could and refused.
    #[error(transparent)]
    Refused(#[from] protocol::agent::AgentError),
    /// The connection is gone.
    #[error("the connection to the guest ended: {0}")]
    Closed(Arc<str>),
    /// No answer in time.
    #[error("the guest did not answer `{what}` within {} s", limit.as_secs())]
    TimedOut {
        /// The call.
        what: &'static str,
        /// The limit.
        limit: Duration,
    },
    /// The agent is of another version.
    #[error(
        "the guest agent speaks protocol version {theirs}, this bulkhead speaks {}: \
         the initramfs and the command are of different builds",
        protocol::PROTOCOL_VERSION
    )]
    Version {
        /// The agent's.
        theirs: u32,
    },
    /// The agent answered something else than the call returns.
    #[error("the guest answered `{0}` with something else")]
    Nonsense(&'static str),
    /// The guest could not be reached.
    #[error(transparent)]
    Connect(#[from] Arc<ConnectError>),
}

/// A connection to a guest agent.
#[derive(Debug, Clone)]
pub struct Agent {
    requests: mpsc::Sender<Request>,
    call_timeout: Duration,
}

/// What the guest said of itself, and its events.
#[derive(Debug)]
pub struct Greeting {
    /// The first frame.
    pub hello: Hello,
    /// Unasked messages. Those that nobody reads are dropped.
    pub events: mpsc::Receiver<Event>,
}

type Answer = Result<Return, AgentError>;

#[derive(Debug)]
struct Request {
    call: Call,
    reply: oneshot::Sender<Answer>,
}

impl Agent {
    /// Takes up a connection on which the agent speaks first.
    ///
    /// # Errors
    /// When it does not greet within `limit`, or is of another version.
    pub async fn greet<S>(stream: S, limit: Duration) -> Result<(Agent, Greeting), AgentError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let mut link = driver::Link::new(stream);
        let what = "hello";
        let first = tokio::time::timeout(limit, link.next())
            .await
            .map_err(|_| AgentError::TimedOut { what, limit })?
            .map_err(|why| AgentError::Closed(why.into()))?;
        let Message::Hello(hello) = first else { return Err(AgentError::Nonsense(what)) };
        if !(protocol::OLDEST_AGENT..=protocol::PROTOCOL_VERSION).contains(&hello.version) {
            return Err(AgentError::Version { theirs: hello.version });
        }
        let (requests, inbox) = mpsc::channel(QUEUE);
        let (event_sender, events) = mpsc::channel(QUEUE);
        tokio::spawn(driver::run(link, inbox, event_sender));
        Ok((Agent { requests, call_timeout: CALL_TIMEOUT }, Greeting { hello, events }))
    }

    /// Connects to the agent of a running sandbox by its directory.
    ///
    /// # Errors
    /// When the guest cannot be reached, or as [`Agent::greet`].
    pub async fn connect(sandbox: &Path) -> Result<Agent, AgentError> {
        let port = protocol::vsock::AGENT_PORT;
        let stream = connect_port(sandbox, port).await.map_err(Arc::new)?;
        Ok(Agent::greet(stream, CALL_TIMEOUT).await?.0)
    }

    /// The same connection with another limit for its calls.
    pub fn with_timeout(mut self, limit: Duration) -> Agent {
        self.call_timeout = limit;
        self
    }

    /// Makes a call and waits for its answer.
    ///
    /// # Errors
    /// As [`AgentError`].
    pub async fn call(&self, call: Call) -> Answer {
        let what = name(&call);
        let limit = self.call_timeout;
        let answer = self.send(call);
        tokio::time::timeout(limit, answer)
            .await
            .unwrap_or(Err(AgentError::TimedOut { what, limit }))
    }

    /// A call of which only success is of interest.
    ///
    /// # Errors
    /// As [`AgentError`].
    pub async fn order(&self, call: Call) -> Result<(), AgentError> {
        self.call(call).await.map(drop)
    }

    /// Waits for the end of a process, for ever.
    ///
    /// # Errors
    /// As [`AgentError`].
    pub async fn wait(&self, process: ProcessId) -> Result<Exit, AgentError> {
        match self.send(Call::Wait { process }).await? {
            Return::Exit(exit) => Ok(exit),
            _ => Err(AgentError::Nonsense("wait")),
        }
    }

    async fn send(&self, call: Call) -> Answer {
        let (reply, answer) = oneshot::channel();
        let closed = || AgentError::Closed("it was closed before".into());
        self.requests.send(Request { call, reply }).await.map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }
}

/// Name of a call in messages.
fn name(call: &Call) -> &'static str {
    match call {
        Call::Create(_) => "create",
        Call::Start { .. } => "start",
        Call::Exec(_) => "exec",
        Call::Signal { .. } => "signal",
        Call::Resize { .. } => "resize",
        Call::Wait { .. } => "wait",
        Call::Processes { .. } => "processes",
        Call::Stats { .. } => "stats",
        Call::Freeze { .. } => "freeze",
        Call::Update { .. } => "update",
        Call::Delete { .. } => "delete",
        Call::Forget { .. } => "forget",
        Call::SetTime { .. } => "set_time",
        Call::Phase { .. } => "phase",
        Call::Grow { .. } => "grow",
        Call::Network(_) => "network",
        Call::Unplug { .. } => "unplug",
        Call::PowerOff => "power_off",
    }
}

#[cfg(test)]
mod tests;
